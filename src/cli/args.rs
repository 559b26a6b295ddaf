//! The command line as typed. What it means is decided by the command's own file.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use natpunch_types::{Consent, PeerKey};

use crate::config::{AgeRecipient, Local, parse_span};
use crate::source::{Location, parse_argument};

/// A WireGuard mesh as code: one TOML file in git, any NAT, no account.
#[derive(Debug, Parser)]
#[command(
    name = "natpunch",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Log format.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Log filter, such as `info` or `natpunch=debug`; default: the NATPUNCH_LOG variable, else
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
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join the mesh: apply the mesh file, discover, punch, keep paths alive, reload on change.
    Apply(ApplyArgs),
    /// Show what `apply` would change on this host (exit code 0: nothing, 2: changes, 1: error).
    Plan(PlanArgs),
    /// Say that the change that a running mesh just made is good, so that it stays.
    Confirm(ConfirmArgs),
    /// Validate a mesh for every node in it, without network or privileges.
    Check(CheckArgs),
    /// Make a new mesh file.
    Init(InitArgs),
    /// Add a peer to the mesh file; comments and order stay.
    AddPeer(AddPeerArgs),
    /// Remove a peer from the mesh file; comments and order stay.
    RemovePeer(RemovePeerArgs),
    /// Make a mesh file from a file of wg-quick or a running interface; keys go to files of their
    /// own.
    Import(ImportArgs),
    /// Print the wg-quick file of a peer with plain WireGuard, or its QR code.
    Export(ExportArgs),
    /// Draw the mesh.
    Graph(GraphArgs),
    /// Show peers, paths, endpoints, round-trip times, handshakes and traffic.
    Status(StatusArgs),
    /// Look for a new version of the mesh now, and say whether it is applied.
    Reload(ReloadArgs),
    /// Take the mesh off this host.
    Down(DownArgs),
    /// Run a rendezvous and STUN server.
    Serve(ServeArgs),
    /// Watch the main job in a small internet of network namespaces.
    Demo(DemoArgs),
    /// Print a new private key, as `wg genkey`.
    Keygen(KeygenArgs),
    /// Encrypt the key on standard input with age, to stand in the mesh file.
    Encrypt(EncryptArgs),
    /// Read a private key from standard input and print its public key, as `wg pubkey`.
    Pubkey(PubkeyArgs),
    /// Print the JSON schema of the mesh file.
    Schema(SchemaArgs),
    /// Print shell completions.
    Completions(CompletionsArgs),
    /// The embedded WireGuard device (started by `apply`).
    #[command(hide = true)]
    Device(DeviceArgs),
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The mesh file, a directory of `*.toml` files, git+https://HOST/REPO.git#BRANCH:PATH (also
    /// git+ssh, git+file), or https://HOST/mesh.toml.
    #[arg(value_name = "SOURCE", value_parser = OsStringValueParser::new().try_map(parse_argument))]
    pub source: Location,
    /// Who must have signed what a repository or web server gives; default:
    /// /etc/natpunch/trust.toml, if it is there.
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
    /// Where this host's own secrets are.
    #[command(flatten)]
    pub local: LocalArgs,
    /// How often to look for a new version in a repository or on a web server, such as 60s, 5m or
    /// 1h.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = interval)]
    pub poll: Duration,
    /// Exit when every reachable peer is connected (0) or the deadline has passed (3).
    #[arg(long)]
    pub once: bool,
    /// Deadline of `--once`, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub deadline: u64,
    /// Let changes do what is refused otherwise; repeat for several (mass-removal,
    /// critical-removal, default-route, empty-mesh).
    #[arg(long, value_name = "WORD", value_parser = consent)]
    pub allow: Vec<Consent>,
    /// Undo every change of the running mesh that nobody confirms within this time (such as 120s)
    /// with `natpunch confirm`.
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub confirm: Option<Duration>,
    /// Do exactly the plan that `natpunch plan` printed with this id, or stop.
    #[arg(long, value_name = "ID")]
    pub plan: Option<String>,
    /// Take over a running kernel interface that something else made, such as wg-quick, if it has
    /// this node's key and name. Sessions go on. Needed once.
    #[arg(long)]
    pub adopt: bool,
}

