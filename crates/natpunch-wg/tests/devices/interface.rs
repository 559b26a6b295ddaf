//! An interface as a whole: created, adopted, planned, changed, taken down.

use std::path::Path;
use std::process::Command;

use natpunch_wg::{BackendChoice, BackendKind, Change, Interface, InterfaceSpec, WgError, down};

use crate::common::{Netns, device_pid, peer, spec, start_wireguard_go, unique_name, until};

/// A namespace with the spec of an interface in it, which is taken down with the value.
pub(crate) struct Host {
    pub(crate) netns: Netns,
    pub(crate) spec: InterfaceSpec,
    _directory: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new(backend: BackendChoice) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut spec = spec(&unique_name(), directory.path(), 0x41);
        let other = super::common::spec("other", directory.path(), 0x42);
        spec.backend = backend;
        spec.addresses = vec![
            "10.5.0.1/24".parse().unwrap(),
            "fd05::1/64".parse().unwrap(),
        ];
        spec.routes = vec![
            "10.5.0.0/24".parse().unwrap(),
            "10.6.0.0/16".parse().unwrap(),
        ];
        spec.peers = vec![peer(&other, &["10.5.0.2/32", "10.6.0.0/16"])];
        Self {
            netns: Netns::new(),
            spec,
            _directory: directory,
        }
    }

    pub(crate) fn plan(&self) -> Result<natpunch_wg::Plan, WgError> {
        let spec = self.spec.clone();
        self.netns.run(move || Interface::plan(&spec))
    }

    pub(crate) fn open(&self) -> Result<natpunch_wg::Applied, WgError> {
        let spec = self.spec.clone();
        self.netns
            .run(move || Interface::open_reporting(&spec).map(|(_, applied)| applied))
    }

    pub(crate) fn down(&self) -> Result<natpunch_wg::Removed, WgError> {
        let spec = self.spec.clone();
        self.netns
            .run(move || down(&spec.name, &spec.owner, &spec.runtime_dir))
    }

    pub(crate) fn sh(&self, line: &str) -> String {
        self.netns.sh(&line.replace("NAME", &self.spec.name))
    }

    fn wg_show(&self) -> String {
        self.sh("wg show NAME")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.down();
    }
}

#[test]
fn embedded_life() {
    life(BackendChoice::Userspace, BackendKind::Userspace);
}

/// Run by `make test-vm`, whose kernel has WireGuard.
#[test]
#[ignore = "needs kernel WireGuard: `make test-vm` runs it"]
fn kernel_life() {
    life(BackendChoice::Auto, BackendKind::Kernel);
}

