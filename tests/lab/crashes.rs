//! Tunnels outlive what made them.

use std::time::Duration;

use natpunch_lab::{Nat, lab_test};

use crate::world::{Discovery, World, soon, within};

const INTERVAL: Duration = Duration::from_millis(20);

lab_test!(an_agent_killed_under_ping_loses_no_packet, 60, |lab| {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let ([mut a, b], _routers) = world.pair([Nat::PortPreserving, Nat::PortPreserving]);
    a.wait_connected("b");
    let ping = a.ping(b.address, INTERVAL);
    assert!(ping.wait_for(10, soon()));
    let before = a.wg_peer(&b);
    a.kill();
    assert!(
        ping.wait_for(50, soon()),
        "the tunnel stopped with its agent"
    );
    a.start();
    a.wait_connected("b");
    assert!(ping.wait_for(50, soon()));
    let after = a.wg_peer(&b);
    assert_eq!(ping.stop().lost(), 0);
    assert_eq!(
        after.latest_handshake, before.latest_handshake,
        "the session was kept"
    );
    assert_eq!(after.endpoint, before.endpoint);
    assert!(
        after.received > before.received && after.sent > before.sent,
        "the counters went on"
    );
});

lab_test!(a_server_that_is_gone_takes_no_tunnel_with_it, 90, |lab| {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let ([a, b], mut routers) = world.pair([Nat::PortPreserving, Nat::PortPreserving]);
    a.wait_connected("b");
    b.wait_connected("a");
    let ping = a.ping(b.address, INTERVAL);
    world.server.kill();
    assert!(ping.wait_for(250, soon()));
    assert_eq!(ping.so_far().lost(), 0);
    assert_eq!(a.wait_connected("b")["path"], "direct");

    // Back again, it introduces them again.
    let key = world.server.public_key.clone();
    world.server.restart();
    assert_eq!(world.server.public_key, key);
    world.lab.reboot(&mut routers[0]).unwrap();
    assert!(
        ping.wait_for(20, within(40)),
        "no connection after the server came back"
    );
});
