//! A seeded internet in virtual time: hosts, links, RFC 4787 NATs, faults, an oracle.
