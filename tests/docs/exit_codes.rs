//! The table of exit codes is the program's.

use std::fs;
use std::process::Command;

use natpunch::cli::exit::{Exit, Verdict};

use crate::blocks::root;

#[test]
fn the_documented_exit_codes_are_all_that_there_are() {
    let text = fs::read_to_string(root("docs/reference/cli.md")).unwrap();
    let (_, section) = text.split_once("## Exit codes\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let (table, judgements) = section.split_once("`status --check`").unwrap();
    let documented = |table: &str| -> Vec<u8> {
        let first = |line: &str| line.strip_prefix("| ")?.split(' ').next()?.parse().ok();
        table.lines().filter_map(first).collect()
    };
    let mut codes = vec![0];
    codes.extend(Exit::ALL.map(Exit::code));
    assert_eq!(documented(table), codes);
    assert_eq!(documented(judgements), Verdict::ALL.map(Verdict::code));
    for verdict in Verdict::ALL {
        assert!(judgements.contains(&format!("| {} | `{}`: ", verdict.code(), verdict.word())));
    }
}

#[test]
fn wrong_usage_of_plan_is_not_taken_for_a_plan_with_changes() {
    for words in [
        &["plan"][..],
        &["plan", "--liv"],
        &["plan", "git+https://git.example/mesh.git"],
        &["nonsense"],
        &[],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_natpunch"));
        let status = command.args(words).output().unwrap().status;
        assert_eq!(
            status.code(),
            Some(i32::from(Exit::Usage.code())),
            "{words:?}"
        );
    }
    let mut help = Command::new(env!("CARGO_BIN_EXE_natpunch"));
    assert!(
        help.args(["plan", "--help"])
            .output()
            .unwrap()
            .status
            .success()
    );
}
