//! WireGuard interfaces of this host: one blocking API over kernel WireGuard, the embedded
//! userspace device, and a device that another program runs.
//!
//! [`Interface`] is the whole of it for the agent: [`Interface::plan`] says what would change,
//! [`Interface::open`] creates or adopts, [`Interface::apply`] makes the least change and reads it
//! back, [`Interface::set_endpoint`] moves one peer, [`Interface::set_pins`] gives packets to some
//! peers another source port ([`pins`]), [`down`] removes exactly what was made.
//! Everything blocks: call it from a thread of its own. Netlink and the device process act in the
//! network namespace of the calling thread.
//!
//! Below is one seam, the trait [`Device`], with three implementations: [`KernelDevice`] and
//! [`UapiDevice`] (an external device, and the control side of the embedded one), and for tests one
//! in memory. With the feature `testing`, `conformance` holds the claims that each of them keeps.
//!
//! **Ownership.** An interface is ours if its alias is `natpunch:OWNER`; a peer or address is ours
//! if it is in the state file of the interface. Nothing else is ever changed or removed.

mod backend;
#[cfg(feature = "testing")]
pub mod conformance;
mod device;
mod diff;
pub mod embedded;
mod error;
#[cfg(feature = "testing")]
mod fake;
mod host;
mod interface;
mod kernel;
mod links;
mod observe;
pub mod pins;
mod plan;
mod routing;
mod spec;
mod state_file;
pub mod uapi;

pub use backend::{BackendChoice, BackendKind};
pub use device::{
    Device, DeviceChange, DeviceState, EndpointUpdate, PeerAction, PeerChange, set_endpoint,
};
pub use embedded::DeviceProcess;
pub use error::WgError;
#[cfg(feature = "testing")]
pub use fake::FakeDevice;
pub use interface::{Applied, Interface, Removed, down, exists, leave_rest};
pub use kernel::KernelDevice;
pub use links::kernel_has_wireguard;
pub use observe::{Observed, observe};
pub use pins::{
    PinChoice, PinError, PinMethod, PinSet, PinWatch, can_pin, choose as choose_pins, run_forwarder,
};
pub use plan::{Change, Effect, Plan, Sign};
pub use routing::Rule;
pub use spec::{DefaultRoute, InterfaceSpec, PeerSpec, RouteMtu};
pub use state_file::{Managed, guard_log, managed};
pub use uapi::UapiDevice;
