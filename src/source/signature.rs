//! SSH signatures of commits, checked by `ssh-keygen` against the listed signers only.
//!
//! Not by `git verify-commit`: its verdict depends on settings, and it also knows signatures of
//! kinds that nobody listed.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use tokio::time::Instant;

use super::error::SourceError;
use super::program::{self, Failure, Program};
use super::trust::Trust;

/// Whom every listed key stands for: all may sign, so there is no need to tell them apart.
const PRINCIPAL: &str = "natpunch";

/// A commit without its signature, and the signature.
#[derive(Debug, PartialEq, Eq)]
struct Signed {
    payload: Vec<u8>,
    signature: Vec<u8>,
}

/// Checks that a listed signer signed exactly this commit.
///
/// # Errors
/// Nobody who may did; or ssh-keygen can't be run. The text goes on after "commit NAME".
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
