use super::*;
use crate::cli::node::status::sample;

fn texts(live: &Live) -> Vec<String> {
    let text = |event: &Event| match &event.peer {
        Some(peer) => format!("{peer}: {}", event.text),
        None => event.text.clone(),
    };
    live.events.iter().map(text).collect()
}

#[test]
fn rates_are_what_was_counted_between_two_statuses() {
    let mut live = Live::default();
    let mut view = sample::mesh(3);
    live.take(view.clone(), 100.0);
    let name = view.core.peers[0].name.clone();
    assert_eq!(live.rate(&name), Rate::default(), "nothing to compare with");
    view.core.peers[0].rx_bytes += 4_096;
    view.core.peers[0].tx_bytes += 2_048;
    live.take(view.clone(), 102.0);
    assert_eq!(
        live.rate(&name),
        Rate {
            rx: 2_048.0,
            tx: 1_024.0
        }
    );
    // A device that was made again.
    view.core.peers[0].rx_bytes = 0;
    live.take(view, 104.0);
    assert_eq!(live.rate(&name), Rate::default());
}

#[test]
fn what_changes_between_two_statuses_is_told_once() {
    let mut live = Live::default();
    let mut view = sample::mesh(4);
    live.take(view.clone(), 1.0);
    live.take(view.clone(), 2.0);
    assert_eq!(texts(&live), Vec::<String>::new(), "nothing changed");
    let name = view.core.peers[1].name.clone();
    view.core.peers[1].path = "relay".to_owned();
    view.revision = "13-b".to_owned();
    let gone = view.core.peers.remove(0).name;
    live.take(view.clone(), 3.0);
    live.take(view, 4.0);
    let told = texts(&live);
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(told[0], "revision 13-b replaces 12-a3d04ed4e81b");
    assert!(
        told[1].starts_with(&format!("{name}: ")) && told[1].ends_with("→ relay"),
        "{told:?}"
    );
    assert_eq!(told[2], format!("{gone}: is no peer any more"));
}

#[test]
fn an_agent_that_goes_and_comes_again_is_told_and_its_last_status_stays() {
    let mut live = Live::default();
    live.take(sample::mesh(3), 1.0);
    live.lose("no answer", 2.0);
    live.lose("no answer", 3.0);
    assert!(live.view.is_some());
    assert_eq!(live.away.as_ref().map(|away| away.since_s), Some(2.0));
    let mut view = sample::mesh(3);
    view.pid += 1;
    live.take(view, 4.0);
    assert!(live.away.is_none());
    let told = texts(&live);
    assert_eq!(told[0], "the agent is away: no answer");
    assert_eq!(told[1], "the agent answers again");
    assert!(told[2].starts_with("another agent runs"), "{told:?}");
}

#[test]
fn events_are_kept_up_to_a_bound_the_newest_last() {
    let mut live = Live::default();
    for n in 0..2_000 {
        live.tell(f64::from(n), None, "node", n.to_string());
    }
    assert_eq!(live.events.len(), MOST_EVENTS);
    assert_eq!(live.events.back().map(|event| event.number), Some(2_000));
}

#[test]
fn a_picture_shows_each_peer_s_path_and_its_relay() {
    let view = sample::mesh(60);
    let mesh = picture::of(&view);
    assert_eq!(mesh.nodes.len(), 60);
    assert_eq!(mesh.pairs.len(), 59);
    assert_eq!(mesh.relays, ["hub"]);
    let counts = natpunch_picture::Links::of(&mesh).counts;
    let all = Counts::of(&view.core.peers);
    use natpunch_picture::Kind;
    let of = |kind| counts.get(&kind).copied().unwrap_or_default();
    assert_eq!(of(Kind::Relayed), all.relayed);
    assert_eq!(of(Kind::Lan), all.lan);
    assert_eq!(of(Kind::Direct), all.direct);
    assert_eq!(of(Kind::Searching) + of(Kind::Down), all.down);
}
