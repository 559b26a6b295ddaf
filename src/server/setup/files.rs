//! Open files: how many connections there is room for, and some that are kept for reloads.

use std::fs::File;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is not for connections of the record store: metrics, the control socket, files that are
/// read, and the spare ones.
const OTHERS: usize = 64;
/// No server needs more; a limit beyond this is as good as none.
const MOST: u64 = 65_536;
/// What a reload opens at one time: a settings or key file, and what the system needs for it.
const SPARE: usize = 4;

/// Raises this process's limit of open files to what it may have. Nothing here waits by select(2),
/// which is why the usual limit is low.
pub(in crate::server) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(MOST).min(MOST);
    if limit.current.is_some_and(|current| current < wanted) {
        let current = Some(wanted);
        // A limit that may not be raised is kept to.
        let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
    }
}

/// How many connections of the record store there may be, beside what is open now.
pub(in crate::server) fn for_connections() -> usize {
    let limit = getrlimit(Resource::Nofile)
        .current
        .unwrap_or(MOST)
        .min(MOST);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    usize::try_from(limit)
        .unwrap_or(usize::MAX)
        .saturating_sub(open + OTHERS)
        .max(1)
}

/// Open files that are let go while something has to be read.
#[derive(Default)]
pub(in crate::server) struct Spare(Vec<File>);

impl Spare {
    pub(in crate::server) fn new() -> Self {
        let mut spare = Self::default();
        spare.keep();
        spare
    }

    pub(in crate::server) fn let_go(&mut self) {
        self.0.clear();
    }

    /// As many as can be had.
    pub(in crate::server) fn keep(&mut self) {
        while self.0.len() < SPARE {
            let Ok(file) = File::open("/dev/null") else {
                return;
            };
            self.0.push(file);
        }
    }
}
