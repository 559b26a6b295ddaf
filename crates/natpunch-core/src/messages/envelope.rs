//! What probes and the other datagrams between two nodes have around their text:
//!
//! ```text
//!   0  magic "NPch"                     16  nonce (24, random)
//!   4  form (4)                         40  text, XChaCha20-Poly1305 with bytes 0..16
//!   8  tag of the pair and direction        authenticated, and its tag (16)
//! ```

use chacha20poly1305::{AeadInPlace as _, XNonce};
use natpunch_types::{PROBE_MAGIC, ProbeTag};
use rand_core::RngCore;

use crate::keys::Direction;
use crate::messages::wire::Reader;

/// Which kind of datagram it is: a version, a kind and two zeros.
pub(crate) type Form = [u8; 4];

const HEADER_LEN: usize = 16;
const NONCE_LEN: usize = 24;
const MAC_LEN: usize = 16;
/// Bytes around a text.
pub(crate) const AROUND: usize = HEADER_LEN + NONCE_LEN + MAC_LEN;

/// The tag of a datagram of this form, by which its peer is found.
pub(crate) fn tag(datagram: &[u8], form: Form) -> Option<ProbeTag> {
    let mut reader = Reader(datagram);
    (reader.array()? == PROBE_MAGIC && reader.array()? == form)
        .then(|| reader.array().map(ProbeTag))?
}

/// The first bytes of a datagram of this form.
pub(crate) fn header(form: Form, keys: &Direction) -> Vec<u8> {
    [&PROBE_MAGIC[..], &form, &keys.probe_tag.0].concat()
}

/// The datagram. `None` for a text of more than 256 GiB, which the cipher refuses.
pub(crate) fn seal(
    form: Form,
    mut text: Vec<u8>,
    keys: &Direction,
    rng: &mut impl RngCore,
) -> Option<Vec<u8>> {
    let mut datagram = Vec::with_capacity(AROUND + text.len());
    datagram.extend(header(form, keys));
    let mut nonce = [0; NONCE_LEN];
    rng.fill_bytes(&mut nonce);
    let nonce = XNonce::from_slice(&nonce);
    let mac = keys
        .probe
        .encrypt_in_place_detached(nonce, &datagram, &mut text)
        .ok()?;
    datagram.extend(nonce);
    datagram.extend(text);
    datagram.extend(mac);
    Some(datagram)
}

/// The text of a datagram that has this [tag]: `None` if the peer did not seal it for us.
pub(crate) fn open(tag: ProbeTag, keys: &Direction, datagram: &[u8]) -> Option<Vec<u8>> {
    if tag != keys.probe_tag {
        return None;
    }
    let (header, rest) = datagram.split_first_chunk::<HEADER_LEN>()?;
    let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>()?;
    let (sealed, mac) = rest.split_last_chunk::<MAC_LEN>()?;
    let mut text = sealed.to_vec();
    keys.probe
        .decrypt_in_place_detached(nonce.into(), header, &mut text, mac.into())
        .ok()?;
    Some(text)
}
