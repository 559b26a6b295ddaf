//! `natpunch invite`: the line that makes another machine a node of the mesh.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use natpunch_types::PeerKey;
use zeroize::Zeroizing;

use crate::cli::CliError;
use crate::cli::args::InviteArgs;
use crate::config::{self, Edit, MeshConfig, NewPeer, SecretSource};
use crate::invite::{self, Invite, Secret};
use crate::plugins::registry;
use crate::source::{DEFAULT_TRUST_FILE, Location};

/// Longest secret or trust file that is put into an invite, in bytes.
const LONGEST: usize = 16 << 10;

/// The characters of a code: none that is taken for another (Crockford's base 32).
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

pub(in crate::cli) fn run(args: &InviteArgs) -> Result<ExitCode, CliError> {
    let kinds = registry::kinds();
    let open = || Edit::for_new_peer(&args.mesh.path, args.file.as_deref(), &args.name, &kinds);
    let mut edit = open()?;
    let mesh = edit.mesh();
    if mesh.peers.contains_key(&args.name) {
        return Err(CliError::new(format!(
            "{}: `{}` is a peer of the mesh already",
            args.mesh.path.display(),
            args.name
        ))
        .help("invite another name, or remove it first: `natpunch remove-peer`"));
    }
    let source = source_of(args)?;
    let made = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|_| CliError::new("the clock of this machine is before 1970"))?
        .as_secs();
    let key = config::new_private_key()
        .map_err(|error| CliError::new(format!("the system gives no random bytes: {error}")))?;
    let peer = NewPeer {
        name: args.name.clone(),
        public_key: key.public_key(),
        addresses: config::free_addresses(mesh)?,
        routes: Vec::new(),
        exit: false,
        exit_node: None,
        endpoint: None,
        managed: true,
        tags: Vec::new(),
        persistent_keepalive: None,
    };
    let invite = Invite {
        mesh: mesh.name.clone(),
        node: args.name.clone(),
        made,
        expires: made.saturating_add(args.valid.as_secs()),
        source: source.to_string(),
        trust: trust(args)?,
        secrets: secrets(args, mesh)?,
        key: args.with_key.then(|| Secret(key.expose_base64())),
    };
    // Whether the mesh takes a peer of that name is known before anything is printed.
    edit.add_peer(&peer);
    edit.check()?;
    let code = args.code.then(new_code).transpose()?;
    let line = invite::encode(&invite, code.as_deref().map(String::as_str)).ok_or_else(|| {
        CliError::new("the invite would be longer than 64 KiB")
            .help("leave the secret files out (--without-secrets), and carry them yourself")
    })?;
    if args.with_key {
        edit.write()?;
    }
    writeln!(std::io::stdout().lock(), "{}", *line)?;
    // With standard error closed there is nobody to tell.
    let _ = tell(
        args,
        &invite,
        &peer.public_key,
        edit.file(),
        code.as_deref(),
    );
    Ok(ExitCode::SUCCESS)
}

/// What a person is to know beside the line.
fn tell(
    args: &InviteArgs,
    invite: &Invite,
    key: &PeerKey,
    file: &Path,
    code: Option<&String>,
) -> std::io::Result<()> {
    let mut err = anstream::stderr().lock();
    if std::io::stdout().is_terminal() {
        writeln!(err)?;
    }
    if let Some(code) = code {
        writeln!(err, "code: {code}   (tell it by another way than the line)")?;
    }
    let Invite { node, source, .. } = invite;
    if args.with_key {
        let file = file.display();
        writeln!(err, "added {node} to {file}, {key}: commit and push it")?;
    }
    writeln!(
        err,
        "on {node}, within {}: natpunch join LINE   (mesh {} of {source})",
        invite::spoken(args.valid),
        invite.mesh
    )?;
    let mut carried: Vec<String> = invite
        .secrets
        .keys()
        .map(|path| path.display().to_string())
        .collect();
    carried.extend(args.with_key.then(|| format!("the private key of {node}")));
    if !carried.is_empty() && code.is_none() {
        let carried = carried.join(", ");
        writeln!(
            err,
            "whoever reads the line has what is in it ({carried}): send it as you would send a password"
        )?;
    }
    Ok(())
}

