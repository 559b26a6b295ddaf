//! SSH signatures of commits, checked by `ssh-keygen` against the listed signers only.
//!
//! Not by `git verify-commit`: its verdict depends on settings, and it also accepts kinds of
//! signatures that are not listed.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use tokio::time::Instant;

use super::error::SourceError;
use super::program::{self, Failure, Program};
use super::trust::Trust;

/// The one principal of all listed keys: each of them may sign, so they need no names.
const PRINCIPAL: &str = "natpunch";

/// The trailer of a commit's message that says for which branch the commit is. It is signed with
/// the commit, and so a server can't show a commit of another branch as the newest one of this.
const BRANCH: &str = "Natpunch-Branch";

/// What a signed commit says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    /// The branches that its trailers name.
    branches: Vec<String>,
    /// When it was committed, in seconds since 1970.
    pub(super) committed: Option<u64>,
}

impl Statement {
    /// Reads a commit object, whose signature was checked.
    pub(super) fn of(commit: &[u8]) -> Self {
        let text = String::from_utf8_lossy(commit);
        let (header, message) = text.split_once("\n\n").unwrap_or((&text, ""));
        let committer = header
            .lines()
            .find_map(|line| line.strip_prefix("committer "));
        // NAME <MAIL> SECONDS ZONE
        let committed = committer.and_then(|line| line.rsplit(' ').nth(1)?.parse().ok());
        let last = message.trim_end().rsplit("\n\n").next();
        let branches = last
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.split_once(':'))
            .filter(|(key, _)| key.eq_ignore_ascii_case(BRANCH))
            .map(|(_, branch)| branch.trim().to_owned())
            .collect();
        Self {
            branches,
            committed,
        }
    }

    /// Checks that the commit is meant for this branch: a trailer that names another is never
    /// accepted, and with `must_name` there has to be one.
    ///
    /// # Errors
    /// It is not. The text goes on after "commit NAME".
    pub(super) fn check_branch(&self, branch: &str, must_name: bool) -> Result<(), SourceError> {
        let help = format!("commit with `git commit --trailer '{BRANCH}: {branch}'`");
        match self.branches.as_slice() {
            [] if must_name => Err(SourceError::refused(format!(
                "does not say that it is for the branch {branch}, which the trust file demands (bind_branch)"
            ))
            .help(help)),
            [] => Ok(()),
            named if named.iter().any(|named| named == branch) => Ok(()),
            named => Err(SourceError::refused(format!(
                "is for the branch {}, and {branch} is followed: the server shows one branch as another, or \
                 somebody merged without a commit of {branch}'s own",
                named.join(", ")
            ))
            .help(help)),
        }
    }
}

/// A commit without its signature, and the signature.
#[derive(Debug, PartialEq, Eq)]
struct Signed {
    payload: Vec<u8>,
    signature: Vec<u8>,
}

/// Checks that a listed signer signed exactly this commit.
///
/// # Errors
/// No listed signer signed it, or ssh-keygen can't be run. The text goes on after "commit NAME".
pub(super) async fn check_commit(
    trust: &Trust,
    commit: &[u8],
    workspace: &Path,
    deadline: Instant,
) -> Result<(), SourceError> {
    let help = "sign commits with a key of [trust] signers: git config gpg.format ssh, user.signingKey, commit.gpgSign";
    let signed = split(commit).map_err(|problem| SourceError::refused(problem).help(help))?;
    let path = program::find("ssh-keygen").ok_or_else(|| {
        SourceError::local("the program `ssh-keygen` is not installed, which checks signatures")
            .help("install the package openssh-client")
    })?;
    let failed =
        |error| SourceError::local(format!("can't write to {}: {error}", workspace.display()));
    let (signers, signature) = (workspace.join("signers"), workspace.join("signature"));
    fs::write(&signers, trust.allowed_signers(PRINCIPAL)?).map_err(failed)?;
    fs::write(&signature, &signed.signature).map_err(failed)?;
    let arguments = [
        "-Y",
        "verify",
        "-f",
        "signers",
        "-I",
        PRINCIPAL,
        "-n",
        "git",
        "-s",
        "signature",
    ]
    .map(OsStr::new);
    let program = Program {
        path: &path,
        environment: &[],
        directory: workspace,
        deadline,
    };
    match program.run(&arguments, &signed.payload, 1 << 16).await {
        Ok(_) => Ok(()),
        Err(Failure::Failed(said)) => Err(SourceError::refused(format!(
            "is not signed by a listed signer: {said}"
        ))
        .help(help)),
        Err(Failure::NotStarted(problem)) => Err(SourceError::local(problem)),
        Err(Failure::TooSlow | Failure::TooMuch) => Err(SourceError::unreachable(
            "could not be checked in time: too many commits at once",
        )),
    }
}

