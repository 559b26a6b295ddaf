//! The conformance suite: the rules that every plugin keeps.
//!
//! It runs a plugin against a [`FakeHost`] and gives a [`Report`]: what the plugin did that its
//! host would refuse, or that would leave a node without it. Each [`Finding`] is a sentence that
//! the plugin's author can act on. No server is needed: a plugin that can't reach its own has to
//! say so and go on.
//!
//! ```
//! # use std::sync::Arc;
//! # use natpunch_plugin::{BoxFuture, Description, Discovery, Health, Host, Input, PluginError};
//! # use natpunch_plugin::conformance::{Subject, check};
//! struct Quiet;
//!
//! impl Discovery for Quiet {
//!     fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
//!         Box::pin(async move {
//!             host.report(Health::Good("looks for nobody".to_owned()));
//!             while !matches!(host.next().await, Input::Shutdown) {}
//!             Ok(())
//!         })
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let subject = Subject {
//!     about: Description::default(),
//!     plugin: &|| Box::new(Quiet),
//! };
//! assert!(check(&subject).await.is_good());
//! # }
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{PEER_MESSAGE_MAX, PeerKey};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::testing::{Effect, FakeHost};
use crate::{Description, Discovery, Health, Input, News, PluginError, SecretKey};

mod inputs;
mod news;

use inputs::{PEERS, Side};

/// How long a plugin may take to say how it is.
const FIRST_HEALTH: Duration = Duration::from_secs(15);
/// How long a plugin may leave what it is told unread. One that reads nothing is to be ended by its
/// own means before.
const UNREAD: Duration = Duration::from_secs(15);
/// How long a plugin may take to stop.
const STOP: Duration = Duration::from_secs(2);
/// How much a plugin may say in a second in which nothing happens.
const MOST_IN_A_SECOND: usize = 256;
/// How long a record may take from one side to the other, in one place.
const DELIVERY: Duration = Duration::from_secs(20);
/// How long the older record is waited for after the newer one came.
const STALE: Duration = Duration::from_secs(4);
/// The longest word about its health, in characters.
const LONGEST_HEALTH: usize = 1_000;

/// A plugin to be checked.
pub struct Subject<'a> {
    /// What it says of itself.
    pub about: Description,
    /// Makes one that does not run yet.
    pub plugin: &'a (dyn Fn() -> Box<dyn Discovery> + Sync),
}

/// What is asked of a plugin, to follow "a plugin".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule(pub &'static str);

impl Rule {
    /// It says how it is, soon after its start.
    pub const STARTS: Self = Self("starts, and says how it is");
    /// It reads whatever it is told, and goes on.
    pub const READS: Self = Self("reads all that it is told, and goes on");
    /// What it says is covered by its abilities, and about peers that it was told of.
    pub const KNOWS: Self = Self("says only what it can know");
    /// It says little when nothing happens.
    pub const IS_QUIET: Self = Self("is quiet when nothing happens");
    /// It ends when it is told to.
    pub const STOPS: Self = Self("ends when it is told to");
    /// It can be stopped before it has begun.
    pub const STOPS_AT_ONCE: Self = Self("ends when that is the first thing that it is told");
    /// It can be run again.
    pub const RUNS_AGAIN: Self = Self("runs again after its end");
    /// Its records reach the other side, and the newest is the last.
    pub const CARRIES: Self = Self("brings records to the other side, the newest last");
}

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub rule: Rule,
    /// What happened, and what to do.
    pub problem: String,
}

/// What a check came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The rules that were checked.
    pub checked: Vec<Rule>,
    /// What was found; none if all is well.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }

    /// What breaks this rule.
    pub fn of(&self, rule: Rule) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |one| one.rule == rule)
    }

    /// Notes what breaks a rule, once.
    pub fn add(&mut self, rule: Rule, problem: impl Into<String>) {
        let finding = Finding {
            rule,
            problem: problem.into(),
        };
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// Notes that a rule is checked.
    pub fn begin(&mut self, rule: Rule) {
        self.checked.push(rule);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rule in &self.checked {
            match self.of(*rule).next() {
                None => writeln!(f, "ok     {}", rule.0)?,
                Some(_) => writeln!(f, "FAILS  {}", rule.0)?,
            }
            for finding in self.of(*rule) {
                writeln!(f, "       - {}", finding.problem)?;
            }
        }
        Ok(())
    }
}

