//! Whether the server's host answers at all: asked by STUN (RFC 8489), which needs no secret, while
//! it does not answer a hello. So "no UDP gets there" is told from "this node is not admitted".

use rand_core::CryptoRng;

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
const COOKIE: [u8; 4] = 0x2112_A442_u32.to_be_bytes();
/// The attribute that every server ignores.
const SOFTWARE: u16 = 0x8022;
/// As long as the longest answer, three IPv6 addresses: a server answers with no more bytes than
/// it was asked with.
const SOFTWARE_LEN: u16 = 68;

/// What is known of it.
#[derive(Default)]
pub(super) struct Reachability {
    asked: Option<[u8; 12]>,
    answers: bool,
}

impl Reachability {
    /// A Binding request. Forgets what was known.
    pub(super) fn ask(&mut self, rng: &mut impl CryptoRng) -> Vec<u8> {
        let mut id = [0; 12];
        rng.fill_bytes(&mut id);
        (self.asked, self.answers) = (Some(id), false);
        let mut request = BINDING_REQUEST.to_be_bytes().to_vec();
        request.extend((SOFTWARE_LEN + 4).to_be_bytes());
        request.extend(COOKIE);
        request.extend(id);
        request.extend(SOFTWARE.to_be_bytes());
        request.extend(SOFTWARE_LEN.to_be_bytes());
        request.extend(format!("{:<1$}", "natpunch", SOFTWARE_LEN.into()).into_bytes());
        request
    }

    /// Something came from the server.
    pub(super) fn handle(&mut self, datagram: &[u8]) {
        let id = self
            .asked
            .filter(|_| datagram.starts_with(&BINDING_SUCCESS));
        self.answers |= id.is_some_and(|id| {
            datagram.get(4..8) == Some(&COOKIE[..]) && datagram.get(8..20) == Some(&id[..])
        });
    }

    /// Whether it has answered.
    pub(super) fn answers(&self) -> bool {
        self.answers
    }
}