/// From nothing through plan, creation, adoption and changes to nothing again.
fn life(choice: BackendChoice, kind: BackendKind) {
    let mut host = Host::new(choice);
    let plan = host.plan().unwrap();
    assert_eq!(
        plan.changes[0],
        Change::CreateInterface {
            name: host.spec.name.clone(),
            backend: kind,
            mtu: 1420
        }
    );
    assert_eq!(
        host.netns.sh("ip -o link").lines().count(),
        1,
        "a plan writes nothing"
    );

    let made = host.open().unwrap();
    assert_eq!(made.plan, plan);
    assert!(host.plan().unwrap().is_empty(), "{}", host.plan().unwrap());
    let link = host.sh("ip -d link show NAME");
    assert!(
        link.contains("mtu 1420") && link.contains("alias natpunch:test") && link.contains(",UP"),
        "{link}"
    );
    assert!(
        host.sh("ip route show 10.6.0.0/16")
            .contains("proto 78 scope link")
    );
    assert!(host.wg_show().contains("listening port: 51820"));

    // The agent is gone, the next one finds everything as it should be.
    let index = host.sh("ip -o link show NAME");
    assert!(host.open().unwrap().plan.is_empty());
    assert_eq!(host.sh("ip -o link show NAME"), index);

    // Least changes.
    host.spec.mtu = 1380;
    host.spec.addresses[0] = "10.5.0.7/24".parse().unwrap();
    host.spec.routes[1] = "10.8.0.0/16".parse().unwrap();
    let words: Vec<_> = host
        .plan()
        .unwrap()
        .changes
        .iter()
        .map(ToString::to_string)
        .collect();
    let expected = [
        "~ MTU 1420 -> 1380",
        "- address 10.5.0.1/24",
        "+ address 10.5.0.7/24",
        "- route 10.6.0.0/16",
        "+ route 10.8.0.0/16",
    ];
    assert_eq!(words, expected);
    assert_eq!(host.open().unwrap().plan.changes.len(), expected.len());
    assert!(host.plan().unwrap().is_empty());

    // What others add stays theirs.
    host.sh(
        "wg set NAME peer 1ThqqthpK7R/RARuDqz1wZ69GkybkBqkNDYjOU1u6Gg= allowed-ips 10.99.0.0/24",
    );
    host.sh("ip address add 10.98.0.1/24 dev NAME");
    host.sh("ip route add 10.97.0.0/24 dev NAME");
    assert!(host.plan().unwrap().is_empty(), "{}", host.plan().unwrap());
    host.spec.peers.clear();
    assert_eq!(host.open().unwrap().peers_touched, 1);
    assert!(host.wg_show().contains("1ThqqthpK7R"));
    assert!(host.sh("ip route show 10.97.0.0/24").contains("10.97"));

    let removed = host.down().unwrap();
    assert!(removed.interface);
    until("the link is gone", || {
        host.netns.sh("ip -o link").lines().count() == 1
    });
    let left: Vec<_> = std::fs::read_dir(&host.spec.runtime_dir)
        .unwrap()
        .map(|f| f.unwrap().file_name())
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    assert!(
        !Path::new("/var/run/wireguard")
            .join(format!("{}.sock", host.spec.name))
            .exists()
    );
    assert_eq!(
        host.down().unwrap(),
        natpunch_wg::Removed::default(),
        "down twice is fine"
    );
}

#[test]
fn an_interface_that_is_not_ours_is_refused_and_stays() {
    let host = Host::new(BackendChoice::Auto);
    host.sh("ip tuntap add dev NAME mode tun");
    for error in [
        host.plan().unwrap_err(),
        host.open().unwrap_err(),
        host.down().unwrap_err(),
    ] {
        assert!(matches!(error, WgError::Foreign { .. }), "{error}");
        assert!(error.to_string().contains("not ours"));
    }
    let mut other = host.spec.clone();
    other.owner = "other".into();
    host.sh("ip link set dev NAME alias natpunch:other");
    assert!(matches!(host.open().unwrap_err(), WgError::Foreign { .. }));
    host.sh("ip link show NAME");
}

#[test]
fn a_device_process_that_was_killed_is_started_anew() {
    let host = Host::new(BackendChoice::Userspace);
    host.open().unwrap();
    let pid = device_pid(&host.spec.name).expect("a device process");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    until("the link is gone", || {
        host.netns.sh("ip -o link").lines().count() == 1
    });
    assert!(!host.open().unwrap().plan.is_empty());
    assert!(host.plan().unwrap().is_empty());
    assert_ne!(device_pid(&host.spec.name), Some(pid));
}

#[test]
fn a_device_whose_link_was_removed_ends_and_is_made_anew() {
    let host = Host::new(BackendChoice::Userspace);
    host.open().unwrap();
    host.sh("ip link del NAME");
    until("the device process ended", || {
        device_pid(&host.spec.name).is_none()
    });
    host.open().unwrap();
    assert!(host.plan().unwrap().is_empty());
}

