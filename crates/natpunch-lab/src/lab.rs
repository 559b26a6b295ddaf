//! The internet in the middle, and what hangs on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::host::{Host, Network, Process};
use crate::namespace::Namespace;
use crate::nat::{Inside, Kind, Nat, WanInput};
use crate::router::Router;
use crate::{Error, Result, nat64};

/// Networks of four addresses in 203.0.113.0/24.
const MAX_UPLINKS: u8 = 63;
const NET: [u8; 3] = [203, 0, 113];
/// The same between a carrier and the homes behind it (RFC 6598).
const CARRIER_NET: [u8; 3] = [100, 64, 0];
/// The same for routers that want an address which looks like one of the internet: it is, and no
/// packet leaves the lab.
const GLOBAL_NET: [u8; 3] = [198, 51, 99];
/// Host numbers in 192.168.1.0/24 start here, and are used once in the whole lab.
const FIRST_HOST: u8 = 10;
const MAX_HOSTS: u8 = 200;

/// Routers between any two uplinks. Real paths between homes have about as many or more; it matters
/// for packets that are meant to die on the way. There is one router in truth, which drops what
/// would not have survived so many.
const INTERNET_HOPS: u8 = 8;

/// How long a router may take to forget.
const FORGETTING: Duration = Duration::from_millis(500);

/// A link into the internet, or into a carrier's network: a network of its own, so that traffic
/// between two of them is routed.
#[derive(Debug, Clone)]
pub(crate) struct Uplink {
    number: u8,
    /// The first 24 bits of its network of IPv4.
    net: [u8; 3],
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
}

impl Uplink {
    fn new(number: u8, net: [u8; 3]) -> Self {
        let [a, b, c] = net;
        Uplink {
            number,
            net,
            ipv4: Ipv4Addr::new(a, b, c, number * 4 + 2),
            ipv6: Ipv6Addr::new(0x2001, 0xdb8, number.into(), 0, 0, 0, 0, 2),
        }
    }

    /// The other end.
    fn gateways(&self) -> (Ipv4Addr, Ipv6Addr) {
        let (number, [a, b, c]) = (self.number, self.net);
        (
            Ipv4Addr::new(a, b, c, number * 4 + 1),
            Ipv6Addr::new(0x2001, 0xdb8, number.into(), 0, 0, 0, 0, 1),
        )
    }

    /// The network behind it, if a router is there (64 bits).
    pub(crate) fn lan_prefix(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, self.number.into(), 1, 0, 0, 0, 0)
    }

    /// The link's name at its other end.
    fn link(&self) -> String {
        format!("to{}", self.number)
    }
}

/// A lab. One sandbox holds one; it must be made in a [`sandbox`](crate::sandbox).
#[derive(Debug)]
pub struct Lab {
    internet: Namespace,
    directory: PathBuf,
    uplinks: u8,
    hosts: u8,
}

