//! `natpunch plugin list`.

use std::io::Write as _;
use std::process::ExitCode;

use serde_json::json;

use super::args::PluginListArgs;
use crate::cli::{CliError, json};
use crate::config::Kind;
use crate::plugins::registry;

pub(super) fn run(args: &PluginListArgs) -> Result<ExitCode, CliError> {
    let mut kinds = registry::kinds();
    kinds.sort_by_key(Kind::id);
    let mut out = anstream::stdout().lock();
    if args.json {
        let one = |kind: &Kind| {
            json!({
                "plugin": kind.id(),
                "about": kind.about(),
                "abilities": kind.abilities().names(),
            })
        };
        let plugins: Vec<_> = kinds.iter().map(one).collect();
        let list = json::object(&json!({ "plugins": plugins }))?;
        write!(out, "{list}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let longest = |text: fn(&Kind) -> &'static str| {
        let lengths = kinds.iter().map(|kind| text(kind).len());
        lengths.max().unwrap_or_default()
    };
    let (ids, abouts) = (longest(Kind::id), longest(Kind::about));
    for kind in &kinds {
        let abilities = match kind.abilities().names() {
            names if names.is_empty() => "-".to_owned(),
            names => names.join(", "),
        };
        let (id, about) = (kind.id(), kind.about());
        writeln!(out, "{id:ids$}  {about:abouts$}  {abilities}")?;
    }
    writeln!(
        out,
        "\ndocs/config.md has their settings, docs/how-to/write-a-plugin.md how to write one."
    )?;
    Ok(ExitCode::SUCCESS)
}
