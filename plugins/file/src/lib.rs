//! Discovery through sealed records in a directory that all nodes see, however it is synchronised:
//! NFS, Syncthing, a job that commits and pulls a repository.
//!
//! Each node keeps one file there, replaced in one step, and reads those of the others when they
//! have changed. Nothing in the directory is believed: records are opened by the host, which knows
//! the sender's key and drops one that is older than the last. Whoever can read the directory
//! learns how many nodes there are and when their records change, and the tags of pairs, with
//! which one can add records that no node can open.

mod directory;
mod format;
mod settings;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use natpunch_plugin::{
    Ask, BoxFuture, Discovery, Health, Host, Input, News, PluginError, RecordTag, SealedRecord,
};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};

use directory::{Directory, Found};
pub use settings::{Settings, Shared};

/// How long the directory may take. A call to a file server that is gone does not return.
const PATIENCE: Duration = Duration::from_secs(10);

/// The file plugin.
#[derive(Debug)]
pub struct Plugin {
    shared: Shared,
    /// What waits for a directory that does not answer. No other is asked meanwhile.
    stuck: Option<JoinHandle<()>>,
}

impl Plugin {
    /// The plugin for this directory.
    pub fn new(shared: Shared) -> Self {
        Self {
            shared,
            stuck: None,
        }
    }
}

impl Discovery for Plugin {
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(self.work(host))
    }
}

/// What one turn at the directory is to do, and what came of it.
struct Turn {
    directory: Directory,
    /// This node's records, if they are not there yet.
    publish: Option<Arc<[SealedRecord]>>,
    wanted: BTreeSet<RecordTag>,
    are_new: bool,
    outcome: io::Result<Found>,
}

impl Turn {
    fn take(&mut self) {
        if std::mem::take(&mut self.are_new) {
            self.directory.read_anew(&self.wanted);
        }
        self.outcome = match &self.publish {
            Some(records) => self.directory.publish(records),
            None => Ok(()),
        }
        .and_then(|()| {
            self.publish = None;
            self.directory.look(&self.wanted)
        });
    }
}

impl Plugin {
    async fn work(&mut self, host: Arc<dyn Host>) -> Result<(), PluginError> {
        if let Some(stuck) = self.stuck.as_mut() {
            if timeout(PATIENCE, stuck).await.is_err() {
                return Err(self.unanswered());
            }
            self.stuck = None;
        }
        let path = self.shared.directory.clone();
        let mut turn = Turn {
            directory: Directory::new(path, format::name(&host.own_key())),
            publish: None,
            wanted: BTreeSet::new(),
            are_new: false,
            outcome: Ok(Found::default()),
        };
        let mut due = Instant::now();
        loop {
            tokio::select! {
                input = host.next() => match input {
                    Input::Ask(Ask::Peers(peers)) => {
                        let mut wanted: BTreeSet<_> =
                            peers.iter().map(|peer| peer.inbound_tag).collect();
                        // The tag belongs to no pair, so no peer uses this mailbox.
                        wanted.remove(&RecordTag::NONE);
                        if wanted != turn.wanted {
                            turn.wanted = wanted;
                            turn.are_new = true;
                            due = Instant::now();
                        }
                    }
                    Input::Ask(Ask::Records(records)) => {
                        turn.publish = Some(records);
                        due = Instant::now();
                    }
                    Input::Shutdown => return Ok(()),
                    Input::NetworkChanged
                    | Input::Datagram { .. }
                    | Input::FromPeer { .. }
                    | Input::Ask(Ask::Meet(_)) => {}
                },
                () = sleep_until(due) => {
                    turn = self.turn(turn).await?;
                    self.tell(&*host, &mut turn);
                    due = Instant::now() + self.shared.interval;
                }
            }
        }
    }

    /// Takes a turn on a thread that may wait.
    async fn turn(&mut self, mut turn: Turn) -> Result<Turn, PluginError> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let task = spawn_blocking(move || {
            turn.take();
            // The receiver is gone if the plugin was stopped.
            let _ = sender.send(turn);
        });
        match timeout(PATIENCE, receiver).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) => Err(PluginError::Failed(
                "a look at the directory failed".to_owned(),
            )),
            Err(_) => {
                self.stuck = Some(task);
                Err(self.unanswered())
            }
        }
    }

    fn unanswered(&self) -> PluginError {
        PluginError::Failed(format!(
            "{} does not answer for {} s; is the server of its file system there?",
            self.shared.directory.display(),
            PATIENCE.as_secs()
        ))
    }

    fn tell(&self, host: &dyn Host, turn: &mut Turn) {
        let directory = self.shared.directory.display();
        let outcome = std::mem::replace(&mut turn.outcome, Ok(Found::default()));
        host.report(match &outcome {
            Ok(found) => match &found.reason {
                Some(reason) => Health::Bad(format!(
                    "{directory}: {} files of other nodes, {} left out; the last: {reason}",
                    found.files, found.left_out
                )),
                None => Health::Good(format!("{directory}: {} files of other nodes", found.files)),
            },
            Err(error) => Health::Bad(format!(
                "{directory}: {error}; natpunch has to read and write there: make the directory, \
                 and name it as ReadWritePaths= in natpunch's unit"
            )),
        });
        for record in outcome.map(|found| found.records).unwrap_or_default() {
            host.tell(News::Record(record));
        }
    }
}

#[cfg(test)]
mod tests;
