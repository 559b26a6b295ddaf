//! `natpunch serve`.

use std::process::ExitCode;

use super::args::ServeArgs;
use crate::server::{self, settings::Settings};

/// Serves until SIGTERM or SIGINT.
pub fn run(args: ServeArgs) -> ExitCode {
    let result = Settings::from_args(&args)
        .map_err(server::ServeError::from)
        .and_then(|settings| server::run(settings, &mut std::io::stdout()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
