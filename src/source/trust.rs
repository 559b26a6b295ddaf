//! Whom this machine believes: a local file, never one of the repository that it judges.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use minisign_verify::{PublicKey, Signature};
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

/// Whom this machine believes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Trust {
    /// SSH public keys, each `TYPE BASE64`.
    ssh: Vec<String>,
    /// minisign public keys in base64.
    minisign: Vec<String>,
    /// The commit after which every commit must be signed, on first use.
    pub(super) since: Option<String>,
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
    plain_http: bool,
}

impl Trust {
    /// Reads the trust file: the one named, or the default one if it is there. Without one nothing
    /// needs to be signed.
    ///
    /// # Errors
    /// It can't be read, others could change it, or it does not say what it must.
    pub(super) fn load(named: Option<&Path>) -> Result<Self, SourceError> {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
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
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
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
        Self::parse(&text).map_err(|problem| {
            SourceError::local(format!("the trust file {shown}: {problem}"))
                .help("it looks like this: [trust] and a line signers = [\"ssh-ed25519 AAAA…\"]; see docs/gitops.md")
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let File {
            trust:
                Section {
                    signers,
                    since,
                    plain_http,
                },
        } = toml::from_str(text).map_err(|error| error.to_string().trim().to_owned())?;
        let mut trust = Self {
            since,
            plain_http,
            ..Self::default()
        };
        if let Some(since) = &trust.since
            && !is_commit(since)
        {
            return Err(format!(
                "`since` is not the full name of a commit, 40 hexadecimal digits: {since:?}"
            ));
        }
        let Some(signers) = signers else {
            return match trust.since {
                Some(_) => Err("`since` means nothing without `signers`".to_owned()),
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

    /// Checks a minisign signature over a file.
    ///
    /// # Errors
    /// It is not one of any listed key over exactly this.
    pub(super) fn check_minisign(
        &self,
        content: &[u8],
        signature: &str,
    ) -> Result<(), SourceError> {
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
            true => Ok(()),
            false => Err(
                SourceError::refused("the file is not signed by any listed signer").help(
                    "sign it with `minisign -S`, or add its signer's public key to [trust] signers",
                ),
            ),
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
    fn a_trust_file_that_others_could_change_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trust.toml");
        std::fs::write(&path, format!("[trust]\nsigners = [{ED25519:?}]\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(
            Trust::load(Some(&path))
                .unwrap_err()
                .to_string()
                .contains("could change")
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Trust::load(Some(&path)).unwrap().demands_signatures());
        assert!(
            Trust::load(Some(&directory.path().join("gone"))).is_err(),
            "a named file must be there"
        );
    }
}
