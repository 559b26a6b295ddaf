//! Where the mesh comes from: a path of this machine, a git repository or a web server.
//!
//! A [`Source`] gives the agent a local path to load, and tells when there is another version to
//! load from it. What comes over the network is fetched (`git`, `web`), judged by what this machine
//! trusts (`trust`), and kept with the version that was applied last (`store`), which is what the
//! node starts with when it finds nothing newer. Nothing here decides whether a version is a good
//! mesh: that is for the configuration and the agent.

mod batch;
mod error;
mod follow;
mod freshness;
mod git;
mod location;
mod program;
mod revision;
mod signature;
mod store;
mod trust;
mod watch;
mod web;

use std::path::{Path, PathBuf};

use blake2::{Blake2s256, Digest as _};
use tempfile::TempDir;

pub use error::{Problem, SourceError};
pub use follow::{Change, Options, Source, SourceStatus};
pub use location::{GitLocation, Location};
pub use revision::at_revision;
pub use watch::Watcher;

pub(crate) use location::parse_argument;
pub(crate) use program::find as installed;
pub(crate) use trust::DEFAULT_FILE as DEFAULT_TRUST_FILE;

use git::Git;
use store::{Store, Version};
use trust::{Memory, Trust};

/// Most bytes of a file: what the configuration reads.
const MOST_FILE_BYTES: u64 = 8 << 20;
/// Most bytes of all files of a version.
const MOST_BYTES: u64 = 64 << 20;
/// Most files of a version.
const MOST_FILES: usize = 4096;

/// A mesh file in memory.
#[derive(Debug)]
struct File {
    /// Without directories.
    name: String,
    content: Vec<u8>,
}

/// A version as it was fetched.
#[derive(Debug)]
struct Fetched {
    /// The commit, or the hash of the file.
    revision: String,
    files: Vec<File>,
    /// Whether the source names a file, not a directory.
    single: bool,
    etag: Option<String>,
    /// When it was signed, by what the signature covers, in seconds since 1970.
    signed_at: Option<u64>,
}

/// What is known of a source before it is asked.
#[derive(Debug, Default)]
struct Known<'a> {
    /// The version that was applied last, and from which on commits must be signed.
    applied: Option<&'a str>,
    /// The newest version that was seen: no need to fetch it again.
    newest: Option<&'a str>,
    /// The commit that was refused last.
    refused: Option<&'a str>,
    etag: Option<&'a str>,
}

/// What a source has.
#[derive(Debug)]
enum Found {
    Unchanged,
    RefusedBefore,
    New(Fetched),
}

/// Why a source gave nothing, and at which commit it was, if that is known.
#[derive(Debug)]
struct Failed {
    error: SourceError,
    tip: Option<String>,
}

impl From<SourceError> for Failed {
    fn from(error: SourceError) -> Self {
        Self { error, tip: None }
    }
}

/// Fetches what a source has now, if that is not what is known. `workspace` is an empty directory.
///
/// # Errors
/// It can't be had, or may not be used.
async fn fetch(
    location: &Location,
    trust: &Trust,
    known: &Known<'_>,
    workspace: &Path,
) -> Result<Found, Failed> {
    if location.is_plain_http() && !trust.plain_http {
        let message = format!(
            "{location} would be fetched in plain HTTP, which anybody on the way can change"
        );
        return Err(SourceError::usage(message)
            .help("use https; where that can't be, write plain_http = true under [trust] in the trust file")
            .into());
    }
    match location {
        Location::Local(path) => {
            Err(SourceError::usage(format!("{} is on this machine", path.display())).into())
        }
        Location::Web(url) => Ok(web::fetch(url, trust, known.etag)
            .await?
            .map_or(Found::Unchanged, Found::New)),
        Location::Git(place) => {
            let git = Git::new(place, workspace)?;
            let tip = git.tip().await?;
            if known.newest == Some(tip.as_str()) {
                return Ok(Found::Unchanged);
            }
            if known.refused == Some(tip.as_str()) {
                return Ok(Found::RefusedBefore);
            }
            let got = async {
                let (revision, statement) = git.fetch(trust, known.applied).await?;
                let (files, single) = git.files(&revision).await?;
                Ok(Found::New(Fetched {
                    revision,
                    files,
                    single,
                    etag: None,
                    signed_at: statement.and_then(|statement| statement.committed),
                }))
            };
            got.await.map_err(|error| Failed {
                error,
                tip: Some(tip),
            })
        }
    }
}

