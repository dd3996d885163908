//! Two pictures, as SVG: how long credentials live, and who can reach what. In goes a [`Report`]; out comes SVG with a name and a
//! description for those who do not see it; what it shows stands in the tables too.

use std::{collections::BTreeMap, fmt::Write as _};

use super::esc;
use crate::posture::{CredentialPart, IdentityPart, Kind, Report, count, length, text::days_left};

/// The ends of the time line, in seconds: ten seconds, which no credential lives less than, and a year.
const SHORTEST: f64 = 10.0;
const LONGEST: f64 = 365.0 * 86_400.0;

const TICKS: [(u64, &str); 8] = [
    (10, "10 s"),
    (60, "1 min"),
    (300, "5 min"),
    (3600, "1 h"),
    (86_400, "1 d"),
    (604_800, "1 w"),
    (2_592_000, "30 d"),
    (31_536_000, "1 y"),
];

/// Where the line begins and how long it is.
const LEFT: f64 = 250.0;
const WIDE: f64 = 680.0;
const ROW: f64 = 22.0;

/// Credentials on a time line, by powers of ten: a bar each, and where exceptions end.
pub(super) fn lifetimes(out: &mut String, report: &Report) {
    let all: Vec<(&IdentityPart, &CredentialPart)> =
        report.identities.iter().flat_map(|who| who.credentials.iter().map(move |one| (who, one))).collect();
    out.push_str("<section aria-labelledby=\"lives\">\n<h2 id=\"lives\">How long things live</h2>\n");
    if all.is_empty() {
        out.push_str("<p>There are no credentials.</p>\n</section>\n");
        return;
    }
    let high = 34.0 + ROW * all.len() as f64;
    let _ = write!(
        out,
        "<figure>\n<svg viewBox=\"0 0 1000 {high:.0}\" role=\"img\" aria-labelledby=\"lives-t lives-d\">\n<title id=\"lives-t\">Lives of {}</title>\n\
         <desc id=\"lives-d\">{}</desc>\n",
        count(all.len() as u64, "credential"),
        esc(&all.iter().map(|(who, one)| told(who, one)).collect::<Vec<_>>().join(". "))
    );
    let bottom = high - 20.0;
    for (at, name) in TICKS {
        let x = place(at as f64);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"4\" y2=\"{bottom:.1}\"/><text class=\"dim\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
            high - 5.0
        );
    }
    for (at, (who, one)) in all.iter().enumerate() {
        let y = 6.0 + ROW * at as f64;
        let fixed = matches!(one.kind, Kind::Static | Kind::Bridged);
        // A secret that stays the same lives on beyond the edge, whatever its exception says.
        let end = if fixed { LEFT + WIDE + 14.0 } else { place(one.life_allowed_s as f64) };
        let name = format!("{}.{}", who.name, one.name);
        let _ = write!(
            out,
            "<g><title>{}</title><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect class=\"k-{}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"12\" rx=\"2\"/>",
            esc(&told(who, one)),
            LEFT - 8.0,
            y + 10.5,
            esc(&cut(&name, 34)),
            one.kind.as_str(),
            (end - LEFT).max(3.0)
        );
        if let Some(seen) = one.life_seen_s {
            let _ = write!(
                out,
                "<circle class=\"seen\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.2\"/>",
                place(seen as f64),
                y + 6.0
            );
        }
        if let Some(exception) = &one.exception {
            let left = exception.days_left.max(0) as f64 * 86_400.0;
            let x = place(left.max(SHORTEST));
            let _ = write!(
                out,
                "<line class=\"end\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/><path class=\"end\" fill=\"none\" d=\"M{:.1} {:.1}h8\"/>",
                y - 3.0,
                y + 15.0,
                x - 4.0,
                y - 3.0
            );
        }
        out.push_str("</g>\n");
    }
    out.push_str(
        "</svg>\n<figcaption>A bar is the longest life allowed, by powers of ten; the ring is the longest that was seen; a T marks the end of an \
         exception, counted from now (at the very left, it has ended); a bar beyond a year is a secret that lives until somebody changes it. \
         <span class=\"dot k-static\"></span>static <span class=\"dot k-bridged\"></span>bridged <span class=\"dot k-dynamic\"></span>dynamic \
         <span class=\"dot k-bound\"></span>bound</figcaption>\n</figure>\n</section>\n",
    );
}

