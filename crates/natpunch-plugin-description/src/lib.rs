//! What a discovery plugin is, without running it.
//!
//! A plugin describes itself by a pair of traits. [`Settings`] are read from `[discovery.NAME]` and
//! checked wherever a mesh file is read, on nodes and in CI alike. What passes is an [`Instance`],
//! of which the rest of the program asks what it has to know: whether it relays, which secrets it
//! needs, what a person should be warned of. Nothing here opens a socket or a file.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{Abilities, Password, PeerKey, PresharedKey};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

mod endpoint;

pub use endpoint::{Endpoint, EndpointError, is_near};

/// The settings of a plugin, as `[discovery.NAME]` has them. A key's doc comment is its
/// documentation.
pub trait Settings: DeserializeOwned + JsonSchema {
    /// The value of `plugin = "…"`.
    const PLUGIN: &'static str;

    /// What it does, in a few words.
    const ABOUT: &'static str;

    /// All that an instance can do; its settings may leave something out.
    const ABILITIES: Abilities;

    /// What they are when nothing is wrong with them.
    type Instance: Instance;

    /// Checks everything that can be checked without this node's files and without the network.
    ///
    /// # Errors
    /// What is wrong, all of it.
    fn check(self) -> Result<Self::Instance, Vec<Flaw>>;

    /// The instance that a mesh has unless it writes one of this plugin, named like the plugin. One
    /// that offers the file's endpoints is there if the file has any.
    fn implied() -> Option<Self::Instance> {
        None
    }

    /// The instance of a node of the mesh that serves it at `server`, and has this WireGuard key.
    fn of_node(_server: &Endpoint, _key: PeerKey) -> Option<Self::Instance> {
        None
    }
}

/// Checked settings: one instance of `[discovery.NAME]`.
pub trait Instance: fmt::Debug + PartialEq + Send + Sync + 'static {
    /// What the rest of the program wants to know of it.
    fn describe(&self) -> Description;
}

/// What the rest of the program wants to know of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    /// What it can do once it runs.
    pub abilities: Abilities,
    /// It finds peers whose endpoint the mesh file does not have.
    pub finds_peers: bool,
    /// It offers the `endpoint`s of the mesh file.
    pub offers_endpoints: bool,
    /// It asks the node's own router, as nodes with `port_mapping` do.
    pub asks_router: bool,
    /// It authenticates with the WireGuard private key, or with what it derives from it.
    pub needs_private_key: bool,
    /// Its servers, whose names it resolves.
    pub servers: Vec<String>,
    /// STUN servers that this node asks for it, `HOST:PORT`.
    pub stun: Vec<String>,
    /// The files of its secrets.
    pub secrets: Vec<SecretFile>,
    /// The node of the mesh that is its server, which does not ask itself.
    pub node: Option<PeerKey>,
    /// What to change in the section so that it relays, if it could.
    pub relay_is_off: Option<&'static str>,
    /// What is allowed, and likely not meant.
    pub warnings: Vec<Warning>,
}

/// A file with a secret of this mesh, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    /// The key in the section.
    pub key: &'static str,
    /// An absolute path, or `credential:NAME`.
    pub path: PathBuf,
    /// What the line is.
    pub form: SecretForm,
}

/// What a file of a secret holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretForm {
    /// A key, as `natpunch keygen` prints it.
    Key,
    /// A password that the server's administrator chose.
    Password,
}

impl SecretFile {
    /// The file of a key, by a path that means the same wherever the program runs.
    ///
    /// # Errors
    /// It is relative, or names no credential.
    pub fn new(key: &'static str, path: PathBuf) -> Result<Self, Flaw> {
        Self::of(SecretForm::Key, key, path)
    }

    /// The file of a password, likewise.
    ///
    /// # Errors
    /// As [`SecretFile::new`].
    pub fn password(key: &'static str, path: PathBuf) -> Result<Self, Flaw> {
        Self::of(SecretForm::Password, key, path)
    }

    fn of(form: SecretForm, key: &'static str, path: PathBuf) -> Result<Self, Flaw> {
        let flaw = |problem: &str, help: &str| Flaw {
            key,
            problem: problem.to_owned(),
            expected: "expected an absolute path, or credential:NAME",
            help: help.to_owned(),
        };
        let credential = path
            .to_str()
            .and_then(|text| text.strip_prefix("credential:"));
        let is_name =
            |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        match credential {
            Some(name) if is_name(name) => Ok(Self { key, path, form }),
            Some(_) => Err(flaw(
                "this is not the name of a credential",
                "write credential: and the name of LoadCredential= in the unit, \
                 such as \"credential:admission.key\"",
            )),
            None if is_whole(&path) => Ok(Self { key, path, form }),
            None => Err(flaw(
                "this is not an absolute path",
                "write it from the root on, such as \"/etc/natpunch/admission.key\"",
            )),
        }
    }
}

/// Absolute, and of a form that the system can open.
fn is_whole(path: &Path) -> bool {
    path.is_absolute()
        && path.file_name().is_some()
        && !path.as_os_str().as_encoded_bytes().contains(&0)
}

/// What is wrong with one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// The key inside `[discovery.NAME]`.
    pub key: &'static str,
    /// What is wrong, to follow "bad value of `KEY`: ".
    pub problem: String,
    /// What belongs there, in a few words.
    pub expected: &'static str,
    /// What to write.
    pub help: String,
}

