//! Where a mesh comes from, as written on the command line.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use natpunch_types::Help as _;
use url::{Host, Url};

use super::error::SourceError;

/// Where a mesh comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A file or directory of this machine, which is watched.
    Local(PathBuf),
    /// A path on a branch of a git repository, which is polled.
    Git(GitLocation),
    /// A file of a web server, which is polled.
    Web(Url),
}

/// A path on a branch of a git repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitLocation {
    /// The repository, with a scheme that git knows: `https`, `http`, `ssh` or `file`.
    pub(super) url: Url,
    pub(super) branch: String,
    /// Relative, of plain components; empty for the root of the repository.
    pub(super) path: String,
}

const FORMS: &str = "write a file, a directory, git+https://HOST/REPO.git#BRANCH:PATH (also git+ssh, git+file) or \
                     https://HOST/mesh.toml";

impl Location {
    /// Reads what stands on the command line. What is no `git+…` or `http…` URL is a local path,
    /// also one that holds `#` or `:`.
    ///
    /// # Errors
    /// It is meant as a URL, but can't be used as one.
    pub fn parse(text: &OsStr) -> Result<Self, SourceError> {
        let Some(url) = text.to_str().filter(|text| is_url(text)) else {
            return Ok(Self::Local(text.into()));
        };
        match url.strip_prefix("git+") {
            Some(url) => GitLocation::parse(url).map(Self::Git),
            None => {
                let url = parse_url(url)?;
                match url.fragment() {
                    None => Ok(Self::Web(url)),
                    Some(_) => Err(SourceError::usage(format!("{url} has a #fragment"))
                        .help("for a git repository begin with git+: git+https://HOST/REPO.git#BRANCH:PATH")),
                }
            }
        }
    }

    /// Whether it is on this machine and watched, not polled.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Local(_))
    }

    /// A name for it in files and sockets: 16 hexadecimal digits.
    pub(crate) fn id(&self) -> String {
        let mut id = super::hex(&super::blake2(self.to_string().as_bytes()));
        id.truncate(16);
        id
    }

    /// Whether anybody on the way could read and change what is fetched.
    pub(super) fn is_plain_http(&self) -> bool {
        let url = match self {
            Self::Local(_) => return false,
            Self::Git(git) => &git.url,
            Self::Web(url) => url,
        };
        url.scheme() == "http" && !is_loopback(url)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => path.display().fmt(f),
            Self::Git(GitLocation { url, branch, path }) => write!(f, "git+{url}#{branch}:{path}"),
            Self::Web(url) => url.fmt(f),
        }
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Self::Local(path.to_owned())
    }
}

impl GitLocation {
    fn parse(text: &str) -> Result<Self, SourceError> {
        let (repository, place) = text.split_once('#').unwrap_or((text, ""));
        let (branch, path) = place.split_once(':').unwrap_or((place, ""));
        let url = parse_url(repository)?;
        if branch.is_empty() {
            return Err(
                SourceError::usage(format!("git+{url} names no branch")).help(format!(
                    "say which branch, and which path on it: git+{url}#main:mesh.toml"
                )),
            );
        }
        if !is_branch(branch) {
            return Err(SourceError::usage(format!(
                "`{}` is not the name of a branch",
                branch.escape_default()
            ))
            .help("letters, digits and . _ - / + @ make a name, such as main or site/berlin"));
        }
        let plain = Path::new(path)
            .components()
            .filter(|component| *component != Component::CurDir)
            .map(|component| match component {
                Component::Normal(name) => name
                    .to_str()
                    .filter(|name| !name.contains(char::is_control)),
                _ => None,
            })
            .collect::<Option<Vec<&str>>>();
        let Some(plain) = plain else {
            return Err(SourceError::usage(format!(
                "`{}` leads out of the repository",
                path.escape_default()
            ))
            .help(
                "write the path from the root of the repository, such as mesh.toml or sites/home",
            ));
        };
        Ok(Self {
            url,
            branch: branch.to_owned(),
            path: plain.join("/"),
        })
    }
}

fn is_url(text: &str) -> bool {
    text.starts_with("git+") || text.starts_with("https://") || text.starts_with("http://")
}

