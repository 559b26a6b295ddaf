use natpunch_plugin::testing::{Effect, FakeHost};
use natpunch_plugin::{SecretKey, Settings as _};

use super::*;

fn host(key: u8) -> Arc<FakeHost> {
    let key = SecretKey::from_bytes([key; 32]);
    FakeHost::new(key.public_key(), Some(key), 1)
}

#[tokio::test(start_paused = true)]
async fn a_host_without_a_router_asks_nobody_and_says_so() {
    let host = host(1);
    let its_host = host.clone();
    let running = tokio::spawn(async move { Plugin.run(its_host).await });
    let Effect::Reported(Health::Good(note)) = host.effect().await else {
        panic!("nothing is reported")
    };
    assert_eq!(note, "no router of IPv4 here");
    host.put(Input::NetworkChanged);
    host.put(Input::Shutdown);
    assert_eq!(running.await.unwrap(), Ok(()));
}

#[test]
fn a_mapping_is_bound_to_the_node_and_the_router_and_not_to_the_run() {
    let routers = [Ipv4Addr::new(192, 168, 1, 1), Ipv4Addr::new(10, 0, 0, 1)];
    let nonce = |key: u8, router| Run::new(&*host(key)).nonce(router).unwrap();
    assert_eq!(nonce(1, routers[0]), nonce(1, routers[0]));
    let all = BTreeSet::from([
        nonce(1, routers[0]),
        nonce(1, routers[1]),
        nonce(2, routers[0]),
    ]);
    assert_eq!(all.len(), 3);
}

#[test]
fn it_is_there_without_being_written() {
    let implied = Settings::implied();
    assert_eq!(implied, Settings::default().check().ok());
}
