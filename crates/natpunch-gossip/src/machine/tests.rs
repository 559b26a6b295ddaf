use super::*;

fn key(n: u8) -> PeerKey {
    PeerKey::from_bytes([n; 32])
}

/// The tag under which one node leaves records for another.
fn tag(from: u8, to: u8) -> RecordTag {
    let mut tag = [1; 16];
    (tag[0], tag[1]) = (from, to);
    RecordTag(tag)
}

fn seconds(n: u64) -> Time {
    Time::from_millis(n * 1_000)
}

/// What one node is told of another.
fn interest(own: u8, peer: u8, wanted: bool, is_direct: bool) -> Interest {
    Interest {
        wanted,
        is_direct,
        inbound_tag: tag(peer, own),
        outbound_tag: tag(own, peer),
        ..Interest::new(key(peer))
    }
}

fn record(from: u8, to: u8, version: u8) -> SealedRecord {
    SealedRecord {
        tag: tag(from, to),
        blob: Arc::from([version; 150]),
    }
}

/// A node of a mesh of `members`, which has a path to some and looks for others.
fn node(own: u8, members: u8, direct: &[u8], wanted: &[u8], now: Time) -> Gossip {
    let mut gossip = Gossip::new(key(own));
    tell(&mut gossip, own, members, direct, wanted, now);
    let records: Vec<_> = (1..=members).map(|peer| record(own, peer, own)).collect();
    gossip.handle_records(&records, now);
    gossip
}

fn tell(gossip: &mut Gossip, own: u8, members: u8, direct: &[u8], wanted: &[u8], now: Time) {
    let peers = (1..=members).filter(|peer| *peer != own);
    let of = |peer: u8| interest(own, peer, wanted.contains(&peer), direct.contains(&peer));
    gossip.handle_peers(&peers.map(of).collect::<Vec<_>>(), now);
}

fn effects(gossip: &mut Gossip) -> Vec<Effect> {
    std::iter::from_fn(|| gossip.poll_effect()).collect()
}

/// Hands what a node sends to the others; the records that each is told, until all are silent.
fn settle(nodes: &mut BTreeMap<u8, Gossip>, now: Time) -> Vec<(u8, SealedRecord)> {
    let mut told = Vec::new();
    loop {
        let said: Vec<_> = nodes
            .iter_mut()
            .flat_map(|(n, gossip)| effects(gossip).into_iter().map(|effect| (*n, effect)))
            .collect();
        if said.is_empty() {
            return told;
        }
        for (from, effect) in said {
            match effect {
                Effect::Tell(record) => told.push((from, record)),
                Effect::Send { to, payload } => {
                    let to = nodes.get_mut(&to.as_bytes()[0]).unwrap();
                    to.handle_message(key(from), &payload, now);
                }
            }
        }
    }
}

fn leaves(gossip: &mut Gossip, from: u8, to: u8, text: &[u8], now: Time) {
    let message = Message {
        way: Way::For,
        peer: key(to),
        record: text,
    };
    gossip.handle_message(key(from), &message.to_bytes().unwrap(), now);
}

/// All that a node sends until then, and when.
fn sent_until(gossip: &mut Gossip, end: Time) -> Vec<(Time, PeerKey)> {
    let mut sent = Vec::new();
    while let Some(due) = gossip.poll_timeout().filter(|due| *due < end) {
        gossip.handle_timeout(due);
        for effect in effects(gossip) {
            match effect {
                Effect::Send { to, .. } => sent.push((due, to)),
                Effect::Tell(record) => panic!("{record:?}"),
            }
        }
    }
    sent
}

/// 1 looks for 3; 2 has a path to both. 3 has not noticed yet that it lost 1.
#[test]
fn a_record_reaches_a_peer_that_looks_for_nobody_and_both_get_the_others_when_both_look() {
    let now = seconds(0);
    let mut nodes = BTreeMap::from([
        (1, node(1, 3, &[2], &[3], now)),
        (2, node(2, 3, &[1, 3], &[], now)),
        (3, node(3, 3, &[2, 1], &[], now)),
    ]);
    assert_eq!(settle(&mut nodes, now), [], "servers are faster");
    let now = now + PATIENCE;
    nodes.get_mut(&1).unwrap().handle_timeout(now);
    assert_eq!(settle(&mut nodes, now), [(3, record(1, 3, 1))]);
    tell(nodes.get_mut(&3).unwrap(), 3, 3, &[2], &[1], now);
    let now = now + PATIENCE;
    nodes.get_mut(&3).unwrap().handle_timeout(now);
    assert_eq!(settle(&mut nodes, now), [(1, record(3, 1, 3))], "each once");
}

