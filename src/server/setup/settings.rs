//! What `natpunch serve` was asked to do: a TOML file, and flags over it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32, NonZeroU64, NonZeroUsize};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use natpunch_redis::{Address, AddressError, Tls};
use natpunch_rendezvous::relay;
use natpunch_rendezvous::server::Limits;
use natpunch_types::{Help, PeerKey};
use serde::Deserialize;

use crate::cli::args::ServeArgs;
use crate::server::streams::tls::CertificateFiles;

/// An old protocol that the server can speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compat {
    /// The rendezvous of natpunch-go; also natpunch's own over UDP.
    NatpunchGo,
    /// WireGuard's example: no authentication of any kind.
    NatHolePunching,
}

impl Compat {
    const ALL: [(&'static str, Self); 2] = [
        ("natpunch-go", Self::NatpunchGo),
        ("nat-hole-punching", Self::NatHolePunching),
    ];
}

impl FromStr for Compat {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, found)) = Self::ALL.into_iter().find(|(name, _)| *name == text) {
            return Ok(found);
        }
        let near = Self::ALL
            .into_iter()
            .find(|(name, _)| strsim::damerau_levenshtein(name, text) <= 4);
        Err(match near {
            Some((name, _)) => format!("unknown protocol `{text}`; did you mean `{name}`?"),
            None => {
                format!("unknown protocol `{text}`; known are natpunch-go and nat-hole-punching")
            }
        })
    }
}

impl<'de> Deserialize<'de> for Compat {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// What to serve, at which addresses, and with which keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen for UDP: STUN and the rendezvous protocols. May be empty if `http` is not.
    pub listen: Vec<SocketAddr>,
    /// A second port of the same addresses, by which nodes learn how their NATs map and filter.
    pub alternate_port: AlternatePort,
    /// Threads that serve UDP; `None`: one for each core.
    pub workers: Option<NonZeroUsize>,
    /// Whether STUN requests are answered that are shorter than their answers, as those of stock
    /// clients are.
    pub stun_unpadded: bool,
    /// The private key; made on first start.
    pub key_file: PathBuf,
    /// The clients that natpunch's own rendezvous admits; `None`: the server does not speak it.
    pub rendezvous: Option<Rendezvous>,
    /// The relay, if there is one: only beside natpunch's own rendezvous.
    pub relay: Option<RelaySettings>,
    /// The old rendezvous protocols spoken on every UDP socket.
    pub compat: Vec<Compat>,
    /// The keys that may register by the old rendezvous protocols; `None`: any, up to a bound.
    pub allowed_keys: Option<BTreeSet<PeerKey>>,
    /// What natpunch's own rendezvous may use.
    pub limits: Limits,
    /// The HTTP record store, if offered.
    pub http: Option<HttpSettings>,
    /// Streams for nodes that no UDP reaches: only beside natpunch's own rendezvous.
    pub streams: StreamSettings,
    /// The store that it shares with other processes: only beside natpunch's own rendezvous.
    pub store: Option<StoreSettings>,
    /// Where to listen for collectors of metrics.
    pub metrics: Option<SocketAddr>,
    /// The socket that `natpunch serve status` asks; `None`:
    /// [the usual place](crate::server::control_paths), if it can be had.
    pub control: Option<PathBuf>,
}

/// Which second port is served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AlternatePort {
    /// That after the first one, if it is free.
    #[default]
    Next,
    /// This one.
    Number(u16),
    /// None.
    Off,
}

impl<'de> Deserialize<'de> for AlternatePort {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected a port from 1 to 65535, or false for none"
        )]
        enum Written {
            Port(std::num::NonZeroU16),
            Switch(bool),
        }
        Ok(match Written::deserialize(deserializer)? {
            Written::Port(port) => Self::Number(port.get()),
            Written::Switch(true) => Self::Next,
            Written::Switch(false) => Self::Off,
        })
    }
}

/// The clients that natpunch's own rendezvous admits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendezvous {
    /// The server's next private key, while clients change over; made if the file does not exist.
    pub next_key_file: Option<PathBuf>,
    /// The files of the admission secrets of which a client must know one. None: no secret is asked
    /// for.
    pub secret_files: Vec<PathBuf>,
    /// The identities that may register, if there is a list.
    pub allowed: Option<BTreeSet<PeerKey>>,
}

