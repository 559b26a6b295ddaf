//! Port mappings, by the daemon that most home routers run: `miniupnpd`.

use std::process::{Command, Stdio};

use natpunch_lab::{Lab, Nat, Process, Router, lab_test};
use serde_json::Value;

use crate::world::{Discovery, Node, World, soon};

/// What the daemon wants to be there of nftables.
const TABLE: &str = "table inet upnp
    delete table inet upnp
    table inet upnp {
        chain forward { type filter hook forward priority 10; jump mapped
        }
        chain prerouting { type nat hook prerouting priority -110; jump mapped_in
        }
        chain postrouting { type nat hook postrouting priority 90; jump mapped_out
        }
        chain mapped { }
        chain mapped_in { }
        chain mapped_out { }
    }\n";

/// Which protocols a router answers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Speaks {
    Pcp,
    NatPmp,
    Upnp,
}

impl Speaks {
    const ALL: [Self; 3] = [Self::Pcp, Self::NatPmp, Self::Upnp];

    /// As the node calls it.
    fn word(self) -> &'static str {
        match self {
            Self::Pcp => "(PCP)",
            Self::NatPmp => "(NAT-PMP)",
            Self::Upnp => "(UPnP)",
        }
    }
}

/// Starts the daemon on a router, with nothing mapped.
pub(crate) fn serve(lab: &Lab, name: &str, router: &Router, speaks: Speaks, more: &str) -> Process {
    router.nft(TABLE).unwrap();
    if let Speaks::NatPmp = speaks {
        // A router of the time before PCP does not know what it is sent.
        let deaf =
            "chain in { type filter hook input priority -300; udp dport 5351 @th,64,8 2 drop\n }";
        let table =
            format!("table inet deaf\ndelete table inet deaf\ntable inet deaf {{ {deaf}\n }}\n");
        router.nft(table).unwrap();
    }
    let file = lab.directory().join(format!("{name}.conf"));
    let (by_port, by_upnp) = match speaks {
        Speaks::Pcp | Speaks::NatPmp => ("yes", "no"),
        Speaks::Upnp => ("no", "yes"),
    };
    let settings = format!(
        "ext_ifname=wan\nlistening_ip=lan\nenable_natpmp={by_port}\nenable_upnp={by_upnp}\n\
         upnp_table_name=upnp\nupnp_nat_table_name=upnp\nupnp_forward_chain=mapped\n\
         upnp_nat_chain=mapped_in\nupnp_nat_postrouting_chain=mapped_out\nsecure_mode=yes\n\
         uuid=00000000-0000-0000-0000-000000000001\n\
         allow 1024-65535 192.168.1.0/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n{more}"
    );
    std::fs::write(&file, settings).unwrap();
    let mut daemon = Command::new("miniupnpd");
    daemon.arg("-d").arg("-f").arg(&file);
    daemon
        .arg("-P")
        .arg(lab.directory().join(format!("{name}.pid")));
    daemon.stdout(Stdio::null()).stderr(Stdio::null());
    router.spawn(daemon).unwrap()
}

/// The address outside by which a node says that its router maps it.
fn mapped(node: &Node) -> String {
    node.wait("a mapped address", soon(), |status| {
        let local = status["local"].as_array()?;
        let mapped = local.iter().find(|local| local["kind"] == "mapped")?;
        Some(mapped["address"].as_str()?.to_owned())
    })
}

/// What the instance says of itself.
fn note(status: &Value) -> Option<&str> {
    let instances = status["discovery"].as_array()?;
    let is_it = |instance: &&Value| instance["name"] == "port-mapping";
    instances.iter().find(is_it)?["note"].as_str()
}

/// Whether the router maps this port from outside now.
fn maps(router: &Router, address: &str) -> bool {
    let port = address.rsplit_once(':').unwrap().1;
    let rules = router.rules().unwrap();
    rules.contains(&format!("dport {port} "))
}

