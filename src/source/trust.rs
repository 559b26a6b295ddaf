//! The trust file: whose versions this machine takes. It is a local file, never one of the
//! repository that it judges.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use minisign_verify::{PublicKey, Signature};
use natpunch_os::durable;
use serde::Deserialize;

use super::error::SourceError;

/// Read if nothing else is said, and if it is there.
pub(crate) const DEFAULT_FILE: &str = "/etc/natpunch/trust.toml";

const LONGEST_FILE: u64 = 1 << 20;

/// Types of SSH keys that `ssh-keygen -Y` makes signatures with.
const SSH_TYPES: &[&str] = &[
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// The signers whose versions this machine takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Trust {
    /// SSH public keys, each `TYPE BASE64`.
    ssh: Vec<String>,
    /// minisign public keys in base64.
    minisign: Vec<String>,
    /// The commit after which every commit must be signed, on first use.
    pub(super) since: Option<String>,
    /// Whether the newest commit must say which branch it is for.
    pub(super) bind_branch: bool,
    /// How old the newest signed version may be before that is an alarm.
    pub(super) max_age: Option<Duration>,
    /// Whether plain HTTP over a network is allowed.
    pub(super) plain_http: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    trust: Section,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    signers: Option<Vec<String>>,
    since: Option<String>,
    #[serde(default)]
    bind_branch: bool,
    max_age_days: Option<u32>,
    #[serde(default)]
    plain_http: bool,
}

impl Trust {
    /// Reads the trust file: the one named, or the default one if it is there. Without one nothing
    /// needs to be signed, unless `memory` says that the default one demanded signatures before:
    /// then it was lost, and "believe anybody" is not what its owner wanted.
    ///
    /// # Errors
    /// It can't be read, others could change it, it does not say what it must, or it is gone.
    pub(super) fn load(named: Option<&Path>, memory: &Memory) -> Result<Self, SourceError> {
        match named {
            Some(path) => Self::read(path)?.ok_or_else(|| {
                SourceError::local(format!("the trust file {} is not there", path.display()))
                    .help("put it back, or name another with --trust")
            }),
            None => Self::load_default(Path::new(DEFAULT_FILE), memory),
        }
    }

    fn load_default(path: &Path, memory: &Memory) -> Result<Self, SourceError> {
        match Self::read(path)? {
            Some(trust) => Ok(trust),
            None if memory.demands_signatures() => Err(SourceError::local(format!(
                "the trust file {} is gone, which demanded signatures: nothing new is believed without it",
                path.display()
            ))
            .help(format!(
                "put it back; if from now on nobody has to sign, make it with the one line `[trust]` ({} remembers that \
                 it was there)",
                memory.path.display()
            ))),
            None => Ok(Self::default()),
        }
    }

