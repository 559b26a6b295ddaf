//! Peers without a path yet: what WireGuard sends to them is heard on this host and handed to the
//! core, which sends it on the path that it finds.

use natpunch_net::{NetError, Rested, RestingPeers};

use super::{Agent, now};

/// The ear for peers at rest, if this host has one. Without it a handshake is begun anew when a
/// path is found, and the packets that wait for it are lost.
pub(super) struct Resting(Option<RestingPeers>);

impl Resting {
    /// Listens to the WireGuard device at this port.
    pub(super) fn open(port: u16) -> Self {
        let ear = RestingPeers::open(port).inspect_err(|error| {
            tracing::warn!(%error, "first packets to peers without a path are lost");
        });
        Self(ear.ok())
    }

    /// The next initiation that had nowhere to go.
    pub(super) async fn next(&self) -> Result<Rested, NetError> {
        match &self.0 {
            Some(ear) => ear.recv().await,
            None => std::future::pending().await,
        }
    }
}

impl Agent {
    pub(super) fn on_rested(&mut self, rested: Result<Rested, NetError>) {
        match rested {
            Ok(Rested {
                endpoint,
                initiation,
            }) => self.mesh.handle_initiation(endpoint, &initiation, now()),
            Err(error) => {
                tracing::warn!(%error, "listening anew");
                self.resting = Resting::open(self.node.listen_port);
            }
        }
    }
}