/// What `apply` and `plan` are told of this host.
#[derive(Debug, Clone, Args)]
pub struct LocalArgs {
    /// This node's private key file, if not the one the mesh file names.
    #[arg(long, value_name = "FILE")]
    pub private_key_file: Option<PathBuf>,
    /// This node's age identity, which opens encrypted keys; default: what the mesh file names,
    /// else /etc/natpunch/age.key.
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
    /// The interface or the mesh, if several run on this host.
    #[arg(long, short, value_name = "NAME")]
    pub interface: Option<String>,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The mesh file, a directory of `*.toml` files, git+https://HOST/REPO.git#BRANCH:PATH (also
    /// git+ssh, git+file), or https://HOST/mesh.toml.
    #[arg(value_name = "SOURCE", required_unless_present = "live", conflicts_with = "live", value_parser = OsStringValueParser::new().try_map(parse_argument))]
    pub source: Option<Location>,
    /// Who must have signed what a repository or web server gives; default:
    /// /etc/natpunch/trust.toml, if it is there.
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
    /// Show what somebody changed at the interface of a running mesh, as what would put it right.
    #[arg(long)]
    pub live: bool,
    /// With --live: the interface, if several meshes run on this host.
    #[arg(long, short, value_name = "NAME", requires = "live")]
    pub interface: Option<String>,
    /// Plan for `apply --adopt`.
    #[arg(long, conflicts_with = "live")]
    pub adopt: bool,
    /// Consents that `apply` will have.
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
    /// Who must have signed what a repository or web server gives; default:
    /// /etc/natpunch/trust.toml, if it is there.
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
    /// How findings are printed.
    #[arg(long, value_enum, default_value_t = CheckFormat::Text)]
    pub format: CheckFormat,
    /// The same as `--format json`.
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Fail on warnings, too.
    #[arg(long)]
    pub strict: bool,
}

/// How `check` prints its findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckFormat {
    /// For people.
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
    /// The file to make; one that is there is never overwritten.
    #[arg(default_value = "mesh.toml")]
    pub path: PathBuf,
    /// Name of the mesh, a DNS label.
    #[arg(long, default_value = "home")]
    pub name: String,
    /// A network for the mesh's own addresses; repeat for several. Default: a random private one of
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
    /// In a directory: the file that gets the peer.
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
    /// Make its key pair, and keep the private key in this file, mode 0600. A key that is there is
    /// used.
    #[arg(long, value_name = "FILE")]
    pub private_key_file: Option<PathBuf>,
    /// Its address in the mesh; repeat for several. Default: the lowest free one of each address
    /// family.
    #[arg(long, value_name = "ADDRESS")]
    pub address: Vec<IpAddr>,
    /// A network behind it; repeat for several.
    #[arg(long, value_name = "CIDR")]
    pub route: Vec<IpNet>,
    /// Where it can be reached without discovery.
    #[arg(long, value_name = "HOST:PORT")]
    pub endpoint: Option<String>,
    /// A word for people and tools; repeat for several.
    #[arg(long, value_name = "WORD")]
    pub tag: Vec<String>,
    /// It has plain WireGuard and no natpunch, as a phone or a router.
    #[arg(long)]
    pub unmanaged: bool,
}

/// Arguments of `remove-peer`.
#[derive(Debug, Args)]
pub struct RemovePeerArgs {
    /// Its name.
    pub name: String,
    /// The mesh.
    #[command(flatten)]
    pub mesh: MeshPath,
    /// Succeed if there is no such peer.
    #[arg(long)]
    pub if_present: bool,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The file, such as /etc/wireguard/wg0.conf, or what `wg showconf` prints.
    #[arg(required_unless_present = "interface")]
    pub file: Option<PathBuf>,
    /// Read this running interface instead, whoever made it; needs root. Nothing on it is changed.
    #[arg(
        long,
        short,
        value_name = "NAME",
        conflicts_with = "file",
        requires = "private_key_file"
    )]
    pub interface: Option<String>,
    /// With --interface: the file that holds the interface's private key; the mesh file will name
    /// it.
    #[arg(long, value_name = "FILE", requires = "interface")]
    pub private_key_file: Option<PathBuf>,
    /// The mesh file to make; key files are made beside it. Nothing that is there is overwritten.
    #[arg(long, short, value_name = "FILE", default_value = "mesh.toml")]
    pub output: PathBuf,
    /// Name of the mesh. Default: that of the interface, which is that of the file.
    #[arg(long, value_name = "NAME")]
    pub mesh_name: Option<String>,
    /// Name of this node. Default: what a comment at the head of the file says.
    #[arg(long)]
    pub name: Option<String>,
    /// This node's address with its prefix length, if the file has none; repeat for several.
    #[arg(long, value_name = "CIDR")]
    pub address: Vec<IpNet>,
    /// A network of the mesh; repeat for several. Default: that of the addresses.
    #[arg(long, value_name = "CIDR")]
    pub network: Vec<IpNet>,
    /// The address of a peer whose AllowedIPs don't tell it; repeat for several.
    #[arg(long, value_name = "PEER=ADDRESS", value_parser = peer_address)]
    pub peer_address: Vec<(String, IpAddr)>,
    /// The other peers will run natpunch, too.
    #[arg(long)]
    pub managed: bool,
    /// Import although a mesh can't keep what these keys of the file say, such as DNS,PostUp. It
    /// is printed what is left out. Without this such a file is refused.
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    pub leave_out: Vec<String>,
    /// Print the mesh file and make nothing.
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
    /// Its private key; without it, and if no --age-identity opens it, there is a line to fill in.
    #[arg(long, value_name = "FILE")]
    pub private_key_file: Option<PathBuf>,
    /// An age identity that opens its encrypted keys.
    #[arg(long, value_name = "FILE")]
    pub age_identity: Option<PathBuf>,
    /// Make this file, mode 0600, instead of printing it.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print it as a QR code, for the app on a phone.
    #[arg(long)]
    pub qr: bool,
    /// Make a picture of the QR code, mode 0600.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// Arguments of `graph`.
