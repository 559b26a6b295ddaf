//! The settings, and what is to be known of an instance.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use domain::tsig::Algorithm;
use natpunch_plugin::{
    Abilities, Description, Discovery, Endpoint, Flaw, Instance, Runs, SecretFile, Secrets,
    check_server, check_stun,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::Plugin;
use crate::names::{KeyName, Zone};

/// The port of DNS.
const PORT: u16 = 53;
/// Servers that are asked in turn. More make no answer likelier, and a failure later.
const MOST_SERVERS: usize = 4;
/// The key of the section that names the file of the TSIG key.
pub(crate) const KEY_FILE: &str = "key_file";

/// `[discovery.NAME]` with `plugin = "dns"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The domain below which the records are, such as `natpunch.example.org`: the name of a zone
    /// of its own if nodes update it.
    pub zone: String,
    /// The name servers that are asked, each an IP address with or without a port, at most 4.
    /// Those of the zone itself answer with what is new at once. Default: the resolvers of
    /// `/etc/resolv.conf`.
    #[serde(default)]
    pub name_servers: Vec<String>,
    /// The zone's primary name server, `HOST` or `HOST:PORT`, to which this node sends its records
    /// (dynamic update, RFC 2136, over TCP). Without it the node only reads.
    #[serde(default)]
    pub update_server: Option<String>,
    /// The name of the TSIG key (RFC 8945) that signs the updates, as the server has it.
    #[serde(default)]
    pub key_name: Option<String>,
    /// The file with the secret of the TSIG key: one line, 32 bytes in base64, as `natpunch
    /// keygen`, `tsig-keygen` and `keymgr -t` make them, readable by its owner only. An absolute
    /// path; `credential:NAME` is a credential of systemd.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// The algorithm of the TSIG key: `hmac-sha256`, `hmac-sha384` or `hmac-sha512`.
    #[serde(default = "default_algorithm")]
    pub algorithm: String,
    /// STUN servers, `HOST:PORT`, that tell this node its address as the internet sees it. A zone
    /// can't. `natpunch serve` answers STUN on its UDP port.
    #[serde(default)]
    pub stun: Vec<String>,
}

fn default_algorithm() -> String {
    "hmac-sha256".to_owned()
}

/// A zone of records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records {
    pub(crate) zone: Zone,
    /// Those that are asked; none: the system's resolvers.
    pub(crate) servers: Vec<SocketAddr>,
    /// How this node's records come into the zone; `None`: not at all.
    pub(crate) primary: Option<Primary>,
    stun: Vec<String>,
}

/// The server that takes updates, and the key that they are signed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Primary {
    pub(crate) server: Endpoint,
    pub(crate) key_name: KeyName,
    pub(crate) algorithm: Algorithm,
    key_file: SecretFile,
}

impl natpunch_plugin::Settings for Settings {
    const PLUGIN: &'static str = "dns";
    const ABOUT: &'static str = "records in a DNS zone, and addresses written there";
    const ABILITIES: Abilities = Abilities {
        records: true,
        ..Abilities::NONE
    };
    type Instance = Records;

    fn check(self) -> Result<Records, Vec<Flaw>> {
        let zone = self.zone.parse::<Zone>().map_err(|problem| Flaw {
            key: "zone",
            problem: problem.to_owned(),
            expected: "expected a domain name",
            help: "write it like \"natpunch.example.org\"".to_owned(),
        });
        let servers = check_servers(&self.name_servers);
        let mut flaws = check_stun(&self.stun);
        let primary = Primary::check(&self, &mut flaws);
        match (zone, servers) {
            (Ok(zone), Ok(servers)) if flaws.is_empty() => Ok(Records {
                zone,
                servers,
                primary,
                stun: self.stun,
            }),
            (zone, servers) => Err([zone.err(), servers.err()]
                .into_iter()
                .flatten()
                .chain(flaws)
                .collect()),
        }
    }
}

