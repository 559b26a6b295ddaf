//! Every block says whether it is run.

use std::collections::BTreeSet;
use std::fs;

use crate::blocks::{self, Mark};

/// What a reader copies. Other blocks show output or pictures.
const COPIED: &[&str] = &["sh", "console", "toml", "ini", "sshconfig", "nft", "nginx"];

#[test]
fn every_block_that_a_reader_copies_is_run_by_a_test_or_says_why_not() {
    let sources: String = fs::read_dir(blocks::root("tests/docs"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    for document in blocks::documents() {
        let mut names = BTreeSet::new();
        for block in blocks::of(&document) {
            let place = format!("{document}:{}", block.line);
            match block.mark {
                None => assert!(
                    !COPIED.contains(&block.language.as_str()),
                    "{place}: write <!-- test: NAME --> or <!-- not run: WHY --> above the block"
                ),
                Some(Mark::NotRun(why)) => assert!(why.len() > 10, "{place}: say why"),
                Some(Mark::Test(name)) => {
                    let used = format!("\"{document}\", \"{name}\"");
                    assert!(
                        sources.contains(&used),
                        "{place}: no test has Block::named({used})"
                    );
                    assert!(names.insert(name), "{place}: the name is there twice");
                }
            }
        }
    }
}