fn parse_url(text: &str) -> Result<Url, SourceError> {
    let url = Url::parse(text).map_err(|error| {
        SourceError::usage(format!("`{}` is not a URL: {error}", text.escape_default())).help(FORMS)
    })?;
    let host_fits = match url.scheme() {
        "https" | "http" | "ssh" => url
            .host_str()
            .is_some_and(|host| !host.is_empty() && !host.starts_with('-')),
        "file" => url.host().is_none(),
        scheme => {
            return Err(
                SourceError::usage(format!("natpunch does not fetch over `{scheme}`")).help(FORMS),
            );
        }
    };
    if !host_fits {
        return Err(SourceError::usage(format!(
            "{} does not say where it is",
            text.escape_default()
        ))
        .help(FORMS));
    }
    if url.password().is_some() {
        let host = url.host_str().unwrap_or_default();
        return Err(SourceError::usage(format!("the URL of {host} holds a password, which every user of this machine could read")).help(
            "leave it out; for a repository put it into ~/.netrc of the agent's user (mode 0600), or use git+ssh with a deploy key",
        ));
    }
    if url.username().starts_with('-') {
        return Err(SourceError::usage("the user name of the URL begins with `-`").help(FORMS));
    }
    Ok(url)
}

fn is_branch(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-/+@".contains(c);
    name.len() <= 200
        && name.chars().all(fits)
        && !name.contains("..")
        && name.split('/').all(|part| {
            !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with(".lock")
        })
        && !name.ends_with('.')
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => IpAddr::V4(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::V6(ip).is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// For the command line's parser.
pub(crate) fn parse_argument(text: OsString) -> Result<Location, String> {
    Location::parse(&text).map_err(|error| error.in_full())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Location, SourceError> {
        Location::parse(OsStr::new(text))
    }

    #[test]
    fn a_source_is_what_is_written() {
        for same in [
            "mesh.toml",
            "/etc/natpunch/mesh.d",
            "./git+odd",
            "C#:d",
            "git+https://git.example/mesh.git#main:sites/home",
            "git+ssh://git@git.example:2222/mesh.git#main:mesh.toml",
            "git+file:///srv/mesh.git#site/berlin:",
            "https://config.example/mesh.toml",
        ] {
            assert_eq!(parse(same).unwrap().to_string(), same);
        }
        assert!(parse("mesh.toml").unwrap().is_local());
        let root = parse("git+file:///srv/mesh.git#main").unwrap();
        assert_eq!(root, parse("git+file:///srv/mesh.git#main:./").unwrap());
    }

    #[test]
    fn what_git_or_a_terminal_could_take_for_something_else_is_refused() {
        for (bad, why) in [
            ("git+https://git.example/mesh.git", "names no branch"),
            (
                "git+https://git.example/mesh.git#--upload-pack=x:a",
                "not the name of a branch",
            ),
            (
                "git+https://git.example/mesh.git#a..b:a",
                "not the name of a branch",
            ),
            ("git+https://git.example/mesh.git#main:../etc", "leads out"),
            ("git+https://git.example/mesh.git#main:/etc", "leads out"),
            ("git+ext::sh -c id#main:a", "does not fetch over `ext`"),
            ("git+ssh://-oProxyCommand=id/x#main:a", "does not say where"),
            ("git+ssh://-oProxyCommand@host/x#main:a", "begins with `-`"),
            ("git+file://host/x#main:a", "does not say where"),
            ("git+git://host/x#main:a", "does not fetch over `git`"),
            ("https://user:hunter2@host/mesh.toml", "holds a password"),
            ("https://host/mesh.git#main:a", "#fragment"),
        ] {
            let error = parse(bad).expect_err(bad);
            assert!(error.to_string().contains(why), "{bad}: {error}");
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn plain_http_is_told_from_loopback_and_https() {
        let plain = |text| parse(text).unwrap().is_plain_http();
        assert!(
            plain("http://192.0.2.1/mesh.toml") && plain("git+http://git.example/x.git#main:a")
        );
        assert!(!plain("http://127.0.0.1:8080/mesh.toml") && !plain("http://[::1]/mesh.toml"));
        assert!(!plain("https://192.0.2.1/mesh.toml") && !plain("git+file:///x#main:a"));
    }
}
