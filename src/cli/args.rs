//! The command line as typed. What it means is decided by the command's own file.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use natpunch_plugin_description::Endpoint;
use natpunch_types::{Consent, PeerKey};

pub use super::node::live::args::{TopArgs, WebArgs};
pub use super::node::status::select::{Filter, Sort};
use crate::config::{AgeRecipient, Local, parse_span};
use crate::control::Readers;
use crate::source::{Location, parse_argument};

use super::plugin::args::PluginCommand;

mod processes;

pub use processes::{DeviceArgs, ForwarderArgs, GuardArgs, PinForwarderArgs};

/// A WireGuard mesh as code: one TOML file in git, any NAT, no account.
#[derive(Debug, Parser)]
#[command(
    name = "natpunch",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// How log lines look.
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value_t = LogFormat::Text
    )]
    pub log_format: LogFormat,
    /// Log filter, such as `info` or `natpunch=debug`. Default: the variable NATPUNCH_LOG, else
    /// `info`.
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent: apply the mesh file, connect the peers, and follow changes of the file.
    Apply(ApplyArgs),
    /// Show what `apply` would change on this host, and change nothing (exit code 2: changes).
    Plan(PlanArgs),
    /// Keep the change that the running mesh is trying. Without it the change is undone.
    Confirm(ConfirmArgs),
    /// Validate the mesh for every node in it, without network or privileges.
    Check(CheckArgs),
    /// Show what a version of the mesh changes against another, for every node and every pair.
    Diff(DiffArgs),
    /// Make a new mesh file.
    Init(InitArgs),
    /// Add a peer to the mesh file; comments and order stay.
    AddPeer(AddPeerArgs),
    /// Change keys of a peer in the mesh file; comments and order stay.
    EditPeer(EditPeerArgs),
    /// Give a peer of the mesh file another name, also where other peers name it.
    RenamePeer(RenamePeerArgs),
    /// Give a peer of the mesh file a new key, and name the file that holds it on its machine.
    RotateKey(RotateKeyArgs),
    /// Remove a peer from the mesh file, and say which secrets it still knows; comments and order
    /// stay.
    RemovePeer(RemovePeerArgs),
    /// Print the line that makes another machine a node of the mesh: it runs `join` with it.
    Invite(InviteArgs),
    /// Make this machine a node of a mesh, by the line that `invite` printed.
    Join(JoinArgs),
    /// Make a mesh file from a file of wg-quick or from a running interface.
    Import(ImportArgs),
    /// Print the wg-quick file of a peer with plain WireGuard, or its QR code.
    Export(ExportArgs),
    /// Draw the mesh, as a picture or as Mermaid text.
    Graph(GraphArgs),
    /// Show peers, paths, endpoints and traffic, and why a peer is not connected.
    Status(StatusArgs),
    /// Show peers, paths, rates and events on a terminal, live.
    Top(TopArgs),
    /// Show the mesh as a page in a browser on this host: a map, rates, events, and why.
    Web(WebArgs),
    /// Explain a peer's path: what was tried, and what one change would make it direct or faster.
    Why(WhyArgs),
    /// Ping a peer, and show the path of each answer, until the path is direct.
    Ping(PingArgs),
    /// Check whether this host and its network have what natpunch needs, with or without a mesh.
    Doctor(DoctorArgs),
    /// Make the agent look for a new version of the mesh now, and say whether it is applied.
    Reload(ReloadArgs),
    /// Stop the agent and remove the mesh from this host: interface, routes, rules, names.
    Down(DownArgs),
    /// Run a server that introduces nodes, tells them their addresses, and relays.
    Serve(ServeArgs),
    /// Show two nodes behind NATs connect, in network namespaces of this machine.
    Demo(DemoArgs),
    /// Print a new private key, as `wg genkey` does.
    Keygen(KeygenArgs),
    /// Encrypt the key on standard input with age, for the mesh file.
    Encrypt(EncryptArgs),
    /// Read a private key from standard input and print its public key, as `wg pubkey` does.
    Pubkey(PubkeyArgs),
    /// Print the JSON schema of the mesh file.
    Schema(SchemaArgs),
    /// Discovery plugins: list them, test your own, begin a new one.
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Print shell completions.
    Completions(CompletionsArgs),
    /// Write the manual pages, one for each command.
    Manual(ManualArgs),
    /// The embedded WireGuard device (started by `apply`).
    #[command(hide = true)]
    Device(DeviceArgs),
    /// Carries WireGuard's packets by TLS where no UDP gets through (started by `apply`).
    #[command(hide = true)]
    Forwarder(ForwarderArgs),
    /// Carries WireGuard's packets from other source ports where nftables can't (started by
    /// `apply`).
    #[command(hide = true)]
    PinForwarder(PinForwarderArgs),
    /// Has WireGuard reach peers at rest when the agent was killed (started by `apply`).
    #[command(hide = true)]
    Guard(GuardArgs),
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The mesh file, a directory of `*.toml` files, git+https://HOST/REPO.git#BRANCH:PATH (also
    /// git+ssh, git+file), or https://HOST/mesh.toml.
    #[arg(value_name = "SOURCE", value_parser = OsStringValueParser::new().try_map(parse_argument))]
    pub source: Location,
    /// The file that says who must have signed a mesh from a repository or web server. Default:
    /// /etc/natpunch/trust.toml, if it exists.
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
    /// Where this host's own secrets are.
    #[command(flatten)]
    pub local: LocalArgs,
    /// Time between two looks for a new version in a repository or on a web server, such as 60s, 5m
    /// or 1h.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = interval)]
    pub poll: Duration,
    /// Exit when every reachable peer is connected (exit code 0) or the deadline has passed (3).
    #[arg(long)]
    pub once: bool,
    /// Deadline of `--once`, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub deadline: u64,
    /// Permit a kind of change that is refused otherwise: mass-removal, critical-removal,
    /// operator-removal, default-route or empty-mesh. Repeat for several.
    #[arg(long, value_name = "WORD", value_parser = consent)]
    pub allow: Vec<Consent>,
    /// Undo every change of the running mesh unless `natpunch confirm` is run within this time,
    /// such as 120s.
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub confirm: Option<Duration>,
    /// Make exactly the changes of the plan that `natpunch plan` printed with this id, or stop.
    #[arg(long, value_name = "ID")]
    pub plan: Option<String>,
    /// Take over a running interface that another program made, such as wg-quick, if it has this
    /// node's key and name. Sessions go on. It is needed once.
    #[arg(long)]
    pub adopt: bool,
    /// Answer Prometheus at this loopback address, such as 127.0.0.1:9468. Off by default.
    #[arg(long, value_name = "ADDR:PORT", value_parser = loopback)]
    pub metrics: Option<SocketAddr>,
    /// Let the members of this group of the host ask for `status`, `why` and `plan --live`, and
    /// change nothing.
    #[arg(long, value_name = "GROUP")]
    pub control_group: Option<Readers>,
}

