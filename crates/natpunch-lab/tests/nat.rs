//! The lab's NATs behave as they are named (RFC 4787), measured with plain sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use natpunch_lab::{Host, Lab, Nat, Ping, lab_test};

/// A port that no other part of the lab uses.
const PORT: u16 = 51820;

/// How long a packet may take here; also how long to wait for one that must not come.
const PATIENCE: Duration = Duration::from_millis(300);

fn bind(host: &Host, address: IpAddr, port: u16) -> UdpSocket {
    let socket = host
        .run(move || UdpSocket::bind((address, port)))
        .unwrap()
        .unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn ipv4(host: &Host) -> IpAddr {
    IpAddr::V4(host.ipv4().unwrap())
}

/// Sends one datagram and gives the source that the other side saw; `None` if it did not arrive.
fn send(from: &UdpSocket, to: SocketAddr, at: &UdpSocket) -> Option<SocketAddr> {
    from.send_to(b"lab", to).unwrap();
    match at.recv_from(&mut [0; 8]) {
        Ok((_, source)) => Some(source),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(error) => panic!("{error}"),
    }
}

struct Bench {
    _lab: Lab,
    _hosts: Vec<Host>,
    router: natpunch_lab::Router,
    /// A socket behind the NAT.
    inside: UdpSocket,
    /// Two hosts with two ports each.
    servers: [[UdpSocket; 2]; 2],
}

fn bench(mut lab: Lab, nat: Nat) -> Bench {
    let router = lab.router("r", nat).unwrap();
    let host = lab.host_behind(&router, "h").unwrap();
    let inside = bind(&host, ipv4(&host), PORT);
    let mut hosts = vec![host];
    let servers = ["s1", "s2"].map(|name| {
        let server = lab.public_host(name).unwrap();
        let sockets = [7001, 7002].map(|port| bind(&server, ipv4(&server), port));
        hosts.push(server);
        sockets
    });
    Bench {
        _lab: lab,
        _hosts: hosts,
        router,
        inside,
        servers,
    }
}

impl Bench {
    /// The source addresses that the four server sockets see.
    fn mappings(&self) -> Vec<SocketAddr> {
        self.servers
            .iter()
            .flatten()
            .map(|server| {
                send(&self.inside, server.local_addr().unwrap(), server).expect("a packet gets out")
            })
            .collect()
    }

    /// After one packet out to the first server's first port: whether a packet comes in from there,
    /// from its other port, and from the other server.
    fn filtering(&self) -> [bool; 3] {
        let first = &self.servers[0][0];
        let outside = send(&self.inside, first.local_addr().unwrap(), first).unwrap();
        [first, &self.servers[0][1], &self.servers[1][0]]
            .map(|server| send(server, outside, &self.inside).is_some())
    }
}

fn kept_port(bench: &Bench) -> SocketAddr {
    SocketAddr::from((bench.router.address(), PORT))
}

lab_test!(
    a_port_preserving_nat_maps_by_endpoint_and_filters_by_address_and_port,
    20,
    |lab| {
        let bench = bench(lab, Nat::PortPreserving);
        assert_eq!(bench.filtering(), [true, false, false]);
        assert_eq!(bench.mappings(), vec![kept_port(&bench); 4]);
    }
);

lab_test!(a_full_cone_nat_lets_everybody_in, 20, |lab| {
    let bench = bench(lab, Nat::FullCone);
    assert_eq!(bench.filtering(), [true, true, true]);
    assert_eq!(bench.mappings(), vec![kept_port(&bench); 4]);
});

lab_test!(
    a_restricted_nat_lets_in_any_port_of_an_address_that_was_contacted,
    20,
    |lab| {
        let bench = bench(lab, Nat::Restricted);
        assert_eq!(bench.filtering(), [true, true, false]);
        assert_eq!(bench.mappings(), vec![kept_port(&bench); 4]);
    }
);

lab_test!(
    a_symmetric_nat_maps_each_target_to_another_port,
    20,
    |lab| {
        let bench = bench(lab, Nat::Symmetric);
        assert_eq!(bench.filtering(), [true, false, false]);
        let mut ports: Vec<u16> = bench.mappings().iter().map(SocketAddr::port).collect();
        ports.sort_unstable();
        ports.dedup();
        // Ports are random: two of four may be equal once in ten thousand runs, three never.
        assert!(ports.len() >= 3, "{ports:?}");
    }
);

lab_test!(
    a_sequential_nat_gives_each_target_the_next_port,
    20,
    |lab| {
        let bench = bench(lab, Nat::Sequential);
        let ports: Vec<u16> = bench.mappings().iter().map(SocketAddr::port).collect();
        let first = ports[0];
        assert_eq!(ports, [first, first + 1, first + 2, first + 3]);
        assert!(bench.filtering()[1..] == [false, false]);
    }
);

lab_test!(
    a_nat_with_a_port_block_stays_in_it_and_maps_by_target,
    20,
    |lab| {
        let bench = bench(lab, Nat::PortBlock);
        assert_eq!(bench.filtering(), [true, false, false]);
        let mut ports: Vec<u16> = bench.mappings().iter().map(SocketAddr::port).collect();
        ports.sort_unstable();
        assert!(ports[3] - ports[0] < natpunch_lab::BLOCK, "{ports:?}");
        ports.dedup();
        assert!(ports.len() >= 3, "{ports:?}");
    }
);

lab_test!(
    a_router_counts_connections_and_strays_and_forgets_both_mapping_and_port,
    20,
    |lab| {
        let bench = bench(lab, Nat::Symmetric);
        let expected = bench._hosts[1].ipv4().unwrap();
        bench.router.count_except(&[expected]).unwrap();
        let before = bench.mappings();
        assert!(bench.router.connections().unwrap() >= 4);
        assert_eq!(bench.router.counted().unwrap(), 2, "to the second server");
        assert_eq!(bench.mappings(), before);
        bench._lab.forget(&bench.router).unwrap();
        let after = bench.mappings();
        assert_ne!(after, before);
        assert_eq!(after[0].ip(), before[0].ip());
    }
);

/// An outsider's packet comes first, then the host sends to the outsider: the source that the
/// outsider sees.
fn early_packet(lab: &mut Lab, router: &natpunch_lab::Router) -> SocketAddr {
    let host = lab.host_behind(router, "h").unwrap();
    let outsider = lab.public_host("o").unwrap();
    let inside = bind(&host, ipv4(&host), PORT);
    let outside = bind(&outsider, ipv4(&outsider), PORT);
    assert_eq!(
        send(&outside, (router.address(), PORT).into(), &inside),
        None,
        "nothing is open yet"
    );
    send(&inside, outside.local_addr().unwrap(), &outside).unwrap()
}

lab_test!(
    an_early_packet_moves_the_mapping_where_the_router_accepts_it,
    20,
    |lab| {
        let router = lab.accepting_router("r", Nat::PortPreserving).unwrap();
        assert_ne!(early_packet(&mut lab, &router).port(), PORT);
    }
);

lab_test!(
    an_early_packet_changes_nothing_where_the_router_drops_it,
    20,
    |lab| {
        let router = lab.router("r", Nat::PortPreserving).unwrap();
        assert_eq!(early_packet(&mut lab, &router).port(), PORT);
    }
);

lab_test!(
    a_packet_of_low_ttl_opens_its_own_nat_and_dies_in_the_internet,
    20,
    |lab| {
        let bench = bench(lab, Nat::PortPreserving);
        let server = &bench.servers[0][0];
        let to = server.local_addr().unwrap();
        for ttl in [2, 4, 7] {
            bench.inside.set_ttl(ttl).unwrap();
            assert_eq!(send(&bench.inside, to, server), None, "ttl {ttl}");
        }
        assert!(
            send(server, kept_port(&bench), &bench.inside).is_some(),
            "it has opened its own NAT"
        );
        // The router at home, eight in the internet, and the server.
        for (ttl, arrives) in [(9, false), (10, true)] {
            bench.inside.set_ttl(ttl).unwrap();
            assert_eq!(
                send(&bench.inside, to, server).is_some(),
                arrives,
                "ttl {ttl}"
            );
        }
    }
);

lab_test!(
    a_reboot_forgets_the_mappings_and_changes_the_address,
    20,
    |lab| {
        let mut router = lab.router("r", Nat::FullCone).unwrap();
        let host = lab.host_behind(&router, "h").unwrap();
        let server = lab.public_host("s").unwrap();
        let (inside, outside) = (
            bind(&host, ipv4(&host), PORT),
            bind(&server, ipv4(&server), 7001),
        );
        let before = send(&inside, outside.local_addr().unwrap(), &outside).unwrap();
        let old = router.address();
        lab.reboot(&mut router).unwrap();
        assert_ne!(router.address(), old);
        assert_eq!(
            send(&outside, before, &inside),
            None,
            "the old address is nobody's"
        );
        assert_eq!(
            send(&outside, (router.address(), PORT).into(), &inside),
            None,
            "no mapping is left"
        );
        let after = send(&inside, outside.local_addr().unwrap(), &outside).unwrap();
        assert_eq!(after, SocketAddr::from((router.address(), PORT)));
    }
);

lab_test!(
    a_host_that_moves_gets_the_addresses_of_the_other_network,
    20,
    |lab| {
        let home = lab.router("home", Nat::PortPreserving).unwrap();
        let office = lab.router("office", Nat::PortPreserving).unwrap();
        let server = lab.public_host("s").unwrap();
        let mut host = lab.host_behind(&home, "h").unwrap();
        let outside = bind(&server, ipv4(&server), 7001);
        let unbound = bind(&host, "0.0.0.0".parse().unwrap(), PORT);
        let target = outside.local_addr().unwrap();
        assert_eq!(
            send(&unbound, target, &outside).unwrap().ip(),
            IpAddr::V4(home.address())
        );
        lab.move_behind(&mut host, &office).unwrap();
        assert_eq!(
            send(&unbound, target, &outside).unwrap().ip(),
            IpAddr::V4(office.address())
        );
    }
);

lab_test!(
    a_stateful_firewall_keeps_ipv6_strangers_out_until_the_host_has_sent,
    20,
    |lab| {
        let router = lab.dual_router("r", Nat::PortPreserving).unwrap();
        let host = lab.host_behind(&router, "h").unwrap();
        let server = lab.public_host("s").unwrap();
        let inside = bind(&host, IpAddr::V6(host.ipv6().unwrap()), PORT);
        let outside = bind(&server, IpAddr::V6(server.ipv6().unwrap()), 7001);
        assert_eq!(send(&outside, inside.local_addr().unwrap(), &inside), None);
        assert_eq!(
            send(&inside, outside.local_addr().unwrap(), &outside),
            Some(inside.local_addr().unwrap())
        );
        assert_eq!(
            send(&outside, inside.local_addr().unwrap(), &inside),
            Some(outside.local_addr().unwrap())
        );
    }
);

lab_test!(
    hosts_behind_one_router_reach_each_other_and_a_cut_router_reaches_nothing,
    20,
    |lab| {
        let router = lab.router("r", Nat::PortPreserving).unwrap();
        let a = lab.host_behind(&router, "a").unwrap();
        let b = lab.host_behind(&router, "b").unwrap();
        let server = lab.public_host("s").unwrap();
        let (at_a, at_b) = (bind(&a, ipv4(&a), PORT), bind(&b, ipv4(&b), PORT));
        assert_eq!(
            send(&at_a, at_b.local_addr().unwrap(), &at_b),
            Some(at_a.local_addr().unwrap())
        );
        let outside = bind(&server, ipv4(&server), 7001);
        router.set_connected(false).unwrap();
        assert_eq!(send(&at_a, outside.local_addr().unwrap(), &outside), None);
        router.set_connected(true).unwrap();
        assert!(send(&at_a, outside.local_addr().unwrap(), &outside).is_some());
    }
);

lab_test!(a_ping_is_counted, 20, |lab| {
    let router = lab.router("r", Nat::PortPreserving).unwrap();
    let host = lab.host_behind(&router, "h").unwrap();
    let server = lab.public_host("s").unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let ping = Ping::start(&host, ipv4(&server), Duration::from_millis(10)).unwrap();
    assert!(ping.first(deadline).is_some());
    assert!(ping.wait_for(20, deadline));
    router.set_connected(false).unwrap();
    assert!(!ping.wait_for(5, Instant::now() + PATIENCE));
    router.set_connected(true).unwrap();
    assert!(ping.wait_for(5, deadline));
    let pings = ping.stop();
    assert!(pings.lost() >= 10, "{}", pings.lost());
    assert!(pings.longest_gap() >= PATIENCE / 2);
});
