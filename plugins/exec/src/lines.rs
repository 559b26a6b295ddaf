//! Lines of a program's output, of bounded length.

use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// What [`Lines`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line, without its end.
    Whole(Vec<u8>),
    /// A line that is longer than may be. It was skipped.
    TooLong,
    /// The output ended inside of a line.
    Half,
}

/// Reads lines, and holds at most one of them.
pub(crate) struct Lines<R> {
    reader: BufReader<R>,
    longest: usize,
    line: Vec<u8>,
    is_too_long: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(reader: R, longest: usize) -> Self {
        Self {
            reader: BufReader::new(reader),
            longest,
            line: Vec::new(),
            is_too_long: false,
        }
    }

    /// The next line; `None` at the end. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let buffer = self.reader.fill_buf().await?;
            if buffer.is_empty() {
                let is_inside = self.is_too_long || !self.line.is_empty();
                self.line.clear();
                self.is_too_long = false;
                return Ok(is_inside.then_some(Line::Half));
            }
            let mut parts = buffer.splitn(2, |byte| *byte == b'\n');
            let part = parts.next().unwrap_or_default();
            let is_whole = parts.next().is_some();
            if self.is_too_long || self.line.len() + part.len() > self.longest {
                self.is_too_long = true;
                self.line.clear();
            } else {
                self.line.extend_from_slice(part);
            }
            let read = part.len() + usize::from(is_whole);
            self.reader.consume(read);
            if is_whole {
                let line = std::mem::take(&mut self.line);
                let is_too_long = std::mem::take(&mut self.is_too_long);
                return Ok(Some(if is_too_long {
                    Line::TooLong
                } else {
                    Line::Whole(line)
                }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_that_is_too_long_is_skipped_and_the_next_is_read() {
        let text: &[u8] = b"ab\n\nabcd\nabcde\nxy\nrest";
        let mut lines = Lines::new(text, 4);
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            found.push(line);
        }
        let whole = |text: &str| Line::Whole(text.into());
        assert_eq!(
            found,
            [
                whole("ab"),
                whole(""),
                whole("abcd"),
                Line::TooLong,
                whole("xy"),
                Line::Half
            ]
        );
    }
}
