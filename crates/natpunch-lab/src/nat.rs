//! NAT kinds as nftables rules.

use std::net::Ipv4Addr;

/// What a router does to UDP, in the words of RFC 4787.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nat {
    /// Endpoint-independent mapping that keeps the port, address-and-port-dependent filtering:
    /// Linux `masquerade`.
    PortPreserving,
    /// Endpoint-independent mapping that keeps the port, endpoint-independent filtering.
    FullCone,
    /// Endpoint-independent mapping that keeps the port, address-dependent filtering.
    Restricted,
    /// Address-and-port-dependent mapping to random ports, address-and-port-dependent filtering.
    Symmetric,
    /// The same, to ports that follow each other.
    Sequential,
    /// The same, to random ports of a block of [`BLOCK`]: a carrier's NAT with a port block for each
    /// subscriber.
    PortBlock,
}

/// How many ports a [`Nat::Sequential`] goes round in, and a [`Nat::PortBlock`] has.
pub const BLOCK: u16 = 1024;
/// The first of them.
const FIRST_OF_BLOCK: u16 = 40_000;

/// What a router does with a packet that it neither expects nor has a mapping for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WanInput {
    /// Drops it, as home routers do.
    #[default]
    Drop,
    /// Lets it reach the router itself, as a bare Linux gateway does. Connection tracking then
    /// knows the packet's addresses, and a later packet of a host behind the router to the same
    /// place is given another port: the poisoned tuple.
    Accept,
}

/// What is behind a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inside {
    /// Hosts of one network, which need no router among each other.
    Hosts,
    /// Homes, each on a link of its own. They reach each other only by the router's own address,
    /// and only if it `hairpins` (RFC 4787, REQ-9).
    Homes { hairpins: bool },
}

/// A router's rules in words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) nat: Nat,
    pub(crate) input: WanInput,
    pub(crate) inside: Inside,
}

impl Kind {
    /// The router of a home that drops what it does not expect.
    pub(crate) fn of(nat: Nat) -> Self {
        Kind {
            nat,
            input: WanInput::default(),
            inside: Inside::Hosts,
        }
    }
}

/// The rule set of a router with this address on its link `wan`. Loading it again replaces it and
/// forgets its mappings.
pub(crate) fn rules(kind: &Kind, address: Ipv4Addr) -> String {
    let Kind { nat, input, inside } = *kind;
    let last_of_block = FIRST_OF_BLOCK + BLOCK - 1;
    let masquerade = match nat {
        Nat::Symmetric => "masquerade fully-random".to_owned(),
        Nat::Sequential => {
            // Each new flow takes the next number. It stands in the wrong byte order for a port, so
            // a map has the ports.
            let ports: Vec<String> = (0..BLOCK)
                .map(|n| format!("{n} : {}", FIRST_OF_BLOCK + n))
                .collect();
            format!(
                "meta l4proto udp masquerade to :numgen inc mod {BLOCK} map {{ {} }}
                oifname wan masquerade",
                ports.join(", ")
            )
        }
        Nat::PortBlock => format!(
            "meta l4proto udp masquerade to :{FIRST_OF_BLOCK}-{last_of_block} fully-random
            oifname wan masquerade"
        ),
        Nat::PortPreserving | Nat::FullCone | Nat::Restricted => "masquerade".to_owned(),
    };
    let hairpins = inside == Inside::Homes { hairpins: true };
    let remember = match nat {
        // Who hairpins has to know whose a port is, whatever it lets in from outside.
        Nat::PortPreserving if hairpins => {
            "meta l4proto udp update @cone { udp sport : ip saddr . udp sport }"
        }
        Nat::PortPreserving | Nat::Symmetric | Nat::Sequential | Nat::PortBlock => "",
        Nat::FullCone => "meta l4proto udp update @cone { udp sport : ip saddr . udp sport }",
        Nat::Restricted => {
            "meta l4proto udp update @cone { udp sport : ip saddr . udp sport }
            oifname wan meta l4proto udp update @contacted { udp sport . ip daddr }"
        }
    };
    let remember = if remember.is_empty() {
        String::new()
    } else {
        format!("oifname wan {remember}")
    };
    let admit = match nat {
        Nat::PortPreserving | Nat::Symmetric | Nat::Sequential | Nat::PortBlock => "",
        Nat::FullCone => "iifname wan dnat ip to udp dport map @cone",
        Nat::Restricted => {
            "iifname wan udp dport . ip saddr @contacted dnat ip to udp dport map @cone"
        }
    };
    let unexpected = match input {
        WanInput::Drop => "iifname wan ct state new drop",
        WanInput::Accept => "",
    };
    let (turn_inside, show_outside) = match hairpins {
        true => (
            format!("iifname != wan ip daddr {address} dnat ip to udp dport map @cone"),
            format!("oifname != wan ct status dnat snat ip to {address}"),
        ),
        false => (String::new(), String::new()),
    };
    let keep_apart = match inside {
        Inside::Hosts => "",
        Inside::Homes { .. } => {
            "iifname != wan oifname != wan ct status dnat accept
                iifname != wan oifname != wan drop"
        }
    };
    // The maps are filled when a flow starts, before masquerade: right as long as it can keep the
    // port.
    format!(
        "table ip natpunch_lab
        delete table ip natpunch_lab
        table ip natpunch_lab {{
            map cone {{ type inet_service : ipv4_addr . inet_service; flags dynamic; size 4096; }}
            set contacted {{ type inet_service . ipv4_addr; flags dynamic; size 4096; }}
            chain prerouting {{ type nat hook prerouting priority dstnat; policy accept;
                {admit}
                {turn_inside}
            }}
            chain input {{ type filter hook input priority filter; policy accept;
                {unexpected}
            }}
            chain forward {{ type filter hook forward priority filter; policy accept;
                {keep_apart}
                iifname wan ct status dnat accept
                iifname wan ct state new drop
            }}
            chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;
                {show_outside}
                {remember}
                oifname wan {masquerade}
            }}
        }}
        table ip6 natpunch_lab
        delete table ip6 natpunch_lab
        table ip6 natpunch_lab {{
            chain forward {{ type filter hook forward priority filter; policy accept;
                iifname wan ct state new drop
            }}
        }}\n"
    )
}
