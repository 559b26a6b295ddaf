//! The state as a screen.

use natpunch_picture::{Kind, printable};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};

use super::state::State;
use crate::cli::node::live::picture::{kind, reason};
use crate::cli::node::live::summary;
use crate::cli::node::status::view::{Peer, View, bytes, duration};

/// Lines of events.
const EVENTS: u16 = 7;

const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const ALARM: Style = Style::new().fg(Color::Yellow).add_modifier(Modifier::BOLD);

/// Draws all of it.
pub(super) fn draw(state: &mut State, now_s: f64, frame: &mut Frame<'_>) {
    let head = head(state, now_s);
    let events = if frame.area().height >= 20 { EVENTS } else { 0 };
    let [top, table, note, below, foot] = Layout::vertical([
        Constraint::Length(u16::try_from(head.len()).unwrap_or(u16::MAX)),
        Constraint::Min(3),
        Constraint::Length(1),
        Constraint::Length(events),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(head), top);
    peers(state, frame, table);
    frame.render_widget(Paragraph::new(marked(state)), note);
    frame.render_widget(Paragraph::new(happened(state, now_s, below)), below);
    frame.render_widget(Paragraph::new(keys(state)), foot);
}

fn head(state: &State, now_s: f64) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some(view) = &state.live.view {
        lines.push(Line::styled(summary(view), BOLD));
        lines.push(Line::raw(printable(&format!(
            "mesh {} · node {} · interface {} ({}) · revision {} for {}",
            view.mesh,
            view.node,
            view.interface,
            view.backend,
            view.revision,
            duration(view.runs_for_s)
        ))));
        lines.extend(
            alarms(view)
                .into_iter()
                .map(|text| Line::styled(printable(&text), ALARM)),
        );
    }
    if let Some(away) = &state.live.away {
        let (since, reason) = (duration((now_s - away.since_s).max(0.0)), &away.reason);
        let text = format!("the agent is away for {since}, tunnels stay up: {reason}");
        lines.push(Line::styled(printable(&text), ALARM));
    } else if state.live.view.is_none() {
        lines.push(Line::raw("asking the agent"));
    }
    lines
}

/// What somebody should do something about, a line each.
fn alarms(view: &View) -> Vec<String> {
    let mut alarms = Vec::new();
    alarms.extend(view.change.as_ref().map(|change| {
        let (revision, until) = (&change.revision, duration(change.undone_in_s));
        match change.by_person {
            true => format!("revision {revision} is undone in {until} without `natpunch confirm`"),
            false => format!(
                "revision {revision} is undone in {until} without a sign of life from {}",
                change.waiting_for.join(", ")
            ),
        }
    }));
    let held = view.held.as_ref();
    alarms
        .extend(held.map(|held| format!("revision {} was undone: {}", held.revision, held.reason)));
    let error = view
        .reload_error
        .as_ref()
        .and_then(|error| error.lines().next());
    alarms.extend(error.map(|error| format!("the newest mesh file is NOT applied: {error}")));
    let failing = view.discovery.iter().filter(|discovery| !discovery.ok);
    alarms.extend(
        failing.map(|discovery| format!("discovery {}: {}", discovery.name, discovery.note)),
    );
    alarms.truncate(4);
    alarms
}

fn color(kind: Kind) -> Style {
    match kind {
        Kind::Lan => Style::new().fg(Color::Green),
        Kind::Relayed => Style::new().fg(Color::Yellow),
        Kind::Down => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        Kind::Searching => Style::new().fg(Color::Magenta),
        Kind::Resting => DIM,
        _ => Style::new().fg(Color::Cyan),
    }
}

fn peers(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let Some(view) = &state.live.view else { return };
    let peers = state.peers();
    let rows = peers.iter().map(|peer| row(state, view, peer));
    let widths = [
        Constraint::Min(12),
        Constraint::Length(16),
        Constraint::Length(24),
        Constraint::Length(9),
        Constraint::Length(5),
        Constraint::Length(12),
        Constraint::Length(12),
    ];
    let header = [
        "PEER",
        "ADDRESS",
        "PATH",
        "RTT",
        "LOSS",
        "RECEIVED/s",
        "SENT/s",
    ];
    let style = if state.live.away.is_some() {
        DIM
    } else {
        Style::new()
    };
    let table = Table::new(rows, widths)
        .header(Row::new(header).style(BOLD))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .style(style);
    let mut at = TableState::new().with_selected(state.row(&peers));
    frame.render_stateful_widget(table, area, &mut at);
}

fn row(state: &State, view: &View, peer: &Peer) -> Row<'static> {
    let dash = || "-".to_owned();
    let rate = state.live.rate(&peer.name);
    let address = view.members.get(&peer.name).and_then(|member| {
        let mut all = member.addresses.iter();
        all.clone()
            .find(|address| address.is_ipv4())
            .or_else(|| all.next())
    });
    let path = peer.shown_path(view.pins.peers.get(&peer.name));
    Row::new([
        Cell::new(printable(&peer.shown_name())),
        Cell::new(address.map_or_else(dash, ToString::to_string)),
        Cell::new(printable(&path)).style(color(kind(view, peer))),
        Cell::new(peer.rtt_ms.map_or_else(dash, |rtt| format!("{rtt:.1} ms"))),
        Cell::new(
            peer.loss_percent
                .map_or_else(dash, |loss| format!("{loss} %")),
        ),
        Cell::new(per_second(rate.rx)),
        Cell::new(per_second(rate.tx)),
    ])
}

fn per_second(rate: f64) -> String {
    match rate {
        rate if rate < 1.0 => "-".to_owned(),
        rate => bytes(rate as u64),
    }
}

/// Why the marked peer's path is what it is.
fn marked(state: &State) -> Line<'static> {
    let peer = state
        .live
        .view
        .as_ref()
        .zip(state.marked.as_deref())
        .and_then(|(view, name)| {
            let peer = view.core.peers.iter().find(|peer| peer.name == name)?;
            let endpoint = peer.endpoint.as_deref().unwrap_or("no endpoint");
            let why = reason(view, peer).unwrap_or_else(|| format!("at {endpoint}"));
            Some(format!("{name}: {why}"))
        });
    Line::raw(peer.map(|text| printable(&text)).unwrap_or_default())
}

fn happened(state: &State, now_s: f64, area: Rect) -> Vec<Line<'static>> {
    let most = usize::from(area.height.saturating_sub(1));
    let mut lines = vec![Line::styled("EVENTS", BOLD)];
    lines.extend(state.live.events.iter().rev().take(most).map(|event| {
        let ago = format!("{:>6} ago  ", duration((now_s - event.at_s).max(0.0)));
        let text = match &event.peer {
            Some(peer) => format!("{peer}: {}", event.text),
            None => event.text.clone(),
        };
        Line::from(vec![Span::styled(ago, DIM), Span::raw(printable(&text))])
    }));
    if lines.len() == 1 {
        lines.push(Line::styled("none since this began", DIM));
    }
    lines
}

fn keys(state: &State) -> Line<'static> {
    if state.types {
        return Line::raw(format!(
            "names with: {}_   Enter: keep  Esc: all",
            printable(&state.typed)
        ));
    }
    let shown = state
        .filter()
        .map_or_else(|| "all".to_owned(), ToString::to_string);
    let typed = match state.typed.as_str() {
        "" => String::new(),
        typed => format!(" with {}", printable(typed)),
    };
    let sort = state.sort().1;
    Line::styled(
        format!(
            "q: quit  s: sort ({sort})  f: filter ({shown}{typed})  /: name  ↑↓: why  Esc: all"
        ),
        DIM,
    )
}
