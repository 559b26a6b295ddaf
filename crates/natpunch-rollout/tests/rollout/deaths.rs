//! The machine killed between any two outputs, the host restarted, the disk failing, the device
//! refusing, over thousands of seeds: a node never runs a version that is neither good, watched nor
//! being undone, and ends with one that works.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Version, moment, peer};
use natpunch_rollout::{Answers, Change, Hash, Output, Phase, Recorded, Rollout, Settings, Start};
use natpunch_types::Time;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

/// How a disk takes a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    Works,
    /// Full or read-only: nothing is written.
    Refuses,
    /// It can't flush: what was written may be there or not.
    Unsure,
}

struct World {
    rng: ChaCha20Rng,
    /// All versions by their hash; those of odd numbers cut the node off.
    versions: BTreeMap<Hash, Version>,
    file: Hash,
    disk: Disk,
    journal: Option<(Hash, Option<String>)>,
    device: Option<Hash>,
    device_fails: bool,
    boot: u64,
    now: Time,
    agent: Option<Rollout<Version>>,
    log: Vec<String>,
}

fn works(version: Hash) -> bool {
    version[0].is_multiple_of(2)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            rng: ChaCha20Rng::seed_from_u64(seed),
            versions: BTreeMap::new(),
            file: [0; 32],
            disk: Disk::Works,
            journal: None,
            device: None,
            device_fails: false,
            boot: 0,
            now: Time::from_millis(1000),
            agent: None,
            log: Vec::new(),
        };
        world.new_version(0);
        world.start();
        world.run(u64::MAX);
        world
    }

    fn dice(&mut self, sides: u64) -> u64 {
        self.rng.next_u64() % sides
    }

    fn new_version(&mut self, number: u8) {
        let mut critical = peer(1);
        critical.critical = true;
        let mut version = Version::new(number, [critical, peer(2), peer(3)]);
        version.facts.node.mtu = 1000 + u32::from(number);
        self.file = version.hash;
        self.versions.insert(version.hash, version);
    }

    fn start(&mut self) {
        let settings = Settings {
            boot: format!("boot {}", self.boot),
            ..Settings::default()
        };
        let recorded = self.journal.clone().map(|(good, change)| Recorded {
            good,
            change: change.map(|text| serde_json::from_str(&text).unwrap()),
        });
        let good = recorded.as_ref().map(|recorded| recorded.good);
        let start = Start {
            file: Arc::new(self.versions[&self.file].clone()),
            recorded,
            is_ours: self.device.is_some(),
        };
        let load = || good.map(|good| self.versions[&good].clone());
        let resumed = Rollout::resume(settings, start, load, self.now).unwrap();
        self.device = Some(resumed.rollout.runs().hash);
        self.log.push(format!("start {:?}", self.device));
        self.agent = Some(resumed.rollout);
    }

    fn write(&mut self, good: Hash, change: Option<&Change>) -> Result<(), String> {
        let lands = match self.disk {
            Disk::Works => true,
            Disk::Refuses => false,
            Disk::Unsure => self.dice(2) == 0,
        };
        if lands {
            let text = change.map(|change| serde_json::to_string(change).unwrap());
            self.journal = Some((good, text));
        }
        if self.disk == Disk::Works {
            Ok(())
        } else {
            Err("no space left".into())
        }
    }

    /// Does what the machine wants done; it may die between any two of these.
    fn run(&mut self, dies_in: u64) {
        let mut left = dies_in;
        while let Some(output) = self.agent.as_mut().and_then(Rollout::poll_output) {
            if left == 0 {
                self.die();
                return;
            }
            left -= 1;
            let now = self.now;
            match output {
                Output::Ask(ask) => {
                    let lives = self.device.is_some_and(works);
                    let answers = |asked: &[IpAddr]| {
                        let all = asked.iter().copied();
                        all.filter(|_| lives).collect()
                    };
                    let answers = Answers {
                        small: answers(&ask.small),
                        full: answers(&ask.full),
                    };
                    self.agent().handle_answers(ask.id, &answers, now);
                }
                Output::Write { id, entry } => {
                    let result = self.write(entry.good.hash, entry.change.as_ref());
                    self.log.push(format!(
                        "write {:?} {result:?}",
                        entry.change.map(|c| c.to()[0])
                    ));
                    if left == 0 {
                        self.die();
                        return;
                    }
                    self.agent().handle_written(id, result, now);
                }
                Output::Apply { id, version, .. } => {
                    // A device that refuses a version may have taken a part of it.
                    let fails = self.device_fails;
                    if !fails || self.dice(2) == 0 {
                        self.device = Some(version.hash);
                    }
                    self.log
                        .push(format!("apply {} fails {fails}", version.hash[0]));
                    self.check();
                    if left == 0 {
                        self.die();
                        return;
                    }
                    let result = if fails { Err("refused".into()) } else { Ok(()) };
                    self.agent().handle_applied(id, result, now);
                }
                Output::Reload => self.read_file(),
                Output::Follow(_) | Output::Tell(_) => {}
            }
            self.check();
        }
    }

    fn agent(&mut self) -> &mut Rollout<Version> {
        self.agent.as_mut().unwrap()
    }

    fn die(&mut self) {
        self.log.push("dies".into());
        self.agent = None;
        self.check();
    }

    fn read_file(&mut self) {
        let (version, now) = (Arc::new(self.versions[&self.file].clone()), self.now);
        let alive: &[u8] = if self.device.is_some_and(works) {
            &[1, 2, 3]
        } else {
            &[]
        };
        let result = self
            .agent()
            .handle_version(version, moment(alive, &[]), now);
        self.log.push(format!("read {} {result:?}", self.file[0]));
    }

    /// What has to be true at every moment.
    fn check(&self) {
        let log = || self.log.join("\n");
        let Some(device) = self.device else { return };
        // Also if all is lost now: the next agent knows that this is not the version that works.
        let Some((good, change)) = &self.journal else {
            assert_eq!(device, [0; 32], "{}", log());
            return;
        };
        assert!(
            works(*good),
            "a version that cuts off counts as good\n{}",
            log()
        );
        let is_change = change.is_some();
        assert!(device == *good || is_change || works(device), "{}", log());
        let Some(agent) = &self.agent else { return };
        assert!(works(agent.good().hash), "{}", log());
        if agent.phase() == Phase::Steady {
            let runs = agent.runs().hash;
            assert_eq!(runs, agent.good().hash, "{}", log());
            assert_eq!(runs, device, "{}", log());
        }
        if agent.phase() == Phase::Watching {
            let left = agent.open().unwrap().deadline.since(self.now);
            assert!(left <= Duration::from_secs(10), "{}", log());
        }
    }

    fn wait(&mut self, longest: Duration) {
        let until = self.now + longest;
        if let Some(at) = self.agent.as_ref().and_then(Rollout::poll_timeout) {
            self.now = self.now.max(at.min(until));
        } else {
            self.now = until;
        }
        let now = self.now;
        if let Some(agent) = &mut self.agent {
            agent.handle_timeout(now);
        }
    }

    fn step(&mut self, number: u8) {
        let dies_in = if self.dice(3) == 0 {
            self.dice(8)
        } else {
            u64::MAX
        };
        match self.dice(12) {
            0..=2 => self.new_version(number),
            3 => {
                // An earlier version comes again.
                let at = self.dice(self.versions.len() as u64) as usize;
                self.file = *self.versions.keys().nth(at).unwrap();
            }
            4 => self.disk = [Disk::Works, Disk::Refuses, Disk::Unsure][self.dice(3) as usize],
            5 => self.device_fails = self.dice(2) == 0,
            6 => {
                self.log.push("reboot".into());
                (self.agent, self.device) = (None, None);
                self.boot += 1;
                self.now = Time::from_millis(1000);
            }
            7 => self.die(),
            8 if self.agent.is_some() => {
                // The device is lost, and made anew with what runs.
                let now = self.now;
                self.device = Some(self.agent().runs().hash);
                self.log.push("device lost".into());
                self.agent().handle_device_lost(now);
            }
            _ => {
                let longest = Duration::from_millis(self.dice(15_000));
                self.wait(longest);
            }
        }
        if self.agent.is_none() && self.dice(2) == 0 {
            self.start();
        }
        if let Some(agent) = &mut self.agent {
            // Who is alive is known a moment after the start.
            agent.handle_snapshot(&natpunch_types::DeviceSnapshot::default(), self.now);
            if self.dice(2) == 0 {
                self.read_file();
            }
        }
        self.run(dies_in);
        self.check();
    }

    /// Nothing fails any more.
    fn settle(&mut self) {
        (self.disk, self.device_fails) = (Disk::Works, false);
        if self.agent.is_none() {
            self.start();
        }
        let now = self.now;
        self.agent()
            .handle_snapshot(&natpunch_types::DeviceSnapshot::default(), now);
        self.run(u64::MAX);
        self.read_file();
        self.run(u64::MAX);
        for _ in 0..200 {
            self.wait(Duration::from_secs(1));
            self.run(u64::MAX);
        }
    }
}

#[test]
fn whenever_it_dies_a_node_runs_what_is_good_or_watched_or_being_undone() {
    let (mut undone, mut stayed) = (0, 0);
    for seed in 0..10_000 {
        let mut world = World::new(seed);
        for number in 1..=40 {
            world.step(number);
        }
        world.settle();
        let (device, file) = (world.device.unwrap(), world.file);
        let log = world.log.join("\n");
        let agent = world.agent();
        assert_eq!(agent.phase(), Phase::Steady, "seed {seed}\n{log}");
        assert!(agent.journal_error().is_none(), "seed {seed}\n{log}");
        assert!(works(device), "seed {seed}\n{log}");
        let is_held = agent.held().is_some_and(|(held, _)| held == file);
        assert!(device == file || is_held, "seed {seed}\n{log}");
        let good = agent.good().hash;
        assert_eq!(good, device, "seed {seed}\n{log}");
        let (journal, _) = world.journal.unwrap();
        assert_eq!(journal, device, "seed {seed}\n{log}");
        if is_held {
            undone += 1;
        } else {
            stayed += 1;
        }
    }
    assert!(undone > 500 && stayed > 500, "{undone} {stayed}");
}
