//! What bounds others: rates, shares of what there is, and counters that count once.

mod rate;
mod replay;
mod usage;

pub use rate::{Bucket, Rate, RateBudget};
pub use replay::ReplayWindow;
pub use usage::Usage;
