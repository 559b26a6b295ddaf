//! `natpunch doctor`: whether this host and its network have what natpunch needs.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

use crate::agent::AgentError;
use crate::cli::args::DoctorArgs;
use crate::cli::exit::Exit;
use crate::cli::{CliError, json};
use crate::config::{self, MeshConfig, NodeConfig};
use crate::control;
use crate::doctor::{Check, Report, Subject, Verdict, examine};

/// Examines this host, and prints a line for each thing that was looked at.
///
/// # Errors
/// The mesh file is wrong.
pub(in crate::cli) fn run(args: &DoctorArgs) -> Result<ExitCode, CliError> {
    let mesh = args.mesh.as_deref().map(load).transpose()?;
    let node = mesh.as_ref().map(|mesh| node_of(mesh, args));
    let report = examine(&Subject {
        mesh: mesh.as_ref(),
        node: node
            .as_ref()
            .map(|node| node.as_ref().map_err(Clone::clone)),
        stun: &args.stun,
        runtime_dir: control::runtime_dir(),
    });
    let mut out = anstream::stdout();
    if args.json {
        write!(out, "{}", json::object(&report)?)?;
    } else {
        write!(out, "{}", render(&report))?;
    }
    Ok(if report.ok {
        ExitCode::SUCCESS
    } else {
        Exit::Unfit.into()
    })
}

fn load(path: &Path) -> Result<MeshConfig, CliError> {
    Ok(config::load(path).map_err(AgentError::from)?)
}

/// This host's part of the mesh, or in one line why it can't be had.
fn node_of(mesh: &MeshConfig, args: &DoctorArgs) -> Result<NodeConfig, String> {
    let node = config::resolve_node_at(mesh, &args.local.clone().into());
    node.map_err(|errors| {
        let first = errors.iter().next();
        first.map_or_else(|| errors.to_string(), |error| error.message().to_owned())
    })
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    let width = report
        .checks
        .iter()
        .map(|check| check.check.chars().count());
    let width = width.max().unwrap_or_default();
    for Check {
        check,
        verdict,
        text: found,
        help,
    } in &report.checks
    {
        let style = style(*verdict);
        let word = verdict.word();
        let _ = writeln!(text, "{style}{word:7}{style:#}  {check:width$}  {found}");
        if let Some(help) = help {
            let _ = writeln!(text, "{:7}  {:width$}  help: {help}", "", "");
        }
    }
    let count = |wanted| {
        report
            .checks
            .iter()
            .filter(|check| check.verdict == wanted)
            .count()
    };
    let _ = writeln!(
        text,
        "\n{} good, {} bad, {} unknown",
        count(Verdict::Good),
        count(Verdict::Bad),
        count(Verdict::Unknown)
    );
    text
}

fn style(verdict: Verdict) -> Style {
    let color = match verdict {
        Verdict::Good => AnsiColor::Green,
        Verdict::Bad => AnsiColor::Red,
        Verdict::Unknown => AnsiColor::Yellow,
    };
    Style::new().fg_color(Some(color.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_word_and_below_it_what_to_do() {
        let report = Report {
            ok: false,
            checks: vec![
                Check {
                    check: "TUN".to_owned(),
                    verdict: Verdict::Good,
                    text: "the embedded device can be made".to_owned(),
                    help: None,
                },
                Check {
                    check: "NAT of IPv4".to_owned(),
                    verdict: Verdict::Bad,
                    text: "hard".to_owned(),
                    help: Some("forward a port".to_owned()),
                },
            ],
        };
        let text = anstream::adapter::strip_str(&render(&report)).to_string();
        assert_eq!(
            text,
            "good     TUN          the embedded device can be made\n\
             bad      NAT of IPv4  hard\n                      help: forward a port\n\n\
             1 good, 1 bad, 0 unknown\n"
        );
    }
}
