//! STUN Binding (RFC 8489), as much of it as a mesh needs: ask "which address do you see me from?",
//! answer that question, and tell STUN from anything else on the same port. A server with several
//! ports or addresses also answers from another one, when asked to, so that a client can tell how
//! its NAT filters (RFC 5780).
//!
//! Every function is pure and total: any bytes may be passed in. An answer is never longer than the
//! request it answers, so that a server is of no use as an amplifier; [`request`] is therefore long
//! enough for the longest answer. A standard 20-byte request is left unanswered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use blake2::Blake2sMac256;
use blake2::digest::Mac as _;
use natpunch_types::{Time, canonical};
use zeroize::Zeroizing;

/// The magic cookie at offset 4 of every STUN message (RFC 8489, 5).
pub const MAGIC_COOKIE: u32 = 0x2112_a442;

const HEADER: usize = 20;
/// The attributes of the longest answer: one IPv6 XOR-MAPPED-ADDRESS.
const LONGEST_ANSWER: usize = HEADER + 4 + 20;

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;

const MAPPED_ADDRESS: u16 = 0x0001;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const CHANGE_REQUEST: u16 = 0x0003;
const RESPONSE_PORT: u16 = 0x0027;
const RESPONSE_ORIGIN: u16 = 0x802b;
const OTHER_ADDRESS: u16 = 0x802c;
const SOFTWARE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;
/// natpunch's own, of the range that a server which does not know it ignores: see [`Tokens`].
const MAPPING_TOKEN: u16 = 0xc06e;
/// The same: the port that the server's other answers leave from. OTHER-ADDRESS would tell it, but
/// not of a server with one address (RFC 5780, 7.4).
const OTHER_PORT: u16 = 0xc06f;

/// Attributes of 0x0000-0x7fff that may be there without changing the meaning of a Binding: those
/// of RFC 8489 (an agent that does not authenticate ignores the credentials) and PADDING (RFC
/// 5780), which only lengthens a request.
const UNDERSTOOD: [u16; 12] = [
    MAPPED_ADDRESS,
    0x0006, // USERNAME
    MESSAGE_INTEGRITY,
    ERROR_CODE,
    UNKNOWN_ATTRIBUTES,
    0x0014, // REALM
    0x0015, // NONCE
    MESSAGE_INTEGRITY_SHA256,
    0x001d, // PASSWORD-ALGORITHM
    0x001e, // USERHASH
    XOR_MAPPED_ADDRESS,
    0x0026, // PADDING
];

/// Flags of CHANGE-REQUEST.
const CHANGE_IP: u8 = 4;
const CHANGE_PORT: u8 = 2;

const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;
const UNKNOWN_ATTRIBUTE: u16 = 420;

/// Ties an answer to its request. It must be unguessable, since nothing else proves that an answer
/// is genuine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub [u8; 12]);

/// Shows that its bearer has asked a server from some address: see [`Tokens`].
pub type Token = [u8; 8];

/// What a server answered to a Binding request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The canonical address from which the server saw the request.
    Mapped(SocketAddr),
    /// The server refused, with an error code of 300-699 (RFC 8489, 14.8).
    Refused(u16),
}

/// True if a datagram has the form of a STUN message: the two zero bits, the cookie, and a length
/// that is a multiple of four and that of the datagram. WireGuard's messages and natpunch's own
/// probes never have it.
pub fn is_stun(payload: &[u8]) -> bool {
    Message::parse(payload).is_some()
}

/// A Binding request, as long as the longest answer to it.
pub fn request(id: TransactionId) -> Vec<u8> {
    let mut message = Builder::new(BINDING_REQUEST, id);
    // SOFTWARE is the one attribute that every server ignores and that may hold anything. PADDING
    // is made for this, but a server without RFC 5780 must refuse it.
    message.attribute(
        SOFTWARE,
        &format!("{:<1$}", "natpunch", LONGEST_ANSWER - HEADER - 4).into_bytes(),
    );
    message.finish()
}

/// A Binding request of so many bytes, a multiple of four, to see whether that many pass.
pub fn request_of_length(id: TransactionId, length: usize) -> Vec<u8> {
    /// Of one SOFTWARE attribute (RFC 8489, 14.14).
    const LONGEST: usize = 760;
    let mut message = Builder(request(id));
    while let Some(missing) = length.checked_sub(message.0.len() + 4) {
        message.attribute(SOFTWARE, &vec![b' '; missing.min(LONGEST)]);
    }
    message.finish()
}

