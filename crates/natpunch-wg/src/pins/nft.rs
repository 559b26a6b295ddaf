//! The program `nft`, run directly and with bounds: no shell, a time, an amount of output.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::PinError;
use super::table::Found;

/// Where the program is looked for: what only root writes to. The last two are where NixOS and Guix
/// have it.
const DIRECTORIES: &[&str] = &[
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
    "/usr/bin",
    "/bin",
    "/run/current-system/sw/bin",
    "/run/current-system/profile/sbin",
];

/// How long it may take. Some milliseconds are usual; with a rule set of many thousand rules, which
/// it reads first, a second; on a busy emulated machine, several.
const TIME: Duration = Duration::from_secs(20);
/// Most bytes of output that are read: more than the listing of 50,000 pins.
const MOST_OUTPUT: usize = 16 << 20;
/// Most bytes of its complaints that are kept.
const MOST_COMPLAINT: u64 = 400;

/// The program. Where it is is looked up at each use, so that one that is installed later counts.
#[derive(Debug, Default)]
pub(super) struct Nft {
    /// Another place, for tests.
    #[cfg(test)]
    pub(super) elsewhere: Option<PathBuf>,
}

impl Nft {
    /// Commits a text as one transaction.
    pub(super) fn load(&self, table: &str, text: &str) -> Result<(), PinError> {
        self.run(table, &["-f", "-"], text).map(drop)
    }

    /// Asks the kernel whether it would take a text, and changes nothing.
    pub(super) fn check(&self, table: &str, text: &str) -> Result<(), PinError> {
        self.run(table, &["-c", "-f", "-"], text).map(drop)
    }

    /// The table as it is; `None` if there is none.
    pub(super) fn list(&self, table: &str) -> Result<Option<Found>, PinError> {
        match self.run(table, &["-j", "-n", "list", "table", "inet", table], "") {
            Ok(listing) => Found::read(&listing)
                .map(Some)
                .ok_or_else(|| PinError::Refused {
                    table: table.to_owned(),
                    said: "its listing is not JSON; nft must be built with it".to_owned(),
                }),
            Err(PinError::Refused { said, .. }) if said.contains("No such file or directory") => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn path(&self) -> Option<PathBuf> {
        #[cfg(test)]
        if let Some(path) = &self.elsewhere {
            return path.is_file().then(|| path.clone());
        }
        DIRECTORIES
            .iter()
            .map(|directory| Path::new(directory).join("nft"))
            .find(|path| path.is_file())
    }

    /// Runs it to its end, and gives what it printed.
    fn run(&self, table: &str, arguments: &[&str], input: &str) -> Result<Vec<u8>, PinError> {
        let program = self.path().ok_or(PinError::NoProgram)?;
        self.run_program(&program, table, arguments, input)
            .unwrap_or_else(|error| Err(PinError::Run(error)))
    }

    fn run_program(
        &self,
        program: &Path,
        table: &str,
        arguments: &[&str],
        input: &str,
    ) -> io::Result<Result<Vec<u8>, PinError>> {
        let deadline = Instant::now() + TIME;
        let mut complaint = memory_file("")?;
        let (mut output, stdout) = io::pipe()?;
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            // Its words are read, so they must be English ones.
            .env("LC_ALL", "C")
            .stdin(memory_file(input)?)
            .stdout(stdout)
            .stderr(complaint.try_clone()?)
            .spawn()?;
        let mut child = Ending(child);
        let mut printed = Vec::new();
        // The pipe ends with the program.
        while read_some(&mut output, deadline, &mut printed)? {
            if Instant::now() >= deadline || printed.len() > MOST_OUTPUT {
                return Ok(Err(PinError::TooSlow(TIME)));
            }
        }
        if child.0.wait()?.success() {
            return Ok(Ok(printed));
        }
        let mut said = Vec::new();
        complaint.rewind()?;
        complaint.take(MOST_COMPLAINT).read_to_end(&mut said)?;
        Ok(Err(complaint_of(table, &said)))
    }
}

/// A program that is ended with the value, if it has not ended by itself.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// A file in memory: unlike a pipe it makes nobody wait.
fn memory_file(text: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create("nft", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// Waits for output until the deadline, and reads what is there; false at the end of it.
fn read_some(pipe: &mut io::PipeReader, deadline: Instant, into: &mut Vec<u8>) -> io::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], wait) {
        Ok(0) | Err(nix::Error::EINTR) => return Ok(true),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let mut buffer = [0; 16 << 10];
    match pipe.read(&mut buffer) {
        Ok(0) => Ok(false),
        Ok(length) => {
            into.extend_from_slice(buffer.get(..length).unwrap_or_default());
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
        Err(error) => Err(error),
    }
}

/// What a failure means. The program has one exit status for all of them; its words tell them
/// apart.
fn complaint_of(table: &str, said: &[u8]) -> PinError {
    let text = String::from_utf8_lossy(said).replace(char::is_control, " ");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["Operation not permitted", "Permission denied"]) {
        PinError::NotPermitted
    } else if says(&[
        // No netlink family of netfilter, or none of nftables in it.
        "Protocol not supported",
        "cache initialization failed: Invalid argument",
        // A kernel without maps, or without the family `inet`.
        "Operation not supported",
        "Address family not supported",
    ]) {
        PinError::NoKernelSupport(text)
    } else {
        PinError::Refused {
            table: table.to_owned(),
            said: text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_complaint_of_nft_becomes_its_reason() {
        let of = |text: &str| complaint_of("natpunch_wg0", text.as_bytes());
        assert!(matches!(
            of(
                "Operation not permitted (you must be root)\nnetlink: Error: cache initialization \
                failed: Operation not permitted\n"
            ),
            PinError::NotPermitted
        ));
        assert!(matches!(
            of("netlink: Error: Unable to initialize Netlink socket: Protocol not supported"),
            PinError::NoKernelSupport(_)
        ));
        let refused = of("/dev/stdin:3:1-2: Error: syntax error\n  mip out4\n  ^^^\n");
        assert_eq!(
            refused.to_string(),
            "nft refused the table natpunch_wg0: /dev/stdin:3:1-2: Error: syntax error mip out4 ^^^"
        );
    }

    #[test]
    fn a_host_without_the_program_is_told_what_to_install() {
        let nft = Nft {
            elsewhere: Some("/nonexistent/nft".into()),
        };
        let error = nft.list("natpunch_wg0").unwrap_err();
        assert!(matches!(error, PinError::NoProgram), "{error}");
        assert!(error.to_string().contains("package nftables"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_nft_is_an_error_and_no_table() {
        let nft = Nft {
            elsewhere: Some("/bin/cat".into()),
        };
        let error = nft.load("natpunch_wg0", "text").unwrap_err();
        assert!(matches!(error, PinError::Refused { .. }), "{error}");
    }
}
