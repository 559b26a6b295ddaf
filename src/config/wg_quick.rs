//! Files of wg-quick, both ways.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use natpunch_types::{PeerKey, PresharedKey, SecretKey};
use zeroize::Zeroizing;

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
    /// Keys that have no counterpart in a mesh file, such as `DNS` and `PostUp`.
    pub left_out: Vec<String>,
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

enum Section {
    None,
    Interface,
    Peer(usize),
}

/// Reads the text of a file, as wg-quick(8) and wg(8) define it.
///
/// # Errors
/// The first line that they do not allow.
pub fn parse(text: &str) -> Result<WgQuick, WgQuickError> {
    let mut file = WgQuick::default();
    let mut section = Section::None;
    // A comment right above a section names it, and so does one inside it, `# Name = nas`.
    let mut comment: Option<String> = None;
    let mut has_interface = false;
    let mut last = 0;
    for (index, line) in text.lines().enumerate() {
        last = index + 1;
        let fail = |problem: &str| WgQuickError {
            line: index + 1,
            problem: problem.to_owned(),
        };
        let (code, remark) = line
            .split_once('#')
            .map_or((line, None), |(code, remark)| (code, Some(remark.trim())));
        let code = code.trim();
        if code.is_empty() {
            match remark {
                Some(remark) => {
                    let slot = match section {
                        Section::Peer(n) => file.peers.get_mut(n).map(|peer| &mut peer.name),
                        Section::Interface => Some(&mut file.name),
                        Section::None => None,
                    };
                    if let (Some(name), Some(slot)) = (stated_name(remark), slot) {
                        slot.get_or_insert(name);
                    } else {
                        comment = Some(remark.to_owned());
                    }
                }
                None => comment = None,
            }
            continue;
        }
        match code.to_ascii_lowercase().as_str() {
            "[interface]" => {
                if std::mem::replace(&mut has_interface, true) {
                    return Err(fail("a second [Interface]"));
                }
                file.name = comment.take();
                section = Section::Interface;
                continue;
            }
            "[peer]" => {
                file.peers.push(WgQuickPeer {
                    public_key: PeerKey::from_bytes([0; 32]),
                    name: comment.take(),
                    preshared_key: None,
                    allowed_ips: Vec::new(),
                    endpoint: None,
                    persistent_keepalive: None,
                });
                section = Section::Peer(file.peers.len() - 1);
                continue;
            }
            _ => {}
        }
        comment = None;
        let (key, value) = code
            .split_once('=')
            .ok_or_else(|| fail("expected [Interface], [Peer] or KEY = VALUE"))?;
        let (key, value) = (key.trim(), value.trim());
        let known = match section {
            Section::Interface => file.interface(key, value),
            Section::Peer(n) => file
                .peers
                .get_mut(n)
                .map_or(Ok(false), |peer| peer.set(key, value)),
            Section::None => return Err(fail("a value before the first section")),
        };
        if !known.map_err(|problem| fail(&format!("{key}: {problem}")))? {
            return Err(fail(&format!("`{key}` is no key of this section")));
        }
    }
    let end = |problem: &str| WgQuickError {
        line: last,
        problem: problem.to_owned(),
    };
    if !has_interface {
        return Err(end("there is no [Interface]: is this a file of wg-quick?"));
    }
    if file
        .peers
        .iter()
        .any(|peer| peer.public_key.as_bytes() == &[0; 32])
    {
        return Err(end("a [Peer] has no PublicKey"));
    }
    Ok(file)
}

/// The name of `Name = nas`, and of what other tools write.
fn stated_name(remark: &str) -> Option<String> {
    let (key, value) = remark.split_once(['=', ':'])?;
    let key = key.trim().to_ascii_lowercase().replace(['_', '-', ' '], "");
    let names = ["name", "friendlyname", "peername", "client"];
    names
        .contains(&key.as_str())
        .then(|| value.trim().to_owned())
        .filter(|name| !name.is_empty())
}

type Known = Result<bool, &'static str>;

impl WgQuick {
    fn interface(&mut self, key: &str, value: &str) -> Known {
        match key.to_ascii_lowercase().as_str() {
            "privatekey" => {
                self.private_key = Some(value.parse().map_err(|_| "this is not a key")?)
            }
            "address" => self.addresses.extend(networks(value)?),
            "listenport" => {
                self.listen_port = Some(value.parse().map_err(|_| "this is not a port")?)
            }
            "mtu" => self.mtu = Some(value.parse().map_err(|_| "this is not a number of bytes")?),
            "fwmark" => self.fwmark = Some(mark(value).ok_or("this is not a mark")?),
            "dns" | "table" | "preup" | "postup" | "predown" | "postdown" | "saveconfig" => {
                if !self.left_out.iter().any(|left| left == key) {
                    self.left_out.push(key.to_owned());
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl WgQuickPeer {
    fn set(&mut self, key: &str, value: &str) -> Known {
        match key.to_ascii_lowercase().as_str() {
            "publickey" => self.public_key = value.parse().map_err(|_| "this is not a key")?,
            "presharedkey" => {
                let psk: PresharedKey = value.parse().map_err(|_| "this is not a key")?;
                // All zeros is WireGuard's word for none.
                self.preshared_key = Some(psk).filter(|psk| psk.expose() != &[0; 32]);
            }
            "allowedips" => self
                .allowed_ips
                .extend(networks(value)?.into_iter().map(|net| net.trunc())),
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
