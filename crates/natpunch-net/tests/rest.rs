//! What WireGuard sends to peers without a path, on a real loopback interface.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::net::{SocketAddr, UdpSocket};

use common::{SOON, on_a_host};
use natpunch_net::{Rested, RestingPeers};
use natpunch_types::{INITIATION_LEN, PeerKey, resting_endpoint};

const PORT: u16 = 21_000;

fn message(kind: u8, mark: u8) -> Vec<u8> {
    let mut message = vec![mark; INITIATION_LEN];
    message[..4].copy_from_slice(&[kind, 0, 0, 0]);
    message
}

/// Everything but initiations, some from another port, goes in between. The port must be free: one
/// that was just closed may still be held by a program that another test is about to start.
async fn hears(ear: &RestingPeers, address: &str, port: u16) {
    let device = UdpSocket::bind((address, port)).unwrap();
    let other = UdpSocket::bind((address, 0)).unwrap();
    let mapped = |endpoint: SocketAddr| match (address, endpoint) {
        ("::", SocketAddr::V4(v4)) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        _ => endpoint,
    };
    for mark in 1..=3 {
        let endpoint = resting_endpoint(&PeerKey::from_bytes([mark; 32]));
        other.send_to(&message(1, mark), mapped(endpoint)).unwrap();
        device.send_to(&message(4, mark), mapped(endpoint)).unwrap();
        device.send_to(&message(1, mark), mapped(endpoint)).unwrap();
        let heard = tokio::time::timeout(SOON, ear.recv()).await;
        let expected = Rested {
            endpoint,
            initiation: message(1, mark),
        };
        assert_eq!(heard.expect("it is heard").unwrap(), expected);
    }
}

#[test]
fn initiations_of_the_device_are_heard_and_nothing_else_is() {
    on_a_host(|| async {
        // A device of IPv4 alone, and one whose socket is of both families.
        for (address, port) in [("0.0.0.0", PORT), ("::", PORT + 1)] {
            let ear = RestingPeers::open(port).unwrap();
            hears(&ear, address, port).await;
        }
    });
}

#[test]
fn a_firewall_that_lets_nothing_in_and_a_loopback_that_was_down_change_nothing() {
    on_a_host(|| async {
        let ear = RestingPeers::open(PORT).unwrap();
        common::ip("link set lo down");
        common::ip("link set lo up");
        let chain = "chain c { type filter hook input priority 0; policy drop; }";
        let rules = format!("table ip t {{\n{chain}\n}}");
        let nft = std::process::Command::new("nft").arg(rules).output();
        assert!(nft.expect("nft is installed").status.success());
        hears(&ear, "0.0.0.0", PORT).await;
    });
}
