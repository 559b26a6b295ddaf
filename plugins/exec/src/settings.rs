//! The settings, and what is to be known of an instance.

use std::path::{Component, Path, PathBuf};

use natpunch_plugin::{Abilities, Description, Discovery, Flaw, Instance, Runs, Secrets};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::Plugin;
use crate::own_settings::{self, OwnSettings};

/// Where a mesh file may name programs. A mesh file can come from a web server or from git: whoever
/// writes it picks among the programs that this host's administrator put here, and can't name a
/// shell.
const DIRECTORIES: [&str; 3] = [
    "/usr/local/lib/natpunch",
    "/usr/lib/natpunch",
    "/etc/natpunch/plugins",
];
const MOST_ARGUMENTS: usize = 64;
const LONGEST_ARGUMENT: usize = 4096;
const MOST_PATHS: usize = 64;
/// The longest user name of Linux (`useradd`).
const LONGEST_USER: usize = 32;

/// `[discovery.NAME]` with `plugin = "exec"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The program and its arguments, without a shell. The program is a file in
    /// `/usr/local/lib/natpunch`, `/usr/lib/natpunch` or `/etc/natpunch/plugins`, which nobody but
    /// root can write to.
    pub command: Vec<String>,
    /// The system user that the program runs as, such as `nobody`. `root` runs it with all rights.
    pub user: String,
    /// Whether the program makes both sides of a pair probe at the same moment.
    #[serde(default)]
    pub meetings: bool,
    /// Files and directories that the program may read, beside those of the system.
    #[serde(default)]
    pub read_paths: Vec<PathBuf>,
    /// Files and directories that the program may read and change. It can change no others where
    /// the kernel has Landlock.
    #[serde(default)]
    pub write_paths: Vec<PathBuf>,
    /// The program's own settings. It names them when it starts, and natpunch says then what is
    /// wrong with them.
    #[serde(default)]
    pub settings: OwnSettings,
}

/// A program that speaks the plugin protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The program, and its arguments.
    pub command: Vec<String>,
    /// The system user that it runs as.
    pub user: String,
    /// Whether it may arrange meetings.
    pub meetings: bool,
    /// What it may read, beside the system's files.
    pub read_paths: Vec<PathBuf>,
    /// What it may read and change.
    pub write_paths: Vec<PathBuf>,
    /// What it is told of its own settings.
    pub settings: OwnSettings,
}

impl natpunch_plugin::Settings for Settings {
    const PLUGIN: &'static str = "exec";
    const ABOUT: &'static str = "a program of your own that speaks the plugin protocol";
    const ABILITIES: Abilities = Abilities {
        records: true,
        mappings: true,
        meetings: true,
        ..Abilities::NONE
    };
    type Instance = Program;

    fn check(self) -> Result<Program, Vec<Flaw>> {
        let problems = [
            check_command(&self.command),
            check_user(&self.user),
            check_paths("read_paths", &self.read_paths),
            check_paths("write_paths", &self.write_paths),
            check_own(&self.settings),
        ];
        let flaws: Vec<Flaw> = problems.into_iter().filter_map(Result::err).collect();
        if !flaws.is_empty() {
            return Err(flaws);
        }
        Ok(Program {
            command: self.command,
            user: self.user,
            meetings: self.meetings,
            read_paths: self.read_paths,
            write_paths: self.write_paths,
            settings: self.settings,
        })
    }
}

fn check_paths(key: &'static str, paths: &[PathBuf]) -> Result<(), Flaw> {
    let flaw = |problem: String| Flaw {
        key,
        problem,
        expected: "expected absolute paths",
        help: "write each from the root on, such as \"/srv/natpunch-records\"".to_owned(),
    };
    let is_whole =
        |path: &PathBuf| path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0);
    if paths.len() > MOST_PATHS {
        return Err(flaw(format!("it has more than {MOST_PATHS} paths")));
    }
    match paths.iter().find(|path| !is_whole(path)) {
        Some(path) => Err(flaw(format!(
            "`{}` is not an absolute path",
            path.display()
        ))),
        None => Ok(()),
    }
}

/// What the program says of its settings is not known before it runs.
fn check_own(settings: &OwnSettings) -> Result<(), Flaw> {
    let length = serde_json::to_string(settings).map_or(usize::MAX, |text| text.len());
    if settings.len() <= own_settings::MOST && length <= own_settings::LONGEST {
        return Ok(());
    }
    Err(Flaw {
        key: "settings",
        problem: format!(
            "there are {} settings of {length} bytes; a program has at most {} of {} bytes \
             together",
            settings.len(),
            own_settings::MOST,
            own_settings::LONGEST
        ),
        expected: "expected fewer or shorter settings",
        help: "put them into a file that the program reads".to_owned(),
    })
}

