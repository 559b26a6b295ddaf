//! docs/how-to/git.md: the SSH configuration that it shows is the example's.

use std::fs;

use crate::blocks::{Block, root};

#[test]
fn the_ssh_configuration_that_is_shown_is_the_example_which_is_tested_against_sshd() {
    let shown = Block::named("docs/how-to/git.md", "ssh-config").text;
    let example = fs::read_to_string(root("examples/gitops/ssh_config.conf")).unwrap();
    let lines = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lines(&shown), lines(&example));
}

#[test]
fn the_files_that_the_ssh_configuration_names_are_made_by_the_block_before_it() {
    let made = Block::named("docs/how-to/git.md", "ssh-key").text;
    let config = Block::named("docs/how-to/git.md", "ssh-config").text;
    let files: Vec<&str> = config
        .split_whitespace()
        .filter(|word| word.starts_with("/etc/natpunch/"))
        .collect();
    assert_eq!(files.len(), 2);
    for file in files {
        assert!(made.contains(file), "{file}");
    }
}
