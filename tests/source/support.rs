//! A repository with a committer, and an agent's view of a source.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use natpunch::config;
use natpunch::control::Reply;
use natpunch::source::{Change, Location, Options, Source, SourceError, SourceStatus};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

/// A valid mesh; `address` makes versions differ.
pub(crate) fn mesh(address: u8) -> String {
    format!(
        "[mesh]\nname = \"lab\"\nnetworks = [\"10.77.0.0/24\"]\n\n[peers.a]\n\
         public_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\naddresses = [\"10.77.0.{address}\"]\n"
    )
}

pub(crate) fn mesh_of_generation(address: u8, generation: u64) -> String {
    mesh(address).replace("[mesh]\n", &format!("[mesh]\ngeneration = {generation}\n"))
}

/// A key to sign commits with.
pub(crate) struct Signer {
    pub(crate) file: PathBuf,
    pub(crate) public: String,
    _directory: TempDir,
}

impl Signer {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        let mut command = Command::new("ssh-keygen");
        command
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&file);
        assert!(
            command
                .status()
                .expect("ssh-keygen (package openssh-client) is needed")
                .success()
        );
        let public = fs::read_to_string(file.with_extension("pub"))
            .unwrap()
            .trim()
            .to_owned();
        Self {
            file,
            public,
            _directory: directory,
        }
    }

    /// A trust file that lists this key, and more lines.
    pub(crate) fn trust(&self, more: &str) -> PathBuf {
        let path = self.file.with_file_name("trust.toml");
        fs::write(
            &path,
            format!("[trust]\nsigners = [\"{}\"]\n{more}", self.public),
        )
        .unwrap();
        path
    }
}

/// A repository that a server shows, and a clone to commit in.
pub(crate) struct Repository {
    pub(crate) directory: TempDir,
}

impl Repository {
    pub(crate) fn new() -> Self {
        let repository = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        repository.run(
            repository.directory.path(),
            &["init", "-q", "--bare", "-b", "main", "served/mesh.git"],
        );
        repository.run(
            repository.directory.path(),
            &["clone", "-q", "served/mesh.git", "work"],
        );
        repository
    }

    pub(crate) fn served(&self) -> PathBuf {
        self.directory.path().join("served")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.directory.path().join("work")
    }

    /// `git+file://` to a path on main.
    pub(crate) fn file_url(&self, path: &str) -> String {
        format!(
            "git+file://{}/mesh.git#main:{path}",
            self.served().display()
        )
    }

    fn run(&self, directory: &Path, arguments: &[&str]) -> String {
        self.run_at(None, directory, arguments)
    }

