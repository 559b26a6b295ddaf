use domain::base::name::Name;
use domain::base::{Serial, Ttl};
use domain::rdata::{Cname, Soa};

use super::*;

const TAG: RecordTag = RecordTag([0xa2; 16]);

fn name(text: &str) -> DnsName {
    text.parse().unwrap()
}

fn query(of: Rtype) -> Query {
    Query::new(name("a2.natpunch.example.org"), of, 7).unwrap()
}

/// An answer to a query, with what `fill` puts into its sections.
fn answer(
    query: &Query,
    fill: impl FnOnce(&mut domain::base::message_builder::AnswerBuilder<Vec<u8>>),
) -> Answer {
    let message = MessageBuilder::new_vec()
        .start_answer(&query.message, Rcode::NOERROR)
        .unwrap();
    let mut answer = message;
    fill(&mut answer);
    query.answer(&answer.finish()).expect("the answer")
}

#[test]
fn a_question_asks_for_one_type_and_says_how_long_a_datagram_may_be() {
    let query = query(Rtype::TXT);
    let message = Message::from_octets(query.bytes()).unwrap();
    let question = message.sole_question().unwrap();
    assert_eq!(question.qname(), &name("a2.natpunch.example.org"));
    assert_eq!(
        (question.qtype(), question.qclass()),
        (Rtype::TXT, Class::IN)
    );
    assert_eq!(message.opt().unwrap().udp_payload_size(), 1232);
    assert!(message.header().rd() && !message.header().qr());
}

#[test]
fn only_the_answer_to_the_question_is_taken() {
    let it = query(Rtype::TXT);
    let bytes = answer(&it, |_| {}).into_octets();
    assert!(it.answer(&bytes).is_some());
    let other_id = Query::new(it.name.clone(), Rtype::TXT, 8).unwrap();
    let other_type = query(Rtype::SRV);
    let other_name = Query::new(name("b.example.org"), Rtype::TXT, 7).unwrap();
    for other in [other_id, other_type, other_name] {
        assert!(other.answer(&bytes).is_none());
    }
    assert!(it.answer(it.bytes()).is_none(), "its own echo");
    assert!(it.answer(&bytes[..11]).is_none());
}

#[test]
fn the_records_of_the_name_are_found_and_nothing_else() {
    let query = query(Rtype::TXT);
    let own = query.name.clone();
    let ttl = Ttl::from_secs(5);
    let answer = answer(&query, |answer| {
        let text = |blob: &[u8]| text::write(blob).unwrap();
        answer.push((&own, ttl, text(b"one"))).unwrap();
        let garbage = Txt::<Vec<u8>>::build_from_slice(b"v=spf1 -all").unwrap();
        answer.push((&own, ttl, garbage)).unwrap();
        answer
            .push((name("other.example.org"), ttl, text(b"alias")))
            .unwrap();
        answer.push((&own, Class::CH, ttl, text(b"chaos"))).unwrap();
        // In another case it is the same name.
        let loud = name("A2.NatPunch.Example.ORG");
        answer.push((loud, ttl, text(b"two"))).unwrap();
    });
    let blobs: Vec<Vec<u8>> = query
        .records(&answer, TAG)
        .into_iter()
        .map(|record| record.blob.to_vec())
        .collect();
    assert_eq!(blobs, [b"one".to_vec(), b"two".to_vec()]);
}

#[test]
fn of_many_records_a_few_are_taken() {
    let query = query(Rtype::TXT);
    let answer = answer(&query, |answer| {
        for n in 0..500_u16 {
            let strings = text::write(&n.to_be_bytes()).unwrap();
            answer.push((&query.name, Ttl::ZERO, strings)).unwrap();
        }
    });
    assert_eq!(query.records(&answer, TAG).len(), MOST_RECORDS);
}

#[test]
fn aliases_that_lead_in_a_circle_lead_nowhere() {
    for of in [Rtype::TXT, Rtype::SRV] {
        let query = query(of);
        let (one, two) = (query.name.clone(), name("b.natpunch.example.org"));
        let answer = answer(&query, |answer| {
            for (from, to) in [(&one, &two), (&two, &one)].repeat(50) {
                answer.push((from, Ttl::ZERO, Cname::new(to))).unwrap();
            }
        });
        assert_eq!(query.records(&answer, TAG), []);
        assert_eq!(query.places(&answer), []);
    }
}

#[test]
fn written_places_are_found_with_the_addresses_that_come_along() {
    let query = query(Rtype::SRV);
    let message = MessageBuilder::new_vec()
        .start_answer(&query.message, Rcode::NOERROR)
        .unwrap();
    let mut section = message;
    let targets = ["nas.example.org", "elsewhere.example.org", "."];
    for (target, port) in targets.into_iter().zip([51820, 4, 5]) {
        let srv = Srv::new(0, 0, port, name(target));
        section.push((&query.name, Ttl::ZERO, srv)).unwrap();
    }
    // A port that is none.
    let none = Srv::new(0, 0, 0, name("nas.example.org"));
    section.push((&query.name, Ttl::ZERO, none)).unwrap();
    let mut section = section.additional();
    let nas = name("NAS.example.org");
    let v4: std::net::Ipv4Addr = "192.0.2.7".parse().unwrap();
    let v6: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
    section.push((&nas, Ttl::ZERO, A::new(v4))).unwrap();
    section.push((&nas, Ttl::ZERO, Aaaa::new(v6))).unwrap();
    let stranger = name("stranger.example.org");
    section.push((&stranger, Ttl::ZERO, A::new(v4))).unwrap();
    let answer = query.answer(&section.finish()).unwrap();
    let places = query.places(&answer);
    let shown: Vec<String> = places.iter().map(|one| one.endpoint.to_string()).collect();
    assert_eq!(shown, ["nas.example.org:51820", "elsewhere.example.org:4"]);
    let wanted = ["192.0.2.7:51820", "[2001:db8::7]:51820"].map(|text| text.parse().unwrap());
    assert_eq!(places[0].addresses, wanted);
    assert_eq!(places[1].addresses, []);
}

#[test]
fn an_answer_that_is_cut_or_garbled_is_harmless() {
    let query = query(Rtype::TXT);
    let whole = answer(&query, |answer| {
        let strings = text::write(&[7; 600]).unwrap();
        answer.push((&query.name, Ttl::ZERO, strings)).unwrap();
        let soa = Soa::new(
            Name::<Vec<u8>>::root_vec(),
            Name::root_vec(),
            Serial::from(1),
            Ttl::ZERO,
            Ttl::ZERO,
            Ttl::ZERO,
            Ttl::ZERO,
        );
        answer.push((&query.name, Ttl::ZERO, soa)).unwrap();
    })
    .into_octets();
    for end in 0..whole.len() {
        if let Some(answer) = query.answer(&whole[..end]) {
            let found = query.records(&answer, TAG).len();
            assert!(found <= 1 && query.places(&answer).is_empty());
        }
    }
    for at in 12..whole.len() {
        let mut other = whole.clone();
        other[at] ^= 0xff;
        if let Some(answer) = query.answer(&other) {
            query.records(&answer, TAG);
            query.places(&answer);
        }
    }
}
