//! The fields of the JSON and the names of metrics that the documents list are the program's.

use std::collections::BTreeSet;
use std::fs;

use crate::blocks::root;

/// Structs that are printed as JSON: the source, the name, and the section that lists its fields.
const STRUCTS: &[(&str, &str, &str)] = &[
    ("src/agent/status.rs", "Status", "`status --json`"),
    ("src/agent/status.rs", "Member", "`status --json`"),
    ("src/agent/status.rs", "DeviceStatus", "`status --json`"),
    ("src/agent/status.rs", "ChangeStatus", "`status --json`"),
    ("src/agent/status.rs", "HeldStatus", "`status --json`"),
    ("src/agent/status.rs", "DiscoveryStatus", "`status --json`"),
    ("src/agent/pins.rs", "PinStatus", "`status --json`"),
    ("src/agent/pins.rs", "PinnedPath", "`status --json`"),
    ("src/agent/clash.rs", "Clash", "`status --json`"),
    ("src/agent/drift.rs", "DriftStatus", "`status --json`"),
    ("src/agent/waiting.rs", "Waiting", "`status --json`"),
    (
        "src/agent/services/serving.rs",
        "ServingStatus",
        "`status --json`",
    ),
    ("src/source/follow.rs", "SourceStatus", "`status --json`"),
    (
        "crates/natpunch-wg/src/embedded/control.rs",
        "DeviceProcess",
        "`status --json`",
    ),
    (
        "crates/natpunch-core/src/status.rs",
        "MeshStatus",
        "`status --json`",
    ),
    (
        "crates/natpunch-core/src/status.rs",
        "PunchStatus",
        "`status --json`",
    ),
    (
        "crates/natpunch-core/src/status.rs",
        "LocalStatus",
        "`status --json`",
    ),
    (
        "crates/natpunch-core/src/status.rs",
        "PeerStatus",
        "`status --json`",
    ),
    (
        "crates/natpunch-core/src/status.rs",
        "CandidateStatus",
        "`status --json`",
    ),
    (
        "crates/natpunch-core/src/status.rs",
        "NatStatus",
        "`status --json`",
    ),
    (
        "crates/natpunch-core/src/status.rs",
        "ProbeStatus",
        "`status --json`",
    ),
    ("src/agent/why/mod.rs", "Why", "`why --json`"),
    (
        "crates/natpunch-core/src/status.rs",
        "PacketStatus",
        "`why --json`",
    ),
    ("src/agent/why/causes/mod.rs", "Cause", "`why --json`"),
    ("src/agent/why/history.rs", "Since", "`why --json`"),
    ("src/agent/why/history.rs", "Replaced", "`why --json`"),
    ("src/agent/why/history.rs", "Step", "`why --json`"),
    ("src/agent/why/history.rs", "StrategyRun", "`why --json`"),
    (
        "src/agent/status.rs",
        "MeshRevisions",
        "`status --mesh --json`",
    ),
    (
        "src/agent/services/revisions/book.rs",
        "PeerRevision",
        "`status --mesh --json`",
    ),
    (
        "src/agent/services/revisions/book.rs",
        "Runs",
        "`status --mesh --json`",
    ),
    ("src/doctor/mod.rs", "Report", "`doctor --json`"),
    ("src/doctor/mod.rs", "Check", "`doctor --json`"),
    (
        "src/cli/node/status/tunnels.rs",
        "Tunnels",
        "`status --json` without an agent",
    ),
    (
        "src/cli/node/status/tunnels.rs",
        "Tunnel",
        "`status --json` without an agent",
    ),
    ("src/agent/plan.rs", "PlanReport", "`plan --json`"),
    ("src/agent/plan.rs", "PlanChange", "`plan --json`"),
    ("src/agent/plan.rs", "Need", "`plan --json`"),
    ("src/cli/node/reload.rs", "Reloaded", "`reload --json`"),
    ("src/cli/node/confirm.rs", "Confirmed", "`confirm --json`"),
    ("src/cli/node/down.rs", "Down", "`down --json`"),
    (
        "crates/natpunch-wg/src/interface.rs",
        "Removed",
        "`down --json`",
    ),
    ("src/cli/mesh/diff/mod.rs", "Report", "`diff --json`"),
    ("src/cli/mesh/diff/mod.rs", "Needs", "`diff --json`"),
    (
        "crates/natpunch-config/src/diff/mod.rs",
        "MeshDiff",
        "`diff --json`",
    ),
    (
        "crates/natpunch-config/src/diff/mod.rs",
        "NodeSteps",
        "`diff --json`",
    ),
    (
        "crates/natpunch-config/src/diff/mod.rs",
        "PairSteps",
        "`diff --json`",
    ),
    (
        "crates/natpunch-config/src/diff/mod.rs",
        "Step",
        "`diff --json`",
    ),
    ("src/cli/mesh/check.rs", "Verdict", "`check --json`"),
    ("src/cli/mesh/check.rs", "Finding", "`check --json`"),
    ("src/cli/mesh/check.rs", "Summary", "`check --json`"),
    (
        "src/server/operation/status.rs",
        "Status",
        "`serve status --json`",
    ),
    (
        "src/server/operation/status.rs",
        "Relay",
        "`serve status --json`",
    ),
    (
        "src/server/operation/status.rs",
        "Rendezvous",
        "`serve status --json`",
    ),
    (
        "src/server/operation/status.rs",
        "Records",
        "`serve status --json`",
    ),
    (
        "src/server/operation/status.rs",
        "Store",
        "`serve status --json`",
    ),
    (
        "src/server/operation/status.rs",
        "Reloads",
        "`serve status --json`",
    ),
    (
        "src/server/operation/status.rs",
        "Event",
        "`serve status --json`",
    ),
];

