//! `natpunch plan`: what `apply` would change on this host, without changing it.

use std::io::Write as _;
use std::process::ExitCode;

use natpunch_wg::Interface;

use super::CliError;
use super::args::PlanArgs;
use crate::agent::{AgentError, spec};
use crate::source::Look;
use crate::{config, control};

/// Exit code when there is something to change.
const CHANGES: u8 = 2;

/// Prints the plan.
///
/// # Errors
/// The mesh file is wrong, or the host can't be read.
pub(super) fn run(args: &PlanArgs) -> Result<ExitCode, CliError> {
    let look = Look::at(&args.source, args.trust.as_deref(), &control::state_dir())?;
    let mesh = config::load(look.path()).map_err(AgentError::from)?;
    let node = config::resolve_node(&mesh, args.private_key_file.as_deref()).map_err(AgentError::from)?;
    let wanted = spec::interface(&node, &control::runtime_dir())?;
    let plan = Interface::plan(&wanted).map_err(AgentError::from)?;
    let mut out = anstream::stdout();
    if args.json {
        let text = serde_json::to_string_pretty(&plan).map_err(|error| CliError::new(error.to_string()))?;
        writeln!(out, "{text}")?;
    } else if plan.changes.is_empty() {
        writeln!(out, "nothing to change on {}", node.interface)?;
    } else {
        for change in &plan.changes {
            writeln!(out, "{change}")?;
        }
        writeln!(out, "{} changes on {}", plan.changes.len(), node.interface)?;
    }
    Ok(if plan.changes.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(CHANGES) })
}