/// What `apply` and `plan` are told of this host.
#[derive(Debug, Clone, Args)]
pub struct LocalArgs {
    /// This node's private key file. Default: the one that the mesh file names.
    #[arg(long, value_name = "FILE")]
    pub private_key_file: Option<PathBuf>,
    /// This node's age identity, which opens encrypted keys. Default: the one that the mesh file
    /// names, else /etc/natpunch/age.key.
    #[arg(long, value_name = "FILE")]
    pub age_identity: Option<PathBuf>,
    /// The peer that this host is, if its identity opens the keys of several.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
}

impl From<LocalArgs> for Local {
    fn from(args: LocalArgs) -> Self {
        Self {
            private_key_file: args.private_key_file,
            age_identity_file: args.age_identity,
            node: args.node,
        }
    }
}

/// An address that nobody but this host reaches.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "an address with a port, such as 127.0.0.1:9468".to_owned())?;
    match address.ip().is_loopback() {
        true => Ok(address),
        false => Err("others could read it: a loopback address, such as 127.0.0.1:9468".to_owned()),
    }
}

fn consent(text: &str) -> Result<Consent, String> {
    text.parse()
        .map_err(|()| format!("one of {}", Consent::ALL.map(Consent::word).join(", ")))
}

fn span(text: &str) -> Result<Duration, String> {
    parse_span(text)
        .filter(|span| !span.is_zero())
        .ok_or_else(|| "a number with s, m or h, such as 120s".to_owned())
}