fn check_command(command: &[String]) -> Result<(), Flaw> {
    let flaw = |problem: &str, help: &str| Flaw {
        key: "command",
        problem: problem.to_owned(),
        expected: "expected a program and its arguments",
        help: help.to_owned(),
    };
    let Some(program) = command.first() else {
        return Err(flaw(
            "there is no program in it",
            "write it like [\"/usr/local/lib/natpunch/my-plugin\", \"an argument\"]",
        ));
    };
    if !is_in_a_directory(Path::new(program)) {
        return Err(flaw(
            "the program is outside of the directories for plugins",
            "install it into /usr/local/lib/natpunch on each node and write its path there: the \
             mesh file may start nothing else",
        ));
    }
    if command.len() > MOST_ARGUMENTS + 1 {
        return Err(flaw(
            "it has more than 64 arguments",
            "put them into a file that the program reads",
        ));
    }
    let is_bad = |argument: &String| argument.len() > LONGEST_ARGUMENT || argument.contains('\0');
    if command.iter().any(is_bad) {
        return Err(flaw(
            "an argument is longer than 4096 bytes, or has a NUL in it",
            "put it into a file that the program reads",
        ));
    }
    Ok(())
}

/// Directly or deeper below one of the [`DIRECTORIES`], without a step back.
fn is_in_a_directory(program: &Path) -> bool {
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::RootDir);
    program.components().all(is_plain)
        && DIRECTORIES
            .iter()
            .filter_map(|directory| program.strip_prefix(directory).ok())
            .any(|below| below.file_name().is_some())
}

fn check_user(user: &str) -> Result<(), Flaw> {
    let in_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let starts_well = user.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    if starts_well && user.len() <= LONGEST_USER && user.bytes().all(in_name) {
        return Ok(());
    }
    Err(Flaw {
        key: "user",
        problem: "this is not the name of a system user".to_owned(),
        expected: "expected a user's name",
        help: "write one that has nothing else to do, such as \"nobody\", or make one by \
               `useradd --system natpunch-plugin`"
            .to_owned(),
    })
}

impl Instance for Program {
    fn describe(&self) -> Description {
        Description {
            // The most that the program can do. What it says of itself when it starts takes away
            // from it.
            abilities: Abilities {
                records: true,
                mappings: true,
                meetings: self.meetings,
                ..Abilities::default()
            },
            finds_peers: true,
            ..Description::default()
        }
    }
}

impl Runs for Program {
    fn plugin(&self, _: &Secrets) -> Box<dyn Discovery> {
        Box::new(Plugin::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use natpunch_plugin::Settings as _;

    use super::*;

    fn flaws(command: &[&str], user: &str) -> Vec<&'static str> {
        let settings = Settings {
            command: command.iter().map(|&part| part.to_owned()).collect(),
            user: user.to_owned(),
            meetings: false,
            read_paths: Vec::new(),
            write_paths: Vec::new(),
            settings: OwnSettings::new(),
        };
        let flaws = settings.check().err().unwrap_or_default();
        flaws.iter().map(|flaw| flaw.key).collect()
    }

    #[test]
    fn a_mesh_file_starts_only_what_is_installed_for_it() {
        for good in ["/usr/local/lib/natpunch/a", "/etc/natpunch/plugins/b/c.py"] {
            assert!(flaws(&[good, "-c", "true"], "nobody").is_empty(), "{good}");
        }
        for bad in [
            "/bin/sh",
            "sh",
            "",
            "/usr/local/lib/natpunch",
            "/usr/local/lib/natpunch/",
            "/usr/local/lib/natpunchers/a",
            "/usr/local/lib/natpunch/../../../../bin/sh",
            "usr/local/lib/natpunch/a",
        ] {
            assert_eq!(flaws(&[bad], "nobody"), ["command"], "{bad}");
        }
        assert_eq!(flaws(&[], ""), ["command", "user"]);
    }

    #[test]
    fn arguments_have_bounds() {
        const PROGRAM: &str = "/usr/local/lib/natpunch/a";
        assert!(flaws(&[&[PROGRAM][..], &["x"; 64]].concat(), "nobody").is_empty());
        assert!(!flaws(&[&[PROGRAM][..], &["x"; 65]].concat(), "nobody").is_empty());
        assert!(!flaws(&[PROGRAM, &"x".repeat(4097)], "nobody").is_empty());
        assert!(!flaws(&[PROGRAM, "a\0b"], "nobody").is_empty());
    }
}
