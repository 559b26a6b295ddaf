//! What the files mean together, and what must be true of it.

pub(crate) mod digest;
pub(crate) mod model;
pub(crate) mod networks;
pub(crate) mod places;
pub(crate) mod ports;
pub(crate) mod public_names;
pub(crate) mod relays;
pub(crate) mod serve;
pub(crate) mod validate;
