//! The table as text, and read back from its listing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use serde_json::Value;

use super::PinSet;

/// The table of an interface. nftables' names have no '=', which interfaces may have, and may have
/// the '/' that interfaces have not: two interfaces never share a table.
pub(super) fn table_name(interface: &str) -> String {
    format!("natpunch_{}", interface.replace('=', "/"))
}

/// The transaction that removes a table, also one that is not there.
pub(super) fn removal(table: &str) -> String {
    format!("table inet {table}\ndelete table inet {table}\n")
}

/// The transaction that replaces the table.
///
/// The chains stand where nothing else sees the rewritten port: the first before connection
/// tracking (priority -200) on the way in, the second after address translation (100) on the way
/// out. So connection tracking and every firewall of the host see WireGuard's port alone, in both
/// directions, and what lets WireGuard through lets a pin through. A lookup that finds nothing ends
/// the rule and leaves the packet as it is.
pub(super) fn definition(table: &str, listen_port: u16, pins: &PinSet) -> String {
    let (v4, v6): (Vec<_>, Vec<_>) = pins.iter().partition(|(remote, _)| remote.is_ipv4());
    let outgoing = |pins: &[(&SocketAddr, &NonZeroU16)]| {
        elements(pins, |remote, port| {
            format!("{} . {} : {port}", remote.ip(), remote.port())
        })
    };
    let incoming = |pins: &[(&SocketAddr, &NonZeroU16)]| {
        elements(pins, |remote, port| {
            let (ip, of) = (remote.ip(), remote.port());
            format!("{ip} . {of} . {port} : {listen_port}")
        })
    };
    let (out4, out6) = (outgoing(&v4), outgoing(&v6));
    let (in4, in6) = (incoming(&v4), incoming(&v6));
    let removal = removal(table);
    format!(
        "{removal}table inet {table} {{
	map out4 {{
		type ipv4_addr . inet_service : inet_service
{out4}	}}
	map in4 {{
		type ipv4_addr . inet_service . inet_service : inet_service
{in4}	}}
	map out6 {{
		type ipv6_addr . inet_service : inet_service
{out6}	}}
	map in6 {{
		type ipv6_addr . inet_service . inet_service : inet_service
{in6}	}}
	chain arriving {{
		type filter hook prerouting priority -310; policy accept;
		meta nfproto ipv4 meta l4proto udp udp dport set ip saddr . udp sport . udp dport map @in4
		meta nfproto ipv6 meta l4proto udp udp dport set ip6 saddr . udp sport . udp dport map @in6
	}}
	chain leaving {{
		type filter hook postrouting priority 310; policy accept;
		meta nfproto ipv4 udp sport {listen_port} udp sport set ip daddr . udp dport map @out4
		meta nfproto ipv6 udp sport {listen_port} udp sport set ip6 daddr . udp dport map @out6
	}}
}}
"
    )
}

fn elements(
    pins: &[(&SocketAddr, &NonZeroU16)],
    element: impl Fn(&SocketAddr, &NonZeroU16) -> String,
) -> String {
    let mut line = String::new();
    for (remote, port) in pins {
        let start = if line.is_empty() {
            "\t\telements = { "
        } else {
            ", "
        };
        let _ = write!(line, "{start}{}", element(remote, port));
    }
    if !line.is_empty() {
        line.push_str(" }\n");
    }
    line
}

/// A table as the kernel shows it. Two are equal if they do the same to packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Chains, rules and maps, without the numbers that each load gives them anew.
    objects: Vec<Value>,
    pins: PinSet,
}

impl Found {
    /// Reads `nft -j list table`; `None` if it is none.
    pub(super) fn read(listing: &[u8]) -> Option<Self> {
        let listing: Value = serde_json::from_slice(listing).ok()?;
        let mut objects: Vec<Value> = listing
            .get("nftables")?
            .as_array()?
            .iter()
            .filter(|object| object.get("metainfo").is_none())
            .cloned()
            .collect();
        for body in objects.iter_mut().filter_map(body_mut) {
            body.remove("handle");
            // Maps have no order, and each load may show another.
            if let Some(elements) = body.get_mut("elem").and_then(Value::as_array_mut) {
                elements.sort_by_cached_key(Value::to_string);
            }
        }
        let pins = pins_of(&objects);
        Some(Self { objects, pins })
    }

    /// The pins of which both directions are there.
    pub(super) fn pins(&self) -> &PinSet {
        &self.pins
    }
}

/// An object is `{"chain": {...}}` and so on.
fn body_mut(object: &mut Value) -> Option<&mut serde_json::Map<String, Value>> {
    object.as_object_mut()?.values_mut().next()?.as_object_mut()
}