/// A Binding request that asks for a [`Token`] of the address that it comes from, too. A server that
/// knows none answers as ever.
pub fn request_token(id: TransactionId) -> Vec<u8> {
    let mut message = Builder(request(id));
    message.attribute(MAPPING_TOKEN, &Token::default());
    message.finish()
}

/// A Binding request whose answer goes to another port of the address that it comes from
/// (RESPONSE-PORT, RFC 5780, 7.5), with the token of that port, if the server gave one.
pub fn request_to_port(id: TransactionId, port: u16, token: Option<Token>) -> Vec<u8> {
    let mut message = Builder(request(id));
    let [high, low] = port.to_be_bytes();
    message.attribute(RESPONSE_PORT, &[high, low, 0, 0]);
    if let Some(token) = token {
        message.attribute(MAPPING_TOKEN, &token);
    }
    message.finish()
}

/// A Binding request that asks from where else the server can answer, too ([`parse_others`]). It is
/// long enough for all of that.
pub fn request_others(id: TransactionId) -> Vec<u8> {
    let mut message = Builder(request(id));
    message.attribute(OTHER_PORT, &[0; 4]);
    // Room for two more addresses of IPv6: RESPONSE-ORIGIN and OTHER-ADDRESS.
    message.attribute(SOFTWARE, &[b' '; 2 * 24 - 4]);
    message.finish()
}

/// A Binding request whose answer shall leave otherwise than it comes (CHANGE-REQUEST, RFC 5780,
/// 7.2).
pub fn request_change(id: TransactionId, change: Change) -> Vec<u8> {
    let mut message = Builder(request(id));
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let flags = flag(change.ip, CHANGE_IP) | flag(change.port, CHANGE_PORT);
    message.attribute(CHANGE_REQUEST, &[0, 0, 0, flags]);
    message.finish()
}

/// From where else a server says that it answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Others {
    /// Its other port.
    pub port: Option<u16>,
    /// Its other address and port (OTHER-ADDRESS, RFC 5780, 7.4), in canonical form.
    pub address: Option<SocketAddr>,
}

/// From where else the server answers, by its answer to [`request_others`].
pub fn parse_others(payload: &[u8]) -> Others {
    let message = Message::parse(payload).filter(|message| message.kind == BINDING_SUCCESS);
    let Some(message) = message else {
        return Others::default();
    };
    let address = message.find(OTHER_ADDRESS).and_then(decode_address);
    let address = address.map(canonical).filter(|address| address.port() != 0);
    let told = match message.find(OTHER_PORT) {
        Some([high, low, ..]) => Some(u16::from_be_bytes([*high, *low])),
        _ => address.map(|address| address.port()),
    };
    let port = told.filter(|port| *port != 0);
    Others { port, address }
}

/// The token in the answer to [`request_token`], if there is one.
pub fn parse_token(payload: &[u8]) -> Option<Token> {
    let message = Message::parse(payload).filter(|message| message.kind == BINDING_SUCCESS)?;
    message.find(MAPPING_TOKEN)?.try_into().ok()
}

/// A server's word that an address has asked it. With it a client can have an answer sent to one of
/// its mappings without sending from there, which shows whether its NAT still holds that mapping
/// (RFC 5780, 4.6).
///
/// RFC 5780 lets whoever shares an address with others have answers sent to all of their ports. Here
/// no answer goes to where no request came from: the port has to have asked, and its bearer to have
/// got the answer, at most ten minutes ago. The server keeps nothing.
pub struct Tokens(Zeroizing<[u8; 32]>);

impl Tokens {
    /// How long a server makes the same tokens; those of the time before are good, too. Twice the
    /// longest silence that is measured, so that a token outlives it.
    const EPOCH: Duration = Duration::from_secs(300);

    /// With this key, which nobody else may know.
    pub fn new(key: [u8; 32]) -> Self {
        Self(Zeroizing::new(key))
    }

    fn mac(&self, holder: SocketAddr, epoch: u64) -> Option<Blake2sMac256> {
        let mut mac = <Blake2sMac256 as blake2::digest::KeyInit>::new_from_slice(&*self.0).ok()?;
        mac.update(b"natpunch stun token v1");
        mac.update(&epoch.to_be_bytes());
        mac.update(&encode_address(canonical(holder)));
        Some(mac)
    }

