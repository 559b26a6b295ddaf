//! The embedded device as a program of its own, for tests and benchmarks:
//! `natpunch-wg-device device NAME --socket PATH`. `natpunch device` is the same thing in the
//! product.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ["device", name, "--socket", socket] = args.as_slice() else {
        return complain("usage: natpunch-wg-device device NAME --socket PATH");
    };
    match natpunch_wg::embedded::run_device(name, Path::new(socket)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error.to_string()),
    }
}

fn complain(text: &str) -> ExitCode {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "error: {text}");
    ExitCode::FAILURE
}