fn pins_of(objects: &[Value]) -> PinSet {
    let map = |name: &'static str| {
        objects
            .iter()
            .filter_map(|object| object.get("map"))
            .filter(move |map| map.get("name").and_then(Value::as_str) == Some(name))
            .filter_map(|map| map.get("elem")?.as_array())
            .flatten()
            .filter_map(read_element)
    };
    let arriving: BTreeMap<(SocketAddr, NonZeroU16), NonZeroU16> = map("in4")
        .chain(map("in6"))
        .filter_map(|(remote, rest, listen_port)| Some(((remote, rest?), listen_port)))
        .collect();
    map("out4")
        .chain(map("out6"))
        .map(|(remote, _, port)| (remote, port))
        .filter(|pin| arriving.contains_key(pin))
        .collect()
}

/// An element: `[{"concat": [ADDRESS, PORT, ...]}, PORT]`; the third of the key if there is one.
fn read_element(element: &Value) -> Option<(SocketAddr, Option<NonZeroU16>, NonZeroU16)> {
    let [key, value] = element.as_array()?.as_slice() else {
        return None;
    };
    let key = key.get("concat")?.as_array()?;
    let ip: IpAddr = key.first()?.as_str()?.parse().ok()?;
    let remote = SocketAddr::new(ip, port(key.get(1)?)?.get());
    let rest = key.get(2).and_then(port);
    Some((remote, rest, port(value)?))
}

fn port(value: &Value) -> Option<NonZeroU16> {
    NonZeroU16::new(value.as_u64()?.try_into().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pins(list: &[(&str, u16)]) -> PinSet {
        list.iter()
            .map(|(remote, port)| (remote.parse().unwrap(), NonZeroU16::new(*port).unwrap()))
            .collect()
    }

    #[test]
    fn both_directions_of_a_pin_are_in_one_transaction_that_replaces_the_table() {
        let text = definition(
            &table_name("wg-home"),
            51820,
            &pins(&[("198.51.100.1:7", 61_201), ("[2001:db8::1]:8", 61_202)]),
        );
        assert!(
            text.starts_with("table inet natpunch_wg-home\ndelete table inet natpunch_wg-home\n")
        );
        for line in [
            "elements = { 198.51.100.1 . 7 : 61201 }",
            "elements = { 198.51.100.1 . 7 . 61201 : 51820 }",
            "elements = { 2001:db8::1 . 8 : 61202 }",
            "elements = { 2001:db8::1 . 8 . 61202 : 51820 }",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn two_interfaces_never_share_a_table() {
        assert_eq!(table_name("wg-home"), "natpunch_wg-home");
        assert_ne!(table_name("a=b"), table_name("a_b"));
        assert!(!table_name("a=b").contains('='));
    }

    /// What nft 1.0.6 prints, shortened.
    fn listing(handle: u32, out: &str, arriving: &str) -> String {
        format!(
            r#"{{"nftables": [{{"metainfo": {{"version": "1.0.6"}}}},
            {{"table": {{"family": "inet", "name": "natpunch_wg0", "handle": {handle}}}}},
            {{"map": {{"name": "out4", "handle": {handle}, "elem": [{out}]}}}},
            {{"map": {{"name": "in4", "handle": {handle}, "elem": [{arriving}]}}}},
            {{"map": {{"name": "out6", "handle": {handle}}}}}]}}"#
        )
    }

    fn read(text: &str) -> Found {
        Found::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_pin_is_in_force_if_both_of_its_directions_are() {
        let out =
            r#"[{"concat": ["198.51.100.1", 7]}, 61201], [{"concat": ["198.51.100.2", 7]}, 61202]"#;
        let arriving = r#"[{"concat": ["198.51.100.1", 7, 61201]}, 51820],
            [{"concat": ["198.51.100.2", 7, 61209]}, 51820]"#;
        let found = read(&listing(3, out, arriving));
        assert_eq!(found.pins(), &pins(&[("198.51.100.1:7", 61_201)]));
    }

    #[test]
    fn a_listing_equals_another_of_the_same_table_whatever_its_numbers_and_order() {
        let (a, b) = (
            r#"[{"concat": ["198.51.100.1", 7]}, 61201]"#,
            r#"[{"concat": ["198.51.100.2", 7]}, 61202]"#,
        );
        let one = read(&listing(3, &format!("{a}, {b}"), ""));
        assert_eq!(one, read(&listing(9, &format!("{b}, {a}"), "")));
        assert_ne!(one, read(&listing(3, a, "")));
    }

    #[test]
    fn a_listing_of_anything_else_holds_no_pins() {
        for text in ["", "{}", "[]", "table inet natpunch_wg0 {}"] {
            assert_eq!(Found::read(text.as_bytes()), None, "{text}");
        }
        for out in [
            "5",
            "[1, 2, 3]",
            r#"[{"concat": []}, 61201]"#,
            r#"[{"concat": ["x", 7]}, 61201]"#,
            r#"[{"concat": ["198.51.100.1", 70000]}, 61201]"#,
            r#"[{"concat": ["198.51.100.1", 7]}, 0]"#,
        ] {
            assert!(read(&listing(3, out, "")).pins().is_empty(), "{out}");
        }
    }
}