/// The relay's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelaySettings {
    /// Its UDP ports.
    pub ports: RelayPorts,
    /// What each pair may use.
    pub limits: relay::Limits,
    /// Bytes that all pairs together may pass in a second, counted as those of each.
    pub total_bytes_per_second: u64,
}

impl Default for RelaySettings {
    fn default() -> Self {
        Self {
            ports: RelayPorts::default(),
            limits: relay::Limits::default(),
            total_bytes_per_second: DEFAULT_RELAY_BYTES_PER_SECOND,
        }
    }
}

/// Which UDP ports the relay has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RelayPorts {
    /// 32 after the server's first one, but those that it has otherwise.
    #[default]
    Next,
    /// 32 that are free: where the server asks for any port itself.
    Any,
    /// These.
    Range(RangeInclusive<u16>),
}

impl FromStr for RelayPorts {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse::<NonZeroU16>().ok().map(NonZeroU16::get);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = number(first)
            .zip(number(last))
            .filter(|(first, last)| first <= last);
        let (first, last) = range.ok_or_else(|| {
            format!(
                "`{text}` is not a range of ports; it is written FIRST-LAST, such as 51901-51932"
            )
        })?;
        if usize::from(last - first) >= MAX_RELAY_PORTS {
            return Err(format!("`{text}` are more than {MAX_RELAY_PORTS} ports"));
        }
        Ok(Self::Range(first..=last))
    }
}

impl<'de> Deserialize<'de> for RelayPorts {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// The HTTP record store's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// Where to listen for TCP.
    pub listen: SocketAddr,
    /// Reverse proxies whose last `X-Forwarded-For` element is believed to be the client, for
    /// quotas.
    pub trusted_proxies: Vec<IpAddr>,
    /// Connections at a time, from all clients together; fewer if the process may not have so many
    /// open files.
    pub max_connections: usize,
}

/// Where nodes come in that no UDP reaches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamSettings {
    /// By TLS, with a certificate of this server.
    pub tls: Option<(SocketAddr, CertificateFiles)>,
    /// In the clear, from a reverse proxy.
    pub websocket: Option<SocketAddr>,
    /// Reverse proxies whose last `X-Forwarded-For` element is believed to be the client.
    pub trusted_proxies: Vec<IpAddr>,
    /// Connections at a time at each of these addresses.
    pub max_connections: usize,
}

/// The store that several processes share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// The server of Redis or Valkey.
    pub address: Address,
    /// Whose certificates are believed, if it is reached by TLS.
    pub tls: Option<Tls>,
    /// The secret under which the processes seal what is there.
    pub secret_file: PathBuf,
    /// The user that the processes are there, and the file of its password.
    pub user: String,
    /// Without one nobody logs in.
    pub password_file: Option<PathBuf>,
    /// What the names of all keys and channels begin with.
    pub prefix: String,
    /// Whether clients reach the relay ports of all processes at one address.
    pub one_address: bool,
}

/// The `[store]` section, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileStore {
    url: Option<String>,
    secret_file: Option<PathBuf>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    tls_ca_file: Option<PathBuf>,
    prefix: Option<String>,
    #[serde(default)]
    one_address: bool,
}

/// Long polls of some thousand nodes; each takes an open file and some 20 KiB.
const DEFAULT_HTTP_CONNECTIONS: usize = 4_096;
/// A gigabit a second: what the network of most servers carries.
const DEFAULT_RELAY_BYTES_PER_SECOND: u64 = 125_000_000;
/// Each has a socket on every address: far below the usual hard limit of open files.
const MAX_RELAY_PORTS: usize = 1_024;

