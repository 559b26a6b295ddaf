//! The link watch on real links.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use common::{Neighbour, SOON, ip, on_a_host};
use natpunch_net::{Change, LinkWatch, RawPort, host_network};
use natpunch_types::{HostNetwork, LinkRole, Route};

/// Longer than any burst may be held back: if nothing was told by then, nothing is.
const QUIET: Duration = Duration::from_millis(1300);

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter()
        .map(|address| address.parse().unwrap())
        .collect()
}

fn local_addresses(exclude: &[&str]) -> Vec<IpAddr> {
    host_network(exclude).unwrap().ips().collect()
}

/// What is told of a host whose links are all of one role.
fn network(list: &[&str], role: LinkRole) -> HostNetwork {
    let mut network: HostNetwork = addresses(list).into_iter().collect();
    for address in &mut network.addresses {
        address.role = role;
    }
    network
}

fn ips(network: &HostNetwork) -> Vec<IpAddr> {
    network.ips().collect()
}

async fn change(watch: &mut LinkWatch) -> Change {
    tokio::time::timeout(SOON, watch.changed())
        .await
        .expect("a change is told")
}

async fn assert_quiet(watch: &mut LinkWatch) {
    if let Ok(change) = tokio::time::timeout(QUIET, watch.changed()).await {
        panic!("nothing has changed, but this was told: {change:?}");
    }
}

/// A host with one cable.
fn wired() -> Neighbour {
    let neighbour = Neighbour::new();
    neighbour.cable(("np-a", &["10.1.0.1/24"]), ("np-b", &["10.1.0.2/24"]));
    neighbour
}

#[test]
fn the_local_addresses_are_those_that_others_might_reach() {
    on_a_host(|| async {
        assert_eq!(local_addresses(&[]), addresses(&[]), "loopback is none");
        let neighbour = wired();
        neighbour.cable(
            ("np-mesh", &["10.77.0.1/24", "fd77::1/64"]),
            ("np-other", &[]),
        );
        ip("address add 2001:db8::1/64 dev np-a nodad");
        ip("address add 2001:db8::dead/64 dev np-a nodad preferred_lft 0");
        ip("address add 10.2.0.1 peer 10.2.0.2 dev np-a");
        ip("address add 10.1.0.1/24 dev np-mesh");
        let all = addresses(&[
            "10.1.0.1",
            "10.2.0.1",
            "2001:db8::1",
            "10.77.0.1",
            "fd77::1",
        ]);
        assert_eq!(
            local_addresses(&[]),
            all,
            "each once; no link-local, deprecated or foreign one"
        );
        assert_eq!(local_addresses(&["np-mesh"]), all[..3]);
        assert_eq!(
            ips(LinkWatch::new("np-mesh").await.unwrap().network()),
            all[..3]
        );
        ip("link set np-a down");
        assert_eq!(
            local_addresses(&["np-mesh"]),
            addresses(&[]),
            "a link that is down reaches nobody"
        );
    });
}

#[test]
fn a_burst_of_changes_is_told_once_and_soon() {
    on_a_host(|| async {
        let _neighbour = wired();
        let mut watch = LinkWatch::new("np-mesh").await.unwrap();
        let start = Instant::now();
        for n in 2..6 {
            ip(&format!("address add 10.{n}.0.1/24 dev np-a"));
        }
        let told = change(&mut watch).await;
        let all = ["10.1.0.1", "10.2.0.1", "10.3.0.1", "10.4.0.1", "10.5.0.1"];
        let expected = network(&all, LinkRole::Virtual);
        assert_eq!(
            told,
            Change {
                network: expected.clone(),
                addresses_changed: true,
                suspended: false
            }
        );
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(*watch.network(), expected);
        assert_quiet(&mut watch).await;
    });
}

