//! What the files mean together, and what must be true of it.

pub(crate) mod check;
pub(crate) mod demand;
pub(crate) mod digest;
pub(crate) mod model;
pub(crate) mod network_map;
pub(crate) mod places;
pub(crate) mod ports;
pub(crate) mod public_names;
