//! What is shown, and what keys do to it. Pure.

use std::ops::ControlFlow;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::cli::args::{Filter, Sort};
use crate::cli::node::live::Live;
use crate::cli::node::status::view::{Peer, View};

/// Characters of a filter.
const MOST_TYPED: usize = 63;
/// Rows that a page key moves by.
const PAGE: usize = 10;

/// The orders, as `s` goes through them.
pub(super) const SORTS: [(Order, &str); 6] = [
    (Order::Of(Sort::State), "state"),
    (Order::Of(Sort::Name), "name"),
    (Order::Of(Sort::Rtt), "RTT"),
    (Order::Rate, "rate"),
    (Order::Of(Sort::Handshake), "handshake"),
    (Order::Of(Sort::Traffic), "traffic"),
];

/// An order of the peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// One that `status` has, too.
    Of(Sort),
    /// The busiest first.
    Rate,
}

/// The filters, as `f` goes through them.
const FILTERS: [Option<Filter>; 5] = [
    None,
    Some(Filter::Down),
    Some(Filter::Relayed),
    Some(Filter::Direct),
    Some(Filter::Lan),
];

/// What is shown.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) live: Live,
    sort: usize,
    filter: usize,
    /// What was typed after `/`; a part of the names that are shown.
    pub(super) typed: String,
    /// Whether keys go there.
    pub(super) types: bool,
    /// The name of the peer that is marked.
    pub(super) marked: Option<String>,
}

impl State {
    pub(super) fn take(&mut self, answer: Result<View, String>, now_s: f64) {
        match answer {
            Ok(view) => self.live.take(view, now_s),
            Err(reason) => self.live.lose(&reason, now_s),
        }
    }

    /// The order, and what it is called.
    pub(super) fn sort(&self) -> (Order, &'static str) {
        let all = SORTS.get(self.sort);
        all.copied().unwrap_or((Order::Of(Sort::Name), "name"))
    }

    /// Which peers are shown, beside what was typed.
    pub(super) fn filter(&self) -> Option<&'static Filter> {
        FILTERS.get(self.filter)?.as_ref()
    }

    /// The peers that are shown, in their order.
    pub(super) fn peers(&self) -> Vec<&Peer> {
        let Some(view) = &self.live.view else {
            return Vec::new();
        };
        let peers = view.core.peers.iter();
        let mut peers: Vec<&Peer> = peers
            .filter(|peer| self.filter().is_none_or(|filter| filter.is_of(peer)))
            .filter(|peer| peer.name.contains(&self.typed))
            .collect();
        let rate = |peer: &Peer| {
            let rate = self.live.rate(&peer.name);
            rate.rx + rate.tx
        };
        match self.sort().0 {
            Order::Of(sort) => peers.sort_by(|a, b| sort.order(a, b)),
            Order::Rate => {
                peers.sort_by(|a, b| rate(b).total_cmp(&rate(a)).then(a.name.cmp(&b.name)));
            }
        }
        peers
    }

    /// Which row is marked.
    pub(super) fn row(&self, peers: &[&Peer]) -> Option<usize> {
        let marked = self.marked.as_deref()?;
        peers.iter().position(|peer| peer.name == marked)
    }

    /// A key; `Break`: it ends.
    pub(super) fn press(&mut self, key: KeyEvent) -> ControlFlow<()> {
        let has_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if has_control => return ControlFlow::Break(()),
            KeyCode::Enter | KeyCode::Esc if self.types => {
                self.types = false;
                if key.code == KeyCode::Esc {
                    self.typed.clear();
                }
            }
            KeyCode::Backspace if self.types => _ = self.typed.pop(),
            KeyCode::Char(c) if self.types => {
                let has_room = !has_control && self.typed.chars().count() < MOST_TYPED;
                self.typed.extend(has_room.then_some(c));
            }
            KeyCode::Char('q') => return ControlFlow::Break(()),
            KeyCode::Esc => {
                self.typed.clear();
                self.filter = 0;
                self.marked = None;
            }
            KeyCode::Char('/') => self.types = true,
            KeyCode::Char('s') => self.sort = (self.sort + 1) % SORTS.len(),
            KeyCode::Char('f') => self.filter = (self.filter + 1) % FILTERS.len(),
            KeyCode::Down | KeyCode::Char('j') => self.go(|row, _| row + 1),
            KeyCode::Up | KeyCode::Char('k') => self.go(|row, _| row.saturating_sub(1)),
            KeyCode::PageDown => self.go(|row, _| row + PAGE),
            KeyCode::PageUp => self.go(|row, _| row.saturating_sub(PAGE)),
            KeyCode::Home => self.go(|_, _| 0),
            KeyCode::End => self.go(|_, last| last),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    /// Marks another row: the first, or the one that follows from the marked one and the last.
    fn go(&mut self, to: impl Fn(usize, usize) -> usize) {
        let peers = self.peers();
        let Some(last) = peers.len().checked_sub(1) else {
            return;
        };
        let row = self.row(&peers).map_or(0, |row| to(row, last).min(last));
        let row = if self.row(&peers).is_none() && to(0, last) == last {
            last
        } else {
            row
        };
        self.marked = peers.get(row).map(|peer| peer.name.clone());
    }
}