/// Checks a plugin. What it does is waited for by tokio's time.
pub async fn check(subject: &Subject<'_>) -> Report {
    let mut report = Report::default();
    report.begin(Rule::STARTS);
    let mut run = Run::start(subject, (subject.plugin)(), Side::A);
    if !run.begins(&mut report).await {
        run.abort();
        return report;
    }
    report.begin(Rule::READS);
    for input in inputs::all(&subject.about.abilities) {
        run.host.put(input);
    }
    if !run.reads(&mut report).await {
        run.abort();
        return report;
    }
    report.begin(Rule::KNOWS);
    report.begin(Rule::IS_QUIET);
    run.is_quiet(&mut report).await;
    report.begin(Rule::STOPS);
    let plugin = run.stops(Rule::STOPS, &mut report).await;

    report.begin(Rule::STOPS_AT_ONCE);
    let first = Run::bare(subject, (subject.plugin)(), Side::A);
    first.stops(Rule::STOPS_AT_ONCE, &mut report).await;

    if let Some(plugin) = plugin {
        report.begin(Rule::RUNS_AGAIN);
        let mut again = Run::start(subject, plugin, Side::A);
        let mut begun = Report::default();
        if !again.begins(&mut begun).await {
            for finding in begun.findings {
                report.add(Rule::RUNS_AGAIN, finding.problem);
            }
        }
        again.stops(Rule::RUNS_AGAIN, &mut report).await;
    }
    report
}

/// Checks that two of a plugin, which stand for the two sides of a pair, bring records to each
/// other as they are.
pub async fn check_records(subject: &Subject<'_>, report: &mut Report) {
    report.begin(Rule::CARRIES);
    let [a, b] = [Side::A, Side::B].map(|side| Run::start(subject, (subject.plugin)(), side));
    for (from, to) in [(Side::A, &b), (Side::B, &a)] {
        let sender = if from == Side::A { &a } else { &b };
        let (old, new) = (from.record(1), from.record(2));
        for (record, which) in [(&old, "first"), (&new, "second")] {
            sender.host.put(inputs::records([record.clone()]));
            if !hears(&to.host, record, DELIVERY).await {
                report.add(
                    Rule::CARRIES,
                    format!(
                        "the {which} record that one side was given did not come to the other \
                         within {} s; write it where the other looks, replace the one before, and \
                         say what lies under each `inbound_tag` when it is new",
                        DELIVERY.as_secs()
                    ),
                );
                a.abort();
                b.abort();
                return;
            }
        }
        if hears(&to.host, &old, STALE).await {
            report.add(
                Rule::CARRIES,
                "after the newer record the older one came again; keep only the newest of each \
                 tag, and say it only when it is new",
            );
        }
    }
    for run in [a, b] {
        run.stops(Rule::CARRIES, report).await;
    }
}

/// Whether a record comes.
async fn hears(host: &FakeHost, record: &crate::SealedRecord, patience: Duration) -> bool {
    let wanted = Effect::Told(News::Record(record.clone()));
    let comes = async { while host.effect().await != wanted {} };
    timeout(patience, comes).await.is_ok()
}

type Ended = (Box<dyn Discovery>, Result<(), PluginError>);

/// A plugin that runs.
struct Run<'a> {
    host: Arc<FakeHost>,
    task: JoinHandle<Ended>,
    about: &'a Description,
    /// The peers that it was told of at any time.
    peers: BTreeSet<PeerKey>,
}

impl<'a> Run<'a> {
    /// One that is told of its peers.
    fn start(subject: &'a Subject<'_>, plugin: Box<dyn Discovery>, side: Side) -> Self {
        let run = Self::bare(subject, plugin, side);
        run.host.put(side.peers());
        run
    }

    /// One that is told nothing.
    fn bare(subject: &'a Subject<'_>, mut plugin: Box<dyn Discovery>, side: Side) -> Self {
        let secret = SecretKey::from_bytes([1; 32]);
        let key = subject.about.needs_private_key.then_some(secret);
        let host = FakeHost::new(side.key(), key, 1);
        let its_host = host.clone();
        let task = tokio::spawn(async move {
            let ended = plugin.run(its_host).await;
            (plugin, ended)
        });
        Self {
            host,
            task,
            about: &subject.about,
            peers: PEERS.into(),
        }
    }

    fn abort(&self) {
        self.task.abort();
    }

    /// Why it is no longer there, if it is not.
    async fn ending(&mut self) -> Option<String> {
        if !self.task.is_finished() {
            return None;
        }
        Some(match (&mut self.task).await {
            Ok((_, Ok(()))) => "it ended before it was told to; work until `shutdown`".to_owned(),
            Ok((_, Err(error))) => error.to_string(),
            Err(error) if error.is_panic() => "it panicked".to_owned(),
            Err(_) => "it was cancelled".to_owned(),
        })
    }

    /// Takes what it did; whether it said how it is.
    fn take_in(&self, report: &mut Report) -> bool {
        let mut is_said = false;
        for effect in self.host.effects() {
            is_said |= matches!(effect, Effect::Reported(_));
            self.judge(&effect, report);
        }
        is_said
    }