    /// Reads a trust file; `None`: it is not there.
    fn read(path: &Path) -> Result<Option<Self>, SourceError> {
        let shown = path.display();
        let failed = |error: std::io::Error| {
            SourceError::local(format!("can't read the trust file {shown}: {error}"))
        };
        // O_NONBLOCK: opening a FIFO would wait for a writer.
        let open = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path);
        let file = match open {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            open => open.map_err(failed)?,
        };
        let meta = file.metadata().map_err(failed)?;
        let user = nix::unistd::geteuid().as_raw();
        if !meta.is_file() || meta.mode() & 0o022 != 0 || (meta.uid() != 0 && meta.uid() != user) {
            return Err(SourceError::local(format!(
                "others than its owner could change the trust file {shown}"
            ))
            .help(format!("chown root {shown} && chmod 644 {shown}")));
        }
        let mut text = String::new();
        file.take(LONGEST_FILE)
            .read_to_string(&mut text)
            .map_err(failed)?;
        Self::parse(&text).map(Some).map_err(|problem| {
            SourceError::local(format!("the trust file {shown}: {problem}"))
                .help("it looks like this: [trust] and a line signers = [\"ssh-ed25519 AAAA…\"]; see docs/how-to/git.md")
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let File {
            trust:
                Section {
                    signers,
                    since,
                    bind_branch,
                    max_age_days,
                    plain_http,
                },
        } = toml::from_str(text).map_err(|error| error.to_string().trim().to_owned())?;
        let mut trust = Self {
            since,
            bind_branch,
            max_age: max_age_days.map(|days| Duration::from_secs(u64::from(days) * 86_400)),
            plain_http,
            ..Self::default()
        };
        if max_age_days == Some(0) {
            return Err("`max_age_days` is 0: every version would be too old".to_owned());
        }
        if let Some(since) = &trust.since
            && !is_commit(since)
        {
            return Err(format!(
                "`since` is not the full name of a commit, 40 hexadecimal digits: {since:?}"
            ));
        }
        let Some(signers) = signers else {
            // What is not signed says neither when nor for which branch it was made.
            let needless = [
                ("since", trust.since.is_some()),
                ("bind_branch", trust.bind_branch),
                ("max_age_days", trust.max_age.is_some()),
            ];
            return match needless.iter().find(|(_, is_there)| *is_there) {
                Some((key, _)) => Err(format!("`{key}` means nothing without `signers`")),
                None => Ok(trust),
            };
        };
        // An empty list would read as "nobody" and mean "anybody".
        if signers.is_empty() {
            return Err("`signers` is empty: name at least one, or leave the line out".to_owned());
        }
        for signer in signers {
            let words: Vec<&str> = signer.split_whitespace().collect();
            match words.as_slice() {
                [kind, key, ..] if SSH_TYPES.contains(kind) && is_base64(key) => {
                    trust.ssh.push(format!("{kind} {key}"));
                }
                [key] if PublicKey::from_base64(key).is_ok() => {
                    trust.minisign.push((*key).to_owned())
                }
                _ => {
                    return Err(format!(
                        "{signer:?} is neither an SSH public key (ssh-ed25519 AAAA…) nor a minisign one (RW…)"
                    ));
                }
            }
        }
        Ok(trust)
    }

    /// Whether versions must be signed.
    pub(super) fn demands_signatures(&self) -> bool {
        !self.ssh.is_empty() || !self.minisign.is_empty()
    }

    /// The keys that may sign commits, in the format of `ssh-keygen`'s ALLOWED SIGNERS, all for one
    /// principal.
    ///
    /// # Errors
    /// Signatures are demanded, but no listed key could make one of this kind.
    pub(super) fn allowed_signers(&self, principal: &str) -> Result<String, SourceError> {
        if self.ssh.is_empty() {
            return Err(SourceError::local(
                "`signers` lists no SSH key, and commits are signed with these",
            )
            .help("add the signer's SSH public key to [trust] signers"));
        }
        Ok(self
            .ssh
            .iter()
            .map(|key| format!("{principal} namespaces=\"git\" {key}\n"))
            .collect())
    }

    /// Checks a minisign signature over a file. Gives when it was made, in seconds since 1970, if
    /// its trusted comment says so, which is signed as the file is.
    ///
    /// # Errors
    /// It is not one of any listed key over exactly this.
    pub(super) fn check_minisign(
        &self,
        content: &[u8],
        signature: &str,
    ) -> Result<Option<u64>, SourceError> {
        if self.minisign.is_empty() {
            return Err(SourceError::local(
                "`signers` lists no minisign key, and files of web servers are signed with these",
            )
            .help("add the signer's minisign public key to [trust] signers"));
        }
        let signature = Signature::decode(signature).map_err(|error| {
            SourceError::refused(format!(
                "the file's minisign signature can't be read: {error}"
            ))
        })?;
        let signed = self
            .minisign
            .iter()
            .filter_map(|key| PublicKey::from_base64(key).ok())
            .any(|key| key.verify(content, &signature, false).is_ok());
        match signed {
            true => Ok(minisign_time(signature.trusted_comment())),
            false => Err(
                SourceError::refused("the file is not signed by any listed signer").help(
                    "sign it with `minisign -S`, or add its signer's public key to [trust] signers",
                ),
            ),
        }
    }
}

/// What `minisign -S` writes: `timestamp:1700000000`, a tab, and more of the kind.
fn minisign_time(comment: &str) -> Option<u64> {
    let mut fields = comment.split_ascii_whitespace();
    fields.find_map(|field| field.strip_prefix("timestamp:")?.parse().ok())
}

/// What this machine remembers of its default trust file: that it demanded signatures. A file of
/// its own in the state directory, since the trust file may be lost with all that is beside it.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
}

