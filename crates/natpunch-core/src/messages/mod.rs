//! What nodes tell each other: pings, what goes with them, and sealed records, byte by byte.

pub(crate) mod about;
pub(crate) mod probe;
pub(crate) mod record;
pub(crate) mod wire;
