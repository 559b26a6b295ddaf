//! The forms of single values in the mesh file.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use natpunch_os::secret;
use natpunch_plugin_description::{Endpoint, EndpointError};
use natpunch_types::{AddressClass, Connect, Consent, KeyError, PeerKey, RelayPolicy, classify};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use toml_edit::Item;

use super::reader::{Flaw, KeyPath, Reader, Text, Value, integer};
use crate::report::source::Place;
use crate::report::wording::{Quoted, did_you_mean};

/// Which WireGuard device to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The kernel's where there is one, else the embedded one.
    #[default]
    Auto,
    /// The kernel's, or fail.
    Kernel,
    /// The embedded one.
    Userspace,
    /// A device of this name that something else made and that listens on a UAPI socket, such as
    /// wireguard-go.
    External,
}

/// How many UDP ports a node that serves takes: that of the rendezvous, its alternate one, and the
/// relay's.
pub const SERVE_PORTS: u16 = 1 + 1 + 32;

/// Gives a value type a JSON schema, in place.
macro_rules! schema {
    ($type:ident, $($schema:tt)*) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($($schema)*)
            }
        }
    };
}

/// Any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) String);
schema!(Word, { "type": "string", "minLength": 1 });

impl Text for Word {
    const EXPECTED: &'static str = "a string";
    fn parse(text: &str) -> Result<Self, Flaw> {
        if text.is_empty() {
            return Err(Flaw::new(
                "it is empty",
                "write something, or leave the key out",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A DNS label (RFC 1123, 2.1): what names of meshes, peers and discovery instances are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DnsLabel(pub(crate) String);
schema!(DnsLabel, { "type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" });

impl Text for DnsLabel {
    const EXPECTED: &'static str = "a DNS label";
    fn parse(text: &str) -> Result<Self, Flaw> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.is_empty()
            || text.len() > 63
            || !text.chars().all(allowed)
            || text.starts_with('-')
            || text.ends_with('-')
        {
            let problem = format!("`{}` is not a DNS label", Quoted(text));
            let suggestion: String = text
                .to_lowercase()
                .chars()
                .map(|c| if allowed(c) { c } else { '-' })
                .take(63)
                .collect();
            let suggestion = suggestion.trim_matches('-');
            let rule = "1 to 63 lower-case letters, digits and inner hyphens";
            return Err(Flaw::new(
                problem,
                if suggestion.is_empty() {
                    format!("write {rule}")
                } else {
                    format!("write {rule}, such as `{suggestion}`")
                },
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A name of a network interface, as Linux and wg-quick allow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InterfaceName(pub(crate) String);
schema!(InterfaceName, { "type": "string", "pattern": "^[A-Za-z0-9_=+.-]{1,15}$" });

impl InterfaceName {
    pub(crate) fn valid(text: &str) -> bool {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_=+.-".contains(c);
        !text.is_empty()
            && text.len() <= 15
            && text != "."
            && text != ".."
            && text.chars().all(allowed)
    }
}

impl Text for InterfaceName {
    const EXPECTED: &'static str = "an interface name";
    fn parse(text: &str) -> Result<Self, Flaw> {
        if !Self::valid(text) {
            let problem = format!("`{}` can't name an interface", Quoted(text));
            return Err(Flaw::new(
                problem,
                "write 1 to 15 letters, digits or any of _ = + . -, such as \"wg-home\"",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A path of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilePath(pub(crate) PathBuf);
schema!(FilePath, { "type": "string", "minLength": 1 });

impl Text for FilePath {
    const EXPECTED: &'static str = "the path of a file";
    fn parse(text: &str) -> Result<Self, Flaw> {
        if text.parse::<PeerKey>().is_ok() {
            return Err(Flaw::new(
                "this is a key, not the path of a file with the key",
                "put the key in a file with mode 0600 and write the file's path here; this key \
                 was exposed, make a new one",
            ));
        }
        if text.is_empty() || text.contains('\0') {
            return Err(Flaw::new(
                "this can't be a path",
                "write a path, such as \"/etc/natpunch/home.key\"",
            ));
        }
        let credential = secret::credential(Path::new(text));
        if credential.is_some_and(|name| !secret::is_credential_name(name)) {
            let help = "write credential: and the name of LoadCredential= in the unit, such as \
                        \"credential:home.key\"";
            return Err(Flaw::new("this is not the name of a credential", help));
        }
        Ok(Self(PathBuf::from(text)))
    }
}

/// A public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublicKey(pub(crate) PeerKey);
schema!(PublicKey, { "type": "string", "pattern": "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$" });

impl Text for PublicKey {
    const EXPECTED: &'static str = "44 characters of base64, as `natpunch pubkey` prints them";
    fn parse(text: &str) -> Result<Self, Flaw> {
        let help =
            "print it on that peer: natpunch pubkey < KEYFILE (or: wg show INTERFACE public-key)";
        let key: PeerKey = text.parse().map_err(|error| {
            Flaw::new(
                match error {
                    KeyError::NotBase64 => "this is not base64".to_owned(),
                    KeyError::WrongLength(bytes) => {
                        format!("this is {bytes} bytes long, a key has 32")
                    }
                },
                help,
            )
        })?;
        if key.as_bytes() == &[0; 32] {
            return Err(Flaw::new("this key is all zeros", help));
        }
        Ok(Self(key))
    }
}

/// An address inside the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MeshAddress(pub(crate) IpAddr);
schema!(MeshAddress, {
    "type": "string",
    "anyOf": [
        { "format": "ipv4" },
        { "format": "ipv6" },
        { "pattern": "^[0-9.]+/32$|^[0-9a-fA-F:]+/128$" },
    ],
});

impl Text for MeshAddress {
    const EXPECTED: &'static str = "an IPv4 or IPv6 address";
    fn parse(text: &str) -> Result<Self, Flaw> {
        let address = match text.parse::<IpNet>() {
            Ok(net) if net.prefix_len() == net.max_prefix_len() => net.addr(),
            Ok(net) => {
                let problem = format!(
                    "an address here has no prefix length, this has /{}",
                    net.prefix_len()
                );
                let help = format!(
                    "write \"{}\"; the prefix length comes from `mesh.networks`",
                    net.addr()
                );
                return Err(Flaw::new(problem, help));
            }
            Err(_) => text.parse().map_err(|_| {
                let problem = format!("`{}` is not an IP address", Quoted(text));
                Flaw::new(
                    problem,
                    "write an address of one of `mesh.networks`, such as \"10.77.0.2\" or \
                     \"fd77:1::2\"",
                )
            })?,
        };
        if matches!(classify(address), AddressClass::Never) {
            return Err(Flaw::new(
                format!("no peer can have the address {address}"),
                "write a unicast address",
            ));
        }
        Ok(Self(address))
    }
}

/// A network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network(pub(crate) IpNet);
schema!(Network, {
    "type": "string",
    "pattern": "^[0-9.]+/[0-9]{1,2}$|^[0-9a-fA-F:.]+/[0-9]{1,3}$",
});

impl Text for Network {
    const EXPECTED: &'static str = "a network in CIDR form";
    fn parse(text: &str) -> Result<Self, Flaw> {
        let Ok(net) = text.parse::<IpNet>() else {
            let problem = format!("`{}` is not a network", Quoted(text));
            let help = match text.parse::<IpAddr>() {
                Ok(ip) => {
                    format!(
                        "add the prefix length; for this one address: \"{ip}/{}\"",
                        IpNet::from(ip).prefix_len()
                    )
                }
                Err(_) => {
                    "write address and prefix length, such as \"192.168.1.0/24\" or \"fd77:1::/64\""
                        .to_owned()
                }
            };
            return Err(Flaw::new(problem, help));
        };
        if net.trunc() != net {
            let problem = format!("{net} has bits set beyond its prefix length");
            return Err(Flaw::new(
                problem,
                format!("did you mean \"{}\"?", net.trunc()),
            ));
        }
        if matches!(net, IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some()) {
            return Err(Flaw::new(
                "this is an IPv4 network written as IPv6",
                "write it as IPv4",
            ));
        }
        if net.prefix_len() == 0 {
            let problem =
                format!("{net} is everything: a mesh network or route can't be the default route");
            let help = "name the networks that are behind the peer; for all traffic write exit = \
                        true for this peer, and exit_node = \"NAME\" for the peers that send theirs \
                        through it";
            return Err(Flaw::new(problem, help));
        }
        Ok(Self(net))
    }
}

/// Where a peer or a server answers: a host name or address and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPort(pub(crate) String);
schema!(HostPort, {
    "type": "string",
    "pattern": "^(\\[[0-9a-fA-F:.%]+\\]|[A-Za-z0-9._-]+):[0-9]{1,5}$",
});

impl Text for HostPort {
    const EXPECTED: &'static str = "HOST:PORT";
    fn parse(text: &str) -> Result<Self, Flaw> {
        check_host_port(text).map(|()| Self(text.to_owned()))
    }
}

/// Checks the form `HOST:PORT`, in which HOST is a name, an IPv4 address or an IPv6 address in
/// brackets.
pub(crate) fn check_host_port(text: &str) -> Result<(), Flaw> {
    let endpoint: Result<Endpoint, EndpointError> = text.parse();
    endpoint
        .map(|_| ())
        .map_err(|error| Flaw::new(error.problem, error.help))
}

/// An MTU, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mtu(pub(crate) u32);
schema!(Mtu, { "type": "integer", "minimum": 576, "maximum": 65455 });

impl Value for Mtu {
    fn read(item: &Item, place: Place, path: &KeyPath<'_>, reader: &mut Reader) -> Option<Self> {
        integer(item, place, path, reader, (576, 65455), " bytes").map(Self)
    }
}

/// A count of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(pub(crate) u64);
schema!(Generation, { "type": "integer", "minimum": 0 });

impl Value for Generation {
    fn read(item: &Item, place: Place, path: &KeyPath<'_>, reader: &mut Reader) -> Option<Self> {
        integer(item, place, path, reader, (0, i64::MAX), "").map(Self)
    }
}

/// A UDP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Port(pub(crate) u16);
schema!(Port, { "type": "integer", "minimum": 1, "maximum": 65535 });

impl Value for Port {
    fn read(item: &Item, place: Place, path: &KeyPath<'_>, reader: &mut Reader) -> Option<Self> {
        integer(item, place, path, reader, (1, 65535), "").map(Self)
    }
}

/// Whether a peer serves, and if so at which port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Serve(pub(crate) Option<u16>);
schema!(Serve, {
    "oneOf": [
        { "type": "boolean" },
        { "type": "integer", "minimum": 1, "maximum": Serve::MAX },
    ],
});

impl Serve {
    /// Where nothing else is said.
    const DEFAULT: u16 = 51_900;
    /// The relay's ports come after it.
    const MAX: u16 = u16::MAX - (SERVE_PORTS - 1);
}

impl Value for Serve {
    fn read(item: &Item, place: Place, path: &KeyPath<'_>, reader: &mut Reader) -> Option<Self> {
        match item.as_bool() {
            Some(serves) => Some(Self(serves.then_some(Self::DEFAULT))),
            None if item.is_integer() => {
                integer(item, place, path, reader, (1, Self::MAX.into()), "")
                    .map(|port| Self(Some(port)))
            }
            None => {
                reader.wrong_type(item, place, path, "true, false or a port");
                None
            }
        }
    }
}

/// A firewall mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FirewallMark(pub(crate) u32);
schema!(FirewallMark, { "type": "integer", "minimum": 0, "maximum": 4294967295u32 });

impl Value for FirewallMark {
    fn read(item: &Item, place: Place, path: &KeyPath<'_>, reader: &mut Reader) -> Option<Self> {
        integer(item, place, path, reader, (0, i64::from(u32::MAX)), "").map(Self)
    }
}

/// An interval of keepalives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalive(pub(crate) Duration);
schema!(Keepalive, { "type": "integer", "minimum": 0, "maximum": 65535 });

impl Value for Keepalive {
    fn read(item: &Item, place: Place, path: &KeyPath<'_>, reader: &mut Reader) -> Option<Self> {
        let seconds: u16 = integer(item, place, path, reader, (0, 65535), " seconds; 0 is off")?;
        Some(Self(Duration::from_secs(seconds.into())))
    }
}

/// A span of time: a whole number with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);
schema!(Span, { "type": "string", "pattern": "^[0-9]{1,6}[smh]$" });

impl Text for Span {
    const EXPECTED: &'static str = "a number with s, m or h, such as \"60s\"";
    fn parse(text: &str) -> Result<Self, Flaw> {
        parse_span(text).map(Self).ok_or_else(|| {
            Flaw::new(
                format!("`{}` is not a span of time", Quoted(text)),
                format!("write {}", Self::EXPECTED),
            )
        })
    }
}

/// Reads a span of time as the mesh file has it: a number of up to six digits with `s`, `m` or `h`.
pub fn parse_span(text: &str) -> Option<Duration> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(number.len()..)? {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let plain = (1..=6).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    number
        .parse::<u64>()
        .ok()
        .filter(|_| plain)
        .map(|number| Duration::from_secs(number * unit))
}

/// Defines a bound of the punch budget.
macro_rules! probes {
    ($(#[$meta:meta])* $name:ident, $most:literal) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) struct $name(pub(crate) u32);
        schema!($name, { "type": "integer", "minimum": 1, "maximum": $most });

        impl Value for $name {
            fn read(
                item: &Item,
                place: Place,
                path: &KeyPath<'_>,
                reader: &mut Reader,
            ) -> Option<Self> {
                integer(item, place, path, reader, (1, $most), " probes").map(Self)
            }
        }
    };
}

probes!(
    /// Probes in a second.
    ProbesPerSecond,
    1_000
);
probes!(
    /// Probes in one search: at most what fits into the smallest tables of home routers.
    ProbesPerRound,
    4_096
);
probes!(
    /// Probes in ten minutes: at most one for each port that a NAT has.
    ProbesPer10Minutes,
    65_535
);

/// What a change may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowed(pub(crate) Consent);
schema!(Allowed, { "oneOf": Consent::ALL.map(|consent| {
    serde_json::json!({ "type": "string", "const": consent.word() })
}) });

/// A word that is none of those that may stand here.
fn not_one_of<T: Text>(problem: String, word: &str, known: &[&str]) -> Flaw {
    let help = match did_you_mean(word, known) {
        Some(best) => format!("did you mean \"{best}\"?"),
        None => format!("write {}", T::EXPECTED),
    };
    Flaw::new(problem, help)
}

impl Text for Allowed {
    const EXPECTED: &'static str = "\"mass-removal\", \"critical-removal\", \
        \"operator-removal\", \"default-route\" or \"empty-mesh\"";
    fn parse(text: &str) -> Result<Self, Flaw> {
        text.parse().map(Self).map_err(|()| {
            let problem = format!(
                "`{}` is not a kind of change that can be allowed",
                Quoted(text)
            );
            not_one_of::<Self>(problem, text, &Consent::ALL.map(Consent::word))
        })
    }
}

impl Text for Backend {
    const EXPECTED: &'static str = "\"auto\", \"kernel\", \"userspace\" or \"external\"";
    fn parse(text: &str) -> Result<Self, Flaw> {
        Ok(match text {
            "auto" => Self::Auto,
            "kernel" => Self::Kernel,
            "userspace" => Self::Userspace,
            "external" => Self::External,
            other => {
                let problem = format!("`{}` is not a backend", Quoted(other));
                let known = ["auto", "kernel", "userspace", "external"];
                return Err(not_one_of::<Self>(problem, other, &known));
            }
        })
    }
}

/// When two peers look for a path to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connects(pub(crate) Connect);
schema!(Connects, { "oneOf": [
    { "type": "string", "const": "always" },
    { "type": "string", "const": "on-demand" },
] });

impl Text for Connects {
    const EXPECTED: &'static str = "\"always\" or \"on-demand\"";
    fn parse(text: &str) -> Result<Self, Flaw> {
        let all = [Connect::Always, Connect::OnDemand];
        all.into_iter()
            .find(|connect| connect.to_string() == text)
            .map(Self)
            .ok_or_else(|| {
                let problem = format!("there is no `{}`", Quoted(text));
                not_one_of::<Self>(problem, text, &["always", "on-demand"])
            })
    }
}

/// Whether a peer is reached by relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Relay(pub(crate) RelayPolicy);
schema!(Relay, { "oneOf": [
    { "type": "string", "const": "auto" },
    { "type": "string", "const": "only" },
    { "type": "string", "const": "never" },
] });

impl Text for Relay {
    const EXPECTED: &'static str = "\"auto\", \"only\" or \"never\"";
    fn parse(text: &str) -> Result<Self, Flaw> {
        let all = [RelayPolicy::Auto, RelayPolicy::Only, RelayPolicy::Never];
        all.into_iter()
            .find(|policy| policy.to_string() == text)
            .map(Self)
            .ok_or_else(|| {
                let problem = format!("there is no `{}`", Quoted(text));
                not_one_of::<Self>(problem, text, &["auto", "only", "never"])
            })
    }
}
