//! A comparison for people: on a terminal, and in a merge request.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use natpunch_config::{Impact, NodeSteps, PairSteps, Turn};

use super::{Needs, Report, signed};

/// Most names that are listed; beyond, only their number is said.
const MOST: usize = 12;

/// The widest text, in characters, beside which the effect on traffic has its column.
const WIDEST: usize = 70;

pub(super) fn plain(report: &Report) -> String {
    let mut text = headline(report);
    text.push('\n');
    for step in &report.diff.peers {
        let _ = writeln!(text, "  {}", signed(step));
    }
    for group in &report.diff.nodes {
        let _ = writeln!(text, "\n{}", nodes(group));
        rows(
            &mut text,
            group.steps.iter().map(|step| (signed(step), step.impact)),
        );
    }
    if !report.diff.pairs.is_empty() {
        let _ = writeln!(text, "\n{}", tunnels(report));
        rows(
            &mut text,
            report
                .diff
                .pairs
                .iter()
                .map(|group| (pairs(group), group.impact)),
        );
    }
    for Needs { allow, what, nodes } in &report.needs {
        let _ = writeln!(
            text,
            "\nrefused by {} without --allow {allow}: {what}",
            list(nodes)
        );
    }
    text
}

fn rows(text: &mut String, rows: impl Iterator<Item = (String, Impact)> + Clone) {
    let widths = rows.clone().map(|(what, _)| what.chars().count());
    let width = widths.max().unwrap_or_default().min(WIDEST);
    for (what, impact) in rows {
        let _ = writeln!(text, "  {what:width$}  traffic: {}", word(impact));
    }
}

pub(super) fn markdown(report: &Report) -> String {
    let mut text = format!("### {}\n", escaped(&headline(report)));
    if !report.diff.peers.is_empty() {
        text.push('\n');
    }
    for step in &report.diff.peers {
        let _ = writeln!(text, "- {}", code(&signed(step)));
    }
    for Needs { allow, what, nodes } in &report.needs {
        let (what, nodes) = (escaped(what), list(nodes));
        let _ = writeln!(
            text,
            "\n**Refused** by {nodes} without `--allow {allow}`: {what}"
        );
    }
    if !report.diff.pairs.is_empty() {
        let rows = report
            .diff
            .pairs
            .iter()
            .map(|group| (pairs(group), group.impact));
        table(&mut text, &tunnels(report), "tunnels", rows);
    }
    if !report.diff.nodes.is_empty() {
        text.push_str("\n<details><summary>What each node does</summary>\n");
        for group in &report.diff.nodes {
            let rows = group.steps.iter().map(|step| (signed(step), step.impact));
            table(&mut text, &nodes(group), "step", rows);
        }
        text.push_str("\n</details>\n");
    }
    text
}

fn table(
    text: &mut String,
    title: &str,
    column: &str,
    rows: impl Iterator<Item = (String, Impact)>,
) {
    let _ = writeln!(
        text,
        "\n{}\n\n| {column} | traffic |\n|---|---|",
        escaped(title)
    );
    for (what, impact) in rows {
        let _ = writeln!(text, "| {} | {} |", code(&what), word(impact));
    }
}

/// Text in which Markdown sees nothing of its own.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push(' '),
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '#' | '@' | '!' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

/// The same as code, also in a table.
fn code(text: &str) -> String {
    let plain = |c: char| match c {
        '`' => '\'',
        '\n' => ' ',
        c => c,
    };
    let text: String = text.chars().map(plain).collect();
    format!("`{}`", text.replace('|', "\\|"))
}

fn headline(report: &Report) -> String {
    let Report {
        mesh,
        old,
        new,
        diff,
        ..
    } = report;
    match (old == new, diff.is_empty()) {
        (true, _) => format!("mesh {mesh}: nothing changes ({new})"),
        (false, true) => format!("mesh {mesh}: {old} → {new}, and no node has anything to do"),
        (false, false) => format!("mesh {mesh}: {old} → {new}"),
    }
}

fn nodes(group: &NodeSteps) -> String {
    match group.nodes.len() {
        1 => format!("on {}", list(&group.nodes)),
        count => format!("on {count} nodes: {}", list(&group.nodes)),
    }
}

/// How many tunnels come, go, change and stay.
fn tunnels(report: &Report) -> String {
    let count = |wanted: Turn| -> usize {
        let groups = report
            .diff
            .pairs
            .iter()
            .filter(|group| group.turn == wanted);
        groups.map(|group| group.pairs.len()).sum()
    };
    let parts = [
        (count(Turn::Added), "come"),
        (count(Turn::Removed), "go"),
        (count(Turn::Changed), "change"),
        (report.diff.unchanged_pairs, "stay as they are"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    format!("tunnels: {}", parts.join(", "))
}

fn pairs(group: &PairSteps) -> String {
    let (sign, of) = (group.turn.sign(), between(&group.pairs));
    match group.changes.is_empty() {
        true => format!("{sign} {of}"),
        false => format!("{sign} {of}: {}", group.changes.join("; ")),
    }
}

/// The pairs, by the node that is in all of them if there is one.
fn between(pairs: &[(String, String)]) -> String {
    let Some(((a, b), rest)) = pairs.split_first() else {
        return String::new();
    };
    if rest.is_empty() {
        return format!("{a} and {b}");
    }
    let in_all = |name: &&String| rest.iter().all(|(a, b)| a == *name || b == *name);
    match [a, b].into_iter().find(in_all) {
        Some(shared) => {
            let other = |(a, b): &(String, String)| if a == shared { b } else { a }.clone();
            let others: Vec<String> = pairs.iter().map(other).collect();
            format!("{shared} with {}", list(&others))
        }
        None => {
            let names: BTreeSet<&String> = pairs.iter().flat_map(|(a, b)| [a, b]).collect();
            format!("{} pairs of {} nodes", pairs.len(), names.len())
        }
    }
}

/// Names, or how many there are.
fn list(names: &[String]) -> String {
    match names.len().checked_sub(MOST) {
        Some(more @ 2..) => {
            let shown: Vec<&str> = names.iter().take(MOST).map(String::as_str).collect();
            format!("{} and {more} more", shown.join(", "))
        }
        _ => names.join(", "),
    }
}

fn word(impact: Impact) -> &'static str {
    match impact {
        Impact::None => "goes on",
        Impact::Rehandshake => "a handshake more",
        Impact::OtherPath => "goes on if there is another path",
        Impact::Interruption => "INTERRUPTED",
        Impact::NotWhileUp => "REFUSED while the mesh is up",
    }
}
