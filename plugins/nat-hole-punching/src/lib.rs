//! Discovery through WireGuard's nat-hole-punching example, client and server.