/// Arguments of `confirm`.
#[derive(Debug, Args)]
pub struct ConfirmArgs {
    /// The interface or the mesh. Needed if several run on this host.
    #[arg(long, short, value_name = "NAME")]
    pub interface: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The mesh file, a directory of `*.toml` files, git+https://HOST/REPO.git#BRANCH:PATH (also
    /// git+ssh, git+file), or https://HOST/mesh.toml.
    #[arg(value_name = "SOURCE", required_unless_present = "live", conflicts_with = "live", value_parser = OsStringValueParser::new().try_map(parse_argument))]
    pub source: Option<Location>,
    /// The file that says who must have signed a mesh from a repository or web server. Default:
    /// /etc/natpunch/trust.toml, if it exists.
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
    /// Compare the interface of a running mesh with its mesh file, and show the changes that would
    /// put it right.
    #[arg(long)]
    pub live: bool,
    /// With --live: the interface or the mesh. Needed if several run on this host.
    #[arg(long, short, value_name = "NAME", requires = "live")]
    pub interface: Option<String>,
    /// Show what `apply --adopt` would change.
    #[arg(long, conflicts_with = "live")]
    pub adopt: bool,
    /// Kinds of change that `apply` will be permitted by its --allow.
    #[arg(long, value_name = "WORD", value_parser = consent)]
    pub allow: Vec<Consent>,
    /// Where this host's own secrets are.
    #[command(flatten)]
    pub local: LocalArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The mesh file, a directory of `*.toml` files, git+https://HOST/REPO.git#BRANCH:PATH (also
    /// git+ssh, git+file), or https://HOST/mesh.toml.
    #[arg(value_name = "SOURCE", value_parser = OsStringValueParser::new().try_map(parse_argument))]
    pub source: Location,
    /// The file that says who must have signed a mesh from a repository or web server. Default:
    /// /etc/natpunch/trust.toml, if it exists.
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
    /// The form in which findings are printed.
    #[arg(long, value_enum, default_value_t = CheckFormat::Text)]
    pub format: CheckFormat,
    /// The same as `--format json`.
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Exit with 1 on warnings, too.
    #[arg(long)]
    pub strict: bool,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The old version: a file, a directory of `*.toml` files, or REVISION:PATH of the git
    /// repository here, such as origin/main:mesh.toml.
    pub old: OsString,
    /// The new version, in the same forms.
    pub new: OsString,
    /// Print Markdown, for a comment in a merge request.
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How `check` prints its findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckFormat {
    /// Text for people.
    Text,
    /// One JSON object.
    Json,
    /// Annotations of a GitHub workflow.
    Github,
    /// A code quality report of GitLab.
    Gitlab,
}

/// Which mesh an editing command is about.
#[derive(Debug, Args)]
pub struct MeshPath {
    /// The mesh file, or a directory of `*.toml` files.
    #[arg(long = "mesh", short, value_name = "PATH", default_value = "mesh.toml")]
    pub path: PathBuf,
}

/// Arguments of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The file to make. An existing file is never overwritten.
    #[arg(default_value = "mesh.toml")]
    pub path: PathBuf,
    /// Name of the mesh, a DNS label.
    #[arg(long, default_value = "home")]
    pub name: String,
    /// A network for the mesh's own addresses. Repeat for several. Default: a random private one of
    /// IPv4 and of IPv6.
    #[arg(long, value_name = "CIDR")]
    pub network: Vec<IpNet>,
}

/// Arguments of `add-peer`.
#[derive(Debug, Args)]
pub struct AddPeerArgs {
    /// Its name, a DNS label.
    pub name: String,
    /// The mesh.
    #[command(flatten)]
    pub mesh: MeshPath,
    /// In a directory of files: the one that gets the peer.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Its public key.
    #[arg(
        long,
        value_name = "KEY",
        required_unless_present = "private_key_file",
        conflicts_with = "private_key_file"
    )]
    pub public_key: Option<PeerKey>,
    /// Make its key pair, and write the private key to this file, mode 0600. An existing key is
    /// used as it is.
    #[arg(long, value_name = "FILE")]
    pub private_key_file: Option<PathBuf>,
    /// Its address in the mesh. Repeat for several. Default: the lowest free one of each address
    /// family.
    #[arg(long, value_name = "ADDRESS")]
    pub address: Vec<IpAddr>,
    /// A network behind it that the others reach through it. Repeat for several.
    #[arg(long, value_name = "CIDR")]
    pub route: Vec<IpNet>,
    /// The address and port at which it is reached without discovery.
    #[arg(long, value_name = "HOST:PORT")]
    pub endpoint: Option<String>,
    /// A word of your own, for people and tools. Repeat for several.
    #[arg(long, value_name = "WORD")]
    pub tag: Vec<String>,
    /// It runs plain WireGuard and no natpunch, as a phone or a router does.
    #[arg(long)]
    pub unmanaged: bool,
}

