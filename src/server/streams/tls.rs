//! The server's certificate: read at start, and again when its file has changed, for it is renewed
//! every few weeks by a program that knows nothing of natpunch.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use natpunch_net::Stopwatch;
use natpunch_os::secret;
use natpunch_types::lock;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto::aws_lc_rs};

/// How often is looked whether there is another certificate.
const LOOK: Duration = Duration::from_secs(30);
/// Longer than any private key.
const LONGEST_KEY: usize = 64 << 10;

/// The files of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain in PEM, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its private key in PEM.
    pub key: PathBuf,
}

/// TLS with the certificate of these files.
pub(in crate::server) struct Tls {
    files: CertificateFiles,
    state: Mutex<State>,
}

struct State {
    acceptor: TlsAcceptor,
    changed: Option<(i64, i64)>,
    looked: Stopwatch,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with which of them.
    pub(in crate::server) fn open(files: CertificateFiles) -> Result<Self, String> {
        let state = State {
            changed: changed(&files.certificate),
            acceptor: load(&files)?,
            looked: Stopwatch::start(),
        };
        Ok(Self {
            files,
            state: Mutex::new(state),
        })
    }

    /// What takes the next connection. A certificate with an error changes nothing, and is said.
    pub(in crate::server) fn acceptor(&self) -> TlsAcceptor {
        let mut state = lock(&self.state);
        if state.looked.elapsed() >= LOOK {
            state.looked = Stopwatch::start();
            let changed = changed(&self.files.certificate);
            if changed != state.changed {
                match load(&self.files) {
                    Ok(acceptor) => {
                        tracing::info!("took the new certificate");
                        (state.acceptor, state.changed) = (acceptor, changed);
                    }
                    // Its key may come a moment later, so it is tried again.
                    Err(problem) => tracing::error!(
                        "the new certificate has an error, so the one before stays: {problem}"
                    ),
                }
            }
        }
        state.acceptor.clone()
    }
}

/// When a file was last changed, in the words of its file system.
fn changed(file: &Path) -> Option<(i64, i64)> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.mtime(), metadata.mtime_nsec()))
}

fn load(files: &CertificateFiles) -> Result<TlsAcceptor, String> {
    let of =
        |file: &Path, problem: &dyn std::fmt::Display| format!("{}: {problem}", file.display());
    let certificate = &files.certificate;
    let text = std::fs::read(certificate).map_err(|error| of(certificate, &error))?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| of(certificate, &error))?;
    if chain.is_empty() {
        return Err(of(certificate, &"there is no certificate in it"));
    }
    let text = secret::read(&files.key, LONGEST_KEY).map_err(|error| error.to_string())?;
    let key =
        PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| of(&files.key, &error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| of(certificate, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
