//! The mesh file, from text to this node's part of a mesh.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

#[path = "config/age.rs"]
mod age;
#[path = "config/check.rs"]
mod check;
#[path = "config/cli.rs"]
mod cli;
#[path = "config/digest.rs"]
mod digest;
#[path = "config/edit.rs"]
mod edit;
#[path = "config/examples.rs"]
mod examples;
#[path = "config/growth.rs"]
mod growth;
#[path = "config/imports.rs"]
mod imports;
#[path = "config/messages.rs"]
mod messages;
#[path = "shared/mutate.rs"]
mod mutate;
#[path = "config/mutations.rs"]
mod mutations;
#[path = "config/node.rs"]
mod node;
#[path = "config/plugins.rs"]
mod plugins;
#[path = "config/reference.rs"]
mod reference;
#[path = "config/scale.rs"]
mod scale;
#[path = "config/snapshots.rs"]
mod snapshots;
#[path = "config/support.rs"]
mod support;
#[path = "config/watch.rs"]
mod watch;
#[path = "config/wireguard.rs"]
mod wireguard;
