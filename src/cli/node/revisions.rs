//! `natpunch status --mesh`: which version of the mesh every node runs.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use super::agents::agent_of;
use super::status::duration;
use crate::agent::{MeshRevisions, PeerRevision, Runs, Standing};
use crate::cli::args::StatusArgs;
use crate::cli::{CliError, json, table};
use crate::control::{Client, Request, runtime_dir};

/// Asks the agent, which asks the nodes.
///
/// # Errors
/// No agent runs here.
pub(in crate::cli) fn run(args: &StatusArgs) -> Result<ExitCode, CliError> {
    let directory = runtime_dir();
    let interface = agent_of(&directory, args.interface.as_deref())?;
    let answer = Client::connect(&directory, &interface)?.ask(Request::Mesh)?;
    let text = if args.json {
        json::object(&answer)?
    } else {
        let mesh = serde_json::from_value::<MeshRevisions>(answer).map_err(|error| {
            CliError::new(format!("the agent speaks another version of natpunch: {error}"))
                .help("restart the agent, tunnels stay up meanwhile; `status --mesh --json` shows its answer as it is")
        })?;
        render(&mesh)
    };
    anstream::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn render(mesh: &MeshRevisions) -> String {
    let mut table = table::new();
    table.set_header(["PEER", "MESH", "REVISION", "RUNS FOR", "NATPUNCH", "HEARD"]);
    table.add_row([
        mesh.node.clone(),
        format!("this node{}", refuses(&mesh.runs)),
        mesh.runs.revision.clone(),
        duration(mesh.runs.runs_for_s),
        mesh.runs.version.clone(),
        String::new(),
    ]);
    for PeerRevision {
        name,
        standing,
        runs,
        heard_s,
    } in &mesh.peers
    {
        let column =
            |of: &dyn Fn(&Runs) -> String| runs.as_ref().map_or_else(|| "-".to_owned(), of);
        table.add_row([
            name.clone(),
            format!(
                "{}{}",
                word(*standing),
                runs.as_ref().map(refuses).unwrap_or_default()
            ),
            column(&|runs| runs.revision.clone()),
            column(&|runs| duration(runs.runs_for_s)),
            column(&|runs| runs.version.clone()),
            heard_s.map_or_else(
                || "-".to_owned(),
                |seconds| format!("{} ago", duration(seconds)),
            ),
        ]);
    }
    let mut text = table::text(&table);
    let count = |wanted: &[Standing]| {
        mesh.peers
            .iter()
            .filter(|peer| wanted.contains(&peer.standing))
            .count()
    };
    let _ = write!(
        text,
        "\nmesh {}: {} as this node, {} with another version, {} unknown\n",
        mesh.mesh,
        count(&[Standing::Same]),
        count(&[Standing::Behind, Standing::Ahead, Standing::Differs]),
        count(&[Standing::Silent, Standing::Away, Standing::Plain]),
    );
    text
}

fn refuses(runs: &Runs) -> &'static str {
    if runs.not_newest {
        ", does not run its newest"
    } else {
        ""
    }
}

fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Same => "same",
        Standing::Behind => "behind",
        Standing::Ahead => "ahead",
        Standing::Differs => "differs",
        Standing::Silent => "silent",
        Standing::Away => "not connected",
        Standing::Plain => "plain WireGuard",
    }
}
