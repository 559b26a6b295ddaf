//! What the core takes from the network and from servers.

use std::net::SocketAddr;
use std::time::Duration;

use natpunch_core::{Command, Mesh, MeshSpec, PeerSpec, PunchSpec, Time, stun};
use natpunch_types::{
    Abilities, Ask, Candidate, CandidateKind, InstanceName, Mapping, News, OwnAddressKind, PathId,
    PeerKey, RecordTag, Running, SealedRecord, SecretKey,
};

use super::{Program, address};

fn own(n: u8) -> SecretKey {
    SecretKey::from_bytes([n; 32])
}

fn node(n: u8, peer: Option<PeerKey>) -> Mesh {
    let peer = peer.map(|key| PeerSpec::new("peer", key));
    let spec = MeshSpec {
        private_key: own(n),
        listen_port: 1000,
        mtu: 1_420,
        overlay: vec![],
        peers: peer.into_iter().collect(),
        punch: PunchSpec::default(),
    };
    let mut mesh = Mesh::new(spec, [n; 32], Time::ZERO);
    let abilities = Abilities {
        wireguard_port: true,
        meetings: true,
        relays: true,
        records: true,
        mappings: true,
        peer_messages: true,
    };
    let fuzz = (InstanceName::new("fuzz"), Running { abilities, run: 1 });
    mesh.handle_instances([fuzz].into(), Time::ZERO);
    mesh
}

/// Two nodes whose probes and records pass through the fuzzer's hands: it drops, delays, alters,
/// and sends from elsewhere. No endpoint is ever set that the fuzzer did not let answer.
pub(super) fn mesh(data: &[u8]) {
    let keys = [1, 2].map(|n| node(n, None).status(Time::ZERO).public_key);
    let mut nodes = [node(1, Some(keys[1])), node(2, Some(keys[0]))];
    let mut now = Time::ZERO;
    let mut program = Program::new(data, 300);
    let mut probes: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut records: Vec<(usize, RecordTag, Vec<u8>)> = Vec::new();
    let origin = InstanceName::new("fuzz");
    while let Some(operation) = program.operation() {
        let n = usize::from(operation >> 4 & 1);
        let Some(mesh) = nodes.get_mut(n) else { return };
        let from: SocketAddr = address(program.byte() & 7);
        let alter = |program: &mut Program<'_>, mut bytes: Vec<u8>| {
            if operation & 0x20 != 0 {
                let at = usize::from(program.byte()) % bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= program.byte();
                }
            }
            bytes
        };
        match operation & 0x0f {
            0..=4 => {
                let at = usize::from(program.byte());
                let found = probes
                    .iter()
                    .rev()
                    .filter(|(by, _)| *by != n)
                    .nth(at & 15)
                    .cloned();
                if let Some((_, probe)) = found {
                    let probe = alter(&mut program, probe);
                    mesh.handle_datagram(PathId::wireguard(from), None, &probe, now);
                }
            }
            5 | 6 => {
                let at = usize::from(program.byte());
                let found = records
                    .iter()
                    .rev()
                    .filter(|(by, ..)| *by != n)
                    .nth(at & 7)
                    .cloned();
                if let Some((_, tag, blob)) = found {
                    let blob = alter(&mut program, blob).into();
                    let record = SealedRecord { tag, blob };
                    mesh.handle_news(&origin, News::Record(record), now);
                }
            }
            7 => mesh.handle_datagram(PathId::wireguard(from), None, program.chunk(), now),
            8 => {
                let tag = RecordTag([program.byte(); 16]);
                let blob = program.chunk().into();
                mesh.handle_news(&origin, News::Record(SealedRecord { tag, blob }), now);
            }
            9 => {
                let kind = if program.byte() & 1 == 0 {
                    CandidateKind::Relay
                } else {
                    CandidateKind::Reflexive
                };
                let (peer, lifetime) = (keys[1 - n], program.time());
                let news = if lifetime.is_zero() {
                    News::Withdrawn {
                        peer,
                        address: from,
                    }
                } else {
                    let candidate = Candidate {
                        address: from,
                        kind,
                        lifetime,
                    };
                    News::Candidate { peer, candidate }
                };
                mesh.handle_news(&origin, news, now);
            }
            10 => {
                let (peer, after) = (keys[1 - n], program.time());
                mesh.handle_news(&origin, News::Fire { peer, after }, now);
            }
            11 => mesh.handle_news(&origin, News::Mapping(Mapping::EndpointDependent), now),
            12 => {
                let news = News::OwnAddress {
                    address: from,
                    kind: OwnAddressKind::Reflexive,
                    lifetime: program.time(),
                };
                mesh.handle_news(&origin, news, now);
            }
            _ => now += program.time(),
        }
        for (n, mesh) in nodes.iter_mut().enumerate() {
            mesh.handle_timeout(now);
            let mut sent = 0;
            while let Some(transmit) = mesh.poll_transmit() {
                sent += 1;
                probes.push((n, transmit.payload));
            }
            assert!(sent < 1_000, "{sent} at once");
            while let Some(command) = mesh.poll_command() {
                match command {
                    Command::Ask(Ask::Records(published)) => {
                        let published = published.iter();
                        records
                            .extend(published.map(|record| (n, record.tag, record.blob.to_vec())));
                    }
                    Command::SetEndpoint { path, .. } => {
                        let endpoint = path.endpoint();
                        assert!(
                            (0..8).map(address).any(|known| known == endpoint),
                            "{endpoint}"
                        );
                    }
                    _ => {}
                }
            }
            while mesh.poll_event().is_some() {}
        }
        probes.drain(..probes.len().saturating_sub(64));
        records.drain(..records.len().saturating_sub(16));
    }
    let _ = nodes.map(|mesh| mesh.status(now + Duration::from_secs(1)));
}

/// A server's side and a client's side of STUN.
pub(super) fn stun(data: &[u8]) {
    let is_stun = stun::is_stun(data);
    let answer = stun::respond(data, address(1));
    assert!(is_stun || answer.is_none());
    if let Some(answer) = answer {
        assert!(
            stun::is_stun(&answer) && stun::respond(&answer, address(2)).is_none(),
            "no answer is answered"
        );
        assert!(stun::parse_answer(&answer).is_some());
    }
    let _ = stun::parse_answer(data);
}