#[test]
fn a_device_process_has_a_session_of_its_own_and_there_is_one() {
    let host = Host::new(BackendChoice::Userspace);
    host.open().unwrap();
    let pid = device_pid(&host.spec.name).unwrap();
    let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).unwrap();
    assert_eq!(session.as_raw(), pid);
    let socket = host
        .spec
        .runtime_dir
        .join(format!("{}.device.sock", host.spec.name));
    let (program, name) = (host.spec.device_program.clone(), host.spec.name.clone());
    let second = host.netns.run(move || {
        Command::new(program)
            .args(["device", &name, "--socket"])
            .arg(socket)
            .output()
            .unwrap()
    });
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("already runs this device"));
    assert!(host.plan().unwrap().is_empty());
}

#[test]
fn a_port_in_use_is_named() {
    let mut host = Host::new(BackendChoice::Userspace);
    let taken = host
        .netns
        .run(|| std::net::UdpSocket::bind("0.0.0.0:51999").unwrap());
    host.spec.listen_port = 51_999;
    assert!(matches!(
        host.open().unwrap_err(),
        WgError::PortInUse(51_999)
    ));
    assert!(
        !host.sh("ip -br link").contains(&host.spec.name),
        "half an interface is left"
    );
    assert_eq!(natpunch_wg::managed(&host.spec.runtime_dir), []);
    host.spec.listen_port = 51_998;
    host.open().unwrap();
    // A device that runs keeps the port that it has.
    host.spec.listen_port = 51_999;
    assert!(matches!(
        host.open().unwrap_err(),
        WgError::PortInUse(51_999)
    ));
    assert!(host.wg_show().contains("listening port: 51998"));
    drop(taken);
    host.open().unwrap();
    assert!(host.wg_show().contains("listening port: 51999"));
}

#[test]
fn a_port_is_free_again_when_down_returns() {
    let mut host = Host::new(BackendChoice::Userspace);
    host.spec.listen_port = 51_997;
    for _ in 0..10 {
        host.open().unwrap();
        host.down().unwrap();
        host.netns
            .run(|| std::net::UdpSocket::bind("[::]:51997").map(drop))
            .unwrap();
    }
}

#[test]
fn a_route_of_somebody_else_is_never_replaced_and_wins() {
    let host = Host::new(BackendChoice::Userspace);
    host.sh("ip route add 10.6.0.0/16 dev lo");
    host.open().unwrap();
    assert!(host.plan().unwrap().is_empty());
    assert!(
        host.sh("ip route get 10.6.7.8").contains("dev lo"),
        "the LAN stays the LAN"
    );
    host.sh("ip route del 10.6.0.0/16 dev lo");
    assert!(
        host.sh("ip route get 10.6.7.8").contains(&host.spec.name),
        "and elsewhere it is behind the peer"
    );
}

#[test]
fn a_route_of_the_very_same_metric_is_named() {
    let host = Host::new(BackendChoice::Userspace);
    host.sh("ip route add 10.6.0.0/16 dev lo metric 30000");
    assert!(matches!(host.open().unwrap_err(), WgError::RouteInUse(_)));
    assert!(host.sh("ip route show 10.6.0.0/16").contains("dev lo"));
}

#[test]
fn what_can_never_work_is_refused_before_anything_is_touched() {
    type Break = fn(&mut InterfaceSpec);
    let breaks: [(&str, Break); 5] = [
        ("default route", |s| {
            s.routes.push("0.0.0.0/0".parse().unwrap())
        }),
        ("MTU", |s| s.mtu = 100),
        ("embedded", |s| s.mtu = 9_000),
        ("interface name", |s| s.name = "../etc".into()),
        ("twice", |s| s.peers.push(s.peers[0].clone())),
    ];
    for (needle, spoil) in breaks {
        let mut host = Host::new(BackendChoice::Userspace);
        let name = host.spec.name.clone();
        spoil(&mut host.spec);
        for error in [host.plan().unwrap_err(), host.open().unwrap_err()] {
            assert!(error.to_string().contains(needle), "{error}");
        }
        assert_eq!(host.netns.sh("ip -o link").lines().count(), 1);
        host.spec.name = name;
    }
}