/// The name servers of a section.
fn check_servers(listed: &[String]) -> Result<Vec<SocketAddr>, Flaw> {
    let flaw = |problem: String, help: &str| Flaw {
        key: "name_servers",
        problem,
        expected: "expected IP addresses of name servers",
        help: help.to_owned(),
    };
    if listed.len() > MOST_SERVERS {
        return Err(flaw(
            format!("these are {} servers", listed.len()),
            "write at most 4: they are asked one after the other",
        ));
    }
    let server = |text: &String| {
        let plain = text
            .parse::<IpAddr>()
            .map(|ip| SocketAddr::from((ip, PORT)));
        let address = plain.ok().or_else(|| text.parse().ok());
        address
            .filter(|address| address.port() != 0 && !address.ip().is_unspecified())
            .ok_or_else(|| {
                flaw(
                    "one of them is not an IP address".to_owned(),
                    "write it like \"192.0.2.53\" or \"[2001:db8::53]:53\": a name would need \
                     another server that knows it",
                )
            })
    };
    listed.iter().map(server).collect()
}

impl Primary {
    /// The three keys that belong together.
    fn check(settings: &Settings, flaws: &mut Vec<Flaw>) -> Option<Self> {
        let algorithm = check_algorithm(&settings.algorithm);
        let key_file = settings.key_file.clone();
        let key_file = key_file.map(|path| SecretFile::new(KEY_FILE, path));
        let key_name = settings.key_name.as_ref().map(|name| {
            name.parse::<KeyName>().map_err(|problem| Flaw {
                key: "key_name",
                problem: problem.to_owned(),
                expected: "expected the name of a TSIG key",
                help: "write the name that the key has on the server, such as \"natpunch\""
                    .to_owned(),
            })
        });
        let server = settings.update_server.as_ref().map(|text| {
            let with_port = format!("{text}:{PORT}");
            let named = with_port.parse::<Endpoint>().ok();
            let ip = text.parse::<IpAddr>().ok();
            let by_address = ip.map(|ip| Endpoint {
                host: ip.to_string(),
                port: PORT,
            });
            by_address
                .or(named)
                .map_or_else(|| check_server("update_server", text), Ok)
        });
        // In the order in which they are missed.
        let there = [
            ("update_server", server.is_some()),
            ("key_name", key_name.is_some()),
            (KEY_FILE, key_file.is_some()),
        ];
        let written = there.iter().find(|(_, is_there)| *is_there);
        let missing = there.iter().find(|(_, is_there)| !*is_there);
        if let (Some((key, _)), Some((missing, _))) = (written, missing) {
            flaws.push(Flaw {
                // Where it belongs; or where it stands, if it is there and no text.
                key: missing,
                problem: format!("it is missing beside `{key}`"),
                expected: "expected `update_server`, `key_name` and `key_file`, or none of them",
                help: format!("add {missing} = \"…\": an update is signed with a TSIG key"),
            });
        }
        match (server, key_name, key_file, algorithm) {
            (Some(Ok(server)), Some(Ok(key_name)), Some(Ok(key_file)), Ok(algorithm)) => {
                Some(Self {
                    server,
                    key_name,
                    algorithm,
                    key_file,
                })
            }
            (server, key_name, key_file, algorithm) => {
                let found = [
                    server.and_then(Result::err),
                    key_name.and_then(Result::err),
                    key_file.and_then(Result::err),
                    algorithm.err(),
                ];
                flaws.extend(found.into_iter().flatten());
                None
            }
        }
    }
}

fn check_algorithm(text: &str) -> Result<Algorithm, Flaw> {
    match text {
        "hmac-sha256" => Ok(Algorithm::Sha256),
        "hmac-sha384" => Ok(Algorithm::Sha384),
        "hmac-sha512" => Ok(Algorithm::Sha512),
        // RFC 8945, table 3: MD5 and SHA-1 are not to be used.
        _ => Err(Flaw {
            key: "algorithm",
            problem: "this is no algorithm of TSIG that natpunch uses".to_owned(),
            expected: "expected hmac-sha256, hmac-sha384 or hmac-sha512",
            help: "write the algorithm that the key has on the server, best \"hmac-sha256\""
                .to_owned(),
        }),
    }
}

