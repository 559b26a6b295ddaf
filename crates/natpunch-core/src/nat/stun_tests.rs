//! Against the vectors of RFC 5769, whose fingerprints and message integrities were checked by a
//! second implementation (Python's zlib and hmac), and against every length and bit flip.

use super::*;

const ID: TransactionId = TransactionId([
    0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae,
]);
const V4: &str = "192.0.2.1:32853";
const V6: &str = "[2001:db8:1234:5678:11:2233:4455:6677]:32853";

/// RFC 5769, 2.1.
const ICE_REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae\
    802200105354554e207465737420636c69656e74002400046e0001ff80290008932ff9b151263b36\
    000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf";
/// RFC 5769, 2.2.
const V4_RESPONSE: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220\
    002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";
/// RFC 5769, 2.3.
const V6_RESPONSE: &str = "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220\
    002000140002a1470113a9fa a5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c";

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] * 16 + pair[1]) as u8)
        .collect()
}

/// A message of the given type and attributes, put together without the code under test.
fn message(kind: u16, attributes: &str) -> Vec<u8> {
    let attributes = hex(attributes);
    let mut bytes = kind.to_be_bytes().to_vec();
    bytes.extend((attributes.len() as u16).to_be_bytes());
    bytes.extend(hex("2112a442b7e7a701bc34d686fa87dfae"));
    bytes.extend(attributes);
    bytes
}

fn mapped(bytes: &[u8]) -> Option<SocketAddr> {
    match parse_answer(bytes) {
        Some((ID, Answer::Mapped(address))) => Some(address),
        _ => None,
    }
}

#[test]
fn the_sample_responses_of_rfc_5769_are_read() {
    assert_eq!(mapped(&hex(V4_RESPONSE)), Some(V4.parse().unwrap()));
    assert_eq!(mapped(&hex(V6_RESPONSE)), Some(V6.parse().unwrap()));
}

#[test]
fn the_sample_request_of_rfc_5769_asks_for_ice_which_a_server_refuses() {
    let answer = respond(&hex(ICE_REQUEST), V4.parse().unwrap()).unwrap();
    // ERROR-CODE 420, UNKNOWN-ATTRIBUTES with PRIORITY, padded.
    assert_eq!(
        answer,
        message(0x0111, "00090004 00000414 000a0002 00240000")
    );
    assert_eq!(parse_answer(&answer), Some((ID, Answer::Refused(420))));
}

#[test]
fn an_answer_has_the_bytes_of_the_rfc() {
    let answer = respond(&request(ID), V4.parse().unwrap()).unwrap();
    assert_eq!(answer, message(0x0101, "00200008 0001a147 e112a643"));
    let answer = respond(&request(ID), V6.parse().unwrap()).unwrap();
    assert_eq!(
        answer,
        message(0x0101, "00200014 0002a147 0113a9faa5d3f179bc25f4b5bed2b9d9")
    );
}

#[test]
fn a_request_is_a_plain_binding_with_nothing_that_a_server_may_refuse() {
    let software = "6e617470756e6368 202020202020202020202020";
    assert_eq!(request(ID), message(0x0001, &format!("80220014{software}")));
}

#[test]
fn an_answer_is_never_longer_than_its_request() {
    for source in [V4, V6, "[::ffff:192.0.2.1]:32853"] {
        let source: SocketAddr = source.parse().unwrap();
        let needed = if source.is_ipv4() || source.to_string().contains("ffff") {
            32
        } else {
            44
        };
        assert!(respond(&request(ID), source).is_some());
        for padding in 0..40_u16 {
            let attribute = format!(
                "8022{:04x}{}",
                padding * 4,
                "20".repeat(usize::from(padding) * 4)
            );
            let request = message(0x0001, &attribute);
            match respond(&request, source) {
                Some(answer) => assert!(answer.len() <= request.len()),
                None => assert!(request.len() < needed),
            }
        }
        assert_eq!(
            respond(&message(0x0001, ""), source),
            None,
            "a bare request is shorter than any answer"
        );
        // Many unknown attributes, each of which the refusal would name.
        for count in 0..200 {
            let request = message(0x0001, &"00030000".repeat(count));
            assert!(respond(&request, source).is_none_or(|answer| answer.len() <= request.len()));
        }
    }
}

