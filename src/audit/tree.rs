//! The Merkle tree of RFC 6962 over the ledger's lines, kept as the few hashes that its root needs.

use ring::digest::{Context, SHA256};

/// A SHA-256.
pub type Hash = [u8; 32];

/// The leaf hash of a line as written, without its line feed: SHA-256(0x00 || line).
pub fn leaf(line: &[u8]) -> Hash {
    hash(&[&[0x00], line])
}

fn node(left: &Hash, right: &Hash) -> Hash {
    hash(&[&[0x01], left, right])
}

fn hash(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// The roots of the full subtrees that make up a tree, largest first: one per bit set in its size.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Frontier {
    size: u64,
    roots: Vec<Hash>,
}

impl Frontier {
    /// How many leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut root = leaf;
        for _ in 0..self.size.trailing_ones() {
            // One subtree stands there for each bit set, so the trailing ones are all on the stack.
            let left = self.roots.pop().unwrap_or_default();
            root = node(&left, &root);
        }
        self.roots.push(root);
        self.size += 1;
    }

    /// The root; of nothing, the hash of nothing.
    pub fn root(&self) -> Hash {
        let mut roots = self.roots.iter().rev().copied();
        let Some(last) = roots.next() else { return hash(&[]) };
        roots.fold(last, |right, left| node(&left, &right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6962 2.1, to the letter.
    fn reference(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => hash(&[]),
            [one] => *one,
            many => {
                let split = many.len().next_power_of_two() / 2;
                let (left, right) = many.split_at(split);
                node(&reference(left), &reference(right))
            }
        }
    }

    #[test]
    fn the_root_is_that_of_rfc_6962_for_every_size() {
        // AUD-20
        let mut frontier = Frontier::default();
        let mut leaves = Vec::new();
        assert_eq!(frontier.root(), reference(&leaves));
        for n in 0..70u8 {
            leaves.push(leaf(&[n]));
            frontier.push(leaf(&[n]));
            assert_eq!(frontier.root(), reference(&leaves), "{n}");
            assert_eq!(frontier.size(), leaves.len() as u64);
        }
    }

    #[test]
    fn the_empty_tree_and_the_empty_leaf_of_rfc_6962() {
        let hex = |hash: Hash| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(Frontier::default().root()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(hex(leaf(b"")), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
    }
}
