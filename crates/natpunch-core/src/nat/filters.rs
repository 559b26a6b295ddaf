//! When it is measured how the NAT filters, and from which spare ports: [`Trial`] by trial.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use natpunch_types::{PathId, PeerKey};
use rand_core::RngCore;

use crate::nat::begin_at;
use crate::nat::filtering::{End, Found, Outcome, Trial};
use crate::ports::SourcePorts;
use crate::{Time, Transmit};

/// When the first trial begins where nothing calls for haste: the search for paths comes first.
const QUIET: Duration = Duration::from_secs(30);
/// When it is tried again if no server answered ...
const RETRY: Duration = Duration::from_secs(300);
/// ... or the one that was asked answers from one place only: with the next one.
const OTHER_SERVER: Duration = Duration::from_secs(30);
/// Servers in a row that can't tell, after which it rests for so long.
const MAX_SERVERS: usize = 4;
const UNFIT: Duration = Duration::from_secs(86_400);
/// When what was measured is measured anew: the router may have been replaced.
const GOOD_FOR: Duration = Duration::from_secs(3_600);

#[derive(Debug)]
struct Run {
    trial: Trial,
    probe: NonZeroU16,
    control: NonZeroU16,
}

/// What is known of how the NAT, or the firewall, of one address family filters.
#[derive(Debug)]
pub(crate) struct Filters {
    /// In whose name its spare ports are open.
    owner: PeerKey,
    found: Option<Found>,
    run: Option<Run>,
    /// When the next trial begins.
    due: Option<Time>,
    /// One has begun already.
    tried: bool,
    /// Servers in a row that could not tell.
    unfit: usize,
}

impl Filters {
    /// Nothing is known. No peer may have this key.
    pub(crate) const fn new(owner: PeerKey) -> Self {
        Self {
            owner,
            found: None,
            run: None,
            due: None,
            tried: false,
            unfit: 0,
        }
    }

    pub(crate) fn found(&self) -> Option<Found> {
        self.found
    }

    /// Whether a spare port is one of its trial.
    pub(crate) fn has_port(&self, port: NonZeroU16) -> bool {
        let of_run = |run: &Run| [run.probe, run.control].contains(&port);
        self.run.as_ref().is_some_and(of_run)
    }

    /// The network is another.
    pub(crate) fn restart(&mut self, ports: &mut SourcePorts) {
        ports.close(&self.owner, |_| false);
        *self = Self::new(self.owner);
    }

    /// When something is due, if there is anything to be measured.
    pub(crate) fn next_timeout(&self) -> Option<Time> {
        let trial = self.run.as_ref().and_then(|run| run.trial.next_timeout());
        trial.or(self.due)
    }

    /// Goes on with a trial, or begins one that is due. `servers`: STUN servers of the family that
    /// answer; `haste`: a strategy may depend on it, and the trial disturbs nothing.
    pub(crate) fn handle_timeout(
        &mut self,
        servers: impl FnOnce() -> Vec<SocketAddr>,
        haste: bool,
        ports: &mut SourcePorts,
        rng: &mut impl RngCore,
        now: Time,
        mut send: impl FnMut(Transmit),
    ) {
        let due = *self.due.get_or_insert(now + QUIET);
        let is_due = due <= now || haste && !self.tried;
        if self.run.is_none() && is_due {
            self.begin(&servers(), ports, rng, now);
        }
        let Some(run) = &mut self.run else { return };
        if let Some(request) = run.trial.handle_timeout(rng, now) {
            let port = match request.from {
                End::Probe => run.probe,
                End::Control => run.control,
            };
            let path = PathId::from_port(port, request.to);
            send(Transmit::new(path, request.payload));
        }
        self.conclude(ports, now);
    }

    fn begin(
        &mut self,
        servers: &[SocketAddr],
        ports: &mut SourcePorts,
        rng: &mut impl RngCore,
        now: Time,
    ) {
        let begun = begin_at(servers, self.unfit, ports, self.owner, rng);
        let Some((server, [probe, control])) = begun else {
            self.due = Some(now + RETRY);
            return;
        };
        self.tried = true;
        self.run = Some(Run {
            trial: Trial::new(server, rng, now),
            probe,
            control,
        });
    }

    /// Takes what came to a port of the trial.
    pub(crate) fn handle_answer(
        &mut self,
        path: PathId,
        payload: &[u8],
        ports: &mut SourcePorts,
        rng: &mut impl RngCore,
        now: Time,
    ) {
        let Some(run) = &mut self.run else { return };
        let end = match path.pin() {
            Some(port) if port == run.probe => End::Probe,
            Some(port) if port == run.control => End::Control,
            _ => return,
        };
        run.trial.handle_answer(end, path.remote, payload, rng, now);
        self.conclude(ports, now);
    }

    fn conclude(&mut self, ports: &mut SourcePorts, now: Time) {
        let outcome = self.run.as_ref().and_then(|run| run.trial.outcome());
        let Some(outcome) = outcome else { return };
        self.run = None;
        ports.close(&self.owner, |_| false);
        let pause = match outcome {
            Outcome::Found(found) => {
                (self.found, self.unfit) = (Some(found), 0);
                GOOD_FOR
            }
            Outcome::Unfit => {
                self.unfit += 1;
                match self.unfit.is_multiple_of(MAX_SERVERS) {
                    true => UNFIT,
                    false => OTHER_SERVER,
                }
            }
            Outcome::Void => RETRY,
        };
        self.due = Some(now + pause);
    }
}
