//! The classic BPF program of the raw sockets, as data: what the kernel hands over is decided here,
//! and nothing else of the port's traffic is ever copied to natpunch.
//!
//! A raw IPv4 socket sees a packet from its IP header on, a raw IPv6 socket from its UDP header on;
//! there the source address is reached through the network header (`SKF_NET_OFF`).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use natpunch_types::{
    INITIATION_LEN, Nat64, PROBE_MAGIC, RENDEZVOUS_MAGIC, RESPONSE_LEN, canonical,
};

/// STUN's magic cookie (RFC 8489, 5).
const STUN_COOKIE: u32 = 0x2112_a442;
const STUN_HEADER: usize = 20;
const UDP_HEADER: u32 = 8;
const IPV6_HEADER: u32 = 40;
const PROTOCOL_UDP: u32 = 17;
/// Verdict: keep the whole packet.
const WHOLE: u32 = u32::MAX;
/// Where a program finds which way a packet goes (`SKF_AD_OFF + SKF_AD_PKTTYPE` of linux/filter.h),
/// and what stands there of one that this host sends (`PACKET_OUTGOING` of linux/if_packet.h).
const PACKET_TYPE: u32 = 0xffff_f004;
const OUTGOING: u32 = 4;
/// Where a load from the network header begins (`SKF_NET_OFF` of linux/filter.h).
const NETWORK_HEADER: u32 = 0xfff0_0000;

/// One instruction of classic BPF, as the kernel's `struct sock_filter` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

/// The opcodes in use (linux/bpf_common.h).
pub(crate) mod op {
    pub(crate) const LOAD_WORD: u16 = 0x20;
    pub(crate) const LOAD_HALF: u16 = 0x28;
    pub(crate) const LOAD_BYTE: u16 = 0x30;
    pub(crate) const LOAD_WORD_FROM_X: u16 = 0x40;
    pub(crate) const LOAD_HALF_FROM_X: u16 = 0x48;
    pub(crate) const LOAD_BYTE_FROM_X: u16 = 0x50;
    pub(crate) const LOAD_LENGTH: u16 = 0x80;
    pub(crate) const LOAD_SCRATCH: u16 = 0x60;
    pub(crate) const STORE_SCRATCH: u16 = 0x02;
    pub(crate) const X_HEADER_LENGTH: u16 = 0xb1;
    pub(crate) const X_CONSTANT: u16 = 0x01;
    pub(crate) const SUBTRACT_X: u16 = 0x1c;
    pub(crate) const IF_EQUAL: u16 = 0x15;
    pub(crate) const IF_AT_LEAST: u16 = 0x35;
    pub(crate) const IF_ANY_BIT: u16 = 0x45;
    pub(crate) const RETURN: u16 = 0x06;
}

/// The family of a raw socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// What may pass: UDP to `port` that is not a fragment and is a probe, or of natpunch's own
/// rendezvous, or STUN, or comes from one of `sources`.
///
/// The rendezvous passes by its form, not by its source: a relay's ports send both its answers and
/// what WireGuard says, and the latter is nobody's business here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) port: u16,
    /// [Unscoped](unscoped) addresses whose datagrams pass whatever their shape.
    pub(crate) sources: BTreeSet<SocketAddr>,
    /// What the network translates.
    pub(crate) nat64: Option<Nat64>,
}

/// The canonical form of an address, without the scope, which a program can't see.
pub(crate) fn unscoped(address: SocketAddr) -> SocketAddr {
    let address = canonical(address);
    SocketAddr::new(address.ip(), address.port())
}

/// The program that drops everything.
pub(crate) fn drop_all() -> Vec<Instruction> {
    vec![Instruction {
        code: op::RETURN,
        jt: 0,
        jf: 0,
        k: 0,
    }]
}

/// The program of a packet socket that sees IPv4 packets from their IP header on: it keeps
/// WireGuard's handshake initiations from `port` to this port of addresses that begin with
/// `network`.
pub(crate) fn rested(port: u16, network: [u8; 2], to: u16) -> Vec<Instruction> {
    use Target::{Drop, Next};
    let mut code = Assembler::default();
    code.ipv4_udp();
    code.run(op::LOAD_HALF, 16);
    code.branch(op::IF_EQUAL, u16::from_be_bytes(network).into(), Next, Drop);
    code.run(op::LOAD_HALF_FROM_X, 0);
    code.branch(op::IF_EQUAL, port.into(), Next, Drop);
    code.run(op::LOAD_HALF_FROM_X, 2);
    code.branch(op::IF_EQUAL, to.into(), Next, Drop);
    code.wireguard_message(1, INITIATION_LEN);
    code.finish()
}

