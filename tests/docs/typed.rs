//! A host on which somebody types.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use natpunch_lab::{Host, Process, sandbox};
use nix::mount::{MsFlags, mount};

const NATPUNCH: &str = env!("CARGO_BIN_EXE_natpunch");

/// Who commits, where a document does.
const GIT_IDENTITY: [(&str, &str); 4] = [
    ("GIT_AUTHOR_NAME", "A Reader"),
    ("GIT_AUTHOR_EMAIL", "reader@example.org"),
    ("GIT_COMMITTER_NAME", "A Reader"),
    ("GIT_COMMITTER_EMAIL", "reader@example.org"),
];

/// A host with an `/etc` of its own and a directory to work in, and `natpunch` in its PATH.
pub(crate) struct Typist {
    pub(crate) host: Host,
    directory: PathBuf,
}

impl Typist {
    pub(crate) fn at(host: Host) -> Self {
        let directory = host.directory().unwrap().join("work");
        fs::create_dir_all(&directory).unwrap();
        let own = host.directory().unwrap();
        host.run(move || own_etc(&own)).unwrap();
        Self { host, directory }
    }

    /// A file in the directory that is worked in.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A file of this host alone, by its absolute path.
    pub(crate) fn write_own(&self, path: &str, text: &str) {
        let (path, text) = (PathBuf::from(path), text.to_owned());
        self.host
            .run(move || fs::write(&path, text).unwrap_or_else(|error| panic!("{path:?}: {error}")))
            .unwrap();
    }

    fn command(&self, text: &str) -> Command {
        let bin = Path::new(NATPUNCH).parent().unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command
            .args(["-eu", "-c", text])
            .current_dir(&self.directory)
            .env("PATH", path)
            .env("HOME", &self.directory)
            .envs(GIT_IDENTITY)
            .env("NATPUNCH_STATE_DIR", self.file("state"))
            .env("NATPUNCH_RUNTIME_DIR", self.file("run"))
            .stdin(Stdio::null());
        command
    }

    /// Types it, and gives what it printed. It must succeed.
    pub(crate) fn types(&self, text: &str) -> String {
        let mut command = self.command(text);
        let shown = text.to_owned();
        let output = self.host.run(move || command.output()).unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{shown}\n{said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Types what goes on in the foreground, and leaves it running; what it prints is in the file.
    pub(crate) fn leaves(&self, text: &str, output: &str) -> Process {
        let mut command = self.command(text);
        let file = fs::File::create(self.file(output)).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        self.host.spawn(command).unwrap()
    }

    /// Waits for a line that begins so in a file of output, and gives what follows.
    pub(crate) fn reads(&self, output: &str, start: &str) -> String {
        let path = self.file(output);
        eventually(&format!("{start:?} in {output}"), || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(start));
            line.map(|rest| rest.trim().to_owned()).ok_or(text)
        })
    }
}

/// Gives this mount namespace an `/etc` of its own, a copy in memory, which may be written to.
pub(crate) fn own_etc(directory: &Path) {
    let copy = directory.join("etc");
    // What this user may not read is not needed.
    let _ = Command::new("cp")
        .args(["-a", "/etc"])
        .arg(&copy)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    let none: Option<&str> = None;
    mount(Some(&copy), "/etc", none, MsFlags::MS_BIND, none)
        .unwrap_or_else(|error| panic!("a bind mount over /etc: {error}"));
}

/// Tries again until it is there.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30) * sandbox::patience();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(Instant::now() < deadline, "no {what}; there is:\n{seen}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
