//! Whether this host forwards the packets that others send through it. Forwarding is a setting of
//! the whole host, so it is the host's business: natpunch says what is missing and changes nothing.

use super::{Calls, Node, Service};
use crate::config::NodeConfig;

/// The switches of IPv4 and IPv6.
const SWITCHES: [&str; 2] = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];

/// The switches that a node needs and that are off.
fn missing(node: &NodeConfig, is_on: impl Fn(&str) -> bool) -> Vec<&'static str> {
    SWITCHES
        .into_iter()
        .zip(node.forwards)
        .filter(|(switch, needed)| *needed && !is_on(switch))
        .map(|(s, _)| s)
        .collect()
}

fn is_on(switch: &str) -> bool {
    let file = format!("/proc/sys/{}", switch.replace('.', "/"));
    // Where it can't be read there is nothing to say.
    std::fs::read_to_string(file).map_or(true, |value| value.trim() != "0")
}

/// Says what is missing on this host, once for each need.
pub(crate) struct Forwarding {
    needed: [bool; 2],
}

impl Service for Forwarding {
    /// It only warns.
    type Status = ();

    fn start(_: &Calls) -> Self {
        Self { needed: [false; 2] }
    }

    async fn node_changed(&mut self, node: &Node<'_>) {
        if self.needed != node.config.forwards {
            self.needed = node.config.forwards;
            warn(node.config);
        }
    }

    fn status(&self) {}

    async fn stop(self) {}
}

fn warn(node: &NodeConfig) {
    for switch in missing(node, is_on) {
        tracing::warn!(
            "other nodes reach networks through this one, but this host does not forward their packets: \
             set `{switch} = 1` in /etc/sysctl.d"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::{mesh, node};

    #[test]
    fn who_offers_routes_is_told_which_switch_is_off() {
        let nothing = node(&mesh(2, ""));
        assert!(missing(&nothing, |_| false).is_empty(), "no peer uses it");
        let forwards = |forwards| NodeConfig {
            forwards,
            ..nothing.clone()
        };
        assert_eq!(missing(&forwards([true, false]), |_| false), [SWITCHES[0]]);
        assert_eq!(
            missing(&forwards([true, true]), |switch| switch.contains("ipv4")),
            [SWITCHES[1]]
        );
    }
}
