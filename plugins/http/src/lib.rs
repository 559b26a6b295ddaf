//! Discovery through sealed records on any web server.
