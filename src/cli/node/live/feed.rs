//! Asks the agent again and again, over a connection that may end and come again.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize as _;

use crate::agent::Waiting;
use crate::cli::node::status::view::View;
use crate::cli::node::status::{Link, read};

/// The link to one agent.
pub(in crate::cli::node) struct Feed<'a>(Link<'a>);

impl<'a> Feed<'a> {
    pub(in crate::cli::node) fn of(directory: &'a Path, interface: &str) -> Self {
        Self(Link::to(directory, interface))
    }

    /// Asks once: what is to be taken, or why there is nothing.
    pub(in crate::cli::node) fn ask(&mut self) -> Result<View, String> {
        let status = self.0.ask().map_err(|error| error.to_string())?;
        if let Ok(waiting) = Waiting::deserialize(&status) {
            return Err(format!("it has no mesh yet: {}", waiting.problem));
        }
        read(status).map_err(|error| error.to_string())
    }
}

/// Seconds since 1970.
pub(in crate::cli::node) fn now_s() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_millis() as f64 / 1e3)
}
