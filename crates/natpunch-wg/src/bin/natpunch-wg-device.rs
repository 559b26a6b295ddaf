//! The embedded device, and the forwarder of pins, as a program for tests and benchmarks:
//! `natpunch-wg-device device NAME --socket PATH`. `natpunch device` and
//! `natpunch pin-forwarder` are the same things in the product.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.as_slice() {
        ["device", name, "--socket", socket] => {
            let run = natpunch_wg::embedded::run_device(name, Path::new(socket));
            run.map_err(|error| error.to_string())
        }
        ["pin-forwarder", "--socket", socket, "--fwmark", mark] => {
            let run = natpunch_wg::run_forwarder(Path::new(socket), mark.parse().unwrap_or(0));
            run.map_err(|error| error.to_string())
        }
        _ => Err("usage: natpunch-wg-device device NAME --socket PATH".to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error),
    }
}

fn complain(text: &str) -> ExitCode {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "error: {text}");
    ExitCode::FAILURE
}