    fn judge(&self, effect: &Effect, report: &mut Report) {
        let problem = match effect {
            Effect::Told(told) => news::problem(told, self.about, &self.peers),
            Effect::Sent { .. } if !self.about.abilities.wireguard_port => Some(
                "it sent from WireGuard's port without the ability `wireguard_port`; name it in \
                 `describe`"
                    .to_owned(),
            ),
            Effect::Sent { .. } => None,
            Effect::SentToPeer { .. } if !self.about.abilities.peer_messages => Some(
                "it sent to a peer without the ability `peer_messages`; name it in `describe`"
                    .to_owned(),
            ),
            Effect::SentToPeer { peer, payload } => {
                let is_sent = self.peers.contains(peer) && payload.len() <= PEER_MESSAGE_MAX;
                (!is_sent).then(|| {
                    format!(
                        "it sent a message of more than {PEER_MESSAGE_MAX} bytes, or to none of \
                         the peers that it was told; both are dropped"
                    )
                })
            }
            Effect::Reported(Health::Good(note) | Health::Bad(note)) => {
                let is_short = note.chars().count() <= LONGEST_HEALTH;
                let is_shown = is_short && !note.is_empty() && !note.chars().any(char::is_control);
                (!is_shown).then(|| {
                    format!(
                        "a word about its health is empty, longer than {LONGEST_HEALTH} \
                         characters, or of several lines; `status` shows it on one line"
                    )
                })
            }
        };
        if let Some(problem) = problem {
            report.add(Rule::KNOWS, problem);
        }
    }

    /// Waits until it says how it is.
    async fn begins(&mut self, report: &mut Report) -> bool {
        let deadline = Instant::now() + FIRST_HEALTH;
        while Instant::now() < deadline {
            let is_said = self.take_in(report);
            if let Some(problem) = self.ending().await {
                report.add(Rule::STARTS, problem);
                return false;
            }
            if is_said {
                return true;
            }
            sleep(TICK).await;
        }
        report.add(
            Rule::STARTS,
            format!(
                "it said nothing about its health within {} s; report whether it works, or what \
                 keeps it from working",
                FIRST_HEALTH.as_secs()
            ),
        );
        false
    }

    /// Waits until it has read all inputs.
    async fn reads(&mut self, report: &mut Report) -> bool {
        let deadline = Instant::now() + UNREAD;
        loop {
            self.take_in(report);
            if let Some(problem) = self.ending().await {
                report.add(Rule::READS, problem);
                return false;
            }
            match self.host.unread() {
                0 => return true,
                unread if Instant::now() >= deadline => {
                    report.add(
                        Rule::READS,
                        format!(
                            "{unread} of the things that it was told are unread after {} s; read \
                             while you work",
                            UNREAD.as_secs()
                        ),
                    );
                    return false;
                }
                _ => sleep(TICK).await,
            }
        }
    }

    /// Waits for two seconds in which nothing happens, of which the first is for what it still has
    /// to say.
    async fn is_quiet(&mut self, report: &mut Report) {
        sleep(Duration::from_secs(1)).await;
        self.take_in(report);
        sleep(Duration::from_secs(1)).await;
        let said = self.host.effects();
        said.iter().for_each(|effect| self.judge(effect, report));
        if said.len() > MOST_IN_A_SECOND {
            report.add(
                Rule::IS_QUIET,
                format!(
                    "it said {} things in a second in which nothing happened, and {MOST_IN_A_SECOND} \
                     are a lot; say what is new, once",
                    said.len()
                ),
            );
        }
        if let Some(problem) = self.ending().await {
            report.add(Rule::IS_QUIET, problem);
        }
    }

    /// Tells it to end; the plugin, if it has ended well.
    async fn stops(mut self, rule: Rule, report: &mut Report) -> Option<Box<dyn Discovery>> {
        if self.task.is_finished() {
            return None;
        }
        self.host.put(Input::Shutdown);
        let outcome = timeout(STOP, &mut self.task).await;
        self.take_in(report);
        match outcome {
            Ok(Ok((plugin, Ok(())))) => return Some(plugin),
            Ok(Ok((_, Err(error)))) => report.add(rule, error.to_string()),
            Ok(Err(_)) => report.add(rule, "it panicked"),
            Err(_) => {
                self.abort();
                report.add(
                    rule,
                    format!(
                        "it did not end within {} s of `shutdown`; end at it",
                        STOP.as_secs()
                    ),
                );
            }
        }
        None
    }
}

/// How often a plugin is looked at while something is waited for.
const TICK: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests;
