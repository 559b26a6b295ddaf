//! One stream: its messages to the threads of the server, and theirs into it.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use natpunch_rendezvous::stream::LONGEST;
use natpunch_types::stream_address;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::server::worker::Shared;

/// A client lets itself be heard more often than this.
const SILENCE: Duration = Duration::from_secs(60);
/// A client that takes nothing for so long is gone.
const STALLED: Duration = Duration::from_secs(20);
/// Messages that are sent by one write.
const BATCH: usize = 64;
/// Buffers for reading and writing, each.
const BUFFER: usize = 16 << 10;

/// Serves a stream of this number from `host` until it ends.
pub(in crate::server) async fn serve<S>(io: S, host: IpAddr, number: u64, shared: &Shared)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_write_buffer_size(16 * BUFFER)
        .max_message_size(Some(LONGEST))
        .max_frame_size(Some(LONGEST));
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    let address = stream_address(host, number);
    let queue = shared.streams.open(address);
    let (sink, source) = socket.split();
    // Apart from each other, so that a client that takes nothing is still heard.
    tokio::select! {
        () = read(source, shared, |message| shared.streams.receive(address, number, message)) => {}
        () = write(sink, queue) => {}
    }
    shared.streams.close(address);
}

async fn read<S>(
    mut source: SplitStream<WebSocketStream<S>>,
    shared: &Shared,
    receive: impl Fn(&[u8]) -> bool,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Ok(Some(Ok(message))) = timeout(SILENCE, source.next()).await {
        match message {
            Message::Binary(message) => {
                shared.counters.received.add();
                if !receive(&message) {
                    shared.counters.stream_dropped.add();
                }
            }
            Message::Close(_) => return,
            // Pings are answered by the library.
            _ => {}
        }
    }
}

async fn write<S>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut queue: mpsc::Receiver<Vec<u8>>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let send = async {
            for message in batch.drain(..) {
                sink.feed(Message::binary(message)).await?;
            }
            sink.flush().await
        };
        if !matches!(timeout(STALLED, send).await, Ok(Ok(()))) {
            return;
        }
    }
}
