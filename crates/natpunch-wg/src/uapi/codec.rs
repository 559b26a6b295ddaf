//! The text of the protocol: formatting and strict parsing, both ways.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use ipnet::IpNet;
use natpunch_types::{DevicePeer, PeerKey, PresharedKey, SecretKey, canonical};
use zeroize::Zeroizing;

use crate::device::{DeviceChange, DeviceState, PeerAction, PeerChange};

/// A line that is not what the protocol allows there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub(crate) struct ParseError {
    /// Counted from 1.
    pub(crate) line: usize,
    /// What is wrong; never the value, which may be a secret.
    pub(crate) problem: String,
}

/// A `set` request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SetRequest {
    /// Remove all peers first. natpunch never asks for this; `wg setconf` does.
    pub(crate) replace_peers: bool,
    /// The change.
    pub(crate) change: DeviceChange,
}

/// A `get` answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct GetAnswer {
    /// The device's state.
    pub(crate) state: DeviceState,
    /// Its private key.
    pub(crate) private_key: Option<SecretKey>,
}

fn hex(bytes: &[u8; 32]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(64));
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn unhex(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

/// The body of a `set` request, without its first line and without the empty line at the end.
pub(crate) fn format_set(change: &DeviceChange) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    if let Some(key) = &change.private_key {
        let _ = writeln!(text, "private_key={}", *hex(key.expose()));
    }
    if let Some(port) = change.listen_port {
        let _ = writeln!(text, "listen_port={port}");
    }
    if let Some(mark) = change.fwmark {
        let _ = writeln!(text, "fwmark={mark}");
    }
    for peer in &change.peers {
        format_peer_change(&mut text, peer);
    }
    text
}

fn format_peer_change(text: &mut String, peer: &PeerChange) {
    let _ = writeln!(text, "public_key={}", *hex(peer.key.as_bytes()));
    match peer.action {
        PeerAction::Remove => {
            text.push_str("remove=true\n");
            return;
        }
        PeerAction::Update => text.push_str("update_only=true\n"),
        PeerAction::Upsert => {}
    }
    if let Some(key) = &peer.preshared_key {
        let _ = writeln!(
            text,
            "preshared_key={}",
            *hex(key.as_ref().map_or(&[0; 32], PresharedKey::expose))
        );
    }
    if peer.replace_allowed_ips {
        text.push_str("replace_allowed_ips=true\n");
    }
    for net in &peer.allowed_ips {
        let _ = writeln!(text, "allowed_ip={net}");
    }
    if let Some(endpoint) = peer.endpoint {
        let _ = writeln!(text, "endpoint={endpoint}");
    }
    // After the endpoint: switching it on sends a keepalive at once, and that needs somewhere to
    // go.
    if let Some(interval) = peer.persistent_keepalive {
        let _ = writeln!(text, "persistent_keepalive_interval={interval}");
    }
}

/// Splits into (line number, key, value).
fn pairs(text: &str) -> impl Iterator<Item = Result<(usize, &str, &str), ParseError>> {
    text.lines().enumerate().map(|(i, line)| {
        let line_number = i + 1;
        match line.split_once('=') {
            Some((key, value)) => Ok((line_number, key, value)),
            None => Err(ParseError {
                line: line_number,
                problem: "not KEY=VALUE".into(),
            }),
        }
    })
}

struct Value<'a> {
    line: usize,
    key: &'a str,
    text: &'a str,
}

impl Value<'_> {
    fn wrong(&self) -> ParseError {
        ParseError {
            line: self.line,
            problem: format!("bad value of {}", self.key),
        }
    }
    fn parse<T: std::str::FromStr>(&self) -> Result<T, ParseError> {
        self.text.parse().map_err(|_| self.wrong())
    }
    fn key(&self) -> Result<Zeroizing<[u8; 32]>, ParseError> {
        unhex(self.text).ok_or_else(|| self.wrong())
    }
    fn fwmark(&self) -> Result<u32, ParseError> {
        match self.text {
            "" | "off" => Ok(0),
            text => match text.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16).map_err(|_| self.wrong()),
                None => self.parse(),
            },
        }
    }
    fn is_true(&self) -> Result<bool, ParseError> {
        match self.text {
            "true" => Ok(true),
            _ => Err(self.wrong()),
        }
    }
    fn unknown(&self) -> ParseError {
        ParseError {
            line: self.line,
            problem: "unknown key".into(),
        }
    }
}

