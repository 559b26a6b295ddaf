//! `natpunch join`: this machine becomes a node of a mesh, by an invite.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use natpunch_types::{PeerKey, SecretKey};
use zeroize::Zeroizing;

use crate::cli::CliError;
use crate::cli::args::JoinArgs;
use crate::config::{self, MeshConfig, SecretSource};
use crate::control;
use crate::invite::{self, Found, Installation, Invite, LineError, Secret};
use crate::source::{Location, Look, installed};

/// Longest input, in bytes.
const LONGEST: u64 = 96 << 10;

/// Between two looks at the mesh: the first wait, which is doubled up to the longest.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Where the agent of a host that has a mesh already finds it, by the unit as it comes.
const USUAL_MESH: &str = "/etc/natpunch/mesh.toml";

pub(in crate::cli) fn run(args: &JoinArgs) -> Result<ExitCode, CliError> {
    let joining = Joining::prepare(args)?;
    let found = joining.look()?;
    joining.tell(&found)?;
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(CliError::new("joining writes to /etc and needs root")
            .help("sudo natpunch join; with --dry-run it only says what it would do"));
    }
    joining.install()?;
    let mut out = anstream::stdout().lock();
    if !joining.is_known {
        let (node, key) = (&joining.invite.node, &joining.public_key);
        writeln!(
            out,
            "\nThe mesh does not know this node yet. Where the mesh file is, commit and push this:\n\n  \
             natpunch add-peer {node} --public-key {key}\n"
        )?;
        if !args.no_wait {
            writeln!(
                out,
                "waiting for it; after Ctrl-C `natpunch join` with the same line goes on"
            )?;
            joining.wait();
        }
    }
    match joining.has_service {
        true => {
            start_service(joining.is_known || !args.no_wait)?;
            writeln!(
                out,
                "natpunch.service runs: `natpunch status` shows the peers"
            )?;
        }
        false => {
            let command = joining.installation.arguments.join(" ");
            writeln!(out, "run the agent: natpunch {command}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// An invite that may be used on this machine, and what that means.
struct Joining {
    invite: Invite,
    source: Location,
    own_key: Secret,
    public_key: PeerKey,
    /// Whether the mesh has this node.
    is_known: bool,
    /// Secret files of the mesh that the invite does not have, and that are not here.
    missing: Vec<PathBuf>,
    installation: Installation,
    has_service: bool,
}

impl Joining {
    /// Reads the invite and the mesh, and writes nothing.
    fn prepare(args: &JoinArgs) -> Result<Self, CliError> {
        let invite = read_invite(args)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        invite
            .check_time(now.unwrap_or_default().as_secs())
            .map_err(|error| CliError::of(&error))?;
        let source = Location::parse(invite.source.as_ref())?;
        let allowed = invite
            .secrets
            .keys()
            .all(|path| invite::may_be_written(path));
        if source.is_local() || !allowed {
            return Err(CliError::new(
                "this invite asks for files where no invite may put any: nothing was written",
            )
            .help("do not use it; ask its sender for a new one"));
        }
        let mesh = fetch(&invite, &source)?;
        if mesh.name != invite.mesh {
            return Err(CliError::new(format!(
                "the invite is for the mesh `{}`, and {source} has the mesh `{}`",
                invite.mesh, mesh.name
            ))
            .help("ask for a new invite: `natpunch invite`"));
        }
        let (key_file, is_named) = key_file(&invite, &mesh);
        let key = own_key(&invite, &key_file)?;
        let public_key = key.public_key();
        let is_known = knows(&mesh, &invite.node, &public_key)?;
        let has_service = !args.no_service && Path::new("/run/systemd/system").is_dir();
        let program = std::env::current_exe()?;
        let unit = has_service.then_some(program.as_path());
        if has_service && Path::new(USUAL_MESH).exists() {
            return Err(CliError::new(format!(
                "this machine has a mesh of its own already: {USUAL_MESH}"
            ))
            .help("run the agent of the new mesh as a service of its own: --no-service, and docs/how-to/several-meshes.md"));
        }
        let installation = Installation::new(&invite, (&key_file, is_named), unit);
        let missing = invite::secret_files(&mesh);
        let missing = missing
            .into_iter()
            .filter(|path| !invite.secrets.contains_key(path) && !path.exists())
            .collect();
        Ok(Self {
            own_key: Secret(key.expose_base64()),
            invite,
            source,
            public_key,
            is_known,
            missing,
            installation,
            has_service,
        })
    }

    /// How the files are found. Nothing is overwritten.
    fn look(&self) -> Result<Vec<(&invite::Piece, Found)>, CliError> {
        let found = self.installation.look().map_err(|(path, error)| {
            CliError::new(format!("can't look at {}: {error}", path.display()))
                .help("run natpunch as root")
        })?;
        if let Some((piece, _)) = found.iter().find(|(_, found)| *found == Found::Other) {
            return Err(CliError::new(format!(
                "{} is there already, and holds something else: nothing was written",
                piece.path.display()
            ))
            .help("move it away if nothing needs it; a host that is in another mesh needs a second service (docs/how-to/several-meshes.md)"));
        }
        Ok(found)
    }

    fn tell(&self, found: &[(&invite::Piece, Found)]) -> Result<(), CliError> {
        let mut out = anstream::stdout().lock();
        let (invite, source) = (&self.invite, &self.source);
        writeln!(
            out,
            "this machine becomes {} of the mesh {}, which it fetches from {source}",
            invite.node, invite.mesh
        )?;
        let width = found.iter().map(|(piece, _)| piece.path.as_os_str().len());
        let width = width.max().unwrap_or_default();
        for (piece, found) in found {
            let (sign, path) = (if *found == Found::Absent { '+' } else { '=' }, &piece.path);
            writeln!(
                out,
                "  {sign} {:width$}  {}",
                path.display().to_string(),
                piece.what
            )?;
        }
        if self.has_service {
            writeln!(out, "  + natpunch.service, enabled and started")?;
        }
        if invite.trust.is_none() && !Path::new(crate::source::DEFAULT_TRUST_FILE).exists() {
            writeln!(
                out,
                "no trust file: whoever can change {source} can change this host's network"
            )?;
        }
        for path in &self.missing {
            let path = path.display();
            writeln!(
                out,
                "not in the invite: the secret file {path}, which you carry here"
            )?;
        }
        Ok(())
    }

    fn install(&self) -> Result<(), CliError> {
        self.installation
            .write(&self.own_key)
            .map_err(|(path, problem)| {
                CliError::new(format!(
                    "can't make {}: {problem}; what was made before it was removed again",
                    path.display()
                ))
            })
    }

    /// Waits until the mesh has this node. What is wrong meanwhile is said once.
    fn wait(&self) {
        let mut wait = WAIT.0;
        let mut said = String::new();
        loop {
            let problem = match fetch(&self.invite, &self.source)
                .and_then(|mesh| knows(&mesh, &self.invite.node, &self.public_key))
            {
                Ok(true) => return,
                Ok(false) => String::new(),
                Err(error) => error.to_string(),
            };
            if problem != said && !problem.is_empty() {
                let _ = writeln!(anstream::stderr(), "{problem}");
            }
            said = problem;
            std::thread::sleep(wait);
            wait = (wait * 2).min(WAIT.1);
        }
    }
}

/// The line, from the command line or from standard input, and what it says.
fn read_invite(args: &JoinArgs) -> Result<Invite, CliError> {
    let failed = |error: LineError| CliError::of(&error);
    let given = args.line.as_deref().filter(|line| *line != "-");
    let mut input = std::io::BufReader::new(std::io::stdin().lock().take(LONGEST));
    let line = match given {
        Some(line) => Zeroizing::new(line.to_owned()),
        None => ask("invite: ", &mut input)?,
    };
    let code = match invite::is_sealed(&line) {
        true => Some(ask("code: ", &mut input)?),
        false => None,
    };
    invite::decode(&line, code.as_deref().map(String::as_str)).map_err(failed)
}

/// Reads a line of standard input.
fn ask(prompt: &str, input: &mut impl std::io::BufRead) -> Result<Zeroizing<String>, CliError> {
    if std::io::stdin().is_terminal() {
        let mut err = anstream::stderr();
        let _ = write!(err, "{prompt}");
        let _ = err.flush();
    }
    let mut line = Zeroizing::new(String::new());
    input.read_line(&mut line)?;
    Ok(line)
}

/// The mesh as it is at its source now, by the trust file that the node will have.
fn fetch(invite: &Invite, source: &Location) -> Result<MeshConfig, CliError> {
    let trust = match &invite.trust {
        Some(text) => {
            let mut file = tempfile::NamedTempFile::new()?;
            file.write_all(text.as_bytes())?;
            Some(file)
        }
        None => None,
    };
    let path = trust.as_ref().map(tempfile::NamedTempFile::path);
    let look = Look::at(source, path, &control::state_dir()).map_err(|error| {
        CliError::of(&error).help("a node fetches the mesh by itself: for a private repository give this machine a key for it first (docs/how-to/git.md)")
    })?;
    Ok(config::load(look.path())?)
}

/// Where the node's private key is to be, and whether the mesh file says so.
fn key_file(invite: &Invite, mesh: &MeshConfig) -> (PathBuf, bool) {
    let own = mesh.peers.get(&invite.node);
    let own = own.and_then(|peer| peer.interface.private_key.as_ref());
    match own.or(mesh.interface.private_key.as_ref()) {
        Some(SecretSource::File(file)) if invite::may_be_written(file) => (file.clone(), true),
        _ => {
            let name = format!("{}.key", invite.mesh);
            (Path::new(invite::DIRECTORY).join(name), false)
        }
    }
}

/// The key of the invite, of the file that is there, or a new one.
fn own_key(invite: &Invite, file: &Path) -> Result<SecretKey, CliError> {
    if let Some(key) = &invite.key {
        let key = key.0.trim().parse();
        return key.map_err(|_| CliError::of(&LineError::Altered));
    }
    if file.exists() {
        return Ok(config::read_key_file(file)?);
    }
    config::new_private_key()
        .map_err(|error| CliError::new(format!("the system gives no random bytes: {error}")))
}

/// Whether the mesh has this node with this key.
///
/// # Errors
/// The name, or the key, is another's.
fn knows(mesh: &MeshConfig, node: &str, key: &PeerKey) -> Result<bool, CliError> {
    let owner = mesh.peers.iter().find(|(_, peer)| peer.public_key == *key);
    match (owner, mesh.peers.get(node)) {
        (Some((name, _)), _) if name == node => Ok(true),
        (Some((name, _)), _) => Err(CliError::new(format!(
            "this machine is `{name}` of the mesh {} already, by its key: nothing was written",
            mesh.name
        ))
        .help("one machine is one node; if the key file was copied from another machine, remove it")),
        (None, Some(_)) => Err(CliError::new(format!(
            "`{node}` is in the mesh {} already, with another key: this invite was used, or the name is somebody's",
            mesh.name
        ))
        .help(format!("ask for an invite under another name; if {node} is this machine and lost its key, it is removed from the mesh file first"))),
        (None, None) => Ok(false),
    }
}

/// Has systemd start the agent, now and at every boot. An agent that the mesh does not know yet is
/// not waited for: it is started again until it is.
fn start_service(wait: bool) -> Result<(), CliError> {
    let restart: &[&str] = match wait {
        true => &["restart", "natpunch.service"],
        false => &["restart", "--no-block", "natpunch.service"],
    };
    for arguments in [
        &["daemon-reload"][..],
        &["enable", "natpunch.service"],
        restart,
    ] {
        let failed = |problem: String| {
            CliError::new(format!("systemctl {}: {problem}", arguments.join(" ")))
                .help("the files are in place: `systemctl enable --now natpunch` starts the agent, `journalctl -u natpunch` says what is wrong")
        };
        let program = installed("systemctl")
            .ok_or_else(|| failed("the program is not installed".to_owned()))?;
        let output = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(failed(said.trim().to_owned()));
        }
    }
    Ok(())
}
