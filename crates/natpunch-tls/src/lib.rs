//! Whose certificates natpunch's TLS clients believe: those of the system's authorities, or those
//! of a file that the mesh file names.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The longest file of authorities, in bytes.
const LONGEST: u64 = 1 << 20;

/// The configuration of a client that believes the authorities in this PEM file, read now, or
/// those of the system.
///
/// # Errors
/// What is wrong with them, for a person.
pub fn client(authorities: Option<&Path>) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let Some(file) = authorities else {
        let system = builder.with_platform_verifier();
        let system =
            system.map_err(|error| format!("this host's certificate authorities: {error}"))?;
        return Ok(system.with_no_client_auth());
    };
    let problem = |error: &dyn Display| format!("{}: {error}", file.display());
    let text = read(file).map_err(|error| problem(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| problem(&error))?;
        roots.add(certificate).map_err(|error| problem(&error))?;
    }
    if roots.is_empty() {
        return Err(problem(&"there is no certificate in it"));
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(file)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut text = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut text)?;
    // A part of it would be other authorities than those that were meant.
    if text.len() as u64 > LONGEST {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_names_no_authorities_is_refused_with_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        let long = "#".repeat(LONGEST as usize + 1);
        let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
        for (text, problem) in [
            ("", "there is no certificate in it"),
            (&*long, "longer than 1 MiB"),
            (broken, ""),
        ] {
            std::fs::write(&file, text).unwrap();
            let said = client(Some(&file)).unwrap_err();
            assert!(
                said.starts_with(file.to_str().unwrap()) && said.contains(problem),
                "{said}"
            );
        }
        let said = client(Some(directory.path())).unwrap_err();
        assert!(said.ends_with("not a file"), "{said}");
    }
}