/// What is allowed in a section, and likely not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Its name, for `check --allow` and the like.
    pub rule: &'static str,
    /// What is odd, to follow the name of the instance.
    pub problem: String,
    /// What comes of it, in a few words.
    pub label: &'static str,
    /// What to do.
    pub help: &'static str,
}

/// A public key that some server has: all zeros are none's.
///
/// # Errors
/// It is all zeros.
pub fn check_server_key(key: &'static str, value: &PeerKey) -> Result<(), Flaw> {
    if value.as_bytes() != &[0; 32] {
        return Ok(());
    }
    Err(Flaw {
        key,
        problem: "this key is all zeros".to_owned(),
        expected: "expected the server's public key",
        help: "copy the line that the server prints at its start".to_owned(),
    })
}

/// The server of a section, `HOST:PORT`.
///
/// # Errors
/// It has another form.
pub fn check_server(key: &'static str, text: &str) -> Result<Endpoint, Flaw> {
    text.parse().map_err(|error: EndpointError| Flaw {
        key,
        problem: error.problem,
        expected: "expected HOST:PORT",
        help: error.help,
    })
}

/// The STUN servers of a section, in its key `stun`: what is wrong with them.
pub fn check_stun(servers: &[String]) -> Vec<Flaw> {
    let flaws = servers.iter().map(|server| check_server("stun", server));
    flaws.filter_map(Result::err).collect()
}

/// A number of seconds in a range, which is also given in words.
///
/// # Errors
/// It is outside of it; the flaw names `example` as one to write.
pub fn check_seconds(
    key: &'static str,
    seconds: u64,
    (range, expected): (RangeInclusive<u64>, &'static str),
    example: u64,
) -> Result<Duration, Flaw> {
    if range.contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    Err(Flaw {
        key,
        problem: format!("{seconds} is out of range"),
        expected,
        help: format!("write a number of seconds, such as {example}"),
    })
}

/// An instance of any plugin.
#[derive(Clone)]
pub struct AnyInstance(Arc<dyn Erased>);

/// [`Instance`] as an object.
trait Erased: fmt::Debug + Send + Sync {
    fn describe(&self) -> Description;
    fn equals(&self, other: &dyn Erased) -> bool;
    fn as_any(&self) -> &dyn Any;
}

impl<T: Instance> Erased for T {
    fn describe(&self) -> Description {
        Instance::describe(self)
    }

    fn equals(&self, other: &dyn Erased) -> bool {
        other.as_any().downcast_ref::<T>() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl AnyInstance {
    /// This instance, whatever its plugin.
    pub fn new(instance: impl Instance) -> Self {
        Self(Arc::new(instance))
    }

    /// What the rest of the program wants to know of it.
    pub fn describe(&self) -> Description {
        self.0.describe()
    }

    /// It as an instance of one plugin.
    pub fn downcast_ref<T: Instance>(&self) -> Option<&T> {
        self.0.as_any().downcast_ref()
    }
}

impl PartialEq for AnyInstance {
    fn eq(&self, other: &Self) -> bool {
        self.0.equals(&*other.0)
    }
}

impl fmt::Debug for AnyInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What this node's files hold of an instance's secrets, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Secrets(pub BTreeMap<&'static str, Result<Secret, String>>);

/// What a file of a secret held, in the form that its [`SecretFile`] has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// [`SecretForm::Key`].
    Key(PresharedKey),
    /// [`SecretForm::Password`].
    Password(Password),
}

impl Secrets {
    /// The secret of this key of the section, which is the file of a key; `None` where the section
    /// names no file.
    ///
    /// # Errors
    /// What is wrong with the file, and what would help.
    pub fn get(&self, key: &str) -> Result<Option<PresharedKey>, String> {
        match self.0.get(key).cloned().transpose()? {
            Some(Secret::Key(key)) => Ok(Some(key)),
            Some(Secret::Password(_)) | None => Ok(None),
        }
    }

    /// The same of a key of the section that is the file of a password.
    ///
    /// # Errors
    /// What is wrong with the file, and what would help.
    pub fn password(&self, key: &str) -> Result<Option<Password>, String> {
        match self.0.get(key).cloned().transpose()? {
            Some(Secret::Password(password)) => Ok(Some(password)),
            Some(Secret::Key(_)) | None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_named_by_an_absolute_path_or_a_credential() {
        for good in ["/etc/natpunch/a.key", "credential:a.key"] {
            assert!(SecretFile::new("k", good.into()).is_ok(), "{good}");
        }
        for bad in [
            "a.key",
            "./a",
            "",
            "/",
            "credential:",
            "credential:../a",
            "credential:a/b",
        ] {
            assert!(SecretFile::new("k", bad.into()).is_err(), "{bad}");
        }
    }

    #[test]
    fn instances_of_two_plugins_are_never_the_same() {
        #[derive(Debug, PartialEq)]
        struct One(u8);
        #[derive(Debug, PartialEq)]
        struct Other(u8);
        impl Instance for One {
            fn describe(&self) -> Description {
                Description::default()
            }
        }
        impl Instance for Other {
            fn describe(&self) -> Description {
                Description::default()
            }
        }
        assert_eq!(AnyInstance::new(One(1)), AnyInstance::new(One(1)));
        assert_ne!(AnyInstance::new(One(1)), AnyInstance::new(One(2)));
        assert_ne!(AnyInstance::new(One(1)), AnyInstance::new(Other(1)));
        assert!(AnyInstance::new(One(1)).downcast_ref::<Other>().is_none());
    }
}
