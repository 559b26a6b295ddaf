//! A password of somebody else's server, as its administrator chose it.

use std::fmt;
use std::str::FromStr;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A password: one line of text of 1 to [`Password::MAX`] bytes. Wiped when it is dropped, never
/// printed, and compared in constant time.
#[derive(Clone)]
pub struct Password(Zeroizing<String>);

/// Why a text is no password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PasswordError {
    /// It has several lines, or control characters.
    NotALine,
    /// It is empty, or longer than [`Password::MAX`].
    Length(usize),
}

impl fmt::Display for PasswordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotALine => f.write_str("more than one line, or control characters"),
            Self::Length(n) => write!(f, "{n} bytes, a password has 1 to {}", Password::MAX),
        }
    }
}

impl std::error::Error for PasswordError {}

impl Password {
    /// The longest, in bytes.
    pub const MAX: usize = 1024;

    /// The password itself, to be sent to its server and nowhere else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Password {
    type Err = PasswordError;

    /// Reads a line, with or without its end. Blanks within belong to the password.
    fn from_str(text: &str) -> Result<Self, PasswordError> {
        let line = text.strip_suffix('\n').unwrap_or(text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() || line.len() > Self::MAX {
            return Err(PasswordError::Length(line.len()));
        }
        if line.chars().any(char::is_control) {
            return Err(PasswordError::NotALine);
        }
        Ok(Self(Zeroizing::new(line.to_owned())))
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Password {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_line_without_its_end() {
        for text in ["pass word", "pass word\n", "pass word\r\n"] {
            assert_eq!(text.parse::<Password>().unwrap().expose(), "pass word");
        }
        let long = "x".repeat(Password::MAX + 1);
        for (text, error) in [
            ("", PasswordError::Length(0)),
            ("\n", PasswordError::Length(0)),
            ("a\nb\n", PasswordError::NotALine),
            ("a\0", PasswordError::NotALine),
            (&long, PasswordError::Length(Password::MAX + 1)),
        ] {
            assert_eq!(text.parse::<Password>().unwrap_err(), error, "{text:?}");
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        let password: Password = "hunter2".parse().unwrap();
        assert!(!format!("{password:?}").contains("hunter2"));
    }
}