#[test]
fn what_was_left_is_passed_on_when_the_peer_comes_and_not_when_it_is_old() {
    for (later, expected) in [(599, vec![(3, record(1, 3, 1))]), (600, vec![])] {
        let now = seconds(0);
        let mut nodes = BTreeMap::from([
            (1, node(1, 3, &[2], &[3], now)),
            (2, node(2, 3, &[1], &[], now)),
            (3, node(3, 3, &[], &[], now)),
        ]);
        let asked = now + PATIENCE;
        nodes.get_mut(&1).unwrap().handle_timeout(asked);
        assert_eq!(settle(&mut nodes, asked), []);
        let now = asked + Duration::from_secs(later);
        tell(nodes.get_mut(&2).unwrap(), 2, 3, &[1, 3], &[], now);
        assert_eq!(settle(&mut nodes, now), expected, "after {later} s");
    }
}

#[test]
fn who_looks_for_nobody_and_stays_where_it_is_says_nothing_ever() {
    let mut gossip = node(1, 9, &[2, 3, 4], &[], seconds(0));
    gossip.handle_network_change(seconds(1));
    gossip.handle_records(&[record(1, 2, 9)], seconds(1) + MOVED);
    assert_eq!(
        (gossip.poll_timeout(), effects(&mut gossip)),
        (None, vec![])
    );
}

/// 1 has paths to 2 and 3, and those to each other.
#[test]
fn who_moves_tells_all_before_it_knows_whom_it_has_lost_and_once() {
    let now = seconds(0);
    let mut nodes = BTreeMap::from([
        (1, node(1, 3, &[2, 3], &[], now)),
        (2, node(2, 3, &[1, 3], &[], now)),
        (3, node(3, 3, &[1, 2], &[], now)),
    ]);
    let mover = nodes.get_mut(&1).unwrap();
    mover.handle_network_change(seconds(1));
    mover.handle_records(&[record(1, 2, 8), record(1, 3, 8)], seconds(1));
    mover.handle_records(&[record(1, 2, 9), record(1, 3, 9)], seconds(1));
    let due = mover.poll_timeout().unwrap();
    assert_eq!(due, seconds(1) + SETTLE);
    mover.handle_timeout(due);
    assert_eq!(mover.poll_timeout(), None);
    let told = settle(&mut nodes, due);
    assert_eq!(told, [(2, record(1, 2, 9)), (3, record(1, 3, 9))]);
}

#[test]
fn a_node_with_many_peers_that_moves_sends_a_bounded_number_at_once() {
    let direct: Vec<u8> = (2..=200).collect();
    let mut gossip = node(1, 200, &direct, &[], seconds(0));
    let records: Vec<_> = direct.iter().map(|peer| record(1, *peer, 9)).collect();
    gossip.handle_network_change(seconds(1));
    gossip.handle_records(&records, seconds(1));
    let sent = sent_until(&mut gossip, seconds(60));
    assert_eq!(sent.len(), MOST_ANNOUNCED * HELPERS);
}

#[test]
fn a_peer_that_stays_away_is_asked_for_ever_more_seldom() {
    let mut gossip = node(1, 4, &[2, 3], &[4], seconds(0));
    let sent = sent_until(&mut gossip, seconds(7_200));
    assert_eq!(sent[0].0, seconds(0) + PATIENCE);
    let first_minute = sent.iter().filter(|(at, _)| *at < seconds(60)).count();
    let second_hour = sent.iter().filter(|(at, _)| *at >= seconds(3_600)).count();
    assert_eq!((first_minute, second_hour), (12, 24), "{sent:?}");
    gossip.handle_network_change(seconds(7_200));
    let anew = sent_until(&mut gossip, seconds(7_260));
    assert_eq!(anew.len(), 12);
}