    fn epoch(now: Time) -> u64 {
        now.since_origin().as_secs() / Self::EPOCH.as_secs()
    }

    fn of(&self, holder: SocketAddr, now: Time) -> Option<Token> {
        let mac = self.mac(holder, Self::epoch(now))?.finalize().into_bytes();
        mac.first_chunk().copied()
    }

    /// Compares in constant time.
    fn vouch(&self, token: &[u8], holder: SocketAddr, now: Time) -> bool {
        let epoch = Self::epoch(now);
        let of_epoch = |epoch| self.mac(holder, epoch);
        let epochs = [Some(epoch), epoch.checked_sub(1)].into_iter().flatten();
        token.len() == size_of::<Token>()
            && epochs
                .filter_map(of_epoch)
                .any(|mac| mac.verify_truncated_left(token).is_ok())
    }

    /// The answer to a request for a token, or to one that shows the token of the port that the
    /// answer shall go to, and where it goes. `None` for any other request, which
    /// [`respond_from`] answers, and for one that is shorter than its answer.
    pub fn respond(
        &self,
        request: &[u8],
        source: SocketAddr,
        now: Time,
    ) -> Option<(Vec<u8>, SocketAddr)> {
        let message = Message::parse(request)?;
        let token = message.find(MAPPING_TOKEN)?;
        let (answer, to) = match message.find(RESPONSE_PORT) {
            None => {
                message.answerable(&[])?.ok()?;
                let mut answer = message.mapped(source);
                answer.attribute(MAPPING_TOKEN, &self.of(source, now)?);
                (answer.finish(), source)
            }
            Some([high, low, ..]) => {
                let holder = SocketAddr::new(source.ip(), u16::from_be_bytes([*high, *low]));
                if holder.port() == 0 || !self.vouch(token, holder, now) {
                    return None;
                }
                message.answerable(&[RESPONSE_PORT])?.ok()?;
                (message.mapped(source).finish(), holder)
            }
            Some(_) => return None,
        };
        (answer.len() <= request.len()).then_some((answer, to))
    }
}

/// The answer to a Binding request that came from `source`; `None` for anything else, and for a
/// request that is shorter than its answer.
pub fn respond(request: &[u8], source: SocketAddr) -> Option<Vec<u8>> {
    let message = Message::parse(request)?;
    let answer = match message.answerable(&[])? {
        Ok(()) => message.mapped(source).finish(),
        Err(refusal) => refusal,
    };
    (answer.len() <= request.len()).then_some(answer)
}

/// How the answer to a request is to leave otherwise than the request came (CHANGE-REQUEST, RFC
/// 5780, 7.2). It goes to where the request came from in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// From the server's other address.
    pub ip: bool,
    /// From its other port.
    pub port: bool,
}

/// From where a server can answer a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origins {
    /// Where the request came.
    pub here: SocketAddr,
    /// The other port of this address.
    pub other_port: Option<SocketAddr>,
    /// This port of the other address.
    pub other_ip: Option<SocketAddr>,
    /// The other port of the other address.
    pub other: Option<SocketAddr>,
}

impl Origins {
    fn after(&self, change: Change) -> Option<SocketAddr> {
        match (change.ip, change.port) {
            (false, false) => Some(self.here),
            (false, true) => self.other_port,
            (true, false) => self.other_ip,
            (true, true) => self.other,
        }
    }
}

/// [`respond`] for a server with several ports (RFC 5780, 6.1), by an answer of at most `longest`
/// bytes: which, and from where. A change that is not possible is refused as an attribute that is
/// not understood. RESPONSE-PORT is, too, unless it comes with a token ([`Tokens::respond`]): no
/// answer goes to where no request came from. What only informs is left out where it does not fit.
pub fn respond_from(
    request: &[u8],
    source: SocketAddr,
    origins: &Origins,
    longest: usize,
) -> Option<(Vec<u8>, Change)> {
    let message = Message::parse(request)?;
    let change =
        message
            .find(CHANGE_REQUEST)
            .map_or(Some(Change::default()), |value| match value {
                [_, _, _, flags] => Some(Change {
                    ip: flags & CHANGE_IP != 0,
                    port: flags & CHANGE_PORT != 0,
                }),
                _ => None,
            });
    let possible = change.and_then(|change| Some((change, origins.after(change)?)));
    let understood: &[u16] = if possible.is_some() {
        &[CHANGE_REQUEST]
    } else {
        &[]
    };
    let (answer, change) = match (message.answerable(understood)?, possible) {
        (Ok(()), Some((change, origin))) => {
            let mut answer = message.mapped(source);
            let asked = message.find(OTHER_PORT);
            if let Some(other) = origins.other_port.filter(|_| asked.is_some())
                && answer.0.len() + 8 <= longest
            {
                let [high, low] = other.port().to_be_bytes();
                answer.attribute(OTHER_PORT, &[high, low, 0, 0]);
            }
            let informs = [
                (RESPONSE_ORIGIN, Some(origin)),
                (OTHER_ADDRESS, origins.other),
            ];
            for (kind, address) in informs
                .into_iter()
                .filter_map(|(kind, address)| Some((kind, address?)))
            {
                let value = encode_address(address);
                if answer.0.len() + 4 + value.len() <= longest {
                    answer.attribute(kind, &value);
                }
            }
            (answer.finish(), change)
        }
        (Err(refusal), _) => (refusal, Change::default()),
        (Ok(()), None) => return None,
    };
    (answer.len() <= longest).then_some((answer, change))
}

