//! What joining writes on the new machine: planned first, then looked at, then written whole or
//! not at all.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use natpunch_os::{durable, reason};
use zeroize::Zeroizing;

use super::{Invite, Secret};
use crate::source::DEFAULT_TRUST_FILE;

/// Where systemd has units of the machine's own.
const UNITS: &str = "/etc/systemd/system";
/// Where packages put theirs.
const UNITS_OF_PACKAGES: [&str; 3] = [
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/usr/local/lib/systemd/system",
];
const UNIT: &str = include_str!("../../dist/systemd/natpunch.service");
/// The program that the unit runs.
const PROGRAM: &str = "/usr/bin/natpunch";

/// What a file is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// This.
    Text(String),
    /// This, which nobody else may read.
    Secret(Secret),
    /// A private key that is made here, or the one that is there.
    OwnKey,
}

/// A file that joining makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where it is.
    pub path: PathBuf,
    /// What it holds.
    pub content: Content,
    /// What it is, for people.
    pub what: String,
}

/// How a file that is to be made is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It is not there.
    Absent,
    /// It is there as it is wanted.
    Same,
    /// It is there, and holds something else.
    Other,
}

/// Everything that joining makes on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// In the order in which they are made.
    pub pieces: Vec<Piece>,
    /// The arguments of `natpunch` that run the agent.
    pub arguments: Vec<String>,
}

impl Installation {
    /// What this invite asks for. `key_file` is where the node's private key is, and whether the
    /// mesh file says so. With `unit` the agent is a service of systemd that runs this program.
    pub fn new(invite: &Invite, key_file: (&Path, bool), unit: Option<&Path>) -> Self {
        let (key_file, is_named) = key_file;
        let mut pieces = Vec::new();
        let mut add = |path: &Path, content, what: &str| {
            pieces.push(Piece {
                path: path.to_owned(),
                content,
                what: what.to_owned(),
            });
        };
        for (path, secret) in &invite.secrets {
            add(
                path,
                Content::Secret(secret.clone()),
                "a secret of the mesh",
            );
        }
        if let Some(trust) = &invite.trust {
            let text = Content::Text(trust.clone());
            add(
                Path::new(DEFAULT_TRUST_FILE),
                text,
                "whose changes it accepts",
            );
        }
        match &invite.key {
            Some(key) => add(key_file, Content::Secret(key.clone()), "its private key"),
            None => add(key_file, Content::OwnKey, "its private key, made here"),
        }
        let mut arguments = vec!["apply".to_owned(), invite.source.clone()];
        if !is_named {
            arguments.push("--private-key-file".to_owned());
            arguments.push(key_file.display().to_string());
        }
        if let Some(program) = unit {
            let units = Path::new(UNITS);
            let is_packaged = UNITS_OF_PACKAGES
                .iter()
                .any(|directory| Path::new(directory).join("natpunch.service").exists());
            if !is_packaged {
                let text = UNIT.replace(PROGRAM, &program.display().to_string());
                add(
                    &units.join("natpunch.service"),
                    Content::Text(text),
                    "the service",
                );
            }
            add(
                &units.join("natpunch.service.d/join.conf"),
                Content::Text(drop_in(program, &arguments)),
                "what the service runs",
            );
        }
        Self { pieces, arguments }
    }

    /// How each file is found.
    ///
    /// # Errors
    /// A file can't be looked at.
    pub fn look(&self) -> Result<Vec<(&Piece, Found)>, (PathBuf, io::Error)> {
        let found = self.pieces.iter().map(|piece| {
            let found = piece.found();
            found
                .map(|found| (piece, found))
                .map_err(|error| (piece.path.clone(), error))
        });
        found.collect()
    }

    /// Makes the files that are not there. If one can't be made, those that this made are taken
    /// away again.
    ///
    /// # Errors
    /// The file that can't be made, and why not.
    pub fn write(&self, own_key: &Secret) -> Result<(), (PathBuf, String)> {
        let mut made: Vec<&Path> = Vec::new();
        for piece in &self.pieces {
            match piece.make(own_key) {
                Ok(true) => made.push(&piece.path),
                Ok(false) => {}
                Err(error) => {
                    for path in made {
                        let _ = fs::remove_file(path);
                    }
                    return Err((piece.path.clone(), reason(&error)));
                }
            }
        }
        Ok(())
    }
}

