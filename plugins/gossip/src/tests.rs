use std::time::Duration;

use natpunch_plugin::conformance::{Subject, check};
use natpunch_plugin::testing::{Effect as Did, FakeHost};
use natpunch_plugin::{
    Instance as _, Interest, PeerKey, RecordTag, Runs as _, SealedRecord, Secrets, Settings as _,
};
use tokio::time::timeout;

use super::*;

#[tokio::test(start_paused = true)]
async fn it_keeps_the_rules_of_plugins() {
    let peers = Settings::default().check().unwrap();
    let subject = Subject {
        about: peers.describe(),
        plugin: &|| peers.plugin(&Secrets::default()),
    };
    let report = check(&subject).await;
    assert!(report.is_good(), "{report}");
}

/// 1 looks for 3, and 2 has a path to both.
#[tokio::test(start_paused = true)]
async fn a_record_comes_to_a_peer_by_one_that_has_a_path_to_both() {
    let key = |n: usize| PeerKey::from_bytes([n as u8; 32]);
    let tag = |from: usize, to: usize| RecordTag([(16 * from + to) as u8; 16]);
    let hosts = [1, 2, 3].map(|n| FakeHost::new(key(n), None, 1));
    for (n, host) in (1..).zip(&hosts) {
        let interest = |peer| Interest {
            wanted: (n, peer) == (1, 3),
            is_direct: n == 2 || peer == 2,
            inbound_tag: tag(peer, n),
            outbound_tag: tag(n, peer),
            ..Interest::new(key(peer))
        };
        let peers = (1..=3).filter(|peer| *peer != n).map(interest);
        host.put(Input::Ask(Ask::Peers(peers.collect())));
        let its_host = host.clone();
        tokio::spawn(async move { Plugin.run(its_host).await });
    }
    let record = SealedRecord {
        tag: tag(1, 3),
        blob: Arc::from([7; 150]),
    };
    let records: Arc<[SealedRecord]> = Arc::from([record.clone()]);
    hosts[0].put(Input::Ask(Ask::Records(records)));
    let carry = async {
        loop {
            for (n, host) in (1..).zip(&hosts) {
                for effect in host.effects() {
                    match effect {
                        Did::SentToPeer { peer, payload } => {
                            let to = &hosts[usize::from(peer.as_bytes()[0]) - 1];
                            let peer = key(n);
                            to.put(Input::FromPeer { peer, payload });
                        }
                        Did::Told(News::Record(told)) => return (n, told),
                        Did::Reported(Health::Good(_)) => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let told = timeout(Duration::from_secs(10), carry).await;
    assert_eq!(told.unwrap(), (3, record));
}
