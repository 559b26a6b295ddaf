//! Drift: changes that others made to the interface. Looked for while nothing of ours is under
//! way, told, and put right if the mesh file says so.

use std::time::Duration;

use natpunch_wg::{Plan, WgError};
use serde::{Deserialize, Serialize};

use super::rollout::with_endpoints;
use super::{Agent, plan};
use crate::control::{Call, Reply};

/// How often the interface is compared with the mesh file.
pub(super) const DRIFT_INTERVAL: Duration = Duration::from_secs(10);
/// Looking for them takes at most one part in this many of the agent's time: it reads more than a
/// snapshot.
pub(super) const DRIFT_SHARE: u32 = 200;

/// Changes that others made to the interface.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DriftStatus {
    /// What was found last, as the changes that put it right.
    pub changes: Vec<String>,
    /// Whether it was put right.
    pub healed: bool,
    /// How often something was found since the start.
    pub times: u64,
}

impl Agent {
    /// Looks for what others changed at the interface, while nothing of ours is under way.
    pub(super) fn look_for_drift(&self) {
        if !self.rollout.is_busy()
            && let Ok(wanted) = self.wanted_interface()
        {
            self.device.drift(
                with_endpoints(wanted, self.rollout.endpoints()),
                self.node.apply.heal,
            );
        }
    }

    /// Takes what was found, and whether it was put right.
    pub(super) fn on_drift(&mut self, found: &Plan, healed: Option<Result<(), WgError>>) {
        let changes: Vec<String> = plan::report(&self.node, None, found, &[])
            .changes
            .into_iter()
            .map(|change| format!("{} {}", change.sign, change.text))
            .collect();
        if changes.is_empty() {
            if let Some(drift) = self.drift.as_mut().filter(|drift| !drift.healed) {
                drift.changes.clear();
            }
            return;
        }
        let (is_healed, error) = match healed {
            None => (false, None),
            Some(Ok(())) => (true, None),
            Some(Err(error)) => (false, Some(error.to_string())),
        };
        let known = self
            .drift
            .as_ref()
            .is_some_and(|drift| drift.changes == changes && drift.healed == is_healed);
        let times =
            self.drift.as_ref().map_or(0, |drift| drift.times) + u64::from(is_healed || !known);
        if is_healed || !known {
            tracing::warn!(
                needed = %changes.join("; "), times,
                "somebody changed the interface; {}",
                if is_healed { "it was put right" } else { "it stays so ([apply] heal)" }
            );
        }
        if let Some(error) = error.filter(|_| !known) {
            tracing::error!(%error, "can't put the interface right");
        }
        self.drift = Some(DriftStatus {
            changes,
            healed: is_healed,
            times,
        });
    }

    /// Compares on the device's thread, and answers from a task: the agent waits for neither.
    pub(super) fn tell_drift(&self, call: Call) {
        let wanted = match self.wanted_interface() {
            Ok(wanted) => wanted,
            Err(error) => {
                let _ = call.answer.send(Reply::Error(error.to_string()));
                return;
            }
        };
        let compared = self.device.compare(wanted);
        let node = self.node.clone();
        tokio::spawn(async move {
            let reply = match compared.await {
                Ok(Ok(found)) => serde_json::to_value(plan::report(&node, None, &found, &[]))
                    .map_or_else(|error| Reply::Error(error.to_string()), Reply::Ok),
                Ok(Err(error)) => Reply::Error(error.to_string()),
                Err(_) => Reply::Error("the device does not answer".to_owned()),
            };
            let _ = call.answer.send(reply);
        });
    }
}
