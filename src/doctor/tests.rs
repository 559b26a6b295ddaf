//! The words for each finding. `BLESS=1 cargo test -p natpunch --lib doctor` writes the snapshot.

use std::fmt::Write as _;
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use natpunch_core::Filtering;
use natpunch_core::filtering::Found;

use crate::agent::clash::Clash;

use super::network::Asked;
use super::*;

const ROOT: host::Privileges = host::Privileges {
    is_root: true,
    net_admin: true,
    net_raw: true,
};
const USER: host::Privileges = host::Privileges {
    is_root: false,
    net_admin: false,
    net_raw: false,
};

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What servers answered to port 40000.
fn asked(seen: &[(&str, &str)]) -> Asked {
    let seen = seen.iter().map(|(server, outside)| {
        let rtt = Duration::from_micros(12_300);
        (at(server), (at(outside), rtt))
    });
    Asked {
        port: 40_000,
        seen: seen.collect(),
        hairpin: None,
    }
}

fn is_own(ip: IpAddr) -> bool {
    ip == at("203.0.113.7:1").ip()
}

fn nat(seen: &[(&str, &str)]) -> Check {
    network::nat("NAT of IPv4", &asked(seen), is_own).unwrap()
}

fn filtering(found: Option<Filtering>) -> Check {
    let found = found.map(|filtering| Found {
        filtering,
        poison_prone: None,
    });
    filter::filtering("filter of IPv4", found)
}

fn poison(is_prone: bool) -> Check {
    let found = Found {
        filtering: Filtering::AddressAndPortDependent,
        poison_prone: Some(is_prone),
    };
    filter::poison(Some(found)).unwrap()
}

fn hairpin(works: bool) -> Check {
    let asked = Asked {
        hairpin: Some(works),
        ..asked(&[("203.0.113.9:51900", "203.0.113.10:40000")])
    };
    network::hairpin(&asked, is_own).unwrap()
}

fn tun(kernel: bool, tun: Option<Result<(), String>>) -> Vec<Check> {
    host::backends(&host::Backends { kernel, tun })
}

