//! `natpunch serve`: the UDP and HTTP shell around the pure protocol servers.
//!
//! The server introduces nodes and tells them their address; it never decides anything about a
//! mesh. It needs no privileges, keeps nothing on disk but its key, and holds bounded memory
//! whatever is sent to it. Each core has a [`worker`] with sockets of its own. Every datagram is
//! parsed by a pure server (`protocols`) and answered in place or dropped in silence; what is
//! dropped is counted, and the counts are logged at most every ten seconds.

mod cluster;
pub mod embedded;
mod operation;
mod records;
mod relay;
mod setup;
mod streams;
mod udp;

use std::io::{self, Write};
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{Help, PresharedKey, SecretKey};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub(crate) use operation::metrics::serve as serve_metrics;
pub use operation::status;
pub use setup::settings;

use operation::{counters, metrics, monitor, reload};
use records::{http, rate, store};
use setup::files;
use streams::listener::{self, Listener};
use streams::tls::Tls;
use udp::{handshakes, heartbeats, protocols, sockets, threads, worker};

use counters::{Counters, Line};
use monitor::Monitor;
use protocols::{Protocols, RendezvousKeys};
use reload::Reloader;
use settings::Settings;
use sockets::Sockets;
use threads::Threads;
use worker::Shared;

use crate::cli::args::ServeArgs;
use crate::config::{ConfigErrors, new_key_file, read_key_file, read_password_file};
use crate::control;

