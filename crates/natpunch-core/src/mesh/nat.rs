//! What the mesh learns of the NAT before this node, and what it may do about it.

use natpunch_types::{IcmpError, IcmpKind, PathId};

use crate::Time;
use crate::env::Env;
use crate::nat::family::PerFamily;
use crate::nat::filters::Filters;
use crate::nat::hops::Hops;
use crate::nat::lifetime::{Lifetimes, MeasuredLifetime};
use crate::nat::owner;
use crate::nat::profile::NatProfile;
use crate::pacer::Denied;
use crate::ports::Pinning;
use crate::status::PunchStatus;

use super::Mesh;

/// Nothing is known of how long mappings live.
pub(super) const fn lifetimes() -> PerFamily<Lifetimes> {
    PerFamily {
        v4: Lifetimes::new(owner(0)),
        v6: Lifetimes::new(owner(1)),
    }
}

/// Nothing is known of how the NAT filters.
pub(super) const fn filters() -> PerFamily<Filters> {
    PerFamily {
        v4: Filters::new(owner(2)),
        v6: Filters::new(owner(3)),
    }
}

/// Nothing is known of how far the first public router is.
pub(super) const fn hops() -> Hops {
    Hops::new(owner(4))
}

impl Mesh {
    /// Samples the NAT, if some peer has no direct path.
    pub(super) fn sample(&mut self, now: Time) {
        let server = self.env.local.servers(true).next();
        let wanted = !self.wanted.is_empty();
        let Env {
            sampler,
            ports,
            rng,
            out,
            ..
        } = &mut self.env;
        let owner = self.public_key;
        sampler.handle_timeout((server, wanted, owner), ports, rng, now, |transmit| {
            out.transmit(transmit, now)
        });
        let waits = wanted && server.is_some() && self.env.ports.are_of_use();
        self.sample_due = self.env.sampler.due_at().filter(|due| waits && *due > now);
    }

    /// Measures how long the NAT holds a mapping and whose packets it lets in, if there is a peer to
    /// be reached by one.
    pub(super) fn measure(&mut self, now: Time) {
        let wanted = !self.peers.is_empty();
        let works = wanted && self.env.ports.are_of_use();
        self.measure_due = None;
        let Env {
            local,
            sampler,
            lifetimes,
            filters,
            hops,
            ports,
            rng,
            out,
            ..
        } = &mut self.env;
        // Each new mapping takes a port of a sequence, which a strategy is about to count on. Of
        // IPv6 no strategy depends on it.
        let mut haste = sampler.is_undisturbed();
        if works {
            let server = local.servers(true).next();
            hops.handle_timeout(server, haste, ports, rng, now, |transmit| {
                out.transmit(transmit, now)
            });
            self.measure_due = hops.next_timeout();
        }
        let families = lifetimes.iter_mut().into_iter().zip(filters.iter_mut());
        for ((lifetimes, filters), is_v4) in families.zip([true, false]) {
            let servers = || local.servers(is_v4).collect();
            lifetimes.handle_timeout(servers, wanted, ports, rng, now, |transmit| {
                out.transmit(transmit, now)
            });
            if !works {
                continue;
            }
            let is_hasty = std::mem::take(&mut haste);
            filters.handle_timeout(servers, is_hasty, ports, rng, now, |transmit| {
                out.transmit(transmit, now)
            });
            let due = [lifetimes.next_timeout(), filters.next_timeout()];
            let all = due.into_iter().chain([self.measure_due]);
            self.measure_due = all.flatten().min();
        }
    }

    /// An answer to a request from a spare port.
    pub(super) fn handle_sample(&mut self, path: PathId, payload: &[u8], now: Time) {
        let Some(port) = path.pin() else { return };
        let Env {
            sampler,
            lifetimes,
            filters,
            hops,
            ports,
            rng,
            ..
        } = &mut self.env;
        let lifetimes = lifetimes.of_mut(path.remote.ip());
        let filters = filters.of_mut(path.remote.ip());
        if lifetimes.has_port(port) {
            lifetimes.handle_answer(path, payload, ports, rng, now);
        } else if filters.has_port(port) {
            filters.handle_answer(path, payload, ports, rng, now);
        } else if hops.has_port(port) {
            hops.handle_answer(path, payload);
        } else {
            sampler.handle_answer(path, payload, ports, &self.public_key, now);
        }
    }

