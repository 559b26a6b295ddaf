//! A small internet on one machine: hosts, home routers with NATs, real processes in them.
//!
//! ```text
//!            internet (a router)            every link into it is a network of its own: 203.0.113.0/30, .4/30, ...
//!        ┌─────────┼──────────┐
//!     server    router a   router b         nftables: the NAT kinds of RFC 4787
//!                  │          │
//!               node a      node b          192.168.1.0/24 at both, as in real homes
//! ```
//!
//! Each host and router is a network namespace with its own `/run/natpunch` and `/run/wireguard`,
//! held by one thread ([`Host::run`] runs code there, [`Host::spawn`] a program). The lab itself
//! lives in a [`sandbox`]: a process that is number 1 of its own PID namespace. When it ends,
//! however it ends, the kernel ends every process of the lab, even detached ones, and the
//! namespaces, links and rules vanish with them. Nothing of it is ever visible on the host. No
//! privileges are needed where user namespaces are allowed.
//!
//! Links and rules are made by `ip` and `nft`, started without a shell.
//!
//! Why not the `patchbay` crate, which does much of this: its routers have no rule on the WAN's
//! input, so each of them is one on which an early packet moves the mapping (the poisoned tuple),
//! and the plain home router could not be told apart from it; it gives no PID or mount namespace,
//! so that a crash leaves natpunch's detached device behind and two nodes would share `/run`; and
//! it would put eighteen more crates into the shipped binary.

mod follow;
mod host;
mod lab;
mod namespace;
mod nat;
mod nat64;
mod ping;
mod router;
pub mod sandbox;

pub use follow::Follower;
pub use host::{Host, Process};
pub use lab::Lab;
pub use nat::{BLOCK, Nat, WanInput};
pub use ping::{Answer, Ping, Pings};
pub use router::Router;

/// Why a lab could not be built or a program in it not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that the lab needs is missing or cannot be started.
    #[error(
        "cannot run {program}: {source} (Debian: apt-get install iproute2 nftables iputils-ping util-linux)"
    )]
    Program {
        /// Its name.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program ended with an error.
    #[error("{program} failed: {message}\nits input was:\n{input}")]
    Failed {
        /// Its name.
        program: String,
        /// What it printed on standard error.
        message: String,
        /// What it was told to do.
        input: String,
    },
    /// A system call of the lab failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// Sandboxes do not work here.
    #[error("cannot make a sandbox: {message}; help: {}", sandbox::HELP)]
    NoSandbox {
        /// What the system said.
        message: String,
    },
    /// A link never came up.
    #[error("the link {link} does not come up")]
    NoCarrier {
        /// Its name.
        link: String,
    },
    /// The namespace's thread is gone; it panicked.
    #[error("the thread that holds a namespace is gone")]
    Gone,
    /// The lab has no more addresses.
    #[error("the lab has no more addresses: at most {0} links and hosts")]
    Full(u8),
}

/// The result of a lab operation.
pub type Result<T> = std::result::Result<T, Error>;
