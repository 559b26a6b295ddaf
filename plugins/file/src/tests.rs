use natpunch_plugin::conformance::{Subject, check, check_records};
use natpunch_plugin::testing::{Effect, FakeHost};
use natpunch_plugin::{Instance as _, PeerKey, Runs as _, Secrets, Settings as _};

use super::*;

fn shared(directory: &std::path::Path) -> Shared {
    let settings = Settings {
        directory: directory.to_owned(),
        interval: 1,
        stun: vec![],
    };
    settings.check().unwrap()
}

#[tokio::test]
async fn it_keeps_the_rules_of_plugins_and_carries_records() {
    let directory = tempfile::tempdir().unwrap();
    let shared = shared(directory.path());
    let subject = Subject {
        about: shared.describe(),
        plugin: &|| shared.plugin(&Secrets::default()),
    };
    let mut report = check(&subject).await;
    assert!(report.is_good(), "{report}");
    check_records(&subject, &mut report).await;
    assert!(report.is_good(), "{report}");
}

#[tokio::test]
async fn a_directory_that_is_missing_is_said_and_looked_for_again() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("records");
    let host = FakeHost::new(PeerKey::from_bytes([1; 32]), None, 1);
    let mut plugin = Plugin::new(shared(&directory));
    let its_host = host.clone();
    let task = tokio::spawn(async move { plugin.run(its_host).await });
    let Effect::Reported(Health::Bad(problem)) = host.effect().await else {
        panic!("no complaint")
    };
    assert!(problem.contains("ReadWritePaths"), "{problem}");
    std::fs::create_dir(&directory).unwrap();
    assert!(matches!(
        host.effect().await,
        Effect::Reported(Health::Good(_))
    ));
    host.put(Input::Shutdown);
    task.await.unwrap().unwrap();
}
