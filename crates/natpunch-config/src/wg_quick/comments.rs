//! Names of peers in the comments of a wg-quick file, as people and tools write them.

/// The comments between two lines of code.
#[derive(Debug, Default)]
pub(crate) struct Comments {
    /// Those without an empty line behind them so far.
    block: Vec<Comment>,
    /// Whether the block follows a line of its section, with no empty line between.
    follows_code: bool,
    /// The name that a block apart from both sides states.
    apart: Option<String>,
    /// The last line of code was the head of a section.
    at_head: bool,
}

/// What a comment says.
#[derive(Debug, PartialEq, Eq)]
enum Comment {
    /// `Name = nas`, of the section that it is in or right above.
    Name(String),
    /// `### begin nas ###`, always of the section below.
    Begin(String),
    /// Any other text.
    Text(String),
    /// The end of something, or a section that is switched off.
    Nothing,
}

impl Comments {
    pub(crate) fn add(&mut self, remark: &str) {
        self.block.push(comment(remark));
    }

    /// An empty line: a name right behind a line of the section is the section's.
    pub(crate) fn at_blank_line(&mut self) -> Option<String> {
        let name = stated(&mut self.block);
        let follows_code = std::mem::take(&mut self.follows_code);
        if follows_code {
            return name;
        }
        self.apart = name.or(self.apart.take());
        None
    }

    /// The head of a section: the block right above it names it, whatever is before the block.
    pub(crate) fn at_section(&mut self, remark: Option<&str>) -> Option<String> {
        let beside = remark.map(comment);
        let mut text = None;
        let mut name = None;
        for comment in self.block.drain(..).chain(beside) {
            match comment {
                Comment::Name(stated) | Comment::Begin(stated) => name = Some(stated),
                Comment::Text(words) => text = Some(words),
                // What ended is not about what begins.
                Comment::Nothing => text = None,
            }
        }
        // A name apart from both sections may be of either: rather none than a wrong one.
        self.apart = None;
        self.follows_code = true;
        self.at_head = true;
        name.or(text)
    }

    /// A key of the section: the comments above it are the section's.
    pub(crate) fn at_key(&mut self) -> Option<String> {
        self.follows_code = true;
        let at_head = std::mem::take(&mut self.at_head);
        // Right below the head any comment is a name, as Algo writes it.
        let text = self.block.iter().find_map(|comment| match comment {
            Comment::Text(words) if at_head => Some(words.clone()),
            _ => None,
        });
        let name = stated(&mut self.block);
        name.or(self.apart.take()).or(text)
    }

    /// The end of the file.
    pub(crate) fn at_end(&mut self) -> Option<String> {
        stated(&mut self.block).or(self.apart.take())
    }
}

/// The name that a block states, which is empty afterwards.
fn stated(block: &mut Vec<Comment>) -> Option<String> {
    block.drain(..).fold(None, |found, comment| match comment {
        Comment::Name(name) => found.or(Some(name)),
        _ => found,
    })
}

fn comment(remark: &str) -> Comment {
    let text = remark.trim_matches(|c: char| c == '#' || c.is_whitespace());
    // PiVPN comments the lines of a client out so that is switched off.
    if text.is_empty() || text.starts_with("[disabled]") {
        return Comment::Nothing;
    }
    let (first, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    match first {
        // PiVPN, and Nyr's script.
        "begin" | "BEGIN_PEER" if !rest.is_empty() => return Comment::Begin(rest.to_owned()),
        "end" | "END_PEER" => return Comment::Nothing,
        // angristan's script; more words are a sentence.
        "Client" if !rest.is_empty() && !rest.contains(char::is_whitespace) => {
            return Comment::Begin(rest.to_owned());
        }
        _ => {}
    }
    let Some((key, value)) = text.split_once(['=', ':']) else {
        return Comment::Text(text.to_owned());
    };
    let squashed = key.trim().to_ascii_lowercase().replace(['_', '-', ' '], "");
    let value = value.trim();
    let name = match squashed.as_str() {
        "name" | "friendlyname" | "peername" | "peer" => value,
        // wg-easy writes its own number of the client behind the name.
        "client" => value.split(" (").next().unwrap_or(value).trim(),
        _ => return Comment::Text(text.to_owned()),
    };
    match name.is_empty() {
        true => Comment::Nothing,
        false => Comment::Name(name.to_owned()),
    }
}
