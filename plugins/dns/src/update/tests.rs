use domain::base::iana::TsigRcode;
use domain::tsig::{Algorithm, ServerTransaction};
use natpunch_plugin::Settings as _;

use super::*;
use crate::settings::{Records, Settings};

/// A moment, in seconds since 1970.
const NOW: u64 = 1_700_000_000;

fn records() -> Records {
    let settings = Settings {
        zone: "natpunch.example.org".to_owned(),
        name_servers: vec![],
        update_server: Some("ns1.example.org".to_owned()),
        key_name: Some("natpunch".to_owned()),
        key_file: Some("/etc/natpunch/dns.key".into()),
        algorithm: "hmac-sha256".to_owned(),
        stun: vec![],
    };
    settings.check().unwrap()
}

fn signer() -> Signer {
    let records = records();
    let secret = PresharedKey::from_bytes([7; 32]);
    Signer::new(records.zone, records.primary.as_ref().unwrap(), &secret).unwrap()
}

fn record(n: u8, length: usize) -> SealedRecord {
    SealedRecord {
        tag: RecordTag([n; 16]),
        blob: vec![n; length].into(),
    }
}

fn changes() -> Changes {
    Changes {
        put: vec![record(1, 300)],
        remove: vec![RecordTag([2; 16])],
    }
}

/// What a server with these keys answers, of which the clock says `now`.
fn served(update: &Update, key: (&str, [u8; 32]), rcode: Rcode, now: u64) -> Vec<u8> {
    let key = Key::new(
        Algorithm::Sha256,
        &key.1,
        key.0.parse().unwrap(),
        None,
        None,
    )
    .unwrap();
    let mut request = Message::from_octets(update.bytes.clone()).unwrap();
    let reply = || MessageBuilder::from_target(StaticCompressor::new(Vec::new())).unwrap();
    match ServerTransaction::request(&Arc::new(key), &mut request, time(now)) {
        Ok(Some(transaction)) => {
            let mut answer = reply().start_answer(&request, rcode).unwrap().additional();
            transaction.answer(&mut answer, time(now)).unwrap();
            answer.finish().into_target()
        }
        Ok(None) => panic!("not signed"),
        Err(error) => {
            assert_ne!(error.error(), TsigRcode::NOERROR);
            let answer = error.build_message(&request, reply()).unwrap();
            answer.finish().into_target()
        }
    }
}

#[test]
fn an_update_replaces_the_records_of_this_nodes_tags_and_touches_nothing_else() {
    let update = signer().sign(&changes(), 9, NOW).unwrap();
    let message = Message::from_octets(update.bytes).unwrap();
    assert_eq!(message.header().opcode(), Opcode::UPDATE);
    let zone = message.sole_question().unwrap();
    assert_eq!((zone.qtype(), zone.qclass()), (Rtype::SOA, Class::IN));
    assert_eq!(zone.qname().to_string(), "natpunch.example.org");
    assert_eq!(message.answer().unwrap().count(), 0);
    let found: Vec<(String, Class, Rtype, Ttl)> = message
        .authority()
        .unwrap()
        .map(|record| {
            let record = record.unwrap();
            let owner = record.owner().to_string();
            (owner, record.class(), record.rtype(), record.ttl())
        })
        .collect();
    let name = |n: &str| format!("{}.natpunch.example.org", n.repeat(16));
    let (one, two) = (name("01"), name("02"));
    let wanted = [
        (one.clone(), Class::ANY, Rtype::TXT, Ttl::ZERO),
        (two, Class::ANY, Rtype::TXT, Ttl::ZERO),
        (one, Class::IN, Rtype::TXT, TTL),
    ];
    assert_eq!(found, wanted);
}