#[derive(Debug, Args)]
pub struct GraphArgs {
    /// The mesh file, or a directory of `*.toml` files.
    pub path: PathBuf,
    /// What is printed.
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
    /// Only this peer, by name.
    pub peer: Option<String>,
    /// The interface or the mesh, if several run on this host.
    #[arg(long, short, value_name = "NAME")]
    pub interface: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Print again every second until Ctrl-C.
    #[arg(long, short)]
    pub watch: bool,
    /// Ask every node which version of the mesh it runs, and show who lags or is silent.
    #[arg(long, conflicts_with_all = ["peer", "watch"])]
    pub mesh: bool,
}

/// Arguments of `reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// The interface or the mesh, if several run on this host.
    #[arg(long, short, value_name = "NAME")]
    pub interface: Option<String>,
}

/// Arguments of `down`.
#[derive(Debug, Args)]
pub struct DownArgs {
    /// The interface or the mesh, if several run on this host.
    #[arg(long, short, value_name = "NAME")]
    pub interface: Option<String>,
}

/// Arguments of `serve`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ServeArgs {
    /// What else to do than serve.
    #[command(subcommand)]
    pub command: Option<ServeCommand>,
    /// Listen for UDP here; repeat for several addresses (IPv4 and IPv6).
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<SocketAddr>,
    /// The server's private key; made on first start.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Old protocols to speak, by comma: natpunch-go (also the default with `allowed_keys`),
    /// nat-hole-punching.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub compat: Vec<String>,
    /// Speak natpunch's own rendezvous, to whoever knows the mesh's admission secret in this file;
    /// repeat it while the secret changes.
    #[arg(long, value_name = "FILE")]
    pub admission_secret_file: Vec<PathBuf>,
    /// Speak natpunch's own rendezvous, to everybody who knows the server's public key.
    #[arg(long, conflicts_with = "admission_secret_file")]
    pub open: bool,
    /// The relay's UDP ports, instead of the 32 after the first one.
    #[arg(long, value_name = "FIRST-LAST")]
    pub relay_ports: Option<String>,
    /// Offer no relay.
    #[arg(long, conflicts_with = "relay_ports")]
    pub no_relay: bool,
    /// Offer the HTTP record store here.
    #[arg(long, value_name = "ADDR:PORT")]
    pub http: Option<SocketAddr>,
    /// Read the same settings from a TOML file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Arguments of `keygen`.
#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// Print a new age identity instead, which opens what is encrypted to it, as `age-keygen`.
    #[arg(long)]
    pub age: bool,
}

/// Arguments of `encrypt`.
#[derive(Debug, Args)]
pub struct EncryptArgs {
    /// Who shall be able to open it, age1…; repeat for several.
    #[arg(long, short, value_name = "RECIPIENT", required = true)]
    pub recipient: Vec<AgeRecipient>,
    /// Print it as a line of the mesh file with this key, such as private_key_age or
    /// preshared_key_age.
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
    /// How many clients, mailboxes and events the server of this host has.
    Status(ServeStatusArgs),
}

/// Arguments of `serve status`.
#[derive(Debug, Clone, Args)]
pub struct ServeStatusArgs {
    /// Its socket, if `control` in its settings names another than the usual one.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `pubkey`.
#[derive(Debug, Args)]
pub struct PubkeyArgs {
    /// Print the rendezvous identity instead, which a server's `allowed_identities` names.
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
    #[arg(long, value_enum, default_value_t = NatKind::PortPreserving)]
    pub nat_a: NatKind,
    /// The NAT in front of node b.
    #[arg(long, value_enum, default_value_t = NatKind::PortPreserving)]
    pub nat_b: NatKind,
    /// The mesh file to demonstrate; default: the built-in copy of examples/configs/demo.toml.
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

/// Arguments of the hidden `device`.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Interface name.
    pub name: String,
    /// The control socket to listen on.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
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
