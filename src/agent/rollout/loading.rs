//! The mesh file is loaded beside the agent's task, and what it says comes back as an event.
//!
//! A large mesh takes seconds to read and check. A loop that waited for it would answer no probe
//! meanwhile, and the peers would leave paths that work. One load runs at a time. A request that
//! comes while one runs is answered by the next load, which begins when the first ends: the files
//! may have changed after they were read, and the version that was read last counts.

use tokio::sync::{mpsc, oneshot};

use natpunch_rollout::Login;

use super::journal::Text;
use super::logins::logins;
use super::release::Release;
use crate::agent::{AgentError, Options};
use crate::config;
use crate::control::Reply;
use crate::source::Source;

/// Most askers that wait for a load. The control socket has 16 connections; what is more than
/// twice that is a flood of signals.
const MOST_WAITING: usize = 32;

/// A request that waits for the result of a load.
type Asker = oneshot::Sender<Reply>;

/// What a load came to.
#[derive(Debug)]
pub(in crate::agent) struct Loaded {
    pub(super) release: Result<Release, AgentError>,
    /// The logins from other hosts.
    pub(super) logins: Vec<Login>,
}

/// The loads of an agent.
#[derive(Debug)]
pub(in crate::agent) struct Loading {
    turns: Turns<Asker>,
    to_agent: mpsc::Sender<Loaded>,
}

impl Loading {
    /// The results come out of the channel, one for each load that began.
    pub(in crate::agent) fn channel() -> (Self, mpsc::Receiver<Loaded>) {
        let (to_agent, loaded) = mpsc::channel(1);
        let turns = Turns::default();
        (Self { turns, to_agent }, loaded)
    }

    /// Whether a version is being read that the agent has not judged yet.
    pub(in crate::agent) fn is_running(&self) -> bool {
        self.turns.running.is_some()
    }

    /// Loads what the source has now, or once more when the load that runs has ended.
    pub(super) fn ask(&mut self, asker: Option<Asker>, source: &Source, options: &Options) {
        match self.turns.ask(asker) {
            Turn::Begin => self.begin(source, options),
            Turn::Wait => {}
            Turn::Refused(asker) => {
                let text = "too many have asked already: try again".to_owned();
                let _ = asker.send(Reply::Error(text));
            }
        }
    }

    /// The load that ran is judged: its askers hear how it went, and the next begins if somebody
    /// asked meanwhile.
    pub(super) fn judged(&mut self, reply: &Reply, source: &Source, options: &Options) {
        let (askers, next) = self.turns.end();
        if next {
            self.begin(source, options);
        }
        for asker in askers {
            let _ = asker.send(reply.clone());
        }
    }

    fn begin(&self, source: &Source, options: &Options) {
        let work = load_blocking(source, options);
        let to_agent = self.to_agent.clone();
        tokio::spawn(async move {
            let loaded = tokio::task::spawn_blocking(move || Loaded {
                release: work(),
                logins: logins(),
            });
            let loaded = loaded.await.unwrap_or_else(|error| Loaded {
                release: Err(AgentError::Internal(error.to_string())),
                logins: Vec::new(),
            });
            // The agent that does not hear it any more has stopped.
            let _ = to_agent.send(loaded).await;
        });
    }
}

/// Loads what the source has, for a start, which has no paths to keep yet.
pub(in crate::agent) async fn load(
    source: &Source,
    options: &Options,
) -> Result<Release, AgentError> {
    tokio::task::spawn_blocking(load_blocking(source, options))
        .await
        .map_err(|error| AgentError::Internal(error.to_string()))?
}

/// Reads and checks the mesh and finds this host in it, as it is when this runs.
fn load_blocking(
    source: &Source,
    options: &Options,
) -> impl FnOnce() -> Result<Release, AgentError> + Send + use<> {
    let (path, local) = (source.path(), options.local.clone());
    move || {
        let mesh = config::load(&path)?;
        let node = config::resolve_node_at(&mesh, &local)?;
        let text = Text {
            hash: mesh.content_hash,
            files: mesh.texts(),
            local: local.absolute(),
        };
        Ok(Release::new(node, text))
    }
}

/// Whose question which load answers.
#[derive(Debug)]
struct Turns<A> {
    /// The requests from before the running load began; `None`: none runs.
    running: Option<Vec<A>>,
    /// The requests since then, if any.
    next: Option<Vec<A>>,
}

/// What a question leads to.
#[derive(Debug, PartialEq, Eq)]
enum Turn<A> {
    Begin,
    Wait,
    /// Too many wait already.
    Refused(A),
}

impl<A> Default for Turns<A> {
    fn default() -> Self {
        Self {
            running: None,
            next: None,
        }
    }
}

impl<A> Turns<A> {
    fn ask(&mut self, asker: Option<A>) -> Turn<A> {
        if self.running.is_none() {
            self.running = Some(asker.into_iter().collect());
            return Turn::Begin;
        }
        let next = self.next.get_or_insert_default();
        match asker {
            Some(asker) if next.len() >= MOST_WAITING => Turn::Refused(asker),
            asker => {
                next.extend(asker);
                Turn::Wait
            }
        }
    }

    /// The load that runs has ended: who asked for it, and whether another is to begin.
    fn end(&mut self) -> (Vec<A>, bool) {
        let askers = self.running.take().unwrap_or_default();
        self.running = self.next.take();
        (askers, self.running.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_during_a_load_is_answered_by_the_next_one() {
        let mut turns = Turns::default();
        assert_eq!(turns.ask(Some("first")), Turn::Begin);
        assert_eq!(turns.ask(Some("second")), Turn::Wait);
        assert_eq!(turns.ask(Some("third")), Turn::Wait);
        assert_eq!(turns.end(), (vec!["first"], true));
        assert_eq!(turns.end(), (vec!["second", "third"], false));
        assert_eq!(turns.ask(None), Turn::Begin, "idle again");
    }

    #[test]
    fn any_number_of_changes_during_a_load_is_one_load_more() {
        let mut turns = Turns::<()>::default();
        turns.ask(None);
        for _ in 0..10_000 {
            assert_eq!(turns.ask(None), Turn::Wait);
        }
        assert_eq!(turns.end(), (vec![], true));
        assert_eq!(turns.end(), (vec![], false));
    }

    #[test]
    fn the_askers_of_one_load_are_bounded() {
        let mut turns = Turns::default();
        turns.ask(None);
        let refused = (0..100).filter(|asker| turns.ask(Some(*asker)) != Turn::Wait);
        assert_eq!(refused.count(), 100 - MOST_WAITING);
        turns.end();
        assert_eq!(turns.end().0.len(), MOST_WAITING);
    }
}