/// Parses the body of a `set` request.
pub(crate) fn parse_set(text: &str) -> Result<SetRequest, ParseError> {
    let mut request = SetRequest::default();
    for pair in pairs(text) {
        let (line, key, text) = pair?;
        let value = Value { line, key, text };
        if key == "public_key" {
            let peer = PeerChange::new(PeerKey::from_bytes(*value.key()?), PeerAction::Upsert);
            request.change.peers.push(peer);
            continue;
        }
        match request.change.peers.last_mut() {
            None => match key {
                "private_key" => {
                    request.change.private_key = Some(SecretKey::from_bytes(*value.key()?))
                }
                "listen_port" => request.change.listen_port = Some(value.parse()?),
                "fwmark" => request.change.fwmark = Some(value.fwmark()?),
                "replace_peers" => request.replace_peers = value.is_true()?,
                _ => return Err(value.unknown()),
            },
            Some(peer) => match key {
                "remove" if value.is_true()? => peer.action = PeerAction::Remove,
                "update_only" if value.is_true()? => peer.action = PeerAction::Update,
                "preshared_key" => {
                    let bytes = value.key()?;
                    peer.preshared_key =
                        Some((*bytes != [0; 32]).then(|| PresharedKey::from_bytes(*bytes)));
                }
                "endpoint" => peer.endpoint = Some(canonical(value.parse()?)),
                "persistent_keepalive_interval" => {
                    peer.persistent_keepalive =
                        Some(if text == "off" { 0 } else { value.parse()? });
                }
                "replace_allowed_ips" => peer.replace_allowed_ips = value.is_true()?,
                "allowed_ip" => peer.allowed_ips.push(value.parse::<IpNet>()?.trunc()),
                "protocol_version" if text == "1" => {}
                _ => return Err(value.unknown()),
            },
        }
    }
    Ok(request)
}

/// The body of a `get` answer, without the errno.
pub(crate) fn format_get(answer: &GetAnswer) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    if let Some(key) = &answer.private_key {
        let _ = writeln!(text, "private_key={}", *hex(key.expose()));
    }
    let device = &answer.state.snapshot;
    let _ = writeln!(text, "listen_port={}", device.listen_port);
    if device.fwmark != 0 {
        let _ = writeln!(text, "fwmark={}", device.fwmark);
    }
    for peer in &device.peers {
        let _ = writeln!(text, "public_key={}", *hex(peer.key.as_bytes()));
        if let Some(key) = answer.state.preshared.get(&peer.key) {
            let _ = writeln!(text, "preshared_key={}", *hex(key.expose()));
        }
        if let Some(endpoint) = peer.endpoint {
            let _ = writeln!(text, "endpoint={endpoint}");
        }
        let handshake = peer.last_handshake.unwrap_or_default();
        let _ = writeln!(text, "last_handshake_time_sec={}", handshake.as_secs());
        let _ = writeln!(
            text,
            "last_handshake_time_nsec={}",
            handshake.subsec_nanos()
        );
        let _ = writeln!(
            text,
            "tx_bytes={}\nrx_bytes={}",
            peer.tx_bytes, peer.rx_bytes
        );
        let keepalive = peer.persistent_keepalive.map_or(0, |k| k.as_secs());
        let _ = writeln!(text, "persistent_keepalive_interval={keepalive}");
        for net in &peer.allowed_ips {
            let _ = writeln!(text, "allowed_ip={net}");
        }
        text.push_str("protocol_version=1\n");
    }
    text
}

