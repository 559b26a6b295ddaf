//! The settings, and what is to be known of an instance.

use std::path::PathBuf;
use std::time::Duration;

use natpunch_plugin::{
    Abilities, Description, Discovery, Endpoint, Flaw, Instance, Password, Runs, SecretFile,
    Secrets, Warning, check_seconds, check_stun, is_near,
};
use natpunch_redis::{Address, AddressError, Tls};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::Plugin;
use crate::client::Config;

/// `[discovery.NAME]` with `plugin = "redis"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The server, Redis 6, Valkey or newer: `redis://HOST[:PORT][/DATABASE]`, or `rediss://` by
    /// TLS.
    pub url: String,
    /// The user that the nodes are there. Means something with `password_file` only.
    #[serde(default = "default_user")]
    pub user: String,
    /// The file with that user's password: one line, readable by its owner only. An absolute path;
    /// `credential:NAME` is a credential of systemd.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// What the names of all keys and channels begin with.
    #[serde(default = "default_prefix")]
    #[schemars(length(min = 1, max = 64))]
    pub prefix: String,
    /// Seconds until a record expires that its node does not store again, as it does every third
    /// of that time.
    #[serde(default = "default_lifetime")]
    #[schemars(range(min = 60, max = 86400))]
    pub lifetime: u64,
    /// STUN servers, `HOST:PORT`, that tell this node its address as the internet sees it. Redis
    /// can't. `natpunch serve` answers STUN on its UDP port.
    #[serde(default)]
    pub stun: Vec<String>,
    /// The certificate authorities that the server's certificate may be of, in PEM: an absolute
    /// path. Default: those of the system.
    #[serde(default)]
    pub tls_ca_file: Option<PathBuf>,
}

fn default_user() -> String {
    "default".to_owned()
}

fn default_prefix() -> String {
    "natpunch:".to_owned()
}

fn default_lifetime() -> u64 {
    3_600
}

/// The key of the section that names the file of the password.
const PASSWORD: &str = "password_file";
/// The longest user and prefix, in bytes.
const LONGEST_NAME: usize = 64;

/// A database of a Redis or Valkey server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    pub(crate) endpoint: Endpoint,
    pub(crate) tls: Option<Tls>,
    database: u16,
    user: String,
    password_file: Option<SecretFile>,
    prefix: String,
    lifetime: Duration,
    stun: Vec<String>,
}

impl natpunch_plugin::Settings for Settings {
    const PLUGIN: &'static str = "redis";
    const ABOUT: &'static str = "records in a Redis or Valkey server, pushed at once";
    const ABILITIES: Abilities = Abilities {
        records: true,
        ..Abilities::NONE
    };
    type Instance = Store;

    fn check(self) -> Result<Store, Vec<Flaw>> {
        let mut flaws = check_stun(&self.stun);
        flaws.extend(check_name("user", &self.user));
        flaws.extend(check_name("prefix", &self.prefix));
        let range = (60..=86_400, "expected 60 to 86400 seconds");
        flaws.extend(check_seconds("lifetime", self.lifetime, range, 3600).err());
        let password_file = self
            .password_file
            .map(|path| SecretFile::password(PASSWORD, path))
            .transpose();
        let place = check_url(&self.url);
        let tls = check_ca_file(self.tls_ca_file);
        match (place, password_file, tls) {
            (Ok(place), Ok(password_file), Ok(ca_file)) if flaws.is_empty() => Ok(Store {
                endpoint: place.endpoint,
                tls: place.is_encrypted.then_some(Tls { ca_file }),
                database: place.database,
                user: self.user,
                password_file,
                prefix: self.prefix,
                lifetime: Duration::from_secs(self.lifetime),
                stun: self.stun,
            }),
            (place, password_file, tls) => {
                flaws.extend(place.err());
                flaws.extend(password_file.err());
                flaws.extend(tls.err());
                Err(flaws)
            }
        }
    }
}

fn check_url(text: &str) -> Result<Address, Flaw> {
    Address::parse(text).map_err(|AddressError { problem, help }| Flaw {
        key: "url",
        problem,
        expected: "expected redis://HOST or rediss://HOST",
        help,
    })
}

/// A name without blanks and what a terminal would obey.
fn check_name(key: &'static str, name: &str) -> Option<Flaw> {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_graphic());
    let fits = (1..=LONGEST_NAME).contains(&name.len());
    (!is_plain || !fits).then(|| Flaw {
        key,
        problem: "this is empty, too long, or has blanks or other characters than ASCII".to_owned(),
        expected: "expected 1 to 64 characters",
        help: "write one word, such as \"natpunch:\" for a prefix and \"natpunch\" for a user"
            .to_owned(),
    })
}

