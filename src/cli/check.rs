//! `natpunch check`: validates a mesh for every node in it.

use std::io::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use super::CliError;
use super::args::CheckArgs;
use super::report::{self, Severity};
use crate::config::{self, ConfigErrors, MeshConfig};

pub(super) fn run(args: &CheckArgs) -> Result<ExitCode, CliError> {
    let loaded = config::load(&args.path);
    let warnings = loaded.as_ref().ok().and_then(config::lint);
    if args.json {
        let verdict = Verdict {
            ok: loaded.is_ok(),
            errors: loaded.as_ref().err().map(findings).unwrap_or_default(),
            warnings: warnings.as_ref().map(findings).unwrap_or_default(),
            mesh: loaded.as_ref().ok().map(Summary::of),
        };
        let mut out = std::io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, &verdict).map_err(std::io::Error::from)?;
        writeln!(out)?;
        return Ok(if verdict.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mesh = loaded?;
    if let Some(warnings) = &warnings {
        // With standard error closed there is nobody to tell.
        let _ = writeln!(anstream::stderr().lock(), "{}\n", report::render(warnings, Severity::Warning));
    }
    writeln!(anstream::stdout().lock(), "ok: {}", Summary::of(&mesh).line(warnings.map_or(0, |w| w.count())))?;
    Ok(ExitCode::SUCCESS)
}

/// The result for machines.
#[derive(Serialize)]
struct Verdict {
    ok: bool,
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mesh: Option<Summary>,
}

#[derive(Serialize)]
struct Finding {
    message: String,
    file: Option<String>,
    /// From 1; null if the finding is about a file as a whole.
    line: Option<usize>,
    column: Option<usize>,
    help: Vec<String>,
}

fn findings(errors: &ConfigErrors) -> Vec<Finding> {
    let finding = |error| {
        let location = errors.location(error);
        let whole = errors.whole_file(error);
        let place = location.as_ref().filter(|_| whole.is_none());
        Finding {
            message: error.message().to_owned(),
            file: location.as_ref().map(|location| location.file.display().to_string()),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
            help: error.hints().map(str::to_owned).collect(),
        }
    };
    errors.iter().map(finding).collect()
}

#[derive(Serialize)]
struct Summary {
    name: String,
    peers: usize,
    managed: usize,
    routes: usize,
    discovery: Vec<String>,
    files: usize,
}

impl Summary {
    fn of(mesh: &MeshConfig) -> Self {
        Self {
            name: mesh.name.clone(),
            peers: mesh.peers.len(),
            managed: mesh.peers.values().filter(|peer| peer.managed).count(),
            routes: mesh.peers.values().map(|peer| peer.routes.len()).sum(),
            discovery: mesh.discovery.iter().map(|instance| instance.name.clone()).collect(),
            files: mesh.files.len(),
        }
    }

    fn line(&self, warnings: usize) -> String {
        let plain = match self.peers - self.managed {
            0 => String::new(),
            plain => format!(" ({plain} plain WireGuard)"),
        };
        let mut parts = vec![format!("mesh {}", self.name), format!("{}{plain}", count(self.peers, "peer"))];
        if self.routes > 0 {
            parts.push(count(self.routes, "route"));
        }
        if !self.discovery.is_empty() {
            parts.push(format!("discovery by {}", self.discovery.join(" and ")));
        }
        if self.files > 1 {
            parts.push(count(self.files, "file"));
        }
        if warnings > 0 {
            parts.push(count(warnings, "warning"));
        }
        parts.join(", ")
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
