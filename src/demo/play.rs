//! The demo itself, in its sandbox.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use natpunch_lab::{Host, Lab, Nat, Ping, Pings, Router, sandbox};
use serde_json::Value;

use super::mesh::{MeshFile, NODES};
use super::node::{Machine, Node, Server, text};
use super::timeline::{Timeline, headline, outcome, text as print};
use super::{DemoError, NOT_CONNECTED};
use crate::cli::args::{DemoArgs, NatKind};

const SERVER_PORT: u16 = 51_900;
const PING_INTERVAL: Duration = Duration::from_millis(50);
/// How long a process may take to start.
const START: Duration = Duration::from_secs(20);
/// How long the nodes may take to connect.
const CONNECT: Duration = Duration::from_secs(20);
/// How long the nodes may take to apply the changed file.
const RELOAD: Duration = Duration::from_secs(10);
/// Pings that must come after the reload.
const PINGS_AFTER: usize = 20;
/// A network that is nowhere else in the demo.
const NEW_ROUTE: &str = "192.168.77.0/24";

/// Plays the demo from the empty lab to the last line.
pub(super) fn play(args: &DemoArgs) -> Result<ExitCode, DemoError> {
    let mut mesh = MeshFile::read(args.config.as_deref())?;
    let to = mesh.address("b")?;
    let mut lab = sandbox::lab()?;
    let timeline = Timeline::start();

    headline("A small internet: one server, two nodes behind two NATs");
    let server = Server::start(
        lab.public_host("server")?,
        SERVER_PORT,
        Instant::now() + START,
    )?;
    timeline.now("server", &format!("listens on {}", server.address));
    mesh.set_server(
        &server.address.to_string(),
        &server.public_key,
        &server.secret_file,
    )?;
    let mut machines = Vec::new();
    let mut routers = Vec::new();
    for (name, kind) in NODES.into_iter().zip([args.nat_a, args.nat_b]) {
        let (host, router) = machine(&mut lab, name, kind)?;
        timeline.now(name, &place(&host, router.as_ref(), kind));
        let machine = Machine::with_new_key(host)?;
        mesh.set_node(name, &machine.public_key)?;
        routers.extend(router);
        machines.push(machine);
    }
    let file = lab.directory().join("mesh.toml");
    mesh.write(&file)?;

    headline("Both nodes run `natpunch apply mesh.toml`");
    // The log names keys in full and shortened; the full one first, since the short one is a part
    // of it.
    let keys = |machine: &Machine| [machine.public_key.to_string(), machine.public_key.short()];
    let names: Vec<_> = machines
        .iter()
        .flat_map(|m| keys(m).map(|key| (key, m.host.name().to_owned())))
        .collect();
    let start = Instant::now();
    let mut nodes = Vec::new();
    for machine in machines {
        nodes.push(machine.join(&file, timeline, names.clone())?);
    }
    for node in &mut nodes {
        node.wait(
            Instant::now() + START,
            "did not answer `natpunch status`",
            |_| Some(()),
        )?;
    }
    let [a, b] = nodes.as_mut_slice() else {
        return Err(DemoError::process("demo", "has lost a node"));
    };
    let ping = Ping::start(&a.host, to, PING_INTERVAL)?;
    let Some((at, first)) = first_answer(&ping, [a, b])? else {
        return not_connected([a, b]);
    };
    let milliseconds = first.round_trip.as_secs_f64() * 1e3;
    timeline.say(
        at,
        "a",
        &format!("first ping of {to} is answered, in {milliseconds:.1} ms"),
    );
    let seconds = at.duration_since(start).as_secs_f64();

    headline("The file changes while the ping runs");
    let before = [reloads(a)?, reloads(b)?];
    let added = mesh.add_route(NEW_ROUTE)?;
    mesh.write(&file)?;
    let changed = Instant::now();
    timeline.now("mesh", &format!("{} says now:\n{added}", file.display()));
    for (node, before) in [&mut *a, &mut *b].into_iter().zip(before) {
        let reloaded = |status: &Value| (number(status, "reloads") > before).then_some(());
        node.wait(changed + RELOAD, "did not apply the changed file", reloaded)?;
    }
    timeline.now(
        "mesh",
        &format!(
            "both nodes have applied it, {:.2} s after it was written",
            changed.elapsed().as_secs_f64()
        ),
    );
    let still_there = ping.wait_for(PINGS_AFTER, Instant::now() + CONNECT);
    let pings = ping.stop();
    timeline.now("a", &ping_summary(&pings, to));

    for node in [&*a, &*b] {
        show_status(node)?;
    }
    if still_there && pings.lost() == 0 {
        outcome(
            true,
            &format!(
                "connected {seconds:.2} s after the start of the nodes; no ping was lost in the reload"
            ),
        );
        Ok(ExitCode::SUCCESS)
    } else {
        outcome(false, "connected, but pings were lost in the reload");
        Ok(ExitCode::FAILURE)
    }
}

