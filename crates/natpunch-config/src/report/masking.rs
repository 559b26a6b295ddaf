//! Lines of the mesh file as they may be shown: without what seems to be a secret.

/// Masks the value in a line that seems to hold a secret in plain, keeping its length so that
/// columns stay right.
pub(super) fn mask_secret(line: &str) -> String {
    if let Some((code, comment)) = line.split_once('#')
        && holds_key(comment)
    {
        // Nobody knows what a key in a comment is.
        let hidden: String = comment
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { '*' } else { c })
            .collect();
        return format!("{}#{hidden}", mask_secret(code));
    }
    let lower = line.to_ascii_lowercase();
    let secret = [
        "private",
        "presharedkey",
        "preshared_key",
        "preshared-key",
        "secret",
        "psk",
        "password",
    ]
    .iter()
    .filter_map(|word| lower.find(word))
    .filter_map(|at| {
        lower
            .get(at..)
            .and_then(|rest| rest.find('='))
            .map(|equals| (at, at + equals))
    })
    .filter(|(at, equals)| {
        // A path may be shown, unless a key stands in its place.
        let is_path = lower
            .get(*at..*equals)
            .is_some_and(|key| key.contains("_file"));
        !is_path || line.get(equals + 1..).is_some_and(holds_key)
    })
    .map(|(_, equals)| equals)
    .min();
    let Some(equals) = secret else {
        return line.to_owned();
    };
    let mut masked = String::with_capacity(line.len());
    for (at, c) in line.char_indices() {
        let hide = at > equals && (c.is_ascii_alphanumeric() || "+/=".contains(c) || !c.is_ascii());
        if hide {
            masked.extend(std::iter::repeat_n('*', c.len_utf8()))
        } else {
            masked.push(c)
        }
    }
    masked
}

/// Whether a text holds something as long as a key in base64.
fn holds_key(text: &str) -> bool {
    let base64 = |c: char| c.is_ascii_alphanumeric() || c == '+' || c == '/';
    text.split(|c| !base64(c) && c != '=')
        .any(|word| word.len() == 44 && word.ends_with('='))
}

#[cfg(test)]
mod tests {
    use super::mask_secret;

    #[test]
    fn a_secret_in_plain_is_masked_and_columns_stay() {
        assert_eq!(
            mask_secret("private_key = \"aGk=\""),
            "private_key = \"****\""
        );
        assert_eq!(
            mask_secret("x = { PresharedKey = 'é' }"),
            "x = { PresharedKey = '**' }"
        );
        let key = "c3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3M=";
        assert!(!mask_secret(&format!("private_key_file = '{key}'")).contains(key));
        for plain in [
            "private_key_file = \"/etc/k\"",
            "public_key = \"aGk=\"",
            "# private",
        ] {
            assert_eq!(mask_secret(plain), plain);
        }
    }
}
