//! What a node does beside its tunnels. Tunnels depend on none of these: what goes wrong in one is
//! reported in `status` and tried again. All have one shape ([`Service`]); where to add another: a
//! file here, a field of [`Services`], and a line in each of its methods.

pub(crate) mod forwarding;
pub(crate) mod hosts;
pub(crate) mod revisions;
pub(crate) mod serving;
mod sockets;
pub(crate) mod views;

use std::collections::BTreeSet;

use natpunch_types::Time;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::forwarding::Forwarding;
use self::hosts::HostsFile;
use self::revisions::Revisions;
use self::serving::Serving;
use self::views::Views;
use crate::config::NodeConfig;
use crate::control::Call;

/// What is asked of the agent, as on its control socket.
pub(super) type Calls = mpsc::Sender<Call>;

/// The node as it runs now.
pub(super) struct Node<'a> {
    /// Its part of the mesh.
    pub(super) config: &'a NodeConfig,
    /// Since when it runs this mesh, since boot.
    pub(super) since: Time,
    /// The connected peers, by name.
    pub(super) connected: BTreeSet<String>,
}

/// The shape of a service.
pub(super) trait Service: Sized {
    /// What `status` says of it.
    type Status;
    /// A service that does nothing yet. By `calls` it may ask the agent what a person may ask.
    fn start(calls: &Calls) -> Self;
    /// The node runs another version, or began to run.
    async fn node_changed(&mut self, node: &Node<'_>);
    /// How it stands.
    fn status(&self) -> Self::Status;
    /// Ends it, when what it was asked for is done.
    async fn stop(self);
}

/// Sleeps until then; for ever, if there is no such moment.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// All of them.
pub(super) struct Services {
    pub(super) forwarding: Forwarding,
    pub(super) hosts: HostsFile,
    pub(super) revisions: Revisions,
    pub(super) serving: Serving,
    pub(super) views: Views,
}

impl Services {
    pub(super) fn start(calls: &Calls) -> Self {
        Self {
            forwarding: Forwarding::start(calls),
            hosts: HostsFile::start(calls),
            revisions: Revisions::start(calls),
            serving: Serving::start(calls),
            views: Views::start(calls),
        }
    }

    pub(super) async fn node_changed(&mut self, node: &Node<'_>) {
        self.forwarding.node_changed(node).await;
        self.serving.node_changed(node).await;
        self.revisions.node_changed(node).await;
        self.views.node_changed(node).await;
        self.hosts.node_changed(node).await;
    }

    pub(super) async fn stop(self) {
        self.forwarding.stop().await;
        self.serving.stop().await;
        self.revisions.stop().await;
        self.views.stop().await;
        self.hosts.stop().await;
    }
}