lab_test!(
    a_mapping_by_any_protocol_makes_a_symmetric_nat_reachable_and_ends_with_the_agent,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (mut b, _nat) = world.node_behind(Nat::PortPreserving, "b");
        let mut homes = Vec::new();
        for (name, speaks) in ["pcp", "pmp", "upnp"].into_iter().zip(Speaks::ALL) {
            let router = world
                .lab
                .global_router(&format!("nat-{name}"), Nat::Symmetric)
                .unwrap();
            let daemon = serve(&world.lab, name, &router, speaks, "");
            homes.push((world.node_at(&router, name), router, speaks, daemon));
        }
        // No port is guessed, so that nothing else makes these pairs direct.
        world.mesh.discovery.push_str("[punch]\nspray = false\n");
        world.write_mesh();
        b.start();
        homes.iter_mut().for_each(|(node, ..)| node.start());
        for (node, router, speaks, _) in &homes {
            let outside = mapped(node);
            assert!(
                outside.starts_with(&format!("{}:", router.address())),
                "{outside}"
            );
            assert!(maps(router, &outside), "{}", router.rules().unwrap());
            let status = node.status().unwrap();
            assert!(
                note(&status).unwrap().ends_with(speaks.word()),
                "{status:#}"
            );
            b.wait_path(node, "direct", soon());
            assert_eq!(b.wg_peer(node).endpoint, outside);
            assert!(b.reaches(node.address));
        }
        // Two such NATs reach each other, too.
        homes[0].0.wait_path(&homes[2].0, "direct", soon());
        b.wait("a note that its router does not map", soon(), |status| {
            let says_so = note(status)?.ends_with("answers neither PCP nor NAT-PMP nor UPnP");
            says_so.then_some(())
        });

        for (node, router, speaks, _) in &mut homes {
            let outside = mapped(node);
            // Who was killed has left its mapping, and has it again.
            node.kill();
            assert!(maps(router, &outside));
            node.start();
            assert_eq!(mapped(node), outside, "{speaks:?}");
            node.stop();
            assert!(
                !maps(router, &outside),
                "{speaks:?}: {}",
                router.rules().unwrap()
            );
        }
    }
);

lab_test!(a_router_that_was_started_anew_maps_again, 90, |lab| {
    let mut world = World::new(lab, Discovery::Rendezvous);
    let router = world.lab.global_router("nat-a", Nat::Symmetric).unwrap();
    let mut a = world.node_at(&router, "a");
    world.write_mesh();
    let daemon = serve(&world.lab, "a", &router, Speaks::Pcp, "");
    a.start();
    let outside = mapped(&a);
    daemon.kill().unwrap();
    let _daemon = serve(&world.lab, "a", &router, Speaks::Pcp, "");
    let deadline = soon();
    while !maps(&router, &outside) {
        assert!(
            std::time::Instant::now() < deadline,
            "{}",
            router.rules().unwrap()
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
});

lab_test!(
    a_mapping_of_a_router_behind_another_nat_is_shown_and_not_published,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let router = world
            .lab
            .global_router("nat-a", Nat::PortPreserving)
            .unwrap();
        let mut a = world.node_at(&router, "a");
        world.write_mesh();
        let elsewhere = "198.51.98.7";
        let _daemon = serve(
            &world.lab,
            "a",
            &router,
            Speaks::Pcp,
            &format!("ext_ip={elsewhere}\n"),
        );
        a.start();
        a.wait("a refuted mapping", soon(), |status| {
            let refuted = status["refuted"].as_array()?.first()?;
            refuted["address"]
                .as_str()?
                .starts_with(elsewhere)
                .then_some(())
        });
        let local = a.status().unwrap()["local"].to_string();
        assert!(!local.contains(elsewhere), "{local}");
        let shown = a.natpunch(&["status"]).stdout;
        let shown = String::from_utf8_lossy(&shown).into_owned();
        assert!(shown.contains("behind a NAT itself"), "{shown}");
    }
);