impl Lab {
    /// An internet with nothing on it, eight routers wide.
    pub fn new() -> Result<Self> {
        let directory = PathBuf::from(crate::sandbox::SHARED_DIRECTORY);
        let internet = Namespace::new("internet", true)?;
        internet.nft(format!(
            "table inet natpunch_hops {{
                chain forward {{ type filter hook forward priority filter; policy accept;
                    ip ttl < {INTERNET_HOPS} drop
                    ip6 hoplimit < {INTERNET_HOPS} drop
                }}
            }}\n"
        ))?;
        Ok(Lab {
            internet,
            directory,
            uplinks: 0,
            hosts: 0,
        })
    }

    /// A directory that all hosts of the lab see, for configuration files. It vanishes with the
    /// lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A host with addresses of its own on the internet, IPv4 and IPv6, and no firewall.
    pub fn public_host(&mut self, name: &str) -> Result<Host> {
        let mut host = Host::new(name, Namespace::new(name, false)?);
        self.attach_public(&mut host)?;
        Ok(host)
    }

    /// A router with a NAT. It has no IPv6: [`Lab::dual_router`] has.
    pub fn router(&mut self, name: &str, nat: Nat) -> Result<Router> {
        self.build_router(name, Kind::of(nat), false)
    }

    /// A carrier's NAT: homes are behind it ([`Lab::home_behind`]) and share its address. With
    /// `hairpins` it passes what one home sends to the address and port of another one; without, it
    /// drops that. In neither case do the homes reach each other past it.
    pub fn carrier(&mut self, name: &str, nat: Nat, hairpins: bool) -> Result<Router> {
        let kind = Kind {
            inside: Inside::Homes { hairpins },
            ..Kind::of(nat)
        };
        self.build_router(name, kind, false)
    }

    /// A home's router behind a carrier's: two NATs, one behind the other.
    pub fn home_behind(&mut self, carrier: &Router, name: &str, nat: Nat) -> Result<Router> {
        let uplink = self.next_uplink(CARRIER_NET)?;
        let namespace = Namespace::new(name, true)?;
        connect(&carrier.namespace, &uplink, &namespace, "wan")?;
        let router = fill(Router {
            namespace,
            uplink,
            has_ipv6: false,
            kind: Kind::of(nat),
            nat64: None,
        })?;
        configure_uplink(
            &carrier.namespace,
            &router.uplink,
            &router.namespace,
            "wan",
            false,
        )?;
        Ok(router)
    }

    /// A router whose address is not one for documentation: `miniupnpd` maps none of those.
    pub fn global_router(&mut self, name: &str, nat: Nat) -> Result<Router> {
        let uplink = self.next_uplink(GLOBAL_NET)?;
        self.build_router_at(uplink, name, Kind::of(nat), false)
    }

    /// A router that lets unexpected packets reach itself.
    pub fn accepting_router(&mut self, name: &str, nat: Nat) -> Result<Router> {
        let kind = Kind {
            input: WanInput::Accept,
            ..Kind::of(nat)
        };
        self.build_router(name, kind, false)
    }

    /// Puts all routers on one wire: no hop is between them, so a packet whose TTL would end there
    /// arrives.
    pub fn join_wires(&self) -> Result<()> {
        self.internet.nft(
            "table ip wire {
                chain in { type filter hook prerouting priority -300; ip ttl 1 ip ttl set 2\n }
            }",
        )
    }

    /// A router with a NAT for IPv4, and global IPv6 addresses for its hosts behind a stateful
    /// firewall.
    pub fn dual_router(&mut self, name: &str, nat: Nat) -> Result<Router> {
        self.build_router(name, Kind::of(nat), true)
    }

    /// A router whose hosts have IPv6 alone ([`Lab::ipv6_host_behind`]), and reach IPv4 by a NAT64
    /// (`tayga`, and the NAT of a port-restricted home behind it).
    pub fn nat64_router(&mut self, name: &str) -> Result<Router> {
        let mut router = self.build_router(name, Kind::of(Nat::PortPreserving), true)?;
        let directory = self.directory.join(name);
        let failed = |source| Error::System {
            what: "cannot write the configuration of tayga",
            source,
        };
        std::fs::create_dir_all(&directory).map_err(failed)?;
        let file = directory.join("tayga.conf");
        std::fs::write(&file, nat64::configuration(&directory)).map_err(failed)?;
        nat64::make_link(&router.namespace, &file)?;
        router.nat64 = Some(Process::start(&router.namespace, nat64::tayga(&file))?);
        Ok(router)
    }

    /// A host behind a [NAT64](Lab::nat64_router), without IPv4. Its resolver knows the prefix.
    pub fn ipv6_host_behind(&mut self, router: &Router, name: &str) -> Result<Host> {
        let mut host = self.host_behind(router, name)?;
        let ipv4 = host.network.addresses.iter().filter(|ip| ip.is_ipv4());
        let lines: String = ipv4
            .map(|ip| format!("address del {ip}/24 dev eth0\n"))
            .collect();
        host.ip(lines)?;
        host.network.addresses.retain(IpAddr::is_ipv6);
        if router.nat64.is_some() {
            let file = self.directory.join(format!("{name}.hosts"));
            nat64::write_hosts(&host.namespace, &file)?;
        }
        Ok(host)
    }

    /// A host behind a router.
    pub fn host_behind(&mut self, router: &Router, name: &str) -> Result<Host> {
        let mut host = Host::new(name, Namespace::new(name, false)?);
        self.attach_behind(&mut host, router)?;
        Ok(host)
    }

    /// Moves a host to the network of another router: its link goes away, and a new one with new
    /// addresses comes.
    pub fn move_behind(&mut self, host: &mut Host, router: &Router) -> Result<()> {
        host.detach()?;
        self.attach_behind(host, router)
    }

    /// Reboots a router of the internet, not one behind a carrier: all its mappings are gone, and
    /// the provider gives it another address.
    pub fn reboot(&mut self, router: &mut Router) -> Result<()> {
        let old = router.uplink.clone();
        let new = self.next_uplink(old.net)?;
        // Connection tracking forgets what was masqueraded to an address when the address goes.
        router.namespace.ip("address flush dev wan\n")?;
        router.load_rules()?;
        // The link keeps its name in the internet's namespace under the new number.
        self.internet.ip(format!(
            "link set {} down\nlink set {} name {}\naddress flush dev {}\n",
            old.link(),
            old.link(),
            new.link(),
            new.link()
        ))?;
        router.uplink = new;
        self.configure_router(router)
    }

    /// Makes a router forget its mappings, as when it is overloaded or their time is up. Its
    /// address stays.
    pub fn forget(&self, router: &Router) -> Result<()> {
        // Connection tracking forgets what was masqueraded to an address when the address goes. That of
        // IPv6 is not masqueraded to.
        let Uplink { ipv4, .. } = &router.uplink;
        router
            .namespace
            .ip(format!("address del {ipv4}/30 dev wan\n"))?;
        // It does so a moment later. Entries that were not masqueraded may stay.
        let deadline = Instant::now() + FORGETTING;
        while router.connections()? > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (gateway, _) = router.uplink.gateways();
        router.namespace.ip(format!(
            "address add {ipv4}/30 dev wan\nroute add default via {gateway}\n"
        ))
    }

    fn build_router(&mut self, name: &str, kind: Kind, has_ipv6: bool) -> Result<Router> {
        let uplink = self.next_uplink(NET)?;
        self.build_router_at(uplink, name, kind, has_ipv6)
    }

    fn build_router_at(
        &mut self,
        uplink: Uplink,
        name: &str,
        kind: Kind,
        has_ipv6: bool,
    ) -> Result<Router> {
        let namespace = Namespace::new(name, true)?;
        connect(&self.internet, &uplink, &namespace, "wan")?;
        let router = fill(Router {
            namespace,
            uplink,
            has_ipv6,
            kind,
            nat64: None,
        })?;
        self.configure_router(&router)?;
        Ok(router)
    }

    fn configure_router(&self, router: &Router) -> Result<()> {
        let uplink = &router.uplink;
        configure_uplink(
            &self.internet,
            uplink,
            &router.namespace,
            "wan",
            router.has_ipv6,
        )?;
        if router.has_ipv6 {
            let prefix = router.lan_prefix();
            self.internet
                .ip(format!("route replace {prefix}/64 via {}\n", uplink.ipv6))?;
            let mut segments = prefix.segments();
            segments[7] = 1;
            let gateway = Ipv6Addr::from(segments);
            router
                .namespace
                .ip(format!("address replace {gateway}/64 dev lan nodad\n"))?;
        }
        Ok(())
    }

    fn attach_public(&mut self, host: &mut Host) -> Result<()> {
        let uplink = self.next_uplink(NET)?;
        connect(&self.internet, &uplink, &host.namespace, "eth0")?;
        configure_uplink(&self.internet, &uplink, &host.namespace, "eth0", true)?;
        host.network = Network {
            addresses: vec![IpAddr::V4(uplink.ipv4), IpAddr::V6(uplink.ipv6)],
        };
        Ok(())
    }

    fn attach_behind(&mut self, host: &mut Host, router: &Router) -> Result<()> {
        if self.hosts == MAX_HOSTS {
            return Err(Error::Full(MAX_HOSTS));
        }
        let number = FIRST_HOST + self.hosts;
        self.hosts += 1;
        let ipv4 = Ipv4Addr::new(192, 168, 1, number);
        let port = format!("port{number}");
        router.namespace.ip(format!(
            "link add name {port} type veth peer name eth0 netns {}\nlink set {port} master lan up\n",
            host.namespace.thread_id()
        ))?;
        host.namespace.ip(format!(
            "link set eth0 up\naddress add {ipv4}/24 dev eth0\nroute add default via 192.168.1.1\n"
        ))?;
        let mut addresses = vec![IpAddr::V4(ipv4)];
        if router.has_ipv6 {
            let mut segments = router.lan_prefix().segments();
            segments[7] = 1;
            let gateway = Ipv6Addr::from(segments);
            segments[7] = number.into();
            let ipv6 = Ipv6Addr::from(segments);
            host.namespace.ip(format!(
                "address add {ipv6}/64 dev eth0 nodad\nroute add default via {gateway}\n"
            ))?;
            addresses.push(IpAddr::V6(ipv6));
        }
        host.network = Network { addresses };
        router.namespace.wait_for_carrier(&port)?;
        router.namespace.wait_for_carrier("lan")?;
        host.namespace.wait_for_carrier("eth0")
    }

    fn next_uplink(&mut self, net: [u8; 3]) -> Result<Uplink> {
        if self.uplinks == MAX_UPLINKS {
            return Err(Error::Full(MAX_UPLINKS));
        }
        self.uplinks += 1;
        Ok(Uplink::new(self.uplinks, net))
    }
}

