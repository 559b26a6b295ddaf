//! Raw sockets, packet filters and link watching for natpunch.
