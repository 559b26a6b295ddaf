//! What the agent and a process that holds pins say to each other: the device process, or a
//! forwarder.
//!
//! Lines, like those of WireGuard's own protocol:
//!
//! ```text
//! listen_port=51820
//! pin=198.51.100.1:51820 61201
//! pin=[2001:db8::1]:51820 61202 127.78.82.1:40123
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::Path;

use natpunch_types::MAX_SOURCE_PORTS;

use super::PinSet;
use crate::uapi::Client;

/// A pin that a process holds by a socket of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeldPin {
    /// Where WireGuard's packets go.
    pub(crate) remote: SocketAddr,
    /// The source port that they leave from.
    pub(crate) port: NonZeroU16,
    /// Where WireGuard sends them on this host, if that is not `remote` itself.
    pub(crate) local: Option<SocketAddr>,
}

/// All pins that a process holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holding {
    /// WireGuard's port on this host.
    pub(crate) listen_port: u16,
    /// The pins, each port and each remote address once.
    pub(crate) pins: Vec<HeldPin>,
}

impl Holding {
    /// The pins of a set, with nothing said of where WireGuard sends.
    pub(crate) fn of(listen_port: u16, pins: &PinSet) -> Self {
        let held = |(remote, port): (&SocketAddr, &NonZeroU16)| HeldPin {
            remote: *remote,
            port: *port,
            local: None,
        };
        Self {
            listen_port,
            pins: pins.iter().map(held).collect(),
        }
    }

    pub(crate) fn set(&self) -> PinSet {
        self.pins.iter().map(|pin| (pin.remote, pin.port)).collect()
    }

    pub(crate) fn format(&self) -> String {
        let mut text = format!("listen_port={}\n", self.listen_port);
        for HeldPin {
            remote,
            port,
            local,
        } in &self.pins
        {
            let _ = write!(text, "pin={remote} {port}");
            if let Some(local) = local {
                let _ = write!(text, " {local}");
            }
            text.push('\n');
        }
        text
    }

    /// Reads what [`Holding::format`] writes. `None`: it is something else, names a port or a remote
    /// address twice, or more pins than there are source ports.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut holding = Self::default();
        let (mut ports, mut remotes) = (BTreeSet::new(), BTreeSet::new());
        for line in text.lines() {
            match line.split_once('=')? {
                ("listen_port", port) => holding.listen_port = port.parse().ok()?,
                ("pin", pin) => {
                    let mut words = pin.split(' ');
                    let pin = HeldPin {
                        remote: words.next()?.parse().ok()?,
                        port: words.next()?.parse().ok()?,
                        local: words.next().map(str::parse).transpose().ok()?,
                    };
                    let is_new = ports.insert(pin.port) && remotes.insert(pin.remote);
                    if words.next().is_some() || !is_new || ports.len() > MAX_SOURCE_PORTS {
                        return None;
                    }
                    holding.pins.push(pin);
                }
                _ => return None,
            }
        }
        Some(holding)
    }
}

/// A process that holds pins, as the agent sees it.
#[derive(Debug)]
pub(super) struct Holder(Client);

impl Holder {
    /// The one that listens at this socket.
    pub(super) fn at(socket: &Path) -> Self {
        Self(Client::new(socket.to_owned()))
    }

    /// What it holds.
    ///
    /// # Errors
    /// No process is there, or it is of a version that knows no pins.
    pub(super) fn holding(&self) -> io::Result<Holding> {
        self.ask("pins", "")
    }

    /// Has it hold exactly these, all or none of the change; gives them as they are then.
    ///
    /// # Errors
    /// A port is taken by another program, or there is no process.
    pub(super) fn hold(&self, holding: &Holding) -> io::Result<Holding> {
        self.ask("set_pins", &holding.format())
    }

    fn ask(&self, operation: &str, body: &str) -> io::Result<Holding> {
        let answer = self.0.request(operation, body)?;
        Holding::parse(&answer)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its answer names no pins"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_says_is_what_the_other_hears() {
        let pin = |remote: &str, port, local: Option<&str>| HeldPin {
            remote: remote.parse().unwrap(),
            port: NonZeroU16::new(port).unwrap(),
            local: local.map(|local| local.parse().unwrap()),
        };
        let holding = Holding {
            listen_port: 51820,
            pins: vec![
                pin("198.51.100.1:7", 61_201, None),
                pin("[2001:db8::1]:8", 61_202, Some("127.78.82.1:4000")),
            ],
        };
        assert_eq!(Holding::parse(&holding.format()), Some(holding));
        assert_eq!(Holding::parse(""), Some(Holding::default()));
    }

    #[test]
    fn no_port_is_held_twice_and_no_more_than_there_are() {
        for bad in [
            "x",
            "x=1",
            "listen_port=70000",
            "pin=198.51.100.1:7",
            "pin=198.51.100.1:7 0",
            "pin=198.51.100.1:7 61201 127.0.0.1:1 more",
            "pin=198.51.100.1:7 61201\npin=198.51.100.2:7 61201",
            "pin=198.51.100.1:7 61201\npin=198.51.100.1:7 61202",
        ] {
            assert_eq!(Holding::parse(bad), None, "{bad}");
        }
        let many = |count: u16| -> String {
            let line = |n| format!("pin=198.51.100.1:{} {}\n", n + 1, 61_000 + n);
            (0..count).map(line).collect()
        };
        assert!(Holding::parse(&many(256)).is_some());
        assert_eq!(Holding::parse(&many(257)), None);
    }
}