/// Parses the body of a `get` answer. Unknown keys are skipped: a device may say more than we ask.
pub(crate) fn parse_get(text: &str) -> Result<GetAnswer, ParseError> {
    let mut answer = GetAnswer::default();
    let mut peers: BTreeMap<PeerKey, DevicePeer> = BTreeMap::new();
    let mut current = None;
    for pair in pairs(text) {
        let (line, key, text) = pair?;
        let value = Value { line, key, text };
        if key == "public_key" {
            let key = PeerKey::from_bytes(*value.key()?);
            peers.entry(key).or_insert_with(|| DevicePeer::new(key));
            current = Some(key);
            continue;
        }
        match current.and_then(|key| peers.get_mut(&key)) {
            None => match key {
                "private_key" => {
                    let bytes = value.key()?;
                    if *bytes != [0; 32] {
                        let private = SecretKey::from_bytes(*bytes);
                        answer.state.snapshot.public_key = Some(private.public_key());
                        answer.private_key = Some(private);
                    }
                }
                "listen_port" => answer.state.snapshot.listen_port = value.parse()?,
                "fwmark" => answer.state.snapshot.fwmark = value.fwmark()?,
                _ => {}
            },
            Some(peer) => match key {
                "preshared_key" => {
                    let bytes = value.key()?;
                    if *bytes != [0; 32] {
                        peer.has_preshared_key = true;
                        answer
                            .state
                            .preshared
                            .insert(peer.key, PresharedKey::from_bytes(*bytes));
                    }
                }
                "endpoint" => peer.endpoint = Some(canonical(value.parse()?)),
                "last_handshake_time_sec" => add_time(peer, Duration::from_secs(value.parse()?)),
                "last_handshake_time_nsec" => add_time(peer, Duration::from_nanos(value.parse()?)),
                "tx_bytes" => peer.tx_bytes = value.parse()?,
                "rx_bytes" => peer.rx_bytes = value.parse()?,
                "persistent_keepalive_interval" => {
                    let seconds: u16 = value.parse()?;
                    peer.persistent_keepalive =
                        (seconds != 0).then(|| Duration::from_secs(seconds.into()));
                }
                "allowed_ip" => peer.allowed_ips.push(value.parse::<IpNet>()?.trunc()),
                _ => {}
            },
        }
    }
    answer.state.snapshot.peers = peers
        .into_values()
        .map(|mut peer| {
            peer.allowed_ips.sort_unstable();
            peer.allowed_ips.dedup();
            peer
        })
        .collect();
    Ok(answer)
}

/// Seconds and nanoseconds come in two lines; all zero is "never".
fn add_time(peer: &mut DevicePeer, part: Duration) {
    if !part.is_zero() {
        peer.last_handshake = Some(peer.last_handshake.unwrap_or_default().saturating_add(part));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_says_is_what_a_server_hears() {
        let key = PeerKey::from_bytes([7; 32]);
        let change = DeviceChange {
            private_key: Some(SecretKey::from_bytes([1; 32])),
            listen_port: Some(51820),
            fwmark: Some(0x4e),
            peers: vec![
                PeerChange::remove(key),
                PeerChange {
                    preshared_key: Some(Some(PresharedKey::from_bytes([9; 32]))),
                    endpoint: Some("[fe80::1%3]:7".parse().unwrap()),
                    persistent_keepalive: Some(25),
                    replace_allowed_ips: true,
                    allowed_ips: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/64".parse().unwrap()],
                    ..PeerChange::new(key, PeerAction::Upsert)
                },
                PeerChange {
                    preshared_key: Some(None),
                    ..PeerChange::new(key, PeerAction::Update)
                },
            ],
        };
        let heard = parse_set(&format_set(&change)).unwrap();
        assert_eq!(
            heard,
            SetRequest {
                replace_peers: false,
                change
            }
        );
    }

    #[test]
    fn what_a_server_says_is_what_a_client_hears() {
        let peer = DevicePeer {
            endpoint: Some("192.0.2.1:7".parse().unwrap()),
            last_handshake: Some(Duration::new(1_700_000_000, 5)),
            rx_bytes: 1,
            tx_bytes: u64::MAX,
            persistent_keepalive: Some(Duration::from_secs(25)),
            allowed_ips: vec!["10.0.0.0/8".parse().unwrap()],
            has_preshared_key: true,
            ..DevicePeer::new(PeerKey::from_bytes([7; 32]))
        };
        let private = SecretKey::from_bytes([1; 32]);
        let mut answer = GetAnswer {
            private_key: Some(private.clone()),
            ..GetAnswer::default()
        };
        answer
            .state
            .preshared
            .insert(peer.key, PresharedKey::from_bytes([9; 32]));
        answer.state.snapshot.public_key = Some(private.public_key());
        answer.state.snapshot.listen_port = 51820;
        answer.state.snapshot.fwmark = 78;
        answer.state.snapshot.peers.push(peer);
        assert_eq!(parse_get(&format_get(&answer)).unwrap().state, answer.state);
    }

    #[test]
    fn a_bad_line_is_refused_and_its_value_is_not_repeated() {
        for bad in [
            "private_key=secret",
            "listen_port=70000",
            "nonsense",
            "x=1",
            "public_key=00",
        ] {
            let error = parse_set(bad).unwrap_err();
            assert_eq!(error.line, 1);
            assert!(!error.problem.contains("secret"));
        }
    }
}
