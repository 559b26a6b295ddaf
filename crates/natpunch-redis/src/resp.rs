//! RESP3, the protocol of Redis and Valkey (<https://valkey.io/topics/protocol/>): commands as
//! bytes, and bytes as replies. Pure.
//!
//! Whatever a server sends, a reply has a bound in bytes, in elements and in depth, and one that
//! is beyond it is known by its first line: nothing is kept for what a length promises.

/// The longest reply, in bytes. The answer to `HELLO` lists the server's modules; a record has a
/// kilobyte at most.
pub const LONGEST: usize = 16 << 10;
/// The most elements of one aggregate.
const MOST_ELEMENTS: usize = 256;
/// Aggregates within each other: in the answer to `HELLO` a map has a list of maps of modules,
/// each with a list of arguments.
const DEEPEST: usize = 4;

/// A reply, or what the server says unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A string of any kind, or a number that is none of 64 bits.
    Text(Vec<u8>),
    /// An error: a word in capitals, and more.
    Error(String),
    /// A number.
    Integer(i64),
    /// Nothing is there.
    Null,
    /// An array or a set; a map as keys and values in turn.
    List(Vec<Reply>),
    /// Out of band: a message, or the confirmation of a subscription.
    Push(Vec<Reply>),
}

/// Why bytes are no replies, to follow "the server".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nonsense {
    /// Beyond a bound.
    TooLong,
    /// Not RESP3.
    NotResp,
}

/// A command: an array of strings.
pub fn command(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
    for part in parts {
        bytes.extend(format!("${}\r\n", part.len()).as_bytes());
        bytes.extend(*part);
        bytes.extend(b"\r\n");
    }
    bytes
}

/// The first command of a connection: RESP3 from now on, and the login of a user by a password, if
/// there is one.
pub fn hello(login: Option<(&str, &str)>) -> Vec<u8> {
    match login {
        None => command(&[b"HELLO", b"3"]),
        Some((user, password)) => {
            let (user, password) = (user.as_bytes(), password.as_bytes());
            command(&[b"HELLO", b"3", b"AUTH", user, password])
        }
    }
}

/// Makes replies of the bytes of a stream, in whichever pieces they come.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
    /// So many of them are read already.
    read: usize,
}

impl Reader {
    /// Takes the next bytes in. [`Reader::next_reply`] is to be drained after each piece.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.read));
        self.bytes.extend(bytes);
    }

    /// The next whole reply.
    ///
    /// # Errors
    /// The stream is beyond repair.
    pub fn next_reply(&mut self) -> Result<Option<Reply>, Nonsense> {
        let mut cursor = Cursor(self.bytes.get(self.read..).unwrap_or_default());
        let length = cursor.0.len();
        match cursor.reply(0) {
            Ok(reply) => {
                self.read += length - cursor.0.len();
                Ok(Some(reply))
            }
            Err(Stop::Wrong(nonsense)) => Err(nonsense),
            Err(Stop::NotYet) if length >= LONGEST => Err(Nonsense::TooLong),
            Err(Stop::NotYet) => Ok(None),
        }
    }
}

/// Why there is no reply at a place.
enum Stop {
    NotYet,
    Wrong(Nonsense),
}

/// What is not read yet.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn reply(&mut self, depth: usize) -> Result<Reply, Stop> {
        let line = self.line()?;
        let (kind, rest) = line.split_first().ok_or(Stop::Wrong(Nonsense::NotResp))?;
        match kind {
            b'+' | b'(' | b',' | b'#' => Ok(Reply::Text(rest.to_vec())),
            b'-' => Ok(error(rest)),
            b':' => number(rest).map(Reply::Integer),
            b'_' => Ok(Reply::Null),
            b'$' | b'*' if rest == b"-1" => Ok(Reply::Null),
            b'$' | b'=' => self.blob(rest).map(|blob| Reply::Text(blob.to_vec())),
            b'!' => self.blob(rest).map(error),
            b'*' | b'~' => self.elements(length(rest)?, depth).map(Reply::List),
            b'%' => {
                let length = length(rest)?.saturating_mul(2);
                self.elements(length, depth).map(Reply::List)
            }
            // Nothing is pushed within something else.
            b'>' if depth == 0 => self.elements(length(rest)?, depth).map(Reply::Push),
            _ => Err(Stop::Wrong(Nonsense::NotResp)),
        }
    }

    /// Up to the end of the line, without it.
    fn line(&mut self) -> Result<&'a [u8], Stop> {
        let end = self.0.windows(2).position(|two| two == b"\r\n");
        self.take(end.ok_or(Stop::NotYet)?)
    }

    /// So many bytes, and the end of a line behind them.
    fn take(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Stop::NotYet)?;
        let (end, rest) = rest.split_at_checked(2).ok_or(Stop::NotYet)?;
        if end != b"\r\n" {
            return Err(Stop::Wrong(Nonsense::NotResp));
        }
        self.0 = rest;
        Ok(taken)
    }

    fn blob(&mut self, digits: &[u8]) -> Result<&'a [u8], Stop> {
        let length = length(digits)?;
        if length > LONGEST {
            return Err(Stop::Wrong(Nonsense::TooLong));
        }
        self.take(length)
    }

    fn elements(&mut self, length: usize, depth: usize) -> Result<Vec<Reply>, Stop> {
        if length > MOST_ELEMENTS || depth == DEEPEST {
            return Err(Stop::Wrong(Nonsense::TooLong));
        }
        (0..length).map(|_| self.reply(depth + 1)).collect()
    }
}

