//! Whose packets the NAT before this node lets in (RFC 4787, 5; measured as in RFC 5780, 4.4), and
//! what it does with those that it does not.
//!
//! A trial has two spare ports, never WireGuard's, since each of its packets changes what a NAT
//! lets in. From the *probe* a server is asked to answer from where the probe has not sent to: from
//! its other address and port, then from its other port. What arrives tells how the NAT filters.
//!
//! What did not arrive may have left a trace: a router that takes an unexpected packet for its own
//! remembers it, and gives the five-tuple that it has used up to nobody else (Linux that accepts on
//! its outside). So the probe then sends to that very place. If the server sees it at another port
//! there, the NAT is *poison-prone*. The *control* port sends to both places without having been
//! answered unasked: a NAT that has another port for each destination is not taken for such a
//! one, and a server whose other place is mute not for a NAT that filters.

use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::Time;
use rand_core::RngCore;

use crate::gather::fresh;
use crate::nat::stun::{self, Answer, Change, Others, TransactionId};
use crate::status::Filtering;

/// When a request is sent again, and how often it is sent. What has not come after that is taken
/// for filtered: a round trip is no longer, and one in a thousand packets is lost three times.
const RESEND: Duration = Duration::from_millis(300);
const TRIES: u32 = 3;

/// One of the two ports of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Gets the answers that were not asked for at their place.
    Probe,
    /// Sends to the same places, and gets none of those.
    Control,
}

/// What a trial waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The probe's mapping, and where else the server answers from.
    Open,
    /// An answer from the other address and port, which the probe has not sent to.
    OtherAddress,
    /// An answer from the other port.
    OtherPort,
    /// The control's mapping.
    Control,
    /// The control's mapping towards the place from which nothing came.
    ControlThere,
    /// The probe's.
    There,
}

/// What was found of a NAT's, or of a firewall's, filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Whose packets it lets in.
    pub filtering: Filtering,
    /// Whether an unexpected packet takes the port of a flow that an inside host wants; `None`
    /// where that could not be seen.
    pub poison_prone: Option<bool>,
}

/// What became of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has shown this.
    Found(Found),
    /// With this server it can't be told: it answers from one place only.
    Unfit,
    /// The server did not answer at all.
    Void,
}

/// A request to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The port that it leaves from.
    pub from: End,
    /// Where it goes.
    pub to: SocketAddr,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// A trial with one server.
#[derive(Debug)]
pub struct Trial {
    server: SocketAddr,
    step: Step,
    transaction: TransactionId,
    /// Requests of this step that were sent.
    tries: u32,
    next: Time,
    others: Others,
    /// How the server sees the probe, and the control.
    mapped: Option<SocketAddr>,
    control: Option<SocketAddr>,
    /// Whether the control keeps its port towards the other place.
    is_steady: bool,
    /// The filter, if what did not arrive was filtered.
    filtering: Filtering,
    outcome: Option<Outcome>,
}

impl Trial {
    /// With this server, at once.
    pub fn new(server: SocketAddr, rng: &mut impl RngCore, now: Time) -> Self {
        Self {
            server,
            step: Step::Open,
            transaction: fresh(rng),
            tries: 0,
            next: now,
            others: Others::default(),
            mapped: None,
            control: None,
            is_steady: false,
            filtering: Filtering::AddressAndPortDependent,
            outcome: None,
        }
    }

    /// What became of it, when it is over.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called; `None` when it is over.
    pub fn next_timeout(&self) -> Option<Time> {
        self.outcome.is_none().then_some(self.next)
    }

    /// The request that is due.
    pub fn handle_timeout(&mut self, rng: &mut impl RngCore, now: Time) -> Option<Request> {
        if self.outcome.is_some() || now < self.next {
            return None;
        }
        if self.tries >= TRIES {
            self.on_silence(rng, now);
        }
        if self.outcome.is_some() {
            return None;
        }
        let request = self.request()?;
        self.tries += 1;
        self.next = now + RESEND;
        Some(request)
    }