fn source_of(args: &InviteArgs) -> Result<Location, CliError> {
    let unknown = || {
        CliError::new(format!(
            "{}: where the nodes fetch this mesh from is not known",
            args.mesh.path.display()
        ))
        .help("name it: --source git+https://HOST/REPO.git#BRANCH:PATH; in a git repository with a remote `origin` that is known")
    };
    let source = match &args.source {
        Some(source) => source.clone(),
        None => invite::origin_of(&args.mesh.path).ok_or_else(unknown)?,
    };
    if source.is_local() {
        return Err(CliError::new(format!(
            "{source} is a path of this machine, and the new node is another one"
        ))
        .help("name a source that it can fetch: --source git+https://HOST/REPO.git#BRANCH:PATH"));
    }
    Ok(source)
}

/// The trust file that the node gets.
fn trust(args: &InviteArgs) -> Result<Option<String>, CliError> {
    let file = args.trust.as_deref();
    let path = file.unwrap_or(Path::new(DEFAULT_TRUST_FILE));
    match std::fs::read_to_string(path) {
        Ok(text) if text.len() <= LONGEST => Ok(Some(text)),
        Ok(_) => Err(CliError::new(format!(
            "{} is longer than {LONGEST} bytes",
            path.display()
        ))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => Ok(None),
        Err(error) => Err(CliError::new(format!(
            "can't read the trust file {}: {error}",
            path.display()
        ))),
    }
}

/// What the mesh's secret files hold on this machine.
fn secrets(args: &InviteArgs, mesh: &MeshConfig) -> Result<BTreeMap<PathBuf, Secret>, CliError> {
    let mut secrets = BTreeMap::new();
    for wanted in invite::secret_files(mesh) {
        if args.without_secrets {
            continue;
        }
        if !invite::may_be_written(&wanted) {
            return Err(CliError::new(format!(
                "the mesh has a secret in {}, and an invite puts files only below {}",
                wanted.display(),
                invite::DIRECTORY
            ))
            .help("leave the secrets out (--without-secrets), and carry them to the new node yourself"));
        }
        let here = args.secret.iter().find(|(path, _)| *path == wanted);
        let here = here.map_or(&wanted, |(_, here)| here);
        let text = natpunch_os::secret::read(here, LONGEST).map_err(|error| {
            CliError::new(format!("a secret that the new node needs: {error}")).help(format!(
                "say where it is: --secret {}=FILE; or leave the secrets out (--without-secrets), and carry them yourself",
                wanted.display()
            ))
        })?;
        // Blanks may belong to a password.
        let line = text.trim_end_matches(['\r', '\n']);
        secrets.insert(wanted, Secret(Zeroizing::new(line.to_owned())));
    }
    if let Some((path, _)) = args
        .secret
        .iter()
        .find(|(path, _)| !secrets.contains_key(path))
    {
        return Err(CliError::new(format!(
            "--secret: the mesh names no secret file {}",
            path.display()
        )));
    }
    // A mesh with an encrypted secret gives it to those whose identity it is encrypted to.
    if let Some(SecretSource::Age(_)) = &mesh.preshared_secret {
        let _ = writeln!(
            anstream::stderr(),
            "the mesh's preshared secret is encrypted to its nodes: encrypt it to the new one, too"
        );
    }
    Ok(secrets)
}

/// 50 random bits as two groups of five characters.
fn new_code() -> Result<Zeroizing<String>, CliError> {
    let mut random = Zeroizing::new([0_u8; 10]);
    getrandom::fill(random.as_mut_slice())
        .map_err(|error| CliError::new(format!("the system gives no random bytes: {error}")))?;
    let mut code = Zeroizing::new(String::with_capacity(11));
    for (at, byte) in random.iter().enumerate() {
        if at == 5 {
            code.push('-');
        }
        let character = ALPHABET.get(usize::from(byte % 32)).copied();
        code.extend(character.map(char::from));
    }
    Ok(code)
}
