//! `natpunch apply`: run the agent.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use natpunch_os::share_one_arena;

use crate::agent::{self, Options, Outcome};
use crate::cli::CliError;
use crate::cli::args::ApplyArgs;
use crate::cli::exit::Exit;
use crate::{control, source};

/// Runs until told to stop.
///
/// # Errors
/// The mesh file is wrong, or the host can't do what it asks for.
pub(in crate::cli) fn run(args: ApplyArgs) -> Result<ExitCode, CliError> {
    let deadline = args.deadline;
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
        metrics: args.metrics,
        control_group: args.control_group,
    };
    share_one_arena();
    agent::hold_signals(true);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(agent::run(options));
    // A name being resolved may hang for long; it must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(match outcome? {
        Outcome::Done => ExitCode::SUCCESS,
        Outcome::DeadlinePassed(missing) => {
            let mut text =
                format!("the {deadline} s of --deadline passed before everything was done:");
            for line in missing {
                text.push_str("\n  ");
                text.push_str(&line);
            }
            // With standard error closed there is nobody to tell.
            let _ = writeln!(anstream::stderr(), "{text}");
            Exit::DeadlinePassed.into()
        }
    })
}
