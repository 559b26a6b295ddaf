//! What counts as a sign of life, and what wakes a pair that has been dead.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use natpunch_lab::{Nat, lab_test};

use crate::world::{Discovery, Node, World, soon, within};

// Bytes that look like a keepalive, from where the peer was, with the peer dead.
lab_test!(
    forged_datagrams_do_not_keep_a_dead_peer_connected,
    240,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let host = world.lab.public_host("a").unwrap();
        let mut a = world.node(host);
        let host = world.lab.public_host("b").unwrap();
        let mut b = world.node(host);
        world.write_mesh();
        a.start();
        b.start();
        a.wait_connected("b");
        b.wait_connected("a");
        let port = |status: &serde_json::Value| status["listen_port"].as_u64().unwrap() as u16;
        let to = (a.host.ipv4().unwrap(), port(&a.status().unwrap()));
        let from = (b.host.ipv4().unwrap(), port(&b.status().unwrap()));
        b.kill();
        assert!(b.natpunch(&["down"]).status.success());
        let before = a.wg_peer(&b);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let forger = b.host.run(move || UdpSocket::bind(from).unwrap()).unwrap();
        let thread = std::thread::spawn(move || {
            let mut forged = [0x5a_u8; 32];
            forged[..4].copy_from_slice(&[4, 0, 0, 0]);
            while !stopped.load(Ordering::Relaxed) {
                let _ = forger.send_to(&forged, to);
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        let start = Instant::now();
        a.wait_peer("b", "the end of its connection", within(60), |peer| {
            (peer["state"] != "connected").then_some(())
        });
        println!(
            "measured: a dead peer was missed after {:.1?}",
            start.elapsed()
        );
        let after = a.wg_peer(&b);
        assert_eq!(after.received, before.received, "forged bytes were counted");
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap();
    }
);

// Single packets of every size pass a path of 1,400 bytes whose routers say nothing.
lab_test!(small_packets_pass_a_narrow_path, 120, |lab| {
    let mut world = World::new(lab, Discovery::Rendezvous);
    let ([a, b], routers) = world.pair([Nat::PortPreserving, Nat::PortPreserving]);
    a.wait_connected("b");
    for router in &routers {
        router.narrow(1_400).unwrap();
    }
    for size in [56, 1_200, 1_300, 1_312, 1_340, 1_344, 1_368, 1_372, 1_392] {
        let answered = a
            .host
            .output(
                "ping",
                &[
                    "-n",
                    "-c3",
                    "-i0.2",
                    "-W2",
                    "-s",
                    &size.to_string(),
                    &b.address.to_string(),
                ],
            )
            .unwrap();
        let text = String::from_utf8_lossy(&answered.stdout).into_owned();
        assert!(text.contains("3 received"), "{size} bytes: {text}");
    }
});

// A router that swallows packets of more than 1,300 bytes while TCP sends as fast as it may.
lab_test!(
    a_black_hole_is_found_and_the_transfer_in_it_goes_on,
    120,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let ([a, b], routers) = world.pair([Nat::PortPreserving, Nat::PortPreserving]);
        a.wait_path(&b, "direct", soon());
        b.wait_path(&a, "direct", soon());
        let whole = |peer: &serde_json::Value| (peer["path_mtu"]["mtu"] == 1420).then_some(());
        a.wait_peer("b", "a measured path", soon(), whole);
        let ping = |arguments: &[&str]| {
            let address = b.address.to_string();
            let arguments = [&["-n"], arguments, &[address.as_str()]].concat();
            let output = a.host.output("ping", &arguments).unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let of = |size| ["-c3", "-i0.2", "-W1", "-M", "do", "-s", size];
        assert!(ping(&of("1392")).contains("3 received"));

        let received = Arc::new(AtomicU64::new(0));
        let stream = transfer(&a, &b, &received);
        let more = |bytes: u64| {
            let (before, deadline) = (received.load(Ordering::Relaxed), within(30));
            while received.load(Ordering::Relaxed) < before + bytes {
                assert!(Instant::now() < deadline, "the transfer does not go on");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        more(1 << 20);
        routers[0].swallow(1_300).unwrap();
        let start = Instant::now();
        let mtu = a.wait_peer("b", "the black hole", within(30), |peer| {
            (peer["path_mtu"]["is_limited"] == true).then(|| peer["path_mtu"]["mtu"].clone())
        });
        let took = start.elapsed();
        assert_eq!(mtu, 1232);
        more(1 << 20);
        println!(
            "measured: a black hole was found after {took:.1?}, and the transfer went on after {:.1?}",
            start.elapsed()
        );
        assert!(took < Duration::from_secs(10), "{took:?}");
        stream.shutdown(Shutdown::Both).unwrap();

        b.wait_peer("a", "the black hole", within(30), |peer| {
            let _ = ping(&of("1192"));
            (peer["path_mtu"]["is_limited"] == true).then_some(())
        });
        assert!(ping(&of("1204")).contains("3 received"), "1,232 bytes pass");
        assert!(
            ping(&of("1205")).contains(" 0 received"),
            "more are refused here"
        );
        let status = a.status().unwrap();
        assert_eq!(status["drift"], serde_json::Value::Null);
        assert_eq!(status["peers"][0]["path"], "direct");
        let why = a.natpunch(&["why", "b"]);
        let why = String::from_utf8_lossy(&why.stdout).into_owned();
        assert!(why.contains("1232"), "{why}");
    }
);

/// TCP from one node to another, a megabyte in a third of a second; what arrives is counted.
fn transfer(from: &Node, to: &Node, received: &Arc<AtomicU64>) -> TcpStream {
    let address = SocketAddr::from((to.address, 4_000));
    let listener = to.host.run(move || TcpListener::bind(address)).unwrap();
    let (listener, count) = (listener.unwrap(), Arc::clone(received));
    std::thread::spawn(move || {
        let (mut stream, mut bytes) = (listener.accept().unwrap().0, [0; 65_536]);
        while let Ok(length @ 1..) = stream.read(&mut bytes) {
            count.fetch_add(length as u64, Ordering::Relaxed);
        }
    });
    let stream = from.host.run(move || TcpStream::connect(address)).unwrap();
    let stream = stream.unwrap();
    let mut sender = stream.try_clone().unwrap();
    std::thread::spawn(move || {
        while sender.write_all(&[0x5a; 65_536]).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    stream
}

/// Cuts one router off for so long and waits until the pair is back. One packet is sent, into the
/// cut, and none afterwards: what brings the pair back is natpunch alone.
fn outage(lab: natpunch_lab::Lab, seconds: u64, path: &str) {
    let mut world = World::new(lab, Discovery::Rendezvous);
    let nat = match path {
        "relay" => Nat::Symmetric,
        _ => Nat::PortPreserving,
    };
    let ([a, b], routers) = world.pair([nat, nat]);
    a.wait_path(&b, path, soon());
    b.wait_path(&a, path, soon());
    let before = a.wg_peer(&b).latest_handshake;
    routers[0].set_connected(false).unwrap();
    // WireGuard notices that nobody answers, tries for new keys, and gives up after 90 s.
    assert!(!a.reaches(b.address));
    std::thread::sleep(Duration::from_secs(seconds));
    routers[0].set_connected(true).unwrap();
    let start = Instant::now();
    // A session that is not over needs no new handshake.
    let anew = seconds >= 120;
    // The server, without which no relay comes, is asked every 20 to 60 s by then.
    a.wait_peer("b", "an answering peer", within(70), |peer| {
        let connected = peer["state"] == "connected" && peer["probes_unanswered"] == false;
        let shaken = !anew || a.wg_peer(&b).latest_handshake > before;
        (connected && shaken).then_some(())
    });
    println!(
        "measured: an idle pair ({path}) was back {:.1?} after an outage of {seconds} s",
        start.elapsed()
    );
    assert!(a.reaches(b.address) || a.reaches(b.address));
}

lab_test!(
    an_idle_pair_is_back_after_an_outage_longer_than_wireguard_tries,
    300,
    |lab| { outage(lab, 130, "direct") }
);

/// The campaign: each outage in both kinds of path. They run side by side.
macro_rules! outages {
    ($($name:ident: $seconds:literal, $path:literal;)*) => {$(
        lab_test!(
            #[ignore = "a campaign: `make outage`"]
            $name,
            $seconds + 300,
            |lab| { outage(lab, $seconds, $path) }
        );
    )*};
}

outages! {
    outage_of_one_minute_direct: 60, "direct";
    outage_of_one_minute_relayed: 60, "relay";
    outage_of_100_seconds_direct: 100, "direct";
    outage_of_100_seconds_relayed: 100, "relay";
    outage_of_200_seconds_direct: 200, "direct";
    outage_of_200_seconds_relayed: 200, "relay";
    outage_of_five_minutes_direct: 300, "direct";
    outage_of_five_minutes_relayed: 300, "relay";
    outage_of_twenty_minutes_direct: 1200, "direct";
    outage_of_twenty_minutes_relayed: 1200, "relay";
}
