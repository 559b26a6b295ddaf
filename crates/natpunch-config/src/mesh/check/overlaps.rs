//! Every address belongs to exactly one peer, as WireGuard sends a packet to one.

use ipnet::IpNet;

use super::Check;
use crate::mesh::network_map::overlap;
use crate::report::error::ConfigError;
use crate::report::source::Place;
use crate::report::wording::Quoted;

/// An address or route of a peer, for the search for overlaps.
pub(super) struct Claim {
    pub(super) net: IpNet,
    pub(super) peer: usize,
    pub(super) place: Place,
}

impl Check<'_> {
    /// Finds networks of different peers that overlap. Networks nest or are apart, so that in
    /// sorted order everything around a network is on the stack.
    pub(super) fn overlaps(&mut self, mut claims: Vec<Claim>, names: &[String]) {
        claims.sort_by_key(|claim| (claim.net.network(), claim.net.prefix_len(), claim.place));
        let mut around: Vec<&Claim> = Vec::new();
        let name = |peer: usize| names.get(peer).map(String::as_str).unwrap_or_default();
        for claim in &claims {
            while around
                .last()
                .is_some_and(|outer| !overlap(outer.net, claim.net))
            {
                around.pop();
            }
            let rival = around
                .iter()
                .rev()
                .find(|outer| outer.peer != claim.peer || outer.net == claim.net);
            if let Some(rival) = rival {
                let (first, second) = if rival.place < claim.place {
                    (*rival, claim)
                } else {
                    (claim, *rival)
                };
                let message = if first.peer == second.peer {
                    format!("{} is there twice", shown(second.net))
                } else if first.net == second.net {
                    format!(
                        "`{}` and `{}` both have {}",
                        Quoted(name(first.peer)),
                        Quoted(name(second.peer)),
                        shown(second.net)
                    )
                } else {
                    let (a, b) = (Quoted(name(second.peer)), Quoted(name(first.peer)));
                    format!(
                        "{} of `{a}` overlaps {} of `{b}`",
                        shown(second.net),
                        shown(first.net)
                    )
                };
                let help = if first.peer == second.peer {
                    "remove one of the two"
                } else {
                    "WireGuard sends a packet to one peer: every address belongs to exactly one"
                };
                let error = ConfigError::at(second.place, message).label("claimed again here");
                self.errors
                    .push(error.also(first.place, "first claimed here").help(help));
            }
            // Two peers with the same network are rivals of whatever is inside; a third entry of
            // it would only make the search through the stack longer.
            let same = |outer: &&Claim| outer.net == claim.net;
            let twice = around
                .iter()
                .rev()
                .take(2)
                .filter(|outer| same(outer))
                .count()
                == 2;
            let again = around
                .last()
                .is_some_and(|o| same(o) && o.peer == claim.peer);
            if !twice && !again {
                around.push(claim);
            }
        }
    }
}

/// A host network as the address that it is.
fn shown(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}
