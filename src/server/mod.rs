//! `natpunch serve`: the UDP and HTTP shell around the pure protocol servers.
