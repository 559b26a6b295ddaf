//! The pure core of natpunch: everything that decides, and nothing that touches the world.

pub mod stun;
