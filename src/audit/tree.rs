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

/// The hashes beside the way from leaf `index` to the root of these leaves, the lowest first (RFC 6962 2.1.1). Of a leaf that is not
/// there, none.
pub fn path(leaves: Vec<Hash>, mut index: usize) -> Vec<Hash> {
    let mut level = leaves;
    let mut path = Vec::new();
    while level.len() > 1 && index < level.len() {
        path.extend(level.get(index ^ 1));
        // One that is left over goes up as it is: it is the right part of a tree that is not full.
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => node(left, right),
                alone => alone[0],
            })
            .collect();
        index /= 2;
    }
    path
}

#[cfg(test)]
pub(super) mod tests {
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

    /// The root that a path leads to, as RFC 9162 2.1.3.2 has it.
    pub(in crate::audit) fn led_to(leaf: Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
        let (mut at, mut last, mut root) = (index, size - 1, leaf);
        for hash in path {
            if last == 0 {
                return None;
            }
            if at & 1 == 1 || at == last {
                root = node(hash, &root);
                while at & 1 == 0 && at != 0 {
                    (at, last) = (at >> 1, last >> 1);
                }
            } else {
                root = node(&root, hash);
            }
            (at, last) = (at >> 1, last >> 1);
        }
        (last == 0).then_some(root)
    }

    #[test]
    fn every_leaf_of_every_size_has_a_path_that_leads_to_the_root() {
        // AUD-24
        let leaves: Vec<Hash> = (0..40u8).map(|n| leaf(&[n])).collect();
        for size in 1..=leaves.len() {
            let root = reference(&leaves[..size]);
            for index in 0..size {
                let path = path(leaves[..size].to_vec(), index);
                let to = |leaf, at: usize| led_to(leaf, at as u64, size as u64, &path);
                assert_eq!(to(leaves[index], index), Some(root), "{index} of {size}");
                if size > 1 {
                    assert_ne!(to(leaf(b"another"), index), Some(root));
                    assert_ne!(to(leaves[index], (index + 1) % size), Some(root));
                }
            }
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