/// Builds a node's machine, behind a router of this kind.
fn machine(lab: &mut Lab, name: &str, kind: NatKind) -> Result<(Host, Option<Router>), DemoError> {
    let nat = match kind {
        NatKind::None => return Ok((lab.public_host(name)?, None)),
        NatKind::PortPreserving => Nat::PortPreserving,
        NatKind::FullCone => Nat::FullCone,
        NatKind::Restricted => Nat::Restricted,
        NatKind::Symmetric => Nat::Symmetric,
    };
    let router = lab.router(&format!("nat-{name}"), nat)?;
    Ok((lab.host_behind(&router, name)?, Some(router)))
}

fn place(host: &Host, router: Option<&Router>, kind: NatKind) -> String {
    let address = host.ipv4().map(|ip| ip.to_string()).unwrap_or_default();
    match (router, clap::ValueEnum::to_possible_value(&kind)) {
        (Some(router), Some(kind)) => format!(
            "is {address}, behind a {} NAT at {}",
            kind.get_name(),
            router.address()
        ),
        _ => format!("is {address}, a public address"),
    }
}

/// Waits for the first answer, or until both nodes have given up, or for [`CONNECT`].
fn first_answer(
    ping: &Ping,
    nodes: [&Node; 2],
) -> Result<Option<(Instant, natpunch_lab::Answer)>, DemoError> {
    let deadline = Instant::now() + CONNECT;
    while Instant::now() < deadline {
        let look = Instant::now() + Duration::from_millis(500);
        if let Some(first) = ping.first(look.min(deadline)) {
            return Ok(Some(first));
        }
        let [a, b] = nodes;
        let gave_up = |of: &Node, peer: &Node| -> Result<bool, DemoError> {
            Ok(of
                .peer(peer.name())?
                .is_some_and(|peer| text(&peer, "state") == "unreachable"))
        };
        if gave_up(a, b)? && gave_up(b, a)? {
            break;
        }
    }
    Ok(None)
}

/// Says why, as the nodes see it.
fn not_connected(nodes: [&Node; 2]) -> Result<ExitCode, DemoError> {
    for node in nodes {
        show_status(node)?;
    }
    outcome(
        false,
        "a and b are not directly reachable for each other: through these two NATs they need a relay, and none is used \
         (natpunch status above says why)",
    );
    Ok(ExitCode::from(NOT_CONNECTED))
}

fn show_status(node: &Node) -> Result<(), DemoError> {
    headline(&format!("`natpunch status` on {}", node.name()));
    print(&node.status_text()?);
    Ok(())
}

fn number(status: &Value, key: &str) -> u64 {
    status.get(key).and_then(Value::as_u64).unwrap_or_default()
}

fn reloads(node: &Node) -> Result<u64, DemoError> {
    Ok(node
        .status()?
        .map(|status| number(&status, "reloads"))
        .unwrap_or_default())
}

fn ping_summary(pings: &Pings, to: IpAddr) -> String {
    let count = pings.answers.len();
    let gap = pings.longest_gap().as_secs_f64() * 1e3;
    format!(
        "{count} pings of {to} answered, {} lost, longest pause {gap:.0} ms",
        pings.lost()
    )
}
