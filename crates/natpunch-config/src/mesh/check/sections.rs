//! The sections that are there once: `[mesh]`, `[interface]`, `[apply]`, `[punch]`; and what stands
//! in a file of its own or encrypted.

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use natpunch_os::secret;
use natpunch_types::{Connect, PunchSpec};

use super::{Check, values};
use crate::file::encrypted::Encrypted;
use crate::file::forms::{DnsLabel, FilePath, InterfaceName, Network};
use crate::file::raw::{RawApply, RawInterface, RawMesh, RawPunch};
use crate::file::reader::{Field, Located};
use crate::mesh::model::{ApplyConfig, InterfaceConfig, SecretSource};
use crate::mesh::network_map::NetworkMap;
use crate::mesh::public_names;
use crate::report::error::ConfigError;
use crate::report::source::Place;
use crate::report::wording::Quoted;

/// `[mesh]`.
pub(super) struct MeshSection {
    pub(super) name: Located<DnsLabel>,
    pub(super) networks: Vec<Located<Network>>,
    pub(super) lans: Vec<IpNet>,
    pub(super) generation: Option<u64>,
    pub(super) preshared_secret: Option<SecretSource>,
    pub(super) connect: Connect,
}

impl Check<'_> {
    pub(super) fn mesh(&mut self, mesh: Field<RawMesh>) -> Option<MeshSection> {
        let Some(mesh) = mesh else {
            self.missing_section(
                "mesh",
                "add: [mesh] with name = \"home\" and networks = [\"10.77.0.0/16\"]",
            );
            return None;
        };
        let RawMesh {
            name,
            networks,
            connect,
            lans,
            generation,
            preshared_secret_file,
            preshared_secret_age,
        } = mesh.value;
        if name.is_none() && self.is_all_read("mesh.name") {
            self.missing(
                mesh.key,
                "`mesh.name`",
                "this section has no name",
                "add a line: name = \"home\"",
            );
        }
        if networks
            .as_ref()
            .is_none_or(|networks| networks.value.is_empty())
            && self.is_all_read("mesh.networks")
        {
            let place = networks
                .as_ref()
                .map_or(mesh.key, |networks| networks.place);
            let help =
                "add the networks of the mesh's own addresses: networks = [\"10.77.0.0/16\"]";
            self.missing(
                place,
                "`mesh.networks`",
                "a mesh needs at least one network",
                help,
            );
        }
        let networks = networks?.value;
        let mut earlier: NetworkMap<&Located<Network>> = NetworkMap::new();
        for network in &networks {
            let net = network.value.0;
            if let Some(earlier) = earlier.overlapping(net) {
                let message = format!("the networks {net} and {} overlap", earlier.value.0);
                let error = ConfigError::at(network.place, message)
                    .label("overlaps")
                    .also(earlier.place, "with this one");
                self.errors.push(error.help("remove one of the two"));
            }
            earlier.insert(net, network);
        }
        self.places.networks = networks.iter().map(|network| network.place).collect();
        let preshared_secret = self.secret(
            "preshared_secret",
            preshared_secret_file,
            preshared_secret_age,
        );
        if let Some((SecretSource::File(path), place)) = &preshared_secret {
            self.places.preshared_key_files.insert(path.clone(), *place);
        }
        self.places.connect = connect.as_ref().map(|connect| connect.key);
        Some(MeshSection {
            name: name?,
            networks,
            generation: generation.map(|number| number.value.0),
            lans: values(lans).map(|lan| lan.0).collect(),
            preshared_secret: preshared_secret.map(|(secret, _)| secret),
            connect: connect.map(|connect| connect.value.0).unwrap_or_default(),
        })
    }

    /// `[interface]`: what holds for every node.
    pub(super) fn defaults(&mut self, raw: Field<RawInterface>) -> InterfaceConfig {
        let Some(raw) = raw.map(|raw| raw.value) else {
            return InterfaceConfig::default();
        };
        self.places.listen_port = raw.listen_port.as_ref().map(|port| port.key);
        if let Some(age) = &raw.private_key_age {
            let error = ConfigError::at(age.key, "`private_key_age` is for one peer, not for all");
            let help = "put it into the peer's own section: [peers.NAME.interface]";
            let error = error.label("every node would have this key");
            self.errors.push(error.help(help));
        }
        self.interface(raw)
    }

    pub(super) fn interface(&mut self, raw: RawInterface) -> InterfaceConfig {
        let private_key = self.secret("private_key", raw.private_key_file, raw.private_key_age);
        if let Some((SecretSource::File(path), place)) = &private_key {
            self.places
                .private_key_files
                .entry(path.clone())
                .or_insert(*place);
        }
        InterfaceConfig {
            name: raw.name.map(|name| name.value.0),
            private_key: private_key.map(|(secret, _)| secret),
            mtu: raw.mtu.map(|mtu| mtu.value.0),
            listen_port: raw.listen_port.map(|port| port.value.0),
            fwmark: raw.fwmark.map(|mark| mark.value.0),
            backend: raw.backend.map(|backend| backend.value),
            persistent_keepalive: raw.persistent_keepalive.map(|keepalive| keepalive.value.0),
            port_mapping: raw.port_mapping.map(|asked| asked.value),
        }
    }

    /// A secret that is in a file, or stands here encrypted, and where it is said.
    pub(super) fn secret(
        &mut self,
        name: &str,
        file: Field<FilePath>,
        age: Field<Encrypted>,
    ) -> Option<(SecretSource, Place)> {
        if let (Some(file), Some(age)) = (&file, &age) {
            let error = ConfigError::at(age.key, format!("both `{name}_file` and `{name}_age`"));
            let help = "remove one of the two: the key is in a file of the node's own, or in here";
            self.errors.push(
                error
                    .label("one secret too many")
                    .also(file.key, "the other one")
                    .help(help),
            );
        }
        if let Some(age) = age {
            if !age.value.foreign().is_empty() {
                self.places
                    .foreign_recipients
                    .push((age.key, age.value.foreign().to_vec()));
            }
            return Some((SecretSource::Age(age.value.at(age.key)), age.key));
        }
        file.map(|file| {
            (
                SecretSource::File(self.resolve(file.place, &file.value.0)),
                file.place,
            )
        })
    }

    /// A path counts from the directory of the file that names it.
    pub(super) fn resolve(&self, place: Place, path: &Path) -> PathBuf {
        if secret::credential(path).is_some() {
            return path.to_owned();
        }
        let directory = self
            .sources
            .0
            .get(place.file)
            .and_then(|source| source.path.parent());
        directory.map_or_else(|| path.to_owned(), |directory| directory.join(path))
    }

    /// An interface without a name is named after the mesh.
    pub(super) fn interface_name(&mut self, mesh: &Located<DnsLabel>) {
        let name = format!("wg-{}", mesh.value.0);
        if !InterfaceName::valid(&name) {
            let message = format!("`{name}` is too long for the name of an interface");
            let error =
                ConfigError::at(mesh.place, message).label("the interface is named after the mesh");
            let help = "name it yourself: [interface] with name = \"…\", at most 15 characters";
            self.errors.push(error.help(help));
        }
    }

    /// In a hosts file no name may stand that others own.
    pub(super) fn public_names(&mut self, mesh: &Located<DnsLabel>) {
        let name = &mesh.value.0;
        if let Some(owner) = public_names::of_a_mesh(name) {
            let message = format!("the mesh can't be named `{}`: it is {owner}", Quoted(name));
            let error = ConfigError::at(mesh.place, message).label("peers get names in it");
            let help = "name the mesh otherwise, such as `home`, or write no names: [names] with \
                        hosts = false";
            self.errors.push(error.help(help));
        }
        for (peer, place) in &self.places.peers {
            if let Some(owner) = public_names::of_a_peer(peer) {
                let message = format!("no peer can be named `{}`: it is {owner}", Quoted(peer));
                let error = ConfigError::at(*place, message).label("would be in the hosts file");
                let help = "name the peer otherwise, or write no names: [names] with hosts = false";
                self.errors.push(error.help(help));
            }
        }
    }
}

pub(super) fn apply_config(raw: RawApply) -> ApplyConfig {
    let default = ApplyConfig::default();
    ApplyConfig {
        confirm: raw.confirm.map_or(default.confirm, |span| span.value.0),
        heal: raw.heal.map_or(default.heal, |heal| heal.value),
        allow: values(raw.allow).map(|allowed| allowed.0).collect(),
    }
}

pub(super) fn punch_spec(raw: RawPunch) -> PunchSpec {
    let default = PunchSpec::default();
    PunchSpec {
        rate: raw.rate.map_or(default.rate, |most| most.value.0),
        per_round: raw.per_round.map_or(default.per_round, |most| most.value.0),
        per_10_minutes: raw
            .per_10_minutes
            .map_or(default.per_10_minutes, |most| most.value.0),
        spray: raw.spray.map_or(default.spray, |spray| spray.value),
    }
}