/// The file, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    listen: Vec<SocketAddr>,
    #[serde(default)]
    alternate_port: AlternatePort,
    workers: Option<NonZeroUsize>,
    #[serde(default)]
    stun_unpadded: bool,
    key_file: Option<PathBuf>,
    compat: Option<Vec<Compat>>,
    allowed_keys: Option<BTreeSet<PeerKey>>,
    #[serde(default)]
    open: bool,
    #[serde(default)]
    admission_secret_files: Vec<PathBuf>,
    allowed_identities: Option<BTreeSet<PeerKey>>,
    next_key_file: Option<PathBuf>,
    relay: Option<bool>,
    relay_ports: Option<RelayPorts>,
    relay_bytes_per_second: Option<u64>,
    relay_bytes_per_hour: Option<u64>,
    relay_total_bytes_per_second: Option<u64>,
    relay_modified_wireguard: Option<bool>,
    http: Option<SocketAddr>,
    #[serde(default)]
    http_trusted_proxies: Vec<IpAddr>,
    http_max_connections: Option<usize>,
    tls: Option<SocketAddr>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    websocket: Option<SocketAddr>,
    websocket_trusted_proxies: Option<Vec<IpAddr>>,
    stream_max_connections: Option<usize>,
    metrics: Option<SocketAddr>,
    #[serde(default)]
    metrics_public: bool,
    control: Option<PathBuf>,
    store: Option<FileStore>,
    #[serde(default)]
    limits: FileLimits,
}

/// The `[limits]` section, as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileLimits {
    sessions: usize,
    sessions_per_network: usize,
    mailboxes: usize,
    mailboxes_per_client: usize,
    mailboxes_per_network: usize,
    bytes: usize,
    relays: usize,
    relays_per_client: usize,
    relays_per_network: usize,
    messages_per_second: u32,
    hellos_per_second: NonZeroU32,
    client_bytes_per_second: NonZeroU64,
    network_bytes_per_second: NonZeroU64,
}

impl Default for FileLimits {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            sessions: limits.sessions,
            sessions_per_network: limits.sessions_per_network,
            mailboxes: limits.mailboxes,
            mailboxes_per_client: limits.mailboxes_per_client,
            mailboxes_per_network: limits.mailboxes_per_network,
            bytes: limits.bytes,
            relays: limits.relays,
            relays_per_client: limits.relays_per_client,
            relays_per_network: limits.relays_per_network,
            messages_per_second: limits.messages_per_second,
            hellos_per_second: NonZeroU32::new(limits.hellos_per_second).unwrap_or(NonZeroU32::MIN),
            client_bytes_per_second: NonZeroU64::new(limits.client_bytes_per_second)
                .unwrap_or(NonZeroU64::MIN),
            network_bytes_per_second: NonZeroU64::new(limits.network_bytes_per_second)
                .unwrap_or(NonZeroU64::MIN),
        }
    }
}

impl From<FileLimits> for Limits {
    fn from(file: FileLimits) -> Self {
        Self {
            sessions: file.sessions,
            sessions_per_network: file.sessions_per_network,
            mailboxes: file.mailboxes,
            mailboxes_per_client: file.mailboxes_per_client,
            mailboxes_per_network: file.mailboxes_per_network,
            bytes: file.bytes,
            relays: file.relays,
            relays_per_client: file.relays_per_client,
            relays_per_network: file.relays_per_network,
            messages_per_second: file.messages_per_second,
            hellos_per_second: file.hellos_per_second.get(),
            client_bytes_per_second: file.client_bytes_per_second.get(),
            network_bytes_per_second: file.network_bytes_per_second.get(),
        }
    }
}

/// Why there is nothing to serve.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file can't be read.
    #[error("{}: can't read the server's settings: {source}", path.display())]
    Unreadable {
        /// The file of `--config`.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file has an error; the text has line, column and the line itself.
    #[error("{}: {text}", path.display())]
    File {
        /// The file of `--config`.
        path: PathBuf,
        /// What is wrong and where.
        text: String,
    },
    /// A flag has a bad value.
    #[error("--compat: {0}")]
    Compat(String),
    /// No key file named.
    #[error("no key file")]
    NoKeyFile,
    /// Open, and not.
    #[error(
        "the server can't be open and ask for an admission secret or have a list of identities"
    )]
    OpenAndClosed,
    /// No client may register.
    #[error("the settings do not say which nodes the server admits")]
    ForNobody,
    /// A key for nobody.
    #[error("next_key_file is of natpunch's own rendezvous, which is not spoken")]
    NextKeyForNobody,
    /// Relay settings without a relay.
    #[error("the relay is of natpunch's own rendezvous, which is not spoken")]
    RelayForNobody,
    /// Streams without a rendezvous in them.
    #[error("tls and websocket are of natpunch's own rendezvous, which is not spoken")]
    StreamsForNobody,
    /// TLS needs both files.
    #[error("tls needs a certificate and its key")]
    TlsWithoutFiles,
    /// A certificate for nothing.
    #[error("there is a certificate or its key, and no address to serve TLS at")]
    CertificateForNothing,
    /// A store without a rendezvous that would use it.
    #[error("the store is of natpunch's own rendezvous, which is not spoken")]
    StoreForNobody,
    /// There is no store at this address.
    #[error("the store's url: {problem}")]
    Store {
        /// What is wrong.
        problem: String,
        /// What to write.
        help: String,
    },
    /// What is in the store must be sealed.
    #[error("the store needs a secret")]
    StoreWithoutSecret,
    /// A flag has a bad value.
    #[error("--relay-ports: {0}")]
    RelayPorts(String),
    /// Metrics for everybody, by mistake.
    #[error("metrics = \"{0}\" can be read by others than this host")]
    PublicMetrics(SocketAddr),
    /// Nothing to listen on.
    #[error("nothing to serve")]
    NothingToServe,
    /// The same address twice.
    #[error("{0} is given twice")]
    Twice(SocketAddr),
}