/// Each finding, by what it is found from.
fn findings() -> Vec<(&'static str, Check)> {
    use Filtering::{AddressAndPortDependent, AddressDependent, EndpointIndependent, NotByPort};
    let lacking = host::Privileges {
        net_raw: false,
        ..ROOT
    };
    let clash = Clash {
        network: "192.168.1.0/24".parse().unwrap(),
        lan: "192.168.1.0/24".parse().unwrap(),
        interface: "eth0".to_owned(),
        vital: Vec::new(),
    };
    let clock = |is_behind, is_kept| host::clock(&host::Clock { is_behind, is_kept });
    let in_use = || Err(Error::from(ErrorKind::AddrInUse));
    let missing = || Some(Err("/dev/net/tun: No such file or directory".to_owned()));
    let mut found = vec![
        ("root", host::privileges(&ROOT)),
        (
            "a container without CAP_NET_RAW",
            host::privileges(&lacking),
        ),
        ("a user", host::privileges(&USER)),
        ("nft works", host::nftables(Ok(()), &ROOT)),
        (
            "no nft",
            host::nftables(Err("the program `nft` is not installed".to_owned()), &ROOT),
        ),
        (
            "nft, as a user",
            host::nftables(Err("not permitted".to_owned()), &USER),
        ),
        ("a clock that is kept", clock(false, true)),
        ("a clock that nobody keeps", clock(false, false)),
        ("a clock of long ago", clock(true, true)),
        (
            "the port is free",
            host::port(51820, "wg-home", Ok(()), false),
        ),
        (
            "the port is ours",
            host::port(51820, "wg-home", in_use(), true),
        ),
        (
            "the port is another's",
            host::port(51820, "wg-home", in_use(), false),
        ),
        (
            "the interface listens elsewhere",
            host::port(51820, "wg-home", Ok(()), true),
        ),
        ("no clash", host::clashes(&[])),
        ("a LAN with the mesh's network", host::clashes(&[clash])),
        (
            "a key that may not be read",
            host::no_node("permission denied"),
        ),
        (
            "a server answers in both families",
            network::reach(
                "server rv (rv.example:51900)",
                &[
                    (at("203.0.113.9:51900"), Some(Duration::from_micros(12_300))),
                    (at("[2001:db8::9]:51900"), Some(Duration::from_millis(20))),
                ],
                true,
            ),
        ),
        (
            "a server is silent",
            network::reach(
                "server rv (rv.example:51900)",
                &[(at("203.0.113.9:51900"), None)],
                true,
            ),
        ),
        (
            "a server of IPv6, and a host without",
            network::reach(
                "server rv (rv.example:51900)",
                &[(at("[2001:db8::9]:51900"), None)],
                false,
            ),
        ),
        ("no NAT", nat(&[("203.0.113.9:51900", "203.0.113.7:40000")])),
        (
            "one answer",
            nat(&[("203.0.113.9:51900", "203.0.113.10:40000")]),
        ),
        (
            "easy, port kept",
            nat(&[
                ("203.0.113.9:51900", "203.0.113.10:40000"),
                ("203.0.113.9:51901", "203.0.113.10:40000"),
            ]),
        ),
        (
            "easy, another port",
            nat(&[
                ("203.0.113.9:51900", "203.0.113.10:1234"),
                ("203.0.113.9:51901", "203.0.113.10:1234"),
            ]),
        ),
        (
            "hard",
            nat(&[
                ("203.0.113.9:51900", "203.0.113.10:1234"),
                ("203.0.113.9:51901", "203.0.113.10:4321"),
            ]),
        ),
        (
            "several addresses",
            nat(&[
                ("203.0.113.9:51900", "203.0.113.10:1234"),
                ("203.0.113.9:51901", "203.0.113.11:1234"),
            ]),
        ),
        ("full cone", filtering(Some(EndpointIndependent))),
        ("address-restricted", filtering(Some(AddressDependent))),
        ("of one address", filtering(Some(NotByPort))),
        ("port-restricted", filtering(Some(AddressAndPortDependent))),
        ("no second port", filtering(None)),
        ("a router that drops", poison(false)),
        ("a router that accepts on its outside", poison(true)),
        ("mappings that live long", filter::lifetime(Some(110))),
        ("mappings that do not", filter::lifetime(Some(28))),
        ("no agent", filter::lifetime(None)),
        ("hairpin", hairpin(true)),
        ("no hairpin", hairpin(false)),
        (
            "IPv6 answers",
            network::family_v6(
                true,
                &asked(&[("[2001:db8::9]:51900", "[2001:db8::1]:40000")]),
            ),
        ),
        ("IPv6 was not asked", network::family_v6(true, &asked(&[]))),
        ("no IPv6", network::family_v6(false, &asked(&[]))),
        ("MTU enough", network::mtu(1500, None)),
        ("MTU too small", network::mtu(1492, Some(1420))),
        (
            "large packets pass",
            sizes::check(at("203.0.113.9:51900"), Some(1500), None),
        ),
        (
            "large packets vanish",
            sizes::check(at("203.0.113.9:51900"), Some(1460), None),
        ),
        (
            "long requests are not answered",
            sizes::check(at("203.0.113.9:51900"), None, None),
        ),
        ("no other tunnel", network::tunnels(&[], Some("eth0"))),
        (
            "another tunnel beside",
            network::tunnels(&["tailscale0".to_owned()], Some("eth0")),
        ),
        (
            "another tunnel takes the way",
            network::tunnels(&["tun0".to_owned()], Some("tun0")),
        ),
        (
            "another tunnel, no server",
            network::tunnels(&["tun0".to_owned()], None),
        ),
    ];
    for (name, checks) in [
        ("kernel and TUN", tun(true, Some(Ok(())))),
        ("kernel alone", tun(true, missing())),
        ("TUN alone", tun(false, Some(Ok(())))),
        ("neither", tun(false, missing())),
        ("TUN, as a user", tun(true, None)),
    ] {
        found.extend(checks.into_iter().map(|check| (name, check)));
    }
    found
}

#[test]
fn each_finding_says_how_it_stands_and_a_bad_one_what_to_do() {
    let mut text = String::new();
    for (name, check) in findings() {
        let is_bad = check.verdict == Verdict::Bad;
        assert!(!is_bad || check.help.is_some(), "{name}: {}", check.text);
        let word = check.verdict.word();
        let _ = writeln!(text, "{name}\n  {word}: {}: {}", check.check, check.text);
        if let Some(help) = check.help {
            let _ = writeln!(text, "  help: {help}");
        }
        text.push('\n');
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/doctor/findings.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(file, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(file).unwrap(), text);
}

#[test]
fn capabilities_are_read_from_what_the_kernel_says_of_the_process() {
    let all = host::Privileges::of("Name:\tx\nCapEff:\t000001ffffffffff\n", true);
    assert_eq!(all, ROOT);
    let none = host::Privileges::of("CapEff:\t0000000000000000\n", false);
    assert_eq!(none, USER);
    let admin = host::Privileges::of("CapEff:\t0000000000001000\n", false);
    assert!(admin.net_admin && !admin.net_raw);
    assert_eq!(host::Privileges::of("", false), USER);
}
