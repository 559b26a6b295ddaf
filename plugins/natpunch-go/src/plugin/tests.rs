use natpunch_plugin::testing::{Effect, FakeHost};
use natpunch_plugin::{Health, Interest, Settings as _};
use natpunch_types::Time;
use tokio::time::Instant;

use super::*;
use crate::noise::Identity;
use crate::server::Config;
use crate::testing::rng;
use crate::{Server, Settings};

fn secret(n: u8) -> SecretKey {
    SecretKey::from_bytes([n; 32])
}

fn key(n: u8) -> PeerKey {
    Identity::new(&secret(n)).unwrap().public()
}

fn settings(server: &str) -> Settings {
    Settings {
        server: server.to_owned(),
        public_key: key(200),
    }
}

fn host(n: u8) -> Arc<FakeHost> {
    FakeHost::new(key(n), Some(secret(n)), n.into())
}

fn run(host: &Arc<FakeHost>, server: &str) -> tokio::task::JoinHandle<Result<(), PluginError>> {
    let mut plugin = Plugin::new(settings(server).check().unwrap());
    let host = host.clone();
    tokio::spawn(async move { plugin.run(host).await })
}

#[test]
fn settings_that_cannot_work_are_refused_with_their_key() {
    let flaws = |settings: Settings| settings.check().unwrap_err();
    let no_port = flaws(settings("rendezvous.example"));
    assert_eq!(
        (no_port[0].key, no_port[0].problem.as_str()),
        ("server", "the port is missing")
    );
    let zeros = Settings {
        public_key: PeerKey::from_bytes([0; 32]),
        ..settings("rendezvous.example:9000")
    };
    assert_eq!(flaws(zeros)[0].key, "public_key");
    let unknown =
        serde_json::from_str::<Settings>(r#"{"server": "a:1", "public_key": "", "sever": 1}"#);
    assert!(unknown.is_err());
}

#[tokio::test(start_paused = true)]
async fn two_nodes_find_each_other_through_the_server_and_stop_when_told() {
    let mut server = Server::new(Config::new(secret(200)), rng(1)).unwrap();
    let at: SocketAddr = "198.51.100.1:9000".parse().unwrap();
    let hosts = [host(1), host(2)];
    let addresses: [SocketAddr; 2] =
        ["203.0.113.1:1001", "203.0.113.2:1002"].map(|text| text.parse().unwrap());
    let tasks = [
        run(&hosts[0], "198.51.100.1:9000"),
        run(&hosts[1], "198.51.100.1:9000"),
    ];
    hosts[0].put(Input::Ask(Ask::Peers([Interest::new(key(2))].into())));
    hosts[1].put(Input::Ask(Ask::Peers([Interest::new(key(1))].into())));

    let start = Instant::now();
    let (mut observed, mut registered) = ([None, None], [false, false]);
    while observed.contains(&None) {
        let (n, effect) = tokio::select! {
            effect = hosts[0].effect() => (0, effect),
            effect = hosts[1].effect() => (1, effect),
        };
        match effect {
            Effect::Sent {
                destination,
                payload,
            } => {
                assert_eq!(destination, at);
                if let Some(reply) = server.handle_datagram(
                    addresses[n],
                    &payload,
                    Time::from_origin(start.elapsed()),
                ) {
                    hosts[n].put(Input::Datagram {
                        source: at,
                        payload: reply.to_vec(),
                    });
                }
            }
            Effect::Told(News::Candidate { peer, candidate }) => {
                observed[n] = Some((peer, candidate));
            }
            Effect::Reported(health) => registered[n] = matches!(health, Health::Good(_)),
            other => panic!("does not: {other:?}"),
        }
    }
    assert!(start.elapsed() < Duration::from_millis(100));
    assert_eq!(registered, [true, true]);
    for (n, (peer, candidate)) in observed.into_iter().flatten().enumerate() {
        assert_eq!(
            (peer, candidate.address),
            (key(2 - n as u8), addresses[1 - n])
        );
        assert_eq!(candidate.kind, CandidateKind::Reflexive);
    }
    hosts.iter().for_each(|host| host.put(Input::Shutdown));
    for task in tasks {
        assert_eq!(task.await.unwrap(), Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn datagrams_of_others_and_a_silent_server_are_survived_and_reported() {
    let host = host(1);
    let task = run(&host, "[2001:db8::9]:9000");
    host.put(Input::Ask(Ask::Peers([Interest::new(key(2))].into())));
    let mut handshakes = 0;
    loop {
        match host.effect().await {
            Effect::Sent {
                destination,
                payload,
            } => {
                assert_eq!(
                    (destination, payload[0]),
                    ("[2001:db8::9]:9000".parse().unwrap(), 1)
                );
                handshakes += 1;
                host.put(Input::Datagram {
                    source: "203.0.113.5:9000".parse().unwrap(),
                    payload: vec![2; 53],
                });
                host.put(Input::Datagram {
                    source: destination,
                    payload: vec![2; 53],
                });
                host.put(Input::Datagram {
                    source: destination,
                    payload: Vec::new(),
                });
            }
            Effect::Reported(Health::Bad(problem)) => {
                assert!(
                    problem.starts_with("no answer from [2001:db8::9]:9000"),
                    "{problem}"
                );
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!((3..=5).contains(&handshakes));
    host.put(Input::NetworkChanged);
    assert!(
        matches!(host.effect().await, Effect::Sent { .. }),
        "tries go on"
    );
    host.put(Input::Shutdown);
    assert_eq!(task.await.unwrap(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn without_a_private_key_it_fails_and_says_so() {
    let host = FakeHost::new(key(1), None, 1);
    assert!(matches!(
        run(&host, "198.51.100.1:9").await.unwrap(),
        Err(PluginError::Failed(_))
    ));
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_reported() {
    let host = host(1);
    let task = run(&host, "no-such-host.invalid:9000");
    let Effect::Reported(Health::Bad(problem)) = host.effect().await else {
        panic!("not reported")
    };
    assert!(
        problem.starts_with("no-such-host.invalid can't be resolved: "),
        "{problem}"
    );
    host.put(Input::Shutdown);
    assert_eq!(task.await.unwrap(), Ok(()));
}