#[test]
fn all_helpers_are_asked_in_turns_a_few_at_a_time_those_with_an_endpoint_first() {
    let mut gossip = Gossip::new(key(1));
    let mut peers: Vec<_> = (2..=40).map(|n| interest(1, n, false, true)).collect();
    peers.push(interest(1, 50, true, false));
    peers[30].endpoint = Some("rv.example.org:1".into());
    gossip.handle_peers(&peers, seconds(0));
    gossip.handle_records(&[record(1, 50, 1)], seconds(0));
    let sent = sent_until(&mut gossip, seconds(60));
    assert_eq!(sent[0].1, peers[30].peer);
    for turn in sent.chunk_by(|(a, _), (b, _)| a == b) {
        assert!(turn.len() <= HELPERS);
    }
    let asked: std::collections::BTreeSet<_> = sent.iter().map(|(_, to)| *to).collect();
    assert_eq!(asked.len(), 39, "each within a minute");
}

#[test]
fn a_mesh_in_which_nobody_is_found_sends_no_more_than_its_rate() {
    let wanted: Vec<u8> = (100..=250).collect();
    let direct: Vec<u8> = (2..=40).collect();
    let mut gossip = node(1, 250, &direct, &wanted, seconds(0));
    let sent = sent_until(&mut gossip, seconds(60));
    assert!(sent.len() <= 128 + 60 * 32, "{}", sent.len());
}

#[test]
fn a_message_of_or_about_a_stranger_or_of_the_sender_itself_has_no_effect() {
    let mut gossip = node(2, 3, &[1, 3], &[], seconds(0));
    let good = |way, peer| {
        let record = &[7; 150][..];
        Message { way, peer, record }.to_bytes().unwrap()
    };
    for way in [Way::For, Way::From] {
        for (from, about) in [(1, 9), (9, 1), (9, 9), (1, 1), (1, 2), (2, 1)] {
            gossip.handle_message(key(from), &good(way, key(about)), seconds(1));
            assert_eq!(
                effects(&mut gossip),
                [],
                "{way:?} from {from} about {about}"
            );
        }
    }
    for bad in [&[][..], &[1], &[2; 200], &[1; 600]] {
        gossip.handle_message(key(1), bad, seconds(1));
    }
    assert_eq!(effects(&mut gossip), []);
    assert_eq!(gossip.held.len(), 0);
    gossip.handle_message(key(1), &good(Way::For, key(3)), seconds(1));
    assert_eq!(effects(&mut gossip).len(), 1);
}

/// It says another record each time, for a peer that helpers have a path to.
#[test]
fn a_peer_that_floods_is_passed_on_seldom_and_takes_no_place_of_others() {
    let now = seconds(1);
    let mut gossip = node(1, 200, &[2, 3], &[], now);
    leaves(&mut gossip, 3, 4, &[3; 150], now);
    for n in 0..10_000_u32 {
        let record = [n.to_be_bytes(); 30].concat();
        leaves(&mut gossip, 2, 3, &record, now);
        leaves(&mut gossip, 2, 4 + (n % 190) as u8, &record, now);
    }
    assert!(effects(&mut gossip).len() <= 4);
    assert!(gossip.held.len() <= crate::held::MOST_OF_ONE + 1);
    tell(&mut gossip, 1, 200, &[2, 3, 4], &[], now);
    let passed = effects(&mut gossip);
    let from_3 = Message {
        way: Way::From,
        peer: key(3),
        record: &[3; 150],
    };
    let payload = from_3.to_bytes().unwrap();
    let to = key(4);
    assert!(passed.contains(&Effect::Send { to, payload }), "{passed:?}");
}

/// A helper may say what it likes: the host opens each record, and it is the peer's or nothing.
#[test]
fn the_same_record_by_several_helpers_is_told_once_and_another_is_told_too() {
    let mut gossip = node(1, 5, &[2, 3], &[4], seconds(0));
    let says = |gossip: &mut Gossip, by: u8, text: &[u8]| {
        let message = Message {
            way: Way::From,
            peer: key(4),
            record: text,
        };
        gossip.handle_message(key(by), &message.to_bytes().unwrap(), seconds(1));
        effects(gossip).len()
    };
    assert_eq!(says(&mut gossip, 2, &[4; 150]), 1);
    assert_eq!(says(&mut gossip, 3, &[4; 150]), 0);
    assert_eq!(says(&mut gossip, 3, &[5; 150]), 1);
}

#[test]
fn a_record_that_is_too_long_to_carry_is_not_sent() {
    let mut gossip = node(1, 3, &[2], &[3], seconds(0));
    let long = SealedRecord {
        blob: Arc::from([1; RECORD_MAX + 1]),
        ..record(1, 3, 1)
    };
    gossip.handle_records(&[long], seconds(0));
    assert_eq!(sent_until(&mut gossip, seconds(30)), []);
}
