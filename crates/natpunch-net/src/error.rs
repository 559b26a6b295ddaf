use std::io;
use std::net::SocketAddr;

/// What can go wrong with the network of this host.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Raw sockets are a privilege.
    #[error(
        "cannot open a raw socket: permission denied, and natpunch needs CAP_NET_RAW to speak from \
         WireGuard's own port; help: run it as root, or with AmbientCapabilities=CAP_NET_ADMIN \
         CAP_NET_RAW in its systemd unit"
    )]
    NotPermitted,
    /// Neither IPv4 nor IPv6 is there.
    #[error("cannot open a raw socket: this host has neither IPv4 nor IPv6 ({0})")]
    NoFamily(#[source] io::Error),
    /// The kernel refused a socket or one of its options.
    #[error("cannot {what}: {source}")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// One datagram could not be sent; see [`NetError::is_soft`].
    #[error("cannot send to {destination}: {source}")]
    Send {
        /// Where it should have gone.
        destination: SocketAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The set of sources whose datagrams always pass is full.
    #[error(
        "cannot listen to {address}: already listening to {limit} servers; help: name fewer of \
         them in the configuration"
    )]
    TooManySources {
        /// The address that did not fit.
        address: SocketAddr,
        /// The bound of the set.
        limit: usize,
    },
}

impl NetError {
    pub(crate) fn socket(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Socket { what, source }
    }

    /// True if only this one datagram is lost and the next may well go: no route now, a firewall
    /// rule, an address or a link that has just gone, a full queue.
    pub fn is_soft(&self) -> bool {
        let Self::Send { source, .. } = self else {
            return false;
        };
        matches!(
            source.raw_os_error(),
            Some(
                libc::EPERM
                    | libc::EACCES
                    | libc::ENETUNREACH
                    | libc::EHOSTUNREACH
                    | libc::ENETDOWN
                    | libc::EADDRNOTAVAIL
                    | libc::EAFNOSUPPORT
                    | libc::ENODEV
                    | libc::EINVAL
                    | libc::EAGAIN
                    | libc::ENOBUFS
                    | libc::EMSGSIZE
                    | libc::ECONNREFUSED
            )
        )
    }
}
