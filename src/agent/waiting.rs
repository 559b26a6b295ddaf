//! A start that has no mesh yet: the source gives none, and none was applied before.
//!
//! The agent waits and asks again, since at a first boot the network, the server or the repository
//! may come later than this machine, and a unit that was started too often is not started again.
//! Meanwhile it answers at a control socket of its own, so that `natpunch status` can say what it
//! waits for.

use std::time::Duration;

use natpunch_types::Help as _;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{AgentError, Options, notify_systemd};
use crate::control::{self, Call, Reply, Request};
use crate::source::{self, Problem, Source, SourceError};

/// The first wait, which is doubled up to the longest.
const WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// How often a watchdog is told that the agent lives.
const BEAT: Duration = Duration::from_secs(1);

/// What `status` says of an agent that has no mesh yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Waiting {
    /// Where the mesh is to come from.
    pub waiting_for: String,
    /// Why it does not.
    pub problem: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Until it is asked again, in seconds.
    pub retry_in_s: f64,
    /// Process id of the agent.
    pub pid: u32,
}

/// Opens the source, and waits for it for as long as that may help. `None`: the agent was told to
/// stop.
///
/// # Errors
/// Waiting can't help, or somebody waits for the end of `--once`.
pub(super) async fn open(
    options: &Options,
) -> Result<Option<(Source, mpsc::Receiver<source::Change>)>, AgentError> {
    let mut room = None;
    let mut wait = WAIT.0;
    let mut told = None;
    loop {
        let error = match beating(Source::open(options.source.clone())).await {
            Ok(opened) => return Ok(Some(opened)),
            Err(error) if options.once.is_some() || !may_pass(&error) => {
                return Err(error.at(&options.source.location).into());
            }
            Err(error) => error,
        };
        if told.as_ref() != Some(&error) {
            tracing::warn!(
                source = %options.source.location,
                "there is no mesh to start with; waiting for the source: {}",
                error.in_full()
            );
            told = Some(error.clone());
        }
        // Ready: what this unit can do it does, and a boot must not wait for a server elsewhere.
        let text = format!("no mesh yet: {error}");
        notify_systemd(&[
            sd_notify::NotifyState::Status(&text),
            sd_notify::NotifyState::Ready,
        ]);
        if room.is_none() {
            room = Room::open(options).await;
        }
        if !rest(&mut room, options, &error, wait).await {
            return Ok(None);
        }
        wait = (wait * 2).min(WAIT.1);
    }
}

/// Does this, and tells a watchdog meanwhile that this task is not stuck: a source may be slow.
async fn beating<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut beat = tokio::time::interval(BEAT);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = beat.tick() => notify_systemd(&[sd_notify::NotifyState::Watchdog]),
        }
    }
}

/// Whether the same question may be answered better later: a server comes back, a commit is pushed.
/// What is wrong on this machine or on the command line is for a person to mend, who is told by the
/// end of the program.
fn may_pass(error: &SourceError) -> bool {
    matches!(error.problem(), Problem::Unreachable | Problem::Refused)
}

/// Where the agent answers while it waits.
struct Room {
    calls: mpsc::Receiver<Call>,
    _control: control::Server,
}

impl Room {
    /// `None`: the socket can't be had; the log says why, and waiting goes on without it.
    async fn open(options: &Options) -> Option<Self> {
        let path = control::waiting_path(&options.runtime_dir, &options.source.location);
        let (to_agent, calls) = mpsc::channel(4);
        match control::Server::listen(&path, options.control_group, to_agent).await {
            Ok(control) => Some(Self {
                calls,
                _control: control,
            }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "no `natpunch status` meanwhile");
                None
            }
        }
    }
}

/// Waits, and answers meanwhile. False: the agent was told to stop.
async fn rest(
    room: &mut Option<Room>,
    options: &Options,
    error: &SourceError,
    wait: Duration,
) -> bool {
    let until = Instant::now() + wait;
    loop {
        let call = async {
            match room {
                Some(room) => room.calls.recv().await,
                None => std::future::pending().await,
            }
        };
        let call = tokio::select! {
            Some(call) = call => call,
            () = tokio::time::sleep_until(until.min(Instant::now() + BEAT)) => {
                notify_systemd(&[sd_notify::NotifyState::Watchdog]);
                if Instant::now() >= until {
                    return true;
                }
                continue;
            }
        };
        let (reply, goes_on) = match call.request {
            Request::Status => {
                let waiting = Waiting {
                    waiting_for: options.source.location.to_string(),
                    problem: error.to_string(),
                    help: error.helps().into_iter().next(),
                    retry_in_s: until
                        .saturating_duration_since(Instant::now())
                        .as_secs_f64(),
                    pid: std::process::id(),
                };
                let value = serde_json::to_value(waiting);
                (
                    value.map_or_else(|error| Reply::Error(error.to_string()), Reply::Ok),
                    None,
                )
            }
            Request::Stop => (Reply::Ok(serde_json::Value::Null), Some(false)),
            // Asked again at once; what comes of it is in the log and in the next status.
            Request::Reload => {
                let text = "there is no mesh yet; its source is asked again now";
                (Reply::Error(text.to_owned()), Some(true))
            }
            Request::Confirm
            | Request::Drift
            | Request::Mesh
            | Request::Metrics
            | Request::Why { .. }
            | Request::WhyThere { .. }
            | Request::Ping { .. } => {
                (Reply::Error(format!("there is no mesh yet: {error}")), None)
            }
        };
        let _ = call.answer.send(reply);
        if let Some(goes_on) = goes_on {
            return goes_on;
        }
    }
}
