//! Commands about the agent of this host: run it, ask it, end it. Which agent is meant is decided
//! in one place, `agents`.

mod agents;
pub(super) mod apply;
pub(super) mod confirm;
pub(super) mod device;
pub(super) mod doctor;
pub(super) mod down;
pub(super) mod join;
pub(super) mod live;
pub(super) mod ping;
pub(super) mod plan;
pub(super) mod reload;
pub(super) mod revisions;
pub(super) mod status;
pub(super) mod top;
pub(super) mod web;
pub(super) mod why;