/// Gives a router its rules and the network of its hosts.
fn fill(router: Router) -> Result<Router> {
    router.namespace.ip(
        "link add name lan type bridge\nlink set lan up\naddress add 192.168.1.1/24 dev lan\n",
    )?;
    router.load_rules()?;
    Ok(router)
}

/// Makes the link of an uplink: `name` in `namespace`, and its other end at the provider.
fn connect(provider: &Namespace, uplink: &Uplink, namespace: &Namespace, name: &str) -> Result<()> {
    provider.ip(format!(
        "link add name {} type veth peer name {name} netns {}\n",
        uplink.link(),
        namespace.thread_id()
    ))
}

fn configure_uplink(
    provider: &Namespace,
    uplink: &Uplink,
    namespace: &Namespace,
    name: &str,
    has_ipv6: bool,
) -> Result<()> {
    let link = uplink.link();
    let (gateway4, gateway6) = uplink.gateways();
    let Uplink { ipv4, ipv6, .. } = uplink;
    provider.ip(format!(
        "link set {link} up\naddress add {gateway4}/30 dev {link}\naddress add {gateway6}/64 dev {link} nodad\n"
    ))?;
    namespace.ip(format!(
        "link set {name} up\naddress add {ipv4}/30 dev {name}\nroute add default via {gateway4}\n"
    ))?;
    if has_ipv6 {
        namespace.ip(format!(
            "address add {ipv6}/64 dev {name} nodad\nroute add default via {gateway6}\n"
        ))?;
    }
    provider.wait_for_carrier(&link)?;
    namespace.wait_for_carrier(name)
}
