use std::os::unix::fs::PermissionsExt as _;

use natpunch_plugin::testing::{Effect, FakeHost};
use natpunch_plugin::{PeerInterest, PeerKey, RelayUse, SecretKey};
use natpunch_rendezvous::server::{self, Admission, Limits, Via};

use super::*;

fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes([n; 32])
}

fn settings(server: &str) -> Settings {
    // The public key of the private key of 32 times 200.
    let identity = Client::new(
        Config { identity: key(200), servers: vec![PeerKey::from_bytes([9; 32])], admission: None },
        SocketAddr::from(([198, 51, 100, 1], 9000)),
        ChaCha20Rng::from_seed([1; 32]),
        Duration::ZERO,
    );
    Settings {
        server: server.to_owned(),
        public_key: identity.unwrap().identity(),
        next_public_key: None,
        admission_secret_file: None,
        relay: true,
    }
}

#[test]
fn settings_that_cannot_work_are_refused_with_their_key() {
    let wrong_key = |settings| match Plugin::new(settings) {
        Err(PluginError::Setting { key, .. }) => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(wrong_key(settings("rendezvous.example")), "server");
    let good = settings("rendezvous.example:1");
    assert_eq!(wrong_key(Settings { public_key: PeerKey::from_bytes([0; 32]), ..good.clone() }), "public_key");
    let next = Some(PeerKey::from_bytes([0; 32]));
    assert_eq!(wrong_key(Settings { next_public_key: next, ..good.clone() }), "next_public_key");
    let relative = Some("secret".into());
    assert_eq!(wrong_key(Settings { admission_secret_file: relative, ..good.clone() }), "admission_secret_file");
    assert!(serde_json::from_str::<Settings>(r#"{"server": "a:1", "public_key": "", "sever": 1}"#).is_err());
    Plugin::new(good).unwrap();
}

#[tokio::test]
async fn an_admission_secret_that_others_can_read_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), key(5).expose_base64().as_bytes()).unwrap();
    let mode = |mode| std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o640);
    assert!(secret::read(file.path()).await.unwrap_err().contains("0640"));
    mode(0o600);
    assert!(secret::read(file.path()).await.unwrap().expose() == &[5; 32]);
    std::fs::write(file.path(), "hello").unwrap();
    assert!(secret::read(file.path()).await.unwrap_err().contains("natpunch keygen"));
}

#[tokio::test(start_paused = true)]
async fn a_record_goes_from_one_node_to_the_other_and_both_learn_their_address() {
    let config = server::Config {
        keys: vec![key(200)],
        admission: Admission::default(),
        limits: Limits::default(),
        alternate_port: None,
    };
    let mut server = server::Server::new(config, ChaCha20Rng::from_seed([7; 32])).unwrap();
    let at: SocketAddr = "198.51.100.1:9000".parse().unwrap();
    let addresses: [SocketAddr; 2] = ["203.0.113.1:1001", "203.0.113.2:1002"].map(|text| text.parse().unwrap());
    let hosts = [1, 2].map(|n| FakeHost::new(PeerKey::from_bytes([n; 32]), Some(key(n)), n.into()));
    let tasks = [0, 1].map(|n| {
        let host: Arc<FakeHost> = hosts[n].clone();
        let mut plugin = Plugin::new(settings("198.51.100.1:9000")).unwrap();
        tokio::spawn(async move { plugin.run(host).await })
    });
    let tag = RecordTag([7; 16]);
    let record = SealedRecord { tag, blob: Arc::from([1; 150]) };
    hosts[0].put(Input::Records([record.clone()].into()));
    let peer = PeerInterest {
        key: PeerKey::from_bytes([1; 32]),
        wanted: true,
        endpoint: None,
        inbound_tag: tag,
        pair_tag: tag,
        relay: RelayUse::Off,
    };
    hosts[1].put(Input::Peers([peer].into()));

    let start = Instant::now();
    let (mut observed, mut delivered, mut good) = ([None, None], None, [false, false]);
    while delivered.is_none() || observed.contains(&None) || good != [true; 2] {
        let (n, effect) = tokio::select! {
            effect = hosts[0].effect() => (0, effect),
            effect = hosts[1].effect() => (1, effect),
        };
        match effect {
            Effect::Sent { destination, payload } => {
                assert_eq!(destination, at);
                server.handle_datagram(Via::default(), addresses[n], &payload, start.elapsed());
                while let Some(transmit) = server.poll_transmit() {
                    let to = addresses.iter().position(|address| *address == transmit.destination).unwrap();
                    hosts[to].put(Input::Datagram { source: at, payload: transmit.payload });
                }
            }
            Effect::ObservedSelf(address) => observed[n] = Some(address),
            Effect::Delivered(record) => delivered = Some((n, record)),
            Effect::Reported(Health::Good(_)) => good[n] = true,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(observed, addresses.map(Some));
    assert_eq!(delivered, Some((1, record)));
    for (host, task) in hosts.iter().zip(tasks) {
        host.put(Input::Shutdown);
        task.await.unwrap().unwrap();
    }
}
