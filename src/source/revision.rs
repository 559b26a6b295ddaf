//! What a file or directory of the repository in the working directory was at a revision, for
//! commands that compare: read by git itself, without a shell, without a network, and within bounds.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::batch;
use super::program::{self, Failure, Program};
use super::{MOST_BYTES, MOST_FILE_BYTES, MOST_FILES, SourceError};

/// The time for all of it.
const DEADLINE: Duration = Duration::from_secs(20);

/// Reads `REV:PATH` of the repository around the working directory: the file at the path, or the
/// `*.toml` files right in the directory. Names are the path's, or those in the directory.
///
/// # Errors
/// There is no git, no repository, no such revision or path, or it is too large.
pub fn at_revision(revision: &str, path: &str) -> Result<Vec<(PathBuf, String)>, SourceError> {
    let failed = |error: std::io::Error| SourceError::local(format!("can't run git: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let workspace = tempfile::Builder::new()
        .prefix("natpunch-")
        .tempdir()
        .map_err(failed)?;
    let here = std::env::current_dir().map_err(failed)?;
    let git = program::find("git").ok_or_else(|| {
        SourceError::local("the program `git` is not installed")
            .help("install it, or compare files: `git show REVISION:PATH > old.toml`")
    })?;
    let program = Program {
        path: &git,
        // A partial clone would fetch what it lacks.
        environment: &[
            ("GIT_NO_LAZY_FETCH", OsStr::new("1")),
            ("GIT_OPTIONAL_LOCKS", OsStr::new("0")),
            ("GIT_TERMINAL_PROMPT", OsStr::new("0")),
        ],
        directory: workspace.path(),
        deadline: Instant::now() + DEADLINE,
    };
    let repository = Repository {
        program,
        here: here.as_os_str(),
        place: format!("{revision}:{path}"),
    };
    runtime.block_on(repository.read(revision, path))
}

struct Repository<'a> {
    program: Program<'a>,
    here: &'a OsStr,
    /// As it was typed, for errors.
    place: String,
}

impl Repository<'_> {
    async fn run(&self, arguments: &[&str], input: &[u8], most: u64) -> Result<Vec<u8>, Failure> {
        let mut all = vec![OsStr::new("-C"), self.here];
        all.extend(arguments.iter().map(OsStr::new));
        self.program.run(&all, input, most).await
    }

    async fn git(
        &self,
        arguments: &[&str],
        input: &[u8],
        most: u64,
    ) -> Result<Vec<u8>, SourceError> {
        let outcome = self.run(arguments, input, most).await;
        outcome.map_err(|failure| self.error(failure))
    }

    fn error(&self, failure: Failure) -> SourceError {
        let place = &self.place;
        match failure {
            Failure::NotStarted(error) => SourceError::local(error),
            Failure::Failed(said) => SourceError::usage(format!("git has no {place}: {said}"))
                .help("write REVISION:PATH in a clone of the repository, such as origin/main:mesh.toml"),
            Failure::TooSlow => SourceError::local(format!("git did not give {place} in time")),
            Failure::TooMuch => SourceError::refused(format!("{place} is larger than a mesh may be")),
        }
    }

    async fn read(
        &self,
        revision: &str,
        path: &str,
    ) -> Result<Vec<(PathBuf, String)>, SourceError> {
        let commit = self.commit(revision).await?;
        // With `./` a path counts from the working directory, as people type it.
        let object = format!("{commit}:./{}", path.trim_start_matches("./"));
        let kind = self.git(&["cat-file", "-t", &object], b"", 64).await?;
        if kind.trim_ascii() == b"tree" {
            return self.directory(&object).await;
        }
        let content = self
            .git(&["cat-file", "blob", &object], b"", MOST_FILE_BYTES)
            .await?;
        Ok(vec![(self.place.clone().into(), self.text(content)?)])
    }

    async fn commit(&self, revision: &str) -> Result<String, SourceError> {
        let commit = format!("{revision}^{{commit}}");
        let words = [
            "rev-parse",
            "--verify",
            "--quiet",
            "--end-of-options",
            &commit,
        ];
        match self.run(&words, b"", 256).await {
            Ok(commit) => Ok(String::from_utf8_lossy(&commit).trim().to_owned()),
            // It says nothing of a revision that is not there, since it was asked to be quiet.
            Err(Failure::Failed(said)) if said.is_empty() => Err(SourceError::usage(format!(
                "git knows no revision {revision}"
            ))
            .help("fetch it first; in a CI job, fetch the whole history (fetch-depth: 0)")),
            Err(failure) => Err(self.error(failure)),
        }
    }

    /// The files right in a directory.
    async fn directory(&self, tree: &str) -> Result<Vec<(PathBuf, String)>, SourceError> {
        // Without --full-tree git lists what of the tree lies below the working directory.
        let words = ["ls-tree", "-z", "--full-tree", tree];
        let listed = self.git(&words, b"", MOST_BYTES).await?;
        let entries = listed.split(|byte| *byte == 0);
        let files: Vec<_> = entries.filter_map(toml_file).collect();
        if files.is_empty() {
            let place = &self.place;
            return Err(SourceError::usage(format!("{place} has no *.toml file")));
        }
        if files.len() > MOST_FILES {
            let place = &self.place;
            return Err(SourceError::refused(format!("{place} has too many files")));
        }
        let hashes: Vec<&str> = files.iter().map(|(hash, _)| *hash).collect();
        let contents = self
            .git(
                &["cat-file", "--batch"],
                batch::request(&hashes).as_bytes(),
                MOST_BYTES,
            )
            .await?;
        let contents = batch::contents(&contents);
        if contents.len() != files.len() {
            return Err(self.error(Failure::Failed("objects of it are missing".to_owned())));
        }
        let named = files.iter().zip(contents);
        named
            .map(|((_, name), content)| {
                Ok((
                    PathBuf::from(format!("{}/{name}", self.place)),
                    self.text(content.to_vec())?,
                ))
            })
            .collect()
    }

    fn text(&self, content: Vec<u8>) -> Result<String, SourceError> {
        String::from_utf8(content)
            .map_err(|_| SourceError::refused(format!("{} is not UTF-8", self.place)))
    }
}

/// Hash and name in a line of `ls-tree`, `MODE TYPE HASH\tNAME`, of a file that is part of a mesh.
fn toml_file(line: &[u8]) -> Option<(&str, &str)> {
    let (about, name) = std::str::from_utf8(line).ok()?.split_once('\t')?;
    let mut about = about.split(' ');
    let (_, kind, hash) = (about.next()?, about.next()?, about.next()?);
    let is_ours = kind == "blob" && name.ends_with(".toml") && !name.starts_with('.');
    is_ours.then_some((hash, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_directory_the_toml_files_count() {
        assert_eq!(
            toml_file(b"100644 blob abc\ta.toml"),
            Some(("abc", "a.toml"))
        );
        for other in [
            &b"040000 tree abc\ta.toml"[..],
            b"100644 blob abc\tREADME.md",
            b"100644 blob abc\t.a.toml",
            b"",
        ] {
            assert_eq!(toml_file(other), None);
        }
    }
}
