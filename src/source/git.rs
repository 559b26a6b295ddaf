//! Fetches a path on a branch with the installed `git`.
//!
//! Every look that finds a new commit fetches into a new repository, which is thrown away
//! afterwards: there is no state of git's that could grow or be broken. Of the commit that was
//! asked for only the mesh files are read, as objects; nothing is ever checked out.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::batch;
use super::error::{Problem, SourceError};
use super::location::GitLocation;
use super::program::{self, Failure, LONGEST_FILE, Program};
use super::signature::{self, Statement};
use super::trust::{Trust, is_commit};
use super::{File, MOST_BYTES, MOST_FILE_BYTES, MOST_FILES};

/// For everything that a look does over the network.
const DEADLINE: Duration = Duration::from_secs(60);

/// Commits that are fetched at first where signatures are checked. Where these do not reach back
/// far enough, all are.
const FIRST_DEPTH: &str = "64";
/// git's own word for all of them.
const ALL: &str = "2147483647";

/// Most commits whose signatures are checked at once.
const MOST_COMMITS: usize = 5000;

/// Most bytes of commits that are read at once.
const MOST_COMMIT_BYTES: u64 = 32 << 20;

/// Most bytes of a list that git prints.
const MOST_LIST: u64 = 8 << 20;

const ROOM: &str = "free some space, or make the state directory writable";

/// How git says that the server redirects, which its configuration here forbids.
const REDIRECTED: [&str; 2] = ["URL returned error: 30", "redirect"];

const FETCHED: &str = "refs/natpunch/fetched";

/// git with one repository.
pub(super) struct Git<'a> {
    program: PathBuf,
    location: &'a GitLocation,
    /// Holds the repository and the configuration that git reads instead of this machine's.
    workspace: &'a Path,
    configuration: PathBuf,
    ssh: PathBuf,
    deadline: Instant,
}

impl<'a> Git<'a> {
    /// Prepares an empty directory for work.
    ///
    /// # Errors
    /// git is not installed, or the directory can't be written to.
    pub(super) fn new(location: &'a GitLocation, workspace: &'a Path) -> Result<Self, SourceError> {
        let missing = |name: &str| {
            SourceError::local(format!("the program `{name}` is not installed")).help(format!(
                "install it, or deploy the mesh file another way: {name} is what fetches it"
            ))
        };
        let program = program::find("git").ok_or_else(|| missing("git"))?;
        let ssh = match location.url.scheme() {
            "ssh" => program::find("ssh").ok_or_else(|| missing("ssh"))?,
            _ => PathBuf::from("/bin/false"),
        };
        let configuration = workspace.join("gitconfig");
        fs::write(&configuration, configuration_text(location)).map_err(|error| {
            SourceError::local(format!("can't write to {}: {error}", workspace.display()))
                .help(ROOM)
        })?;
        let deadline = Instant::now() + DEADLINE;
        Ok(Self {
            program,
            location,
            workspace,
            configuration,
            ssh,
            deadline,
        })
    }

    async fn run<S: AsRef<OsStr>>(
        &self,
        arguments: &[S],
        input: &[u8],
        most: u64,
    ) -> Result<Vec<u8>, Failure> {
        let environment: [(&str, &OsStr); 13] = [
            ("GIT_CONFIG_NOSYSTEM", OsStr::new("1")),
            ("GIT_CONFIG_GLOBAL", self.configuration.as_os_str()),
            ("GIT_ATTR_NOSYSTEM", OsStr::new("1")),
            ("GIT_NO_REPLACE_OBJECTS", OsStr::new("1")),
            ("GIT_LITERAL_PATHSPECS", OsStr::new("1")),
            ("GIT_OPTIONAL_LOCKS", OsStr::new("0")),
            // There is no person to ask: a program that fails answers each question.
            ("GIT_TERMINAL_PROMPT", OsStr::new("0")),
            ("GIT_ASKPASS", OsStr::new("/bin/false")),
            ("SSH_ASKPASS", OsStr::new("/bin/false")),
            ("SSH_ASKPASS_REQUIRE", OsStr::new("force")),
            // Not GIT_SSH_COMMAND, which git gives to a shell.
            ("GIT_SSH", self.ssh.as_os_str()),
            ("GIT_SSH_VARIANT", OsStr::new("ssh")),
            ("GIT_CEILING_DIRECTORIES", self.workspace.as_os_str()),
        ];
        let program = Program {
            path: &self.program,
            environment: &environment,
            directory: self.workspace,
            deadline: self.deadline,
        };
        let mut all = vec![OsStr::new("--git-dir=repository")];
        all.extend(arguments.iter().map(AsRef::as_ref));
        program.run(&all, input, most).await
    }