    /// What a router says of a packet. It is believed as far as it quotes what was sent: anybody may
    /// say anything.
    pub fn handle_icmp(&mut self, error: &IcmpError, now: Time) {
        match error.kind {
            IcmpKind::TimeExceeded => self.env.hops.handle_icmp(error),
            IcmpKind::PortUnreachable => {}
            IcmpKind::Prohibited => {
                // One volley is under way at a time.
                if let Some(peer) = self.env.pacer.sweeping() {
                    self.with_peer(&peer, now, |peer, env| {
                        peer.handle_prohibition(error, env, now)
                    });
                }
            }
        }
        self.flush(now);
    }

    /// The silence that mappings of this node's NAT, and firewall, are known to outlive, in seconds:
    /// the shorter one, where both were measured.
    pub fn mapping_lifetime(&self) -> Option<u8> {
        let PerFamily { v4, v6 } = self.env.profile.lifetime;
        v4.into_iter().chain(v6).min()
    }

    /// How long mappings live in the networks that this node was in, for a later run to
    /// [restore](Self::restore_lifetimes): at most 32 networks.
    pub fn measured_lifetimes(&self, now: Time) -> Vec<MeasuredLifetime> {
        let PerFamily { v4, v6 } = &self.env.lifetimes;
        v4.measured(now).chain(v6.measured(now)).collect()
    }

    /// Takes what an earlier run has measured. It is believed of a network as soon as a server sees
    /// this node there, until it is measured anew.
    pub fn restore_lifetimes(&mut self, measured: &[MeasuredLifetime], now: Time) {
        for measured in measured {
            let lifetimes = self.env.lifetimes.of_mut(measured.network);
            lifetimes.restore(measured, now);
        }
    }

    /// Draws together what is known of this node's NAT; the peers are told if it calls for other
    /// strategies than before.
    pub(super) fn note_profile(&mut self, now: Time) {
        let env = &mut self.env;
        let profile = NatProfile {
            mapping: env.local.mapping_v4(),
            pattern: env.sampler.pattern(),
            pool: env.local.has_pool_v4(),
            pins: env.ports.are_of_use(),
            spray: env.pacer.sprays(),
            lifetime: PerFamily {
                v4: env.lifetimes.v4.known(),
                v6: env.lifetimes.v6.known(),
            },
            filtering: PerFamily {
                v4: env.filters.v4.found().map(|found| found.filtering),
                v6: env.filters.v6.found().map(|found| found.filtering),
            },
            poison_prone: env.filters.v4.found().and_then(|found| found.poison_prone),
            addresses: env.local.addresses_v4(),
            hops: env.hops.known(),
        };
        let profile = profile.distorted(self.distortion);
        let is_news = !profile.is_like(&env.profile);
        env.profile = profile;
        if is_news {
            self.records.last = None;
            self.records.touch(now);
        }
    }

    /// For tests: what was measured of the NAT is used, and told, with these bits the other way round.
    /// They are those of the profile as it is sent: mapping (3), kind of the pattern (0xff), and in
    /// the third byte the filtering of IPv4 (7) and whether it is poison-prone (0x18).
    #[doc(hidden)]
    pub fn distort_profile(&mut self, bits: [u8; 3], now: Time) {
        self.distortion = bits;
        self.flush(now);
    }

    /// The punch budget, and what bars it.
    pub(super) fn punch_status(&self, now: Time) -> PunchStatus {
        let pacer = &self.env.pacer;
        let barred = match (pacer.barred(now), &self.env.ports.pinning) {
            (Some(Denied::Off), _) => Some("`spray = false` in the mesh file".to_owned()),
            (Some(Denied::Harm(until)), _) => Some(format!(
                "the network showed signs of harm; no port is guessed for {} s",
                until.since(now).as_secs()
            )),
            (Some(Denied::Until(until)), _) => Some(format!(
                "the punch budget is used up for {} s",
                until.since(now).as_secs()
            )),
            (_, Pinning::Impossible(reason)) => {
                Some(format!("no other source port can be used: {reason}"))
            }
            (Some(Denied::Busy) | None, Pinning::Unknown | Pinning::Possible) => None,
        };
        PunchStatus {
            nat: self.env.profile.to_string(),
            pins: self.env.ports.are_of_use(),
            used: pacer.used(now),
            allowed: pacer.allowed(),
            barred,
        }
    }
}
