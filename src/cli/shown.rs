//! Blocks of the documents that show what the program prints: tests hold them to it.

use std::fs;
use std::path::PathBuf;

/// Demands that the block below `<!-- shown: NAME -->` on a page is this text. With the variable
/// `BLESS` it is written there.
pub(in crate::cli) fn assert_in(page: &str, name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(page);
    let old = fs::read_to_string(&path).unwrap();
    let mark = format!("<!-- shown: {name} -->\n```");
    let (head, rest) = old.split_once(&mark).unwrap();
    let (language, rest) = rest.split_once('\n').unwrap();
    let (_, tail) = rest.split_once("```\n").unwrap();
    let new = format!("{head}{mark}{language}\n{}\n```\n{tail}", text.trim_end());
    if std::env::var_os("BLESS").is_some() {
        fs::write(path, new).unwrap();
        return;
    }
    assert!(
        old == new,
        "{page} shows another {name}: BLESS=1 cargo test --lib shows\n{text}"
    );
}
