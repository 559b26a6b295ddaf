//! A default route through the interface: its table, its rules, and that nothing else is touched.

use natpunch_wg::{
    BackendChoice, DefaultRoute, Effect, Interface, InterfaceSpec, RouteMtu, WgError,
};

use crate::common::{device_pid, until};
use crate::interface::Host;

const TABLE: u32 = 0x4e50_ca6c;

/// A host in a LAN with a default route, and an interface that takes it over.
fn host() -> Host {
    let mut host = Host::new(BackendChoice::Userspace);
    for line in [
        "ip link add lan type veth peer name other",
        "ip link set other up",
        "ip link set lan up",
        "ip address add 192.168.3.7/24 dev lan",
        "ip address add fd33::7/64 dev lan nodad",
        "ip route add default via 192.168.3.1",
        "ip route add default via fd33::1",
    ] {
        host.netns.sh(line);
    }
    host.spec.fwmark = TABLE;
    host.spec.default_route = Some(DefaultRoute {
        table: TABLE,
        ipv4: true,
        ipv6: true,
        except: vec!["198.51.100.0/24".parse().unwrap()],
    });
    host
}

/// The device that packets to `to` leave by.
fn way(host: &Host, to: &str) -> String {
    let text = host.sh(&format!("ip -o route get {to}"));
    text.split_once(" dev ")
        .map(|(_, rest)| rest.split(' ').next().unwrap().to_owned())
        .unwrap_or(text)
}

fn rules(host: &Host) -> String {
    host.sh("ip rule show") + &host.sh("ip -6 rule show")
}

#[test]
fn everything_goes_through_the_tunnel_but_the_lan_and_wireguards_own() {
    let host = host();
    let before = rules(&host);
    let made = host.open().unwrap();
    assert!(host.plan().unwrap().is_empty(), "{}", host.plan().unwrap());
    assert!(host.open().unwrap().plan.is_empty(), "again is nothing");
    let name = host.spec.name.clone();
    for (to, by) in [
        ("203.0.113.9", name.as_str()),
        ("2001:db8::9", &name),
        ("10.6.1.1", &name),
        ("192.168.3.9", "lan"),
        ("fd33::9", "lan"),
        ("198.51.100.4", "lan"),
        (&format!("203.0.113.9 mark {TABLE}"), "lan"),
        (&format!("2001:db8::9 mark {TABLE}"), "lan"),
        ("203.0.113.9 ipproto udp sport 51820", "lan"),
    ] {
        assert_eq!(way(&host, to), by, "{to}");
    }
    let words: Vec<_> = made.plan.changes.iter().map(ToString::to_string).collect();
    assert!(
        words.contains(&format!("+ route 0.0.0.0/0 in table {TABLE}")),
        "{words:#?}"
    );
    assert!(
        words.contains(&format!(
            "+ rule IPv4: not fwmark {TABLE:#x} lookup {TABLE}"
        )),
        "{words:#?}"
    );
    assert!(
        made.plan
            .changes
            .iter()
            .any(|change| change.effect() == Effect::Interruption),
        "traffic moves"
    );

    let removed = host.down().unwrap();
    assert!(removed.interface && removed.rules == 6, "{removed:?}");
    assert_eq!(rules(&host), before);
    assert_eq!(host.sh(&format!("ip route show table {TABLE}")), "");
    assert_eq!(way(&host, "203.0.113.9"), "lan");
}

#[test]
fn what_others_remove_is_put_back_and_what_they_add_stays() {
    let host = host();
    host.open().unwrap();
    host.sh("ip rule add priority 77 not fwmark 0x99 table 4711");
    host.sh(&format!(
        "ip rule add priority 20049 fwmark 0x7 lookup {TABLE}"
    ));
    assert!(host.plan().unwrap().is_empty(), "{}", host.plan().unwrap());
    host.sh("ip rule del priority 20051");
    host.sh("ip -6 rule del priority 20050");
    host.sh(&format!("ip route flush table {TABLE}"));
    assert_eq!(
        host.plan().unwrap().changes.len(),
        4,
        "{}",
        host.plan().unwrap()
    );
    host.open().unwrap();
    assert!(host.plan().unwrap().is_empty());
    assert_eq!(way(&host, "203.0.113.9"), host.spec.name);
    host.down().unwrap();
    let rules = rules(&host);
    assert!(
        rules.contains("4711") && rules.contains("fwmark 0x7"),
        "{rules}"
    );
    assert!(!rules.contains("proto 78"), "{rules}");
}

#[test]
fn another_port_and_mark_leave_nothing_of_the_old() {
    let mut host = host();
    host.open().unwrap();
    host.spec.listen_port = 51_823;
    host.spec.fwmark = TABLE + 1;
    host.spec.default_route.as_mut().unwrap().table = TABLE + 1;
    host.open().unwrap();
    assert!(host.plan().unwrap().is_empty(), "{}", host.plan().unwrap());
    assert_eq!(
        rules(&host).matches("proto 78").count(),
        6,
        "{}",
        rules(&host)
    );
    assert_eq!(host.sh(&format!("ip route show table {TABLE}")), "");
    assert_eq!(way(&host, "203.0.113.9"), host.spec.name);

    // And without: as it was.
    host.spec.default_route = None;
    host.spec.fwmark = 0;
    host.open().unwrap();
    assert!(host.plan().unwrap().is_empty(), "{}", host.plan().unwrap());
    assert_eq!(way(&host, "203.0.113.9"), "lan");
    assert!(!rules(&host).contains("proto 78"));
}

