//! A connection, and what it has not taken yet.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};

use crate::Stream;

/// A connection to a server.
pub struct Connection {
    reader: ReadHalf<Stream>,
    writer: WriteHalf<Stream>,
    unsent: Vec<u8>,
    /// TLS may hold back what was written.
    is_flushed: bool,
}

/// What a connection did.
#[derive(Debug)]
pub enum Moved {
    /// So many bytes came, and are in the buffer; none at the end.
    Read(io::Result<usize>),
    /// Some of what was to be sent was.
    Wrote(io::Result<()>),
}

impl Connection {
    /// One in this stream.
    pub fn new(stream: Stream) -> Self {
        let (reader, writer) = split(stream);
        Self {
            reader,
            writer,
            unsent: Vec::new(),
            is_flushed: true,
        }
    }

    /// Sends these bytes with the next calls of [`Connection::next`]. The caller bounds what waits
    /// for answers, and so what waits here.
    pub fn send(&mut self, bytes: &[u8]) {
        self.unsent.extend(bytes);
    }

    /// Reads into `buffer`, or writes. Nothing is lost when it is dropped before its end.
    pub async fn next(&mut self, buffer: &mut [u8]) -> Moved {
        let Self {
            reader,
            writer,
            unsent,
            is_flushed,
        } = self;
        let has_work = !unsent.is_empty() || !*is_flushed;
        tokio::select! {
            read = reader.read(buffer) => Moved::Read(read),
            wrote = write(writer, unsent, is_flushed), if has_work => Moved::Wrote(wrote),
        }
    }
}

/// Writes some of what is unsent.
async fn write(
    writer: &mut WriteHalf<Stream>,
    unsent: &mut Vec<u8>,
    is_flushed: &mut bool,
) -> io::Result<()> {
    if unsent.is_empty() {
        writer.flush().await?;
        *is_flushed = true;
        return Ok(());
    }
    match writer.write(unsent).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        written => {
            unsent.drain(..written);
            *is_flushed = false;
            Ok(())
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}
