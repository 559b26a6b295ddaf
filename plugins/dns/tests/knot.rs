//! The plugin and a name server that exists: Knot DNS, with TSIG, on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use natpunch_plugin::conformance::{Report, Subject, check_records};
use natpunch_plugin::testing::{Effect, FakeHost};
use natpunch_plugin::{
    Ask, Health, Input, Instance as _, Interest, News, PeerKey, RecordTag, Runs as _, SealedRecord,
    Secret, Secrets, Settings as _,
};
use natpunch_plugin_dns::{Records, Settings};
use natpunch_types::PresharedKey;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const ZONE: &str = "natpunch.test";
const SECRET: [u8; 32] = [7; 32];
const INBOUND: RecordTag = RecordTag([0xa1; 16]);
const OUTBOUND: RecordTag = RecordTag([0xa2; 16]);
/// How long what should come at once is waited for, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A name server that is primary of [`ZONE`].
struct Knot {
    directory: TempDir,
    port: u16,
    process: Option<Child>,
}

impl Knot {
    /// One with these lines in its zone.
    fn start(lines: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let zone = format!(
            "$ORIGIN {ZONE}.\n$TTL 5\n@ SOA ns hostmaster 1 3600 600 86400 1\n@ NS ns\nns A 127.0.0.1\n\
             {lines}\n"
        );
        std::fs::write(directory.path().join("zone"), zone).unwrap();
        let mut knot = Self {
            directory,
            port: 0,
            process: None,
        };
        // A port that is free now may be somebody's a moment later.
        for _ in 0..10 {
            knot.port = free_port();
            if knot.restart() {
                return knot;
            }
        }
        panic!("no knotd starts");
    }

