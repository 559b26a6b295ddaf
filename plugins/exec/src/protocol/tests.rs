use std::sync::Arc;

use super::*;

/// The node and the peers of docs/reference/plugin-protocol.md.
fn key(n: u8) -> PeerKey {
    PeerKey::from_bytes([n; 32])
}

fn peers() -> Input {
    let far = Interest {
        inbound_tag: RecordTag([0xa1; 16]),
        outbound_tag: RecordTag([0xa2; 16]),
        pair_tag: PairTag([0xa3; 16]),
        ..Interest::new(key(2))
    };
    let plain = Interest {
        wanted: false,
        endpoint: Some("nas.example.org:51820".into()),
        ..Interest::new(key(3))
    };
    Input::Ask(Ask::Peers(Arc::from([far, plain])))
}

fn records() -> Input {
    Input::Ask(Ask::Records(Arc::from([SealedRecord {
        tag: RecordTag([0xa2; 16]),
        blob: Arc::from(*b"sealed for you"),
    }])))
}

fn session(abilities: &str) -> Session {
    let hello = format!(r#"{{"natpunch":1,"name":"p","abilities":[{abilities}]}}"#);
    let mut session = Session::start(hello.as_bytes(), true).unwrap();
    session.handle_input(&peers()).unwrap();
    session
}

/// Replays a transcript: `>` is natpunch's line, `<` the program's, `!` what natpunch says to the
/// line before. How many lines there were.
fn replay(transcript: &str) -> usize {
    let mut session: Option<Session> = None;
    let mut outcome = Ok(vec![]);
    for text in transcript.lines() {
        let (sign, message) = text.split_at(2);
        match (sign, &mut session) {
            ("> ", _) if message.starts_with(r#"{"natpunch""#) => {
                assert_eq!(welcome(key(1), 51_820).trim_end(), message);
            }
            ("> ", Some(session)) => {
                let told: Value = serde_json::from_str(message).unwrap();
                let input = match told["type"].as_str().unwrap() {
                    "settings" => {
                        let given = serde_json::from_value(told["settings"].clone()).unwrap();
                        let line = session.settings(&given).unwrap().unwrap();
                        assert_eq!(line.trim_end(), message);
                        continue;
                    }
                    "peers" => peers(),
                    "records" => records(),
                    "meet" => Input::Ask(Ask::Meet(key(2))),
                    "network_changed" => Input::NetworkChanged,
                    "shutdown" => Input::Shutdown,
                    other => panic!("{other}"),
                };
                let line = session.handle_input(&input).unwrap();
                assert_eq!(line.trim_end(), message);
            }
            ("< ", None) => match Session::start(message.as_bytes(), false) {
                Ok(started) => session = Some(started),
                Err(problem) => outcome = Err(problem),
            },
            ("< ", Some(session)) => {
                assert!(outcome.is_ok(), "not in the transcript: {outcome:?}");
                outcome = session.handle_line(message.as_bytes());
            }
            ("! ", _) => {
                let problem = std::mem::replace(&mut outcome, Ok(vec![])).unwrap_err();
                assert_eq!(problem, message);
            }
            _ => panic!("{text}"),
        }
    }
    assert!(outcome.is_ok(), "not in the transcript: {outcome:?}");
    transcript.lines().count()
}

#[test]
fn the_transcripts_of_the_document_are_what_natpunch_says_and_understands() {
    let document = include_str!("../../../../docs/reference/plugin-protocol.md");
    let blocks = document.split("```transcript\n").skip(1);
    let transcripts = blocks.map(|block| block.split_once("\n```").unwrap().0);
    let lines: usize = transcripts.map(replay).sum();
    assert!(lines > 15, "{lines}");
}

#[test]
fn an_answer_for_a_peer_that_has_just_left_is_neither_news_nor_a_mistake() {
    let mut session = session(r#""candidates","records""#);
    let candidate = format!(
        r#"{{"type":"candidate","peer":"{}","address":"192.0.2.7:1","kind":"host","lifetime":60}}"#,
        key(2)
    );
    let record = format!(
        r#"{{"type":"records","records":[{{"tag":"{}","blob":"aGk="}}]}}"#,
        "a1".repeat(16)
    );
    for line in [&candidate, &record] {
        assert_eq!(session.handle_line(line.as_bytes()).unwrap().len(), 1);
    }
    session.handle_input(&Input::Ask(Ask::Peers(Arc::from([]))));
    for line in [&candidate, &record] {
        assert_eq!(session.handle_line(line.as_bytes()), Ok(vec![]));
    }
    session.handle_input(&peers());
    assert_eq!(session.handle_line(candidate.as_bytes()).unwrap().len(), 1);
}

#[test]
fn each_message_becomes_one_piece_of_news() {
    let session = session(r#""candidates","records","mappings","meetings""#);
    let peer = key(2);
    let address: SocketAddr = "192.0.2.7:51820".parse().unwrap();
    let cases = [
        (
            format!(
                r#"{{"type":"candidate","peer":"{peer}","address":"{address}","kind":"host","lifetime":60}}"#
            ),
            News::Candidate {
                peer,
                candidate: Candidate {
                    address,
                    kind: CandidateKind::Host,
                    lifetime: Duration::from_secs(60),
                },
            },
        ),
        (
            format!(r#"{{"type":"withdraw","peer":"{peer}","address":"{address}"}}"#),
            News::Withdrawn { peer, address },
        ),
        (
            format!(r#"{{"type":"observed","address":"{address}","lifetime":3600}}"#),
            News::OwnAddress {
                address,
                kind: OwnAddressKind::Mapped,
                lifetime: Duration::from_secs(3_600),
            },
        ),
        (
            format!(r#"{{"type":"fire","peer":"{peer}","after_ms":250}}"#),
            News::Fire {
                peer,
                after: Duration::from_millis(250),
            },
        ),
        (
            format!(r#"{{"type":"wanted","peer":"{peer}"}}"#),
            News::Wanted { peer },
        ),
        (
            format!(
                r#"{{"type":"records","records":[{{"tag":"{}","blob":"aGk="}}]}}"#,
                "a1".repeat(16)
            ),
            News::Record(SealedRecord {
                tag: RecordTag([0xa1; 16]),
                blob: Arc::from(*b"hi"),
            }),
        ),
    ];
    for (line, news) in cases {
        let heard = session.handle_line(line.as_bytes()).unwrap();
        assert_eq!(heard, [Heard::News(news)], "{line}");
    }
}

#[test]
fn a_message_that_the_hello_did_not_announce_is_refused() {
    let session = session("");
    let peer = key(2);
    for (line, ability) in [
        (
            format!(r#"{{"type":"withdraw","peer":"{peer}","address":"192.0.2.7:1"}}"#),
            "candidates",
        ),
        (r#"{"type":"records","records":[]}"#.to_owned(), "records"),
        (
            r#"{"type":"observed","address":"192.0.2.7:1","lifetime":9}"#.to_owned(),
            "mappings",
        ),
        (
            format!(r#"{{"type":"wanted","peer":"{peer}"}}"#),
            "meetings",
        ),
    ] {
        let problem = session.handle_line(line.as_bytes()).unwrap_err();
        assert!(problem.contains(&format!("`{ability}`")), "{problem}");
    }
}

#[test]
fn a_refusal_says_what_to_write_and_quotes_no_tag() {
    let session = session(r#""candidates","records""#);
    let candidate = |peer: PeerKey, kind: &str, lifetime: u64| {
        format!(
            r#"{{"type":"candidate","peer":"{peer}","address":"192.0.2.7:1","kind":"{kind}","lifetime":{lifetime}}}"#
        )
    };
    let record = |tag: &str, blob: &str| {
        format!(r#"{{"type":"records","records":[{{"tag":"{tag}","blob":"{blob}"}}]}}"#)
    };
    let foreign = "b7".repeat(16);
    let long = STANDARD.encode([0; SealedRecord::MAX + 1]);
    for (line, words) in [
        ("debug: started".to_owned(), "standard error"),
        ("{}".to_owned(), "missing field `type`"),
        (
            r#"{"type":"gossip"}"#.to_owned(),
            "unknown variant `gossip`",
        ),
        (candidate(key(9), "host", 60), "answer for those only"),
        (candidate(key(2), "relay", 60), "`kind` is \"relay\""),
        (candidate(key(2), "host", 0), "seconds from 1 to 3600"),
        (candidate(key(2), "host", 3_601), "seconds from 1 to 3600"),
        (record(&foreign, "aGk="), "look for those only"),
        (record(&"00".repeat(16), "aGk="), "look for those only"),
        (record("a1", "aGk="), "32 hexadecimal digits"),
        (record(&"a1".repeat(16), "?"), "not base64"),
        (record(&"a1".repeat(16), &long), "2048 at most"),
        (format!(r#"{{"type":"{foreign}"}}"#), "[tag]"),
    ] {
        let problem = session.handle_line(line.as_bytes()).unwrap_err();
        assert!(problem.contains(words), "{line}: {problem}");
        assert!(!problem.contains(&foreign), "{problem}");
    }
}