/// Arguments of `edit-peer`.
#[derive(Debug, Args)]
pub struct EditPeerArgs {
    /// Its name.
    pub name: String,
    /// A key of its section and the value, such as endpoint=nas.example.org:51820, serve=true or
    /// interface.listen_port=51820. What is no value of TOML is taken as a string.
    #[arg(value_name = "KEY=VALUE", required_unless_present = "unset")]
    pub set: Vec<String>,
    /// Take a key away, so that its default holds. Repeat for several.
    #[arg(long, value_name = "KEY")]
    pub unset: Vec<String>,
    /// The mesh.
    #[command(flatten)]
    pub mesh: MeshPath,
}

/// Arguments of `rename-peer`.
#[derive(Debug, Args)]
pub struct RenamePeerArgs {
    /// Its name.
    pub name: String,
    /// Its new name, a DNS label.
    pub new_name: String,
    /// The mesh.
    #[command(flatten)]
    pub mesh: MeshPath,
}

/// Arguments of `rotate-key`.
#[derive(Debug, Args)]
pub struct RotateKeyArgs {
    /// Its name.
    pub name: String,
    /// The file that holds, or will hold, the new key on its machine: an absolute path, other than
    /// that of the key in use. It is made, unless there is a --public-key.
    #[arg(long, value_name = "FILE")]
    pub private_key_file: PathBuf,
    /// The public key of that file, which was made on the peer's machine.
    #[arg(long, value_name = "KEY")]
    pub public_key: Option<PeerKey>,
    /// The mesh.
    #[command(flatten)]
    pub mesh: MeshPath,
}

/// Arguments of `remove-peer`.
#[derive(Debug, Args)]
pub struct RemovePeerArgs {
    /// Its name.
    pub name: String,
    /// The mesh.
    #[command(flatten)]
    pub mesh: MeshPath,
    /// Succeed also if there is no such peer.
    #[arg(long)]
    pub if_present: bool,
}

/// Arguments of `invite`.
#[derive(Debug, Args)]
pub struct InviteArgs {
    /// The name of the new node, a DNS label.
    pub name: String,
    /// The mesh.
    #[command(flatten)]
    pub mesh: MeshPath,
    /// Where the node fetches the mesh from. Default: in a git repository the branch that is
    /// checked out, at the remote `origin`.
    #[arg(long, value_name = "SOURCE", value_parser = OsStringValueParser::new().try_map(parse_argument))]
    pub source: Option<Location>,
    /// The trust file that the node gets. Default: /etc/natpunch/trust.toml of this machine, if it
    /// exists.
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
    /// Where a secret file of the mesh is on this machine, if not where the mesh file says. Repeat
    /// for several.
    #[arg(long, value_name = "PATH=FILE", value_parser = secret_file)]
    pub secret: Vec<(PathBuf, PathBuf)>,
    /// Leave the mesh's secrets out: you carry their files to the node yourself.
    #[arg(long, conflicts_with = "secret")]
    pub without_secrets: bool,
    /// How long the line may be used, such as 30m or 24h; at most 168h.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = validity)]
    pub valid: Duration,
    /// Make the node's key, too: add the peer to the mesh file, and put its private key into the
    /// line. The node then runs as soon as the mesh file is pushed.
    #[arg(long)]
    pub with_key: bool,
    /// With --with-key, in a directory of files: the one that gets the peer.
    #[arg(long, value_name = "FILE", requires = "with_key")]
    pub file: Option<PathBuf>,
    /// Seal the line by a code, which is printed on standard error: without it nobody can read the
    /// line.
    #[arg(long)]
    pub code: bool,
}

fn secret_file(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let (path, file) = text.split_once('=').ok_or("write PATH=FILE")?;
    Ok((path.into(), file.into()))
}

fn validity(text: &str) -> Result<Duration, String> {
    span(text).and_then(|span| {
        let fits = span <= Duration::from_secs(168 * 3600);
        fits.then_some(span)
            .ok_or_else(|| "at most 168h".to_owned())
    })
}

