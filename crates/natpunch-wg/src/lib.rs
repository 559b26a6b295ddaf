//! WireGuard devices for natpunch: kernel, external, embedded, in memory.