    /// Runs a command that reads the repository.
    async fn read<S: AsRef<OsStr>>(
        &self,
        arguments: &[S],
        input: &[u8],
        most: u64,
    ) -> Result<Vec<u8>, SourceError> {
        self.run(arguments, input, most)
            .await
            .map_err(|failure| self.explain(failure))
    }

    fn explain(&self, failure: Failure) -> SourceError {
        let url = &self.location.url;
        match failure {
            Failure::NotStarted(problem) => SourceError::local(problem),
            Failure::TooSlow => SourceError::unreachable(format!(
                "{url} did not answer within {} s",
                DEADLINE.as_secs()
            )),
            Failure::TooMuch => {
                SourceError::refused(format!("{url} gives more than {} MiB", LONGEST_FILE >> 20))
                    .help("a repository of mesh files is small: put them into one of their own")
            }
            Failure::Failed(said)
                if said.contains("No space left") || said.contains("Read-only file system") =>
            {
                SourceError::local(format!(
                    "git can't write to {}: {said}",
                    self.workspace.display()
                ))
                .help(ROOM)
            }
            // What ssh says of it fills a screen and is cut.
            Failure::Failed(said) if said.contains("HOST IDENTIFICATION HAS CHANGED") => {
                let host = match (url.host_str().unwrap_or_default(), url.port()) {
                    (host, None) => host.to_owned(),
                    (host, Some(port)) => format!("'[{host}]:{port}'"),
                };
                SourceError::unreachable(format!(
                    "can't fetch from {url}: its host key is not the one in known_hosts: it changed, or somebody is in between"
                ))
                .help(format!(
                    "ask who runs the host; if its key did change, `ssh-keygen -R {host}` forgets the old one, then add \
                     the new one to known_hosts of the agent's user"
                ))
            }
            Failure::Failed(said) => {
                let error = SourceError::unreachable(format!("can't fetch from {url}: {said}"));
                if said.contains("Host key verification failed") {
                    error.help(
                        "add the host's key to known_hosts of the agent's user; natpunch never accepts an unknown one",
                    )
                } else if said.contains("could not read Username")
                    || said.contains("Authentication failed")
                {
                    error.help("put the credentials into ~/.netrc of the agent's user (mode 0600), or use git+ssh")
                } else if said.contains("Permission denied (") {
                    error.help(
                        "make the public key of the agent's user (~/.ssh/id_ed25519.pub, or the IdentityFile of \
                         /etc/ssh/ssh_config.d) a deploy key of the repository",
                    )
                } else if REDIRECTED.iter().any(|words| said.contains(words)) {
                    error.help(
                        "the server redirects, which natpunch does not follow: write the URL that it redirects to, \
                         if that is where the repository is",
                    )
                } else {
                    error
                }
            }
        }
    }

    /// The commit that the branch is at.
    ///
    /// # Errors
    /// The repository can't be reached, or has no such branch.
    pub(super) async fn tip(&self) -> Result<String, SourceError> {
        let reference = format!("refs/heads/{}", self.location.branch);
        let arguments = [
            "ls-remote",
            "--quiet",
            "--refs",
            "--",
            self.location.url.as_str(),
            &reference,
        ];
        let list = self.read(&arguments, b"", MOST_LIST).await?;
        let tip = String::from_utf8_lossy(&list).lines().find_map(|line| {
            let (commit, name) = line.split_once('\t')?;
            (name == reference && is_commit(commit)).then(|| commit.to_owned())
        });
        tip.ok_or_else(|| {
            SourceError::unreachable(format!(
                "{} has no branch {}",
                self.location.url, self.location.branch
            ))
        })
    }

