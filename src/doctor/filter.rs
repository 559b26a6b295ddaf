//! Whose packets this host's NAT, or its firewall of IPv6, lets in, and how long it holds a mapping.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use natpunch_core::Filtering;
use natpunch_core::filtering::{End, Found, Outcome, Trial};
use natpunch_net::now;
use natpunch_types::canonical;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use zeroize::Zeroizing;

use crate::control::{self, Request};
use crate::plugins::fill_random;

use super::Check;

/// How long a socket is listened to before the other one has its turn.
const TURN: Duration = Duration::from_millis(10);
/// A trial is over after this, whatever a server does.
const LONGEST: Duration = Duration::from_secs(15);
/// Mappings that live so long are held without cost (RFC 4787, REQ-5, wants 120 s).
const LONG: u8 = 85;

/// Measures it with the first of these servers, of one family, that can tell.
pub(super) fn measure(servers: &[SocketAddr]) -> Option<Found> {
    let mut trials = servers.iter().map(|server| trial(*server));
    trials.find_map(|outcome| match outcome? {
        Outcome::Found(found) => Some(found),
        Outcome::Unfit | Outcome::Void => None,
    })
}

/// One trial, from two fresh ports.
fn trial(server: SocketAddr) -> Option<Outcome> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let bind = || {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.set_read_timeout(Some(TURN)).ok()?;
        Some(socket)
    };
    let (probe, control) = (bind()?, bind()?);
    let mut seed = Zeroizing::new([0; 32]);
    fill_random(&mut *seed);
    let mut rng = ChaCha20Rng::from_seed(*seed);
    let begin = Instant::now();
    let mut trial = Trial::new(server, &mut rng, now());
    let mut buffer = [0; 2048];
    while trial.outcome().is_none() && begin.elapsed() < LONGEST {
        if let Some(request) = trial.handle_timeout(&mut rng, now()) {
            let socket = match request.from {
                End::Probe => &probe,
                End::Control => &control,
            };
            let _ = socket.send_to(&request.payload, request.to);
        }
        for (end, socket) in [(End::Probe, &probe), (End::Control, &control)] {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            if let Some(payload) = buffer.get(..length) {
                trial.handle_answer(end, canonical(from), payload, &mut rng, now());
            }
        }
    }
    trial.outcome()
}

/// Whose packets are let in.
pub(super) fn filtering(label: &str, found: Option<Found>) -> Check {
    let Some(found) = found else {
        return Check::unknown(
            label,
            "no server that answers has a second port to send from",
        )
        .help("let the server have its alternate port, or name another with --stun HOST:PORT");
    };
    let text = match found.filtering {
        Filtering::EndpointIndependent => {
            "packets of anybody are let in: peers behind any NAT reach this host directly"
        }
        Filtering::AddressDependent | Filtering::NotByPort => {
            "packets from any port of an address that this host has sent to are let in: peers behind \
             any NAT reach it directly"
        }
        Filtering::AddressAndPortDependent => {
            "packets from where this host has sent to are let in, as most routers do"
        }
    };
    Check::good(label, text)
}

/// Whether an unexpected packet costs a flow its port.
pub(super) fn poison(found: Option<Found>) -> Option<Check> {
    let label = "unexpected packets";
    Some(match found?.poison_prone? {
        false => Check::good(label, "the router drops them without a trace"),
        true => Check::bad(
            label,
            "the router takes them for its own, and the flow that was wanted gets another port: some \
             peers become direct later, or by a relay",
            "let the router drop what it does not expect on its outside (Linux: a chain `input` with \
             `policy drop`)",
        ),
    })
}

/// How long mappings live, as a running agent has measured it.
pub(super) fn lifetime(seconds: Option<u8>) -> Check {
    let label = "mapping lifetime";
    match seconds {
        None => Check::unknown(
            label,
            "an agent that runs measures it within five minutes; this host's has not, or does not run",
        )
        .help("`natpunch status --json` shows it as `mapping_lifetime_s`"),
        Some(seconds) if seconds >= LONG => Check::good(
            label,
            format!("mappings outlive {seconds} s of silence: an idle peer costs little"),
        ),
        Some(seconds) => Check::good(
            label,
            format!(
                "mappings outlive {seconds} s of silence: idle peers are kept by a packet as often"
            ),
        ),
    }
}

/// What the agent of an interface has measured, if one runs.
pub(super) fn measured_lifetime(runtime_dir: &Path, interface: &str) -> Option<u8> {
    let mut agent = control::Client::connect(runtime_dir, interface).ok()?;
    let status = agent.ask(Request::Status).ok()?;
    let seconds = status.pointer("/nat/mapping_lifetime_s")?.as_u64()?;
    u8::try_from(seconds).ok()
}
