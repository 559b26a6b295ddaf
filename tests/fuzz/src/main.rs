//! One binary for all targets: which one is told by `NATPUNCH_FUZZ`.
#![no_main]

use std::sync::LazyLock;

mod targets;

static ENTRY: LazyLock<targets::Entry> = LazyLock::new(|| {
    let wanted = std::env::var("NATPUNCH_FUZZ").expect("NATPUNCH_FUZZ names the target");
    targets::TARGETS
        .iter()
        .find(|(name, _)| *name == wanted)
        .expect("a target of that name")
        .1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| ENTRY(data));
