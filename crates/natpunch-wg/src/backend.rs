//! Which program or kernel carries the packets of an interface.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The backend that the mesh file asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendChoice {
    /// The kernel where it has WireGuard, else the embedded device. An existing interface keeps
    /// what it has.
    #[default]
    Auto,
    /// Kernel WireGuard or an error.
    Kernel,
    /// The embedded device.
    Userspace,
    /// A device that another program runs, by its UAPI socket.
    External,
}

impl BackendChoice {
    /// True if an interface on `kind` is what was asked for.
    pub fn accepts(self, kind: BackendKind) -> bool {
        match self {
            Self::Auto => kind != BackendKind::External,
            Self::Kernel => kind == BackendKind::Kernel,
            Self::Userspace => kind == BackendKind::Userspace,
            Self::External => kind == BackendKind::External,
        }
    }
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
            Self::External => "external",
        })
    }
}

impl FromStr for BackendChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "kernel" => Ok(Self::Kernel),
            "userspace" => Ok(Self::Userspace),
            "external" => Ok(Self::External),
            other => Err(format!(
                "no such backend: {other} (auto, kernel, userspace, external)"
            )),
        }
    }
}

/// The backend that an interface has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendKind {
    /// Kernel WireGuard.
    Kernel,
    /// The embedded device.
    Userspace,
    /// A device that another program runs.
    External,
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
            Self::External => "external",
        })
    }
}
