//! Lines of a program's output, of bounded length.

use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// What [`Lines`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line, without its end.
    Whole(Vec<u8>),
    /// A line that is longer than may be. It is skipped; for each time that as much of it follows as
    /// a line may have, it is told again.
    TooLong,
    /// The output ended inside of a line.
    Half,
}

/// Reads lines, and holds at most one of them.
pub(crate) struct Lines<R> {
    reader: BufReader<R>,
    longest: usize,
    line: Vec<u8>,
    /// How much was skipped of a line that is too long, since that was told last.
    skipped: Option<usize>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(reader: R, longest: usize) -> Self {
        Self {
            reader: BufReader::new(reader),
            longest,
            line: Vec::new(),
            skipped: None,
        }
    }

    /// The next line; `None` at the end. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let buffer = self.reader.fill_buf().await?;
            if buffer.is_empty() {
                let is_inside = self.skipped.take().is_some() || !self.line.is_empty();
                self.line.clear();
                return Ok(is_inside.then_some(Line::Half));
            }
            let mut parts = buffer.splitn(2, |byte| *byte == b'\n');
            let part = parts.next().unwrap_or_default();
            let is_whole = parts.next().is_some();
            let length = part.len();
            let skipped = match self.skipped {
                Some(skipped) => Some(skipped + length),
                // Told at once: it may have no end.
                None if self.line.len() + length > self.longest => Some(self.longest),
                None => {
                    self.line.extend_from_slice(part);
                    None
                }
            };
            self.reader.consume(length + usize::from(is_whole));
            let is_told = skipped.is_some_and(|skipped| skipped >= self.longest);
            let was_skipped = self.skipped.is_some() || skipped.is_some();
            self.skipped = skipped
                .filter(|_| !is_whole)
                .map(|skipped| if is_told { 0 } else { skipped });
            if was_skipped {
                self.line.clear();
            }
            match (is_told, is_whole, was_skipped) {
                (true, _, _) => return Ok(Some(Line::TooLong)),
                (false, true, false) => {
                    return Ok(Some(Line::Whole(std::mem::take(&mut self.line))));
                }
                (false, ..) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_without_an_end_is_told_of_as_long_as_it_goes_on() {
        let mut lines = Lines::new(&[b'x'; 100_000][..], 10_000);
        let mut told = 0;
        while lines.next().await.unwrap() == Some(Line::TooLong) {
            told += 1;
        }
        assert!((5..=10).contains(&told), "{told}");
    }

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
