//! `natpunch ping PEER`: by which path a peer answers, and how fast, until that path is direct.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Deserialize as _;

use super::agents::agent_of;
use crate::agent::Pinged;
use crate::cli::CliError;
use crate::cli::args::PingArgs;
use crate::cli::exit::Exit;
use crate::control::{Client, Request, runtime_dir};

/// From one ping to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long an answer of the mesh address is awaited, and the length of the packets that ask it, in
/// bytes.
const OVERLAY: (Duration, usize) = (Duration::from_secs(1), 84);

/// How far the pings have got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    Nothing,
    ByRelay,
    Direct,
}

/// Pings once a second until the path is direct, or as often as was asked for.
///
/// # Errors
/// No agent runs here, it has no such peer, or the peer has not answered at all.
pub(in crate::cli) fn run(args: &PingArgs) -> Result<ExitCode, CliError> {
    let directory = runtime_dir();
    let interface = agent_of(&directory, args.interface.as_deref())?;
    let mut client = Client::connect(&directory, &interface)?;
    let mut out = anstream::stdout();
    let mut best = Reached::Nothing;
    for number in 1..=args.count {
        let begin = Instant::now();
        let peer = args.peer.clone();
        let answer = client.ask(Request::Ping { peer })?;
        let pinged = Pinged::deserialize(answer).map_err(|error| {
            CliError::new(format!(
                "the agent speaks another version of natpunch: {error}"
            ))
            .help("restart the agent, tunnels stay up meanwhile")
        })?;
        let overlay = pinged
            .address
            .and_then(|address| natpunch_net::echo_once(address, OVERLAY.1, OVERLAY.0));
        writeln!(out, "{}", line(&args.peer, &pinged, overlay))?;
        let reached = reached(&pinged, overlay);
        best = best.max(reached);
        let is_last = number == args.count || reached == Reached::Direct && !args.keep_going;
        if is_last {
            break;
        }
        std::thread::sleep(INTERVAL.saturating_sub(begin.elapsed()));
    }
    match best {
        Reached::Direct => Ok(ExitCode::SUCCESS),
        Reached::ByRelay => {
            writeln!(
                out,
                "no direct path; `natpunch why {}` says what would help",
                args.peer
            )?;
            Ok(Exit::Unfit.into())
        }
        Reached::Nothing => Err(CliError::new(format!("{} has not answered", args.peer))
            .help(format!("`natpunch why {}` says what was tried", args.peer))),
    }
}

/// What one ping has shown. A plain peer answers inside the tunnel only.
fn reached(pinged: &Pinged, overlay: Option<Duration>) -> Reached {
    let answered = pinged.rtt_ms.is_some() || overlay.is_some();
    match pinged.path.as_str() {
        "lan" | "direct" if answered => Reached::Direct,
        "relay" if answered => Reached::ByRelay,
        _ => Reached::Nothing,
    }
}

fn line(peer: &str, pinged: &Pinged, overlay: Option<Duration>) -> String {
    let endpoint = pinged.endpoint.map_or(String::new(), |at| format!(" {at}"));
    let by = match pinged.relayed_by.as_slice() {
        [] => String::new(),
        by => format!(" of {}", by.join(", ")),
    };
    let from = pinged
        .source_port
        .map_or(String::new(), |port| format!(" from port {port}"));
    let path = match (&pinged.problem, pinged.path.as_str()) {
        (Some(problem), _) => return format!("{peer}: no path: {problem}"),
        (None, "none") => return format!("{peer}: no path"),
        (None, kind) => format!("{kind}{by}{endpoint}{from}"),
    };
    let rtt = match (pinged.rtt_ms, pinged.managed) {
        (Some(rtt), _) => format!("answered in {rtt:.1} ms"),
        (None, true) => "no answer of its natpunch".to_owned(),
        (None, false) => "plain WireGuard, which answers no probe".to_owned(),
    };
    let overlay = match (pinged.address, overlay) {
        (Some(address), Some(rtt)) => {
            format!("; {address} in {:.1} ms", rtt.as_secs_f64() * 1e3)
        }
        (Some(address), None) => format!("; {address} does not answer"),
        (None, _) => String::new(),
    };
    format!("{peer}: {path}: {rtt}{overlay}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pinged(path: &str, rtt_ms: Option<f64>) -> Pinged {
        Pinged {
            address: Some("10.77.0.2".parse().unwrap()),
            managed: true,
            path: path.to_owned(),
            endpoint: Some("203.0.113.9:51901".parse().unwrap()),
            source_port: None,
            relayed_by: Vec::new(),
            rtt_ms,
            problem: None,
        }
    }

    #[test]
    fn a_line_tells_the_path_its_round_trip_and_the_one_inside() {
        let relay = Pinged {
            relayed_by: vec!["rv".to_owned()],
            ..pinged("relay", Some(5.04))
        };
        let overlay = Some(Duration::from_micros(5_300));
        assert_eq!(
            line("b", &relay, overlay),
            "b: relay of rv 203.0.113.9:51901: answered in 5.0 ms; 10.77.0.2 in 5.3 ms"
        );
        let pinned = Pinged {
            source_port: std::num::NonZeroU16::new(61_234),
            ..pinged("direct", None)
        };
        assert_eq!(
            line("b", &pinned, None),
            "b: direct 203.0.113.9:51901 from port 61234: no answer of its natpunch; 10.77.0.2 does not answer"
        );
        let away = Pinged {
            problem: Some("waiting: no address".to_owned()),
            ..pinged("none", None)
        };
        assert_eq!(line("b", &away, None), "b: no path: waiting: no address");
    }

    #[test]
    fn a_path_counts_when_something_of_the_peer_answers_on_it() {
        let overlay = Some(Duration::from_millis(1));
        assert_eq!(reached(&pinged("direct", Some(1.0)), None), Reached::Direct);
        assert_eq!(reached(&pinged("lan", None), overlay), Reached::Direct);
        assert_eq!(reached(&pinged("relay", Some(1.0)), None), Reached::ByRelay);
        assert_eq!(reached(&pinged("direct", None), None), Reached::Nothing);
        assert_eq!(reached(&pinged("none", None), overlay), Reached::Nothing);
    }
}
