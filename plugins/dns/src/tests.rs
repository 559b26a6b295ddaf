use natpunch_plugin::conformance::{Subject, check};
use natpunch_plugin::testing::{Effect, FakeHost};
use natpunch_plugin::{Instance as _, PeerKey, Runs as _, Secret, Secrets, Settings as _};

use super::*;

/// A zone whose servers are gone: the ports belong to this test and refuse.
fn nowhere(with_updates: bool) -> Records {
    let settings = Settings {
        zone: "natpunch.example.org".to_owned(),
        name_servers: vec!["127.0.0.1:1".to_owned()],
        update_server: with_updates.then(|| "127.0.0.1:1".to_owned()),
        key_name: with_updates.then(|| "natpunch".to_owned()),
        key_file: with_updates.then(|| "/etc/natpunch/dns.key".into()),
        algorithm: "hmac-sha256".to_owned(),
        stun: vec![],
    };
    settings.check().unwrap()
}

fn secrets(of: Result<PresharedKey, String>) -> Secrets {
    Secrets([(settings::KEY_FILE, of.map(Secret::Key))].into())
}

#[tokio::test]
async fn it_keeps_the_rules_of_plugins_without_a_server() {
    let records = nowhere(true);
    let secrets = secrets(Ok(PresharedKey::from_bytes([7; 32])));
    let subject = Subject {
        about: records.describe(),
        plugin: &|| records.plugin(&secrets),
    };
    let report = check(&subject).await;
    assert!(report.is_good(), "{report}");
}

#[tokio::test]
async fn a_key_that_cannot_be_read_is_said_and_the_node_goes_on_reading() {
    let problem = "/etc/natpunch/dns.key: no such file".to_owned();
    let mut plugin = nowhere(true).plugin(&secrets(Err(problem)));
    let host = FakeHost::new(PeerKey::from_bytes([1; 32]), None, 1);
    let its_host = host.clone();
    let task = tokio::spawn(async move { plugin.run(its_host).await });
    let Effect::Reported(Health::Bad(said)) = host.effect().await else {
        panic!("no complaint")
    };
    assert!(said.contains("dns.key: no such file"), "{said}");
    let peer = natpunch_plugin::Interest::new(PeerKey::from_bytes([2; 32]));
    host.put(Input::Ask(Ask::Peers([peer].into())));
    let Effect::Reported(Health::Bad(said)) = host.effect().await else {
        panic!("no complaint")
    };
    let both = said.contains("127.0.0.1:1 does not answer") && said.contains("dns.key");
    assert!(both, "{said}");
    host.put(Input::Shutdown);
    task.await.unwrap().unwrap();
}
