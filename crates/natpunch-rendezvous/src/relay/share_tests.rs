//! How pairs share what a relay may pass, over some seconds of virtual time.

use std::net::SocketAddr;
use std::sync::Arc;

use natpunch_types::Time;

use super::{Budget, Command, Limits, Own, Port, Verdict};
use crate::server::Via;
use crate::testing::{bind, relay_secret};

const OVERHEAD: usize = 42;

/// A pair at a port of its own, and what it sends.
struct Flow {
    port: Port,
    from: SocketAddr,
    /// Bytes of a datagram, headers included.
    length: usize,
    bytes_per_second: usize,
    /// Bytes that it has still to send.
    backlog: usize,
    sent: usize,
    arrived: usize,
}

impl Flow {
    fn new(
        budget: &Arc<Budget>,
        number: u64,
        homes: [&str; 2],
        (length, bytes_per_second): (usize, usize),
    ) -> Self {
        let limits = Limits {
            any_payload: true,
            ..Limits::default()
        };
        let mut port = Port::new(limits, Own::default(), [9; 32]).within(budget.clone());
        let keys = [[1; 32], [2; 32]];
        let registered = homes.map(|home| home.parse().unwrap());
        let allocation = number * 2;
        let open = Command::Open {
            allocation,
            keys: keys.map(relay_secret),
            registered,
        };
        port.handle_command(open, Time::ZERO);
        let carry = true;
        port.handle_command(Command::Carry { allocation, carry }, Time::ZERO);
        for (side, key) in [0, 1].into_iter().zip(keys) {
            let bind = bind(key, allocation | side, [0; 8], [0; 16]);
            let source = registered[side as usize];
            let verdict = port.handle_datagram(Via::default(), source, &bind, Time::ZERO);
            assert!(matches!(verdict, Verdict::Answer(_)));
        }
        let [from, _] = registered;
        let (backlog, sent, arrived) = (0, 0, 0);
        Self {
            port,
            from,
            length,
            bytes_per_second,
            backlog,
            sent,
            arrived,
        }
    }

    /// One millisecond of its life.
    fn run(&mut self, now: Time) {
        self.arrived += std::iter::from_fn(|| self.port.poll_transmit(now)).count();
        self.backlog += self.bytes_per_second / 1_000;
        let payload = vec![7; self.length - OVERHEAD];
        while self.backlog >= self.length {
            self.backlog -= self.length;
            self.sent += 1;
            let verdict = self
                .port
                .handle_datagram(Via::default(), self.from, &payload, now);
            self.arrived += usize::from(matches!(verdict, Verdict::Forward { .. }));
        }
    }

    fn lost(&self) -> f64 {
        1.0 - self.arrived as f64 / self.sent as f64
    }

    fn rate(&self, seconds: usize) -> usize {
        self.arrived * self.length / seconds
    }
}

fn run(flows: &mut [Flow], seconds: u32) {
    for ms in 0..seconds * 1_000 {
        flows
            .iter_mut()
            .for_each(|flow| flow.run(Time::from_millis(u64::from(ms))));
    }
}

const HONEST: [&str; 2] = ["198.51.100.1:1", "203.0.113.1:1"];

#[test]
fn a_pair_below_its_share_loses_nothing_beside_one_that_floods_with_small_packets() {
    let budget = Arc::new(Budget::new(2_000_000));
    let mut flows = [
        Flow::new(&budget, 1, HONEST, (1_494, 900_000)),
        Flow::new(&budget, 2, ["192.0.2.1:1", "192.0.2.2:1"], (342, 7_000_000)),
    ];
    run(&mut flows, 10);
    let [honest, flood] = &flows;
    assert!(honest.lost() < 0.01, "lost {:.3}", honest.lost());
    let total = honest.rate(10) + flood.rate(10);
    assert!((1_700_000..2_200_000).contains(&total), "{total} bytes/s");
}

#[test]
fn many_pairs_of_one_network_have_no_more_together_than_one_pair_of_another() {
    let budget = Arc::new(Budget::new(2_000_000));
    let mut flows = vec![Flow::new(&budget, 1, HONEST, (1_494, 900_000))];
    for n in 2..12 {
        let homes = [format!("192.0.2.{n}:1"), format!("10.9.{n}.1:1")];
        let homes = [homes[0].as_str(), homes[1].as_str()];
        flows.push(Flow::new(&budget, n, homes, (342, 3_000_000)));
    }
    run(&mut flows, 10);
    assert!(flows[0].lost() < 0.03, "lost {:.3}", flows[0].lost());
    let flood: Vec<usize> = flows.iter().skip(1).map(|flow| flow.rate(10)).collect();
    let (least, most) = (flood.iter().min().unwrap(), flood.iter().max().unwrap());
    assert!(*most < least * 2, "{flood:?}");
}

#[test]
fn what_one_pair_leaves_the_others_have() {
    let budget = Arc::new(Budget::new(2_000_000));
    let mut flows = [
        Flow::new(&budget, 1, HONEST, (1_494, 200_000)),
        Flow::new(
            &budget,
            2,
            ["192.0.2.1:1", "192.0.2.2:1"],
            (1_494, 7_000_000),
        ),
    ];
    run(&mut flows, 10);
    assert!(flows[1].rate(10) > 1_500_000, "{}", flows[1].rate(10));
    assert!(flows[0].lost() < 0.01);
}

#[test]
fn bursts_at_less_than_the_rate_wait_and_are_not_lost() {
    let budget = Arc::new(Budget::new(125_000_000));
    let mut flow = Flow::new(&budget, 1, HONEST, (1_494, 0));
    // The second's worth that passes at once is used up first.
    flow.bytes_per_second = 60_000_000;
    for ms in 0..1_000 {
        flow.run(Time::from_millis(ms));
    }
    flow.bytes_per_second = 0;
    for ms in 1_000..1_030 {
        flow.run(Time::from_millis(ms));
    }
    (flow.sent, flow.arrived) = (0, 0);
    let before = flow.port.counters();
    for ms in 1_030..6_030 {
        // 495 kB each 20 ms: just under a cap of 25 MB a second.
        flow.backlog += if ms % 20 == 10 { 495_000 } else { 0 };
        flow.run(Time::from_millis(ms));
    }
    assert!(flow.lost() < 0.001, "lost {:.4}", flow.lost());
    assert!(
        flow.port.counters().queued > before.queued,
        "nothing had to wait"
    );
}