/// Takes the signature out of a commit, as git did before it signed.
fn split(commit: &[u8]) -> Result<Signed, String> {
    let end = commit
        .windows(2)
        .position(|pair| pair == b"\n\n")
        .ok_or("has no end of its header")?;
    let (header, message) = commit.split_at(end + 1);
    let mut payload = Vec::with_capacity(commit.len());
    let mut signature: Option<Vec<u8>> = None;
    // What a line belongs to that goes on the line before: it begins with a space.
    let mut in_signature = None;
    for line in header.split_inclusive(|byte| *byte == b'\n') {
        let continued = line.strip_prefix(b" ");
        if continued.is_none() {
            in_signature = if line.starts_with(b"gpgsig ") {
                if signature.is_some() {
                    return Err("has two signatures".to_owned());
                }
                signature = Some(Vec::new());
                Some(true)
            } else if line.starts_with(b"gpgsig-sha256 ") {
                Some(false)
            } else {
                None
            };
        }
        match (in_signature, &mut signature) {
            (None, _) => payload.extend_from_slice(line),
            (Some(true), Some(signature)) => {
                signature
                    .extend_from_slice(continued.or(line.strip_prefix(b"gpgsig ")).unwrap_or(line));
            }
            _ => {}
        }
    }
    payload.extend_from_slice(message);
    let signature = signature.ok_or("is not signed")?;
    if !signature.starts_with(b"-----BEGIN SSH SIGNATURE-----") {
        return Err("is signed with something else than an SSH key".to_owned());
    }
    Ok(Signed { payload, signature })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_taken_out_of_the_header_only() {
        let commit = b"tree 1\nauthor a\ngpgsig -----BEGIN SSH SIGNATURE-----\n AAAA\n -----END SSH SIGNATURE-----\n\
                       mergetag object 2\n gpgsig fake\n x\n\ngpgsig in the message\n";
        let signed = split(commit).unwrap();
        assert_eq!(
            signed.signature,
            b"-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"
        );
        assert_eq!(
            signed.payload,
            b"tree 1\nauthor a\nmergetag object 2\n gpgsig fake\n x\n\ngpgsig in the message\n"
        );
    }

    #[test]
    fn a_commit_says_when_and_for_which_branch_it_was_made() {
        let commit = b"tree 1\nauthor A <a@x> 5 +0000\ncommitter A B <a@x> 1700000000 +0100\ngpgsig x\n y\n\n\
                       Add c\n\nNatpunch-Branch: elsewhere\nis a line of the text.\n\n\
                       Signed-off-by: A\nnatpunch-branch:  main\n";
        let statement = Statement::of(commit);
        assert_eq!(statement.committed, Some(1_700_000_000));
        assert_eq!(statement.branches, ["main"]);
        statement.check_branch("main", true).unwrap();
        for must_name in [true, false] {
            let error = statement.check_branch("draft", must_name).unwrap_err();
            assert!(error.to_string().contains("is for the branch main"));
        }
        let silent = Statement::of(b"tree 1\ncommitter A <a@x> soon +0000\n\ntext\n");
        assert_eq!(silent.committed, None);
        silent.check_branch("main", false).unwrap();
        assert!(silent.check_branch("main", true).is_err());
    }

    #[test]
    fn what_is_not_one_ssh_signature_is_refused() {
        let refused = |commit: &[u8]| split(commit).unwrap_err();
        assert_eq!(
            refused(b"tree 1\n\ngpgsig -----BEGIN SSH SIGNATURE-----\n"),
            "is not signed"
        );
        assert!(refused(b"gpgsig -----BEGIN PGP SIGNATURE-----\n\nx").contains("something else"));
        let twice =
            b"gpgsig -----BEGIN SSH SIGNATURE-----\ngpgsig -----BEGIN SSH SIGNATURE-----\n\nx";
        assert_eq!(refused(twice), "has two signatures");
        assert!(refused(b"tree 1").contains("no end"));
    }
}
