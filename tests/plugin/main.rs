//! `natpunch plugin`: the programs that people write, good and broken, as their authors meet them.
//!
//! Each file of `broken` is a program that breaks one rule: it names the rule, and a part of the
//! sentence that its author reads.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod chaos;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

const NATPUNCH: &str = env!("CARGO_BIN_EXE_natpunch");
/// How many programs are tested at a time.
const AT_A_TIME: usize = 6;

fn natpunch(arguments: &[&str]) -> Output {
    let mut command = Command::new(NATPUNCH);
    command.args(["--log", "warn"]).args(arguments);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Copies a program to where only its owner can write to it, as a checkout may not be.
fn installed(program: &Path, directory: &Path) -> PathBuf {
    let file = directory.join(program.file_name().unwrap());
    fs::copy(program, &file).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

/// The rest of the line of a file that begins so.
fn line<'a>(text: &'a str, start: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(start))
        .unwrap()
}

/// What is not as the program's first lines say.
fn misjudged(program: &Path) -> Option<String> {
    let script = fs::read_to_string(program).unwrap();
    let (rules, says) = (line(&script, "# breaks: "), line(&script, "# says: "));
    let directory = tempfile::tempdir().unwrap();
    let file = installed(program, directory.path());
    let (file, path) = (file.to_str().unwrap(), directory.path().to_str().unwrap());
    let output = natpunch(&["plugin", "test", "--write", path, file, path]);
    let report = text(&output.stdout);
    let broken: Vec<&str> = report
        .lines()
        .filter_map(|line| line.strip_prefix("FAILS  "))
        .collect();
    let is_found = !broken.is_empty()
        && broken
            .iter()
            .any(|rule| rules.split(" | ").any(|one| one == *rule))
        && report.contains(says)
        && output.status.code() == Some(1);
    let name = program.file_name().unwrap().display();
    (!is_found).then(|| format!("{name}: not `{says}`:\n{report}{}", text(&output.stderr)))
}

#[test]
fn each_broken_program_is_told_what_it_breaks_and_what_to_do() {
    let programs = fs::read_dir(root("tests/plugin/broken")).unwrap();
    let programs: Vec<PathBuf> = programs.map(|entry| entry.unwrap().path()).collect();
    assert!(programs.len() >= 15);
    let left = Mutex::new(programs.iter());
    let misjudged: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let next = || left.lock().unwrap().next();
            std::iter::from_fn(next)
                .filter_map(|program| misjudged(program))
                .collect()
        };
        let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        let found = workers.into_iter().map(|worker| worker.join().unwrap());
        found.flat_map(|found: Vec<String>| found).collect()
    });
    assert!(misjudged.is_empty(), "{}", misjudged.join("\n"));
}

/// Tests a program that keeps all rules.
fn passes(arguments: &[&str], checks: usize) {
    let output = natpunch(&[&["plugin", "test"], arguments].concat());
    let report = text(&output.stdout);
    assert!(
        output.status.success() && report.ends_with(&format!("It keeps all {checks} rules.\n")),
        "{arguments:?}:\n{report}{}",
        text(&output.stderr)
    );
}

#[test]
fn the_examples_keep_all_rules() {
    std::thread::scope(|scope| {
        for example in ["file.py", "file.sh"] {
            scope.spawn(move || {
                let directory = tempfile::tempdir().unwrap();
                let program = root("examples/plugins").join(example);
                let file = installed(&program, directory.path());
                let records = directory.path().join("records");
                fs::create_dir(&records).unwrap();
                let (file, records) = (file.to_str().unwrap(), records.to_str().unwrap());
                let setting = format!("directory={records}");
                let arguments = match example {
                    "file.py" => vec!["--write", records, "--set", &setting, file],
                    _ => vec!["--write", records, file, records],
                };
                passes(&arguments, 10);
            });
        }
    });
}

/// Makes a plugin, and gives the command that its maker is told to test it by.
fn made(language: &str, directory: &Path) -> String {
    let made = natpunch(&[
        "plugin",
        "new",
        "--lang",
        language,
        directory.to_str().unwrap(),
    ]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let said = text(&made.stdout);
    line(&said, "next: ").to_owned()
}

#[test]
fn what_plugin_new_makes_keeps_all_rules() {
    let directory = tempfile::tempdir().unwrap();
    for language in ["python", "shell"] {
        let next = made(language, &directory.path().join(format!("my-{language}")));
        let file = next.strip_prefix("natpunch plugin test ").unwrap();
        passes(&[file], 9);
    }
}

#[test]
fn what_plugin_new_makes_in_rust_builds_and_keeps_all_rules() {
    let directory = tempfile::tempdir().unwrap();
    let next = made("rust", &directory.path().join("my-rust"));
    let (build, test) = next.split_once(" && ").unwrap();
    let mut words = build.split(' ');
    let mut cargo = Command::new(env!("CARGO"));
    assert_eq!(words.next(), Some("cargo"));
    // With the packages that this workspace has, so that nothing is fetched.
    fs::copy(
        root("Cargo.lock"),
        directory.path().join("my-rust/Cargo.lock"),
    )
    .unwrap();
    cargo
        .args(words)
        .args(["--offline", "--quiet"])
        .env_remove("CARGO_TARGET_DIR");
    let built = cargo.output().unwrap();
    assert!(built.status.success(), "{}", text(&built.stderr));
    passes(&[test.strip_prefix("natpunch plugin test ").unwrap()], 9);
}

#[test]
fn plugin_new_touches_nothing_that_is_there() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("notes"), "mine").unwrap();
    let there = directory.path().join("there");
    fs::create_dir(&there).unwrap();
    fs::write(there.join("notes"), "mine").unwrap();
    for (path, words) in [
        (there.to_str().unwrap(), "there are files in it already"),
        ("/tmp/Bad Name", "this is not a valid name for a plugin"),
    ] {
        let refused = natpunch(&["plugin", "new", "--lang", "python", path]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(
            text(&refused.stderr).contains(words),
            "{}",
            text(&refused.stderr)
        );
    }
    assert_eq!(fs::read_dir(&there).unwrap().count(), 1);
}

#[test]
fn plugin_list_names_every_plugin_of_this_build() {
    let schema: serde_json::Value = serde_json::from_slice(&natpunch(&["schema"]).stdout).unwrap();
    let forms = schema["$defs"]["Discovery"]["oneOf"].as_array().unwrap();
    let listed = text(&natpunch(&["plugin", "list"]).stdout);
    for form in forms {
        let plugin = form["properties"]["plugin"]["const"].as_str().unwrap();
        let line = listed
            .lines()
            .find(|line| line.split(' ').next() == Some(plugin));
        assert!(
            line.is_some_and(|line| line.len() > 20),
            "{plugin}: {listed}"
        );
    }
    let json = natpunch(&["plugin", "list", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let plugins = json["plugins"].as_array().unwrap();
    assert_eq!(plugins.len(), forms.len());
    let exec = plugins.iter().find(|plugin| plugin["plugin"] == "exec");
    assert_eq!(exec.unwrap()["abilities"][0], "meetings");
}
