//! What is wrong with the server, in one sentence each, with what to do. Pure.

use std::fmt;

use crate::resp::Nonsense;

/// The longest piece of the server's own words that is shown, in characters.
const LONGEST_QUOTE: usize = 160;

/// Why records don't come or go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// There is no connection: what failed.
    Unreachable(String),
    /// It did not answer in time.
    Silent,
    /// It ended the connection.
    Closed,
    /// It sends what no such server sends.
    Nonsense(Nonsense),
    /// Its answer is none to what was asked.
    OtherAnswer(&'static str),
    /// It sends more messages than any mesh has.
    Flood,
    /// It answered a command with an error.
    Refused {
        /// The command's name.
        command: &'static str,
        /// The user that this node is there.
        user: String,
        /// Its words, shortened, on one line.
        words: String,
    },
}

impl Trouble {
    /// The error that a command was answered with.
    pub fn refused(command: &'static str, user: &str, words: &str) -> Self {
        let shown = words.chars().take(LONGEST_QUOTE);
        let shown = shown.map(|c| if c.is_control() { ' ' } else { c });
        Self::Refused {
            command,
            user: user.to_owned(),
            words: shown.collect(),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(problem) => f.write_str(problem),
            Self::Silent => f.write_str("the server does not answer; is it overloaded or stopped?"),
            Self::Closed => f.write_str(
                "the server ended the connection; its log says why (`timeout`, \
                 `client-output-buffer-limit`, a restart)",
            ),
            Self::Nonsense(Nonsense::NotResp) => f.write_str(
                "what answers there is no Redis or Valkey server, or one that expects TLS; look at \
                 `url` (rediss:// is TLS)",
            ),
            Self::Nonsense(Nonsense::TooLong) => f.write_str(
                "the server sends what is longer than any record; another program uses the same \
                 `prefix`, or it is no server to trust",
            ),
            Self::OtherAnswer(command) => write!(
                f,
                "the server's answer to {command} is none to that; what is between it and this \
                 node has to pass RESP3 on as it is"
            ),
            Self::Flood => f.write_str(
                "the server sends more messages than the mesh can have; look for who publishes \
                 under the `prefix`",
            ),
            Self::Refused {
                command,
                user,
                words,
            } => refusal(f, command, user, words),
        }
    }
}

/// A server's error, by its first word (`src/server.c` of Redis and Valkey has them).
fn refusal(f: &mut fmt::Formatter<'_>, command: &str, user: &str, words: &str) -> fmt::Result {
    let code = words.split(' ').next().unwrap_or_default();
    match code {
        "NOAUTH" => f.write_str(
            "the server asks for a password (NOAUTH): name its file by `password_file`, and the \
             user by `user`",
        ),
        "WRONGPASS" => write!(
            f,
            "the server refuses the password of its user `{user}`, or has no such user \
             (WRONGPASS): put the server's into `password_file`, and its user into `user`"
        ),
        "NOPERM" => write!(
            f,
            "the server's user `{user}` has no right to {command} under this `prefix` (NOPERM): \
             give it what docs/how-to lists"
        ),
        "OOM" => f.write_str(
            "the server is full and keeps no new records (OOM): raise its `maxmemory`; until \
             then only peers that are connected to it learn what is new",
        ),
        "READONLY" => f.write_str(
            "the server is a replica and takes no records (READONLY): name the primary in `url`",
        ),
        "MISCONF" => f.write_str(
            "the server takes no records since it can't save to its disk (MISCONF): its log says \
             why",
        ),
        "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN" => f.write_str(
            "the server is a node of a cluster, which natpunch does not follow: name one that has \
             all keys",
        ),
        "LOADING" => f.write_str("the server is still loading its data (LOADING): wait for it"),
        "DENIED" => f.write_str(
            "the server answers its own host only (protected mode): set a password there, as \
             docs/how-to/redis.md shows",
        ),
        "NOPROTO" => f.write_str(TOO_OLD),
        "ERR" if command == "HELLO" && words.contains("unknown command") => f.write_str(TOO_OLD),
        "ERR" if command == "SELECT" => write!(
            f,
            "the server has no such database ({words}): change the number at the end of `url`"
        ),
        _ => write!(f, "the server answers {command} with an error: {words}"),
    }
}

const TOO_OLD: &str = "the server does not speak RESP3: it takes Redis 6, Valkey, or newer ones";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_what_to_do() {
        for (command, words, expected) in [
            (
                "HELLO",
                "NOAUTH HELLO must be called with the client already authenticated",
                "password_file",
            ),
            (
                "HELLO",
                "WRONGPASS invalid username-password pair or user is disabled.",
                "user `natpunch`",
            ),
            (
                "HELLO",
                "ERR unknown command `HELLO`, with args beginning with: `3`",
                "Redis 6",
            ),
            ("HELLO", "NOPROTO unsupported protocol version", "Redis 6"),
            (
                "HELLO",
                "DENIED Redis is running in protected mode",
                "set a password",
            ),
            (
                "HELLO",
                "ERR max number of clients reached",
                "max number of clients",
            ),
            ("SELECT", "ERR DB index is out of range", "end of `url`"),
            (
                "SUBSCRIBE",
                "NOPERM this user has no permissions",
                "docs/how-to",
            ),
            (
                "SET",
                "OOM command not allowed when used memory > 'maxmemory'.",
                "maxmemory",
            ),
            (
                "SET",
                "READONLY You can't write against a read only replica.",
                "primary",
            ),
            (
                "SET",
                "MISCONF Redis is configured to save RDB snapshots",
                "disk",
            ),
            ("SET", "MOVED 3999 127.0.0.1:6381", "cluster"),
            (
                "SET",
                "LOADING Redis is loading the dataset in memory",
                "wait",
            ),
        ] {
            let sentence = Trouble::refused(command, "natpunch", words).to_string();
            assert!(sentence.contains(expected), "{words}: {sentence}");
        }
    }

    #[test]
    fn a_servers_words_are_shown_short_and_on_one_line() {
        let words = format!("ERR a\x1b[2J\nb{}", "x".repeat(20_000));
        let sentence = Trouble::refused("GETRANGE", "default", &words).to_string();
        assert!(
            sentence.len() < 300 && !sentence.contains(char::is_control),
            "{sentence}"
        );
    }
}
