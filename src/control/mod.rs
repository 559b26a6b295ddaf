//! The local control socket behind `status` and `down`.
