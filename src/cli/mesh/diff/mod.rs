//! `natpunch diff OLD NEW`: what a version of the mesh changes, for every node and every pair.

mod text;

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use natpunch_config::{MeshDiff, Step, diff, without_keys};
use serde::Serialize;

use crate::agent::rollout::{self, names};
use crate::cli::args::DiffArgs;
use crate::cli::{CliError, json};
use crate::config::{self, MeshConfig};
use crate::source;

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    /// Name of the mesh.
    mesh: String,
    /// What the old version is called.
    old: String,
    /// What the new version is called.
    new: String,
    /// Words that nodes ask for before they apply it.
    needs: Vec<Needs>,
    #[serde(flatten)]
    diff: MeshDiff,
}

/// A word without which nodes refuse the change.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Needs {
    /// The word.
    allow: String,
    /// What for.
    what: String,
    /// The nodes.
    nodes: Vec<String>,
}

/// Prints the comparison.
///
/// # Errors
/// One of the two can't be had, or is no valid mesh.
pub(in crate::cli) fn run(args: &DiffArgs) -> Result<ExitCode, CliError> {
    let report = Report::of(&load(&args.old)?, &load(&args.new)?);
    let text = match (args.json, args.markdown) {
        (true, _) => json::object(&report)?,
        (_, true) => text::markdown(&report),
        _ => text::plain(&report),
    };
    write!(anstream::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// Loads a file, a directory, or `REVISION:PATH` of the repository here. Which directory it was in
/// makes no difference: files that it names are taken for the same where their names are.
fn load(place: &OsStr) -> Result<MeshConfig, CliError> {
    let path = Path::new(place);
    let revision = place.to_str().and_then(|text| text.split_once(':'));
    let loaded = match revision {
        Some((revision, path_in_it)) if !path.exists() => {
            config::load_texts(source::at_revision(revision, path_in_it)?)?
        }
        _ => config::load(path)?,
    };
    let bare = |(path, text): (PathBuf, String)| {
        (
            path.file_name().map(PathBuf::from).unwrap_or_default(),
            text,
        )
    };
    let texts = loaded.texts().into_iter().map(bare).collect();
    Ok(config::load_texts(texts)?)
}

impl Report {
    fn of(old: &MeshConfig, new: &MeshConfig) -> Self {
        let name = |mesh: &MeshConfig| names::revision(mesh.generation, &mesh.mesh_hash());
        Self {
            mesh: new.name.clone(),
            old: name(old),
            new: name(new),
            needs: needs(old, new),
            diff: diff(old, new),
        }
    }
}

/// The words that nodes of both versions ask for. Those that depend on who is logged in where are
/// not known here.
fn needs(old: &MeshConfig, new: &MeshConfig) -> Vec<Needs> {
    let mut found: Vec<Needs> = Vec::new();
    for name in new.peers.keys() {
        let parts = [old, new].map(|mesh| without_keys(mesh, name));
        let [Some(before), Some(after)] = parts else {
            continue;
        };
        for refusal in rollout::refusals_without_logins(&before, &after) {
            let allow = refusal.consent.word();
            let same = |needs: &&mut Needs| needs.allow == allow && needs.what == refusal.what;
            match found.iter_mut().find(same) {
                Some(needs) => needs.nodes.push(name.clone()),
                None => found.push(Needs {
                    allow: allow.to_owned(),
                    what: refusal.what,
                    nodes: vec![name.clone()],
                }),
            }
        }
    }
    found
}

/// The step with its sign.
fn signed(step: &Step) -> String {
    format!("{} {}", step.turn.sign(), step.text)
}

#[cfg(test)]
mod tests;