/// Whether the mesh at `path` may follow the version that was applied last: its generation never
/// goes back. Gives the generation. A mesh that is not valid may: the agent says what is wrong with
/// it, and does not apply it.
///
/// # Errors
/// It may not.
fn check_generation(
    path: &Path,
    applied: Option<&Version>,
    must_have: bool,
) -> Result<Option<u64>, SourceError> {
    let Ok(mesh) = crate::config::load(path) else {
        return Ok(None);
    };
    let help = "raise `generation` under [mesh] with every change";
    match (mesh.generation, applied.and_then(|applied| applied.generation)) {
        (Some(new), Some(old)) if new <= old => Err(SourceError::refused(format!(
            "its generation is {new}, and {old} is applied: an older version, or one whose generation was not raised"
        ))
        .help(help)),
        (None, Some(old)) => {
            Err(SourceError::refused(format!("it has no generation, and {old} is applied")).help(help))
        }
        (None, None) if must_have => Err(SourceError::refused(
            "it has no `generation`: without one, an older signed file could be put in its place unnoticed",
        )
        .help(help)),
        (generation, _) => Ok(generation),
    }
}

/// A version that was fetched once, for a command that only looks.
#[derive(Debug)]
pub struct Look {
    path: PathBuf,
    _directory: Option<TempDir>,
}

impl Look {
    /// Gets what is at a location now, by the rules that an agent of this machine would go by: for
    /// a local path that is the path itself, anything else is fetched into a temporary directory.
    ///
    /// # Errors
    /// It can't be had, or may not be used.
    pub fn at(
        location: &Location,
        trust: Option<&Path>,
        state_dir: &Path,
    ) -> Result<Self, SourceError> {
        if let Location::Local(path) = location {
            return Ok(Self {
                path: path.clone(),
                _directory: None,
            });
        }
        let failed =
            |error: std::io::Error| SourceError::local(format!("can't fetch {location}: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let directory = tempfile::Builder::new()
            .prefix("natpunch-")
            .tempdir()
            .map_err(failed)?;
        let trust = Trust::load(trust, &Memory::of(state_dir))?;
        let applied = Store::peek(state_dir, location);
        let known = Known {
            applied: applied.as_ref().map(|applied| applied.revision.as_str()),
            ..Known::default()
        };
        let workspace = directory.path().join("work");
        std::fs::create_dir(&workspace).map_err(failed)?;
        let found = runtime
            .block_on(fetch(location, &trust, &known, &workspace))
            .map_err(|failed| failed.error.at(location))?;
        let Found::New(Fetched {
            revision,
            files,
            single,
            signed_at,
            ..
        }) = found
        else {
            return Err(SourceError::unreachable(format!(
                "{location} gives nothing"
            )));
        };
        if applied.is_none() {
            freshness::check_first(trust.max_age, signed_at, freshness::unix_time())
                .map_err(|error| error.at(location))?;
        }
        let mut path = directory.path().join(git::short(&revision));
        std::fs::create_dir(&path).map_err(failed)?;
        for file in &files {
            std::fs::write(path.join(&file.name), &file.content).map_err(failed)?;
        }
        if let Some(file) = files.first().filter(|_| single) {
            path.push(&file.name);
        }
        if applied
            .as_ref()
            .is_none_or(|applied| applied.revision != revision)
        {
            check_generation(
                &path,
                applied.as_ref(),
                must_have_generation(location, &trust),
            )
            .map_err(|error| error.at(location))?;
        }
        Ok(Self {
            path,
            _directory: Some(directory),
        })
    }

    /// The mesh file or directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A signature over a file says nothing of its age; one over a commit does.
fn must_have_generation(location: &Location, trust: &Trust) -> bool {
    matches!(location, Location::Web(_)) && trust.demands_signatures()
}

fn blake2(bytes: &[u8]) -> [u8; 32] {
    Blake2s256::digest(bytes).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
