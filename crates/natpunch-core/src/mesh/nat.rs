//! What the mesh learns of the NAT before this node, and what it may do about it.

use natpunch_types::PathId;

use crate::Time;
use crate::env::Env;
use crate::nat::lifetime;
use crate::nat::profile::NatProfile;
use crate::pacer::Denied;
use crate::ports::Pinning;
use crate::status::PunchStatus;

use super::Mesh;

impl Mesh {
    /// Samples the NAT, if some peer has no direct path.
    pub(super) fn sample(&mut self, now: Time) {
        let server = self.env.local.servers_v4().next();
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
            out.transmit(transmit)
        });
        let waits = wanted && server.is_some() && self.env.ports.are_of_use();
        self.sample_due = self.env.sampler.due_at().filter(|due| waits && *due > now);
    }

    /// Measures how long the NAT holds a mapping, if there is a peer to be reached by one.
    pub(super) fn measure_lifetime(&mut self, now: Time) {
        let wanted = !self.peers.is_empty();
        let Env {
            local,
            lifetimes,
            ports,
            rng,
            out,
            ..
        } = &mut self.env;
        let servers = || local.servers_v4().collect();
        lifetimes.handle_timeout(servers, wanted, ports, rng, now, |transmit| {
            out.transmit(transmit)
        });
        let works = wanted && self.env.ports.are_of_use();
        self.lifetime_due = self.env.lifetimes.next_timeout().filter(|_| works);
    }

    /// An answer to a request from a spare port.
    pub(super) fn handle_sample(&mut self, path: PathId, payload: &[u8], now: Time) {
        let Env {
            sampler,
            lifetimes,
            ports,
            rng,
            ..
        } = &mut self.env;
        if path
            .pin()
            .is_some_and(|port| ports.is_of(port, &lifetime::OWNER))
        {
            lifetimes.handle_answer(path, payload, ports, rng, now);
        } else {
            sampler.handle_answer(path, payload, ports, &self.public_key, now);
        }
    }

    /// The silence that mappings of this node's NAT are known to outlive, in seconds.
    pub fn mapping_lifetime(&self) -> Option<u8> {
        self.env.profile.lifetime
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
            lifetime: env.lifetimes.known(),
        };
        let is_news = !profile.is_like(&env.profile);
        env.profile = profile;
        if is_news {
            self.records.last = None;
            self.records.touch(now);
        }
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
