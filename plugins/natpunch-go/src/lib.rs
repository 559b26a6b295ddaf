//! Discovery through natpunch-go's rendezvous, client and server.