    /// Whether it starts, on its port.
    fn restart(&mut self) -> bool {
        let at = self.directory.path();
        let (here, secret) = (at.display(), STANDARD.encode(SECRET));
        let config = format!(
            "server:\n  rundir: \"{here}\"\n  listen: 127.0.0.1@{port}\n\
             log:\n  - target: stderr\n    any: info\n\
             database:\n  storage: \"{here}\"\n\
             key:\n  - id: natpunch\n    algorithm: hmac-sha256\n    secret: {secret}\n  \
             - id: stranger\n    algorithm: hmac-sha256\n    secret: {secret}\n\
             acl:\n  - id: nodes\n    key: natpunch\n    action: update\n    update-type: [TXT]\n\
             zone:\n  - domain: {ZONE}\n    storage: \"{here}\"\n    file: zone\n    acl: nodes\n    \
             zonefile-sync: -1\n    zonefile-load: difference-no-serial\n    journal-content: all\n",
            port = self.port
        );
        std::fs::write(at.join("knot.conf"), config).unwrap();
        let mut knotd = Command::new("knotd");
        // Where Debian has it, and not on every user's path.
        let path = std::env::var("PATH").unwrap_or_default();
        knotd.env("PATH", format!("{path}:/usr/sbin:/usr/local/sbin"));
        knotd.arg("-c").arg(at.join("knot.conf"));
        knotd.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = knotd.spawn().expect("knotd: scripts/deps.sh test");
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = stderr.lines().map_while(Result::ok);
        let mut is_bound = true;
        let started = said.any(|line| {
            is_bound &= !line.contains("cannot bind");
            line.contains("server started")
        });
        // Else it stops when nobody reads what it says.
        std::thread::spawn(move || said.for_each(drop));
        if started && is_bound {
            self.process = Some(child);
            return true;
        }
        let _ = child.kill();
        child.wait().unwrap();
        false
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.process.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn settings(&self) -> Settings {
        let server = format!("127.0.0.1:{}", self.port);
        Settings {
            zone: ZONE.to_owned(),
            name_servers: vec![server.clone()],
            update_server: Some(server),
            key_name: Some("natpunch".to_owned()),
            key_file: Some("/etc/natpunch/dns.key".into()),
            algorithm: "hmac-sha256".to_owned(),
            stun: vec![],
        }
    }

    fn records(&self) -> Records {
        self.settings().check().unwrap()
    }

    /// What a person reads with `kdig`.
    fn dig(&self, name: &str, of: &str) -> String {
        let port = self.port.to_string();
        let output = Command::new("kdig")
            .args([
                "@127.0.0.1",
                "-p",
                &port,
                "+short",
                "+bufsize=1232",
                name,
                of,
            ])
            .output()
            .expect("kdig: scripts/deps.sh test");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Knot {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A port that is free for UDP and TCP.
fn free_port() -> u16 {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        if TcpListener::bind(address).is_ok() {
            return address.port();
        }
    }
}

fn secrets(secret: [u8; 32]) -> Secrets {
    Secrets(
        [(
            "key_file",
            Ok(Secret::Key(PresharedKey::from_bytes(secret))),
        )]
        .into(),
    )
}

/// A plugin that runs, for a node with one peer.
struct Node {
    host: Arc<FakeHost>,
    task: JoinHandle<()>,
}

impl Node {
    fn start(records: &Records, secret: [u8; 32]) -> Self {
        let mut plugin = records.plugin(&secrets(secret));
        let host = FakeHost::new(PeerKey::from_bytes([1; 32]), None, 1);
        let its_host = host.clone();
        let task = tokio::spawn(async move { plugin.run(its_host).await.unwrap() });
        let node = Self { host, task };
        let peer = Interest {
            inbound_tag: INBOUND,
            outbound_tag: OUTBOUND,
            ..Interest::new(peer())
        };
        node.host.put(Input::Ask(Ask::Peers([peer].into())));
        node
    }

    fn publish(&self, records: &[SealedRecord]) {
        self.host.put(Input::Ask(Ask::Records(records.into())));
    }

    /// Waits for an effect.
    async fn waits(&self, is_it: impl Fn(&Effect) -> bool) -> Effect {
        let comes = async {
            loop {
                let effect = self.host.effect().await;
                if is_it(&effect) {
                    return effect;
                }
            }
        };
        timeout(PATIENCE, comes).await.expect("it comes")
    }

    async fn is_well(&self, words: &str) {
        let is_it = |effect: &Effect| matches!(effect, Effect::Reported(Health::Good(said)) if said.contains(words));
        self.waits(is_it).await;
    }

    async fn complains(&self) -> String {
        let complaint = self.waits(|e| matches!(e, Effect::Reported(Health::Bad(_))));
        match complaint.await {
            Effect::Reported(Health::Bad(said)) => said,
            other => panic!("{other:?}"),
        }
    }

    async fn hears(&self, record: &SealedRecord) {
        let wanted = Effect::Told(News::Record(record.clone()));
        self.waits(|effect| *effect == wanted).await;
    }

    async fn stop(self) {
        self.host.put(Input::Shutdown);
        timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}

fn peer() -> PeerKey {
    PeerKey::from_bytes([2; 32])
}

fn record(tag: RecordTag, length: usize, seed: u8) -> SealedRecord {
    let blob: Vec<u8> = (0..length).map(|n| (n as u8) ^ seed).collect();
    SealedRecord {
        tag,
        blob: blob.into(),
    }
}

/// The line of a zone file with this record.
fn line(record: &SealedRecord) -> String {
    let mut line = format!("{} TXT \"v=natpunch1\"", record.tag);
    for part in STANDARD.encode(&record.blob).as_bytes().chunks(255) {
        write!(line, " \"{}\"", std::str::from_utf8(part).unwrap()).unwrap();
    }
    line
}

#[tokio::test]
async fn two_nodes_exchange_records_through_a_zone() {
    let knot = Knot::start("");
    let records = knot.records();
    let subject = Subject {
        about: records.describe(),
        plugin: &|| records.plugin(&secrets(SECRET)),
    };
    let mut report = Report::default();
    check_records(&subject, &mut report).await;
    assert!(report.is_good(), "{report}");
}

#[tokio::test]
async fn a_record_is_plain_to_read_with_dig_and_is_removed_by_its_node_alone() {
    let theirs = record(RecordTag([0xb1; 16]), 20, 0);
    let knot = Knot::start(&line(&theirs));
    let node = Node::start(&knot.records(), SECRET);
    let own = record(OUTBOUND, 300, 1);
    node.publish(std::slice::from_ref(&own));
    node.is_well("1 of 1 records published").await;
    let shown = knot.dig(&format!("{OUTBOUND}.{ZONE}"), "TXT");
    let text: String = shown.split('"').skip(1).step_by(2).collect();
    assert_eq!(text, format!("v=natpunch1{}", STANDARD.encode(&own.blob)));
    node.publish(&[]);
    node.is_well("0 of 0 records published").await;
    // The word that all is published came before the update was made; its removal is awaited.
    let gone = async {
        while !knot.dig(&format!("{OUTBOUND}.{ZONE}"), "TXT").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("it is removed");
    assert!(
        !knot
            .dig(&format!("{}.{ZONE}", theirs.tag), "TXT")
            .is_empty()
    );
    node.stop().await;
}

#[tokio::test]
async fn an_answer_that_no_datagram_holds_comes_over_tcp() {
    let longest = record(INBOUND, SealedRecord::MAX, 3);
    let knot = Knot::start(&line(&longest));
    let reader = Settings {
        update_server: None,
        key_name: None,
        key_file: None,
        ..knot.settings()
    };
    let node = Node::start(&reader.check().unwrap(), SECRET);
    node.hears(&longest).await;
    node.is_well("1 of 1 peers' records found; this node publishes none")
        .await;
    node.stop().await;
}

#[tokio::test]
async fn a_key_that_is_wrong_is_refused_and_said_in_one_sentence() {
    let knot = Knot::start("");
    let own = [record(OUTBOUND, 300, 1)];
    let unknown = Settings {
        key_name: Some("nobody".to_owned()),
        ..knot.settings()
    };
    let not_allowed = Settings {
        key_name: Some("stranger".to_owned()),
        ..knot.settings()
    };
    let other_zone = Settings {
        zone: "other.test".to_owned(),
        ..knot.settings()
    };
    for (settings, secret, words) in [
        (
            knot.settings(),
            [8; 32],
            "put the secret that it has into `key_file`",
        ),
        (unknown, SECRET, "must have a key of this name"),
        (not_allowed, SECRET, "access rules"),
        (other_zone, SECRET, "must be the zone's primary"),
    ] {
        let node = Node::start(&settings.check().unwrap(), secret);
        node.publish(&own);
        let wanted = |effect: &Effect| matches!(effect, Effect::Reported(Health::Bad(said)) if said.contains("TSIG"));
        let said = node.waits(wanted).await;
        assert!(format!("{said:?}").contains(words), "{said:?}");
        node.stop().await;
    }
    assert_eq!(knot.dig(&format!("{OUTBOUND}.{ZONE}"), "TXT"), "");
}

#[tokio::test]
async fn a_server_that_was_away_is_used_again() {
    let theirs = record(INBOUND, 300, 2);
    let mut knot = Knot::start(&line(&theirs));
    let records = knot.records();
    knot.stop();
    let node = Node::start(&records, SECRET);
    node.publish(&[record(OUTBOUND, 300, 1)]);
    let said = node.complains().await;
    assert!(said.contains("refused"), "{said}");
    assert!(knot.restart());
    node.hears(&theirs).await;
    node.is_well("1 of 1 peers' records found; 1 of 1 records published")
        .await;
    node.stop().await;
}

#[tokio::test]
async fn a_zone_that_lies_does_no_harm() {
    let good = record(INBOUND, 300, 2);
    let mut lines = line(&good);
    for n in 0..40 {
        write!(lines, "\n{INBOUND} TXT \"v=natpunch1\" \"not base64 {n}\"").unwrap();
    }
    let hash = "_natpunch._udp.75877bb41d393b5fb8455ce60ecd8dda";
    for port in 0..40 {
        write!(lines, "\n{hash} SRV 0 0 {port} nas").unwrap();
    }
    lines.push_str("\nnas A 192.0.2.7\n* CNAME loop\nloop CNAME pool\npool CNAME loop");
    let knot = Knot::start(&lines);
    let node = Node::start(&knot.records(), SECRET);
    node.hears(&good).await;
    // One more peer, whose names lead in a circle.
    let interest = |peer, tag| Interest {
        inbound_tag: tag,
        ..Interest::new(peer)
    };
    let looped = interest(PeerKey::from_bytes([3; 32]), RecordTag([0xc1; 16]));
    let peers = [interest(peer(), INBOUND), looped];
    node.host.put(Input::Ask(Ask::Peers(peers.into())));
    node.is_well("1 of 2 peers' records found").await;
    node.stop().await;
}

#[tokio::test]
async fn addresses_that_a_person_wrote_are_offered() {
    // printf 32 bytes of 2 | sha256sum
    let hash = "_natpunch._udp.75877bb41d393b5fb8455ce60ecd8dda";
    let knot = Knot::start(&format!("{hash} SRV 0 0 51820 nas\nnas A 192.0.2.7"));
    let node = Node::start(&knot.records(), SECRET);
    let offered = node.waits(|e| matches!(e, Effect::Told(News::Candidate { .. })));
    let Effect::Told(News::Candidate {
        peer: whose,
        candidate,
    }) = offered.await
    else {
        panic!("no candidate")
    };
    assert_eq!(
        (whose, candidate.address),
        (peer(), "192.0.2.7:51820".parse().unwrap())
    );
    assert_eq!(
        knot.dig(&format!("{hash}.{ZONE}"), "SRV"),
        format!("0 0 51820 nas.{ZONE}.\n")
    );
    node.stop().await;
}
