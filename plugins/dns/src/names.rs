//! Names of a zone. Pure.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use domain::base::{Name, NameBuilder};
use natpunch_plugin::{PeerKey, RecordTag};

/// The service and protocol of SRV records (RFC 2782).
const SERVICE: [&str; 2] = ["_natpunch", "_udp"];
/// Bytes of a hash that name a key, as many as a tag has.
const HASH: usize = 16;
/// The longest name, in bytes on the wire (RFC 1035, 2.3.4).
const LONGEST: usize = 255;
/// What stands before a zone at most: the service, and a label of 32 digits.
const BEFORE_ZONE: usize = 1 + 9 + 1 + 4 + 1 + 2 * HASH;

/// An absolute name.
pub(crate) type DnsName = Name<Vec<u8>>;

/// The domain below which the records are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Zone(DnsName);

impl FromStr for Zone {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let name = host_name(text)?;
        if name.len() + BEFORE_ZONE > LONGEST {
            return Err("with the labels of records before it, it is longer than 255 bytes");
        }
        Ok(Self(name))
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Zone {
    pub(crate) fn name(&self) -> &DnsName {
        &self.0
    }

    /// Where the record of a tag is: `TAG.ZONE`, of type TXT.
    pub(crate) fn record(&self, tag: RecordTag) -> DnsName {
        self.below(&[&tag.to_string()])
    }

    /// Where a person writes a peer's addresses: `_natpunch._udp.HASH.ZONE`, of type SRV, with the
    /// first 32 digits of the SHA-256 of its public key. Who does not have the mesh file can't tell
    /// whose they are: with the key, WireGuard at that address would answer.
    pub(crate) fn addresses(&self, peer: &PeerKey) -> DnsName {
        let hash = digest(&SHA256, peer.as_bytes());
        let digits = hash.as_ref().iter().take(HASH);
        let label: String = digits.map(|byte| format!("{byte:02x}")).collect();
        let [service, protocol] = SERVICE;
        self.below(&[service, protocol, &label])
    }

    fn below(&self, labels: &[&str]) -> DnsName {
        let mut name = NameBuilder::new_vec();
        let whole = labels
            .iter()
            .try_for_each(|label| name.append_label(label.as_bytes()))
            .ok()
            .and_then(|()| name.append_origin(&self.0).ok());
        // A zone that leaves no room for labels was refused; its own name holds no record.
        whole.unwrap_or_else(|| self.0.clone())
    }
}

/// The name of a TSIG key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyName(domain::tsig::KeyName);

impl FromStr for KeyName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let name = host_name(text)?.to_string().parse();
        name.map(Self).map_err(|_| "this is not a domain name")
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl KeyName {
    pub(crate) fn name(&self) -> &domain::tsig::KeyName {
        &self.0
    }
}

/// A name of letters, digits, hyphens and underscores. DNS allows any byte; a file in which others
/// stand is mistyped.
fn host_name(text: &str) -> Result<DnsName, &'static str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !text.bytes().all(is_plain) {
        return Err("it has other characters than letters, digits, hyphens and dots");
    }
    let name = DnsName::from_str(text).ok().filter(|name| !name.is_root());
    name.ok_or("this is not a domain name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_and_the_addresses_of_a_peer_are_below_the_zone() {
        let zone: Zone = "Natpunch.example.org.".parse().unwrap();
        let tag = RecordTag([0xa2; 16]);
        let below = format!("{}.Natpunch.example.org", "a2".repeat(16));
        assert_eq!(zone.record(tag).to_string(), below);
        // printf 32 zeros | sha256sum
        let addresses = zone.addresses(&PeerKey::from_bytes([0; 32])).to_string();
        let wanted = "_natpunch._udp.66687aadf862bd776c8fc18b8e9f8e20.Natpunch.example.org";
        assert_eq!(addresses, wanted);
    }

    #[test]
    fn a_zone_leaves_room_for_labels_and_is_no_mistake() {
        let long = |length: usize| format!("{}.{}", "a".repeat(63), "b".repeat(length));
        let longest = format!("{}.{}", long(63), long(13));
        let zone: Zone = longest.parse().unwrap();
        assert_eq!(zone.addresses(&PeerKey::from_bytes([1; 32])).len(), LONGEST);
        for bad in [
            "",
            ".",
            "a..b",
            "a b",
            "a\\.b",
            "é.org",
            &format!("{}.{}", long(63), long(14)),
            &"a".repeat(64),
        ] {
            assert!(bad.parse::<Zone>().is_err(), "{bad}");
        }
    }
}
