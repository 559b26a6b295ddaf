//! A home router: one link to the internet, one network of hosts behind it, a NAT between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

use crate::host::Process;
use crate::lab::Uplink;
use crate::namespace::Namespace;
use crate::nat::{self, Kind};
use crate::{Error, Result};

/// The table of [`Router::count_except`].
const STRAYS: &str = "natpunch_strays";

/// A router. It translates IPv4, and filters IPv6 (if it has any) by state, as home routers do.
#[derive(Debug)]
pub struct Router {
    pub(crate) namespace: Namespace,
    pub(crate) uplink: Uplink,
    pub(crate) has_ipv6: bool,
    pub(crate) kind: Kind,
    /// What translates IPv6 to IPv4.
    pub(crate) nat64: Option<Process>,
}

impl Router {
    /// Its address on the internet, or in the network of its carrier.
    pub fn address(&self) -> Ipv4Addr {
        self.uplink.ipv4
    }

    /// The first 64 bits of its hosts' IPv6 addresses.
    pub(crate) fn lan_prefix(&self) -> Ipv6Addr {
        self.uplink.lan_prefix()
    }

    pub(crate) fn load_rules(&self) -> Result<()> {
        self.namespace.nft(nat::rules(&self.kind, self.address()))
    }

    /// Starts a program on it.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        Process::start(&self.namespace, command)
    }

    /// Loads these rules of nftables beside its own.
    pub fn nft(&self, rules: impl Into<String>) -> Result<()> {
        self.namespace.nft(rules)
    }

    /// The nftables rules that it has, as `nft` lists them.
    pub fn rules(&self) -> Result<String> {
        let listing = self
            .namespace
            .run(|| Command::new("nft").args(["list", "ruleset"]).output())?
            .map_err(|source| Error::Program {
                program: "nft".to_owned(),
                source,
            })?;
        Ok(String::from_utf8_lossy(&listing.stdout).into_owned())
    }

    /// Takes the cable of the internet out, or puts it back in. Out, packets vanish without an
    /// error.
    pub fn set_connected(&self, connected: bool) -> Result<()> {
        let rules = if connected {
            ""
        } else {
            "chain in { type filter hook prerouting priority -300; iifname wan drop\n }
            chain out { type filter hook postrouting priority -300; oifname wan drop\n }"
        };
        self.cut("natpunch_cut", rules)
    }

    /// How many entries its table of connections has now, those for itself included.
    pub fn connections(&self) -> Result<u32> {
        const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
        let count = self.namespace.run(|| std::fs::read_to_string(COUNT))?;
        let count = count.and_then(|text| text.trim().parse().map_err(std::io::Error::other));
        count.map_err(|source| Error::System {
            what: "cannot read the number of tracked connections",
            source,
        })
    }

    /// Counts what its hosts send by UDP into the internet, to other addresses than these, from now
    /// on.
    pub fn count_except(&self, expected: &[Ipv4Addr]) -> Result<()> {
        let expected: Vec<String> = expected.iter().map(Ipv4Addr::to_string).collect();
        let elsewhere = match expected.is_empty() {
            true => String::new(),
            false => format!("ip daddr != {{ {} }}", expected.join(", ")),
        };
        self.cut(
            STRAYS,
            &format!(
                "counter strays {{ }}
                chain out {{ type filter hook postrouting priority -300;
                    oifname wan meta nfproto ipv4 meta l4proto udp {elsewhere} counter name strays
                }}"
            ),
        )
    }

    /// How many packets were counted since.
    pub fn counted(&self) -> Result<u64> {
        let listing = self
            .namespace
            .run(|| {
                let arguments = ["list", "counter", "inet", STRAYS, "strays"];
                std::process::Command::new("nft").args(arguments).output()
            })?
            .map_err(|source| Error::Program {
                program: "nft".to_owned(),
                source,
            })?;
        let text = String::from_utf8_lossy(&listing.stdout).into_owned();
        let packets = text
            .split_whitespace()
            .skip_while(|word| *word != "packets")
            .nth(1);
        packets
            .and_then(|count| count.parse().ok())
            .ok_or(Error::System {
                what: "cannot read a counter of nftables",
                source: std::io::Error::other(text.clone()),
            })
    }

    /// Lets no UDP pass between its hosts and an address, or lets it pass again; everything else
    /// stays.
    pub fn set_blocked(&self, address: impl Into<IpAddr>, blocked: bool) -> Result<()> {
        let address = address.into();
        let ip = if address.is_ipv4() { "ip" } else { "ip6" };
        let rules = if blocked {
            format!(
                "chain in {{ type filter hook prerouting priority -300; {ip} saddr {address} meta l4proto udp drop\n }}
                chain out {{ type filter hook postrouting priority -300; {ip} daddr {address} meta l4proto udp drop\n }}"
            )
        } else {
            String::new()
        };
        self.cut("natpunch_block", &rules)
    }

    /// Lets no UDP pass to or from the internet, or lets it pass again, as the networks of hotels and
    /// offices.
    pub fn set_udp_blocked(&self, blocked: bool) -> Result<()> {
        let rules = if blocked {
            "chain in { type filter hook prerouting priority -300; iifname wan meta l4proto udp drop\n }
            chain out { type filter hook postrouting priority -300; oifname wan meta l4proto udp drop\n }"
        } else {
            ""
        };
        self.cut("natpunch_udp", rules)
    }

    /// Lets its hosts reach this address only.
    pub fn allow_only(&self, address: Ipv4Addr) -> Result<()> {
        self.cut(
            "natpunch_only",
            &format!(
                "chain out {{ type filter hook forward priority -300; oifname wan ip daddr != {address} drop\n }}"
            ),
        )
    }

    /// Narrows its link to the internet to packets of `mtu` bytes, and says nothing to those whose
    /// packets are too large and may not be split: a black hole, as behind many tunnels.
    pub fn narrow(&self, mtu: u16) -> Result<()> {
        self.namespace.ip(format!("link set dev wan mtu {mtu}\n"))?;
        let types = "icmp type destination-unreachable drop
            icmpv6 type packet-too-big drop";
        self.cut(
            "natpunch_narrow",
            &format!("chain out {{ type filter hook output priority -300; {types}\n }}"),
        )
    }

    /// Drops all packets of more than `mtu` bytes on its link to the internet and says nothing: a
    /// black hole for large packets, whether they may be split or not. The MTU of a link judges the
    /// segments of a large buffer one by one, as a wire does; a rule about lengths does not.
    pub fn swallow(&self, mtu: u16) -> Result<()> {
        self.narrow(mtu)?;
        let fragments = "ip frag-off & 0x3fff != 0 drop";
        self.namespace.nft(format!(
            "table netdev natpunch_swallow {{
               chain out {{ type filter hook egress device wan priority 0; {fragments}\n }}
             }}\n"
        ))
    }

    /// Makes its link to the internet a rough one from now on: what it sends there is delayed by
    /// `delay` and up to `jitter` more or less, and so much of it is lost. Needs a kernel with netem
    /// (`sch_netem`).
    pub fn roughen(&self, delay: Duration, jitter: Duration, loss_percent: u8) -> Result<()> {
        let mut command = Command::new("tc");
        command.args(["qdisc", "replace", "dev", "wan", "root", "netem", "delay"]);
        command.args([delay, jitter].map(|time| format!("{}ms", time.as_millis())));
        command.args(["loss", &format!("{loss_percent}%")]);
        let output = self.namespace.run(move || command.output())?;
        let output = output.map_err(|source| Error::Program {
            program: "tc".to_owned(),
            source,
        })?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Failed {
            program: "tc".to_owned(),
            message: String::from_utf8_lossy(&output.stderr).into_owned(),
            input: String::new(),
        })
    }

    /// Replaces a table by these chains.
    fn cut(&self, table: &str, rules: &str) -> Result<()> {
        self.namespace.nft(format!(
            "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{rules}\n}}\n"
        ))
    }
}