#[test]
fn a_mapped_source_is_answered_and_read_in_its_canonical_form() {
    let answer = respond(&request(ID), "[::ffff:192.0.2.1]:32853".parse().unwrap()).unwrap();
    assert_eq!(mapped(&answer), Some(V4.parse().unwrap()));
    let answer = message(
        0x0101,
        "00010014 00028055 00000000 00000000 0000ffff c0000201",
    );
    assert_eq!(mapped(&answer), Some(V4.parse().unwrap()));
}

#[test]
fn an_old_server_that_answers_with_mapped_address_only_is_understood() {
    assert_eq!(
        mapped(&message(0x0101, "00010008 00018055 c0000201")),
        Some(V4.parse().unwrap())
    );
    let both = message(
        0x0101,
        "00010008 00010001 0a000001 00200008 0001a147 e112a643",
    );
    assert_eq!(
        mapped(&both),
        Some(V4.parse().unwrap()),
        "the XORed address wins: middleboxes rewrite the other"
    );
}

#[test]
fn what_must_be_understood_and_is_not_voids_an_answer() {
    let address = "00200008 0001a147 e112a643";
    assert_eq!(
        mapped(&message(0x0101, &format!("7fff0000 {address}"))),
        None
    );
    assert_eq!(
        mapped(&message(0x0101, &format!("ffff0000 {address}"))),
        Some(V4.parse().unwrap())
    );
}

#[test]
fn attributes_after_a_message_integrity_do_not_count() {
    let integrity = format!("00080014{}", "00".repeat(20));
    assert_eq!(
        mapped(&message(
            0x0101,
            &format!("{integrity} 00200008 0001a147 e112a643")
        )),
        None
    );
}

#[test]
fn padding_lengthens_a_request_and_changes_nothing_else() {
    let request = message(0x0001, &format!("00260018{}", "00".repeat(24)));
    assert_eq!(
        mapped(&respond(&request, V6.parse().unwrap()).unwrap()),
        Some(V6.parse().unwrap())
    );
}

#[test]
fn only_a_binding_request_is_answered() {
    let source = V4.parse().unwrap();
    let padding = "8022001420202020202020202020202020202020202020202020202020";
    let padding = &padding[..48];
    assert!(respond(&message(0x0001, padding), source).is_some());
    for kind in [0x0000, 0x0002, 0x0003, 0x0011, 0x0101, 0x0111, 0x3fff] {
        assert_eq!(
            respond(&message(kind, padding), source),
            None,
            "{kind:#06x}"
        );
    }
    for reply in [V4_RESPONSE, V6_RESPONSE] {
        assert_eq!(
            respond(&hex(reply), source),
            None,
            "two servers can't be made to answer each other"
        );
    }
}

#[test]
fn a_fingerprint_that_does_not_match_or_is_not_last_voids_a_message() {
    let flipped_after = |text: &str| {
        let whole = hex(text);
        let mut voided = 0;
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // A flip may make FINGERPRINT unknown, or part of the attribute before it: nothing is
            // left to check then.
            let fingerprinted = |m: Message<'_>| m.all().any(|(kind, _)| kind == FINGERPRINT);
            if Message::parse(&bytes).is_none_or(fingerprinted) {
                assert_eq!(parse_answer(&bytes), None, "bit {bit}");
                voided += 1;
            }
        }
        assert!(voided > (whole.len() - 5) * 8, "{voided}");
    };
    flipped_after(V4_RESPONSE);
    flipped_after(V6_RESPONSE);

    let mut late = hex(V4_RESPONSE);
    late.extend(hex("80220000"));
    late[3] += 4;
    assert!(is_stun(&late));
    assert_eq!(parse_answer(&late), None);
}

