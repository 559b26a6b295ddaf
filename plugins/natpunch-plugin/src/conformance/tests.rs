use std::future::pending;
use std::net::SocketAddr;

use natpunch_types::{Abilities, Candidate, CandidateKind, SealedRecord};

use super::*;
use crate::{Ask, BoxFuture, Host};

type Outcome = Result<(), PluginError>;

/// A plugin that works by this function.
struct Scripted<F>(F);

impl<F> Discovery for Scripted<F>
where
    F: FnMut(Arc<dyn Host>) -> BoxFuture<'static, Outcome> + Send + 'static,
{
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Outcome> {
        (self.0)(host)
    }
}

async fn report_on(
    about: Description,
    script: fn(Arc<dyn Host>) -> BoxFuture<'static, Outcome>,
) -> Report {
    let carries = about.abilities.records;
    let subject = Subject {
        about,
        plugin: &move || Box::new(Scripted(script)),
    };
    let mut report = check(&subject).await;
    if carries {
        check_records(&subject, &mut report).await;
    }
    report
}

/// Works until it is told to end, and does this for each input.
fn works(
    host: Arc<dyn Host>,
    mut each: impl FnMut(&dyn Host, Input) + Send + 'static,
) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        host.report(Health::Good("works".to_owned()));
        loop {
            match host.next().await {
                Input::Shutdown => return Ok(()),
                input => each(&*host, input),
            }
        }
    })
}

fn broken(report: &Report) -> Vec<Rule> {
    let mut rules: Vec<Rule> = report.findings.iter().map(|one| one.rule).collect();
    rules.dedup();
    rules
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_does_its_part_has_no_findings() {
    let report = report_on(Description::default(), |host| works(host, |_, _| {})).await;
    assert!(report.is_good(), "{report}");
    assert_eq!(report.checked.len(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_ends_hangs_or_panics_is_found() {
    let ends = report_on(Description::default(), |_| Box::pin(async { Ok(()) })).await;
    assert_eq!(broken(&ends), [Rule::STARTS]);
    let silent = report_on(Description::default(), |_| Box::pin(pending())).await;
    assert_eq!(broken(&silent), [Rule::STARTS]);
    let deaf = report_on(Description::default(), |host| {
        host.report(Health::Good("works".to_owned()));
        Box::pin(pending())
    });
    assert_eq!(broken(&deaf.await), [Rule::READS]);
    let hangs = report_on(Description::default(), |host| {
        Box::pin(async move {
            host.report(Health::Good("works".to_owned()));
            while !matches!(host.next().await, Input::Shutdown) {}
            pending().await
        })
    });
    assert_eq!(broken(&hangs.await), [Rule::STOPS, Rule::STOPS_AT_ONCE]);
    let fragile = report_on(Description::default(), |host| {
        works(host, |_, input| {
            assert!(!matches!(input, Input::NetworkChanged), "no network");
        })
    });
    assert_eq!(broken(&fragile.await), [Rule::READS]);
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_says_what_it_cannot_know_is_found() {
    fn says(host: &dyn Host, peer: PeerKey, address: &str) {
        let candidate = Candidate {
            address: address.parse::<SocketAddr>().unwrap(),
            kind: CandidateKind::Host,
            lifetime: Duration::from_secs(60),
        };
        host.tell(News::Candidate { peer, candidate });
    }
    let report = report_on(Description::default(), |host| {
        works(host, |host, _| {
            says(host, PEERS[0], "192.0.2.1:7");
            says(host, PEERS[0], "0.0.0.0:7");
            says(host, PeerKey::from_bytes([9; 32]), "192.0.2.1:7");
            host.tell(News::Wanted { peer: PEERS[0] });
            host.report(Health::Good("a\nb".to_owned()));
            host.report(Health::Good("works".to_owned()));
        })
    })
    .await;
    assert_eq!(broken(&report), [Rule::KNOWS]);
    let problems: Vec<&str> = report.findings.iter().map(|one| &*one.problem).collect();
    let words = [
        "nobody can answer",
        "none of those",
        "do not cover",
        "on one line",
    ];
    assert_eq!(problems.len(), words.len(), "{report}");
    for (problem, words) in problems.iter().zip(words) {
        assert!(problem.contains(words), "{report}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_never_rests_is_found() {
    let report = report_on(Description::default(), |host| {
        Box::pin(async move {
            host.report(Health::Good("works".to_owned()));
            loop {
                tokio::select! {
                    input = host.next() => if matches!(input, Input::Shutdown) { return Ok(()) },
                    () = sleep(Duration::from_millis(1)) => {
                        let address = SocketAddr::from(([192, 0, 2, 1], 7));
                        host.tell(News::Withdrawn { peer: PEERS[0], address });
                    }
                }
            }
        })
    })
    .await;
    assert_eq!(broken(&report), [Rule::IS_QUIET]);
}

#[tokio::test(start_paused = true)]
async fn records_that_go_nowhere_or_come_again_are_found() {
    let about = Description {
        abilities: Abilities {
            records: true,
            ..Abilities::default()
        },
        ..Description::default()
    };
    let nowhere = report_on(about.clone(), |host| works(host, |_, _| {})).await;
    assert_eq!(broken(&nowhere), [Rule::CARRIES]);

    // What was left under each tag, by all plugins of this test.
    static LEFT: std::sync::Mutex<Vec<SealedRecord>> = std::sync::Mutex::new(Vec::new());
    let stale = |host: Arc<dyn Host>| -> BoxFuture<'static, Outcome> {
        Box::pin(async move {
            host.report(Health::Good("works".to_owned()));
            let mut inbound = BTreeSet::new();
            loop {
                tokio::select! {
                    input = host.next() => match input {
                        Input::Shutdown => return Ok(()),
                        Input::Ask(Ask::Records(records)) => {
                            LEFT.lock().unwrap().extend(records.iter().cloned());
                        }
                        Input::Ask(Ask::Peers(peers)) => {
                            inbound = peers.iter().map(|peer| peer.inbound_tag).collect();
                        }
                        _ => {}
                    },
                    () = sleep(Duration::from_millis(100)) => {
                        let left = LEFT.lock().unwrap();
                        let ours = left.iter().filter(|one| inbound.contains(&one.tag));
                        ours.for_each(|one| host.tell(News::Record(one.clone())));
                    }
                }
            }
        })
    };
    let report = report_on(about, stale).await;
    assert_eq!(broken(&report), [Rule::CARRIES]);
    assert!(report.to_string().contains("came again"), "{report}");
}
