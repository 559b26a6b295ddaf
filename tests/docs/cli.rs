//! docs/reference/cli.md is written from the command line's own description.

use std::fmt::Write as _;
use std::fs;

use clap::builder::PossibleValue;
use clap::{Arg, ArgAction, Command, CommandFactory as _};
use natpunch::cli::args::Cli;

use crate::blocks::root;

const INTRODUCTION: &str = include_str!("cli-introduction.md");
const PAGE: &str = "docs/reference/cli.md";

#[test]
fn the_reference_of_the_command_line_is_that_of_this_version() {
    let written = reference();
    if std::env::var_os("BLESS").is_some() {
        fs::write(root(PAGE), written).unwrap();
        return;
    }
    assert!(
        fs::read_to_string(root(PAGE)).unwrap() == written,
        "{PAGE} is not of this version: BLESS=1 cargo test --test docs reference"
    );
}

fn reference() -> String {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let mut text = INTRODUCTION.to_owned();
    text.push_str("\n## Options of every command\n");
    table(
        &mut text,
        program.get_arguments().filter(|arg| arg.is_global_set()),
    );
    for command in program.get_subcommands() {
        section(&mut text, command);
    }
    text
}

/// A command, and then those that are part of it.
fn section(text: &mut String, command: &Command) {
    if command.is_hide_set() {
        return;
    }
    let name = command.get_bin_name().unwrap();
    let about = command.get_long_about().or(command.get_about()).unwrap();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim().trim_start_matches("Usage: ");
    let usage: Vec<&str> = usage.lines().map(str::trim).collect();
    let usage = usage.join("\n");
    write!(text, "\n## `{name}`\n\n{about}.\n\n```text\n{usage}\n```\n").unwrap();
    let own =
        |arg: &&Arg| !arg.is_global_set() && !matches!(arg.get_id().as_str(), "help" | "version");
    table(text, command.get_arguments().filter(own));
    for part in command.get_subcommands() {
        section(text, part);
    }
}

fn table<'a>(text: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    let rows: Vec<String> = arguments
        .filter(|arg| !arg.is_hide_set())
        .map(|arg| format!("| `{}` | {} |\n", written(arg), explained(arg)))
        .collect();
    if rows.is_empty() {
        return;
    }
    write!(
        text,
        "\n| argument | meaning |\n|---|---|\n{}",
        rows.concat()
    )
    .unwrap();
}

/// As it is typed.
fn written(arg: &Arg) -> String {
    let value = match arg.get_action() {
        ArgAction::Set | ArgAction::Append => {
            let names = arg.get_value_names().unwrap_or_default();
            names.iter().map(|name| format!(" {name}")).collect()
        }
        _ => String::new(),
    };
    let long = arg.get_long().map(|long| format!("--{long}"));
    let short = arg.get_short().map(|short| format!("-{short}"));
    let names: Vec<String> = short.into_iter().chain(long).collect();
    match names.is_empty() {
        true => value.trim().to_owned(),
        false => format!("{}{value}", names.join(", ")),
    }
}

/// What it means, with the values that it takes and what holds without it.
fn explained(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help()).unwrap().to_string();
    let mut text = help.replace('\n', " ").replace('|', "\\|");
    if !text.ends_with('.') {
        text.push('.');
    }
    let values: Vec<PossibleValue> = match arg.get_action() {
        ArgAction::Set | ArgAction::Append => arg.get_possible_values(),
        _ => Vec::new(),
    };
    if !values.is_empty() {
        let values: Vec<String> = values.iter().map(value).collect();
        write!(text, " One of {}.", values.join(", ")).unwrap();
    }
    let defaults: Vec<_> = arg.get_default_values().iter().collect();
    if let [default] = defaults.as_slice()
        && arg.get_action().takes_values()
    {
        write!(text, " Default: `{}`.", default.to_string_lossy()).unwrap();
    }
    text
}

fn value(value: &PossibleValue) -> String {
    let name = value.get_name();
    match value.get_help() {
        Some(help) => format!("`{name}` ({})", help.to_string().trim_end_matches('.')),
        None => format!("`{name}`"),
    }
}