fn read(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap()
}

/// The names under which serde writes the fields of a struct; of a flattened one there is none.
fn fields(source: &str, name: &str) -> Vec<String> {
    let text = read(source);
    let starts = [
        format!("struct {name} {{\n"),
        format!("struct {name}<C = MeshStatus> {{\n"),
        format!("struct {name}<P = PeerStatus, K = PacketStatus> {{\n"),
        format!("struct {name}<'a> {{\n"),
    ];
    let body = starts
        .iter()
        .find_map(|start| text.split_once(start.as_str()));
    let body = body
        .unwrap_or_else(|| panic!("{source} has no struct {name}"))
        .1;
    let body = body.split("\n}").next().unwrap();
    let mut found = Vec::new();
    let mut attributes = String::new();
    for line in body.lines().map(str::trim) {
        if line.starts_with("#[serde") {
            attributes.push_str(line);
        } else if let Some((field, _)) = line.split_once(": ").filter(|_| !line.starts_with("//")) {
            let renamed = attributes.split_once("rename = \"").map(|(_, rest)| rest);
            let renamed = renamed.and_then(|rest| rest.split('"').next());
            let field = field.rsplit(' ').next().unwrap();
            if !attributes.contains("flatten") {
                found.push(renamed.unwrap_or(field).to_owned());
            }
            attributes.clear();
        }
    }
    assert!(!found.is_empty(), "{source}: {name}");
    found
}

/// What stands between backticks.
fn words(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_field_of_the_json_is_in_its_reference() {
    let page = read("docs/reference/json.md");
    let mut missing = Vec::new();
    for (source, name, section) in STRUCTS {
        let (_, section) = page.split_once(&format!("\n## {section}\n")).unwrap();
        let documented = words(section.split("\n## ").next().unwrap());
        let fields = fields(source, name).into_iter();
        let left_out = fields.filter(|field| !documented.contains(field.as_str()));
        missing.extend(left_out.map(|field| format!("`{field}` of {name} ({source})")));
    }
    assert!(
        missing.is_empty(),
        "docs/reference/json.md lacks {}",
        missing.join(", ")
    );
}

#[test]
fn every_metric_of_the_server_is_in_its_reference_and_no_other() {
    let page = read("docs/reference/metrics.md");
    let (page, _) = page.split_once("\n## An agent\n").unwrap();
    let (gauges, events) = page.split_once("\nThe counter ").unwrap();
    let source = read("src/server/operation/status.rs");
    let names = source.split("gauge(").skip(1).filter_map(|call| {
        let name = call.trim_start().strip_prefix('"')?.split('"').next()?;
        Some(format!("natpunch_{name}"))
    });
    let rows = gauges
        .lines()
        .filter(|line| line.starts_with("| `natpunch_"));
    let documented: BTreeSet<String> = rows
        .flat_map(|row| words(row.split(" | ").next().unwrap()))
        .map(str::to_owned)
        .collect();
    assert_eq!(documented, names.collect());

    // `field: "name",` of the server's own, `("name", counted.field)` of the protocols.
    let own = read("src/server/operation/counters.rs");
    let (_, own) = own.split_once("counters! {").unwrap();
    let own = own.split("\n}").next().unwrap().lines();
    let own = own.filter_map(|line| line.split_once(": \"")?.1.strip_suffix("\","));
    let protocols = read("src/server/udp/protocols.rs");
    let counted = protocols
        .lines()
        .filter(|line| line.contains("\", counted."));
    let counted = counted.filter_map(|line| line.split('"').nth(1));
    let name = |event: &str| event.replace([' ', '-'], "_").replace([',', '\''], "");
    let names: BTreeSet<String> = own.chain(counted).map(name).collect();
    let (_, rows) = events.split_once("|---|---|\n").unwrap();
    let rows = rows
        .lines()
        .filter_map(|line| line.split_once("` | ")?.1.strip_suffix(" |"));
    let documented: BTreeSet<String> = rows.flat_map(words).map(str::to_owned).collect();
    assert_eq!(documented, names);
}
