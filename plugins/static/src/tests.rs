use natpunch_plugin::Settings as _;
use natpunch_plugin::testing::{Effect, FakeHost};

use super::*;

fn key(n: u8) -> PeerKey {
    PeerKey::from_bytes([n; 32])
}

fn peers(peers: &[(u8, bool, Option<&str>)]) -> Input {
    let peers = peers.iter().map(|(n, wanted, endpoint)| Interest {
        wanted: *wanted,
        endpoint: endpoint.map(Arc::from),
        ..Interest::new(key(*n))
    });
    Input::Ask(Ask::Peers(peers.collect()))
}

fn run(
    resolve_interval: u32,
) -> (
    Arc<FakeHost>,
    tokio::task::JoinHandle<Result<(), PluginError>>,
) {
    let host = FakeHost::new(key(9), None, 1);
    let mut plugin = Plugin::new(Settings { resolve_interval }.check().unwrap());
    let its_host = host.clone();
    (
        host,
        tokio::spawn(async move { plugin.run(its_host).await }),
    )
}

async fn observed(host: &FakeHost) -> (PeerKey, Candidate) {
    loop {
        if let Effect::Told(News::Candidate { peer, candidate }) = host.effect().await {
            return (peer, candidate);
        }
    }
}

#[test]
fn settings_have_a_default_and_a_range() {
    assert_eq!(
        serde_json::from_str::<Settings>("{}").unwrap(),
        Settings {
            resolve_interval: 60
        }
    );
    assert!(serde_json::from_str::<Settings>(r#"{"resolve": 1}"#).is_err());
    assert!(
        Settings {
            resolve_interval: 0
        }
        .check()
        .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn endpoints_are_offered_at_once_and_again_before_they_expire() {
    let (host, task) = run(60);
    let start = Instant::now();
    host.put(peers(&[
        (1, false, Some("203.0.113.1:51820")),
        (2, false, Some("[2001:db8::2]:7")),
        (3, true, None),
    ]));
    let mut first = [observed(&host).await, observed(&host).await];
    first.sort_by_key(|(peer, _)| *peer);
    assert_eq!(first[0].1.address, "203.0.113.1:51820".parse().unwrap());
    assert_eq!(first[1].1.address, "[2001:db8::2]:7".parse().unwrap());
    assert!(
        first
            .iter()
            .all(|(_, candidate)| candidate.kind == CandidateKind::Mapped)
    );
    assert!(start.elapsed() < Duration::from_secs(1));
    observed(&host).await;
    assert_eq!(start.elapsed().as_secs(), 60);
    assert!(first[0].1.lifetime > Duration::from_secs(120));
    host.put(Input::Shutdown);
    assert_eq!(task.await.unwrap(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_wanted_peer_is_resolved_more_often_with_backoff_and_at_once_when_the_network_changes() {
    let (host, _task) = run(60);
    let start = Instant::now();
    host.put(peers(&[(1, true, Some("203.0.113.1:51820"))]));
    let mut times = Vec::new();
    for _ in 0..6 {
        observed(&host).await;
        times.push(start.elapsed().as_secs());
    }
    assert_eq!(times, [0, 5, 15, 35, 75, 135]);
    host.put(Input::NetworkChanged);
    observed(&host).await;
    assert_eq!(start.elapsed().as_secs(), 135);
    host.put(peers(&[(1, false, Some("203.0.113.1:51820"))]));
    host.put(peers(&[(1, true, Some("203.0.113.9:51820"))]));
    assert_eq!(
        observed(&host).await.1.address,
        "203.0.113.9:51820".parse().unwrap()
    );
    assert_eq!(start.elapsed().as_secs(), 135);
}

#[tokio::test]
async fn a_name_is_resolved_and_one_that_does_not_resolve_is_reported() {
    let (host, _task) = run(60);
    host.put(peers(&[
        (1, true, Some("localhost:51820")),
        (2, true, Some("no-such-host.invalid:51820")),
    ]));
    let (mut resolved, mut reported) = (false, false);
    while !(resolved && reported) {
        match host.effect().await {
            Effect::Told(News::Candidate { peer, candidate }) => {
                assert!(peer == key(1) && candidate.address.ip().is_loopback());
                resolved = true;
            }
            Effect::Reported(Health::Bad(problem)) => {
                assert!(problem.starts_with(
                    "1 of 2 endpoints can't be resolved, such as no-such-host.invalid:51820: "
                ));
                reported = true;
            }
            Effect::Reported(Health::Good(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn more_endpoints_than_lookups_at_a_time_are_all_resolved() {
    let (host, _task) = run(60);
    let texts: Vec<String> = (0..200).map(|n| format!("203.0.113.{n}:51820")).collect();
    let all: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(n, text)| (n as u8, false, Some(text.as_str())))
        .collect();
    host.put(peers(&all));
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 200 {
        seen.insert(observed(&host).await.0);
    }
}

/// Peers whose names nobody answers for.
fn silent_names(count: u8) -> Vec<Interest> {
    let peer = |n| Interest {
        endpoint: Some(format!("peer-{n}.invalid:51820").into()),
        ..Interest::new(key(n))
    };
    (0..count).map(peer).collect()
}

#[tokio::test(start_paused = true)]
async fn an_address_waits_for_no_name() {
    let host = FakeHost::new(key(9), None, 1);
    let mut peers = silent_names(60);
    // Its key is the highest, so that it stands last.
    peers.push(Interest {
        endpoint: Some("203.0.113.1:51820".into()),
        ..Interest::new(key(200))
    });
    let mut run = Run::new(Duration::from_secs(60), &*host);
    run.set_peers(&peers);
    // All lookups are taken, and nobody answers.
    for _ in 0..MAX_LOOKUPS {
        run.lookups.spawn(std::future::pending());
    }
    run.look_up();
    assert_eq!(observed(&host).await.0, key(200));
    tokio::time::advance(Duration::from_secs(6)).await;
    assert!(run.next_due().is_some_and(|due| due <= Instant::now()));
    run.look_up();
    assert_eq!(observed(&host).await.0, key(200), "and again in its turn");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_nobody_answers_for_comes_after_all_others_that_wait() {
    let host = FakeHost::new(key(9), None, 1);
    let peers = silent_names(60);
    let mut run = Run::new(Duration::from_secs(60), &*host);
    run.set_peers(&peers);
    let mut asked = Vec::new();
    for _ in 0..8 {
        run.look_up();
        let begun = |entry: &&Entry| entry.due.is_none();
        let begun: Vec<(PeerKey, Arc<str>)> = run
            .entries
            .iter()
            .filter(|(_, entry)| begun(entry))
            .map(|(peer, entry)| (*peer, entry.text.clone()))
            .collect();
        run.lookups.abort_all();
        run.lookups = JoinSet::new();
        tokio::time::advance(LOOKUP_TIMEOUT).await;
        for (peer, text) in begun {
            asked.push(peer);
            run.handle_found((peer, text, Err("nobody answered".to_owned())));
        }
    }
    // 64 lookups of 60 names.
    let all: std::collections::BTreeSet<_> = asked.iter().collect();
    assert_eq!(all.len(), 60, "each once before any twice");
}
