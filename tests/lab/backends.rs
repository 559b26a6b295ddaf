//! Two nodes behind two NATs find each other by each way alone, by all together, and by any two
//! while the others are dead, hang or lie. `make backends` prints the times of all.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use natpunch_lab::{Lab, lab_test};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use crate::measure::{Traffic, median, run};
use crate::world::{Discovery, World};

const WAYS: [Discovery; 7] = [
    Discovery::Rendezvous,
    Discovery::NatpunchGo,
    Discovery::Http,
    Discovery::File,
    Discovery::Redis,
    Discovery::Dns,
    Discovery::Program,
];

/// How often each is measured. A lab has room for 63 routers, two for each run.
const RUNS: usize = 3;

/// The ports of all servers, by either protocol.
const PORTS: [u16; 4] = [53, 6_379, 8_080, 51_900];
/// How much of nonsense a connection is given.
const NONSENSE: usize = 1 << 20;

/// What is wrong with the servers that a mesh file names.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Their host is there, and they are not.
    Dead,
    /// They take what comes and say nothing.
    Hang,
    /// They answer everything with nonsense.
    Lie,
}

impl Fault {
    fn converse(self, mut stream: TcpStream) {
        if matches!(self, Self::Lie) {
            let mut random = ChaCha8Rng::seed_from_u64(0);
            let mut sent = 0;
            while sent < NONSENSE {
                let bytes = junk(&mut random, 1_000);
                if stream.write_all(&bytes).is_err() {
                    return;
                }
                sent += bytes.len();
            }
        }
        let mut buffer = [0; 4_096];
        while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
    }

    fn answer(self, socket: &UdpSocket) {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let mut buffer = [0; 2_048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if matches!(self, Self::Lie) {
                // An echo, the question with another beginning, and noise of its length.
                let mut bent = buffer[..length].to_vec();
                bent.iter_mut().take(4).for_each(|byte| *byte ^= 0x80);
                for answer in [buffer[..length].to_vec(), bent, junk(&mut random, length)] {
                    let _ = socket.send_to(&answer, from);
                }
            }
        }
    }
}

/// Bytes without a meaning, the same in each run.
fn junk(random: &mut ChaCha8Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill_bytes(&mut bytes);
    bytes
}

/// A host in the place of the server's; where it is.
fn impostor(lab: &mut Lab, fault: Fault) -> Ipv4Addr {
    let host = lab
        .public_host(&format!("{fault:?}").to_lowercase())
        .unwrap();
    if !matches!(fault, Fault::Dead) {
        host.run(move || {
            for port in PORTS {
                let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
                std::thread::spawn(move || {
                    for stream in listener.incoming().flatten() {
                        std::thread::spawn(move || fault.converse(stream));
                    }
                });
                std::thread::spawn(move || fault.answer(&socket));
            }
        })
        .unwrap();
    }
    host.ipv4().unwrap()
}

/// A world with all ways, and their sections.
fn world(lab: Lab) -> (World, Vec<String>) {
    let (world, mut sections) = World::with_all(lab, &WAYS);
    // Two of them have one name in the other tests.
    let go = "plugin = \"natpunch-go\"";
    for section in &mut sections {
        if section.contains(go) {
            *section = section.replace("[discovery.rendezvous]", "[discovery.go]");
        }
    }
    (world, sections)
}

/// From the start of both nodes of a new pair to the first ping.
fn time(world: &mut World, sections: &str, number: usize) -> Option<Duration> {
    world.mesh.discovery = sections.to_owned();
    run(world, Traffic::Quiet, number)
}

/// The sections, of which but two name servers that are at fault.
fn but_two(sections: &[String], two: [usize; 2], right: Ipv4Addr, wrong: Ipv4Addr) -> String {
    let of = |(index, section): (usize, &String)| {
        if two.contains(&index) {
            return section.clone();
        }
        // A directory is at fault when nobody can use it.
        let section = section.replace(&right.to_string(), &wrong.to_string());
        section.replace("records\"", "not-there\"")
    };
    sections.iter().enumerate().map(of).collect()
}

fn shown(time: Option<Duration>) -> String {
    time.map_or("never".to_owned(), |time| {
        format!("{:.2} s", time.as_secs_f64())
    })
}

/// All together, and two of them beside others that lie.
fn some(lab: Lab) {
    let (mut world, sections) = world(lab);
    let all = time(&mut world, &sections.concat(), 0);
    assert!(all.is_some(), "all together");
    let (right, wrong) = (world.server.address(), impostor(&mut world.lab, Fault::Lie));
    let two = but_two(&sections, [2, 6], right, wrong);
    assert!(time(&mut world, &two, 1).is_some(), "the others lie");
}

lab_test!(
    all_ways_together_connect_and_so_do_two_while_the_others_lie,
    90,
    |lab| {
        some(lab);
    }
);

/// Each alone, and all together.
fn alone(lab: Lab) {
    let (mut world, sections) = world(lab);
    let mut ways: Vec<(String, String)> = WAYS
        .iter()
        .zip(&sections)
        .map(|(way, section)| (format!("{way:?} alone"), section.clone()))
        .collect();
    ways.push(("all together".to_owned(), sections.concat()));
    for (index, (what, section)) in ways.iter().enumerate() {
        let came: Vec<Duration> = (0..RUNS)
            .filter_map(|run| time(&mut world, section, index * RUNS + run))
            .collect();
        println!(
            "measured: {what}: {} of {RUNS} connected, first ping after {} (median; the last {})",
            came.len(),
            shown(median(&came)),
            shown(came.iter().max().copied())
        );
        assert_eq!(came.len(), RUNS, "{what}");
    }
}

/// Each two with a fault of all others.
fn any_two(lab: Lab, fault: Fault) {
    let (mut world, sections) = world(lab);
    let (right, wrong) = (world.server.address(), impostor(&mut world.lab, fault));
    let mut times = Vec::new();
    for (first, one) in WAYS.iter().enumerate() {
        for (second, other) in WAYS.iter().enumerate().skip(first + 1) {
            let section = but_two(&sections, [first, second], right, wrong);
            let two = [*one, *other];
            let time = time(&mut world, &section, times.len());
            times.push((time.unwrap_or_else(|| panic!("{two:?} find nothing")), two));
        }
    }
    let all: Vec<Duration> = times.iter().map(|(time, _)| *time).collect();
    let (slowest, two) = times.iter().max_by_key(|(time, _)| *time).unwrap();
    println!(
        "measured: any two while the others are at fault ({fault:?}): {} pairs connected, first ping \
         after {} (median); the slowest {two:?} after {}",
        all.len(),
        shown(median(&all)),
        shown(Some(*slowest))
    );
}

lab_test!(
    #[ignore = "a campaign: make backends"]
    campaign_of_backends_each_alone_and_all_together,
    600,
    |lab| {
        alone(lab);
    }
);

lab_test!(
    #[ignore = "a campaign: make backends"]
    campaign_of_backends_any_two_while_the_others_are_dead,
    600,
    |lab| {
        any_two(lab, Fault::Dead);
    }
);

lab_test!(
    #[ignore = "a campaign: make backends"]
    campaign_of_backends_any_two_while_the_others_hang,
    600,
    |lab| {
        any_two(lab, Fault::Hang);
    }
);

lab_test!(
    #[ignore = "a campaign: make backends"]
    campaign_of_backends_any_two_while_the_others_lie,
    600,
    |lab| {
        any_two(lab, Fault::Lie);
    }
);
