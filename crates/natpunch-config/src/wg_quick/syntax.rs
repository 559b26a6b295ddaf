//! Files of wg-quick, both ways.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use natpunch_types::{PeerKey, PresharedKey, SecretKey};
use zeroize::Zeroizing;

use super::comments::Comments;

/// Longest file that is read, in bytes.
pub const LONGEST: u64 = 4 << 20;

/// What a file of wg-quick says. `Debug` shows no secret.
#[derive(Debug, Clone, Default)]
pub struct WgQuick {
    /// The private key; a file to be filled in later has none.
    pub private_key: Option<SecretKey>,
    /// The name in a comment of the section.
    pub name: Option<String>,
    /// Addresses with prefix length.
    pub addresses: Vec<IpNet>,
    /// UDP port.
    pub listen_port: Option<u16>,
    /// MTU, in bytes.
    pub mtu: Option<u32>,
    /// Firewall mark.
    pub fwmark: Option<u32>,
    /// Whether a program runs the interface, not the kernel; a file does not say.
    pub external: bool,
    /// The peers, in their order.
    pub peers: Vec<WgQuickPeer>,
    /// Comments at the end, without `#`.
    pub remarks: Vec<String>,
    /// `Table`, unless it is `auto`, and its line: wg-quick then puts no routes into the main
    /// table.
    pub table: Option<(String, usize)>,
    /// Keys without a counterpart in a mesh file that say something.
    pub unsupported: Vec<Unsupported>,
}

/// A `[Peer]`.
#[derive(Debug, Clone)]
pub struct WgQuickPeer {
    /// The public key.
    pub public_key: PeerKey,
    /// The name in a comment of the section.
    pub name: Option<String>,
    /// The preshared key.
    pub preshared_key: Option<PresharedKey>,
    /// Allowed IPs.
    pub allowed_ips: Vec<IpNet>,
    /// `HOST:PORT`.
    pub endpoint: Option<String>,
    /// Seconds between keepalives; 0 is off.
    pub persistent_keepalive: Option<u16>,
    /// The line of the section, from 1; 0 where there is no file.
    pub line: usize,
    /// The line of each of the allowed IPs; empty where there is no file.
    pub allowed_lines: Vec<usize>,
}

/// What is wrong with a file: the line, from 1, and the problem, which never shows a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct WgQuickError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

/// A key without a counterpart in a mesh file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// The key, as wg-quick(8) writes it.
    pub key: &'static str,
    /// Its line, from 1.
    pub line: usize,
}

/// The keys of wg-quick(8) that a mesh file has no counterpart of, apart from `Table`.
const UNSUPPORTED: [&str; 6] = [
    "DNS",
    "PreUp",
    "PostUp",
    "PreDown",
    "PostDown",
    "SaveConfig",
];

/// The bytes of a file as text: UTF-8, or UTF-16 with a byte order mark, as editors on Windows
/// write it.
///
/// # Errors
/// It is neither; the line is that of the first byte that is no text.
pub fn decode(bytes: &[u8]) -> Result<Zeroizing<String>, WgQuickError> {
    let not_text = |before: &[u8]| WgQuickError {
        line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
        problem: "this is not text: neither UTF-8 nor UTF-16".to_owned(),
    };
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, odd) = bytes.as_chunks::<2>();
        let units = pairs.iter().map(|pair| unit(*pair));
        let text: Result<String, _> = char::decode_utf16(units).collect();
        // Half a character at the end is no text, either.
        let whole = text.ok().filter(|_| odd.is_empty());
        whole.map(Zeroizing::new).ok_or_else(|| not_text(bytes))
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => match std::str::from_utf8(rest) {
            Ok(text) if !text.contains('\0') => Ok(Zeroizing::new(text.to_owned())),
            Ok(_) => Err(not_text(&[])),
            Err(error) => Err(not_text(
                rest.get(..error.valid_up_to()).unwrap_or_default(),
            )),
        },
    }
}

