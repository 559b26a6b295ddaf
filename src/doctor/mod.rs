//! `natpunch doctor`: what of this host and its network natpunch needs, and whether it is there.
//!
//! `host` looks at the machine and `network` asks servers; each gives facts. A function from facts to
//! a [`Check`] says whether that is good, bad or not to be told, and what to do. Nothing is changed.

mod filter;
mod host;
mod network;
mod sizes;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use natpunch_plugin_description::Endpoint;
use serde::Serialize;

use crate::config::{self, MeshConfig, NodeConfig};

/// What is examined.
pub struct Subject<'a> {
    /// The mesh, if one was named.
    pub mesh: Option<&'a MeshConfig>,
    /// This host's part of it, or why that can't be had.
    pub node: Option<Result<&'a NodeConfig, String>>,
    /// STUN servers to ask beside those of the mesh.
    pub stun: &'a [Endpoint],
    /// Where agents keep their sockets.
    pub runtime_dir: PathBuf,
}

/// How something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// natpunch, or some of it, will not work for it.
    Bad,
    /// It can't be told.
    Unknown,
}

impl Verdict {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Unknown => "unknown",
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub check: String,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found.
    pub text: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether nothing is bad.
    pub ok: bool,
    /// The lines, in the order in which they are best read.
    pub checks: Vec<Check>,
}

impl Check {
    fn new(check: &str, verdict: Verdict, text: impl Into<String>) -> Self {
        Self {
            check: check.to_owned(),
            verdict,
            text: text.into(),
            help: None,
        }
    }

    fn good(check: &str, text: impl Into<String>) -> Self {
        Self::new(check, Verdict::Good, text)
    }

    fn bad(check: &str, text: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new(check, Verdict::Bad, text).help(help)
    }

    fn unknown(check: &str, text: impl Into<String>) -> Self {
        Self::new(check, Verdict::Unknown, text)
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Examines this host. It takes some seconds where servers do not answer.
pub fn examine(subject: &Subject<'_>) -> Report {
    let privileges = host::Privileges::read();
    let mut checks = vec![host::privileges(&privileges)];
    checks.extend(host::backends(&host::Backends::read(&privileges)));
    checks.push(host::nftables(
        natpunch_wg::can_pin().map_err(|e| e.to_string()),
        &privileges,
    ));
    checks.push(host::clock(&host::Clock::read()));
    if let Some(node) = &subject.node {
        match node {
            Ok(node) => checks.extend(host::node(node, &subject.runtime_dir)),
            Err(problem) => checks.push(host::no_node(problem)),
        }
    }
    let servers = servers(subject);
    checks.extend(network::examine(&servers, own(subject)));
    if let Some(node) = own(subject) {
        let seconds = filter::measured_lifetime(&subject.runtime_dir, &node.interface);
        checks.push(filter::lifetime(seconds));
    }
    Report {
        ok: checks.iter().all(|check| check.verdict != Verdict::Bad),
        checks,
    }
}

/// This host's part of the mesh, if it can be had.
fn own<'a>(subject: &Subject<'a>) -> Option<&'a NodeConfig> {
    subject.node.as_ref()?.as_ref().ok().copied()
}

/// A server that nodes are to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    /// How it is called: its instance, if it has one.
    name: String,
    /// Where it is, as written.
    endpoint: Endpoint,
    /// It answers STUN; of others only the name is looked up.
    is_stun: bool,
}

/// The servers of the mesh and those of the command line.
fn servers(subject: &Subject<'_>) -> Vec<Server> {
    let server = |name: &str, text: &str, is_stun: bool| {
        Some(Server {
            name: name.to_owned(),
            endpoint: text.parse().ok()?,
            is_stun,
        })
    };
    let mut found: Vec<Server> = Vec::new();
    if let Some(mesh) = subject.mesh {
        for config::Discovery {
            name,
            plugin,
            about,
            ..
        } in &mesh.discovery
        {
            // A node of the mesh does not ask itself.
            if own(subject).is_some_and(|own| about.node == Some(own.public_key)) {
                continue;
            }
            let is_stun = *plugin == "rendezvous";
            let servers = about
                .servers
                .iter()
                .filter_map(|text| server(name, text, is_stun));
            found.extend(servers);
            found.extend(
                about
                    .stun
                    .iter()
                    .filter_map(|text| server(name, text, true)),
            );
        }
        let stun = mesh.stun_servers.iter();
        found.extend(stun.filter_map(|text| server("stun", text, true)));
    }
    let more = subject.stun.iter().map(|endpoint| Server {
        name: "--stun".to_owned(),
        endpoint: endpoint.clone(),
        is_stun: true,
    });
    found.extend(more);
    let mut seen = Vec::new();
    found.retain(|server| {
        let is_new = !seen.contains(&server.endpoint);
        seen.push(server.endpoint.clone());
        is_new
    });
    found
}
