//! `status --check`: one line and an exit code, as monitoring systems take them.

use std::fmt::Write as _;

use super::view::{Counts, Peer, View};
use crate::cli::exit::Verdict;

/// What a monitor is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) verdict: Verdict,
    pub(super) text: String,
}

impl Judgement {
    /// A judgement without a status to judge.
    pub(super) fn without_status(verdict: Verdict, why: &str) -> Self {
        Self {
            verdict,
            text: format!("{} natpunch: {why}\n", verdict.word()),
        }
    }
}

/// Judges a status. Its peers are the ones that are asked about.
pub(super) fn judge(view: &View) -> Judgement {
    let findings = findings(view);
    let worst = findings.iter().map(|(verdict, _)| *verdict).max();
    let verdict = worst.unwrap_or(Verdict::Fine);
    let counts = Counts::of(&view.core.peers);
    let mut text = format!("{} {}: {counts}", verdict.word(), view.mesh);
    if let Some((_, first)) = findings.iter().find(|(of, _)| *of == verdict) {
        let _ = write!(text, "; {first}");
    }
    // Performance data (https://www.monitoring-plugins.org/doc/guidelines.html).
    let _ = writeln!(
        text,
        " | connected={};;;0;{} direct={} relayed={} lan={} down={}",
        counts.connected, counts.peers, counts.direct, counts.relayed, counts.lan, counts.down
    );
    for (of, finding) in findings {
        let _ = writeln!(text, "{}: {finding}", of.word().to_lowercase());
    }
    Judgement { verdict, text }
}

/// What is wrong, the worst first. A `|` would begin the performance data.
fn findings(view: &View) -> Vec<(Verdict, String)> {
    use Verdict::{Critical, Warning};
    let mut found = Vec::new();
    let mut add = |verdict, text: String| found.push((verdict, one_line(&text)));
    let peers = &view.core.peers;
    let is_critical = |peer: &&Peer| {
        let member = view.members.get(&peer.name);
        peer.is_down() && member.is_some_and(|member| member.critical)
    };
    let critical = names(peers.iter().filter(is_critical));
    if !critical.is_empty() {
        add(Critical, format!("critical peers are down: {critical}"));
    }
    let mut managed = peers.iter().filter(|peer| peer.managed).peekable();
    if managed.peek().is_some() && managed.all(Peer::is_down) {
        add(Critical, "no peer is connected".to_owned());
    }
    if let Some(error) = view
        .serving
        .as_ref()
        .and_then(|serving| serving.error.as_ref())
    {
        add(Critical, format!("does not serve the mesh: {error}"));
    }
    let down = names(peers.iter().filter(|peer| peer.is_down()));
    if !down.is_empty() {
        add(Warning, format!("down: {down}"));
    }
    if let Some(held) = &view.held {
        add(
            Warning,
            format!("revision {} was undone: {}", held.revision, held.reason),
        );
    } else if let Some(error) = &view.reload_error {
        add(Warning, format!("the newest mesh does not run: {error}"));
    }
    if let Some(source) = &view.source {
        let parts = [source.problem_text.as_ref(), source.stale.as_ref()];
        for problem in parts.into_iter().flatten() {
            add(Warning, format!("source: {problem}"));
        }
    }
    for discovery in view.discovery.iter().filter(|discovery| !discovery.ok) {
        add(
            Warning,
            format!("discovery {}: {}", discovery.name, discovery.note),
        );
    }
    if let Some(drift) = view
        .drift
        .as_ref()
        .filter(|drift| !drift.changes.is_empty() && !drift.healed)
    {
        add(
            Warning,
            format!(
                "somebody changed the interface: {}",
                drift.changes.join(", ")
            ),
        );
    }
    for problem in view
        .journal_error
        .iter()
        .chain(&view.hosts_error)
        .chain(&view.warnings)
    {
        add(Warning, problem.clone());
    }
    found
}

fn names<'a>(peers: impl Iterator<Item = &'a Peer>) -> String {
    let names: Vec<&str> = peers.map(|peer| peer.name.as_str()).collect();
    names.join(", ")
}

fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join(" ").replace('|', "/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::node::status::sample;

    #[test]
    fn a_mesh_without_a_fault_is_fine_and_has_its_numbers_in_one_line() {
        let mut view = sample::mesh(3);
        assert_eq!(
            judge(&view),
            Judgement {
                verdict: Verdict::Fine,
                text: "OK home: 2 of 2 connected: 1 direct, 1 LAN | connected=2;;;0;2 direct=1 \
                       relayed=0 lan=1 down=0\n"
                    .to_owned(),
            }
        );
        // A phone that is off is no fault.
        for peer in view.core.peers.iter_mut().take(1) {
            (peer.managed, peer.state) = (false, "waiting".to_owned());
        }
        assert_eq!(judge(&view).verdict, Verdict::Fine);
    }

    #[test]
    fn a_node_that_is_down_is_a_warning_and_a_critical_one_or_all_are_critical() {
        let mut view = sample::mesh(61);
        let warned = judge(&view);
        assert_eq!(warned.verdict, Verdict::Warning);
        assert!(
            warned.text.starts_with("WARNING home: 57 of 60 connected"),
            "{}",
            warned.text
        );
        let down = view
            .core
            .peers
            .iter()
            .find(|peer| peer.is_down())
            .unwrap()
            .name
            .clone();
        view.members.get_mut(&down).unwrap().critical = true;
        let critical = judge(&view);
        assert_eq!(critical.verdict, Verdict::Critical);
        assert!(
            critical
                .text
                .contains(&format!("critical peers are down: {down}"))
        );
        let mut alone = sample::mesh(3);
        for peer in &mut alone.core.peers {
            peer.state = "punching".to_owned();
        }
        assert_eq!(judge(&alone).verdict, Verdict::Critical);
    }

    #[test]
    fn a_mesh_that_does_not_run_is_a_warning_on_one_line_without_the_mark_of_numbers() {
        let mut view = sample::mesh(3);
        view.reload_error = Some("mesh.toml:3: a | b\n  no such key".to_owned());
        let judgement = judge(&view);
        assert_eq!(judgement.verdict, Verdict::Warning);
        let first = judgement.text.lines().next().unwrap();
        assert!(first.contains("mesh.toml:3: a / b no such key"), "{first}");
        assert_eq!(first.matches('|').count(), 1, "{first}");
    }
}
