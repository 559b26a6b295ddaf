//! Which outside address and port a new mapping gets.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::random::Random;

use super::config::LOWEST_PORT;
use super::{Allocation, Nat, Pool, Refusal};

/// The address so many after this one.
pub(super) fn nth_after(first: IpAddr, number: u8) -> IpAddr {
    match first {
        IpAddr::V4(ip) => IpAddr::from((u32::from(ip) + u32::from(number)).to_be_bytes()),
        IpAddr::V6(ip) => IpAddr::from((u128::from(ip) + u128::from(number)).to_be_bytes()),
    }
}

impl Nat {
    /// Whether a neighbour's session is where this one would be.
    pub(super) fn is_contended(&self, internal: SocketAddr, remote: SocketAddr) -> bool {
        let (Allocation::Contended { servers }, IpAddr::V4(to)) =
            (self.config.allocation, remote.ip())
        else {
            return false;
        };
        self.contended == Some(internal.port()) && to.octets().starts_with(&servers)
    }

    pub(super) fn allocate(
        &mut self,
        internal: SocketAddr,
        remote: SocketAddr,
        now: Duration,
        random: &mut Random,
    ) -> Result<SocketAddr, Refusal> {
        if !self.config.translates {
            return Ok(internal);
        }
        let all = (LOWEST_PORT, u16::MAX);
        let preserved = SocketAddr::new(self.address_for(internal.ip(), random), internal.port());
        match self.config.allocation {
            Allocation::Contended { .. } if self.is_contended(internal, remote) => {
                self.random_port(preserved, remote, all, now, random)
            }
            Allocation::Preserve | Allocation::Contended { .. }
                if self.is_free(preserved, remote, now) =>
            {
                Ok(preserved)
            }
            Allocation::Preserve | Allocation::Contended { .. } => {
                self.random_port(preserved, remote, all, now, random)
            }
            Allocation::Random { low, high } => {
                self.random_port(preserved, remote, (low, high), now, random)
            }
            Allocation::Block { size } => {
                let last = self.block_start.saturating_add(size.saturating_sub(1));
                self.random_port(preserved, remote, (self.block_start, last), now, random)
            }
            Allocation::Sequential { step } => {
                self.pass_background(step, now, random);
                for _ in 0..u16::MAX {
                    self.last_port = self.last_port.checked_add(step).unwrap_or(LOWEST_PORT);
                    let next = SocketAddr::new(preserved.ip(), self.last_port);
                    if self.is_free(next, remote, now) {
                        return Ok(next);
                    }
                }
                Err(Refusal::TableFull)
            }
        }
    }

    /// The outside address for a new mapping of an inside host.
    fn address_for(&mut self, inside: IpAddr, random: &mut Random) -> IpAddr {
        let (first, size) = (self.outside, self.config.pool.size());
        let mut any = || nth_after(first, u8::try_from(random.below(size.into())).unwrap_or(0));
        match self.config.pool {
            Pool::Single => first,
            Pool::Paired(_) => *self.paired.entry(inside).or_insert_with(any),
            Pool::Arbitrary(_) => any(),
        }
    }

    /// The sequence has gone on meanwhile, by what other hosts took.
    fn pass_background(&mut self, step: u16, now: Duration, random: &mut Random) {
        let elapsed = now
            .saturating_sub(self.last_allocation)
            .min(Duration::from_secs(60));
        self.last_allocation = now;
        if self.config.background == 0 {
            return;
        }
        let expected = elapsed.as_secs_f64() * f64::from(self.config.background);
        for _ in 0..random.poisson(expected) {
            self.last_port = self.last_port.checked_add(step).unwrap_or(LOWEST_PORT);
        }
    }

    /// Any free port of this range but the one of `not`, at its address.
    pub(super) fn random_port(
        &self,
        not: SocketAddr,
        remote: SocketAddr,
        (low, high): (u16, u16),
        now: Duration,
        random: &mut Random,
    ) -> Result<SocketAddr, Refusal> {
        let start = random.port(low, high);
        let candidates = (start..=high).chain(low..start);
        let mut candidates = candidates.map(|port| SocketAddr::new(not.ip(), port));
        let free = |external: &SocketAddr| *external != not && self.is_free(*external, remote, now);
        candidates.find(free).ok_or(Refusal::TableFull)
    }

    fn is_free(&self, external: SocketAddr, remote: SocketAddr, now: Duration) -> bool {
        let owner = self.owners.get(&external);
        let mapping = owner.and_then(|key| self.mappings.get(key));
        let owned = mapping.is_some_and(|mapping| mapping.expires > now);
        !owned && !self.is_own(external, remote, now)
    }
}
