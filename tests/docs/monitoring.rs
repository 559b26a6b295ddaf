//! The dashboard and the alerts in `examples/monitoring` are well-formed and name metrics that there
//! are; the reference lists exactly those of the agent.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::blocks::root;

/// The families of the agent's table, with what a histogram's samples are called.
fn families() -> BTreeSet<String> {
    let source = fs::read_to_string(root("src/agent/metrics.rs")).unwrap();
    let (_, table) = source.split_once("const TABLE: &[Family] = &[").unwrap();
    let (table, _) = table.split_once("\n];").unwrap();
    let names = table.lines().filter_map(|line| {
        let name = line.trim().strip_prefix("name: \"")?.strip_suffix("\",")?;
        Some(format!("natpunch_{name}"))
    });
    names.collect()
}

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !is_part(c));
    let metrics = words.filter(|word| word.starts_with("natpunch_"));
    metrics.map(str::to_owned).collect()
}

fn assert_exist(text: &str, what: &str) {
    let families = families();
    for name in named(text) {
        let suffixes = ["_bucket", "_sum", "_count"];
        let mut stems = suffixes
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix));
        let exists = families.contains(&name) || stems.any(|stem| families.contains(stem));
        assert!(exists, "{what} names {name}, which no agent has");
    }
}

#[test]
fn the_reference_lists_the_metrics_of_an_agent_and_no_other() {
    let page = fs::read_to_string(root("docs/reference/metrics.md")).unwrap();
    let (_, section) = page.split_once("\n## An agent\n").unwrap();
    let rows = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: BTreeSet<String> = rows.map(str::to_owned).collect();
    assert_eq!(documented, families());
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let text = fs::read_to_string(root("examples/monitoring/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut shown = BTreeSet::new();
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            let expr = target["expr"].as_str().unwrap();
            assert!(!named(expr).is_empty(), "{}: {expr}", panel["title"]);
            shown.extend(named(expr));
        }
    }
    assert_exist(&text, "the dashboard");
    assert!(shown.len() >= 9, "{shown:?}");
}

#[test]
fn each_alert_has_what_prometheus_needs_and_names_metrics_that_there_are() {
    let text = fs::read_to_string(root("examples/monitoring/alerts.yml")).unwrap();
    assert_exist(&text, "alerts.yml");
    let alerts: Vec<&str> = text.split("      - alert: ").skip(1).collect();
    assert_eq!(alerts.len(), 3);
    for alert in alerts {
        let name = alert.lines().next().unwrap();
        assert!(name.starts_with("Natpunch"), "{name}");
        for key in [
            "expr: natpunch_",
            "for: ",
            "labels:",
            "severity: ",
            "annotations:",
            "summary: ",
        ] {
            let lines = alert
                .lines()
                .filter(|line| line.trim_start().starts_with(key));
            assert_eq!(lines.count(), 1, "{name}: {key}");
        }
        // Two spaces a step, and no tab: the little YAML that the file needs.
        let indent = |line: &str| line.len() - line.trim_start().len();
        assert!(
            alert
                .lines()
                .skip(1)
                .all(|line| indent(line) % 2 == 0 && !line.contains('\t'))
        );
    }
}