/// Reads the answer to a Binding request; `None` if these bytes are not one. The caller compares
/// the transaction id and the source address with those of its request.
pub fn parse_answer(payload: &[u8]) -> Option<(TransactionId, Answer)> {
    let message = Message::parse(payload)?;
    if !message.is_intact() {
        return None;
    }
    let answer = match message.kind {
        BINDING_SUCCESS if message.unknown_attributes().next().is_none() => {
            let mapped = match message.find(XOR_MAPPED_ADDRESS) {
                Some(value) => xor_address(decode_address(value)?, message.id),
                None => decode_address(message.find(MAPPED_ADDRESS)?)?,
            };
            Answer::Mapped(canonical(mapped))
        }
        BINDING_ERROR => match message.find(ERROR_CODE)? {
            [_, _, class, number, ..] if (3..=6).contains(&(class & 7)) && *number < 100 => {
                Answer::Refused(u16::from(class & 7) * 100 + u16::from(*number))
            }
            _ => return None,
        },
        _ => return None,
    };
    Some((message.id, answer))
}

/// A message whose attributes were all found to lie within it.
struct Message<'a> {
    kind: u16,
    id: TransactionId,
    whole: &'a [u8],
    attributes: &'a [u8],
}

impl<'a> Message<'a> {
    fn parse(whole: &'a [u8]) -> Option<Self> {
        let (kind, rest) = whole.split_first_chunk::<2>()?;
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (cookie, rest) = rest.split_first_chunk::<4>()?;
        let (id, attributes) = rest.split_first_chunk::<12>()?;
        let kind = u16::from_be_bytes(*kind);
        let length = usize::from(u16::from_be_bytes(*length));
        let is_stun = kind & 0xc000 == 0
            && u32::from_be_bytes(*cookie) == MAGIC_COOKIE
            && length % 4 == 0
            && length == attributes.len();
        if !is_stun {
            return None;
        }
        let message = Self {
            kind,
            id: TransactionId(*id),
            whole,
            attributes,
        };
        let walked: usize = message
            .all()
            .map(|(_, value)| 4 + value.len().next_multiple_of(4))
            .sum();
        (walked == attributes.len()).then_some(message)
    }

    /// Every attribute up to the first that does not fit.
    fn all(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        let mut rest = self.attributes;
        std::iter::from_fn(move || {
            let (kind, tail) = rest.split_first_chunk::<2>()?;
            let (length, tail) = tail.split_first_chunk::<2>()?;
            let length = usize::from(u16::from_be_bytes(*length));
            let value = tail.get(..length)?;
            rest = tail.get(length.next_multiple_of(4)..)?;
            Some((u16::from_be_bytes(*kind), value))
        })
    }

    /// The attributes that count: what follows a message integrity is not covered by it (RFC 8489,
    /// 14.5).
    fn counted(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        self.all()
            .take_while(|(kind, _)| !matches!(*kind, MESSAGE_INTEGRITY | MESSAGE_INTEGRITY_SHA256))
    }