impl Help for SettingsError {
    fn helps(&self) -> Vec<String> {
        if let Self::Store { help, .. } = self {
            return vec![help.clone()];
        }
        let helps: &[&str] = match self {
            Self::NoKeyFile => {
                &["--key-file FILE (or key_file in the --config file); it is made on first start"]
            }
            Self::OpenAndClosed => &["take one away"],
            Self::ForNobody => &[
                "--admission-secret-file FILE (made by `natpunch keygen`) admits who knows that \
                 secret, allowed_identities in the --config file these nodes, --open everybody",
                "for clients of natpunch-go: --compat natpunch-go, or allowed_keys in the --config \
                 file",
            ],
            Self::TlsWithoutFiles => &[
                "--tls-cert FILE and --tls-key FILE (or tls_cert and tls_key in the --config file)",
            ],
            Self::CertificateForNothing => {
                &["--tls 0.0.0.0:443 (or tls in the --config file), or take it away"]
            }
            Self::StoreWithoutSecret => &[
                "--store-secret-file FILE (or secret_file in [store] of the --config file): the same \
                 file for each process; `umask 077; natpunch keygen > FILE` makes it",
            ],
            Self::NextKeyForNobody
            | Self::RelayForNobody
            | Self::StreamsForNobody
            | Self::StoreForNobody => &[
                "say who may register: admission_secret_files, allowed_identities, or open = true",
            ],
            Self::PublicMetrics(_) => {
                &["use a loopback address, or say metrics_public = true if that is meant"]
            }
            Self::NothingToServe => &[
                "--listen 0.0.0.0:51900 --listen '[::]:51900' for UDP, --http ADDR:PORT for records",
            ],
            Self::Twice(_) => &["repeat --listen for different addresses only"],
            // These say what is expected with what is wrong.
            Self::Unreadable { .. }
            | Self::File { .. }
            | Self::Compat(_)
            | Self::RelayPorts(_)
            | Self::Store { .. } => &[],
        };
        helps.iter().map(|help| (*help).to_owned()).collect()
    }
}