/// Arguments of `join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The line. Without it, or as `-`, it is read from standard input, which no other user of this
    /// machine sees.
    pub line: Option<String>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not wait until the mesh knows this node's key: the service tries again until it does.
    #[arg(long)]
    pub no_wait: bool,
    /// Install no service, and print the command that runs the agent.
    #[arg(long)]
    pub no_service: bool,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The file, such as /etc/wireguard/wg0.conf, or what `wg showconf` prints.
    #[arg(required_unless_present = "interface")]
    pub file: Option<PathBuf>,
    /// Read this running interface instead of a file. It needs root, and changes nothing.
    #[arg(
        long,
        short,
        value_name = "NAME",
        conflicts_with = "file",
        requires = "private_key_file"
    )]
    pub interface: Option<String>,
    /// With --interface: the file that holds the interface's private key. The mesh file will name
    /// it.
    #[arg(long, value_name = "FILE", requires = "interface")]
    pub private_key_file: Option<PathBuf>,
    /// The mesh file to make. Key files are made beside it. Existing files are never overwritten.
    #[arg(long, short, value_name = "FILE", default_value = "mesh.toml")]
    pub output: PathBuf,
    /// Name of the mesh. Default: the name of the interface, or of the file without `.conf`.
    #[arg(long, value_name = "NAME")]
    pub mesh_name: Option<String>,
    /// Name of this node. Default: the name in a comment at the head of the file.
    #[arg(long)]
    pub name: Option<String>,
    /// This node's address with its prefix length, if the file has none. Repeat for several.
    #[arg(long, value_name = "CIDR")]
    pub address: Vec<IpNet>,
    /// A network of the mesh. Repeat for several. Default: the networks of the addresses.
    #[arg(long, value_name = "CIDR")]
    pub network: Vec<IpNet>,
    /// The address of a peer whose AllowedIPs do not tell it. Repeat for several.
    #[arg(long, value_name = "PEER=ADDRESS", value_parser = peer_address)]
    pub peer_address: Vec<(String, IpAddr)>,
    /// The other peers will run natpunch, too. Default: they are plain WireGuard peers.
    #[arg(long)]
    pub managed: bool,
    /// Import without these keys of the file, such as DNS,PostUp, which a mesh has no counterpart
    /// for. What is left out is printed. Without this option such a file is refused.
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    pub leave_out: Vec<String>,
    /// Print the mesh file, and make no file.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `schema`.
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// Print the schema of one file of a directory, which need not hold every section.
    #[arg(long)]
    pub one_of_several: bool,
}

fn peer_address(text: &str) -> Result<(String, IpAddr), String> {
    let (name, address) = text.split_once('=').ok_or("write PEER=ADDRESS")?;
    Ok((
        name.to_owned(),
        address
            .parse()
            .map_err(|_| format!("`{address}` is not an address"))?,
    ))
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The peer.
    pub peer: String,
    /// The mesh.
    #[command(flatten)]
    pub mesh: MeshPath,
    /// Its private key file. Without it, and if no --age-identity opens the key, the output has a
    /// line to fill in.
    #[arg(long, value_name = "FILE")]
    pub private_key_file: Option<PathBuf>,
    /// An age identity that opens its encrypted keys.
    #[arg(long, value_name = "FILE")]
    pub age_identity: Option<PathBuf>,
    /// Write to this file, mode 0600, instead of standard output.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print a QR code, for the app on a phone.
    #[arg(long)]
    pub qr: bool,
    /// Write the QR code to this file as a picture, mode 0600.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// Arguments of `graph`.
#[derive(Debug, Args)]
pub struct GraphArgs {
    /// The mesh file, or a directory of `*.toml` files.
    pub path: PathBuf,
    /// The form of the picture.
    #[arg(long, value_enum, default_value_t = GraphFormat::Svg)]
    pub format: GraphFormat,
}

/// How `graph` draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// A picture.
    Svg,
    /// Text that GitHub and GitLab draw in Markdown.
    Mermaid,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Show only this peer, with every address that was tried.
    pub peer: Option<String>,
    /// The interface or the mesh. Needed if several run on this host.
    #[arg(long, short, value_name = "NAME")]
    pub interface: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Print again every second until Ctrl-C, also while the agent restarts.
    #[arg(long, short)]
    pub watch: bool,
    /// Show only some peers: down, relayed, direct, lan, or a name in which * stands for any text.
    /// Repeat for more.
    #[arg(long, value_name = "WHICH", conflicts_with_all = ["peer", "mesh"])]
    pub filter: Vec<Filter>,
    /// The order of the peers.
    #[arg(long, value_enum, value_name = "BY", default_value_t = Sort::Name, conflicts_with = "mesh")]
    pub sort: Sort,
    /// Judge the node for a monitoring system, in one line and by the exit code: 0 fine, 1 warning,
    /// 2 critical, 3 not known. With PEER or --filter only these peers count.
    #[arg(long, conflicts_with_all = ["json", "watch", "mesh", "sort"])]
    pub check: bool,
    /// Ask every connected node which version of the mesh it runs, and show which are behind or
    /// silent.
    #[arg(long, conflicts_with_all = ["peer", "watch"])]
    pub mesh: bool,
}