    /// Fetches the branch, and of its history what is needed to judge it. Gives its newest commit,
    /// and what that says of itself if it has to be signed.
    ///
    /// # Errors
    /// It can't be fetched, or `trust` refuses it after `applied`.
    pub(super) async fn fetch(
        &self,
        trust: &Trust,
        applied: Option<&str>,
    ) -> Result<(String, Option<Statement>), SourceError> {
        self.read(
            &["init", "--quiet", "--bare", "--template=", "repository"],
            b"",
            MOST_LIST,
        )
        .await?;
        if !trust.demands_signatures() {
            return Ok((self.fetch_depth("1").await?, None));
        }
        let base = applied.or(trust.since.as_deref());
        let mut commit = self
            .fetch_depth(if base.is_some() { FIRST_DEPTH } else { "1" })
            .await?;
        let unsigned = match base {
            None => vec![commit.clone()],
            Some(base) => match self.since(base, &commit).await? {
                Some(range) => range,
                None => {
                    commit = self.fetch_depth(ALL).await?;
                    self.since(base, &commit).await?.ok_or_else(|| {
                        SourceError::refused(format!(
                            "{} is at {}, which does not come after {}: the branch was rewritten or set back",
                            self.location.branch,
                            short(&commit),
                            short(base)
                        ))
                        .help(
                            "put the branch back, or commit on top of what is applied; to accept the new history \
                               stop the agent and remove the directory of this source below its state directory",
                        )
                    })?
                }
            },
        };
        self.check_signatures(trust, &unsigned).await?;
        let statement = self.statement(trust, &commit).await?;
        Ok((commit, Some(statement)))
    }

    /// What a commit says of itself, whose signature was checked, and whether it is meant for the
    /// branch that is followed.
    async fn statement(&self, trust: &Trust, commit: &str) -> Result<Statement, SourceError> {
        let objects = self.objects(&[commit], MOST_COMMIT_BYTES).await?;
        let object = objects.first().ok_or_else(|| {
            SourceError::refused("a commit is missing in what the repository gives")
        })?;
        let statement = Statement::of(object);
        statement
            .check_branch(&self.location.branch, trust.bind_branch)
            .map_err(|error| error.about(&format!("commit {}", short(commit))))?;
        Ok(statement)
    }

    async fn fetch_depth(&self, depth: &str) -> Result<String, SourceError> {
        let depth = format!("--depth={depth}");
        let refspec = format!("+refs/heads/{}:{FETCHED}", self.location.branch);
        let arguments = [
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-recurse-submodules",
            "--no-auto-maintenance",
            depth.as_str(),
            "--",
            self.location.url.as_str(),
            refspec.as_str(),
        ];
        self.read(&arguments, b"", MOST_LIST).await?;
        let name = self
            .read(
                &["rev-parse", "--verify", &format!("{FETCHED}^{{commit}}")],
                b"",
                MOST_LIST,
            )
            .await?;
        let name = String::from_utf8_lossy(&name).trim().to_owned();
        match is_commit(&name) {
            true => Ok(name),
            false => Err(SourceError::refused(format!(
                "{} gives no commit",
                self.location.url
            ))),
        }
    }