#[test]
fn any_length_and_any_bit_flip_is_survived() {
    let source = V6.parse().unwrap();
    let samples = [ICE_REQUEST, V4_RESPONSE, V6_RESPONSE]
        .map(hex)
        .into_iter()
        .chain([request(ID), vec![0; 64], vec![0xff; 64]]);
    for sample in samples {
        for length in 0..=sample.len() {
            let mut bytes = sample[..length].to_vec();
            let complete = length == sample.len();
            assert!(complete || !is_stun(&bytes), "a truncated message is none");
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                let _ = (
                    is_stun(&bytes),
                    parse_answer(&bytes),
                    respond(&bytes, source),
                );
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            // The same with a header that claims just these bytes.
            if let Some(claimed) = length.checked_sub(20) {
                bytes[2..4].copy_from_slice(&(claimed as u16).to_be_bytes());
                let _ = (
                    is_stun(&bytes),
                    parse_answer(&bytes),
                    respond(&bytes, source),
                );
            }
        }
    }
    for length in 0..=2048_usize {
        let mut bytes = vec![0xa5; length];
        for (place, byte) in bytes.iter_mut().zip(message(0x0101, "")) {
            *place = byte;
        }
        if let Some(claimed) = length.checked_sub(20) {
            bytes[2..4].copy_from_slice(&(claimed as u16).to_be_bytes());
        }
        assert_eq!(parse_answer(&bytes), None);
        assert_eq!(respond(&bytes, source), None);
    }
}