fn check_ca_file(file: Option<PathBuf>) -> Result<Option<PathBuf>, Flaw> {
    match file {
        Some(file) if !file.is_absolute() => Err(Flaw {
            key: "tls_ca_file",
            problem: "this is not an absolute path".to_owned(),
            expected: "expected an absolute path",
            help: "write it like \"/etc/natpunch/ca.pem\"".to_owned(),
        }),
        file => Ok(file),
    }
}

impl Store {
    /// What the client has to know.
    pub(crate) fn config(&self, password: Option<Password>) -> Config {
        Config {
            prefix: self.prefix.clone(),
            user: self.user.clone(),
            password,
            database: self.database,
            lifetime: self.lifetime,
        }
    }

    /// A password and tags that cross the internet in plain.
    fn plain_redis(&self) -> Option<Warning> {
        let host = &self.endpoint.host;
        (self.tls.is_none() && !is_near(host)).then(|| Warning {
            rule: "plain-redis",
            problem: format!("asks {host} without TLS"),
            label: "the password and the tags can be read on the way",
            help: "write a rediss:// URL: the records are sealed, but whoever reads the password can \
                   put others in their place, and the pairs no longer find each other there",
        })
    }
}

impl Instance for Store {
    fn describe(&self) -> Description {
        Description {
            abilities: <Settings as natpunch_plugin::Settings>::ABILITIES,
            finds_peers: true,
            servers: vec![self.endpoint.to_string()],
            stun: self.stun.clone(),
            secrets: self.password_file.iter().cloned().collect(),
            warnings: self.plain_redis().into_iter().collect(),
            ..Description::default()
        }
    }
}

impl Runs for Store {
    fn plugin(&self, secrets: &Secrets) -> Box<dyn Discovery> {
        Box::new(Plugin::new(self.clone(), secrets.password(PASSWORD)))
    }
}

#[cfg(test)]
mod tests {
    use natpunch_plugin::Settings as _;

    use super::*;

    fn settings(url: &str) -> Settings {
        let text = format!("{{\"url\": \"{url}\"}}");
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_url_names_the_server_the_database_and_tls() {
        for (url, server, database, is_encrypted) in [
            (
                "redis://redis.example.org",
                "redis.example.org:6379",
                0,
                false,
            ),
            (
                "redis://redis.example.org/",
                "redis.example.org:6379",
                0,
                false,
            ),
            (
                "rediss://redis.example.org:7000/3",
                "redis.example.org:7000",
                3,
                true,
            ),
            ("redis://192.0.2.7:1", "192.0.2.7:1", 0, false),
            (
                " redis://[2001:db8::7]/15 ",
                "[2001:db8::7]:6379",
                15,
                false,
            ),
        ] {
            let store = settings(url).check().unwrap();
            assert_eq!(store.endpoint.to_string(), server);
            assert_eq!(store.database, database);
            assert_eq!(store.tls.is_some(), is_encrypted);
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_with_where_it_belongs() {
        for url in [
            "redis://:open@h",
            "redis://u:open@h",
            "redis://u@h",
            "rediss://u:@h",
        ] {
            let flaws = settings(url).check().unwrap_err();
            assert!(
                flaws[0]
                    .problem
                    .contains("must not be in the mesh file or a URL"),
                "{flaws:?}"
            );
            assert!(flaws[0].help.contains("password_file"), "{flaws:?}");
            assert!(!format!("{flaws:?}").contains("open"), "{flaws:?}");
        }
    }

    #[test]
    fn all_flaws_are_said() {
        let wrong = Settings {
            user: "a b".to_owned(),
            password_file: Some("redis.password".into()),
            prefix: String::new(),
            lifetime: 59,
            stun: vec!["nowhere".to_owned()],
            tls_ca_file: Some("ca.pem".into()),
            ..settings("redis://h/x")
        };
        let flaws = wrong.check().unwrap_err();
        let keys: Vec<_> = flaws.iter().map(|flaw| flaw.key).collect();
        let all = [
            "stun",
            "user",
            "prefix",
            "lifetime",
            "url",
            "password_file",
            "tls_ca_file",
        ];
        assert_eq!(keys, all);
    }

    #[test]
    fn only_a_server_in_a_network_of_others_is_warned_of() {
        for (url, warned) in [
            ("redis://redis.example.org", true),
            ("redis://203.0.113.7", true),
            ("rediss://redis.example.org", false),
            ("redis://127.0.0.1", false),
            ("redis://nas.local", false),
        ] {
            let about = settings(url).check().unwrap().describe();
            assert_eq!(!about.warnings.is_empty(), warned, "{url}");
        }
    }
}
