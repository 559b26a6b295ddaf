//! The first file of a mesh.

use std::path::Path;

use ipnet::IpNet;
use natpunch_os::durable;
use toml_edit::{Array, Value};

use crate::file::kind::Kind;
use crate::load::{Given, load_with};
use crate::report::error::ConfigErrors;
use crate::report::wording::Quoted;

/// The text of a new mesh file without peers.
///
/// # Errors
/// What is wrong with the name or a network.
pub fn new_mesh(
    path: &Path,
    name: &str,
    networks: &[IpNet],
    kinds: &[Kind],
) -> Result<String, ConfigErrors> {
    let quoted = |value: Value| value.to_string().trim().to_owned();
    let networks = networks.iter().map(ToString::to_string).collect::<Array>();
    let text = format!(
        "# The mesh: the same file on every node. `natpunch check` validates it, docs/config.md has every key.\n\
         \n\
         [mesh]\n\
         name = {}\n\
         networks = {}\n\
         \n\
         [interface]\n\
         # Each node has its own private key in this file, mode 0600: `natpunch keygen` makes one.\n\
         private_key_file = {}\n\
         \n\
         # How nodes without an endpoint find each other. Any number, all used at once; see docs/how-to/server.md.\n\
         # [discovery.rv]\n\
         # plugin = \"rendezvous\"\n\
         # server = \"rv.example.org:51900\"\n\
         # public_key = \"…\"                  # the server prints it\n\
         # admission_secret_file = \"/etc/natpunch/admission.key\"\n\
         # Or, without a server: a peer with an endpoint that the others reach, and serve = true.\n",
        quoted(name.into()),
        quoted(networks.into()),
        quoted(format!("/etc/natpunch/{}.key", Quoted(name)).into()),
    );
    load_with(
        path,
        &Given {
            file: Some((path, &text)),
            may_be_empty: true,
        },
        kinds,
    )?;
    Ok(text)
}

/// Makes the file of a new mesh.
///
/// # Errors
/// What is wrong with it, or why it can't be written. A file that is there is never overwritten.
pub fn create_mesh(
    path: &Path,
    name: &str,
    networks: &[IpNet],
    kinds: &[Kind],
) -> Result<(), ConfigErrors> {
    let text = new_mesh(path, name, networks, kinds)?;
    durable::create(path, text.as_bytes(), 0o644)
        .map_err(|error| ConfigErrors::cannot_make(path, &error))
}