enum Section {
    None,
    Interface,
    Peer(usize),
}

/// A file as far as it is read.
struct Parser {
    file: WgQuick,
    section: Section,
    has_interface: bool,
    comments: Comments,
}

/// Reads the text of a file, as wg-quick(8) and wg(8) define it.
///
/// # Errors
/// The first line that they do not allow.
pub fn parse(text: &str) -> Result<WgQuick, WgQuickError> {
    let mut parser = Parser {
        file: WgQuick::default(),
        section: Section::None,
        has_interface: false,
        comments: Comments::default(),
    };
    let mut last = 0;
    for (index, line) in text.lines().enumerate() {
        last = index + 1;
        parser.line(line, last).map_err(|problem| WgQuickError {
            line: last,
            problem,
        })?;
    }
    let name = parser.comments.at_end();
    parser.name_section(name);
    let file = parser.file;
    let end = |problem: &str| WgQuickError {
        line: last,
        problem: problem.to_owned(),
    };
    if !parser.has_interface {
        return Err(end("there is no [Interface]: is this a file of wg-quick?"));
    }
    if let Some(peer) = file.peers.iter().find(|peer| peer.public_key == NO_KEY) {
        return Err(WgQuickError {
            line: peer.line,
            problem: "a [Peer] has no PublicKey".to_owned(),
        });
    }
    Ok(file)
}

/// Stands where a `PublicKey` is still to come.
const NO_KEY: PeerKey = PeerKey::from_bytes([0; 32]);

impl Parser {
    fn line(&mut self, line: &str, number: usize) -> Result<(), String> {
        let (code, remark) = match line.split_once('#') {
            Some((code, remark)) => (code, Some(remark)),
            None => (line, None),
        };
        let code = code.trim();
        match (code.is_empty(), remark) {
            (true, Some(remark)) => self.comments.add(remark),
            (true, None) => {
                let name = self.comments.at_blank_line();
                self.name_section(name);
            }
            (false, remark) => return self.code(code, remark, number),
        }
        Ok(())
    }

    fn code(&mut self, code: &str, remark: Option<&str>, number: usize) -> Result<(), String> {
        match code.to_ascii_lowercase().as_str() {
            "[interface]" => {
                if std::mem::replace(&mut self.has_interface, true) {
                    return Err("a second [Interface]".to_owned());
                }
                self.file.name = self.comments.at_section(remark);
                self.section = Section::Interface;
                return Ok(());
            }
            "[peer]" => {
                self.file.peers.push(WgQuickPeer {
                    public_key: NO_KEY,
                    name: self.comments.at_section(remark),
                    preshared_key: None,
                    allowed_ips: Vec::new(),
                    endpoint: None,
                    persistent_keepalive: None,
                    line: number,
                    allowed_lines: Vec::new(),
                });
                self.section = Section::Peer(self.file.peers.len() - 1);
                return Ok(());
            }
            _ => {}
        }
        let name = self.comments.at_key();
        self.name_section(name);
        let (key, value) = code
            .split_once('=')
            .ok_or("expected [Interface], [Peer] or KEY = VALUE")?;
        let (key, value) = (key.trim(), value.trim());
        let known = match self.section {
            Section::Interface => self.file.interface(key, value, number),
            Section::Peer(n) => match self.file.peers.get_mut(n) {
                Some(peer) => peer.set(key, value, number),
                None => Ok(false),
            },
            Section::None => return Err("a value before the first section".to_owned()),
        };
        match known {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("`{key}` is not a key of this section")),
            Err(problem) => Err(format!("{key}: {problem}")),
        }
    }

    /// Gives the section a name, if a comment has one for it and no comment before had.
    fn name_section(&mut self, name: Option<String>) {
        let slot = match self.section {
            Section::Peer(n) => self.file.peers.get_mut(n).map(|peer| &mut peer.name),
            Section::Interface => Some(&mut self.file.name),
            Section::None => None,
        };
        if let (Some(name), Some(slot)) = (name, slot) {
            slot.get_or_insert(name);
        }
    }
}

