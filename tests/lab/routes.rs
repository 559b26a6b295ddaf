//! Exit nodes: all traffic of a node through another, and nothing that must not go there.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use natpunch_lab::{Host, Nat, lab_test, sandbox};

use crate::world::{Discovery, INTERFACE, Node, World, soon};

const SITE_PORT: u16 = 8088;

/// A site that tells everybody from where he came.
fn serve_site(site: &Host) {
    let listener = site
        .run(|| TcpListener::bind(("0.0.0.0", SITE_PORT)))
        .unwrap()
        .unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = stream.write_all(from.ip().to_string().as_bytes());
        }
    });
}

/// Where the site sees a host come from; `None` if it does not get there.
fn seen_from(host: &Host, site: Ipv4Addr) -> Option<IpAddr> {
    let address = SocketAddr::from((site, SITE_PORT));
    host.run(move || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.parse().ok()
    })
    .unwrap()
}

fn wait_seen_from(host: &Host, site: Ipv4Addr, expected: Ipv4Addr) {
    let deadline = soon();
    loop {
        let seen = seen_from(host, site);
        if seen == Some(IpAddr::V4(expected)) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the site sees {seen:?}, not {expected}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn sysctl(host: &Host, key: &'static str, value: &'static str) {
    host.run(move || std::fs::write(format!("/proc/sys/net/{key}"), value))
        .unwrap()
        .unwrap();
}

/// What docs/how-to/exit-node.md says that an exit node needs of its host.
fn forward_and_translate(host: &Host) {
    sysctl(host, "ipv4/ip_forward", "1");
    let rules = format!(
        "table inet exit {{\n  chain out {{\n    type nat hook postrouting priority srcnat\n    \
         ip saddr 10.77.0.0/24 oifname != \"{INTERFACE}\" masquerade\n  }}\n}}\n"
    );
    let file = host.directory().unwrap().join("exit.nft");
    std::fs::write(&file, rules).unwrap();
    let output = host
        .output("nft", &["-f".as_ref(), file.as_os_str()])
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn our_rules(node: &Node) -> usize {
    let output = node.host.output("ip", &["rule", "show"]).unwrap();
    String::from_utf8_lossy(&output.stdout)
        .matches("proto 78")
        .count()
}

lab_test!(
    all_traffic_goes_through_the_exit_node_and_wireguards_own_does_not,
    120,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let site = world.lab.public_host("site").unwrap();
        serve_site(&site);
        let site = site.ipv4().unwrap();
        let gateway = world.lab.public_host("gateway").unwrap();
        forward_and_translate(&gateway);
        let mut gateway = world.node(gateway);
        let (mut client, router) = world.node_behind(Nat::Restricted, "client");
        let printer = world.lab.host_behind(&router, "printer").unwrap();
        // The strictest of hosts: packets whose way back is another one are dropped.
        sysctl(&client.host, "ipv4/conf/all/rp_filter", "1");
        world.mesh.member("gateway").more = "exit = true\n".to_owned();
        world.write_mesh();
        gateway.start();
        client.start();
        client.wait_connected("gateway");
        wait_seen_from(&client.host, site, router.address());
        let outside = gateway.host.ipv4().unwrap();

        // A default route needs a word.
        world.mesh.member("client").more = "exit_node = \"gateway\"\n".to_owned();
        world.write_mesh();
        client.wait("a refusal", soon(), |status| {
            status["reload_error"]
                .as_str()
                .filter(|text| text.contains("default-route"))
                .map(|_| ())
        });
        assert_eq!(seen_from(&client.host, site), Some(router.address().into()));
        // On a machine so slow that echoes come too late, nobody waits for them.
        let confirm = if sandbox::patience() > 1 { "0s" } else { "60s" };
        world.mesh.discovery.push_str(&format!(
            "[apply]\nallow = [\"default-route\"]\nconfirm = \"{confirm}\"\n"
        ));
        world.write_mesh();
        wait_seen_from(&client.host, site, outside);
        client.wait("a confirmed change", soon(), |status| {
            status["change"].is_null().then_some(())
        });
        assert_eq!(our_rules(&client), 3);

        // The LAN stays, also for what comes from there, and WireGuard's packets don't go round.
        let lan = printer.ipv4().unwrap();
        assert!(client.reaches(lan), "the LAN is lost");
        let before = client.wg_peer(&gateway).sent;
        let pings = client
            .host
            .output("ping", &["-n", "-c5", "-i0.2", "-W2", &site.to_string()])
            .unwrap();
        assert!(
            pings.status.success(),
            "{}",
            String::from_utf8_lossy(&pings.stdout)
        );
        let sent = client.wg_peer(&gateway).sent - before;
        assert!(sent < 50_000, "{sent} bytes for five pings");

        // What others take away comes back; probes find the way outside, also after a restart of
        // the agent.
        assert!(
            client
                .host
                .output("ip", &["rule", "del", "priority", "20051"])
                .unwrap()
                .status
                .success()
        );
        client.wait("a healed rule", soon(), |status| {
            status["drift"]["healed"].as_bool().filter(|healed| *healed)
        });
        client.kill();
        wait_seen_from(&client.host, site, outside);
        client.start();
        client.wait_connected("gateway");
        wait_seen_from(&client.host, site, outside);

        // Without the exit node, and with it and down: as it was.
        world.mesh.member("client").more.clear();
        world.write_mesh();
        wait_seen_from(&client.host, site, router.address());
        assert_eq!(our_rules(&client), 0);
        client.wait_connected("gateway");
        world.mesh.member("client").more = "exit_node = \"gateway\"\n".to_owned();
        world.write_mesh();
        wait_seen_from(&client.host, site, outside);
        let down = client.natpunch(&["down"]);
        assert!(
            down.status.success(),
            "{}",
            String::from_utf8_lossy(&down.stderr)
        );
        assert!(String::from_utf8_lossy(&down.stdout).contains("policy rules"));
        wait_seen_from(&client.host, site, router.address());
        assert_eq!(our_rules(&client), 0);
    }
);