impl Settings {
    /// The settings of a command line: those of its `--config` file, each overridden by its flag.
    ///
    /// # Errors
    /// If the file is unreadable or wrong, a flag has a bad value, or there is nothing to serve.
    pub fn from_args(args: &ServeArgs) -> Result<Self, SettingsError> {
        let file = match &args.config {
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).map_err(|source| SettingsError::Unreadable {
                        path: path.clone(),
                        source,
                    })?;
                File::parse(path, &text)?
            }
            None => File::default(),
        };
        let listen = if args.listen.is_empty() {
            file.listen.clone()
        } else {
            args.listen.clone()
        };
        let secret_files = if args.admission_secret_file.is_empty() {
            file.admission_secret_files.clone()
        } else {
            args.admission_secret_file.clone()
        };
        let open = args.open || file.open;
        let closed = !secret_files.is_empty() || file.allowed_identities.is_some();
        if open && closed {
            return Err(SettingsError::OpenAndClosed);
        }
        let rendezvous = (open || closed).then(|| Rendezvous {
            next_key_file: file.next_key_file.clone(),
            secret_files,
            allowed: file.allowed_identities.clone(),
        });
        if rendezvous.is_none() && file.next_key_file.is_some() {
            return Err(SettingsError::NextKeyForNobody);
        }
        if rendezvous.is_none() && file.wants_relay(args) {
            return Err(SettingsError::RelayForNobody);
        }
        let relay = file.relay_settings(args)?.filter(|_| rendezvous.is_some());
        let compat = if !args.compat.is_empty() {
            let names = args
                .compat
                .iter()
                .map(|name| name.trim())
                .filter(|name| !name.is_empty());
            names
                .map(str::parse)
                .collect::<Result<_, _>>()
                .map_err(SettingsError::Compat)?
        } else if let Some(named) = file.compat.clone() {
            named
        } else if rendezvous.is_some() || listen.is_empty() {
            // A server with natpunch's own protocol does not speak the old one unasked.
            vec![]
        } else if file.allowed_keys.is_some() {
            vec![Compat::NatpunchGo]
        } else {
            return Err(SettingsError::ForNobody);
        };
        let http = args.http.or(file.http).map(|listen| HttpSettings {
            listen,
            trusted_proxies: file
                .http_trusted_proxies
                .iter()
                .copied()
                .map(natpunch_types::canonical_ip)
                .collect(),
            max_connections: file
                .http_max_connections
                .unwrap_or(DEFAULT_HTTP_CONNECTIONS)
                .max(1),
        });
        let streams = file.stream_settings(args)?;
        if rendezvous.is_none() && (streams.tls.is_some() || streams.websocket.is_some()) {
            return Err(SettingsError::StreamsForNobody);
        }
        let store = file.store_settings(args)?;
        if rendezvous.is_none() && store.is_some() {
            return Err(SettingsError::StoreForNobody);
        }
        if listen.is_empty() && http.is_none() {
            return Err(SettingsError::NothingToServe);
        }
        // Port 0 asks for a free port each time.
        let mut seen = BTreeSet::new();
        if let Some(twice) = listen
            .iter()
            .find(|address| address.port() != 0 && !seen.insert(**address))
        {
            return Err(SettingsError::Twice(*twice));
        }
        if let Some(metrics) = file
            .metrics
            .filter(|metrics| !metrics.ip().is_loopback() && !file.metrics_public)
        {
            return Err(SettingsError::PublicMetrics(metrics));
        }
        let key_file = args
            .key_file
            .clone()
            .or(file.key_file)
            .ok_or(SettingsError::NoKeyFile)?;
        Ok(Self {
            listen,
            alternate_port: file.alternate_port,
            workers: file.workers,
            stun_unpadded: file.stun_unpadded,
            key_file,
            rendezvous,
            relay,
            compat,
            allowed_keys: file.allowed_keys,
            limits: file.limits.into(),
            http,
            streams,
            store,
            metrics: file.metrics,
            control: file.control,
        })
    }

    /// What is different in `new` and can't be changed while the server runs.
    pub(in crate::server) fn differences_for_restart(&self, new: &Self) -> Vec<String> {
        let speaks_own = |settings: &Self| settings.rendezvous.is_some();
        let differences = [
            ("listen", self.listen != new.listen),
            ("alternate_port", self.alternate_port != new.alternate_port),
            ("workers", self.workers != new.workers),
            ("stun_unpadded", self.stun_unpadded != new.stun_unpadded),
            (
                "whether natpunch's own rendezvous is spoken",
                speaks_own(self) != speaks_own(new),
            ),
            ("relay", self.relay != new.relay),
            ("compat", self.compat != new.compat),
            ("http", self.http != new.http),
            ("tls or websocket", self.streams != new.streams),
            ("store", self.store != new.store),
            ("metrics", self.metrics != new.metrics),
            ("control", self.control != new.control),
        ];
        differences
            .into_iter()
            .filter(|(_, differs)| *differs)
            .map(|(name, _)| name.to_owned())
            .collect()
    }
}

impl File {
    /// Whether anything is said of a relay.
    fn wants_relay(&self, args: &ServeArgs) -> bool {
        let limits = [
            self.relay_bytes_per_second,
            self.relay_bytes_per_hour,
            self.relay_total_bytes_per_second,
        ];
        self.relay == Some(true)
            || args.relay_ports.is_some()
            || self.relay_ports.is_some()
            || self.relay_modified_wireguard.is_some()
            || limits.iter().any(Option::is_some)
    }

