//! A node's file: a line that says what it is, then a record a line. Pure.
//!
//! ```text
//! natpunch records 1
//! a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2 c2VhbGVkIGZvciB5b3U=
//! ```

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::digest::consts::U16;
use blake2::{Blake2s, Digest as _};
use natpunch_plugin::{PeerKey, RecordTag, SealedRecord};

const FIRST_LINE: &str = "natpunch records 1";
/// What the names of all files end in.
pub(crate) const EXTENSION: &str = "natpunch";

/// The name of a node's file. Who does not have the mesh file can't tell whose it is, and each node
/// has one name, so that what it writes replaces what it wrote.
pub(crate) fn name(own_key: &PeerKey) -> String {
    let mut hash = Blake2s::<U16>::new();
    hash.update(b"natpunch file plugin: name");
    hash.update(own_key.as_bytes());
    let mut name = String::new();
    for byte in hash.finalize() {
        // A String takes whatever is written to it.
        let _ = write!(name, "{byte:02x}");
    }
    format!("{name}.{EXTENSION}")
}

/// The text of a file.
pub(crate) fn write(records: &[SealedRecord]) -> String {
    let mut text = format!("{FIRST_LINE}\n");
    for record in records {
        text.push_str(&record.tag.to_string());
        text.push(' ');
        STANDARD.encode_string(&record.blob, &mut text);
        text.push('\n');
    }
    text
}

/// The records of a file under tags that are wanted. `None` if it is no such file. Lines that are
/// none are left out: what another version writes, or half of what is on its way.
pub(crate) fn read(bytes: &[u8], wanted: impl Fn(&RecordTag) -> bool) -> Option<Vec<SealedRecord>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let records = text.strip_prefix(FIRST_LINE)?.strip_prefix('\n')?;
    // Without its end a line is not whole.
    let (whole, _) = records.rsplit_once('\n').unwrap_or_default();
    let record = |line: &str| {
        let (tag, blob) = line.split_once(' ')?;
        let tag = RecordTag::from_hex(tag).filter(&wanted)?;
        let blob = STANDARD.decode(blob).ok()?;
        (!blob.is_empty() && blob.len() <= SealedRecord::MAX).then(|| SealedRecord {
            tag,
            blob: blob.into(),
        })
    };
    Some(whole.lines().filter_map(record).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u8, length: usize) -> SealedRecord {
        SealedRecord {
            tag: RecordTag([n; 16]),
            blob: vec![n; length].into(),
        }
    }

    #[test]
    fn what_is_written_is_read_and_only_what_is_wanted() {
        let records = [record(1, 300), record(2, SealedRecord::MAX)];
        let text = write(&records);
        assert_eq!(read(text.as_bytes(), |_| true).unwrap(), records);
        let one = read(text.as_bytes(), |tag| *tag == RecordTag([2; 16])).unwrap();
        assert_eq!(one, records[1..]);
        assert_eq!(read(write(&[]).as_bytes(), |_| true), Some(vec![]));
    }

    #[test]
    fn what_is_no_record_is_left_out_and_the_others_are_read() {
        let good = write(&[record(1, 9)]);
        let too_long = write(&[record(3, SealedRecord::MAX + 1)]);
        let (_, too_long) = too_long.split_once('\n').unwrap();
        let lines = "<<<<<<< ours\nzz c2Vh\na2 c2Vh\n02020202020202020202020202020202 !!\n\n";
        let text = format!("{good}{lines}{too_long}04040404040404040404040404040404 c2Vh");
        assert_eq!(read(text.as_bytes(), |_| true).unwrap(), [record(1, 9)]);
        for other in [&b""[..], b"notes\n", b"natpunch records 2\n", b"\xff\xfe"] {
            assert_eq!(read(other, |_| true), None);
        }
    }

    #[test]
    fn a_name_is_that_of_one_node_and_shows_nothing_of_its_key() {
        let names = [1, 2].map(|n| name(&PeerKey::from_bytes([n; 32])));
        assert_ne!(names[0], names[1]);
        assert_eq!(names[0], name(&PeerKey::from_bytes([1; 32])));
        assert_eq!(names[0].len(), 32 + ".natpunch".len());
    }
}
