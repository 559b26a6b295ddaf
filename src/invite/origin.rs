//! Where the nodes fetch a mesh from that is in the working tree of a git repository.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::source::{Location, installed};

/// The source of the mesh at `path`: the branch that is checked out there, at the remote `origin`.
/// `None` if that is not known, or is nothing that another machine could fetch from.
pub fn origin_of(path: &Path) -> Option<Location> {
    let path = path.canonicalize().ok()?;
    let directory = if path.is_dir() {
        &*path
    } else {
        path.parent()?
    };
    let git = |arguments: &[&str]| git(directory, arguments);
    let top = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?);
    let branch = git(&["symbolic-ref", "--short", "HEAD"])?;
    let remote = git(&["remote", "get-url", "origin"])?;
    let inside = path.strip_prefix(top).ok()?.to_str()?;
    let url = fetched_by_others(&remote)?;
    Location::parse(OsStr::new(&format!("git+{url}#{branch}:{inside}"))).ok()
}

/// A remote as a URL that means the same on another machine.
fn fetched_by_others(remote: &str) -> Option<String> {
    let is_url = ["https://", "http://", "ssh://"]
        .iter()
        .any(|scheme| remote.starts_with(scheme));
    if is_url {
        return Some(remote.to_owned());
    }
    // The short form of git, USER@HOST:PATH; forges take both forms of it.
    let (host, path) = remote.split_once(':')?;
    let is_short = host.contains('@') && !host.contains('/') && !path.is_empty();
    is_short.then(|| format!("ssh://{host}/{}", path.trim_start_matches('/')))
}

/// What git says, in one line.
fn git(directory: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(installed("git")?)
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.trim();
    (output.status.success() && !line.is_empty() && !line.contains('\n')).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_is_a_source_if_another_machine_can_fetch_from_it() {
        let url = |remote| fetched_by_others(remote);
        for same in [
            "https://git.example/mesh.git",
            "ssh://git@git.example:22/mesh.git",
        ] {
            assert_eq!(url(same).as_deref(), Some(same));
        }
        assert_eq!(
            url("git@git.example:ops/mesh.git").as_deref(),
            Some("ssh://git@git.example/ops/mesh.git")
        );
        for own in [
            "/srv/mesh.git",
            "../mesh.git",
            "file:///srv/mesh.git",
            "C:mesh",
        ] {
            assert_eq!(url(own), None, "{own}");
        }
    }
}