#[test]
fn nothing_leaks_when_the_interface_goes() {
    let mut host = host();
    host.spec.default_route.as_mut().unwrap().ipv6 = false;
    host.open().unwrap();
    let unreachable = |host: &Host, to: &str| {
        let line = format!("route get {to}");
        let output = host.netns.run(move || {
            std::process::Command::new("ip")
                .args(line.split(' '))
                .output()
                .unwrap()
        });
        !output.status.success()
    };
    assert!(
        unreachable(&host, "2001:db8::9"),
        "the address family that the tunnel has not"
    );
    assert!(!unreachable(&host, "203.0.113.9"));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(device_pid(&host.spec.name).unwrap()),
        nix::sys::signal::SIGKILL,
    )
    .unwrap();
    until("the link is gone", || {
        !host.netns.sh("ip -o link").contains(&host.spec.name)
    });
    assert!(unreachable(&host, "203.0.113.9"));
    assert_eq!(way(&host, "192.168.3.9"), "lan");
    assert_eq!(way(&host, "198.51.100.4"), "lan");
    // The next one takes it up again, or takes it down.
    host.open().unwrap();
    assert_eq!(way(&host, "203.0.113.9"), host.spec.name);
    assert_eq!(rules(&host).matches("proto 78").count(), 6);
    host.sh("ip link del NAME");
    assert_eq!(host.down().unwrap().rules, 6);
    assert_eq!(way(&host, "203.0.113.9"), "lan");
}

#[test]
fn rules_go_also_without_the_state_file() {
    let host = host();
    host.open().unwrap();
    std::fs::remove_file(
        host.spec
            .runtime_dir
            .join(format!("{}.state.json", host.spec.name)),
    )
    .unwrap();
    host.down().unwrap();
    assert_eq!(way(&host, "203.0.113.9"), "lan");
    assert_eq!(way(&host, "2001:db8::9"), "lan");
}

#[test]
fn a_default_route_needs_a_mark() {
    let mut host = host();
    host.spec.fwmark = 0;
    assert!(matches!(host.open().unwrap_err(), WgError::Invalid { .. }));
}

#[test]
fn a_limited_peer_has_routes_of_that_mtu_which_no_plan_undoes_and_others_may_not() {
    let mut host = Host::new(BackendChoice::Userspace);
    host.spec.peers[0]
        .allowed_ips
        .push("fd05::2/128".parse().unwrap());
    host.open().unwrap();
    let as_is = host.spec.clone();
    host.spec.peers[0].route_mtu = RouteMtu::AtMost(1_232);
    let limit = |spec: &InterfaceSpec| {
        let spec = spec.clone();
        host.netns
            .run(move || Interface::open(&as_is_of(&spec))?.limit_routes(&spec))
    };
    assert!(limit(&host.spec).unwrap(), "something changes");
    assert!(!limit(&host.spec).unwrap(), "again is nothing");
    let mtu = |to: &str| {
        let text = host.sh(&format!("ip -o route get {to}"));
        let words: Vec<&str> = text.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "mtu");
        at.map(|at| words[at + 1].to_owned())
    };
    for (to, expected) in [
        ("10.5.0.2", Some("1232")),
        ("10.6.1.1", Some("1232")),
        ("fd05::2", Some("1280")),
        ("10.5.0.3", None),
    ] {
        assert_eq!(mtu(to).as_deref(), expected, "{to}");
        assert_eq!(way(&host, to), host.spec.name, "{to}");
    }
    for spec in [&as_is, &host.spec] {
        let spec = spec.clone();
        let plan = host.netns.run(move || Interface::plan(&spec)).unwrap();
        assert!(plan.is_empty(), "{plan}");
    }

    host.sh("ip route del 10.6.0.0/16 metric 29999");
    let plan = host.plan().unwrap().to_string();
    assert_eq!(plan.trim(), "+ route 10.6.0.0/16 with MTU 1232");
    host.open().unwrap();
    assert_eq!(mtu("10.6.1.1").as_deref(), Some("1232"), "it is put back");

    let mut other = host.spec.clone();
    other.peers[0].route_mtu = RouteMtu::AtMost(1_328);
    assert!(limit(&other).unwrap());
    assert_eq!(mtu("10.5.0.2").as_deref(), Some("1328"));
    // A network that no peer has any more has no limit either.
    let mut fewer = as_is.clone();
    fewer.routes.pop();
    fewer.peers[0].allowed_ips.remove(1);
    let applied = host.netns.run(move || Interface::open_reporting(&fewer));
    let words: Vec<_> = applied
        .unwrap()
        .1
        .plan
        .changes
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        words.contains(&"- route 10.6.0.0/16 with MTU 1328".to_owned()),
        "{words:?}"
    );
    let mut whole = host.spec.clone();
    whole.peers[0].route_mtu = RouteMtu::Interface;
    assert!(limit(&whole).unwrap());
    assert_eq!(mtu("10.5.0.2"), None);
    assert!(host.down().unwrap().interface);
}

/// The same interface, of whose paths nothing is known.
fn as_is_of(spec: &InterfaceSpec) -> InterfaceSpec {
    let mut spec = spec.clone();
    for peer in &mut spec.peers {
        peer.route_mtu = RouteMtu::AsIs;
    }
    spec
}