/// Where on the line a length of time is.
fn place(seconds: f64) -> f64 {
    let at = (seconds.clamp(SHORTEST, LONGEST) / SHORTEST).ln() / (LONGEST / SHORTEST).ln();
    LEFT + WIDE * at
}

fn told(who: &IdentityPart, one: &CredentialPart) -> String {
    let life = match one.kind {
        Kind::Static | Kind::Bridged => "lives until somebody changes it".into(),
        Kind::Dynamic | Kind::Bound => format!("lives {} at most", length(one.life_allowed_s)),
    };
    let exception = one.exception.as_ref().map(|it| format!(", its exception {}", days_left(it.days_left)));
    format!("{}.{}, {}, {life}{}", who.name, one.name, one.kind.as_str(), exception.unwrap_or_default())
}

/// The middle of each column, and half of a box.
const COLUMNS: [f64; 3] = [130.0, 500.0, 850.0];
const HALF: [f64; 3] = [120.0, 90.0, 140.0];
const STEP: f64 = 40.0;
const BOX: f64 = 26.0;

/// Who can reach what: identities, the issuers they ask, the APIs that take what they get.
pub(super) fn reach(out: &mut String, report: &Report) {
    out.push_str("<section aria-labelledby=\"reach\">\n<h2 id=\"reach\">Who can reach what</h2>\n");
    let mut nodes: [Vec<&str>; 3] = [vec![], vec![], vec![]];
    // What goes from where to where, and the weakest that goes there.
    let mut edges = Edges::new();
    let mut node = |column: usize, name| match nodes[column].iter().position(|known| *known == name) {
        Some(at) => at,
        None => {
            nodes[column].push(name);
            nodes[column].len() - 1
        }
    };
    for who in &report.identities {
        for one in &who.credentials {
            let places = [node(0, &who.name), node(1, &one.issuer), node(2, api(one))];
            for from in 0..2 {
                let kind = edges.entry((from, places[from], places[from + 1])).or_insert(one.kind);
                *kind = (*kind).min(one.kind);
            }
        }
    }
    if edges.is_empty() {
        out.push_str("<p>Nobody can reach anything.</p>\n</section>\n");
        return;
    }
    untangle(&mut nodes, &mut edges);
    let tallest = nodes.iter().map(Vec::len).max().unwrap_or(1);
    let high = 30.0 + STEP * tallest as f64;
    let y = |column: usize, at: usize, nodes: &[Vec<&str>; 3]| {
        let room = STEP * tallest as f64 / nodes[column].len() as f64;
        30.0 + room * (at as f64 + 0.5)
    };
    let described: Vec<String> = report.identities.iter().map(reaches).collect();
    let _ = write!(
        out,
        "<figure>\n<svg viewBox=\"0 0 1000 {high:.0}\" role=\"img\" aria-labelledby=\"reach-t reach-d\">\n<title id=\"reach-t\">{}, {} and {}</title>\n<desc id=\"reach-d\">{}</desc>\n",
        count(nodes[0].len() as u64, "identity"),
        count(nodes[1].len() as u64, "issuer"),
        count(nodes[2].len() as u64, "API"),
        esc(&described.join(". "))
    );
    for (column, title) in ["identity", "issuer", "API"].into_iter().enumerate() {
        let x = COLUMNS[column];
        let _ = writeln!(out, "<text class=\"dim\" x=\"{x}\" y=\"16\" text-anchor=\"middle\">{title}</text>");
    }
    // The weakest last, so that it lies on top.
    let mut drawn: Vec<_> = edges.iter().collect();
    drawn.sort_by_key(|(_, kind)| std::cmp::Reverse(**kind));
    for ((from, start, end), kind) in drawn {
        let (x1, x2) = (COLUMNS[*from] + HALF[*from], COLUMNS[from + 1] - HALF[from + 1]);
        let (y1, y2) = (y(*from, *start, &nodes), y(from + 1, *end, &nodes));
        let bend = (x2 - x1) / 2.0;
        let _ = writeln!(
            out,
            "<path class=\"edge e-{}\" d=\"M{x1:.1} {y1:.1}C{:.1} {y1:.1} {:.1} {y2:.1} {x2:.1} {y2:.1}\"/>",
            kind.as_str(),
            x1 + bend,
            x2 - bend
        );
    }
    for (column, names) in nodes.iter().enumerate() {
        for (at, name) in names.iter().enumerate() {
            let (x, half, y) = (COLUMNS[column], HALF[column], y(column, at, &nodes));
            let _ = writeln!(
                out,
                "<g><title>{}</title><rect class=\"box\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BOX}\" rx=\"4\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text></g>",
                esc(name),
                x - half,
                y - BOX / 2.0,
                2.0 * half,
                y + 4.0,
                esc(&cut(name.strip_prefix("https://").unwrap_or(name), [30, 22, 36][column]))
            );
        }
    }
    out.push_str(
        "</svg>\n<figcaption>A line has the colour of the weakest credential that goes along it. <span class=\"dot k-static\"></span>static \
         <span class=\"dot k-bridged\"></span>bridged <span class=\"dot k-dynamic\"></span>dynamic <span class=\"dot k-bound\"></span>bound</figcaption>\n</figure>\n</section>\n",
    );
}

