//! Members that run plain WireGuard and no natpunch.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use natpunch_lab::{Host, Nat, Process, lab_test};

use crate::world::{Discovery, World, new_key, soon, wg_peers};

pub(crate) const PORT: u16 = 41_414;
/// What of a mesh such a member reaches by its only peer.
pub(crate) const ALL: &str = "10.77.0.0/24";

/// WireGuard as anybody would set it up by hand: the kernel's or wireguard-go, `wg`, `ip`.
pub(crate) fn plain_wireguard(
    host: &Host,
    key_file: &Path,
    address: &str,
    (peer, allowed): (&str, &str),
) -> Option<Process> {
    let kernel = host.ip("link add name wg0 type wireguard\n").is_ok();
    let process = (!kernel).then(|| {
        let mut command = Command::new("wireguard-go");
        command
            .args(["--foreground", "wg0"])
            .env("LOG_LEVEL", "error")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        host.spawn(command).unwrap()
    });
    let key = key_file.to_str().unwrap();
    let port = PORT.to_string();
    let configure = [
        "set",
        "wg0",
        "private-key",
        key,
        "listen-port",
        &port,
        "peer",
        peer,
        "allowed-ips",
        allowed,
    ];
    let deadline = soon();
    // wireguard-go's socket comes a moment after its start.
    while !host.output("wg", &configure).unwrap().status.success() {
        assert!(Instant::now() < deadline, "wireguard-go did not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    host.ip(format!(
        "address add {address}/24 dev wg0\nlink set wg0 up\n"
    ))
    .unwrap();
    process
}

lab_test!(
    a_plain_wireguard_peer_with_an_endpoint_is_an_ordinary_member,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let router = world.lab.router("home", Nat::PortPreserving).unwrap();
        let host = world.lab.host_behind(&router, "a").unwrap();
        let mut a = world.node(host);
        let phone = world.lab.public_host("phone").unwrap();
        let (key_file, public_key) = new_key(&phone);
        let more = format!(
            "managed = false\nendpoint = \"{}:{PORT}\"\n",
            phone.ipv4().unwrap()
        );
        let address = world.mesh.add("phone", &public_key, &more);
        let _wireguard = plain_wireguard(
            &phone,
            &key_file,
            &address.to_string(),
            (&a.public_key, ALL),
        );
        world.write_mesh();
        a.start();
        a.wait_up();
        let ping = a.ping(address, Duration::from_millis(100));
        assert!(ping.first(soon()).is_some(), "the phone does not answer");
        let status = a.wait_connected("phone");
        assert_eq!(status["managed"], false);
        assert_eq!(
            status["endpoint"],
            format!("{}:{PORT}", phone.ipv4().unwrap())
        );
        let [of_phone] = wg_peers(&phone, "wg0").try_into().unwrap();
        assert_eq!(
            of_phone.endpoint,
            format!(
                "{}:{}",
                router.address(),
                a.status().unwrap()["listen_port"]
            )
        );
    }
);

lab_test!(
    a_plain_wireguard_peer_that_calls_in_is_answered_where_it_is,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let host = world.lab.public_host("a").unwrap();
        let mut a = world.node(host);
        let router = world.lab.router("mobile", Nat::Symmetric).unwrap();
        let phone = world.lab.host_behind(&router, "phone").unwrap();
        let (key_file, public_key) = new_key(&phone);
        let address = world.mesh.add("phone", &public_key, "managed = false\n");
        world.write_mesh();
        a.start();
        a.wait_up();
        let port = a.status().unwrap()["listen_port"].to_string();
        let _wireguard = plain_wireguard(
            &phone,
            &key_file,
            &address.to_string(),
            (&a.public_key, ALL),
        );
        let endpoint = format!("{}:{port}", a.host.ipv4().unwrap());
        let set = phone
            .output(
                "wg",
                &["set", "wg0", "peer", &a.public_key, "endpoint", &endpoint],
            )
            .unwrap();
        assert!(set.status.success());
        let to = a.address.to_string();
        let ping = phone
            .output("ping", &["-n", "-c3", "-W2", "-i0.2", &to])
            .unwrap();
        assert!(
            ping.status.success(),
            "{}",
            String::from_utf8_lossy(&ping.stdout)
        );
        let status = a.wait_connected("phone");
        assert!(
            status["endpoint"]
                .as_str()
                .unwrap()
                .starts_with(&router.address().to_string()),
            "{status:#}"
        );
        assert!(a.reaches(address));
    }
);
