//! What the mesh learns of the NAT before this node, and what it may do about it.

use natpunch_types::PathId;

use crate::Time;
use crate::env::Env;
use crate::nat::profile::NatProfile;
use crate::pacer::Denied;
use crate::ports::Pinning;
use crate::status::PunchStatus;

use super::Mesh;

impl Mesh {
    /// Samples the NAT, if some peer has no direct path.
    pub(super) fn sample(&mut self, now: Time) {
        let server = self.env.local.server_v4();
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

    /// An answer to a sample.
    pub(super) fn handle_sample(&mut self, path: PathId, payload: &[u8], now: Time) {
        let Env { sampler, ports, .. } = &mut self.env;
        sampler.handle_answer(path, payload, ports, &self.public_key, now);
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
