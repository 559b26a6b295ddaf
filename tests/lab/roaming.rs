//! Networks that change under a running mesh.

use std::time::{Duration, Instant};

use natpunch_lab::{Lab, Nat, lab_test};

use crate::world::{Discovery, World, soon, within};

const INTERVAL: Duration = Duration::from_millis(50);

lab_test!(a_nat_that_reboots_is_punched_again, 90, |lab| {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let ([a, b], mut routers) = world.pair([Nat::PortPreserving, Nat::PortPreserving]);
    a.wait_connected("b");
    b.wait_connected("a");
    let ping = a.ping(b.address, INTERVAL);
    assert!(ping.wait_for(10, soon()));
    let reboot = Instant::now();
    world.lab.reboot(&mut routers[0]).unwrap();
    // An answer to a request from before may still be under way.
    assert!(
        ping.wait_for(10, within(40)),
        "no ping was answered after the reboot"
    );
    println!(
        "pings again {:.2} s after the reboot",
        reboot.elapsed().as_secs_f64()
    );
    let new = routers[0].address().to_string();
    let at = |endpoint: &serde_json::Value| {
        endpoint
            .as_str()
            .is_some_and(|endpoint| endpoint.starts_with(&new))
    };
    b.wait_peer("a", "the new address", soon(), |peer| {
        at(&peer["endpoint"]).then_some(())
    });
});

lab_test!(
    a_node_that_moves_to_another_network_is_found_there,
    90,
    |lab| {
        moves_to_another_network(lab, Discovery::NatpunchGo);
    }
);

lab_test!(
    a_node_that_moves_tells_the_rendezvous_and_is_found_there,
    90,
    |lab| {
        moves_to_another_network(lab, Discovery::Rendezvous);
    }
);

fn moves_to_another_network(lab: Lab, discovery: Discovery) {
    let mut world = World::new(lab, discovery);
    let ([mut a, b], _routers) = world.pair([Nat::PortPreserving, Nat::PortPreserving]);
    let office = world.lab.router("office", Nat::PortPreserving).unwrap();
    a.wait_connected("b");
    b.wait_connected("a");
    let ping = a.ping(b.address, INTERVAL);
    assert!(ping.wait_for(10, soon()));
    let moved = Instant::now();
    world.lab.move_behind(&mut a.host, &office).unwrap();
    assert!(
        ping.wait_for(10, within(40)),
        "no ping was answered after the move"
    );
    println!(
        "pings again {:.2} s after the move",
        moved.elapsed().as_secs_f64()
    );
    let new = office.address().to_string();
    let at = |endpoint: &serde_json::Value| {
        endpoint
            .as_str()
            .is_some_and(|endpoint| endpoint.starts_with(&new))
    };
    b.wait_peer("a", "the new address", soon(), |peer| {
        at(&peer["endpoint"]).then_some(())
    });
}

lab_test!(an_outage_of_some_seconds_ends_by_itself, 60, |lab| {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let ([a, b], routers) = world.pair([Nat::PortPreserving, Nat::PortPreserving]);
    a.wait_connected("b");
    b.wait_connected("a");
    let ping = a.ping(b.address, INTERVAL);
    assert!(ping.wait_for(10, soon()));
    let before = a.wg_peer(&b);
    routers[0].set_connected(false).unwrap();
    assert!(
        !ping.wait_for(5, Instant::now() + Duration::from_secs(5)),
        "the cable is out"
    );
    routers[0].set_connected(true).unwrap();
    let back = Instant::now();
    assert!(
        ping.wait_for(10, soon()),
        "no ping was answered after the outage"
    );
    println!(
        "pings again {:.2} s after the outage",
        back.elapsed().as_secs_f64()
    );
    assert_eq!(a.wg_peer(&b).endpoint, before.endpoint);
});