/// The program of a packet socket that sees packets of either family from their IP header on: it
/// keeps WireGuard's handshake responses that leave this host, from whatever port.
pub(crate) fn responses() -> Vec<Instruction> {
    use Target::{Drop, Next, Skip};
    let mut code = Assembler::default();
    code.run(op::LOAD_BYTE, PACKET_TYPE);
    code.branch(op::IF_EQUAL, OUTGOING, Next, Drop);
    code.run(op::LOAD_BYTE, 0);
    // IPv6 without extension headers, and then over the eight lines of IPv4.
    code.branch(op::IF_AT_LEAST, 0x60, Next, Skip(5));
    code.branch(op::IF_AT_LEAST, 0x70, Drop, Next);
    code.run(op::LOAD_BYTE, 6);
    code.branch(op::IF_EQUAL, PROTOCOL_UDP, Next, Drop);
    code.run(op::X_CONSTANT, IPV6_HEADER);
    code.branch(op::IF_AT_LEAST, 0, Skip(8), Next);
    code.ipv4_udp();
    code.wireguard_message(2, RESPONSE_LEN);
    code.finish()
}

impl Rules {
    /// The rules in Rust: a packet that was queued under an older program is judged again when it
    /// is read.
    pub(crate) fn accept(&self, source: SocketAddr, destination_port: u16, payload: &[u8]) -> bool {
        let starts_with = |at: usize, bytes: [u8; 4]| payload.get(at..at + 4) == Some(&bytes);
        let is_probe = starts_with(0, PROBE_MAGIC);
        let is_stun = payload.len() >= STUN_HEADER
            && payload.first().is_some_and(|byte| byte & 0xc0 == 0)
            && starts_with(4, STUN_COOKIE.to_be_bytes());
        let is_rendezvous = payload.len() >= 4 && payload.starts_with(&RENDEZVOUS_MAGIC);
        destination_port == self.port
            && (is_probe || is_rendezvous || is_stun || self.sources.contains(&unscoped(source)))
    }

    /// The rules as a program for the raw sockets of one family.
    pub(crate) fn program(&self, family: Family) -> Vec<Instruction> {
        use Target::{Accept, Drop, Next, Sources};
        let mut code = Assembler::default();
        match family {
            Family::V4 => code.ipv4_udp(),
            // The kernel has walked the extension headers, reassembled, and matched the protocol.
            Family::V6 => code.run(op::X_CONSTANT, 0),
        }
        // X is now the start of the UDP header.
        code.run(op::LOAD_HALF_FROM_X, 2);
        code.branch(op::IF_EQUAL, u32::from(self.port), Next, Drop);

        // A load beyond the end ends the program with "drop", which a short packet from a known
        // source must not suffer.
        code.run(op::LOAD_LENGTH, 0);
        code.run(op::SUBTRACT_X, 0);
        code.branch(op::IF_AT_LEAST, UDP_HEADER, Next, Drop);
        code.branch(op::IF_AT_LEAST, UDP_HEADER + 4, Next, Sources);
        code.run(op::LOAD_WORD_FROM_X, UDP_HEADER);
        code.branch(op::IF_EQUAL, u32::from_be_bytes(PROBE_MAGIC), Accept, Next);
        let [a, b, c] = RENDEZVOUS_MAGIC;
        code.branch(
            op::IF_AT_LEAST,
            u32::from_be_bytes([a, b, c + 1, 0]),
            Sources,
            Next,
        );
        code.branch(
            op::IF_AT_LEAST,
            u32::from_be_bytes([a, b, c, 0]),
            Accept,
            Next,
        );
        code.branch(op::IF_ANY_BIT, 0xc000_0000, Sources, Next);
        code.run(op::LOAD_LENGTH, 0);
        code.run(op::SUBTRACT_X, 0);
        code.branch(
            op::IF_AT_LEAST,
            UDP_HEADER + STUN_HEADER as u32,
            Next,
            Sources,
        );
        code.run(op::LOAD_WORD_FROM_X, UDP_HEADER + 4);
        code.branch(op::IF_EQUAL, STUN_COOKIE, Accept, Sources);

        code.verdicts();
        code.run(op::LOAD_HALF_FROM_X, 0);
        code.run(op::STORE_SCRATCH, 0);
        let arriving = |source: &SocketAddr| match self.nat64 {
            Some(nat64) => nat64.outward(*source),
            None => *source,
        };
        for source in self.sources.iter().map(arriving) {
            let (start, words) = match (family, source.ip()) {
                (Family::V4, IpAddr::V4(ip)) => (12, vec![u32::from(ip)]),
                (Family::V6, IpAddr::V6(ip)) => {
                    let whole = u128::from(ip);
                    (
                        NETWORK_HEADER + 8,
                        [96, 64, 32, 0]
                            .map(|shift| (whole >> shift) as u32)
                            .to_vec(),
                    )
                }
                _ => continue,
            };
            // Two instructions a word, two for the port, one verdict; a mismatch jumps over what is
            // left of them.
            let mut left = words.len() as u8 * 2 + 3;
            for (offset, word) in (start..).step_by(4).zip(words) {
                left -= 2;
                code.run(op::LOAD_WORD, offset);
                code.branch(op::IF_EQUAL, word, Next, Target::Skip(left));
            }
            code.run(op::LOAD_SCRATCH, 0);
            code.branch(
                op::IF_EQUAL,
                u32::from(source.port()),
                Next,
                Target::Skip(1),
            );
            code.run(op::RETURN, WHOLE);
        }
        code.run(op::RETURN, 0);
        code.finish()
    }
}

