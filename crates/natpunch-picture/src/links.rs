//! What is drawn between the peers: each pair, or a rule and its exceptions.

use std::collections::BTreeMap;

use crate::{Kind, Mesh, Pair};

/// Up to so many pairs each is drawn: the eye can follow the lines of 12 peers.
const MOST_LINES: usize = 80;
/// Up to so many exceptions from a rule each is drawn.
const MOST_EXCEPTIONS: usize = 160;
/// Bands from site to site are drawn up to so many.
const MOST_BANDS: usize = 120;

/// What is drawn of the pairs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links {
    /// How many pairs there are of each kind.
    pub counts: BTreeMap<Kind, usize>,
    /// The pairs that have a line each: indices of [`Mesh::pairs`].
    pub lines: Vec<usize>,
    /// The pairs of two sites as one band: the sites' indices, the lesser first, kind, number.
    /// Sites are numbered by name, and last come the peers of none.
    pub bands: BTreeMap<(usize, usize, Kind), usize>,
    /// What is not drawn as a line, in words.
    pub notes: Vec<String>,
}

impl Links {
    /// Decides what is drawn.
    pub fn of(mesh: &Mesh) -> Self {
        let mut links = Self::default();
        let exists = |a: usize, b: usize| a != b && a.max(b) < mesh.nodes.len();
        let pairs = || {
            let pairs = mesh.pairs.iter().enumerate();
            pairs.filter(|(_, pair)| exists(pair.a, pair.b))
        };
        for (_, pair) in pairs() {
            *links.counts.entry(pair.kind).or_default() += 1;
        }
        let total: usize = links.counts.values().sum();
        // From one node each peer has one line, and none crosses another.
        let is_star = mesh
            .center
            .is_some_and(|center| pairs().all(|(_, pair)| pair.a == center || pair.b == center));
        if total <= MOST_LINES || is_star {
            links.lines = pairs().map(|(index, _)| index).collect();
            return links;
        }
        // The rule is what holds for the most; then what there are too many of to be exceptions.
        let mut kinds: Vec<(Kind, usize)> = links.counts.iter().map(|(k, n)| (*k, *n)).collect();
        kinds.sort_by_key(|(kind, count)| (std::cmp::Reverse(*count), *kind));
        let mut left = total;
        let mut rules: Vec<(Kind, usize)> = Vec::new();
        for (kind, count) in kinds {
            if left > MOST_EXCEPTIONS || rules.is_empty() {
                rules.push((kind, count));
                left -= count;
            }
        }
        let is_rule = |kind: Kind| rules.iter().any(|(rule, _)| *rule == kind);
        let sites = site_of_each(mesh);
        let site = |node: usize| sites.get(node).copied().unwrap_or_default();
        for (index, pair) in pairs() {
            if !is_rule(pair.kind) {
                links.lines.push(index);
                continue;
            }
            let (a, b) = (site(pair.a), site(pair.b));
            if a != b {
                let ends = (a.min(b), a.max(b), pair.kind);
                *links.bands.entry(ends).or_default() += 1;
            }
        }
        // Of too many the thinnest are left out.
        let all = links.bands.len();
        if all > MOST_BANDS {
            let mut by_count: Vec<_> = links.bands.iter().map(|(k, n)| (*k, *n)).collect();
            by_count.sort_by_key(|(ends, count)| (std::cmp::Reverse(*count), *ends));
            links.bands = by_count.into_iter().take(MOST_BANDS).collect();
        }
        links.notes = notes(&rules, total, (links.bands.len(), all), &links.lines);
        links
    }
}

impl Links {
    /// The pairs that have a line each, as they are drawn: what is rare over what is common.
    pub(crate) fn drawn<'a>(&self, mesh: &'a Mesh) -> Vec<&'a Pair> {
        let lines = self.lines.iter();
        let mut pairs: Vec<&Pair> = lines.filter_map(|i| mesh.pairs.get(*i)).collect();
        pairs.sort_by_key(|pair| std::cmp::Reverse(self.counts.get(&pair.kind).copied()));
        pairs
    }
}

fn notes(
    rules: &[(Kind, usize)],
    total: usize,
    (bands, all_bands): (usize, usize),
    lines: &[usize],
) -> Vec<String> {
    let mut notes = Vec::new();
    for (n, (kind, count)) in rules.iter().enumerate() {
        let (count, of) = (thousands(*count), thousands(total));
        let which = if n == 0 { "The rule" } else { "Also a rule" };
        notes.push(format!(
            "{which}: {count} of {of} pairs are {}.",
            match kind {
                Kind::Endpoint => "connected by an endpoint of the file",
                Kind::Discovery => "connected by discovery",
                kind => kind.in_words(),
            }
        ));
    }
    notes.push(match (bands, all_bands) {
        (_, 0) => "A rule's pairs have no lines of their own.".to_owned(),
        (some, all) if some < all => format!(
            "A rule's pairs have no lines of their own: a band stands for all between two sites, \
             the wider the more. The {some} widest of {all} bands are drawn."
        ),
        _ => "A rule's pairs have no lines of their own: a band stands for all between two sites, \
              the wider the more; within a site nothing is drawn."
            .to_owned(),
    });
    if !lines.is_empty() {
        let (count, are) = (
            thousands(lines.len()),
            if lines.len() == 1 { "is" } else { "are" },
        );
        notes.push(format!("The other {count} {are} drawn pair by pair."));
    }
    notes
}

/// The number of each node's site, as the bands have it.
fn site_of_each(mesh: &Mesh) -> Vec<usize> {
    let mut sites = vec![0; mesh.nodes.len()];
    for (number, group) in crate::sites::groups(mesh, None).iter().enumerate() {
        for node in &group.nodes {
            if let Some(site) = sites.get_mut(*node) {
                *site = number;
            }
        }
    }
    sites
}

/// A number with a comma before each three digits.
pub(crate) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
