//! Whether a pair of peers keeps a path at all times.

use std::fmt;

use serde::{Deserialize, Serialize};

/// When two peers look for a path to each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connect {
    /// At once, and they keep it.
    #[default]
    Always,
    /// When one of them has a packet for the other. After a time without any, the pair rests.
    OnDemand,
}

impl fmt::Display for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "always",
            Self::OnDemand => "on-demand",
        })
    }
}
