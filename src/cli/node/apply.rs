//! `natpunch apply`: run the agent.

use std::process::ExitCode;
use std::time::Duration;

use crate::agent::{self, Options, Outcome};
use crate::cli::CliError;
use crate::cli::args::ApplyArgs;
use crate::{control, source};

/// Exit code of `--once` when its deadline passed.
const DEADLINE_PASSED: u8 = 3;

/// Runs until told to stop.
///
/// # Errors
/// The mesh file is wrong, or the host can't do what it asks for.
pub(in crate::cli) fn run(args: ApplyArgs) -> Result<ExitCode, CliError> {
    let options = Options {
        source: source::Options {
            location: args.source,
            trust: args.trust,
            poll: args.poll,
            state_dir: control::state_dir(),
            // Who runs it once wants the newest version, and waits for it.
            look_first: args.once,
        },
        local: args.local.into(),
        once: args.once.then(|| Duration::from_secs(args.deadline)),
        runtime_dir: control::runtime_dir(),
        state_dir: control::state_dir(),
        allow: args.allow,
        confirm: args.confirm,
        plan: args.plan,
        adopt: args.adopt,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(agent::run(options));
    // A name being resolved may hang for long; it must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(match outcome? {
        Outcome::Done => ExitCode::SUCCESS,
        Outcome::DeadlinePassed => ExitCode::from(DEADLINE_PASSED),
    })
}
