//! What several parts of natpunch ask of the operating system, once each, so that no copy forgets
//! a step: files that are written whole and survive a power cut ([`durable`]), files that hold a
//! secret ([`secret`]), directories that nobody else may write to ([`private`]), the time since
//! boot ([`boot_time`]), locks of one process ([`Sole`]), processes that go on by themselves
//! ([`detached`]), the options of sockets
//! ([`allow_fragments`], [`without_fragments`]), what the allocator keeps ([`share_one_arena`]), the
//! end of privileges ([`drop_privileges`]), and the places where tests kill the process
//! ([`failpoint`]).

mod clock;
pub mod detached;
pub mod durable;
mod failpoint;
mod memory;
pub mod private;
mod privileges;
pub mod secret;
mod socket;
mod sole;

pub use clock::boot_time;
pub use failpoint::{failpoint, failpoint_is_set};
pub use memory::share_one_arena;
pub use privileges::drop_privileges;
pub use socket::{allow_fragments, without_fragments};
pub use sole::Sole;

/// The system's words of an error without the number that Rust adds, as they stand in a sentence.
pub fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error").next();
    words.unwrap_or_default().to_lowercase()
}
