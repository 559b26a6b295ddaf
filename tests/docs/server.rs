//! docs/how-to/server.md, typed as it stands there.

use std::fs;

use natpunch_lab::lab_test;

use crate::blocks::Block;
use crate::typed::{Typist, eventually};

/// A block of a terminal: what is typed after this prompt, and what is printed.
fn session(block: &Block, prompt: &str) -> (String, Vec<String>) {
    let mut lines = block.text.lines();
    let mut typed = lines
        .next()
        .unwrap()
        .strip_prefix(prompt)
        .unwrap()
        .to_owned();
    while typed.ends_with('\\') {
        typed.push('\n');
        typed.push_str(lines.next().unwrap());
    }
    (typed, lines.map(str::to_owned).collect())
}

/// A line without what differs each time: numbers, how long it runs, a key.
fn shape(line: &str) -> String {
    const UNITS: [&str; 10] = [
        "s", "s,", "min", "min,", "h", "h,", "days", "days,", "day", "day,",
    ];
    let is_same = |word: &&str| {
        let varies = word.contains(|c: char| c.is_ascii_digit()) || word.len() == 44;
        !varies && !UNITS.contains(word)
    };
    let words: Vec<&str> = line.split_whitespace().filter(is_same).collect();
    words.join(" ")
}

lab_test!(a_server_says_what_the_page_shows, 90, |lab| {
    let server = Typist::at(lab.public_host("server").unwrap());
    server.types("umask 077; natpunch keygen > admission.key");
    let (command, printed) = session(&Block::named("docs/how-to/server.md", "serve"), "$ ");
    let _serving = server.leaves(&command, "serve.log");
    server.reads("serve.log", "ready");
    let log = fs::read_to_string(server.file("serve.log")).unwrap();
    // The log goes to the same file here, and is told by its time.
    let mut said = log.lines().filter(|line| !line.contains("INFO"));
    for line in printed {
        let is_it = |said: &str| match line.strip_prefix("public key: ") {
            Some(key) => said.starts_with("public key: ") && said.len() == 12 + key.len(),
            None => said == line,
        };
        assert!(
            said.any(is_it),
            "{line:?} is not said, or not in this order:\n{log}"
        );
    }

    let (command, shown) = session(&Block::named("docs/how-to/server.md", "serve-status"), "# ");
    let status = eventually("answer of serve status", || Ok(server.types(&command)));
    let shapes: Vec<String> = status.lines().map(shape).collect();
    for line in shown {
        assert!(
            shapes.contains(&shape(&line)),
            "{line:?} is not said:\n{status}"
        );
    }
});

/// A user other than root, who has a directory for sockets as logind makes it.
const USER: &str =
    "XDG_RUNTIME_DIR=/run/user/65534 setpriv --reuid 65534 --regid 65534 --clear-groups";

lab_test!(a_server_of_a_user_answers_its_user_and_root, 60, |lab| {
    let server = Typist::at(lab.public_host("server").unwrap());
    server.types(
        "install -d -m 755 /run/user && install -d -o 65534 -g 65534 -m 700 /run/user/65534",
    );
    // Nothing but what README types names a place.
    let key = "--key-file /run/user/65534/server.key";
    let serve = format!(
        "unset NATPUNCH_RUNTIME_DIR; {USER} natpunch serve --listen 0.0.0.0:51900 --open {key}"
    );
    let _serving = server.leaves(&serve, "serve.log");
    server.reads("serve.log", "ready");
    for who in ["", USER] {
        let status = format!("unset NATPUNCH_RUNTIME_DIR; {who} natpunch serve status");
        let said = server.types(&status);
        assert!(said.contains("udp 0.0.0.0:51900"), "{who}: {said}");
    }
    let other = USER.replace("65534", "65533");
    let said = server.types(&format!(
        "unset NATPUNCH_RUNTIME_DIR; {other} natpunch serve status 2>&1 || true"
    ));
    assert!(
        said.contains("error: ") && said.contains("help: "),
        "{said}"
    );
});