/// What goes from where (column and place) to where in the next column, and its kind.
type Edges = BTreeMap<(usize, usize, usize), Kind>;

/// Puts issuers, then APIs, at the height of those that lead to them, so that fewer lines cross.
fn untangle(nodes: &mut [Vec<&str>; 3], edges: &mut Edges) {
    for column in [1, 2] {
        // Places over how many there are, so that columns of different lengths compare.
        let height = |at: usize| {
            let from: Vec<usize> = edges
                .keys()
                .filter(|(left, _, end)| left + 1 == column && *end == at)
                .map(|(_, start, _)| *start)
                .collect();
            (from.iter().sum::<usize>() * 1000) / from.len().max(1)
        };
        let mut order: Vec<usize> = (0..nodes[column].len()).collect();
        order.sort_by_key(|at| height(*at));
        nodes[column] = order.iter().map(|at| nodes[column][*at]).collect();
        let now = |at: usize| order.iter().position(|before| *before == at).unwrap_or(at);
        let moved = |((left, start, end), kind): (&(usize, usize, usize), &Kind)| {
            let start = if *left == column { now(*start) } else { *start };
            let end = if left + 1 == column { now(*end) } else { *end };
            ((*left, start, end), *kind)
        };
        *edges = edges.iter().map(moved).collect();
    }
}

fn api(one: &CredentialPart) -> &str {
    let place = one.audience.as_deref().or(one.origins.first().map(String::as_str));
    place.unwrap_or(match one.wants {
        "certificate" => "whoever trusts its CA",
        "lease" => "whatever was leased",
        _ => "no API in particular",
    })
}

fn reaches(who: &IdentityPart) -> String {
    let ways = who
        .credentials
        .iter()
        .map(|one| format!("{} through {} ({})", api(one), one.issuer, one.kind.as_str()));
    format!("{} reaches {}", who.name, ways.collect::<Vec<_>>().join(", "))
}

/// A name that fits its box.
fn cut(name: &str, most: usize) -> String {
    if name.chars().count() <= most {
        return name.to_owned();
    }
    name.chars().take(most - 1).chain(['…']).collect()
}
