//! What bounds others: rates, shares of what there is, and counters that count once.

mod backoff;
mod punch;
mod rate;
mod replay;
mod usage;

pub use backoff::{backoff, jitter, spread};
pub use punch::PunchSpec;
pub use rate::{Bucket, Rate, RateBudget};
pub use replay::ReplayWindow;
pub use usage::Usage;
