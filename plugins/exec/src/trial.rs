//! A program put to the test: the conformance suite of plugins, and what is asked of a program
//! beyond it.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use natpunch_plugin::Instance as _;
use natpunch_plugin::conformance::{Report, Rule, Subject, check, check_records};
use natpunch_types::lock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Plugin, Program};

/// Each of its lines is understood.
pub const SPEAKS: Rule = Rule("writes nothing but messages of the protocol");
/// No process of it goes on.
pub const LEAVES_NOBODY: Rule = Rule("leaves no process behind");

/// How long processes may take to end after the program that started them was killed.
const END: Duration = Duration::from_millis(300);

/// What is noted of a program while it runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watch(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    carries_records: bool,
    refused: BTreeSet<String>,
    killed: Option<String>,
}

impl Watch {
    pub(crate) fn said_hello(&self, carries_records: bool) {
        lock(&self.0).carries_records = carries_records;
    }

    /// Notes why a line was refused. How often one program can be is bounded.
    pub(crate) fn refused(&self, problem: &str) {
        lock(&self.0).refused.insert(problem.to_owned());
    }

    pub(crate) fn killed(&self, problem: &str) {
        lock(&self.0).killed = Some(problem.to_owned());
    }
}

/// Runs the suite against a program. What processes it leaves behind become children of this
/// process, and are ended: call it where no others are children of it.
pub async fn run(program: &Program) -> Report {
    // Without it, what it leaves behind is not found.
    let _ = nix::sys::prctl::set_child_subreaper(true);
    let watch = Watch::default();
    let subject = Subject {
        about: program.describe(),
        plugin: &|| Box::new(Plugin::watched(program.clone(), watch.clone())),
    };
    let mut report = check(&subject).await;
    if report.is_good() && lock(&watch.0).carries_records {
        check_records(&subject, &mut report).await;
    }
    report.begin(SPEAKS);
    let noted = std::mem::take(&mut *lock(&watch.0));
    for problem in noted.refused {
        report.add(SPEAKS, problem);
    }
    if let Some(problem) = noted.killed {
        report.add(Rule::STOPS, problem);
    }
    report.begin(LEAVES_NOBODY);
    tokio::time::sleep(END).await;
    for (pid, name) in children() {
        let _ = kill(pid, Signal::SIGKILL);
        report.add(
            LEAVES_NOBODY,
            format!(
                "{name} (process {pid}) went on after the program had ended; end what you start, \
                 and let nothing leave its process group (setsid, a daemon)"
            ),
        );
    }
    report
}

/// The children of this process that live.
fn children() -> Vec<(Pid, String)> {
    let own = Pid::this();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let child = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name may hold anything, parentheses too.
        let (before, after) = stat.rsplit_once(')')?;
        let name = before.split_once('(')?.1;
        let mut fields = after.split_whitespace();
        let (state, parent) = (fields.next()?, fields.next()?);
        let is_ours = parent.parse() == Ok(own.as_raw()) && state != "Z";
        is_ours.then(|| (Pid::from_raw(pid), name.to_owned()))
    };
    entries.filter_map(child).collect()
}
