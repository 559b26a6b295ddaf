//! Networks that let no UDP through: the server is reached by TLS, and so are the peers, until UDP
//! comes back.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use natpunch_lab::{Host, Lab, Nat, Ping, Process, Router, lab_test};

use crate::world::{Discovery, Node, World, soon, within};

const INTERVAL: Duration = Duration::from_millis(50);
/// Where the forwarder of a host listens.
const FORWARDER: &str = "127.78.80.1:";

/// A world whose server serves TLS, too, and whose mesh file says so.
fn world(lab: Lab) -> World {
    let mut world = World::new(lab, Discovery::Rendezvous);
    let directory = world.lab.directory().to_owned();
    let [certificate, key] = ["server.crt", "server.pem"].map(|name| directory.join(name));
    let address = world.server.address();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
        .args(["ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=server", "-addext"])
        .arg(format!("subjectAltName=IP:{address}"))
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    world.server.kill();
    world.server.arguments = vec![
        "--tls".to_owned(),
        "0.0.0.0:443".to_owned(),
        "--tls-cert".to_owned(),
        certificate.display().to_string(),
        "--tls-key".to_owned(),
        key.display().to_string(),
    ];
    world.server.restart();
    world.mesh.discovery.push_str(&format!(
        "tls = \"https://{address}\"\ntls_ca_file = \"{}\"\n",
        certificate.display()
    ));
    world
}

/// Two nodes behind routers of their own, of which the first lets no UDP through, not started yet.
fn nodes(world: &mut World) -> (Node, Node, [Router; 2]) {
    let (a, nat_a) = world.node_behind(Nat::PortPreserving, "a");
    let (b, nat_b) = world.node_behind(Nat::PortPreserving, "b");
    nat_a.set_udp_blocked(true).unwrap();
    world.write_mesh();
    (a, b, [nat_a, nat_b])
}

/// Waits until a node's WireGuard sends to its peer by TLS.
fn wait_by_tls(node: &Node, peer: &Node) {
    let status = node.wait_path(peer, "relay", soon());
    let endpoint = status["endpoint"].as_str().unwrap();
    assert!(endpoint.starts_with(FORWARDER), "{status:#}");
}

/// Waits until ten more pings are answered; how long that took.
fn goes_on(ping: &Ping, deadline: Instant) -> Duration {
    let from = Instant::now();
    assert!(ping.wait_for(10, deadline), "no pings are answered");
    from.elapsed().saturating_sub(INTERVAL * 10)
}

lab_test!(
    a_node_whose_network_lets_no_udp_through_is_connected_by_tls_until_udp_comes_back,
    200,
    |lab| {
        let mut world = world(lab);
        let (mut a, mut b, [nat_a, _nat_b]) = nodes(&mut world);
        let start = Instant::now();
        b.start();
        a.start();
        wait_by_tls(&a, &b);
        println!(
            "connected by TLS {:.2} s after the start",
            start.elapsed().as_secs_f64()
        );
        // The other side has UDP, and meets it at the relay's port.
        let status = b.wait_path(&a, "relay", soon());
        let endpoint = status["endpoint"].as_str().unwrap();
        let server = world.server.address().to_string();
        assert!(endpoint.starts_with(&server), "{status:#}");
        let text = String::from_utf8(a.natpunch(&["status"]).stdout).unwrap();
        assert!(text.contains("by TLS"), "{text}");

        // What carries WireGuard's packets outlives the agent.
        let ping = a.ping(b.address, INTERVAL);
        goes_on(&ping, soon());
        a.kill();
        goes_on(&ping, soon());
        a.start();
        a.wait_up();
        goes_on(&ping, soon());
        wait_by_tls(&a, &b);
        a.wait("the server by TLS", soon(), |status| {
            status.to_string().contains("by TLS").then_some(())
        });
        goes_on(&ping, soon());
        let lost = ping.so_far().lost();
        println!("pings lost while the agent was killed and started again: {lost}");
        assert_eq!(lost, 0);

        nat_a.set_udp_blocked(false).unwrap();
        let possible = Instant::now();
        a.wait_path(&b, "direct", within(60));
        println!(
            "direct {:.2} s after UDP came back",
            possible.elapsed().as_secs_f64()
        );
        goes_on(&ping, soon());
        let lost = ping.so_far().lost();
        println!("pings lost by the change to the direct path: {lost}");
        assert!(lost <= 2, "{lost}");
        a.wait("the server by UDP", within(60), |status| {
            (!status.to_string().contains("by TLS")).then_some(())
        });
        goes_on(&ping, soon());

        nat_a.set_udp_blocked(true).unwrap();
        let over = goes_on(&ping, within(30));
        let missed = ping.so_far().lost() - lost;
        println!(
            "by TLS {:.2} s after UDP was blocked under a ping; pings lost: {missed}",
            over.as_secs_f64()
        );
        wait_by_tls(&a, &b);
        assert!(over < Duration::from_secs(15), "{over:?}");
    }
);

lab_test!(
    a_node_behind_an_http_proxy_that_asks_for_a_password_is_connected_through_it,
    120,
    |lab| {
        let mut world = world(lab);
        let proxy = world.lab.public_host("proxy").unwrap();
        let _proxy = start_proxy(&proxy);
        let proxy = proxy.ipv4().unwrap();
        let (mut a, mut b, [nat_a, _nat_b]) = nodes(&mut world);
        nat_a.allow_only(proxy).unwrap();
        let url = format!("http://user:secret@{proxy}:3128");
        a.environment.push(("HTTPS_PROXY", url));
        b.start();
        a.start();
        wait_by_tls(&a, &b);
        assert!(a.reaches(b.address));
    }
);

/// A proxy that lets only one user through, to port 443.
fn start_proxy(host: &Host) -> Process {
    let file = host.directory().unwrap().join("tinyproxy.conf");
    let settings = "Port 3128\nListen 0.0.0.0\nTimeout 600\nMaxClients 20\nConnectPort 443\n\
                    BasicAuth user secret\n";
    std::fs::write(&file, settings).unwrap();
    let mut command = Command::new("tinyproxy");
    command.arg("-d").arg("-c").arg(&file);
    let process = host
        .spawn({
            command.stdout(Stdio::null());
            command
        })
        .unwrap();
    let deadline = soon();
    while !host
        .run(|| std::net::TcpStream::connect("127.0.0.1:3128").is_ok())
        .unwrap()
    {
        assert!(Instant::now() < deadline, "the proxy does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    process
}