    /// Runs git, which takes this for the time, in seconds since 1970.
    fn run_at(&self, time: Option<u64>, directory: &Path, arguments: &[&str]) -> String {
        let date = time.map(|seconds| ("GIT_COMMITTER_DATE", format!("{seconds} +0000")));
        let output = Command::new("git")
            .args(arguments)
            .envs(date)
            .current_dir(directory)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .envs([
                ("GIT_AUTHOR_NAME", "a"),
                ("GIT_AUTHOR_EMAIL", "a@example.org"),
            ])
            .envs([
                ("GIT_COMMITTER_NAME", "a"),
                ("GIT_COMMITTER_EMAIL", "a@example.org"),
            ])
            .stdin(Stdio::null())
            .output()
            .expect("git is needed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "git {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs git in the clone.
    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        self.run(&self.work(), arguments)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.work().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Commits everything; the commit's name.
    pub(crate) fn commit(&self, signer: Option<&Signer>) -> String {
        self.git(&["add", "-A"]);
        match signer {
            None => self.git(&["commit", "-q", "--allow-empty", "-m", "change"]),
            Some(signer) => {
                let key = format!("user.signingKey={}", signer.file.display());
                self.git(&[
                    "-c",
                    "gpg.format=ssh",
                    "-c",
                    &key,
                    "commit",
                    "-q",
                    "-S",
                    "--allow-empty",
                    "-m",
                    "change",
                ])
            }
        };
        self.head()
    }

    /// Commits everything, signed at this time, with a trailer for each branch that it is for; the
    /// commit's name.
    pub(crate) fn commit_for(&self, branches: &[&str], time: u64, signer: &Signer) -> String {
        self.git(&["add", "-A"]);
        let key = format!("user.signingKey={}", signer.file.display());
        let mut arguments = vec!["-c", "gpg.format=ssh", "-c", &key, "commit", "-q", "-S"];
        arguments.extend(["--allow-empty", "-m", "change"]);
        let trailers: Vec<String> = branches
            .iter()
            .map(|branch| format!("--trailer=Natpunch-Branch: {branch}"))
            .collect();
        arguments.extend(trailers.iter().map(String::as_str));
        self.run_at(Some(time), &self.work(), &arguments);
        self.head()
    }

    pub(crate) fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"])
    }

    pub(crate) fn push(&self) {
        self.git(&["push", "-q", "--force", "origin", "HEAD:main"]);
    }

    /// Writes the mesh, commits and pushes.
    pub(crate) fn publish(&self, text: &str, signer: Option<&Signer>) -> String {
        self.write("mesh.toml", text);
        let commit = self.commit(signer);
        self.push();
        commit
    }
}

/// An agent's view of a source.
pub(crate) struct Agent {
    pub(crate) source: Source,
    changes: mpsc::Receiver<Change>,
}

pub(crate) fn options(location: &str, trust: Option<&Path>, state: &Path) -> Options {
    Options {
        location: Location::parse(OsStr::new(location)).unwrap(),
        // Tests don't depend on what this machine trusts.
        trust: Some(trust.map_or_else(nobody, Path::to_owned)),
        poll: Duration::from_secs(3600),
        state_dir: state.to_owned(),
        look_first: false,
    }
}

/// A trust file that demands nothing.
pub(crate) fn nobody() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("trust-nobody.toml");
    let own = path.with_extension(format!("{:?}", std::thread::current().id()));
    fs::write(&own, "[trust]\n").unwrap();
    fs::rename(&own, &path).unwrap();
    path
}

impl Agent {
    pub(crate) async fn open(options: Options) -> Result<Self, SourceError> {
        let (source, changes) = Source::open(options).await?;
        Ok(Self { source, changes })
    }

    /// Opens it and applies what it has.
    pub(crate) async fn start(options: Options) -> Result<Self, SourceError> {
        let agent = Self::open(options).await?;
        agent.apply().await.unwrap();
        Ok(agent)
    }

    /// The text of the mesh that would be loaded.
    pub(crate) fn text(&self) -> String {
        fs::read_to_string(self.source.path()).unwrap()
    }

    /// Loads what there is, and says that it runs, as the agent does.
    pub(crate) async fn apply(&self) -> Result<(), String> {
        let mesh = config::load(&self.source.path()).map_err(|error| error.to_string())?;
        self.source.applied(mesh.content_hash);
        // What is remembered of it is written by another task.
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.status().newest.is_some() || self.status().revision.is_none() {
            if self.status().problem.is_some() {
                return Ok(());
            }
            assert!(Instant::now() < deadline, "{:?}", self.status());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// `natpunch reload` of a source that always has something to load.
    pub(crate) async fn ask(&mut self) {
        let (answer, _) = oneshot::channel();
        self.source.ask(answer);
        assert!(self.changes.recv().await.unwrap().answer.is_some());
    }

    /// `natpunch reload`: looks at once, and applies what came. A look that nobody asked for, such
    /// as the first one after a start, may tell of a change before.
    pub(crate) async fn reload(&mut self) -> Result<(), String> {
        let (answer, mut answered) = oneshot::channel();
        self.source.ask(answer);
        loop {
            let change = tokio::select! {
                reply = &mut answered => match reply.unwrap() {
                    Reply::Error(error) => return Err(error),
                    Reply::Ok(_) => panic!("nothing was loaded yet"),
                },
                change = self.changes.recv() => change.unwrap(),
            };
            self.apply().await?;
            if change.answer.is_some() {
                return Ok(());
            }
        }
    }

    /// Waits for a change that nobody asked for.
    pub(crate) async fn changed(&mut self) {
        let change = tokio::time::timeout(Duration::from_secs(20), self.changes.recv()).await;
        assert!(change.expect("a change").unwrap().answer.is_none());
    }

    pub(crate) fn status(&self) -> SourceStatus {
        self.source.status().unwrap()
    }
}
