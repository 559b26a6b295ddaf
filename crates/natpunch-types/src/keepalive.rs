//! How often something has to pass so that a NAT holds a mapping.

use std::time::Duration;

/// How often something has to leave by a mapping that is known to outlive this silence: a tenth and
/// a second sooner, so that a packet which was lost is repeated in time.
pub fn keepalive_for(lifetime: Duration) -> Duration {
    lifetime.saturating_sub(lifetime / 10 + Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_held_with_some_room_whatever_its_lifetime() {
        for seconds in [8, 28, 58, 110] {
            let lifetime = Duration::from_secs(seconds);
            let keepalive = keepalive_for(lifetime);
            assert!(keepalive + Duration::from_millis(1_800) <= lifetime);
            assert!(keepalive * 4 > lifetime * 3, "as seldom as it may be");
        }
        assert_eq!(keepalive_for(Duration::ZERO), Duration::ZERO);
    }
}