#[test]
fn wireguard_and_natpunch_are_never_taken_for_stun() {
    for (kind, length) in [(1, 148), (2, 92), (3, 64), (4, 32), (4, 1452)] {
        let mut packet = vec![0; length];
        packet[0] = kind;
        assert!(!is_stun(&packet));
        // Even with a sender index of the cookie's bytes: WireGuard's type is four bytes, little
        // endian.
        packet[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        assert!(!is_stun(&packet));
    }
    assert!(!is_stun(b"NPch\x21\x12\xa4\x42aaaaaaaaaaaa"));
}

fn origins(second_address: bool) -> Origins {
    let place = |text: &str| text.parse().unwrap();
    Origins {
        here: place("192.0.2.10:3478"),
        other_port: Some(place("192.0.2.10:3479")),
        other_ip: second_address.then(|| place("192.0.2.11:3478")),
        other: second_address.then(|| place("192.0.2.11:3479")),
    }
}

/// Attributes of a padding of so many bytes.
fn padding(bytes: usize) -> String {
    format!("0026{bytes:04x}{}", "00".repeat(bytes))
}

#[test]
fn a_server_with_two_addresses_names_them_and_answers_from_the_one_that_is_wanted() {
    let source = V4.parse().unwrap();
    for (flags, change, origin) in [
        (
            0,
            Change {
                ip: false,
                port: false,
            },
            "0d96c000020a",
        ),
        (
            2,
            Change {
                ip: false,
                port: true,
            },
            "0d97c000020a",
        ),
        (
            4,
            Change {
                ip: true,
                port: false,
            },
            "0d96c000020b",
        ),
        (
            6,
            Change {
                ip: true,
                port: true,
            },
            "0d97c000020b",
        ),
    ] {
        let request = message(0x0001, &format!("00030004 0000000{flags} {}", padding(40)));
        let (answer, changed) =
            respond_from(&request, source, &origins(true), request.len()).unwrap();
        assert_eq!(changed, change);
        let expected =
            format!("00200008 0001a147 e112a643 802b0008 0001{origin} 802c0008 0001 0d97c000020b");
        assert_eq!(answer, message(0x0101, &expected));
    }
}

#[test]
fn a_change_that_is_not_possible_is_refused_and_no_other_address_is_named() {
    let source = V4.parse().unwrap();
    for flags in [4, 6] {
        let request = message(0x0001, &format!("00030004 0000000{flags} {}", padding(40)));
        let (answer, change) =
            respond_from(&request, source, &origins(false), request.len()).unwrap();
        assert_eq!(
            answer,
            message(0x0111, "00090004 00000414 000a0002 00030000")
        );
        assert_eq!(change, Change::default());
    }
    let request = message(0x0001, &format!("00030004 00000002 {}", padding(40)));
    let (answer, change) = respond_from(&request, source, &origins(false), request.len()).unwrap();
    assert_eq!(
        answer,
        message(
            0x0101,
            "00200008 0001a147 e112a643 802b0008 0001 0d97 c000020a"
        )
    );
    assert_eq!(
        change,
        Change {
            ip: false,
            port: true
        }
    );
}

#[test]
fn no_answer_goes_to_another_port_than_the_request_came_from() {
    let request = message(0x0001, &format!("00270004 11110000 {}", padding(40)));
    let (answer, _) =
        respond_from(&request, V4.parse().unwrap(), &origins(true), request.len()).unwrap();
    assert_eq!(
        answer,
        message(0x0111, "00090004 00000414 000a0002 00270000")
    );
}

#[test]
fn what_only_informs_never_makes_an_answer_too_long() {
    let origins = origins(true);
    for length in 0..40 {
        for attributes in [
            padding(length * 4),
            format!("00030004 00000006 {}", padding(length * 4)),
        ] {
            let request = message(0x0001, &attributes);
            let fits = |(answer, _): &(Vec<u8>, Change)| {
                answer.len() <= request.len() && mapped(answer).is_some()
            };
            let answer = respond_from(&request, V4.parse().unwrap(), &origins, request.len());
            assert!(answer.as_ref().is_none_or(fits), "{length}: {answer:?}");
            assert_eq!(answer.is_some(), request.len() >= 32);
        }
    }
    let bare = message(0x0001, "");
    let (answer, _) = respond_from(&bare, V4.parse().unwrap(), &origins, 1_500).unwrap();
    assert_eq!(
        answer.len(),
        56,
        "where the asker is known, a bare request gets all"
    );
}

/// The address that an answer names, whatever it answers.
fn named(answer: &[u8]) -> Option<SocketAddr> {
    match parse_answer(answer)? {
        (_, Answer::Mapped(address)) => Some(address),
        (_, Answer::Refused(_)) => None,
    }
}

/// What a server with this key answers a minute after its start.
fn answered(
    tokens: &Tokens,
    request: &[u8],
    from: &str,
    seconds: u64,
) -> Option<(Vec<u8>, String)> {
    let now = Time::from_millis(seconds * 1_000);
    let (answer, to) = tokens.respond(request, from.parse().unwrap(), now)?;
    assert!(answer.len() <= request.len());
    Some((answer, to.to_string()))
}

#[test]
fn who_has_the_token_of_a_port_has_answers_sent_there_and_nobody_else() {
    const ID: TransactionId = TransactionId([7; 12]);
    let (holder, asker) = ("192.0.2.1:4000", "192.0.2.1:5000");
    let tokens = Tokens::new([1; 32]);
    let (answer, to) = answered(&tokens, &request_token(ID), holder, 60).unwrap();
    assert_eq!((named(&answer), &*to), (holder.parse().ok(), holder));
    let token = parse_token(&answer);
    assert!(token.is_some());

    let ask = |port, token| request_to_port(ID, port, token);
    let (answer, to) = answered(&tokens, &ask(4000, token), asker, 170).unwrap();
    assert_eq!((named(&answer), &*to), (asker.parse().ok(), holder));
    for (request, from, seconds, why) in [
        (ask(4000, None), asker, 60, "no token"),
        (ask(4000, Some([0; 8])), asker, 60, "another token"),
        (ask(4001, token), asker, 60, "of another port"),
        (ask(4000, token), "192.0.2.2:5000", 60, "of another address"),
        (ask(4000, token), asker, 700, "too old"),
    ] {
        assert_eq!(answered(&tokens, &request, from, seconds), None, "{why}");
        let from = from.parse().unwrap();
        let (refusal, _) = respond_from(&request, from, &origins(true), request.len()).unwrap();
        let refused = parse_answer(&refusal).map(|(_, answer)| answer);
        assert_eq!(refused, Some(Answer::Refused(420)), "{why}");
    }
    let other = Tokens::new([2; 32]);
    assert_eq!(answered(&other, &ask(4000, token), asker, 60), None);
    // IPv6 has the longest answers.
    let (answer, _) = answered(&tokens, &request_token(ID), "[2001:db8::1]:4000", 60).unwrap();
    assert!(parse_token(&answer).is_some());
}

#[test]
fn a_server_that_knows_no_tokens_answers_a_request_for_one_as_any_other() {
    let answer = respond(&request_token(TransactionId([7; 12])), V4.parse().unwrap()).unwrap();
    assert_eq!(
        (named(&answer), parse_token(&answer)),
        (V4.parse().ok(), None)
    );
    let tokens = Tokens::new([1; 32]);
    let plain = request(TransactionId([7; 12]));
    assert_eq!(
        answered(&tokens, &plain, V4, 60),
        None,
        "it asks for no token"
    );
}