    /// The relay's settings, unless there is to be none.
    fn relay_settings(&self, args: &ServeArgs) -> Result<Option<RelaySettings>, SettingsError> {
        if args.no_relay || self.relay == Some(false) {
            return Ok(None);
        }
        let any = args
            .listen
            .first()
            .or(self.listen.first())
            .is_some_and(|address| address.port() == 0);
        let default = if any {
            RelayPorts::Any
        } else {
            RelayPorts::Next
        };
        let flag = args
            .relay_ports
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(SettingsError::RelayPorts)?;
        let limits = relay::Limits::default();
        Ok(Some(RelaySettings {
            ports: flag.or_else(|| self.relay_ports.clone()).unwrap_or(default),
            limits: relay::Limits {
                bytes_per_second: self
                    .relay_bytes_per_second
                    .unwrap_or(limits.bytes_per_second),
                bytes_per_hour: self.relay_bytes_per_hour.unwrap_or(limits.bytes_per_hour),
                any_payload: self.relay_modified_wireguard.unwrap_or(limits.any_payload),
            },
            total_bytes_per_second: self
                .relay_total_bytes_per_second
                .unwrap_or(DEFAULT_RELAY_BYTES_PER_SECOND),
        }))
    }

    /// Where nodes come in that no UDP reaches.
    fn stream_settings(&self, args: &ServeArgs) -> Result<StreamSettings, SettingsError> {
        let either = |flag: &Option<PathBuf>, key: &Option<PathBuf>| flag.clone().or(key.clone());
        let certificate = either(&args.tls_cert, &self.tls_cert);
        let key = either(&args.tls_key, &self.tls_key);
        let tls = match (args.tls.or(self.tls), certificate, key) {
            (None, None, None) => None,
            (None, _, _) => return Err(SettingsError::CertificateForNothing),
            (Some(address), Some(certificate), Some(key)) => {
                Some((address, CertificateFiles { certificate, key }))
            }
            (Some(_), _, _) => return Err(SettingsError::TlsWithoutFiles),
        };
        let proxies = self.websocket_trusted_proxies.clone();
        let loopback = || {
            vec![
                IpAddr::from([127, 0, 0, 1]),
                IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
            ]
        };
        let proxies = proxies.unwrap_or_else(loopback);
        Ok(StreamSettings {
            tls,
            websocket: args.websocket.or(self.websocket),
            trusted_proxies: proxies
                .into_iter()
                .map(natpunch_types::canonical_ip)
                .collect(),
            max_connections: self
                .stream_max_connections
                .unwrap_or(DEFAULT_HTTP_CONNECTIONS)
                .max(1),
        })
    }

    /// The store, if one is shared.
    fn store_settings(&self, args: &ServeArgs) -> Result<Option<StoreSettings>, SettingsError> {
        let none = FileStore::default();
        let file = self.store.as_ref().unwrap_or(&none);
        let Some(url) = args.store.as_ref().or(file.url.as_ref()) else {
            let is_asked = self.store.is_some() || args.store_secret_file.is_some();
            let problem = "there is none".to_owned();
            let help = "--store URL (or url in [store] of the --config file), such as \
                        redis://127.0.0.1:6379"
                .to_owned();
            return match is_asked {
                true => Err(SettingsError::Store { problem, help }),
                false => Ok(None),
            };
        };
        let address = Address::parse(url)
            .map_err(|AddressError { problem, help }| SettingsError::Store { problem, help })?;
        let secret_file = args.store_secret_file.clone().or(file.secret_file.clone());
        let secret_file = secret_file.ok_or(SettingsError::StoreWithoutSecret)?;
        let (ca_file, is_encrypted) = (file.tls_ca_file.clone(), address.is_encrypted);
        let or = |name: &Option<String>, default: &str| {
            name.clone().unwrap_or_else(|| default.to_owned())
        };
        Ok(Some(StoreSettings {
            address,
            tls: is_encrypted.then_some(Tls { ca_file }),
            secret_file,
            user: or(&file.user, "default"),
            password_file: file.password_file.clone(),
            prefix: or(&file.prefix, "natpunch-serve:"),
            one_address: file.one_address,
        }))
    }

    fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        toml::from_str(text).map_err(|error| SettingsError::File {
            path: path.to_owned(),
            text: error.to_string().trim_end().to_owned(),
        })
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
