//! `natpunch plan`: what `apply` would change on this host, without changing it; with `--live`,
//! what somebody else changed.

use std::io::Write as _;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use natpunch_wg::{Effect, Interface, InterfaceSpec};

use super::agents::agent_of;
use crate::agent::plan::{PlanReport, report};
use crate::agent::rollout::journal::Journal;
use crate::agent::rollout::{self, Release};
use crate::agent::services::hosts;
use crate::agent::{AgentError, clash};
use crate::cli::args::PlanArgs;
use crate::cli::exit::Exit;
use crate::cli::{CliError, json};
use crate::control::{Client, Request};
use crate::source::{Location, Look};
use crate::{config, control};

/// Prints the plan.
///
/// # Errors
/// The mesh file is wrong, or the host can't be read.
pub(in crate::cli) fn run(args: &PlanArgs) -> Result<ExitCode, CliError> {
    let plan = match &args.source {
        Some(source) => of_source(source, args)?,
        None => live(args)?,
    };
    let mut out = anstream::stdout();
    if args.json {
        write!(out, "{}", json::object(&plan)?)?;
    } else {
        write!(out, "{}", render(&plan, args.live))?;
    }
    Ok(if plan.changes.is_empty() {
        ExitCode::SUCCESS
    } else {
        Exit::Changes.into()
    })
}

fn of_source(source: &Location, args: &PlanArgs) -> Result<PlanReport, CliError> {
    let look = Look::at(source, args.trust.as_deref(), &control::state_dir())?;
    let mesh = config::load(look.path()).map_err(AgentError::from)?;
    let node =
        config::resolve_node_at(&mesh, &args.local.clone().into()).map_err(AgentError::from)?;
    let wanted = InterfaceSpec {
        adopt: args.adopt,
        ..clash::interface(&node, &control::runtime_dir())?
    };
    let plan = Interface::plan(&wanted).map_err(AgentError::from)?;
    // The version that runs knows the names of peers that go, and what the change takes away.
    let running = Journal::new(&control::state_dir(), &node.interface).peek();
    let before = running.and_then(|entry| Release::load(entry.good).ok());
    let before = before.as_ref().map(|before| &before.node);
    let needs = rollout::refusals(before, &node, &args.allow);
    let mut report = report(&node, before, &plan, &needs);
    let file = hosts::path();
    // A file that can't be read is the agent's to complain of; the plan of the tunnels is exact
    // without it.
    if let Ok(Some(difference)) = hosts::compare(&file, &node.interface, &hosts::names(&node)) {
        report.add_hosts(&file, &difference);
    }
    Ok(report)
}

fn live(args: &PlanArgs) -> Result<PlanReport, CliError> {
    let directory = control::runtime_dir();
    let interface = agent_of(&directory, args.interface.as_deref())?;
    let answer = Client::connect(&directory, &interface)?.ask(Request::Drift)?;
    serde_json::from_value(answer).map_err(|error| {
        CliError::new(format!(
            "the agent speaks another version of natpunch: {error}"
        ))
        .help("restart the agent, tunnels stay up meanwhile")
    })
}

/// The plan for people, with ANSI colours.
fn render(plan: &PlanReport, live: bool) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    if plan.changes.is_empty() {
        let what = if live {
            "is as the mesh file wants it"
        } else {
            "needs no change"
        };
        let _ = writeln!(
            text,
            "{} {what} (revision {})",
            plan.interface, plan.revision
        );
    }
    let width = plan
        .changes
        .iter()
        .map(|change| change.text.chars().count())
        .max()
        .unwrap_or_default()
        .min(WIDEST);
    for change in &plan.changes {
        let colour = match change.sign.as_str() {
            "+" => AnsiColor::Green,
            "-" => AnsiColor::Red,
            _ => AnsiColor::Yellow,
        };
        let style = Style::new().fg_color(Some(colour.into()));
        let effect = match change.effect {
            Effect::None => Style::new().dimmed(),
            Effect::Rehandshake | Effect::Interruption => Style::new().bold(),
        };
        let _ = writeln!(
            text,
            "{style}{} {:width$}{style:#}  {effect}traffic: {}{effect:#}",
            change.sign, change.text, change.effect
        );
    }
    if let Some(port) = plan.serve.filter(|_| !live) {
        let last = port.saturating_add(config::SERVE_PORTS - 1);
        let _ = writeln!(
            text,
            "{} serves the mesh: UDP ports {port} to {last} must be open",
            plan.node
        );
    }
    for need in &plan.needs {
        let style = Style::new().fg_color(Some(AnsiColor::Red.into())).bold();
        let _ = writeln!(
            text,
            "{style}refused{style:#} without --allow {}: {}",
            need.allow, need.what
        );
    }
    if !plan.changes.is_empty() {
        let count = |sign| {
            plan.changes
                .iter()
                .filter(|change| change.sign == sign)
                .count()
        };
        let _ = writeln!(
            text,
            "{}: {} to add, {} to change, {} to remove on {} (plan {})",
            if live { "drift" } else { "plan" },
            count("+"),
            count("~"),
            count("-"),
            plan.interface,
            plan.id
        );
    }
    text
}

/// Longer lines, in characters, push their effect out of its column.
const WIDEST: usize = 70;