impl WgQuickPeer {
    /// The allowed IPs with the line of each.
    pub(crate) fn allowed(&self) -> impl Iterator<Item = (IpNet, usize)> {
        let lines = self.allowed_lines.iter().copied();
        let lines = lines.chain(std::iter::repeat(self.line));
        self.allowed_ips.iter().copied().zip(lines)
    }
}

type Known = Result<bool, &'static str>;

impl WgQuick {
    fn interface(&mut self, key: &str, value: &str, line: usize) -> Known {
        match key.to_ascii_lowercase().as_str() {
            "privatekey" => {
                self.private_key = Some(value.parse().map_err(|_| "this is not a key")?)
            }
            "address" => self.addresses.extend(networks(value)?),
            // 0 is any port that is free, which is also what no word of it means.
            "listenport" => {
                let port: u16 = value.parse().map_err(|_| "this is not a port")?;
                self.listen_port = Some(port).filter(|port| *port != 0);
            }
            "mtu" => self.mtu = Some(value.parse().map_err(|_| "this is not a number of bytes")?),
            "fwmark" => self.fwmark = Some(mark(value).ok_or("this is not a mark")?),
            // `auto` is what wg-quick does anyway.
            "table" if value.eq_ignore_ascii_case("auto") => {}
            "table" => self.table = Some((value.to_owned(), line)),
            // wg-easy writes commands that are empty, and `SaveConfig = false` is the default.
            _ if value.is_empty() && unsupported(key).is_some() => {}
            "saveconfig" if value.eq_ignore_ascii_case("false") => {}
            _ if unsupported(key).is_some() => {
                let key = unsupported(key).unwrap_or_default();
                self.unsupported.push(Unsupported { key, line });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl WgQuickPeer {
    fn set(&mut self, key: &str, value: &str, line: usize) -> Known {
        match key.to_ascii_lowercase().as_str() {
            "publickey" => self.public_key = value.parse().map_err(|_| "this is not a key")?,
            "presharedkey" => {
                let psk: PresharedKey = value.parse().map_err(|_| "this is not a key")?;
                // All zeros is WireGuard's word for none.
                self.preshared_key = Some(psk).filter(|psk| psk.expose() != &[0; 32]);
            }
            "allowedips" => {
                let networks = networks(value)?;
                let lines = std::iter::repeat_n(line, networks.len());
                self.allowed_lines.extend(lines);
                self.allowed_ips.extend(networks.iter().map(IpNet::trunc));
            }
            "endpoint" => self.endpoint = Some(value.to_owned()),
            "persistentkeepalive" if value == "off" => self.persistent_keepalive = Some(0),
            "persistentkeepalive" => {
                self.persistent_keepalive = Some(
                    value
                        .parse()
                        .map_err(|_| "this is not a number of seconds")?,
                );
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// The key as wg-quick(8) writes it, if a mesh file has no counterpart of it.
fn unsupported(key: &str) -> Option<&'static str> {
    let same = |known: &&str| known.eq_ignore_ascii_case(key);
    UNSUPPORTED.into_iter().find(same)
}

fn networks(list: &str) -> Result<Vec<IpNet>, &'static str> {
    let one = |text: &str| {
        let text = text.trim();
        text.parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| "this is not a network")
    };
    list.split(',')
        .filter(|text| !text.trim().is_empty())
        .map(one)
        .collect()
}

fn mark(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        _ if text == "off" => Some(0),
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The text of a file, wiped on drop. Without a private key a line says where it goes.
pub fn format(file: &WgQuick) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(1024 + file.peers.len() * 512));
    write(&mut text, file).ok();
    text
}

fn write(text: &mut String, file: &WgQuick) -> std::fmt::Result {
    let list = |networks: &[IpNet]| {
        networks
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    writeln!(text, "[Interface]")?;
    if let Some(name) = &file.name {
        writeln!(text, "# Name = {name}")?;
    }
    match &file.private_key {
        Some(key) => writeln!(text, "PrivateKey = {}", key.expose_base64().as_str())?,
        None => writeln!(text, "# PrivateKey = …   (put the private key here)")?,
    }
    writeln!(text, "Address = {}", list(&file.addresses))?;
    if let Some(port) = file.listen_port {
        writeln!(text, "ListenPort = {port}")?;
    }
    if let Some(mtu) = file.mtu {
        writeln!(text, "MTU = {mtu}")?;
    }
    if let Some(mark) = file.fwmark {
        writeln!(text, "FwMark = {mark:#x}")?;
    }
    for peer in &file.peers {
        writeln!(text, "\n[Peer]")?;
        if let Some(name) = &peer.name {
            writeln!(text, "# Name = {name}")?;
        }
        writeln!(text, "PublicKey = {}", peer.public_key)?;
        if let Some(psk) = &peer.preshared_key {
            writeln!(text, "PresharedKey = {}", psk.expose_base64().as_str())?;
        }
        writeln!(text, "AllowedIPs = {}", list(&peer.allowed_ips))?;
        if let Some(endpoint) = &peer.endpoint {
            writeln!(text, "Endpoint = {endpoint}")?;
        }
        if let Some(seconds) = peer.persistent_keepalive.filter(|seconds| *seconds > 0) {
            writeln!(text, "PersistentKeepalive = {seconds}")?;
        }
    }
    if !file.remarks.is_empty() {
        writeln!(text)?;
    }
    file.remarks
        .iter()
        .try_for_each(|remark| writeln!(text, "# {remark}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    #[test]
    fn names_come_from_the_comments_that_people_and_tools_write() {
        let text = format!(
            "# my box\n[Interface]\n\n# the nas\n[Peer]\nPublicKey = {KEY}\n[peer]\n#friendly_name=Oslo\npublickey={KEY}\n\
             # something else\n\n[Peer]\nPublicKey={KEY} # not a name\n"
        );
        let file = parse(&text).unwrap();
        let names: Vec<_> = file.peers.iter().map(|peer| peer.name.as_deref()).collect();
        assert_eq!(file.name.as_deref(), Some("my box"));
        assert_eq!(names, [Some("the nas"), Some("Oslo"), None]);
    }

    #[test]
    fn an_error_names_the_line_and_never_the_value() {
        for (text, line, word) in [
            (
                "[Interface]\nPrivateKey = secret",
                2,
                "PrivateKey: this is not a key",
            ),
            ("PrivateKey = secret", 1, "before the first section"),
            (
                "[Interface]\n[Peer]\nPresharedKey = secret",
                3,
                "PresharedKey: this is not a key",
            ),
            ("[Interface]\nsecret", 2, "KEY = VALUE"),
            ("[Interface]\n[Peer]\n", 2, "no PublicKey"),
            ("[Interface]\n[Interface]", 2, "second"),
            ("", 0, "no [Interface]"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text}");
            assert!(
                error.problem.contains(word) && !error.problem.contains("secret"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_written_is_read_the_same() {
        let text = format!(
            "[Interface]\n# Name = a\nPrivateKey = {KEY}\nAddress = 10.0.0.1/24, fd00::1/64\nListenPort = 51820\nMTU = 1380\n\
             FwMark = 0x77\n\n[Peer]\n# Name = b\nPublicKey = {KEY}\nPresharedKey = {KEY}\nAllowedIPs = 10.0.0.2/32, \
             192.168.1.0/24\nEndpoint = b.example.org:1\nPersistentKeepalive = 25\n"
        );
        assert_eq!(*format(&parse(&text).unwrap()), text);
    }
}