    /// The commits after `base` up to `commit`; `None` if the one does not come after the other in
    /// what was fetched, or if what was fetched ends within them.
    async fn since(&self, base: &str, commit: &str) -> Result<Option<Vec<String>>, SourceError> {
        match self
            .run(
                &["merge-base", "--is-ancestor", base, commit],
                b"",
                MOST_LIST,
            )
            .await
        {
            Ok(_) => {}
            Err(Failure::Failed(_)) => return Ok(None),
            Err(other) => return Err(self.explain(other)),
        }
        let most = format!("--max-count={}", MOST_COMMITS + 1);
        let list = self
            .read(
                &["rev-list", &most, commit, &format!("^{base}")],
                b"",
                MOST_LIST,
            )
            .await?;
        let list: Vec<String> = String::from_utf8_lossy(&list)
            .lines()
            .map(str::to_owned)
            .collect();
        let cut = fs::read_to_string(self.workspace.join("repository/shallow")).unwrap_or_default();
        if list
            .iter()
            .any(|commit| cut.lines().any(|line| line == commit))
        {
            return Ok(None);
        }
        if list.len() > MOST_COMMITS {
            return Err(SourceError::refused(format!(
                "more than {MOST_COMMITS} commits came after {}, which is applied",
                short(base)
            ))
            .help("push fewer at a time, or set [trust] since and remove the directory of this source"));
        }
        Ok(Some(list))
    }

    /// Checks that each commit is signed by a listed signer.
    async fn check_signatures(&self, trust: &Trust, commits: &[String]) -> Result<(), SourceError> {
        let objects = self.objects(commits, MOST_COMMIT_BYTES).await?;
        for (commit, object) in commits.iter().zip(&objects) {
            signature::check_commit(trust, object, self.workspace, self.deadline)
                .await
                .map_err(|error| match error.problem() {
                    Problem::Refused => error.about(&format!("commit {}", short(commit))),
                    _ => error,
                })?;
        }
        match commits.len() == objects.len() {
            true => Ok(()),
            false => Err(SourceError::refused(
                "a commit is missing in what the repository gives",
            )),
        }
    }

    /// The mesh files of a commit: the one file that the path names, or the `*.toml` files of the
    /// directory.
    ///
    /// # Errors
    /// The path is not there, or it leads to something that is no plain file, or to too much.
    pub(super) async fn files(&self, commit: &str) -> Result<(Vec<File>, bool), SourceError> {
        let path = self.location.path.as_str();
        let shown = if path.is_empty() {
            "the root of the repository"
        } else {
            path
        };
        let refused =
            |what: String| SourceError::refused(format!("{what} at commit {}", short(commit)));
        let single = if path.is_empty() {
            None
        } else {
            let found = self.list(commit, path).await?;
            let Some(entry) = found.into_iter().next() else {
                return Err(refused(format!("{path} is not there")).help(
                    "check the part after `:`; a path through a symbolic link is not followed",
                ));
            };
            match entry.kind {
                Kind::Directory => None,
                _ => Some(entry),
            }
        };
        let is_single = single.is_some();
        let entries = match single {
            Some(entry) => vec![entry],
            None => {
                let directory = if path.is_empty() {
                    String::new()
                } else {
                    format!("{path}/")
                };
                let mut entries = self.list(commit, &directory).await?;
                entries.retain(|entry| entry.is_mesh_file());
                entries
            }
        };
        if entries.is_empty() {
            return Err(refused(format!("{shown} holds no *.toml files")));
        }
        if entries.len() > MOST_FILES {
            return Err(refused(format!(
                "{shown} holds more than {MOST_FILES} *.toml files"
            )));
        }
        let mut sum = 0;
        for entry in &entries {
            let name = entry.name.escape_debug();
            match entry.kind {
                Kind::File => {}
                Kind::Link => {
                    return Err(refused(format!("{name} is a symbolic link"))
                        .help("put the file itself there"));
                }
                Kind::Directory | Kind::Other => {
                    return Err(refused(format!("{name} is not a plain file")));
                }
            }
            if entry.name.chars().any(char::is_control) || entry.name.len() > 200 {
                return Err(refused(format!("`{name}` is not a name for a mesh file")));
            }
            sum += entry.size;
            if entry.size > MOST_FILE_BYTES || sum > MOST_BYTES {
                return Err(refused(format!(
                    "{name} makes it more than {} MiB a file or {} MiB in all",
                    MOST_FILE_BYTES >> 20,
                    MOST_BYTES >> 20
                )));
            }
        }
        let headers = 128 * entries.len() as u64;
        let names: Vec<&str> = entries.iter().map(|entry| entry.object.as_str()).collect();
        let contents = self.objects(&names, sum + headers).await?;
        if contents.len() != entries.len() {
            return Err(refused(format!("a file of {shown} is missing")));
        }
        let files = entries
            .into_iter()
            .zip(contents)
            .map(|(entry, content)| File {
                name: entry.name,
                content,
            });
        Ok((files.collect(), is_single))
    }

