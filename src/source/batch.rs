//! What `git cat-file --batch` is asked, and what it prints.

/// Asks for these objects.
pub(super) fn request<S: AsRef<str>>(names: &[S]) -> String {
    let mut lines = String::new();
    for name in names {
        lines.push_str(name.as_ref());
        lines.push('\n');
    }
    lines
}

/// The contents of the objects in the order in which they were asked for, up to the first that is
/// missing.
pub(super) fn contents(output: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = output;
    let mut objects = Vec::new();
    // Each is `NAME TYPE SIZE`, a line feed, the content and another line feed; or `NAME missing`.
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let header = String::from_utf8_lossy(rest.get(..end).unwrap_or_default());
        let size = header.split(' ').nth(2);
        let Some(size) = size.and_then(|size| size.parse::<usize>().ok()) else {
            break;
        };
        let start = end + 1;
        let Some(content) = start.checked_add(size).and_then(|end| rest.get(start..end)) else {
            break;
        };
        objects.push(content.to_vec());
        rest = rest.get(start + size + 1..).unwrap_or_default();
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_may_hold_lines_and_end_at_what_is_missing_or_cut() {
        let whole = b"a blob 3\nx\ny\nb blob 0\n\nc missing\nd blob 1\nz\n";
        assert_eq!(contents(whole), [b"x\ny".to_vec(), Vec::new()]);
        assert_eq!(contents(b"a blob 3\nx\n"), Vec::<Vec<u8>>::new());
        assert_eq!(
            contents(b"a blob 18446744073709551615\nx"),
            Vec::<Vec<u8>>::new()
        );
    }
}
