//! A plan with names: what `natpunch plan` prints, and what the agent says of drift.

use std::collections::BTreeMap;
use std::path::Path;

use blake2::{Blake2s256, Digest as _};
use natpunch_rollout::Refusal;
use natpunch_types::PeerKey;
use natpunch_wg::{Effect, Plan};
use serde::{Deserialize, Serialize};

use super::rollout::names::{revision_of, short};
use super::services::hosts::Difference;
use crate::config::NodeConfig;

/// A plan for people and machines.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanReport {
    /// The interface.
    pub interface: String,
    /// This node.
    pub node: String,
    /// The version of the mesh that it leads to.
    pub revision: String,
    /// Names exactly this plan: `apply --plan ID` does it, or stops.
    pub id: String,
    /// The steps in their order.
    pub changes: Vec<PlanChange>,
    /// The UDP port at which this node serves the mesh, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serve: Option<u16>,
    /// The consents that are needed (`--allow`).
    pub needs: Vec<Need>,
}

/// One step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanChange {
    /// `+`, `-` or `~`.
    pub sign: String,
    /// The step in words.
    pub text: String,
    /// What it does to traffic.
    pub effect: Effect,
    /// The name of the peer that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The step in parts.
    #[serde(flatten)]
    pub detail: serde_json::Value,
}

/// A consent that is missing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Need {
    /// Its word.
    pub allow: String,
    /// What for.
    pub what: String,
}

/// Writes a plan with names. `before` is the version that runs, if one does: it knows the names of
/// peers that go.
pub(crate) fn report(
    node: &NodeConfig,
    before: Option<&NodeConfig>,
    plan: &Plan,
    needs: &[Refusal],
) -> PlanReport {
    let all = before
        .into_iter()
        .flat_map(|before| &before.peers)
        .chain(&node.peers);
    // The newer name wins.
    let names: BTreeMap<PeerKey, &str> = all.map(|peer| (peer.key, peer.name.as_str())).collect();
    let name_of = |key: &PeerKey| names.get(key).map(|name| (*name).to_owned());
    let changes: Vec<PlanChange> = plan
        .changes
        .iter()
        .map(|change| {
            let name = change.peer().and_then(name_of);
            let shown = name
                .clone()
                .or_else(|| change.peer().map(ToString::to_string))
                .unwrap_or_default();
            PlanChange {
                sign: change.sign().to_string(),
                text: change.words(&shown),
                effect: change.effect(),
                name,
                detail: serde_json::to_value(change).unwrap_or_default(),
            }
        })
        .collect();
    PlanReport {
        interface: node.interface.clone(),
        node: node.name.clone(),
        revision: revision_of(node),
        id: id(node, plan),
        changes,
        serve: node.serve,
        needs: needs
            .iter()
            .map(|need| Need {
                allow: need.consent.word().to_owned(),
                what: need.what.clone(),
            })
            .collect(),
    }
}

impl PlanReport {
    /// Adds what is done to the hosts file, after the rest.
    pub(crate) fn add_hosts(&mut self, file: &Path, difference: &Difference) {
        let Difference { added, removed, .. } = difference;
        let parts = [(added, "to add"), (removed, "to remove")];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(count, _)| **count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        let parts = if parts.is_empty() {
            "to put in order".to_owned()
        } else {
            parts.join(", ")
        };
        self.changes.push(PlanChange {
            sign: match (added, removed) {
                (1.., 0) => "+",
                (0, 1..) => "-",
                _ => "~",
            }
            .to_owned(),
            text: format!("names in {}: {parts}", file.display()),
            effect: Effect::None,
            name: None,
            detail: serde_json::json!({ "hosts": { "file": file, "added": added, "removed": removed } }),
        });
    }
}

/// Two plans with one id lead from the same state to the same state by the same steps.
pub(crate) fn id(node: &NodeConfig, plan: &Plan) -> String {
    let mut hash = Blake2s256::new();
    hash.update(node.content_hash);
    hash.update(node.public_key.as_bytes());
    hash.update(serde_json::to_vec(plan).unwrap_or_default());
    short(&hash.finalize())
}