impl Piece {
    fn found(&self) -> io::Result<Found> {
        let there = match fs::read(&self.path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Absent),
            Err(error) => return Err(error),
        };
        let wanted = match &self.content {
            Content::Text(text) => text.as_bytes(),
            Content::Secret(secret) => secret.0.as_bytes(),
            // Whose it is shows in the mesh.
            Content::OwnKey => return Ok(Found::Same),
        };
        let same = there.trim_ascii() == wanted.trim_ascii();
        Ok(if same { Found::Same } else { Found::Other })
    }

    /// False: it is there already.
    fn make(&self, own_key: &Secret) -> io::Result<bool> {
        if let Some(directory) = self.path.parent() {
            let is_new = !directory.exists();
            durable::create_dir_all(directory)?;
            // systemd's are everybody's to read.
            if is_new && directory.starts_with(UNITS) {
                fs::set_permissions(directory, Permissions::from_mode(0o755))?;
            }
        }
        let line = |secret: &Secret| Zeroizing::new(format!("{}\n", secret.0.trim()));
        let made = match &self.content {
            Content::Text(text) => durable::create(&self.path, text.as_bytes(), 0o644),
            Content::Secret(secret) => durable::create(&self.path, line(secret).as_bytes(), 0o600),
            Content::OwnKey => durable::create(&self.path, line(own_key).as_bytes(), 0o600),
        };
        match made {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match self.found()? {
                Found::Other => Err(error),
                Found::Absent | Found::Same => Ok(false),
            },
            Err(error) => Err(error),
        }
    }
}

/// The drop-in that names the command of the service.
fn drop_in(program: &Path, arguments: &[String]) -> String {
    let program = program.display().to_string();
    let words = std::iter::once(&program).chain(arguments);
    let command: Vec<String> = words.map(|word| quoted(word)).collect();
    format!(
        "# Made by `natpunch join`.\n[Service]\nExecStart=\nExecStart={}\n",
        command.join(" ")
    )
}

/// A word of a command of systemd (systemd.service(5), "Command lines").
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/.:+-_@#=,".contains(c);
    let escaped = word.replace('%', "%%").replace('$', "$$");
    if escaped.chars().all(|c| plain(c) || c == '%') {
        return escaped;
    }
    let escaped = escaped.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installation(directory: &Path) -> Installation {
        let piece = |name: &str, content| Piece {
            path: directory.join(name),
            content,
            what: String::new(),
        };
        let secret = Secret(Zeroizing::new("s3cret".to_owned()));
        Installation {
            pieces: vec![
                piece("mesh/home.secret", Content::Secret(secret)),
                piece("mesh/home.key", Content::OwnKey),
                piece("trust.toml", Content::Text("[trust]\n".to_owned())),
            ],
            arguments: Vec::new(),
        }
    }

    fn key() -> Secret {
        Secret(Zeroizing::new("k3y".to_owned()))
    }

    #[test]
    fn what_is_not_there_is_made_and_what_is_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let all = installation(directory.path());
        let found = |all: &Installation| {
            let found = all.look().unwrap().into_iter().map(|(_, found)| found);
            found.collect::<Vec<_>>()
        };
        assert_eq!(found(&all), [Found::Absent; 3]);
        all.write(&key()).unwrap();
        assert_eq!(found(&all), [Found::Same; 3]);
        for (name, text, mode) in [
            ("mesh/home.secret", "s3cret\n", 0o600),
            ("mesh/home.key", "k3y\n", 0o600),
            ("trust.toml", "[trust]\n", 0o644),
        ] {
            let path = directory.path().join(name);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            let meta = fs::metadata(&path).unwrap();
            assert_eq!(meta.permissions().mode() & 0o7777, mode, "{name}");
        }
        all.write(&key()).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_made_takes_those_before_it_along() {
        let directory = tempfile::tempdir().unwrap();
        let all = installation(directory.path());
        let trust = directory.path().join("trust.toml");
        fs::write(&trust, "[trust]\nplain_http = true\n").unwrap();
        let (path, _) = all.write(&key()).unwrap_err();
        assert_eq!(path, trust);
        assert!(!directory.path().join("mesh/home.key").exists());
        assert!(!directory.path().join("mesh/home.secret").exists());
        assert!(fs::read_to_string(&trust).unwrap().contains("plain_http"));
    }

    #[test]
    fn a_word_means_the_same_to_systemd() {
        for (word, written) in [
            (
                "git+https://h/m.git#main:mesh.toml",
                "git+https://h/m.git#main:mesh.toml",
            ),
            ("https://h/a%20b", "https://h/a%%20b"),
            ("a b\"c\\d$e", "\"a b\\\"c\\\\d$$e\""),
        ] {
            assert_eq!(quoted(word), written);
        }
    }
}
