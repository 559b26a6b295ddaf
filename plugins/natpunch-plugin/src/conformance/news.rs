//! What is wrong with news.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{News, PeerKey};

use super::inputs::Side;
use crate::{Ask, Description, Input};

/// The longest that anything is believed.
const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 3_600);

/// Why the host would drop these news.
pub(super) fn problem(
    news: &News,
    about: &Description,
    peers: &BTreeSet<PeerKey>,
) -> Option<String> {
    if !about.abilities.cover(news) {
        return Some(format!(
            "it said {news:?}, which its abilities do not cover; name the ability in `describe`, \
             or leave it unsaid"
        ));
    }
    let address = match news {
        News::Candidate { candidate, .. } => Some((candidate.address, candidate.lifetime)),
        News::OwnAddress {
            address, lifetime, ..
        } => Some((*address, *lifetime)),
        _ => None,
    };
    if let Some((address, lifetime)) = address {
        if !is_possible(address) {
            return Some(format!("nobody can answer at {address}; leave it unsaid"));
        }
        if lifetime.is_zero() || lifetime > LONGEST_LIFETIME {
            return Some(format!(
                "it said an address with a lifetime of {} s; say from 1 s to a day, and say it \
                 again before it is over",
                lifetime.as_secs()
            ));
        }
    }
    let peer = match news {
        News::Candidate { peer, .. } | News::Fire { peer, .. } | News::Wanted { peer } => peer,
        News::Record(record) => {
            return (!is_ours(record.tag)).then(|| {
                "it said a record under a tag that is no peer's `inbound_tag`; look for those only"
                    .to_owned()
            });
        }
        News::Withdrawn { .. } | News::OwnAddress { .. } | News::Mapping(_) => return None,
    };
    (!peers.contains(peer)).then(|| {
        format!(
            "it spoke of the peer {}…, which is none of those that it was told; answer for those \
             only",
            peer.short()
        )
    })
}

fn is_possible(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
}

fn is_ours(tag: natpunch_types::RecordTag) -> bool {
    [Side::A, Side::B].iter().any(|side| match side.peers() {
        Input::Ask(Ask::Peers(peers)) => peers.iter().any(|peer| peer.inbound_tag == tag),
        _ => false,
    })
}