/// Arguments of `why`.
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// The peer's name. Or both names, this node's and the peer's, in any order: the peer is asked
    /// inside the mesh how it sees the pair.
    #[arg(value_name = "PEER", num_args = 1..=2, required = true)]
    pub peers: Vec<String>,
    /// The interface or the mesh. Needed if several run on this host.
    #[arg(long, short, value_name = "NAME")]
    pub interface: Option<String>,
    /// Show every step of the search for a path, too.
    #[arg(long, short)]
    pub verbose: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `ping`.
#[derive(Debug, Args)]
pub struct PingArgs {
    /// The peer's name.
    pub peer: String,
    /// The interface or the mesh. Needed if several run on this host.
    #[arg(long, short, value_name = "NAME")]
    pub interface: Option<String>,
    /// Pings at most, one a second.
    #[arg(long, short, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// Go on when the path is direct, too.
    #[arg(long)]
    pub keep_going: bool,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The mesh file, or a directory of `*.toml` files: its servers are asked, and what it needs of
    /// this host is looked at.
    #[arg(value_name = "MESH")]
    pub mesh: Option<PathBuf>,
    /// Ask this STUN server, too. Repeat for several. A second one tells how the NAT maps.
    #[arg(long, value_name = "HOST:PORT")]
    pub stun: Vec<Endpoint>,
    /// Where this host's own secrets are.
    #[command(flatten)]
    pub local: LocalArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// The interface or the mesh. Needed if several run on this host.
    #[arg(long, short, value_name = "NAME")]
    pub interface: Option<String>,
    /// The agent that is this process, for its unit.
    #[arg(long, value_name = "PID", conflicts_with = "interface")]
    pub pid: Option<i32>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `down`.
#[derive(Debug, Args)]
pub struct DownArgs {
    /// The interface or the mesh. Needed if several run on this host.
    #[arg(long, short, value_name = "NAME")]
    pub interface: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `serve`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ServeArgs {
    /// Instead of serving: what to do with a server that runs.
    #[command(subcommand)]
    pub command: Option<ServeCommand>,
    /// Listen for UDP at this address. Repeat for several, such as those of IPv4 and IPv6.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<SocketAddr>,
    /// The file with the server's private key. It is made at the first start.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Old protocols to speak, separated by commas: natpunch-go (the default with `allowed_keys`),
    /// nat-hole-punching.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub compat: Vec<String>,
    /// Admit every node that knows the admission secret in this file. Repeat it while the secret
    /// changes.
    #[arg(long, value_name = "FILE")]
    pub admission_secret_file: Vec<PathBuf>,
    /// Admit every node that knows the server's public key.
    #[arg(long, conflicts_with = "admission_secret_file")]
    pub open: bool,
    /// The relay's UDP ports. Default: the 32 after the first port of the server.
    #[arg(long, value_name = "FIRST-LAST")]
    pub relay_ports: Option<String>,
    /// Offer no relay.
    #[arg(long, conflicts_with = "relay_ports")]
    pub no_relay: bool,
    /// Offer the HTTP record store at this address.
    #[arg(long, value_name = "ADDR:PORT")]
    pub http: Option<SocketAddr>,
    /// Serve nodes that no UDP reaches at this address, by TLS over TCP.
    #[arg(long, value_name = "ADDR:PORT")]
    pub tls: Option<SocketAddr>,
    /// The certificate for it, with its chain, in PEM. A new one is taken when the file changes.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of the certificate, in PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// The same without TLS, for a reverse proxy on this host that has the certificate.
    #[arg(long, value_name = "ADDR:PORT")]
    pub websocket: Option<SocketAddr>,
    /// Be one server together with the other processes that share this Redis or Valkey:
    /// redis://HOST:PORT/DATABASE, or rediss:// by TLS.
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
    /// The secret of these processes, under which they seal what is in the store. The same file for
    /// each, made by `natpunch keygen`.
    #[arg(long, value_name = "FILE")]
    pub store_secret_file: Option<PathBuf>,
    /// Read settings from this TOML file, too. An option overrides its key there.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Arguments of `keygen`.
#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// Print a new age identity instead, as `age-keygen` does. It opens what is encrypted to it.
    #[arg(long)]
    pub age: bool,
}

/// Arguments of `encrypt`.
#[derive(Debug, Args)]
pub struct EncryptArgs {
    /// A recipient that can open the value, age1…. Repeat for several.
    #[arg(long, short, value_name = "RECIPIENT", required = true)]
    pub recipient: Vec<AgeRecipient>,
    /// Print the value as a line of the mesh file with this key.
    #[arg(long, value_name = "KEY")]
    pub toml: Option<AgeKey>,
}

/// Keys of the mesh file whose values are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum AgeKey {
    /// In `[peers.NAME.interface]`.
    PrivateKeyAge,
    /// In `[[preshared]]`.
    PresharedKeyAge,
    /// In `[mesh]`.
    PresharedSecretAge,
}

/// What can be done with a server that runs.
#[derive(Debug, Clone, Subcommand)]
pub enum ServeCommand {
    /// Show the clients, mailboxes, relays and counted events of the server on this host.
    Status(ServeStatusArgs),
}

/// Arguments of `serve status`.
#[derive(Debug, Clone, Args)]
pub struct ServeStatusArgs {
    /// The server's socket. Needed if `control` in its settings names another than the default.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `pubkey`.
#[derive(Debug, Args)]
pub struct PubkeyArgs {
    /// Print the node's rendezvous identity instead, for a server's `allowed_identities`.
    #[arg(long)]
    pub rendezvous: bool,
    /// Read an age identity instead, and print its recipient.
    #[arg(long, conflicts_with = "rendezvous")]
    pub age: bool,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// The NAT in front of node a.
    #[arg(long, value_enum, value_name = "NAT", default_value_t = NatKind::PortPreserving)]
    pub nat_a: NatKind,
    /// The NAT in front of node b.
    #[arg(long, value_enum, value_name = "NAT", default_value_t = NatKind::PortPreserving)]
    pub nat_b: NatKind,
    /// The mesh file to show. Default: the built-in copy of examples/configs/demo.toml.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Kinds of NAT that the demo knows, by how RFC 4787 would describe them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NatKind {
    /// Endpoint-independent mapping that keeps the port, address-and-port-dependent filtering
    /// (Linux masquerade).
    PortPreserving,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    Restricted,
    /// Address-and-port-dependent mapping with random ports.
    Symmetric,
    /// No NAT: a public address.
    None,
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Arguments of `manual`.
#[derive(Debug, Args)]
pub struct ManualArgs {
    /// The directory that gets them, which must be there.
    pub directory: PathBuf,
}

/// Reads a time such as `60s`, `5m` or `1h`, from a second to a day.
fn interval(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("write a number with s, m or h after it, such as 60s".to_owned()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "write a number with s, m or h after it, such as 60s".to_owned())?;
    match number.saturating_mul(seconds) {
        total @ 1..=86_400 => Ok(Duration::from_secs(total)),
        _ => Err("from 1s to 24h".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_for_this_host_alone() {
        assert!(loopback("127.0.0.1:9468").is_ok() && loopback("[::1]:9468").is_ok());
        for bad in [
            "0.0.0.0:9468",
            "192.0.2.1:9468",
            "127.0.0.1",
            "localhost:9468",
        ] {
            assert!(loopback(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_interval_has_a_unit_and_a_sane_length() {
        assert_eq!(interval("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(interval("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(interval("24h"), Ok(Duration::from_secs(86_400)));
        for bad in [
            "",
            "60",
            "s",
            "0s",
            "25h",
            "1d",
            "-1s",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
