//! `natpunch check`: validates a mesh for every node in it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use blake2::{Blake2s256, Digest as _};
use serde::Serialize;

use crate::cli::args::{CheckArgs, CheckFormat};
use crate::cli::report::{self, Severity};
use crate::cli::{CliError, json};
use crate::config::{self, ConfigErrors, MeshConfig};
use crate::control;
use crate::source::Look;

pub(in crate::cli) fn run(args: &CheckArgs) -> Result<ExitCode, CliError> {
    let look = Look::at(&args.source, args.trust.as_deref(), &control::state_dir())?;
    let loaded = config::load(look.path());
    let mesh = loaded.as_ref().ok();
    let found = Found {
        errors: loaded.as_ref().err(),
        warnings: mesh.and_then(config::lint),
        notes: mesh.and_then(config::notes),
    };
    let failed = found.errors.is_some() || args.strict && found.warnings.is_some();
    let warnings = found.warnings.as_ref().map_or(0, ConfigErrors::count);
    let mut out = anstream::stdout().lock();
    match if args.json {
        CheckFormat::Json
    } else {
        args.format
    } {
        CheckFormat::Text => {
            let all = [
                (&found.warnings, Severity::Warning),
                (&found.notes, Severity::Note),
            ];
            for (findings, severity) in all
                .iter()
                .filter_map(|(findings, severity)| Some((findings.as_ref()?, *severity)))
            {
                // With standard error closed there is nobody to tell.
                let _ = writeln!(
                    anstream::stderr().lock(),
                    "{}\n",
                    report::render(findings, severity)
                );
            }
            let mesh = loaded?;
            let word = if failed { "not ok" } else { "ok" };
            writeln!(out, "{word}: {}", Summary::of(&mesh).line(warnings))?;
        }
        CheckFormat::Json => {
            let verdict = Verdict {
                ok: found.errors.is_none(),
                errors: found.errors.map(findings).unwrap_or_default(),
                warnings: found.warnings.as_ref().map(findings).unwrap_or_default(),
                notes: found.notes.as_ref().map(findings).unwrap_or_default(),
                mesh: mesh.map(Summary::of),
            };
            write!(out, "{}", json::object(&verdict)?)?;
        }
        CheckFormat::Github => {
            for (level, finding) in found.all() {
                writeln!(out, "{}", annotation(level, &finding))?;
            }
            if let Some(mesh) = mesh {
                writeln!(out, "{}", Summary::of(mesh).line(warnings))?;
            }
        }
        CheckFormat::Gitlab => {
            let mut seen = BTreeMap::new();
            let report: Vec<Issue> = found
                .all()
                .map(|(level, finding)| Issue::of(level, finding, &mut seen))
                .collect();
            serde_json::to_writer_pretty(&mut out, &report).map_err(std::io::Error::from)?;
            writeln!(out)?;
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Everything that was found.
struct Found<'a> {
    errors: Option<&'a ConfigErrors>,
    warnings: Option<ConfigErrors>,
    notes: Option<ConfigErrors>,
}

impl Found<'_> {
    fn all(&self) -> impl Iterator<Item = (Severity, Finding)> {
        [
            (Severity::Error, self.errors),
            (Severity::Warning, self.warnings.as_ref()),
            (Severity::Note, self.notes.as_ref()),
        ]
        .into_iter()
        .filter_map(|(severity, found)| Some((severity, found?)))
        .flat_map(|(severity, found)| {
            findings(found)
                .into_iter()
                .map(move |finding| (severity, finding))
        })
    }
}

/// A workflow command
/// (<https://docs.github.com/actions/reference/workflow-commands-for-github-actions>).
fn annotation(severity: Severity, finding: &Finding) -> String {
    let command = match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "notice",
    };
    let data = |text: &str| {
        text.replace('%', "%25")
            .replace('\r', "%0D")
            .replace('\n', "%0A")
    };
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let mut properties = Vec::new();
    if let Some(file) = &finding.file {
        properties.push(format!("file={}", property(&relative(file))));
    }
    properties.extend(finding.line.map(|line| format!("line={line}")));
    properties.extend(finding.column.map(|column| format!("col={column}")));
    properties.push(format!("title=natpunch {}", property(finding.rule)));
    let text = std::iter::once(&finding.message)
        .chain(&finding.help)
        .map(|line| data(line))
        .collect::<Vec<_>>();
    format!("::{command} {}::{}", properties.join(","), text.join("%0A"))
}

/// An issue of a code quality report
/// (<https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format>).
#[derive(Serialize)]
struct Issue {
    description: String,
    check_name: &'static str,
    /// The same as long as the finding is the same, wherever it moves in its file.
    fingerprint: String,
    severity: &'static str,
    location: IssueLocation,
}

#[derive(Serialize)]
struct IssueLocation {
    path: String,
    lines: IssueLines,
}

#[derive(Serialize)]
struct IssueLines {
    begin: usize,
}

impl Issue {
    fn of(severity: Severity, finding: Finding, seen: &mut BTreeMap<String, u32>) -> Self {
        let path = finding.file.as_deref().map(relative).unwrap_or_default();
        let identity = format!("{}\n{path}\n{}", finding.rule, finding.message);
        let count = seen
            .entry(identity.clone())
            .and_modify(|count| *count += 1)
            .or_insert(0);
        let hash: [u8; 32] = Blake2s256::digest(format!("{identity}\n{count}")).into();
        Self {
            description: std::iter::once(finding.message)
                .chain(finding.help)
                .collect::<Vec<_>>()
                .join("\n"),
            check_name: finding.rule,
            fingerprint: hash
                .iter()
                .take(16)
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            severity: match severity {
                Severity::Error => "critical",
                Severity::Warning => "minor",
                Severity::Note => "info",
            },
            location: IssueLocation {
                path,
                lines: IssueLines {
                    begin: finding.line.unwrap_or(1),
                },
            },
        }
    }
}

/// A path as CI services want it: from the directory in which the command runs, which is that of
/// the repository.
fn relative(file: &str) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let file = Path::new(file);
    let file = file
        .strip_prefix(&here)
        .or_else(|_| file.strip_prefix("."))
        .unwrap_or(file);
    file.display().to_string()
}

/// The result for machines.
#[derive(Serialize)]
struct Verdict {
    ok: bool,
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
    notes: Vec<Finding>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mesh: Option<Summary>,
}

#[derive(Serialize)]
struct Finding {
    rule: &'static str,
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
            rule: error.rule_name(),
            message: error.message().to_owned(),
            file: location
                .as_ref()
                .map(|location| location.file.display().to_string()),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
            help: error.helps().map(str::to_owned).collect(),
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
            discovery: mesh
                .discovery
                .iter()
                .map(|instance| instance.name.clone())
                .collect(),
            files: mesh.files.len(),
        }
    }

    fn line(&self, warnings: usize) -> String {
        let plain = match self.peers - self.managed {
            0 => String::new(),
            plain => format!(" ({plain} plain WireGuard)"),
        };
        let mut parts = vec![
            format!("mesh {}", self.name),
            format!("{}{plain}", count(self.peers, "peer")),
        ];
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
