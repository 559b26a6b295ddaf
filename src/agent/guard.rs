//! The guard of peers at rest: a process that outlives the agent.
//!
//! Only a running agent hears what WireGuard sends to a resting endpoint. When it stops, it gives
//! such peers their last real endpoints itself. When it is killed, the guard does. It knows them
//! from the agent, whose end it sees by the end of its input, and waits until an agent that is
//! started again would run. It touches only what is at rest still, and ends after that. It knows
//! public keys and endpoints, and no secret.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use natpunch_os::detached;
use natpunch_types::PeerKey;
use natpunch_wg::{WgError, guard_log, leave_rest};
use tokio::time::Instant;

use super::Agent;
use crate::control::Client;

/// For how long after its agent's end a guard waits for another agent: systemd starts one after
/// five seconds.
const PATIENCE: Duration = Duration::from_secs(8);
/// A guard that ended early is started again at most this often.
const START_EVERY: Duration = Duration::from_secs(60);
/// A line of its input: a key, an endpoint, a space and an end.
const LONGEST_LINE: u64 = 128;
/// A guard keeps no more peers than a mesh may have.
const MAX_PEERS: usize = 100_000;

/// The agent's side.
#[derive(Debug)]
pub(super) struct Guard {
    process: Option<(Child, UnixStream)>,
    /// What it knows, or will when it has read what is sent.
    told: BTreeMap<PeerKey, SocketAddr>,
    unsent: Vec<u8>,
    start_at: Instant,
    /// There may be something new for it.
    is_due: bool,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            process: None,
            told: BTreeMap::new(),
            unsent: Vec::new(),
            start_at: Instant::now(),
            is_due: true,
        }
    }
}

impl Guard {
    /// Other peers rest, or it is known of others where they were.
    pub(super) fn look_again(&mut self) {
        self.is_due = true;
    }

    /// Ends the process. A new one is started when there is something to tell it.
    pub(super) fn end(&mut self) {
        if let Some((mut process, _)) = self.process.take() {
            detached::give_up(&mut process);
        }
        *self = Self::default();
    }

    /// Somebody has ended it.
    fn has_ended(&mut self) -> bool {
        let process = self.process.as_mut();
        process.is_some_and(|(process, _)| !matches!(process.try_wait(), Ok(None)))
    }

    /// Tells it where these peers were.
    fn tell(&mut self, last: BTreeMap<PeerKey, SocketAddr>) {
        for (peer, endpoint) in last {
            if self.told.insert(peer, endpoint) != Some(endpoint) {
                let mut line = String::new();
                // To a string it can't fail.
                let _ = writeln!(line, "{peer} {endpoint}");
                self.unsent.extend(line.bytes());
            }
        }
    }

    /// Writes what it takes at this moment; the rest is written later.
    fn send(&mut self) -> io::Result<()> {
        let Some((_, input)) = &mut self.process else {
            return Ok(());
        };
        while !self.unsent.is_empty() {
            match input.write(&self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn start(&mut self, program: &Path, interface: &str, runtime_dir: &Path) -> io::Result<()> {
        let log = detached::open_log(&guard_log(runtime_dir, interface), 0)?;
        let arguments = [
            "guard".as_ref(),
            interface.as_ref(),
            "--runtime-dir".as_ref(),
            runtime_dir.as_os_str(),
        ];
        let (process, input) = detached::start_reader(program, &arguments, "info", log)?;
        input.set_nonblocking(true)?;
        self.process = Some((process, input));
        Ok(())
    }

    /// It can't be started, or has ended.
    fn give_up(&mut self, error: &io::Error) {
        tracing::warn!(
            %error,
            "no process guards the peers at rest: if this agent is killed, packets to them are lost \
             until it runs again"
        );
        self.end();
        self.start_at = Instant::now() + START_EVERY;
    }
}

impl Agent {
    /// The peers at rest of which it is known where they were, each with where WireGuard sends to
    /// reach it there.
    pub(super) fn last_endpoints(&self) -> BTreeMap<PeerKey, SocketAddr> {
        let last = self.mesh.last_paths();
        last.map(|(peer, path)| (peer, self.nat64.outward(path.endpoint())))
            .collect()
    }

    /// Has the guard know where the peers at rest were. It is started when there is one.
    pub(super) fn tend_guard(&mut self) {
        if std::mem::take(&mut self.guard.is_due) {
            if self.guard.has_ended() {
                self.guard.give_up(&io::ErrorKind::BrokenPipe.into());
            }
            let last = self.last_endpoints();
            self.guard.tell(last);
        }
        let guard = &mut self.guard;
        if guard.unsent.is_empty() {
            return;
        }
        if guard.process.is_none() {
            if Instant::now() < guard.start_at {
                return;
            }
            let started = std::env::current_exe().and_then(|program| {
                guard.start(&program, &self.node.interface, &self.options.runtime_dir)
            });
            if let Err(error) = started {
                return guard.give_up(&error);
            }
        }
        if let Err(error) = guard.send() {
            guard.give_up(&error);
        }
    }
}

/// The body of `natpunch guard INTERFACE --runtime-dir PATH`: runs until its input ends, and for
/// a moment after that.
///
/// # Errors
/// The device can't be read or changed.
pub fn run(interface: &str, runtime_dir: &Path) -> Result<(), WgError> {
    detached::leave();
    let endpoints = read(&mut io::stdin().lock());
    std::thread::sleep(PATIENCE);
    if Client::connect(runtime_dir, interface).is_ok() {
        tracing::info!("another agent runs");
        return Ok(());
    }
    let count = leave_rest(interface, runtime_dir, &endpoints)?;
    tracing::warn!(
        count,
        "the agent has ended and none came after it: peers at rest have their last endpoints"
    );
    Ok(())
}

/// Where peers at rest were, as the agent has said it until it ended.
fn read(from: &mut impl BufRead) -> BTreeMap<PeerKey, SocketAddr> {
    let mut endpoints = BTreeMap::new();
    let mut line = Vec::new();
    while let Ok(1..) = from.take(LONGEST_LINE).read_until(b'\n', &mut line) {
        if let Some((peer, endpoint)) = parse(&line)
            && (endpoints.len() < MAX_PEERS || endpoints.contains_key(&peer))
        {
            endpoints.insert(peer, endpoint);
        }
        line.clear();
    }
    endpoints
}

/// The end of an agent that was killed may cut a line short: what lacks its end is none.
fn parse(line: &[u8]) -> Option<(PeerKey, SocketAddr)> {
    let line = str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (peer, endpoint) = line.split_once(' ')?;
    Some((peer.parse().ok()?, endpoint.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_word_on_each_peer_counts_and_a_line_without_end_is_none() {
        let [a, b] = [[1; 32], [2; 32]].map(PeerKey::from_bytes);
        let mut guard = Guard::default();
        let at = |port| SocketAddr::from(([203, 0, 113, 1], port));
        guard.tell([(a, at(1)), (b, "[2001:db8::1]:2".parse().unwrap())].into());
        guard.tell([(a, at(1))].into());
        guard.tell([(a, at(3))].into());
        let text = std::mem::take(&mut guard.unsent);
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 3);
        assert_eq!(read(&mut &text[..]), guard.told);
        let cut = &text[..text.len() - 1];
        assert_eq!(read(&mut &cut[..])[&a], at(1));
        let junk = [&[b'x'; 1000], &b"\n\xff \n a b\n"[..], &text].concat();
        assert_eq!(read(&mut &junk[..]), guard.told);
    }
}
