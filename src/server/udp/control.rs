//! What the rendezvous has to send when something else than a datagram has happened: by the sockets
//! of the first worker.

use std::net::UdpSocket;

use natpunch_net::{Ends, Outbox};
use natpunch_rendezvous::server::Unsealed;
use natpunch_rendezvous::stream;

use crate::server::streams::STREAM;
use crate::server::worker::Shared;

/// Seals these and sends them; how many could not be sent.
pub(in crate::server) fn send(
    unsealed: Vec<Unsealed>,
    sockets: &[UdpSocket],
    shared: &Shared,
    outbox: &mut Outbox,
) -> usize {
    let mut unsent = 0;
    for transmit in unsealed.into_iter().filter_map(Unsealed::seal) {
        let ends = Ends {
            remote: transmit.destination,
            local: transmit.via.local,
        };
        if transmit.via.socket == STREAM {
            let streams = &shared.streams;
            if !streams.send(ends.remote, stream::SERVER, &transmit.payload) {
                shared.counters.stream_unsent.add();
            }
        } else if let Some(socket) = sockets.get(transmit.via.socket) {
            unsent += 1 - outbox.send(socket, &[(ends, transmit.payload)]);
        }
    }
    unsent
}
