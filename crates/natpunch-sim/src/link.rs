//! Links: delay, jitter, loss, reordering, duplication, hops, and the plug that may be pulled.

use std::time::Duration;

use crate::random::Random;

/// How a link treats what it carries, in each direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkConfig {
    /// One-way delay.
    pub delay: Duration,
    /// Added to the delay, uniform between zero and this. Order is kept.
    pub jitter: Duration,
    /// Probability that a packet is lost.
    pub loss: f64,
    /// Probability that a packet is held back by up to four times the delay, so that later ones
    /// overtake it.
    pub reorder: f64,
    /// Probability that a packet arrives twice.
    pub duplicate: f64,
    /// Routers on the link: each takes one off the TTL.
    pub hops: u8,
}

impl LinkConfig {
    /// A wire: no loss, no jitter, no router.
    pub const fn wire(delay: Duration) -> Self {
        Self {
            delay,
            jitter: Duration::ZERO,
            loss: 0.0,
            reorder: 0.0,
            duplicate: 0.0,
            hops: 0,
        }
    }

    /// The same link, with this loss.
    pub const fn with_loss(self, loss: f64) -> Self {
        Self { loss, ..self }
    }

    /// The same link, through this many routers.
    pub const fn with_hops(self, hops: u8) -> Self {
        Self { hops, ..self }
    }

    /// The same link, with this jitter, reordering and duplication.
    pub const fn with_disorder(self, jitter: Duration, reorder: f64, duplicate: f64) -> Self {
        Self {
            jitter,
            reorder,
            duplicate,
            ..self
        }
    }
}

/// Away from the internet's core, or towards a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

/// A link with its state.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) config: LinkConfig,
    /// False while partitioned: nothing passes.
    pub(crate) connected: bool,
    /// Larger packets vanish, IP header included, and nobody is told.
    pub(crate) mtu: u64,
    last_up: Duration,
    last_down: Duration,
}

impl Link {
    pub(crate) fn new(config: LinkConfig) -> Self {
        Self {
            config,
            connected: true,
            mtu: u64::MAX,
            last_up: Duration::ZERO,
            last_down: Duration::ZERO,
        }
    }

    /// When a packet that enters now leaves at the other end: no time if it is lost, two if it is
    /// duplicated.
    pub(crate) fn carry(&mut self, way: Way, now: Duration, random: &mut Random) -> Vec<Duration> {
        let lost = random.chance(self.config.loss);
        let held_back = random.chance(self.config.reorder);
        let twice = random.chance(self.config.duplicate);
        let jitter = random.duration(self.config.jitter);
        let hold = random.duration(self.config.delay * 4);
        if lost || !self.connected {
            return Vec::new();
        }
        let arrival = now + self.config.delay + jitter;
        let last = match way {
            Way::Up => &mut self.last_up,
            Way::Down => &mut self.last_down,
        };
        let arrival = if held_back {
            arrival + hold
        } else {
            *last = arrival.max(*last);
            *last
        };
        if twice {
            vec![arrival, arrival]
        } else {
            vec![arrival]
        }
    }
}

impl Link {
    /// The same for an ICMP error. It takes part in no chance, so that a run with errors is
    /// otherwise the same as one without.
    pub(crate) fn carry_error(&self, now: Duration) -> Vec<Duration> {
        let arrival = now + self.config.delay;
        self.connected.then_some(arrival).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_keeps_the_order_and_reordering_does_not() {
        let mut random = Random::new(1, 0);
        let config = LinkConfig::wire(Duration::from_millis(20));
        for (reorder, ordered) in [(0.0, true), (0.5, false)] {
            let mut link = Link::new(config.with_disorder(Duration::from_millis(30), reorder, 0.0));
            let arrivals: Vec<_> = (0..200)
                .flat_map(|i| link.carry(Way::Up, Duration::from_millis(i), &mut random))
                .collect();
            assert_eq!(arrivals.len(), 200);
            assert_eq!(arrivals.is_sorted(), ordered);
        }
    }

    #[test]
    fn loss_and_duplication_are_as_configured() {
        let mut random = Random::new(1, 0);
        let config = LinkConfig::wire(Duration::ZERO)
            .with_loss(0.1)
            .with_disorder(Duration::ZERO, 0.0, 0.2);
        let mut link = Link::new(config);
        let arrived: usize = (0..10_000)
            .map(|_| link.carry(Way::Down, Duration::ZERO, &mut random).len())
            .sum();
        assert!(
            (10_600..11_000).contains(&arrived),
            "{arrived} of an expected 10,800"
        );
        link.connected = false;
        assert!(
            link.carry(Way::Down, Duration::ZERO, &mut random)
                .is_empty()
        );
    }
}
