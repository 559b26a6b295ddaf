//! Whether the newest version that a source shows is recent: a server that goes on showing an old
//! one (a freeze) keeps a change from a node, such as a member's removal, and every signature fits.
//!
//! The time is the one that the signature covers, and the limit is the trust file's, so neither is
//! the server's to choose. Of The Update Framework this is the part of its timestamp role
//! (<https://theupdateframework.github.io/specification/latest/#timestamp>): somebody who may sign
//! does so again in time, if need be with an empty commit.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::SourceError;

const HELP: &str = "look at the source from elsewhere; if it is as it should be, sign a new commit or the file again, also \
                    if nothing changes (git commit --allow-empty), and do so more often than max_age_days";

/// Why what was signed then is too old at `now` (both in seconds since 1970), if there is a limit.
pub(super) fn stale(limit: Option<Duration>, signed_at: Option<u64>, now: u64) -> Option<String> {
    let limit = limit?;
    let days = |span: Duration| span.as_secs() / 86_400;
    let Some(signed_at) = signed_at else {
        return Some(format!(
            "the newest version does not say when it was signed, and no version older than {} days shall do",
            days(limit)
        ));
    };
    let age = Duration::from_secs(now.saturating_sub(signed_at));
    (age > limit).then(|| {
        format!(
            "the newest version was signed {} days ago, more than the {} days of the trust file: newer ones may be \
             withheld",
            days(age),
            days(limit)
        )
    })
}

/// Refuses a first version that is too old: a node that has none yet can't tell it from one that was
/// replaced long ago. What descends from the version that runs is taken at any age, since it is
/// nearer to the newest one.
pub(super) fn check_first(
    limit: Option<Duration>,
    signed_at: Option<u64>,
    now: u64,
) -> Result<(), SourceError> {
    match stale(limit, signed_at, now) {
        None => Ok(()),
        Some(problem) => Err(SourceError::refused(problem).help(HELP)),
    }
}

/// Seconds since 1970, by this machine's clock.
pub(super) fn unix_time() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    #[test]
    fn a_version_is_stale_once_it_is_older_than_the_trust_file_allows() {
        let month = Some(Duration::from_secs(30 * DAY));
        assert_eq!(stale(month, Some(100 * DAY), 130 * DAY), None);
        let text = stale(month, Some(100 * DAY), 131 * DAY).unwrap();
        assert!(
            text.contains("31 days ago, more than the 30 days"),
            "{text}"
        );
        assert!(stale(month, None, 0).is_some(), "no time is no recent one");
        // A clock that is behind raises no alarm.
        assert_eq!(stale(month, Some(100 * DAY), 0), None);
        assert_eq!(stale(None, None, 1000 * DAY), None);
        assert!(check_first(month, Some(0), 31 * DAY).is_err());
    }
}