    /// Takes what came to one of the ports from this canonical address.
    pub fn handle_answer(
        &mut self,
        at: End,
        from: SocketAddr,
        payload: &[u8],
        rng: &mut impl RngCore,
        now: Time,
    ) {
        let Some((transaction, answer)) = stun::parse_answer(payload) else {
            return;
        };
        if transaction != self.transaction || self.outcome.is_some() || at != self.port() {
            return;
        }
        match (self.step, answer) {
            (Step::Open, Answer::Mapped(mapped)) if from == self.server => {
                self.mapped = Some(mapped);
                self.others = stun::parse_others(payload);
                let same_family = self.server.is_ipv4();
                self.others
                    .address
                    .take_if(|address| address.is_ipv4() != same_family);
                let step = match self.others.address {
                    Some(_) => Step::OtherAddress,
                    None => Step::OtherPort,
                };
                self.turn(step, rng, now);
            }
            // It has another address, and can't or will not answer from there.
            (Step::OtherAddress, Answer::Refused(_)) if from == self.server => {
                self.others.address = None;
                self.turn(Step::OtherPort, rng, now);
            }
            (Step::OtherAddress, Answer::Mapped(_)) if Some(from) == self.others.address => {
                // Nothing is unexpected for it, so nothing can be taken for its own.
                self.find(Filtering::EndpointIndependent, Some(false));
            }
            (Step::OtherPort, Answer::Mapped(_)) if self.is_other_port(from) => {
                match self.others.address {
                    // The same server's other address was kept out.
                    Some(_) => {
                        self.filtering = Filtering::AddressDependent;
                        self.turn(Step::Control, rng, now);
                    }
                    None => self.find(Filtering::NotByPort, None),
                }
            }
            // It refuses, or has answered from where it was asked.
            (Step::OtherPort | Step::OtherAddress, _) if from == self.server => {
                self.outcome = Some(Outcome::Unfit);
            }
            (Step::Control, Answer::Mapped(mapped)) if from == self.server => {
                self.control = Some(mapped);
                self.turn(Step::ControlThere, rng, now);
            }
            (Step::ControlThere, Answer::Mapped(mapped)) if Some(from) == self.there() => {
                self.is_steady = self.control == Some(mapped);
                self.turn(Step::There, rng, now);
            }
            (Step::There, Answer::Mapped(mapped)) if Some(from) == self.there() => {
                let is_moved = self.mapped != Some(mapped);
                self.find(self.filtering, self.is_steady.then_some(is_moved));
            }
            // Late, or from somewhere else.
            _ => {}
        }
    }

    /// Nothing has come of the requests of this step.
    fn on_silence(&mut self, rng: &mut impl RngCore, now: Time) {
        match self.step {
            Step::Open | Step::Control => self.outcome = Some(Outcome::Void),
            Step::OtherAddress => self.turn(Step::OtherPort, rng, now),
            Step::OtherPort if self.there().is_some() => self.turn(Step::Control, rng, now),
            // Where an answer should have come from is not known, or that place is mute: whether the
            // NAT has filtered anything is not known either.
            Step::OtherPort | Step::ControlThere => self.outcome = Some(Outcome::Unfit),
            // It answers the control: the packet that came unasked has cost the probe its way there.
            Step::There => self.find(self.filtering, self.is_steady.then_some(true)),
        }
    }

    fn find(&mut self, filtering: Filtering, poison_prone: Option<bool>) {
        self.outcome = Some(Outcome::Found(Found {
            filtering,
            poison_prone,
        }));
    }

    fn turn(&mut self, step: Step, rng: &mut impl RngCore, now: Time) {
        self.step = step;
        self.transaction = fresh(rng);
        (self.tries, self.next) = (0, now);
    }

    fn is_other_port(&self, from: SocketAddr) -> bool {
        from.ip() == self.server.ip() && from.port() != self.server.port()
    }

    /// The place from which something was kept out.
    fn there(&self) -> Option<SocketAddr> {
        match self.filtering {
            Filtering::AddressDependent => self.others.address,
            _ => {
                let port = self.others.port?;
                Some(SocketAddr::new(self.server.ip(), port)).filter(|at| self.is_other_port(*at))
            }
        }
    }

    /// The port that this step is about.
    fn port(&self) -> End {
        match self.step {
            Step::Control | Step::ControlThere => End::Control,
            Step::Open | Step::OtherAddress | Step::OtherPort | Step::There => End::Probe,
        }
    }

    fn request(&self) -> Option<Request> {
        let change = |ip| stun::request_change(self.transaction, Change { ip, port: true });
        let (to, payload) = match self.step {
            Step::Open => (self.server, stun::request_others(self.transaction)),
            Step::OtherAddress => (self.server, change(true)),
            Step::OtherPort => (self.server, change(false)),
            Step::Control => (self.server, stun::request(self.transaction)),
            Step::ControlThere | Step::There => (self.there()?, stun::request(self.transaction)),
        };
        Some(Request {
            from: self.port(),
            to,
            payload,
        })
    }
}

#[cfg(test)]
#[path = "filtering_tests.rs"]
mod tests;
