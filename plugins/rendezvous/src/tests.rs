use natpunch_plugin::testing::{Effect, FakeHost};
use natpunch_plugin::{Ask, Health, Interest, Mapping, PeerKey, SecretKey, Settings as _};
use natpunch_rendezvous::server::{self, Admission, Limits, Via};
use natpunch_rendezvous::wire::Kind;
use tokio::time::Instant;

use super::*;

fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes([n; 32])
}

fn settings(server: &str) -> Settings {
    // The public key of the private key of 32 times 200.
    let identity = Client::new(
        Config {
            identity: key(200),
            servers: vec![PeerKey::from_bytes([9; 32])],
            admission: None,
        },
        SocketAddr::from(([198, 51, 100, 1], 9000)),
        ChaCha20Rng::from_seed([1; 32]),
        Time::ZERO,
    );
    Settings {
        server: server.to_owned(),
        more_ports: Vec::new(),
        public_key: identity.unwrap().identity(),
        next_public_key: None,
        admission_secret_file: None,
        relay: true,
        tls: None,
        tls_ca_file: None,
    }
}

#[test]
fn settings_that_cannot_work_are_refused_with_their_key() {
    let wrong_key = |settings: Settings| {
        let flaws = settings.check().unwrap_err();
        assert_eq!(flaws.len(), 1, "{flaws:?}");
        flaws[0].key
    };
    assert_eq!(wrong_key(settings("rendezvous.example")), "server");
    let good = settings("rendezvous.example:1");
    assert_eq!(
        wrong_key(Settings {
            public_key: PeerKey::from_bytes([0; 32]),
            ..good.clone()
        }),
        "public_key"
    );
    let next = Some(PeerKey::from_bytes([0; 32]));
    assert_eq!(
        wrong_key(Settings {
            next_public_key: next,
            ..good.clone()
        }),
        "next_public_key"
    );
    for more_ports in [vec![0], vec![1], vec![443, 443], vec![2, 3, 4, 5, 6]] {
        let good = good.clone();
        assert_eq!(wrong_key(Settings { more_ports, ..good }), "more_ports");
    }
    let relative = Some("secret".into());
    assert_eq!(
        wrong_key(Settings {
            admission_secret_file: relative,
            ..good.clone()
        }),
        "admission_secret_file"
    );
    assert!(
        serde_json::from_str::<Settings>(r#"{"server": "a:1", "public_key": "", "sever": 1}"#)
            .is_err()
    );
    let credential = Settings {
        admission_secret_file: Some("credential:admission.key".into()),
        ..good
    };
    assert!(credential.check().is_ok());
}

#[tokio::test]
async fn a_secret_that_cannot_be_read_is_said_and_nothing_is_sent() {
    let host = FakeHost::new(PeerKey::from_bytes([1; 32]), Some(key(1)), 1);
    let server = settings(SERVER).check().unwrap();
    let problem = "admission_secret_file /a: can't be read".to_owned();
    let mut plugin = Plugin::new(server, Err(problem.clone()));
    assert_eq!(plugin.run(host).await, Err(PluginError::Failed(problem)));
}

/// Two plugins and a server with a second port, in memory.
struct Net {
    server: server::Server<ChaCha20Rng>,
    hosts: [Arc<FakeHost>; 2],
    tasks: [tokio::task::JoinHandle<Result<(), PluginError>>; 2],
    start: Instant,
    /// How long the nodes slept, and their timers stood still.
    slept: Duration,
}

const SERVER: &str = "198.51.100.1:9000";
const ALTERNATE: &str = "198.51.100.1:9001";

impl Net {
    fn new() -> Self {
        let config = server::Config {
            keys: vec![key(200)],
            admission: Admission::default(),
            limits: Limits::default(),
            alternate_port: Some(9001),
        };
        let hosts =
            [1, 2].map(|n| FakeHost::new(PeerKey::from_bytes([n; 32]), Some(key(n)), n.into()));
        let tasks = [0, 1].map(|n| {
            let host: Arc<FakeHost> = hosts[n].clone();
            let mut plugin = Plugin::new(settings(SERVER).check().unwrap(), Ok(None));
            tokio::spawn(async move { plugin.run(host).await })
        });
        let server = server::Server::new(config, ChaCha20Rng::from_seed([7; 32])).unwrap();
        Self {
            server,
            hosts,
            tasks,
            start: Instant::now(),
            slept: Duration::ZERO,
        }
    }

    fn addresses() -> [SocketAddr; 2] {
        ["203.0.113.1:1001", "203.0.113.2:1002"].map(|text| text.parse().unwrap())
    }

    /// Passes datagrams on until a plugin does something else.
    async fn next(&mut self) -> (usize, Effect) {
        let [server, alternate] =
            [SERVER, ALTERNATE].map(|text| text.parse::<SocketAddr>().unwrap());
        loop {
            let (n, effect) = tokio::select! {
                effect = self.hosts[0].effect() => (0, effect),
                effect = self.hosts[1].effect() => (1, effect),
            };
            let Effect::Sent {
                destination,
                payload,
            } = effect
            else {
                return (n, effect);
            };
            assert!([server, alternate].contains(&destination));
            assert!(is_of_a_client(&payload), "{payload:02x?}");
            let via = Via {
                socket: usize::from(destination == alternate),
                local: None,
            };
            self.server.handle_datagram(
                via,
                Self::addresses()[n],
                &payload,
                Time::from_origin(self.start.elapsed() + self.slept),
            );
            while let Some(transmit) = self.server.poll_transmit() {
                let to = Self::addresses()
                    .iter()
                    .position(|address| *address == transmit.destination)
                    .unwrap();
                let source = if transmit.via.socket == 0 {
                    server
                } else {
                    alternate
                };
                self.hosts[to].put(Input::Datagram {
                    source,
                    payload: transmit.payload,
                });
            }
        }
    }

    /// Both nodes sleep; the server does not.
    fn sleep(&mut self, time: Duration) {
        self.slept += time;
        self.server
            .handle_timeout(Time::from_origin(self.start.elapsed() + self.slept));
        self.hosts.iter().for_each(|host| host.sleep(time));
    }

    async fn shutdown(self) {
        for (host, task) in self.hosts.iter().zip(self.tasks) {
            host.put(Input::Shutdown);
            task.await.unwrap().unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_goes_from_one_node_to_the_other_and_both_learn_their_address_and_their_nat() {
    let mut net = Net::new();
    let tag = RecordTag([7; 16]);
    let record = SealedRecord {
        tag,
        blob: Arc::from([1; 150]),
    };
    net.hosts[0].put(Input::Ask(Ask::Records([record.clone()].into())));
    net.hosts[1].put(Input::Ask(Ask::Peers([interest(1, tag)].into())));
    let (mut observed, mut delivered, mut good, mut mapped) =
        ([None, None], None, [false, false], [None, None]);
    while delivered.is_none()
        || observed.contains(&None)
        || mapped.contains(&None)
        || good != [true; 2]
    {
        match net.next().await {
            (n, Effect::Told(News::OwnAddress { address, .. })) => observed[n] = Some(address),
            (n, Effect::Told(News::Record(record))) => delivered = Some((n, record)),
            (n, Effect::Reported(Health::Good(_))) => good[n] = true,
            (n, Effect::Told(News::Mapping(mapping))) => mapped[n] = Some(mapping),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(observed, Net::addresses().map(Some));
    assert_eq!(delivered, Some((1, record)));
    assert_eq!(mapped, [Some(Mapping::EndpointIndependent); 2]);
    net.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_at_rest_hears_at_its_doorbell_who_looks_for_it() {
    let mut net = Net::new();
    let tag = RecordTag([7; 16]);
    let record = SealedRecord {
        tag,
        blob: Arc::from([1; 150]),
    };
    let on_demand = |peer: u8, rests: bool| Interest {
        peer: key(peer).public_key(),
        connect: Connect::OnDemand,
        wanted: !rests,
        rests,
        ..interest(peer, tag)
    };
    net.hosts[1].put(Input::Ask(Ask::Peers([on_demand(1, true)].into())));
    net.hosts[0].put(Input::Ask(Ask::Records([record.clone()].into())));
    net.hosts[0].put(Input::Ask(Ask::Peers([on_demand(2, false)].into())));
    let heard = loop {
        if let (1, Effect::Told(News::Record(heard))) = net.next().await {
            break heard;
        }
    };
    assert_eq!(heard, record);
    net.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn two_nodes_that_want_to_meet_are_told_to_fire_at_each_other() {
    let mut net = Net::new();
    let pair = RecordTag([5; 16]);
    for (n, peer) in [(0, 2), (1, 1)] {
        net.hosts[n].put(Input::Ask(Ask::Peers([interest(peer, pair)].into())));
    }
    let mut up = [false; 2];
    while up != [true; 2] {
        if let (n, Effect::Reported(Health::Good(_))) = net.next().await {
            up[n] = true;
        }
    }
    for (n, peer) in [(0, 2), (1, 1)] {
        net.hosts[n].put(Input::Ask(Ask::Meet(PeerKey::from_bytes([peer; 32]))));
        // And one that it does not know.
        net.hosts[n].put(Input::Ask(Ask::Meet(PeerKey::from_bytes([99; 32]))));
    }
    let mut fired = [None, None];
    while fired.contains(&None) {
        if let (n, Effect::Told(News::Fire { peer, after })) = net.next().await {
            assert!(fired[n].replace(peer).is_none(), "told once");
            assert!(after < Duration::from_millis(200), "{after:?}");
        }
    }
    assert_eq!(
        fired,
        [2, 1].map(|peer| Some(PeerKey::from_bytes([peer; 32])))
    );
    net.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn nodes_that_slept_are_registered_when_they_wake_and_have_what_changed_meanwhile() {
    // Shorter than the server keeps a session, longer than that, and longer than it keeps records.
    for sleep in [100, 200, 3_600] {
        let mut net = Net::new();
        let tag = RecordTag([7; 16]);
        let record = |n| SealedRecord {
            tag,
            blob: Arc::from([n; 150]),
        };
        net.hosts[0].put(Input::Ask(Ask::Records([record(1)].into())));
        net.hosts[1].put(Input::Ask(Ask::Peers([interest(1, tag)].into())));
        let mut delivered = None;
        while delivered != Some(record(1)) {
            if let (1, Effect::Told(News::Record(record))) = net.next().await {
                delivered = Some(record);
            }
        }
        net.sleep(Duration::from_secs(sleep));
        let woke = Instant::now();
        net.hosts[0].put(Input::Ask(Ask::Records([record(2)].into())));
        while delivered != Some(record(2)) || net.server.sessions() < 2 {
            if let (1, Effect::Told(News::Record(record))) = net.next().await {
                delivered = Some(record);
            }
        }
        let took = woke.elapsed();
        assert!(
            took < Duration::from_secs(1),
            "{took:?} after {sleep} s of sleep"
        );
        assert_eq!((net.server.sessions(), net.server.mailboxes()), (2, 1));
        net.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_that_sleep_again_and_again_still_watch_the_mailboxes_of_their_peers() {
    let mut net = Net::new();
    let tag = RecordTag([7; 16]);
    let record = |n| SealedRecord {
        tag,
        blob: Arc::from([n; 150]),
    };
    net.hosts[1].put(Input::Ask(Ask::Peers([interest(1, tag)].into())));
    // Their sessions never end, and a mailbox that is not named for 900 s is no longer watched.
    for n in 0..60 {
        net.hosts[0].put(Input::Ask(Ask::Records([record(n)].into())));
        let mut delivered = false;
        let asleep = Instant::now() + Duration::from_secs(2);
        while let Ok((_, effect)) = tokio::time::timeout_at(asleep, net.next()).await {
            delivered |= effect == Effect::Told(News::Record(record(n)));
        }
        assert!(delivered, "not delivered after {n} times 100 s of sleep");
        net.sleep(Duration::from_secs(100));
    }
    net.shutdown().await;
}

/// Whether this is a binding request (RFC 8489, section 5): its type, and the magic cookie.
fn is_stun_request(payload: &[u8]) -> bool {
    payload.starts_with(&[0, 1]) && payload.get(4..8) == Some(&[0x21, 0x12, 0xa4, 0x42])
}

/// Whether this is a datagram of natpunch's own protocol that a client sends.
fn is_of_a_client(payload: &[u8]) -> bool {
    matches!(
        Kind::of(payload),
        Some(Kind::Hello | Kind::Confirm | Kind::Request | Kind::Probe | Kind::Bind)
    )
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_in_another_protocol_gets_hellos_and_stun_and_nothing_else() {
    let host = FakeHost::new(PeerKey::from_bytes([1; 32]), Some(key(1)), 1);
    let mut plugin = Plugin::new(settings(SERVER).check().unwrap(), Ok(None));
    let task = tokio::spawn({
        let host: Arc<FakeHost> = host.clone();
        async move { plugin.run(host).await }
    });
    let source = SERVER.parse().unwrap();
    host.put(Input::Ask(Ask::Peers(
        [interest(2, RecordTag([7; 16]))].into(),
    )));
    let end = Instant::now() + Duration::from_secs(3_600);
    let mut hellos = 0;
    while let Ok(effect) = tokio::time::timeout_at(end, host.effect()).await {
        let Effect::Sent {
            destination,
            payload,
        } = effect
        else {
            continue;
        };
        assert_eq!(destination, source);
        // A server that does not answer is asked by STUN now and then whether UDP gets there.
        if is_stun_request(&payload) {
            continue;
        }
        assert_eq!(Kind::of(&payload), Some(Kind::Hello));
        hellos += 1;
        // natpunch-go's response and answer, nat-hole-punching's two, and an answer of the next
        // version.
        let mut welcome = vec![0xd4, b'n', 2, 2];
        welcome.resize(254, 1);
        let mut response = vec![2];
        response.resize(53, 1);
        let mut answer = vec![3];
        answer.resize(31, 1);
        for payload in [response, answer, vec![], vec![192, 0, 2, 1, 4, 0], welcome] {
            host.put(Input::Datagram { source, payload });
        }
    }
    assert!(hellos > 100, "{hellos}");
    host.put(Input::Shutdown);
    task.await.unwrap().unwrap();
}

fn interest(peer: u8, tag: RecordTag) -> Interest {
    let key = PeerKey::from_bytes([peer; 32]);
    Interest {
        inbound_tag: tag,
        outbound_tag: tag,
        pair_tag: PairTag(tag.0),
        ..Interest::new(key)
    }
}
