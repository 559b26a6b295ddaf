//! What all ports of a relay may pass on together, and how pairs share it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use natpunch_types::{Bucket, Rate, Time, lock};

use natpunch_types::{Network, Site};

/// How often the shares are worked out anew, if there is more than may pass.
const ROUND: Duration = Duration::from_millis(50);
/// How often a pair says what it was offered.
const REPORT: Duration = Duration::from_millis(20);
/// A pair that offered nothing for this long wants nothing now ...
const PAUSED: Duration = Duration::from_millis(200);
/// ... and after this time it is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(1);
/// The part of the rate that is shared out; the rest is for what comes between two rounds.
const SHARED_OUT: f64 = 0.95;
/// What a share lets pass at once: its rate for this long, but never less than so many bytes.
const SHARE_BURST: (Duration, u64) = (Duration::from_millis(50), 32 << 10);
/// Bytes that wait at all ports together.
const MAX_QUEUED: u64 = 32 << 20;

/// A rate that ports share, each from a thread of its own, so its [`Bucket`] is one atomic word.
///
/// That alone would favour small packets. While more is offered than may pass, each site (an IPv4
/// /24 or IPv6 /48) therefore gets an equal share, of that each network in it, and of that each of
/// its pairs, all in bytes; what one does not use goes to the others (max-min fairness).
#[derive(Debug)]
pub struct Budget {
    bytes_per_second: u64,
    /// Of its [`Bucket`], in nanoseconds.
    full_at: AtomicU64,
    queued: AtomicU64,
    flows: Mutex<Flows>,
}

impl Budget {
    /// Bytes of memory that all queues take at most.
    pub const MAX_QUEUED: u64 = MAX_QUEUED;

    /// A budget of so many bytes in a second, and as a burst.
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            full_at: AtomicU64::new(0),
            queued: AtomicU64::new(0),
            flows: Mutex::default(),
        }
    }

    /// Takes so many bytes; false if there is no room for them.
    pub(super) fn take(&self, bytes: u64, now: Time) -> bool {
        let rate = Rate::per_second(self.bytes_per_second, self.bytes_per_second);
        let pay = |full_at: u64| {
            let bucket = Bucket::full_at(Time::from_nanos(full_at));
            let after = bucket.after(rate, bytes, now)?;
            Some(after.fills_at().as_nanos())
        };
        self.full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay)
            .is_ok()
    }

    /// Room for so many bytes in a queue; false if all queues together are full.
    pub(super) fn queue(&self, bytes: u64) -> bool {
        let add = |queued: u64| (queued + bytes <= MAX_QUEUED).then_some(queued + bytes);
        self.queued
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .is_ok()
    }

    /// Gives that room back.
    pub(super) fn unqueue(&self, bytes: u64) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A pair says how many bytes it was offered in some time, and learns its rate; `None`: it is
    /// not limited.
    fn report(
        &self,
        pair: u64,
        networks: [Network; 2],
        (offered, time): (u64, Duration),
        now: Time,
    ) -> Option<u64> {
        let mut flows = lock(&self.flows);
        let rate = offered as f64 / time.as_secs_f64().max(1e-3);
        let flow = flows.by_pair.entry(pair).or_insert(Flow {
            networks,
            rate,
            heard: now,
            limit: None,
        });
        flow.networks = networks;
        flow.rate = (flow.rate + rate) / 2.0;
        flow.heard = now;
        if now >= flows.next_round {
            flows.next_round = now + ROUND;
            flows.share_out(self.bytes_per_second as f64 * SHARED_OUT, now);
        }
        flows.by_pair.get(&pair).and_then(|flow| flow.limit)
    }
}

/// The pairs that something passes for.
#[derive(Debug, Default)]
struct Flows {
    by_pair: BTreeMap<u64, Flow>,
    next_round: Time,
}

#[derive(Debug)]
struct Flow {
    /// Where its two sides are.
    networks: [Network; 2],
    /// Bytes in a second that it is offered.
    rate: f64,
    heard: Time,
    limit: Option<u64>,
}

