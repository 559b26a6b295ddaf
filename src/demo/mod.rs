//! `natpunch demo`: a whole internet on one machine.