    /// The first attribute of a kind; later ones are ignored (RFC 8489, 14).
    fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.counted()
            .find(|(found, _)| *found == kind)
            .map(|(_, value)| value)
    }

    /// Attributes that must be understood and are not.
    fn unknown_attributes(&self) -> impl Iterator<Item = u16> + use<'a> {
        self.counted()
            .map(|(kind, _)| kind)
            .filter(|kind| *kind < 0x8000 && !UNDERSTOOD.contains(kind))
    }

    /// Nothing if this is no Binding request that is intact; the refusal of one that asks for what
    /// is not understood.
    fn answerable(&self, also_understood: &[u16]) -> Option<Result<(), Vec<u8>>> {
        if self.kind != BINDING_REQUEST || !self.is_intact() {
            return None;
        }
        let unknown = self
            .unknown_attributes()
            .filter(|kind| !also_understood.contains(kind));
        let unknown: Vec<u8> = unknown.flat_map(u16::to_be_bytes).collect();
        if unknown.is_empty() {
            return Some(Ok(()));
        }
        let mut refusal = Builder::new(BINDING_ERROR, self.id);
        refusal.attribute(
            ERROR_CODE,
            &[
                0,
                0,
                (UNKNOWN_ATTRIBUTE / 100) as u8,
                (UNKNOWN_ATTRIBUTE % 100) as u8,
            ],
        );
        refusal.attribute(UNKNOWN_ATTRIBUTES, &unknown);
        Some(Err(refusal.finish()))
    }

    /// The answer that names this address.
    fn mapped(&self, source: SocketAddr) -> Builder {
        let mut answer = Builder::new(BINDING_SUCCESS, self.id);
        answer.attribute(
            XOR_MAPPED_ADDRESS,
            &encode_address(xor_address(canonical(source), self.id)),
        );
        answer
    }

    /// False if there is a FINGERPRINT that is not the last attribute or does not match (RFC 8489,
    /// 14.7).
    fn is_intact(&self) -> bool {
        let Some(position) = self.all().position(|(kind, _)| kind == FINGERPRINT) else {
            return true;
        };
        let Some((covered, [0x80, 0x28, 0, 4, crc @ ..])) = self.whole.split_last_chunk::<8>()
        else {
            return false;
        };
        let is_last = self.all().count() == position + 1;
        is_last && *crc == (crc32(covered) ^ 0x5354_554e).to_be_bytes()
    }
}

struct Builder(Vec<u8>);

impl Builder {
    fn new(kind: u16, id: TransactionId) -> Self {
        let mut message = Vec::with_capacity(LONGEST_ANSWER);
        message.extend(kind.to_be_bytes());
        message.extend([0; 2]);
        message.extend(MAGIC_COOKIE.to_be_bytes());
        message.extend(id.0);
        Self(message)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend(kind.to_be_bytes());
        self.0.extend((value.len() as u16).to_be_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = (self.0.len().saturating_sub(HEADER) as u16).to_be_bytes();
        if let Some(field) = self.0.get_mut(2..4) {
            field.copy_from_slice(&length);
        }
        self.0
    }
}

fn encode_address(address: SocketAddr) -> Vec<u8> {
    let family = if address.is_ipv4() {
        FAMILY_IPV4
    } else {
        FAMILY_IPV6
    };
    let mut value = vec![0, family];
    value.extend(address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => value.extend(ip.octets()),
        IpAddr::V6(ip) => value.extend(ip.octets()),
    }
    value
}

fn decode_address(value: &[u8]) -> Option<SocketAddr> {
    let [_, family, port_high, port_low, ip @ ..] = value else {
        return None;
    };
    let ip = match *family {
        FAMILY_IPV4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?)),
        FAMILY_IPV6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(
        ip,
        u16::from_be_bytes([*port_high, *port_low]),
    ))
}

/// To the XORed form and back (RFC 8489, 14.2): it keeps middleboxes from rewriting addresses that
/// they find in packets.
fn xor_address(address: SocketAddr, id: TransactionId) -> SocketAddr {
    let port = address.port() ^ (MAGIC_COOKIE >> 16) as u16;
    let ip = match address.ip() {
        IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from(u32::from(ip) ^ MAGIC_COOKIE)),
        IpAddr::V6(ip) => {
            let id =
                id.0.iter()
                    .fold(0_u128, |mask, byte| mask << 8 | u128::from(*byte));
            IpAddr::V6(Ipv6Addr::from(
                u128::from(ip) ^ (u128::from(MAGIC_COOKIE) << 96 | id),
            ))
        }
    };
    SocketAddr::new(ip, port)
}

/// CRC-32 of ITU V.42, bit by bit: it runs over a hundred bytes now and then.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    })
}

#[cfg(test)]
#[path = "stun_tests.rs"]
mod tests;
