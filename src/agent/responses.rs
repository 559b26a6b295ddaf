//! What WireGuard answers to a handshake that a peer began: heard on this host while the core
//! expects one, so that the answer can be sent again where it was lost.

use std::num::NonZeroU16;

use natpunch_net::{NetError, SentResponse, SentResponses};
use natpunch_types::PathId;

use super::{Agent, now};

/// The ear for responses, while it is open.
#[derive(Default)]
pub(super) struct Responses(Option<SentResponses>);

impl Responses {
    /// The next response that left this host.
    pub(super) async fn next(&self) -> Result<SentResponse, NetError> {
        match &self.0 {
            Some(ear) => ear.recv().await,
            None => std::future::pending().await,
        }
    }
}

impl Agent {
    /// Opens the ear, or closes it.
    pub(super) fn hear_responses(&mut self, hears: bool) {
        let ear = hears.then(SentResponses::open).transpose();
        let ear = ear.inspect_err(|error| {
            tracing::debug!(%error, "handshake responses that are lost are not repeated");
        });
        self.responses.0 = ear.ok().flatten();
    }

    pub(super) fn on_response(&mut self, sent: Result<SentResponse, NetError>) {
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) => {
                tracing::debug!(%error, "handshake responses are not heard any more");
                self.responses.0 = None;
                return;
            }
        };
        // nftables has given it the pin's port already. A response with another one than that is of
        // another WireGuard, perhaps of a host behind this one.
        let remote = self.nat64.inward(sent.destination);
        let path = match sent.source_port == self.node.listen_port {
            true => PathId::wireguard(remote),
            false => self.pins.path_to(remote),
        };
        let port = path.pin().map_or(self.node.listen_port, NonZeroU16::get);
        if port == sent.source_port {
            self.mesh.handle_response(path, &sent.datagram, now());
        }
    }
}
