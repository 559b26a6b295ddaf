use natpunch_plugin::testing::{Effect, FakeHost};
use natpunch_plugin::{Health, Interest, Settings as _};
use natpunch_types::Time;
use tokio::time::Instant;

use super::*;
use crate::server::Config;
use crate::{Server as Rendezvous, Settings};

fn key(n: u8) -> PeerKey {
    PeerKey::from_bytes([n; 32])
}

fn interest(n: u8) -> Input {
    Input::Ask(Ask::Peers([Interest::new(key(n))].into()))
}

fn settings(server: &str) -> Settings {
    Settings {
        server: server.to_owned(),
    }
}

fn run(host: &Arc<FakeHost>, server: &str) -> tokio::task::JoinHandle<Result<(), PluginError>> {
    let mut plugin = Plugin::new(settings(server).check().unwrap());
    let host = host.clone();
    tokio::spawn(async move { plugin.run(host).await })
}

#[test]
fn settings_that_cannot_work_are_refused() {
    for (server, problem) in [
        ("example.org", "the port is missing"),
        ("[2001:db8::1]:49918", "this protocol knows only IPv4"),
    ] {
        let flaws = settings(server).check().unwrap_err();
        assert_eq!(
            (flaws[0].key, flaws[0].problem.as_str()),
            ("server", problem)
        );
    }
    assert!(serde_json::from_str::<Settings>(r#"{"server": "a:1", "port": 1}"#).is_err());
}

#[tokio::test(start_paused = true)]
async fn two_nodes_find_each_other_through_the_server_and_stop_when_told() {
    let mut server = Rendezvous::new(Config::default());
    let at: SocketAddr = "198.51.100.1:49918".parse().unwrap();
    let hosts = [1, 2].map(|n| FakeHost::new(key(n), None, n.into()));
    let addresses: [SocketAddr; 2] =
        ["203.0.113.1:1001", "203.0.113.2:1002"].map(|text| text.parse().unwrap());
    let tasks = [
        run(&hosts[0], "198.51.100.1:49918"),
        run(&hosts[1], "198.51.100.1:49918"),
    ];
    hosts[0].put(interest(2));
    hosts[1].put(interest(1));
    let start = Instant::now();
    let mut observed = [None, None];
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
                let reply = server
                    .handle_datagram(addresses[n], &payload, Time::from_origin(start.elapsed()))
                    .unwrap();
                hosts[n].put(Input::Datagram {
                    source: at,
                    payload: reply,
                });
            }
            Effect::Told(News::Candidate { peer, candidate }) => {
                observed[n] = Some((peer, candidate));
            }
            Effect::Reported(health) => assert!(matches!(health, Health::Good(_))),
            other => panic!("does not: {other:?}"),
        }
    }
    for (n, (peer, candidate)) in observed.into_iter().flatten().enumerate() {
        assert_eq!(
            (peer, candidate.address),
            (key(2 - n as u8), addresses[1 - n])
        );
    }
    hosts.iter().for_each(|host| host.put(Input::Shutdown));
    for task in tasks {
        assert_eq!(task.await.unwrap(), Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_reported_and_tried_on() {
    let host = FakeHost::new(key(1), None, 1);
    let task = run(&host, "198.51.100.1:49918");
    host.put(interest(2));
    let mut sent = 0;
    let problem = loop {
        match host.effect().await {
            Effect::Sent { destination, .. } => {
                sent += 1;
                let source = SocketAddr::new(destination.ip(), 1);
                host.put(Input::Datagram {
                    source,
                    payload: Vec::new(),
                });
                host.put(Input::Datagram {
                    source: destination,
                    payload: vec![1; 64],
                });
            }
            Effect::Reported(Health::Bad(problem)) => break problem,
            other => panic!("{other:?}"),
        }
    };
    assert!(
        problem.starts_with("no answer from 198.51.100.1:49918"),
        "{problem}"
    );
    assert!((3..=4).contains(&sent));
    assert!(matches!(host.effect().await, Effect::Sent { .. }));
    host.put(Input::Shutdown);
    assert_eq!(task.await.unwrap(), Ok(()));
}
