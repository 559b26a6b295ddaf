//! `natpunch plugin new`: a plugin to begin with.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use super::args::{Language, PluginNewArgs};
use crate::cli::CliError;

/// The name in the skeletons.
const NAME: &str = "my-plugin";
/// The longest name.
const LONGEST: usize = 40;
const PYTHON: &str = include_str!("skeleton/plugin.py");
const SHELL: &str = include_str!("skeleton/plugin.sh");
const RUST: &str = include_str!("skeleton/plugin.rs");
const CARGO: &str = include_str!("skeleton/plugin.toml");

pub(super) fn run(args: &PluginNewArgs) -> Result<ExitCode, CliError> {
    let directory = &args.directory;
    let name = directory.file_name().and_then(|name| name.to_str());
    let name = name.filter(|name| is_name(name)).ok_or_else(|| {
        let problem = format!(
            "{}: this is not a valid name for a plugin",
            directory.display()
        );
        CliError::new(problem).help(format!(
            "end it in lower-case letters, digits and `-`, {LONGEST} at most, a letter first"
        ))
    })?;
    let is_used = fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some());
    if is_used {
        let problem = format!("{}: there are files in it already", directory.display());
        return Err(CliError::new(problem).help("name a new directory"));
    }
    let (files, build, command) = match args.lang {
        Language::Python => {
            let file = format!("{name}.py");
            (vec![(file.clone(), PYTHON, 0o755)], None, file)
        }
        Language::Shell => {
            let file = format!("{name}.sh");
            (vec![(file.clone(), SHELL, 0o755)], None, file)
        }
        Language::Rust => (
            vec![
                ("Cargo.toml".to_owned(), CARGO, 0o644),
                ("src/main.rs".to_owned(), RUST, 0o644),
            ],
            Some(format!(
                "cargo build --manifest-path {}/Cargo.toml",
                directory.display()
            )),
            format!("target/debug/{name}"),
        ),
    };
    for (file, text, mode) in files {
        let path = directory.join(file);
        write(&path, &text.replace(NAME, name), mode)
            .map_err(|error| CliError::new(format!("{}: {error}", path.display())))?;
    }
    let mut out = anstream::stdout().lock();
    writeln!(out, "made {}", directory.display())?;
    let test = format!("natpunch plugin test {}", directory.join(command).display());
    let next: Vec<String> = build.into_iter().chain([test]).collect();
    writeln!(out, "next: {}", next.join(" && "))?;
    Ok(ExitCode::SUCCESS)
}

fn is_name(name: &str) -> bool {
    let in_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.len() <= LONGEST
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(in_name)
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(text.as_bytes())
}