fn error(bytes: &[u8]) -> Reply {
    Reply::Error(String::from_utf8_lossy(bytes).into_owned())
}

fn number(digits: &[u8]) -> Result<i64, Stop> {
    let text = std::str::from_utf8(digits).ok();
    let number = text.and_then(|text| text.parse().ok());
    number.ok_or(Stop::Wrong(Nonsense::NotResp))
}

fn length(digits: &[u8]) -> Result<usize, Stop> {
    number(digits)?
        .try_into()
        .map_err(|_| Stop::Wrong(Nonsense::NotResp))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Reply {
        Reply::Text(text.into())
    }

    /// What comes of bytes that come in pieces of this size.
    fn read(bytes: &[u8], piece: usize) -> Result<Vec<Reply>, Nonsense> {
        let mut reader = Reader::default();
        let mut replies = Vec::new();
        for piece in bytes.chunks(piece) {
            reader.push(piece);
            while let Some(reply) = reader.next_reply()? {
                replies.push(reply);
            }
        }
        Ok(replies)
    }

    #[test]
    fn a_command_is_an_array_of_strings_that_may_hold_anything() {
        assert_eq!(
            command(&[b"SET", b"a\r\n", b""]),
            b"*3\r\n$3\r\nSET\r\n$3\r\na\r\n\r\n$0\r\n\r\n"
        );
    }

    #[test]
    fn replies_of_every_type_are_read_in_whichever_pieces_they_come() {
        let bytes = b"+OK\r\n-OOM too much\r\n:-7\r\n_\r\n$-1\r\n*-1\r\n$4\r\na\r\nb\r\n\
            %1\r\n$1\r\nk\r\n*2\r\n#t\r\n,1.5\r\n>3\r\n+message\r\n$1\r\nc\r\n$0\r\n\r\n\
            !5\r\nERR a\r\n=5\r\ntxt:a\r\n(99999999999999999999\r\n~0\r\n";
        let expected = vec![
            text("OK"),
            Reply::Error("OOM too much".to_owned()),
            Reply::Integer(-7),
            Reply::Null,
            Reply::Null,
            Reply::Null,
            text("a\r\nb"),
            Reply::List(vec![text("k"), Reply::List(vec![text("t"), text("1.5")])]),
            Reply::Push(vec![text("message"), text("c"), text("")]),
            Reply::Error("ERR a".to_owned()),
            text("txt:a"),
            text("99999999999999999999"),
            Reply::List(vec![]),
        ];
        for piece in [1, 2, 3, 7, bytes.len()] {
            assert_eq!(read(bytes, piece).unwrap(), expected, "{piece}");
        }
    }

    #[test]
    fn what_is_beyond_a_bound_is_refused_before_it_is_there() {
        let deep = b"*1\r\n".repeat(DEEPEST + 1);
        let endless = vec![b'a'; LONGEST];
        let long = [
            &b"*2\r\n$16000\r\n"[..],
            &endless[..16_000],
            b"\r\n$999\r\n",
            &endless,
        ]
        .concat();
        for bytes in [
            &b"$1073741824\r\n"[..],
            b"$16385\r\n",
            b"*1000000000\r\n",
            b"%129\r\n",
            b">9223372036854775807\r\n",
            &deep,
            &[b"+", &endless[..]].concat(),
            &long,
        ] {
            assert_eq!(read(bytes, 64), Err(Nonsense::TooLong), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_not_resp_is_refused() {
        for bytes in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"\r\n",
            b"$-2\r\n",
            b"$x\r\n",
            b":\r\n",
            b"$1\r\nabc\r\n",
            b"*1\r\n>0\r\n",
            b"|1\r\n+a\r\n+b\r\n",
            b"\xff\r\n",
        ] {
            assert_eq!(read(bytes, 64), Err(Nonsense::NotResp), "{bytes:?}");
        }
    }
}
