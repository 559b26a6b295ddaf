//! The device process.

use std::io;
use std::path::Path;

use natpunch_os::{Sole, detached};
use tokio::signal::unix::{SignalKind, signal};

use super::driver::Driver;
use super::server::{Service, listen};
use super::tun::Tun;
use crate::error::WgError;
use crate::spec::check_name;
use crate::uapi;

/// More threads than this do not help: gotatun has one task per direction for the ciphers.
const MAX_THREADS: usize = 4;

/// The body of `natpunch device NAME --socket PATH`: runs the device `name` until it is told to
/// stop, gets SIGTERM, or its interface is removed. The control socket appears when the device is
/// ready.
pub fn run_device(name: &str, control_socket: &Path) -> Result<(), WgError> {
    check_name(name)?;
    let _lock = begin(name, control_socket)?;
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MAX_THREADS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|e| WgError::io("start the runtime of the device", e))?;
    runtime.block_on(serve(name, control_socket))
}

/// At most one process per control socket. The lock ends with the process, whatever ends it; one
/// that was just killed may hold it for a moment longer.
fn begin(name: &str, control_socket: &Path) -> Result<Sole, WgError> {
    detached::begin(control_socket).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => WgError::DeviceStart {
            name: name.into(),
            reason: "another process already runs this device".into(),
        },
        _ => {
            let lock = control_socket.with_extension("lock");
            WgError::io(format!("lock {}", lock.display()), error)
        }
    })
}

async fn serve(name: &str, control_socket: &Path) -> Result<(), WgError> {
    let (tun, mtu) = Tun::create(name).map_err(|e| tun_error(name, e))?;
    let driver = Driver::start(tun.clone(), mtu)
        .await
        .map_err(|e| WgError::DeviceStart {
            name: name.into(),
            reason: e.to_string(),
        })?;
    let service = Service::new(driver);
    let listen_at = |path: &Path| {
        listen(path).map_err(|e| WgError::io(format!("listen at {}", path.display()), e))
    };
    let (public, _public_file) = listen_at(&uapi::socket_path(name))?;
    let (control, _control_file) = listen_at(control_socket)?;
    tokio::spawn(service.clone().serve(public, false));
    tokio::spawn(service.clone().serve(control, true));
    tokio::spawn(service.clone().drive());
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| WgError::io("wait for SIGTERM", e))?;
    tracing::info!(interface = name, "device is up");
    let reason = tokio::select! {
        () = service.stopped() => "asked to stop",
        () = tun.gone() => "the interface was removed",
        _ = terminate.recv() => "SIGTERM",
    };
    tracing::info!(interface = name, reason, "device ends");
    Ok(())
}

fn tun_error(name: &str, error: io::Error) -> WgError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => WgError::NoTun(error),
        Some(libc::EBUSY | libc::EINVAL) => WgError::Foreign {
            name: name.into(),
            found: "in use".into(),
        },
        _ => WgError::io(format!("create the TUN interface {name}"), error),
    }
}