#[test]
fn the_largest_update_fits_into_a_message() {
    let records = records();
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}", "b".repeat(13));
    let secret = PresharedKey::from_bytes([7; 32]);
    let primary = records.primary.unwrap();
    let signer = Signer::new(longest.parse().unwrap(), &primary, &secret).unwrap();
    let put = (0..crate::outbox::MOST_IN_UPDATE as u8).map(|n| record(n, SealedRecord::MAX));
    let changes = Changes {
        put: put.collect(),
        remove: vec![],
    };
    let length = signer.sign(&changes, 9, NOW).unwrap().bytes.len();
    assert!((40_000..=65_535).contains(&length), "{length}");
}

#[test]
fn each_answer_of_a_server_is_told_apart() {
    let update = signer().sign(&changes(), 9, NOW).unwrap();
    let good = ("natpunch", [7; 32]);
    let outcome = |key, rcode, now| update.outcome(served(&update, key, rcode, now), NOW);
    assert_eq!(outcome(good, Rcode::NOERROR, NOW), Ok(()));
    let refused = |rcode| Err(Refusal::Answered(rcode));
    assert_eq!(outcome(good, Rcode::REFUSED, NOW), refused(Rcode::REFUSED));
    let other_name = ("other", [7; 32]);
    assert_eq!(
        outcome(other_name, Rcode::NOERROR, NOW),
        Err(Refusal::BadKey)
    );
    // The error is the last but one field of the answer (RFC 8945, 4.2), and BADSIG is 16.
    let mut bad_signature = served(&update, other_name, Rcode::NOERROR, NOW);
    let error = bad_signature.len() - 4;
    bad_signature[error..error + 2].copy_from_slice(&[0, 16]);
    assert_eq!(update.outcome(bad_signature, NOW), Err(Refusal::BadSig));
    let later = outcome(good, Rcode::NOERROR, NOW + 3_600);
    assert_eq!(later, Err(Refusal::BadTime(3_600)));
}

#[test]
fn an_answer_that_is_not_signed_makes_no_update() {
    let update = signer().sign(&changes(), 9, NOW).unwrap();
    let request = Message::from_octets(update.bytes.clone()).unwrap();
    let unsigned = |rcode| {
        let reply = MessageBuilder::new_vec().start_answer(&request, rcode);
        update.outcome(reply.unwrap().finish(), NOW)
    };
    assert_eq!(unsigned(Rcode::NOERROR), Err(Refusal::Unsigned));
    let refused = Err(Refusal::Answered(Rcode::REFUSED));
    assert_eq!(unsigned(Rcode::REFUSED), refused);
    assert_eq!(update.outcome(vec![0; 11], NOW), Err(Refusal::Garbled));
    let echo = update.bytes.clone();
    assert_eq!(update.outcome(echo, NOW), Err(Refusal::Garbled));
    // Signed, and changed on its way.
    let mut answer = served(&update, ("natpunch", [7; 32]), Rcode::REFUSED, NOW);
    answer[3] &= 0xf0;
    assert!(update.outcome(answer, NOW).is_err());
}

#[test]
fn each_refusal_says_what_to_do_and_never_the_secret() {
    let records = records();
    let (zone, primary) = (records.zone, records.primary.unwrap());
    let words = |refusal: Refusal| refusal.explain(&zone, &primary).to_string();
    for (refusal, needed) in [
        (Refusal::BadKey, ["access rules", "BADKEY"]),
        (Refusal::BadSig, ["`key_file`", "BADSIG"]),
        (Refusal::BadTime(3_600), ["3600 s apart", "set the clock"]),
        (Refusal::Answered(Rcode::REFUSED), ["access", "REFUSED"]),
        (Refusal::Answered(Rcode::NOTAUTH), ["primary", "NOTAUTH"]),
        (
            Refusal::Answered(Rcode::SERVFAIL),
            ["ns1.example.org:53", "SERVFAIL"],
        ),
        (Refusal::Unsigned, ["not signed", "primary"]),
        (Refusal::Garbled, ["ns1.example.org:53", "no DNS message"]),
    ] {
        let text = words(refusal);
        assert!(needed.iter().all(|word| text.contains(word)), "{text}");
    }
}
