//! my-plugin: a discovery plugin of natpunch.
//!
//! ```toml
//! [discovery.my-plugin]
//! plugin = "exec"
//! command = ["/usr/local/lib/natpunch/my-plugin"]
//! user = "nobody"
//! settings = { known = ["PUBLIC-KEY 203.0.113.7:51820"] }
//! ```

use std::io::{self, BufRead as _, Write as _};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// Seconds for which an address is believed.
const LIFETIME: u64 = 120;

/// Where this peer may answer, as a list of ADDRESS:PORT. Write here what your plugin does.
fn find<'a>(peer: &Value, settings: &'a Value) -> Vec<&'a str> {
    let known = settings["known"].as_array().into_iter().flatten();
    known
        .filter_map(|line| line.as_str()?.split_once(' '))
        .filter(|(key, _)| peer["peer"] == **key)
        .map(|(_, address)| address)
        .collect()
}

/// Tells natpunch. Notes for people go to standard error.
fn say(message: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{message}")?;
    out.flush()
}

fn look(peers: &[Value], settings: &Value) -> io::Result<()> {
    let mut found = 0;
    for peer in peers {
        for address in find(peer, settings) {
            found += 1;
            say(&json!({
                "type": "candidate", "peer": peer["peer"], "address": address,
                "kind": "reflexive", "lifetime": LIFETIME,
            }))?;
        }
    }
    let note = format!("{found} addresses of {} peers", peers.len());
    say(&json!({ "type": "health", "ok": true, "note": note }))
}

fn main() -> io::Result<()> {
    let (messages, received) = mpsc::channel();
    // Reads all the time, so that natpunch never waits. The channel closes with standard input.
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let Ok(message) = serde_json::from_str::<Value>(&line) else {
                return;
            };
            if messages.send(message).is_err() {
                return;
            }
        }
    });
    let Ok(welcome) = received.recv() else {
        return Ok(());
    };
    if welcome["natpunch"] != 1 {
        return Err(io::Error::other("my-plugin speaks version 1 of the plugin protocol"));
    }
    say(&json!({
        "natpunch": 1, "name": "my-plugin", "abilities": ["candidates"],
        "settings": { "known": {
            "type": "strings", "doc": "peers and where they may answer: KEY ADDRESS:PORT",
        } },
    }))?;
    let (mut peers, mut settings) = (Vec::new(), Value::Null);
    loop {
        match received.recv_timeout(Duration::from_secs(LIFETIME / 2)) {
            Ok(message) => match message["type"].as_str() {
                Some("shutdown") => return Ok(()),
                Some("settings") => settings = message["settings"].clone(),
                Some("peers") => {
                    peers = message["peers"].as_array().cloned().unwrap_or_default();
                    look(&peers, &settings)?;
                }
                Some("network_changed") => look(&peers, &settings)?,
                _ => {}
            },
            // Say again what is about to be forgotten.
            Err(RecvTimeoutError::Timeout) => look(&peers, &settings)?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}
