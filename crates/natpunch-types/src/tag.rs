//! Tags: short names that only a pair of peers can compute, by which what is meant for the pair is
//! found without a trial of every key.

use std::fmt;

macro_rules! tag {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// That of a peer that has no key in common with this node.
            pub const NONE: Self = Self([0; $len]);
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}

tag!(
    /// Marks the probes of one direction of a pair; sent in clear with every probe.
    ProbeTag,
    8
);
tag!(
    /// Names a one-way mailbox between two peers, in which sealed records are left.
    RecordTag,
    16
);
tag!(
    /// Names a pair of peers, the same on both sides.
    PairTag,
    16
);

impl RecordTag {
    /// Reads what `Display` writes: 32 hexadecimal digits, in either case.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let tag = u128::from_str_radix(text, 16).ok()?;
        Some(Self(tag.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_tag_is_read_as_it_is_written_and_nothing_else_is() {
        let tag = RecordTag(std::array::from_fn(|n| n as u8 * 17));
        assert_eq!(RecordTag::from_hex(&tag.to_string()), Some(tag));
        let long = "a2".repeat(17);
        for other in ["", "a2", "+2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2", &long] {
            assert_eq!(RecordTag::from_hex(other), None, "{other}");
        }
    }
}