/// Run by `make test-vm`, whose kernel has WireGuard.
#[test]
#[ignore = "needs kernel WireGuard: `make test-vm` runs it"]
fn a_kernel_interface_is_taken_over_only_with_the_word_and_the_key() {
    let mut host = Host::new(BackendChoice::Auto);
    let stranger = "1ThqqthpK7R/RARuDqz1wZ69GkybkBqkNDYjOU1u6Gg=";
    host.sh("ip link add NAME type wireguard");
    host.sh(&format!(
        "wg set NAME listen-port 51820 peer {stranger} allowed-ips 10.99.0.0/24"
    ));
    host.sh("ip link set NAME up");
    host.sh("ip route add 10.99.0.0/24 dev NAME");
    assert!(matches!(host.plan().unwrap_err(), WgError::Foreign { .. }));
    host.spec.adopt = true;
    for error in [host.plan().unwrap_err(), host.open().unwrap_err()] {
        assert!(matches!(error, WgError::OtherKey { .. }), "{error}");
    }
    let key = host.spec.runtime_dir.join("key");
    std::fs::write(&key, host.spec.private_key.expose_base64().as_bytes()).unwrap();
    host.sh(&format!("wg set NAME private-key {}", key.display()));
    std::fs::remove_file(&key).unwrap();
    let plan = host.plan().unwrap();
    let Change::Adopt { peers, routes, .. } = &plan.changes[0] else {
        panic!("{plan}")
    };
    assert_eq!(
        (peers.len(), routes.as_slice()),
        (1, ["10.99.0.0/24".parse().unwrap()].as_slice())
    );
    assert!(!plan.to_string().contains("- "), "nothing goes: {plan}");
    assert_eq!(host.open().unwrap().plan, plan);
    host.spec.adopt = false;
    assert!(host.plan().unwrap().is_empty(), "{}", host.plan().unwrap());
    host.spec.peers.clear();
    host.open().unwrap();
    assert!(
        host.wg_show().contains(stranger),
        "the peer of somebody else stays"
    );
    let mut other = host.spec.clone();
    (other.owner, other.adopt) = ("other".into(), true);
    let plan = host.netns.run(move || Interface::plan(&other));
    assert!(
        matches!(plan.unwrap_err(), WgError::Foreign { .. }),
        "another mesh's interface is not to be had"
    );
    assert!(host.down().unwrap().interface);
}

#[test]
fn external_needs_a_device_and_leaves_it_as_it_was() {
    let mut host = Host::new(BackendChoice::External);
    let error = host.open().unwrap_err();
    assert!(matches!(error, WgError::NoExternalDevice { .. }), "{error}");
    let mut device = start_wireguard_go(&host.netns, &host.spec.name);
    let socket = Path::new("/var/run/wireguard").join(format!("{}.sock", host.spec.name));
    host.sh(
        "wg set NAME peer 1ThqqthpK7R/RARuDqz1wZ69GkybkBqkNDYjOU1u6Gg= allowed-ips 10.99.0.0/24",
    );
    host.open().unwrap();
    assert!(host.plan().unwrap().is_empty(), "{}", host.plan().unwrap());
    host.spec.peers.clear();
    assert_eq!(host.open().unwrap().peers_touched, 1);
    let removed = host.down().unwrap();
    assert_eq!(
        (removed.interface, removed.addresses, removed.routes),
        (false, 2, 1)
    );
    assert!(
        host.wg_show().contains("1ThqqthpK7R"),
        "the peer of somebody else stays"
    );
    assert!(
        host.sh("ip -o address show NAME")
            .lines()
            .all(|line| !line.contains("10.5.0.1"))
    );
    device.kill().unwrap();
    device.wait().unwrap();
    let _ = std::fs::remove_file(socket);
}
