//! Every backend keeps the same claims: see `natpunch_wg::conformance`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Netns, Running, unique_name};
use natpunch_wg::{Device, DeviceChange, DeviceState, FakeDevice, KernelDevice, WgError, conformance};

#[test]
fn fake() {
    conformance::run(FakeDevice::new);
}

#[test]
fn embedded() {
    let directory = tempfile::tempdir().unwrap();
    Netns::new().run(move || conformance::run(|| Running::embedded(directory.path())));
}

#[test]
fn external() {
    Netns::new().run(|| conformance::run(Running::wireguard_go));
}

/// Run by `make test-vm`, whose kernel has WireGuard.
#[test]
#[ignore = "needs kernel WireGuard: `make test-vm` runs it"]
fn kernel() {
    Netns::new().run(|| conformance::run(Link::new));
}

/// A kernel interface that goes with the value.
struct Link(KernelDevice, String);

impl Link {
    fn new() -> Self {
        let name = unique_name();
        ip(&["link", "add", &name, "type", "wireguard"]);
        ip(&["link", "set", &name, "up"]);
        Self(KernelDevice::new(&name).unwrap(), name)
    }
}

fn ip(args: &[&str]) {
    assert!(std::process::Command::new("ip").args(args).status().unwrap().success(), "ip {args:?}");
}

impl Drop for Link {
    fn drop(&mut self) {
        ip(&["link", "del", &self.1]);
    }
}

impl Device for Link {
    fn kind(&self) -> natpunch_wg::BackendKind {
        self.0.kind()
    }
    fn get(&mut self) -> Result<DeviceState, WgError> {
        self.0.get()
    }
    fn configure(&mut self, change: &DeviceChange) -> Result<(), WgError> {
        self.0.configure(change)
    }
}