impl Memory {
    /// That of this state directory.
    pub(super) fn of(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join("trust-in-force"),
        }
    }

    fn demands_signatures(&self) -> bool {
        self.path.exists()
    }

    /// Remembers what the default trust file says now.
    ///
    /// # Errors
    /// The disk can't be written to.
    pub(super) fn keep(&self, trust: &Trust) -> std::io::Result<()> {
        let (is, was) = (trust.demands_signatures(), self.demands_signatures());
        match (is, was) {
            (true, false) => {
                let text = format!(
                    "{DEFAULT_FILE} lists signers on this machine. While this file is here, a missing trust\n\
                     file is an error, and not a reason to believe whoever can push.\n"
                );
                durable::create_dir_all(self.path.parent().unwrap_or(Path::new(".")))?;
                durable::replace(&self.path, text.as_bytes(), 0o600)
            }
            (false, true) => std::fs::remove_file(&self.path),
            _ => Ok(()),
        }
    }
}

fn is_base64(text: &str) -> bool {
    text.len() >= 16
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
}

/// Whether this is the full name of a commit.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64)
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZvbyBiYXIgYmF6IHF1eCBxdXV4IGNvcmdlIGdy alice@laptop";

    #[test]
    fn signers_are_keys_and_nothing_else() {
        let trust = Trust::parse(&format!("[trust]\nsigners = [{ED25519:?}]\n")).unwrap();
        assert!(trust.demands_signatures());
        let allowed = trust.allowed_signers("natpunch").unwrap();
        assert!(
            allowed.starts_with("natpunch namespaces=\"git\" ssh-ed25519 AAAA")
                && !allowed.contains("alice")
        );
        for (bad, why) in [
            ("[trust]\nsigners = []", "empty"),
            ("[trust]\nsigners = [\"* ssh-ed25519 AAAA\"]", "neither"),
            (
                "[trust]\nsigners = [\"ssh-ed25519 AAAA\\n* ssh-ed25519 BBBBBBBBBBBBBBBBBBBB\"]",
                "neither",
            ),
            ("[trust]\nsigner = [\"x\"]", "unknown field"),
            ("[trust]\nsince = \"main\"\n", "40 hexadecimal"),
            ("", "missing field"),
        ] {
            let problem = Trust::parse(bad).expect_err(bad);
            assert!(problem.contains(why), "{bad}: {problem}");
        }
    }

    #[test]
    fn what_binds_a_signature_needs_signatures() {
        for key in ["bind_branch = true", "max_age_days = 30"] {
            let without = Trust::parse(&format!("[trust]\n{key}\n")).unwrap_err();
            assert!(without.contains("means nothing without"), "{without}");
            let text = format!("[trust]\nsigners = [{ED25519:?}]\n{key}\n");
            assert!(Trust::parse(&text).unwrap().demands_signatures());
        }
        let never = format!("[trust]\nsigners = [{ED25519:?}]\nmax_age_days = 0\n");
        assert!(Trust::parse(&never).is_err());
    }

    #[test]
    fn a_signature_of_minisign_says_when_it_was_made() {
        let comment = "timestamp:1700000000\tfile:mesh.toml\thashed";
        assert_eq!(minisign_time(comment), Some(1_700_000_000));
        assert_eq!(minisign_time("signed by hand"), None);
    }

    #[test]
    fn a_default_trust_file_that_was_lost_never_means_believe_anybody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trust.toml");
        let memory = Memory::of(&directory.path().join("state"));
        let load = || Trust::load_default(&path, &memory);
        // A machine that never had one believes anybody.
        assert!(!load().unwrap().demands_signatures());
        memory.keep(&load().unwrap()).unwrap();
        std::fs::write(&path, format!("[trust]\nsigners = [{ED25519:?}]\n")).unwrap();
        memory.keep(&load().unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        for _ in 0..2 {
            let error = load().unwrap_err();
            assert!(error.to_string().contains("is gone"), "{error}");
            assert_eq!(error.problem(), super::super::Problem::Local);
        }
        // A person says that versions need no signature.
        std::fs::write(&path, "[trust]\n").unwrap();
        memory.keep(&load().unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!load().unwrap().demands_signatures());
    }

    #[test]
    fn a_trust_file_that_others_could_change_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trust.toml");
        std::fs::write(&path, format!("[trust]\nsigners = [{ED25519:?}]\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(
            Trust::read(&path)
                .unwrap_err()
                .to_string()
                .contains("could change")
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Trust::read(&path).unwrap().unwrap().demands_signatures());
        assert!(
            Trust::load(
                Some(&directory.path().join("gone")),
                &Memory::of(directory.path())
            )
            .is_err(),
            "a named file must be there"
        );
    }
}