    async fn list(&self, commit: &str, path: &str) -> Result<Vec<Entry>, SourceError> {
        let mut arguments = vec!["ls-tree", "-z", "-l", "--full-tree", commit];
        if !path.is_empty() {
            arguments.extend(["--", path]);
        }
        let list = self.read(&arguments, b"", MOST_LIST).await?;
        list.split(|byte| *byte == 0)
            .filter(|line| !line.is_empty())
            .map(|line| {
                Entry::parse(&String::from_utf8_lossy(line))
                    .ok_or_else(|| SourceError::local("git's list of files can't be read"))
            })
            .collect()
    }

    /// The contents of objects, as long as they are there.
    async fn objects<S: AsRef<str>>(
        &self,
        names: &[S],
        most: u64,
    ) -> Result<Vec<Vec<u8>>, SourceError> {
        let request = batch::request(names);
        let output = self
            .read(&["cat-file", "--batch"], request.as_bytes(), most)
            .await?;
        Ok(batch::contents(&output))
    }
}

/// What git reads instead of this machine's own configuration.
fn configuration_text(location: &GitLocation) -> String {
    let scheme = location.url.scheme();
    let mut text = format!(
        "[core]\n\thooksPath = /dev/null\n\taskPass = \n\tfsmonitor = false\n\tbigFileThreshold = 1m\n\
         [protocol]\n\tallow = never\n[protocol \"{scheme}\"]\n\tallow = always\n\
         [fetch]\n\tfsckObjects = true\n\tunpackLimit = 1\n\trecurseSubmodules = false\n\
         [transfer]\n\tfsckObjects = true\n[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n\
         [credential]\n\thelper = \n[http]\n\tlowSpeedLimit = 100\n\tlowSpeedTime = 20\n\tfollowRedirects = false\n"
    );
    // The repository that the operator named may belong to another user of this machine; no other
    // may.
    if let Ok(path) = location.url.to_file_path() {
        let path = path
            .to_string_lossy()
            .replace('\\', "\\\\")
            .replace('"', "\\\"");
        if !path.contains('\n') {
            let path = path.trim_end_matches('/');
            let _ = write!(
                text,
                "[safe]\n\tdirectory = \"{path}\"\n\tdirectory = \"{path}/.git\"\n"
            );
        }
    }
    text
}

/// A commit's name as people write it.
pub(super) fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    Link,
    /// A submodule, or something that git does not know today.
    Other,
}

/// An entry of a directory.
#[derive(Debug)]
struct Entry {
    name: String,
    kind: Kind,
    object: String,
    size: u64,
}

impl Entry {
    /// Reads `MODE TYPE OBJECT SIZE`, a tab and the path.
    fn parse(line: &str) -> Option<Self> {
        let (facts, path) = line.split_once('\t')?;
        let mut facts = facts.split_ascii_whitespace();
        let kind = match facts.next()? {
            "100644" | "100755" | "100664" => Kind::File,
            "040000" => Kind::Directory,
            "120000" => Kind::Link,
            _ => Kind::Other,
        };
        let object = facts.nth(1)?.to_owned();
        let size = facts.next()?.parse().unwrap_or(0);
        Some(Self {
            name: path.rsplit('/').next()?.to_owned(),
            kind,
            object,
            size,
        })
    }

    /// Whether a directory's entry counts as a part of the mesh, by the rules for directories of
    /// this machine.
    fn is_mesh_file(&self) -> bool {
        !self.name.starts_with('.')
            && Path::new(&self.name)
                .extension()
                .is_some_and(|extension| extension == "toml")
    }
}