/// Threads of the runtime, which serves records, metrics and the control socket. UDP has threads of
/// its own, one or two for each core.
const RUNTIME_THREADS: usize = 2;
/// What was counted is looked at this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The settings are wrong.
    #[error(transparent)]
    Settings(#[from] settings::SettingsError),
    /// There is no key to start with.
    #[error(transparent)]
    Key(#[from] ConfigErrors),
    /// An address can't be listened on.
    #[error("can't listen on {protocol} {address}: {source}")]
    Listen {
        /// UDP or TCP.
        protocol: &'static str,
        /// The address.
        address: SocketAddr,
        /// The error of the system.
        source: io::Error,
    },
    /// The control socket can't be had.
    #[error("can't make the control socket {}: {source}", path.display())]
    Control {
        /// The socket.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The certificate or its key can't be used.
    #[error("can't serve TLS: {0}")]
    Certificate(String),
    /// A thread has ended that never should.
    #[error("a thread has ended by itself, which is a bug in natpunch; the log says where")]
    ThreadLost,
    /// The runtime or its signal handlers can't be set up.
    #[error("can't start: {0}")]
    Runtime(#[from] io::Error),
}

impl Help for ServeError {
    fn helps(&self) -> Vec<String> {
        let help = match self {
            Self::Settings(error) => return error.helps(),
            Self::Listen { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => {
                    "another process listens there; `ss -lunp` and `ss -ltnp` show which"
                }
                io::ErrorKind::AddrNotAvailable => {
                    "this host has no such address; 0.0.0.0 and [::] mean all"
                }
                io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
                _ => return Vec::new(),
            },
            // Errors of key files say it themselves; of the rest nothing is known to help.
            Self::Certificate(_) => {
                "--tls-cert names a file in PEM with the certificate and its chain, --tls-key one \
                 with its key, which only the server's user and root may read"
            }
            Self::Key(_) | Self::Control { .. } | Self::ThreadLost | Self::Runtime(_) => {
                return Vec::new();
            }
        };
        vec![help.to_owned()]
    }
}

/// Runs the server of a command line until SIGTERM or SIGINT. `out` gets the public key, then a
/// line for each address listened on.
///
/// # Errors
/// If the server can't start. Once it runs, it goes on.
pub fn run(args: &ServeArgs, out: &mut dyn Write) -> Result<(), ServeError> {
    let settings = Settings::from_args(args)?;
    files::raise_limit();
    let (key, _) = new_key_file(&settings.key_file)?;
    let public_key = key.public_key();
    let rendezvous = match &settings.rendezvous {
        Some(rendezvous) => Some(RendezvousKeys {
            next: next_key(rendezvous, None)?,
            secrets: admission_secrets(rendezvous)?,
        }),
        None => None,
    };
    let workers = settings
        .workers
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get);
    let sockets = Sockets::bind(&settings.listen, settings.alternate_port, workers, 0)?;
    let next = rendezvous.as_ref().and_then(|keys| keys.next.clone());
    if let Some(next) = &next {
        tracing::info!(public_key = %next.public_key(), "the next key");
    }
    let keys: Vec<SecretKey> = std::iter::once(key.clone()).chain(next).collect();
    let mut protocols = Protocols::new(&settings, key, rendezvous, sockets.alternate_port)?;
    let wake = Arc::<cluster::Wake>::default();
    let store = match &settings.store {
        Some(store) => {
            protocols.set_store(wake.clone(), store.one_address);
            let secret = PresharedKey::from_bytes(*read_key_file(&store.secret_file)?.expose());
            let password = store.password_file.as_deref();
            let password = password.map(read_password_file).transpose()?;
            let keys = natpunch_rendezvous::cluster::Keys::new(&store.prefix, &secret);
            Some((store.clone(), password, keys, protocols::random()?))
        }
        None => None,
    };
    let relay = match &settings.relay {
        Some(relay) => Some(relay::open(&mut protocols, &sockets.addresses, relay, 0)?),
        None => None,
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()?
        .block_on(async move {
            let http = settings
                .http
                .as_ref()
                .map(|http| bind_http(http.listen))
                .transpose()?;
            let metrics = settings.metrics.map(bind_http).transpose()?;
            let streams = bind_streams(&settings.streams)?;
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let hangup = signal(SignalKind::hangup())?;
            let (calls, called) = mpsc::channel(16);
            let control = listen_control(settings.control.as_deref(), calls).await?;

            let listen: Vec<SocketAddr> = sockets
                .addresses
                .iter()
                .take(sockets.named)
                .copied()
                .collect();
            let (stop, stopped) = watch::channel(false);
            let counters = Arc::new(Counters::default());
            let alternate_port = sockets.alternate_port;
            let shared = Arc::new(Shared::new(protocols, &sockets, counters.clone(), wake)?);
            let relay_ports = relay.as_ref().and_then(relay::Relay::range);
            let outlook = store
                .as_ref()
                .map(|(store, ..)| cluster::Outlook::new(store));
            let own = sockets.of_workers.first().into_iter().flatten();
            let own = own.map(UdpSocket::try_clone).collect::<io::Result<_>>()?;
            let mut threads = Threads::start(sockets.of_workers, relay, &shared)?;
            // Said when all threads and files are had that the server needs.
            // The program that started the server may have closed the pipe; the server goes on.
            let _ = writeln!(out, "public key: {public_key}");
            for address in &listen {
                let _ = writeln!(out, "listening on udp {address}");
            }
            if let Some(port) = alternate_port {
                let _ = writeln!(out, "alternate port {port}");
            }
            if let Some(range) = &relay_ports {
                let _ = writeln!(out, "relay ports {}-{}", range.start(), range.end());
            }
            for (name, listener) in [("http", &http), ("metrics", &metrics)] {
                if let Some(listener) = listener {
                    let _ = writeln!(out, "listening on {name} {}", listener.local_addr()?);
                }
            }
            for streams in &streams {
                let name = if streams.tls.is_some() {
                    "tls"
                } else {
                    "websocket"
                };
                let _ = writeln!(
                    out,
                    "listening on {name} {}",
                    streams.listener.local_addr()?
                );
            }
            let _ = writeln!(out, "ready");
            let _ = out.flush();

            let mut serving = JoinSet::new();
            let records = settings
                .http
                .as_ref()
                .map(|http| http::App::new(http, files::for_connections(), stopped.clone()));
            if let Some((listener, app)) = http.zip(records.clone()) {
                serving.spawn(http::serve(listener, app, counters));
            }
            for streams in streams {
                serving.spawn(listener::serve(streams, shared.clone(), stopped.clone()));
            }
            // These end with the server, whatever they do.
            let mut keeping = JoinSet::new();
            keeping.spawn(keep(shared.clone()));
            keeping.spawn(feed_watchdog(shared.clone()));
            if let Some(((settings, password, keys, random), outlook)) = store.zip(outlook.clone())
            {
                let store = cluster::Store {
                    settings,
                    password,
                    keys,
                    random,
                    sockets: own,
                    shared: shared.clone(),
                    outlook,
                };
                keeping.spawn(store.run());
            }
            let relay = settings.relay.as_ref().zip(relay_ports);
            let relay = relay.map(|(relay, ports)| status::Relay {
                first_port: *ports.start(),
                last_port: *ports.end(),
                bytes_per_second: relay.limits.bytes_per_second,
                bytes_per_hour: relay.limits.bytes_per_hour,
                total_bytes_per_second: relay.total_bytes_per_second,
            });
            let reloader = Reloader::new(args.clone(), settings, keys);
            let reloads = reloader.outcome();
            let monitor = Arc::new(Monitor {
                shared: shared.clone(),
                listen,
                alternate_port,
                relay,
                http: records,
                store: outlook,
                reloads,
            });
            keeping.spawn(reloader.run(shared, hangup));
            if let Some(listener) = metrics {
                let router = metrics::router(monitor.clone());
                keeping.spawn(metrics::serve(listener, router, stopped));
            }
            keeping.spawn(async move { monitor.answer(called).await });
            let _ = sd_notify::notify(&[NotifyState::Ready]);
            tracing::info!(%public_key, "serving");

            let result = tokio::select! {
                _ = terminate.recv() => Ok(()),
                _ = interrupt.recv() => Ok(()),
                () = threads.lost() => Err(ServeError::ThreadLost),
            };
            tracing::info!("stopping");
            let _ = sd_notify::notify(&[NotifyState::Stopping]);
            let _ = stop.send(true);
            drop(control);
            threads.stop();
            while serving.join_next().await.is_some() {}
            keeping.shutdown().await;
            result
        })
}

/// Where `natpunch serve status` finds the server, by preference: in `$NATPUNCH_RUNTIME_DIR` or
/// `$RUNTIME_DIRECTORY` (systemd), else in `/run/natpunch-serve`, and where a user other than root
/// runs it, in `natpunch-serve` of `$XDG_RUNTIME_DIR`.
pub fn control_paths() -> Vec<PathBuf> {
    control_paths_in(&|name| std::env::var_os(name).map(PathBuf::from))
}

fn control_paths_in(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    const SOCKET: &str = "serve.sock";
    let named = ["NATPUNCH_RUNTIME_DIR", "RUNTIME_DIRECTORY"];
    if let Some(directory) = named.iter().find_map(|name| variable(name)) {
        return vec![directory.join(SOCKET)];
    }
    let of_user = variable("XDG_RUNTIME_DIR").map(|run| run.join("natpunch-serve"));
    std::iter::once(PathBuf::from("/run/natpunch-serve"))
        .chain(of_user)
        .map(|directory| directory.join(SOCKET))
        .collect()
}

/// Opens the control socket. A server that may not have the usual one does without; one that was
/// named must be had.
async fn listen_control(
    named: Option<&Path>,
    calls: mpsc::Sender<control::Call>,
) -> Result<Option<control::Server>, ServeError> {
    let paths = named.map_or_else(control_paths, |path| vec![path.to_owned()]);
    for path in paths {
        match control::Server::listen(&path, None, calls.clone()).await {
            Ok(server) => return Ok(Some(server)),
            Err(source) if named.is_some() => return Err(ServeError::Control { path, source }),
            Err(error) => tracing::info!(
                "`natpunch serve status` can't be answered at {}: {error}; control = PATH names another socket",
                path.display()
            ),
        }
    }
    Ok(None)
}

/// The next private key, if there is to be one. It is made if its file does not exist, unless that
/// file was in use already.
fn next_key(
    settings: &settings::Rendezvous,
    in_use: Option<&Path>,
) -> Result<Option<SecretKey>, ConfigErrors> {
    let Some(path) = &settings.next_key_file else {
        return Ok(None);
    };
    let key = match in_use == Some(path) {
        true => read_key_file(path)?,
        false => new_key_file(path)?.0,
    };
    Ok(Some(key))
}

/// Reads the admission secrets.
fn admission_secrets(settings: &settings::Rendezvous) -> Result<Vec<PresharedKey>, ConfigErrors> {
    let secrets = settings.secret_files.iter().map(|path| read_key_file(path));
    secrets
        .map(|secret| Ok(PresharedKey::from_bytes(*secret?.expose())))
        .collect()
}

/// Opens the HTTP listener; an IPv6 one takes IPv6 only, as for UDP.
fn bind_http(address: SocketAddr) -> Result<TcpListener, ServeError> {
    listen_tcp(address).map_err(|source| ServeError::Listen {
        protocol: "TCP",
        address,
        source,
    })
}

/// Opens the listeners for nodes that no UDP reaches.
fn bind_streams(settings: &settings::StreamSettings) -> Result<Vec<Listener>, ServeError> {
    let open = |address, tls| {
        Ok::<_, ServeError>(Listener {
            listener: bind_http(address)?,
            tls,
            proxies: settings.trusted_proxies.clone(),
            max_connections: settings.max_connections.min(files::for_connections()),
        })
    };
    let mut listeners = Vec::new();
    if let Some((address, certificate)) = &settings.tls {
        let tls = Tls::open(certificate.clone()).map_err(ServeError::Certificate)?;
        let mut listener = open(*address, Some(Arc::new(tls)))?;
        // Without a proxy the other end of the TLS connection is the client.
        listener.proxies.clear();
        listeners.push(listener);
    }
    if let Some(address) = settings.websocket {
        listeners.push(open(address, None)?);
    }
    Ok(listeners)
}

fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        None,
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1_024)?;
    TcpListener::from_std(socket.into())
}

/// Expires what is dead also when nothing arrives, and logs what was counted: all of it for whoever
/// looks closely, what went wrong at once, and the sum of an hour.
async fn keep(shared: Arc<Shared>) {
    let Shared {
        protocols,
        counters,
        start,
        ..
    } = &*shared;
    let mut log = counters::Log::default();
    let mut tick = tokio::time::interval(REPORT_INTERVAL);
    loop {
        tick.tick().await;
        let now = start.now();
        protocols.handle_timeout(now);
        let counts = [counters.read(), protocols.counters()].concat();
        for line in log.lines(&counts, now) {
            match line {
                Line::Fault(text) => tracing::warn!(
                    "went wrong in the last {} s: {text}; such a line comes once an hour, `natpunch serve status` \
                     counts on",
                    REPORT_INTERVAL.as_secs()
                ),
                Line::Hour(text) => tracing::info!("in the last hour: {text}"),
                Line::Lately(text) => {
                    tracing::debug!("in the last {} s: {text}", REPORT_INTERVAL.as_secs());
                }
            }
        }
    }
}

/// Tells systemd that the runtime and all threads still turn, if it asked to be told.
async fn feed_watchdog(shared: Arc<Shared>) {
    let Some(timeout) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut tick = tokio::time::interval(timeout / 3);
    loop {
        tick.tick().await;
        if shared.stuck(timeout).is_empty() {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        }
    }
}

/// Waits until the server is to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// How long to wait after an error that may last: 10 ms, doubling up to 1 s.
#[derive(Debug)]
struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(10);
    const LAST: Duration = Duration::from_secs(1);

    fn new() -> Self {
        Self(Self::FIRST)
    }

    fn reset(&mut self) {
        self.0 = Self::FIRST;
    }

    fn next(&mut self) -> Duration {
        let next = self.0;
        self.0 = (next * 2).min(Self::LAST);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_of_a_user_is_found_where_users_may_have_sockets() {
        let paths = |set: &[(&str, &str)]| {
            let variable = |name: &str| {
                let found = set.iter().find(|(set, _)| *set == name);
                found.map(|(_, value)| PathBuf::from(value))
            };
            control_paths_in(&variable)
        };
        let usual = PathBuf::from("/run/natpunch-serve/serve.sock");
        assert_eq!(paths(&[]), std::slice::from_ref(&usual));
        let of_user = PathBuf::from("/run/user/1000/natpunch-serve/serve.sock");
        assert_eq!(
            paths(&[("XDG_RUNTIME_DIR", "/run/user/1000")]),
            [usual, of_user]
        );
        // What systemd or the operator names is the only place.
        let named = [("XDG_RUNTIME_DIR", "/x"), ("RUNTIME_DIRECTORY", "/run/s")];
        assert_eq!(paths(&named), [PathBuf::from("/run/s/serve.sock")]);
    }

    #[test]
    fn errors_that_last_are_met_ever_more_slowly() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..9).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1_000, 1_000]);
        backoff.reset();
        assert_eq!(backoff.next().as_millis(), 10);
    }
}
