//! Every backend keeps the same claims: see `natpunch_wg::conformance`.

use natpunch_wg::{FakeDevice, conformance};

use crate::common::{KernelLink, Netns, Running};

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
    Netns::new().run(|| conformance::run(KernelLink::new));
}
