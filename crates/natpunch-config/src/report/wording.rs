//! Words of the mesh file inside messages: how they are quoted, and what a misspelt one stands for.

pub(crate) use natpunch_types::Quoted;

pub(crate) fn is_secret(key: &str) -> bool {
    let plain = squashed(key);
    [
        "privatekey",
        "presharedkey",
        "psk",
        "secretkey",
        "secret",
        "privkey",
    ]
    .contains(&plain.as_str())
}

fn squashed(key: &str) -> String {
    key.chars()
        .filter(|c| c.is_alphanumeric())
        .take(64)
        .flat_map(char::to_lowercase)
        .collect()
}

/// The known word that a misspelt one most likely stands for.
pub(crate) fn did_you_mean<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = squashed(word);
    known
        .iter()
        .map(|candidate| {
            (
                strsim::jaro_winkler(&word, &squashed(candidate)),
                *candidate,
            )
        })
        .filter(|(similarity, _)| *similarity >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Suggestions for misspelt names of a mesh. Each compares a name with every one that is known, so
/// the comparisons of a whole mesh are bounded: after that errors come without a suggestion.
pub(crate) struct Suggestions {
    comparisons_left: usize,
}

impl Default for Suggestions {
    fn default() -> Self {
        Self {
            comparisons_left: 500_000,
        }
    }
}

impl Suggestions {
    /// [`did_you_mean`], as long as there are comparisons left.
    pub(crate) fn best<'a>(
        &mut self,
        word: &str,
        known: impl ExactSizeIterator<Item = &'a str>,
    ) -> Option<&'a str> {
        self.comparisons_left = self.comparisons_left.checked_sub(known.len())?;
        did_you_mean(word, &known.collect::<Vec<_>>())
    }
}
