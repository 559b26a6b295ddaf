//! `natpunch init`: a new mesh file.

use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::cli::CliError;
use crate::cli::args::InitArgs;
use crate::config;
use crate::plugins::registry;

pub(in crate::cli) fn run(args: &InitArgs) -> Result<ExitCode, CliError> {
    let networks = if args.network.is_empty() {
        random_networks()?.to_vec()
    } else {
        args.network.clone()
    };
    config::create_mesh(&args.path, &args.name, &networks, &registry::kinds())?;
    let mut out = anstream::stdout().lock();
    let shown: Vec<String> = networks.iter().map(ToString::to_string).collect();
    writeln!(
        out,
        "{}: mesh {} with the networks {}",
        args.path.display(),
        args.name,
        shown.join(" and ")
    )?;
    let mesh = if args.path.as_os_str() == "mesh.toml" {
        String::new()
    } else {
        format!(" --mesh {}", args.path.display())
    };
    writeln!(out, "next: natpunch add-peer{mesh} NAME --public-key KEY")?;
    Ok(ExitCode::SUCCESS)
}

/// Private networks that hardly anybody else has: 10.0.0.0/8 in parts of 256 addresses, and RFC
/// 4193, 3.2.2.
fn random_networks() -> Result<[IpNet; 2], CliError> {
    let mut random = [0_u8; 7];
    getrandom::fill(&mut random)
        .map_err(|error| CliError::new(format!("the system gives no random bytes: {error}")))?;
    let [a, b, g0, g1, g2, g3, g4] = random;
    let v4 = Ipv4Net::new_assert(Ipv4Addr::new(10, a, b, 0), 24);
    let v6 = Ipv6Addr::from(u128::from(u64::from_be_bytes([0xfd, g0, g1, g2, g3, g4, 0, 1])) << 64);
    Ok([v4.into(), Ipv6Net::new_assert(v6, 64).into()])
}
