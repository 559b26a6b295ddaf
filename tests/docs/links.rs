//! Every link leads somewhere, from the documents and from the sources; no line is too long to read.

use std::fs;
use std::path::{Path, PathBuf};

use crate::blocks::{self, root};

/// Generated pages, whose paragraphs are lines.
const GENERATED: [&str; 2] = ["docs/config.md", "docs/reference/cli.md"];

/// The files of a directory and those below it, with one of these ends of their names.
fn files(directory: &Path, ends: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    left.push(path);
                }
            } else if ends.iter().any(|end| name.ends_with(end)) {
                found.push(path);
            }
        }
    }
    found
}

/// The text without fenced blocks.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut is_block = false;
    let lines = text.lines().enumerate().filter(|(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_block ^= is_fence;
        !is_block && !is_fence
    });
    lines.map(|(at, line)| (at + 1, line)).collect()
}

/// What stands in parentheses after a bracket: `[…](this)`.
fn links(line: &str) -> Vec<&str> {
    let parts = line.split("](").skip(1);
    parts
        .filter_map(|rest| Some(rest.split_once(')')?.0))
        .collect()
}

/// The anchors of the headings of a page, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let headings = prose(text).into_iter().filter_map(|(_, line)| {
        let title = line.trim_start_matches('#');
        (title.len() < line.len() && title.starts_with(' ')).then(|| title.trim())
    });
    let anchor = |title: &str| {
        let kept = title
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_of_a_document_leads_to_a_file_and_a_heading_that_exist() {
    let mut dead = Vec::new();
    for document in blocks::documents() {
        let text = fs::read_to_string(root(&document)).unwrap();
        for (at, line) in prose(&text) {
            for link in links(line).into_iter().filter(|link| !link.contains("://")) {
                let (path, heading) = link.split_once('#').unwrap_or((link, ""));
                let file = match path {
                    "" => root(&document),
                    path => root(&document).parent().unwrap().join(path),
                };
                let is_there = file.exists()
                    && (heading.is_empty()
                        || anchors(&fs::read_to_string(&file).unwrap())
                            .iter()
                            .any(|a| a == heading));
                if !is_there {
                    dead.push(format!("{document}:{at}: {link}"));
                }
            }
        }
    }
    assert!(
        dead.is_empty(),
        "links that lead nowhere:\n{}",
        dead.join("\n")
    );
}

#[test]
fn every_document_that_a_source_names_exists() {
    const SOURCES: [&str; 9] = [
        ".rs", ".md", ".toml", ".service", ".sh", ".yml", ".conf", ".txt", "Makefile",
    ];
    let mut dead = Vec::new();
    for file in files(&root(""), &SOURCES) {
        // What is written from names in other files is not read; a name may be cut off there.
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        for (at, line) in text.lines().enumerate() {
            for (start, _) in line.match_indices("docs/") {
                let rest = &line[start..];
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "/._-".contains(c)));
                let name = rest[..end.unwrap_or(rest.len())].trim_end_matches('.');
                let is_whole =
                    !line[..start].ends_with(['/', '-', '.']) || line[..start].ends_with("./");
                if is_whole && name.ends_with(".md") && !root(name).exists() {
                    let shown = file.strip_prefix(root("")).unwrap_or(&file).display();
                    dead.push(format!("{shown}:{}: {name}", at + 1));
                }
            }
        }
    }
    assert!(
        dead.is_empty(),
        "documents that do not exist:\n{}",
        dead.join("\n")
    );
}

#[test]
fn every_document_is_in_the_index() {
    let index = fs::read_to_string(root("docs/README.md")).unwrap();
    for document in blocks::documents() {
        let Some(name) = document
            .strip_prefix("docs/")
            .filter(|name| *name != "README.md")
        else {
            continue;
        };
        assert!(
            index.contains(&format!("]({name})")),
            "docs/README.md does not list {document}"
        );
    }
}

#[test]
fn no_line_of_a_document_is_longer_than_120_columns_but_rows_of_tables() {
    let mut long = Vec::new();
    for document in blocks::documents() {
        if GENERATED.contains(&document.as_str()) {
            continue;
        }
        let text = fs::read_to_string(root(&document)).unwrap();
        for (at, line) in prose(&text) {
            if !line.starts_with('|') && line.chars().count() > 120 {
                long.push(format!("{document}:{at}"));
            }
        }
    }
    assert!(
        long.is_empty(),
        "longer than 120 columns:\n{}",
        long.join("\n")
    );
}