#[test]
fn a_storm_without_end_does_not_hold_back_the_news() {
    on_a_host(|| async {
        let _neighbour = wired();
        let mut watch = LinkWatch::new("np-mesh").await.unwrap();
        ip("address add 10.9.0.1/24 dev np-a");
        let storm = async {
            loop {
                ip("address add 10.8.0.1/24 dev np-a");
                ip("address del 10.8.0.1/24 dev np-a");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = storm => unreachable!(),
            told = change(&mut watch) => assert!(ips(&told.network).contains(&"10.9.0.1".parse().unwrap())),
        }
    });
}

#[test]
fn our_own_interface_and_routes_are_no_change() {
    on_a_host(|| async {
        let neighbour = wired();
        let mut watch = LinkWatch::new("np-mesh").await.unwrap();
        neighbour.cable(("np-mesh", &["10.77.0.1/24"]), ("np-other", &[]));
        ip("route add 10.88.0.0/16 dev np-mesh proto 0x4e");
        ip("route add 10.99.0.0/16 via 10.1.0.2 proto 0x4e");
        ip("route add 10.66.0.0/16 dev np-mesh");
        ip("address add 10.77.1.1/24 dev np-mesh");
        assert_quiet(&mut watch).await;
        ip("link del np-mesh");
        assert_quiet(&mut watch).await;
    });
}

#[test]
fn containers_that_come_and_go_are_no_change() {
    on_a_host(|| async {
        let neighbour = wired();
        let mut watch = LinkWatch::new("np-mesh").await.unwrap();
        for n in 0..5 {
            neighbour.cable((&format!("np-c{n}"), &[]), (&format!("np-d{n}"), &[]));
            ip(&format!("route add 10.50.0.{n}/32 dev np-c{n}"));
        }
        for n in 0..5 {
            ip(&format!("link del np-c{n}"));
        }
        assert_quiet(&mut watch).await;
    });
}

#[test]
fn another_way_out_is_told_though_all_addresses_stay() {
    on_a_host(|| async {
        let _neighbour = wired();
        ip("route add default via 10.1.0.2");
        let mut watch = LinkWatch::new("np-mesh").await.unwrap();
        ip("route replace default via 10.1.0.3");
        let told = change(&mut watch).await;
        assert_eq!(
            told,
            Change {
                network: HostNetwork {
                    routers: addresses(&["10.1.0.3"]),
                    nat64: None,
                    ..network(&["10.1.0.1"], LinkRole::DefaultRoute)
                },
                addresses_changed: false,
                suspended: false
            }
        );
    });
}

#[test]
fn a_cable_that_is_pulled_and_put_back_is_told_both_times() {
    on_a_host(|| async {
        let neighbour = wired();
        let mut watch = LinkWatch::new("np-mesh").await.unwrap();
        neighbour.run(|| ip("link set np-b down"));
        assert_eq!(ips(&change(&mut watch).await.network), addresses(&[]));
        neighbour.run(|| ip("link set np-b up"));
        assert_eq!(
            ips(&change(&mut watch).await.network),
            addresses(&["10.1.0.1"])
        );
    });
}

#[test]
fn a_change_between_two_looks_is_not_lost_if_the_wait_is_given_up() {
    on_a_host(|| async {
        let _neighbour = wired();
        let mut watch = LinkWatch::new("np-mesh").await.unwrap();
        ip("address add 10.2.0.1/24 dev np-a");
        // The agent's loop drops and remakes the future at every other event.
        let told = async {
            loop {
                tokio::select! {
                    change = watch.changed() => return change,
                    () = tokio::time::sleep(Duration::from_millis(10)) => {}
                }
            }
        };
        let told = tokio::time::timeout(SOON, told)
            .await
            .expect("a change is told");
        assert_eq!(ips(&told.network), addresses(&["10.1.0.1", "10.2.0.1"]));
    });
}

#[test]
fn when_the_kernel_says_that_news_were_lost_everything_is_looked_at_again() {
    on_a_host(|| async {
        let _neighbour = wired();
        let mut watch = LinkWatch::new("np-mesh").await.unwrap();
        // More news than the socket holds, which nobody reads, and which come to nothing.
        let batch: String = (0..2000)
            .map(|n| {
                format!(
                    "address add 10.{}.{}.1/24 dev np-a\n",
                    100 + n / 250,
                    n % 250
                )
            })
            .chain((0..2000).map(|n| {
                format!(
                    "address del 10.{}.{}.1/24 dev np-a\n",
                    100 + n / 250,
                    n % 250
                )
            }))
            .collect();
        let file = std::env::temp_dir().join(format!("natpunch-net-batch-{}", std::process::id()));
        std::fs::write(&file, batch).unwrap();
        ip(&format!("-batch {}", file.display()));
        std::fs::remove_file(&file).unwrap();
        let told = change(&mut watch).await;
        assert_eq!(
            told,
            Change {
                network: network(&["10.1.0.1"], LinkRole::Virtual),
                addresses_changed: false,
                suspended: false
            }
        );
        // And the watch goes on.
        ip("address add 10.2.0.1/24 dev np-a");
        assert_eq!(
            ips(&change(&mut watch).await.network),
            addresses(&["10.1.0.1", "10.2.0.1"])
        );
    });
}

#[test]
fn what_the_kernel_leaves_by_comes_before_networks_of_containers() {
    on_a_host(|| async {
        // Container hosts make their bridges first, so these have the lower indices.
        for n in 0..12 {
            let link = format!("np-br{n}");
            ip(&format!("link add {link} type bridge"));
            ip(&format!("address add 10.{}.0.1/24 dev {link}", 100 + n));
            ip(&format!("link add np-c{n} type veth peer name np-d{n}"));
            ip(&format!("link set np-c{n} master {link} up"));
            ip(&format!("link set np-d{n} up"));
            ip(&format!("link set {link} up"));
        }
        let neighbour = Neighbour::new();
        neighbour.cable(("np-lan", &["192.168.1.2/24"]), ("np-b", &[]));
        neighbour.cable(("np-wlan", &["192.168.2.2/24"]), ("np-c", &[]));
        ip("route add default via 192.168.2.1 dev np-wlan metric 600");
        ip("route add default via 192.168.1.1 dev np-lan metric 100");
        // A bridge has a carrier a moment after its port.
        let mut watch = LinkWatch::new("np-mesh").await.unwrap();
        while watch.network().addresses.len() < 14 {
            change(&mut watch).await;
        }
        let network = watch.network();
        let found: Vec<(String, LinkRole)> = network
            .addresses
            .iter()
            .map(|address| (address.ip.to_string(), address.role))
            .collect();
        assert_eq!(found[0], ("192.168.1.2".into(), LinkRole::DefaultRoute));
        assert_eq!(found[1], ("192.168.2.2".into(), LinkRole::SecondRoute));
        let bridges = found.iter().filter(|(_, role)| *role == LinkRole::Virtual);
        assert_eq!(bridges.count(), 12, "{found:?}");
        assert_eq!(network.routers, addresses(&["192.168.1.1", "192.168.2.1"]));
    });
}

#[test]
fn the_way_to_an_address_is_the_kernels() {
    on_a_host(|| async {
        let neighbour = wired();
        ip("route add default via 10.1.0.2");
        ip("tuntap add np-tun mode tun");
        ip("address add 10.8.0.2/24 dev np-tun");
        ip("link set np-tun up");
        ip("route add 10.9.0.0/16 dev np-tun");
        ip("route add 10.9.1.0/24 via 10.1.0.2");
        ip("route add blackhole 10.66.0.0/16");
        let port = RawPort::open(20_000, 0).unwrap();
        let way = |to: &str| port.route(to.parse().unwrap()).unwrap();
        for (to, expected) in [
            ("10.1.0.2", Route::OnLink),
            ("10.1.0.255", Route::Unusable),
            ("10.1.0.1", Route::Unusable),
            ("203.0.113.1", Route::Routed),
            ("192.168.1.1", Route::Routed),
            ("10.8.0.1", Route::Tunneled),
            ("10.9.7.7", Route::Tunneled),
            ("10.9.1.7", Route::Routed),
            ("10.66.0.1", Route::Unusable),
            ("2001:db8::1", Route::Unusable),
        ] {
            assert_eq!(way(to), expected, "{to}");
        }
        drop(neighbour);
    });
}
