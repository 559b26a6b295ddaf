//! Which peers stand together.

use std::collections::BTreeMap;

use crate::Mesh;

/// The site of each name: what is before its last `-` or `.`, if another name has it, too. So
/// `oslo-01` and `oslo-02` are of `oslo`, and `laptop` is of none.
pub fn sites_of<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Option<String>> {
    let before = |name: &'a str| name.rsplit_once(['-', '.']).map(|(before, _)| before);
    let names: Vec<Option<&str>> = names.into_iter().map(before).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in names.iter().flatten().filter(|name| !name.is_empty()) {
        *counts.entry(name).or_default() += 1;
    }
    let site = |name: Option<&str>| {
        let name = name.filter(|name| counts.get(name).is_some_and(|count| *count > 1))?;
        Some(name.to_owned())
    };
    names.into_iter().map(site).collect()
}

/// Peers that stand together: indices of nodes, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Group {
    /// `None`: those of no site.
    pub(crate) site: Option<String>,
    pub(crate) nodes: Vec<usize>,
}

/// A name in the order of people: its number at the end counts as a number.
fn counted(name: &str) -> (&str, Option<u64>, &str) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name
        .get(stem.len()..)
        .and_then(|digits| digits.parse().ok());
    (stem, number, name)
}

/// The sites by name, and last those of none.
pub(crate) fn groups(mesh: &Mesh, without: Option<usize>) -> Vec<Group> {
    let mut sites: BTreeMap<(bool, Option<&str>), Vec<usize>> = BTreeMap::new();
    for (index, node) in mesh.nodes.iter().enumerate() {
        if Some(index) != without {
            let site = node.site.as_deref();
            sites.entry((site.is_none(), site)).or_default().push(index);
        }
    }
    let name = |index: &usize| mesh.nodes.get(*index).map(|node| counted(&node.name));
    let group = |((_, site), mut nodes): ((bool, Option<&str>), Vec<usize>)| {
        nodes.sort_by(|a, b| name(a).cmp(&name(b)).then(a.cmp(b)));
        Group {
            site: site.map(str::to_owned),
            nodes,
        }
    };
    sites.into_iter().map(group).collect()
}