impl Instance for Records {
    fn describe(&self) -> Description {
        let primary = self.primary.as_ref();
        Description {
            abilities: <Settings as natpunch_plugin::Settings>::ABILITIES,
            finds_peers: true,
            servers: primary
                .map(|primary| primary.server.to_string())
                .into_iter()
                .collect(),
            stun: self.stun.clone(),
            secrets: primary
                .map(|primary| primary.key_file.clone())
                .into_iter()
                .collect(),
            ..Description::default()
        }
    }
}

impl Runs for Records {
    fn plugin(&self, secrets: &Secrets) -> Box<dyn Discovery> {
        Box::new(Plugin::new(self.clone(), secrets.get(KEY_FILE)))
    }
}

#[cfg(test)]
mod tests {
    use natpunch_plugin::Settings as _;

    use super::*;

    fn settings() -> Settings {
        Settings {
            zone: "natpunch.example.org".to_owned(),
            name_servers: vec![],
            update_server: Some("ns1.example.org".to_owned()),
            key_name: Some("natpunch".to_owned()),
            key_file: Some("/etc/natpunch/dns.key".into()),
            algorithm: default_algorithm(),
            stun: vec![],
        }
    }

    fn flaws(settings: Settings) -> Vec<(&'static str, String)> {
        let flaws = settings.check().unwrap_err().into_iter();
        flaws.map(|flaw| (flaw.key, flaw.problem)).collect()
    }

    #[test]
    fn a_server_without_a_port_has_that_of_dns() {
        let listed = ["192.0.2.53", "2001:db8::53", "[2001:db8::53]:5353"];
        let with_servers = Settings {
            name_servers: listed.map(str::to_owned).into(),
            ..settings()
        };
        let addresses: Vec<String> = with_servers
            .check()
            .unwrap()
            .servers
            .iter()
            .map(SocketAddr::to_string)
            .collect();
        let wanted = ["192.0.2.53:53", "[2001:db8::53]:53", "[2001:db8::53]:5353"];
        assert_eq!(addresses, wanted);
        for (text, wanted) in [
            ("ns1.example.org", "ns1.example.org:53"),
            ("ns1.example.org:5353", "ns1.example.org:5353"),
            ("192.0.2.1", "192.0.2.1:53"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]:54", "[2001:db8::1]:54"),
        ] {
            let one = Settings {
                update_server: Some(text.to_owned()),
                ..settings()
            };
            let primary = one.check().unwrap().primary.unwrap();
            assert_eq!(primary.server.to_string(), wanted);
        }
    }

    #[test]
    fn a_node_without_an_update_server_reads_and_has_no_secret() {
        let reader = Settings {
            update_server: None,
            key_name: None,
            key_file: None,
            ..settings()
        };
        let records = reader.check().unwrap();
        assert!(records.primary.is_none() && records.describe().secrets.is_empty());
    }

    #[test]
    fn what_belongs_together_is_written_together() {
        let without_name = Settings {
            key_name: None,
            ..settings()
        };
        let (key, problem) = flaws(without_name).remove(0);
        assert_eq!(key, "key_name");
        assert!(
            problem.contains("missing beside `update_server`"),
            "{problem}"
        );
        let without_server = Settings {
            update_server: None,
            ..settings()
        };
        assert_eq!(flaws(without_server)[0].0, "update_server");
    }

    #[test]
    fn each_wrong_setting_is_named() {
        let wrong = Settings {
            zone: "a..b".to_owned(),
            name_servers: vec!["ns1.example.org".to_owned()],
            algorithm: "hmac-md5".to_owned(),
            stun: vec!["nowhere".to_owned()],
            key_name: Some("a b".to_owned()),
            ..settings()
        };
        let keys: Vec<_> = flaws(wrong).into_iter().map(|(key, _)| key).collect();
        assert_eq!(
            keys,
            ["zone", "name_servers", "stun", "key_name", "algorithm"]
        );
    }
}
