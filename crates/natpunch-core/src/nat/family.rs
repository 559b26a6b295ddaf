//! What is known of each address family by itself.

use std::net::IpAddr;

/// One thing of IPv4 and one of IPv6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PerFamily<T> {
    pub(crate) v4: T,
    pub(crate) v6: T,
}

impl<T> PerFamily<T> {
    /// That of an address's family.
    pub(crate) fn of(&self, ip: IpAddr) -> &T {
        match ip {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        }
    }

    pub(crate) fn of_mut(&mut self, ip: IpAddr) -> &mut T {
        match ip {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        }
    }

    pub(crate) fn iter_mut(&mut self) -> [&mut T; 2] {
        [&mut self.v4, &mut self.v6]
    }
}
