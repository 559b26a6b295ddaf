use std::ops::ControlFlow;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::screen;
use super::state::State;
use crate::cli::node::status::sample;
use crate::cli::shown::assert_in;

fn screen(state: &mut State, width: u16, height: u16, now_s: f64) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| screen::draw(state, now_s, frame))
        .unwrap();
    let buffer = terminal.backend().buffer().clone();
    let line = |y: u16| {
        let cells = (0..width).filter_map(|x| buffer.cell((x, y)));
        let text: String = cells.map(ratatui::buffer::Cell::symbol).collect();
        text.trim_end().to_owned()
    };
    (0..height).map(line).collect::<Vec<_>>().join("\n")
}

fn press(state: &mut State, keys: &[KeyCode]) -> ControlFlow<()> {
    for key in keys {
        state.press(KeyEvent::new(*key, KeyModifiers::NONE))?;
    }
    ControlFlow::Continue(())
}

/// Two statuses of 60 peers, a second apart, between which one path has changed.
fn state() -> State {
    let mut state = State::default();
    let mut view = sample::mesh(60);
    state.take(Ok(view.clone()), 100.0);
    for (n, peer) in view.core.peers.iter_mut().enumerate() {
        if !peer.is_connected() {
            continue;
        }
        peer.rx_bytes += (n * 3_000) as u64;
        peer.tx_bytes += (n * 700) as u64;
    }
    view.core.peers[5].path = "relay".to_owned();
    state.take(Ok(view), 101.0);
    state
}

#[test]
fn the_screen_has_peers_paths_rates_and_events() {
    let mut state = state();
    let shown = screen(&mut state, 100, 26, 104.0);
    assert!(shown.starts_with("5"), "the summary is first: {shown}");
    assert!(
        shown.contains("3 s ago") && shown.contains("→ relay"),
        "{shown}"
    );
    assert_in("docs/how-to/monitoring.md", "top", &shown);
}

#[test]
fn keys_sort_filter_and_mark() {
    let mut state = state();
    let first = |state: &State| state.peers()[0].name.clone();
    // Those that are down come first.
    assert!(!state.peers()[0].is_connected());
    let _ = press(&mut state, &[KeyCode::Char('s')]);
    assert_eq!(first(&state), "berlin-05");
    let _ = press(&mut state, &[KeyCode::Char('s'), KeyCode::Char('s')]);
    let busiest = state.live.rate(&first(&state)).rx;
    assert!(
        state
            .peers()
            .iter()
            .all(|peer| state.live.rate(&peer.name).rx <= busiest)
    );
    let _ = press(&mut state, &[KeyCode::Char('f')]);
    assert!(state.peers().iter().all(|peer| peer.is_down()) && !state.peers().is_empty());
    let _ = press(&mut state, &[KeyCode::Esc, KeyCode::Char('/')]);
    // What is typed is no key, not even q.
    let typed = "qoslo".chars().map(KeyCode::Char).collect::<Vec<_>>();
    assert!(press(&mut state, &typed).is_continue());
    assert!(state.peers().is_empty());
    assert!(screen(&mut state, 100, 26, 104.0).contains("names with: qoslo_"));
    let _ = press(
        &mut state,
        &[
            KeyCode::Esc,
            KeyCode::Char('/'),
            KeyCode::Char('o'),
            KeyCode::Char('s'),
        ],
    );
    let _ = press(&mut state, &[KeyCode::Enter, KeyCode::Down, KeyCode::Down]);
    assert!(state.peers().iter().all(|peer| peer.name.contains("os")));
    let marked = state.marked.clone().unwrap();
    assert_eq!(marked, state.peers()[1].name);
    assert!(screen(&mut state, 100, 26, 104.0).contains(&format!("\n{marked}: ")));
    assert!(press(&mut state, &[KeyCode::Char('q')]).is_break());
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert!(state.press(control_c).is_break());
}

#[test]
fn while_the_agent_is_away_its_last_status_stays_and_says_so() {
    let mut state = state();
    state.take(Err("no natpunch agent answers".to_owned()), 110.0);
    let shown = screen(&mut state, 100, 26, 115.0);
    assert!(
        shown.contains("the agent is away for 5 s, tunnels stay up: no natpunch agent"),
        "{shown}"
    );
    assert!(shown.contains("berlin-"), "{shown}");
}

#[test]
fn a_screen_of_any_size_and_a_hostile_name_do_no_harm() {
    let mut state = state();
    let mut view = sample::mesh(20);
    view.core.peers[0].name = "\u{1b}[2J\u{202e}evil\u{7}".to_owned();
    view.core.peers[1].name = "x".repeat(63);
    state.take(Ok(view), 105.0);
    for (width, height) in [(1, 1), (3, 2), (20, 5), (80, 24), (300, 80)] {
        let shown = screen(&mut state, width, height, 106.0);
        assert!(!shown.contains(['\u{1b}', '\u{202e}', '\u{7}']));
    }
    let mut empty = State::default();
    assert!(screen(&mut empty, 80, 24, 1.0).contains("asking the agent"));
    let _ = press(
        &mut empty,
        &[KeyCode::Down, KeyCode::End, KeyCode::Char('s')],
    );
}
