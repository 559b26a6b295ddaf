//! The fenced blocks of a document.

use std::fs;
use std::path::{Path, PathBuf};

/// A fenced block.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// The document, from the root of the repository, and the line of the fence.
    pub(crate) document: String,
    pub(crate) line: usize,
    /// The word after the fence.
    pub(crate) language: String,
    /// What the comment above it says.
    pub(crate) mark: Option<Mark>,
    /// Without the indentation of the fence.
    pub(crate) text: String,
}

/// What is to be done with a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mark {
    /// A test of this name runs it.
    Test(String),
    /// No test runs it, for this reason.
    NotRun(String),
}

impl Mark {
    fn parse(line: &str) -> Option<Self> {
        let text = line
            .trim()
            .strip_prefix("<!--")?
            .strip_suffix("-->")?
            .trim();
        let (kind, rest) = text.split_once(':')?;
        let rest = rest.trim().to_owned();
        match kind {
            "test" => Some(Self::Test(rest)),
            "not run" => Some(Self::NotRun(rest)),
            _ => None,
        }
    }
}

/// A path from the root of the repository.
pub(crate) fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The documents that people read: README, and all below docs/.
pub(crate) fn documents() -> Vec<String> {
    let mut found = vec!["README.md".to_owned()];
    let mut left = vec!["docs".to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(root(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{directory}/{}", entry.file_name().to_string_lossy());
            if entry.file_type().unwrap().is_dir() {
                left.push(path);
            } else if path.ends_with(".md") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// All blocks of a document, in their order.
pub(crate) fn of(document: &str) -> Vec<Block> {
    let text = fs::read_to_string(root(document)).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let fence = lines[at];
        let Some(language) = fence.trim_start().strip_prefix("```") else {
            at += 1;
            continue;
        };
        let indent = fence.len() - fence.trim_start().len();
        let end = (at + 1..lines.len())
            .find(|n| lines[*n].trim() == "```")
            .unwrap_or_else(|| panic!("{document}:{}: the block has no end", at + 1));
        let content = lines[at + 1..end]
            .iter()
            .map(|line| line.get(indent..).unwrap_or_default())
            .map(|line| format!("{line}\n"));
        blocks.push(Block {
            document: document.to_owned(),
            line: at + 1,
            language: language.trim().to_owned(),
            mark: at
                .checked_sub(1)
                .and_then(|above| Mark::parse(lines[above])),
            text: content.collect(),
        });
        at = end + 1;
    }
    blocks
}

impl Block {
    /// The block of a document with this name.
    pub(crate) fn named(document: &str, name: &str) -> Self {
        let wanted = Mark::Test(name.to_owned());
        let mut found = of(document)
            .into_iter()
            .filter(|block| block.mark.as_ref() == Some(&wanted));
        let block = found.next();
        assert!(found.next().is_none(), "{document} has two blocks {name}");
        block.unwrap_or_else(|| panic!("{document} has no block <!-- test: {name} -->"))
    }

    /// The text with its placeholders `"…"` replaced, in their order. All must be used.
    pub(crate) fn filled(&self, values: &[&str]) -> String {
        const PLACEHOLDER: &str = "\"…\"";
        let places = self.text.matches(PLACEHOLDER).count();
        assert_eq!(
            places,
            values.len(),
            "placeholders of {}:{}",
            self.document,
            self.line
        );
        let mut text = self.text.clone();
        for value in values {
            text = text.replacen(PLACEHOLDER, &format!("\"{value}\""), 1);
        }
        text
    }
}
