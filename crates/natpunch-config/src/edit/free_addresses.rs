//! Addresses that no peer has.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::mesh::model::MeshConfig;
use crate::mesh::network_map::has_special_addresses;
use crate::report::error::ConfigErrors;

/// The lowest free address of each address family that the mesh has: of the first network of the
/// family with one.
///
/// # Errors
/// A family has no network with a free address.
pub fn free_addresses(mesh: &MeshConfig) -> Result<Vec<IpAddr>, ConfigErrors> {
    let mut claims: Vec<(u128, u128)> = Vec::new();
    let mut addresses = Vec::new();
    for v6 in [false, true] {
        claims.clear();
        let family = |net: &&IpNet| matches!(net, IpNet::V6(_)) == v6;
        for peer in mesh.peers.values() {
            let hosts = peer.addresses.iter().map(|address| IpNet::from(*address));
            claims.extend(
                hosts
                    .chain(peer.routes.iter().copied())
                    .filter(|net| family(&net))
                    .map(|net| bounds(&net)),
            );
        }
        claims.sort_unstable();
        let taken = merged(&claims);
        let networks: Vec<&IpNet> = mesh.networks.iter().filter(family).collect();
        match networks.iter().find_map(|network| free_in(network, &taken)) {
            Some(free) => addresses.push(free),
            None if networks.is_empty() => {}
            None => {
                let all: BTreeSet<String> = networks.iter().map(ToString::to_string).collect();
                let all = all.into_iter().collect::<Vec<_>>().join(" and ");
                let file = mesh.files.first().cloned().unwrap_or_default();
                let help = "add a network to `mesh.networks`, or say --address yourself";
                return Err(ConfigErrors::of(
                    &file,
                    format!("no address is free in {all}"),
                    help,
                ));
            }
        }
    }
    Ok(addresses)
}

fn bounds(net: &IpNet) -> (u128, u128) {
    match net {
        IpNet::V4(net) => (
            u32::from(net.network()).into(),
            u32::from(net.broadcast()).into(),
        ),
        IpNet::V6(net) => (net.network().into(), net.broadcast().into()),
    }
}

/// Sorted claims as sorted stretches that are apart.
fn merged(claims: &[(u128, u128)]) -> Vec<(u128, u128)> {
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (start, end) in claims {
        match merged.last_mut() {
            Some((_, last)) if *start <= last.saturating_add(1) => *last = (*last).max(*end),
            _ => merged.push((*start, *end)),
        }
    }
    merged
}

/// The lowest address of a network that is in none of these stretches, which are sorted and apart.
fn free_in(network: &IpNet, taken: &[(u128, u128)]) -> Option<IpAddr> {
    let (mut candidate, mut last) = bounds(network);
    if has_special_addresses(*network) {
        candidate += 1;
        last -= u128::from(matches!(network, IpNet::V4(_)));
    }
    // Of the stretches only the last that begins at or before the candidate can hold it.
    let after = taken.partition_point(|(start, _)| *start <= candidate);
    let around = after.checked_sub(1).and_then(|at| taken.get(at));
    if let Some((_, end)) = around.filter(|(_, end)| *end >= candidate) {
        candidate = end.checked_add(1)?;
    }
    let free = match network {
        IpNet::V4(_) => IpAddr::V4(u32::try_from(candidate).ok()?.into()),
        IpNet::V6(_) => IpAddr::V6(candidate.into()),
    };
    (candidate <= last).then_some(free)
}