/// Where a branch goes.
#[derive(Debug, Clone, Copy)]
enum Target {
    Next,
    /// Over this many instructions.
    Skip(u8),
    Accept,
    Drop,
    Sources,
}

#[derive(Default)]
struct Assembler {
    lines: Vec<(u16, u32, Target, Target)>,
    /// Index of the two verdicts: accept, then drop; the check of the sources follows.
    verdicts: usize,
}

impl Assembler {
    fn run(&mut self, code: u16, k: u32) {
        self.branch(code, k, Target::Next, Target::Next);
    }

    fn branch(&mut self, code: u16, k: u32, yes: Target, no: Target) {
        self.lines.push((code, k, yes, no));
    }

    /// Drops what is not a whole UDP datagram in an IPv4 packet; X is then the start of the UDP
    /// header.
    fn ipv4_udp(&mut self) {
        use Target::{Drop, Next};
        // Version 4 and a header of at least five words.
        self.run(op::LOAD_BYTE, 0);
        self.branch(op::IF_AT_LEAST, 0x45, Next, Drop);
        self.branch(op::IF_AT_LEAST, 0x50, Drop, Next);
        self.run(op::LOAD_BYTE, 9);
        self.branch(op::IF_EQUAL, PROTOCOL_UDP, Next, Drop);
        // More fragments, or an offset.
        self.run(op::LOAD_HALF, 6);
        self.branch(op::IF_ANY_BIT, 0x3fff, Drop, Next);
        self.run(op::X_HEADER_LENGTH, 0);
    }

    /// Keeps a message of WireGuard's of this type and length in bytes, and drops all else. X is the
    /// start of the UDP header.
    fn wireguard_message(&mut self, kind: u8, length: usize) {
        use Target::{Accept, Drop, Next};
        self.run(op::LOAD_LENGTH, 0);
        self.run(op::SUBTRACT_X, 0);
        let length = UDP_HEADER + length as u32;
        self.branch(op::IF_EQUAL, length, Next, Drop);
        // The type, and three bytes that are zero.
        self.run(op::LOAD_WORD_FROM_X, UDP_HEADER);
        let first = u32::from_be_bytes([kind, 0, 0, 0]);
        self.branch(op::IF_EQUAL, first, Accept, Drop);
        self.verdicts();
    }

    fn verdicts(&mut self) {
        self.verdicts = self.lines.len();
        self.run(op::RETURN, WHOLE);
        self.run(op::RETURN, 0);
    }

    fn finish(self) -> Vec<Instruction> {
        let verdicts = self.verdicts;
        // Branches to the verdicts are all before them and near: the part before the sources has a
        // fixed length.
        let offset = |at: usize, target: Target| match target {
            Target::Next => 0,
            Target::Skip(count) => count,
            Target::Accept => (verdicts - at - 1) as u8,
            Target::Drop => (verdicts - at) as u8,
            Target::Sources => (verdicts - at + 1) as u8,
        };
        let assemble =
            |(at, (code, k, yes, no)): (usize, (u16, u32, Target, Target))| Instruction {
                code,
                jt: offset(at, yes),
                jf: offset(at, no),
                k,
            };
        self.lines.into_iter().enumerate().map(assemble).collect()
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