impl Flows {
    /// Gives each pair its share of a rate.
    fn share_out(&mut self, capacity: f64, now: Time) {
        let age = |flow: &Flow| now.since(flow.heard);
        self.by_pair.retain(|_, flow| age(flow) < FORGOTTEN);
        for flow in self.by_pair.values_mut().filter(|flow| age(flow) >= PAUSED) {
            flow.rate = 0.0;
        }
        let total: f64 = self.by_pair.values().map(|flow| flow.rate).sum();
        if total <= capacity {
            self.by_pair.values_mut().for_each(|flow| flow.limit = None);
            return;
        }
        let mut wanted: BTreeMap<Site, f64> = BTreeMap::new();
        for flow in self.by_pair.values() {
            for network in flow.networks {
                *wanted.entry(network.site()).or_default() += flow.rate;
            }
        }
        // A pair counts for the busier one of its sides, so that no client gets more by having
        // pairs with many others.
        let mut sites: BTreeMap<Site, BTreeMap<Network, Vec<&mut Flow>>> = BTreeMap::new();
        for flow in self.by_pair.values_mut() {
            let [a, b] = flow.networks;
            let load = |network: Network| wanted.get(&network.site()).copied().unwrap_or_default();
            let counted = if load(a) >= load(b) { a } else { b };
            let site = sites.entry(counted.site()).or_default();
            site.entry(counted).or_default().push(flow);
        }
        let of_network = |flows: &Vec<&mut Flow>| flows.iter().map(|flow| flow.rate).sum::<f64>();
        let of_site =
            |site: &BTreeMap<Network, Vec<&mut Flow>>| site.values().map(of_network).sum();
        let site_share = fair_level(sites.values().map(of_site).collect(), capacity);
        for mut site in sites.into_values() {
            let share = fair_level(site.values().map(of_network).collect(), site_share);
            for flows in site.values_mut() {
                let rates = flows.iter().map(|flow| flow.rate).collect();
                let limit = fair_level(rates, share);
                flows
                    .iter_mut()
                    .for_each(|flow| flow.limit = Some(limit as u64));
            }
        }
    }
}

/// The most that each of these may have, so that together they have no more than the capacity: what
/// one does not want goes to the others.
fn fair_level(mut wanted: Vec<f64>, capacity: f64) -> f64 {
    wanted.sort_by(f64::total_cmp);
    let (mut left, mut count) = (capacity, wanted.len());
    for want in &wanted {
        let each = left / count.max(1) as f64;
        if *want > each {
            return each;
        }
        (left, count) = (left - want, count - 1);
    }
    // All have what they want, and any one may have the rest as well.
    wanted.last().copied().unwrap_or_default() + left
}

/// What the budget leaves one pair.
#[derive(Debug)]
pub(super) struct Share {
    /// Bytes in a second; `None`: as many as it likes.
    rate: Option<u64>,
    bytes: Bucket,
    offered: u64,
    reported: Time,
}

impl Share {
    pub(super) fn new(now: Time) -> Self {
        Self {
            rate: None,
            bytes: Bucket::default(),
            offered: 0,
            reported: now,
        }
    }

    /// So many bytes of this pair have arrived.
    pub(super) fn offer(
        &mut self,
        bytes: u64,
        pair: u64,
        networks: [Network; 2],
        budget: &Budget,
        now: Time,
    ) {
        self.offered += bytes;
        let time = now.since(self.reported);
        if time >= REPORT {
            // After a pause it is the last burst that counts.
            let offered = (self.offered, time.min(PAUSED));
            self.rate = budget.report(pair, networks, offered, now);
            (self.offered, self.reported) = (0, now);
        }
    }

    fn limit(&self) -> Option<Rate> {
        let (time, least) = SHARE_BURST;
        let rate = self.rate?;
        let burst = rate.saturating_mul(time.as_millis() as u64) / 1_000;
        Some(Rate::per_second(rate, burst.max(least)))
    }

    /// Bytes in a second, if there is a limit.
    pub(super) fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// Whether so many bytes fit in the share now.
    pub(super) fn has(&self, bytes: u64, now: Time) -> bool {
        let limit = self.limit();
        limit.is_none_or(|limit| self.bytes.after(limit, bytes, now).is_some())
    }

    /// Takes them, as far as they fit.
    pub(super) fn take(&mut self, bytes: u64, now: Time) {
        if let Some(limit) = self.limit() {
            self.bytes.take(limit, bytes, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_passes_at_once_and_then_the_rate() {
        let budget = Budget::new(1_000);
        let at = Time::from_millis;
        let passed = |now| (0..10_000).filter(|_| budget.take(10, at(now))).count();
        assert_eq!(passed(5_000), 100);
        assert_eq!(passed(5_100), 10);
        assert_eq!(passed(99_000), 100, "what was not used is not kept");
        assert!(!Budget::new(0).take(1, at(1)) && !Budget::new(10).take(11, at(1)));
    }

    #[test]
    fn what_one_does_not_want_goes_to_the_others() {
        assert_eq!(fair_level(vec![1.0, 10.0, 10.0], 9.0), 4.0);
        assert_eq!(fair_level(vec![1.0, 2.0], 9.0), 8.0);
        assert_eq!(fair_level(vec![5.0; 3], 9.0), 3.0);
        assert_eq!(fair_level(vec![], 9.0), 9.0);
    }

    #[test]
    fn queues_have_a_bound_together() {
        let budget = Budget::new(1);
        assert!(budget.queue(MAX_QUEUED) && !budget.queue(1));
        budget.unqueue(1);
        assert!(budget.queue(1));
    }
}
