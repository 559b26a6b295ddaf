//! The name servers that are asked.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

/// What the system's resolver reads (resolv.conf(5)).
const SYSTEM: &str = "/etc/resolv.conf";
/// Bytes of it that are read.
const LONGEST: u64 = 64 << 10;
/// Servers that the system's resolver asks (`MAXNS`).
const MOST: usize = 3;
const PORT: u16 = 53;

/// The servers of the system's resolver, as they are now.
///
/// # Errors
/// The file's.
pub(crate) fn of_system() -> io::Result<Vec<SocketAddr>> {
    read(Path::new(SYSTEM))
}

fn read(file: &Path) -> io::Result<Vec<SocketAddr>> {
    let mut text = Vec::new();
    File::open(file)?.take(LONGEST).read_to_end(&mut text)?;
    Ok(listed(&String::from_utf8_lossy(&text)))
}

/// The servers in the text of a resolv.conf.
fn listed(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let ip = words.next().filter(|word| *word == "nameserver");
        let ip = ip.and_then(|_| words.next())?;
        Some(SocketAddr::from((ip.parse::<IpAddr>().ok()?, PORT)))
    };
    let mut servers: Vec<SocketAddr> = text.lines().filter_map(server).take(MOST).collect();
    // "If no nameserver entries are present, the default is to use the name server on the local
    // machine."
    if servers.is_empty() {
        servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)));
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_servers_of_the_system_are_asked_in_their_order() {
        let text = "# a comment\nsearch example.org\nnameserver 127.0.0.53\n\tnameserver\t2001:db8::1 # x\n\
            nameserver nonsense\noptions edns0\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n";
        let servers: Vec<String> = listed(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(
            servers,
            ["127.0.0.53:53", "[2001:db8::1]:53", "192.0.2.1:53"]
        );
        assert_eq!(listed("options edns0\n")[0].to_string(), "127.0.0.1:53");
    }
}
