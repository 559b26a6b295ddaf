//! The plugin registry and host.
