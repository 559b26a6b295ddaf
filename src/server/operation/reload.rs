//! Settings that change while the server runs: on SIGHUP, and when the `--config` file or a file
//! that it names changes.
//!
//! A file with an error changes nothing. What can't be changed without a restart is said and left
//! as it is.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use natpunch_os::secret;
use natpunch_types::{Help as _, SecretKey, lock};
use tokio::signal::unix::Signal;

use crate::cli::args::ServeArgs;
use crate::config::read_key_file;
use crate::server::settings::{Compat, Settings};
use crate::server::status::Reloads;
use crate::server::worker::Shared;
use crate::server::{ServeError, admission_secrets, files, next_key};
use crate::source::Watcher;

/// Reads the settings again.
pub(in crate::server) struct Reloader {
    args: ServeArgs,
    current: Settings,
    /// The server's private keys, the current one first.
    keys: Vec<SecretKey>,
    /// The one that it started with, which natpunch-go's clients know.
    first_key: Option<SecretKey>,
    outcome: Arc<Mutex<Reloads>>,
    spare: files::Spare,
}

impl Reloader {
    pub(in crate::server) fn new(args: ServeArgs, current: Settings, keys: Vec<SecretKey>) -> Self {
        Self {
            args,
            current,
            first_key: keys.first().cloned(),
            keys,
            outcome: Arc::default(),
            spare: files::Spare::new(),
        }
    }

    /// What happened so far.
    pub(in crate::server) fn outcome(&self) -> Outcome {
        Outcome(self.outcome.clone())
    }

    /// Reads them again at each change and each `hangup`, for ever.
    pub(in crate::server) async fn run(mut self, shared: Arc<Shared>, mut hangup: Signal) {
        let mut watcher = Watcher::of_keys();
        watcher.watch_keys(&self.files());
        let mut has_looked = false;
        loop {
            tokio::select! {
                () = watcher.changed() => {}
                received = hangup.recv() => if received.is_none() { return },
            }
            // Clients that are no longer admitted end also when there are no open files left.
            self.spare.let_go();
            let result = self.reload(&shared);
            self.spare.keep();
            let mut outcome = lock(&self.outcome);
            match result {
                // A watcher tells once of what it found first.
                Ok(taken) if !has_looked && taken.is_nothing => outcome.problem = None,
                Ok(Taken {
                    ended,
                    needs_restart,
                    ..
                }) => {
                    tracing::info!(sessions_ended = ended, "took the settings as they are now");
                    if !needs_restart.is_empty() {
                        tracing::warn!(
                            "not changed without a restart: {}",
                            needs_restart.join(", ")
                        );
                    }
                    outcome.taken += 1;
                    (outcome.problem, outcome.needs_restart) = (None, needs_restart);
                }
                Err(error) => {
                    let problem = error.in_full();
                    tracing::error!(
                        "the settings have an error, so those from before stay: {problem}"
                    );
                    outcome.refused += 1;
                    outcome.problem = Some(problem);
                }
            }
            drop(outcome);
            has_looked = true;
            watcher.watch_keys(&self.files());
        }
    }

    /// The files whose content matters.
    fn files(&self) -> Vec<PathBuf> {
        let rendezvous = self.current.rendezvous.iter();
        let named = rendezvous.flat_map(|rendezvous| {
            rendezvous
                .next_key_file
                .iter()
                .chain(&rendezvous.secret_files)
        });
        self.args
            .config
            .iter()
            .chain([&self.current.key_file])
            .chain(named)
            .filter_map(|path| secret::actual(path).ok())
            .collect()
    }

    /// Takes what is new.
    fn reload(&mut self, shared: &Shared) -> Result<Taken, ServeError> {
        let new = Settings::from_args(&self.args)?;
        let key = read_key_file(&new.key_file)?;
        let in_use = self
            .current
            .rendezvous
            .as_ref()
            .and_then(|rendezvous| rendezvous.next_key_file.as_deref());
        let (next, secrets) = match &new.rendezvous {
            Some(rendezvous) => (
                next_key(rendezvous, in_use)?,
                admission_secrets(rendezvous)?,
            ),
            None => (None, Vec::new()),
        };
        let mut needs_restart = self.current.differences_for_restart(&new);
        if self.first_key.as_ref() != Some(&key)
            && self.current.compat.contains(&Compat::NatpunchGo)
        {
            needs_restart.push("key_file, for clients of natpunch-go".to_owned());
        }
        let keys: Vec<SecretKey> = std::iter::once(key).chain(next).collect();
        let ended = shared
            .protocols
            .reconfigure(&new, &keys, secrets, shared.start.now())?;
        for (number, key) in keys
            .iter()
            .enumerate()
            .filter(|(number, key)| self.keys.get(*number) != Some(*key))
        {
            let which = if number == 0 {
                "the key is another one now"
            } else {
                "the next key"
            };
            tracing::info!(public_key = %key.public_key(), "{which}");
        }
        let is_nothing = ended == 0 && new == self.current && keys == self.keys;
        // What needs a restart is compared with what runs, also the next time.
        (self.keys, self.current.key_file) = (keys, new.key_file);
        self.current.allowed_keys = new.allowed_keys;
        self.current.limits = new.limits;
        if let (Some(current), Some(new)) = (&mut self.current.rendezvous, new.rendezvous) {
            *current = new;
        }
        Ok(Taken {
            ended,
            needs_restart,
            is_nothing,
        })
    }
}

/// What a reload did.
struct Taken {
    /// Sessions that ended with it.
    ended: usize,
    needs_restart: Vec<String>,
    /// It found nothing new.
    is_nothing: bool,
}

/// What came of reloads, for the status.
#[derive(Clone)]
pub(in crate::server) struct Outcome(Arc<Mutex<Reloads>>);

impl Outcome {
    pub(in crate::server) fn get(&self) -> Reloads {
        lock(&self.0).clone()
    }
}
