//! Files of web servers: asked for only if they changed, signed where that is demanded.

use std::fs;
use std::path::PathBuf;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use blake2::{Blake2b512, Digest as _};
use natpunch::source::Problem;
use natpunch_types::Help as _;

use crate::git::restarted;
use crate::server::{Page, Server};
use crate::support::{Agent, Repository, mesh, mesh_of_generation, options};

const PAGE: &str = "/mesh.toml";

async fn server() -> Server {
    Server::start(PathBuf::new()).await
}

#[tokio::test]
async fn a_file_is_sent_again_only_if_it_changed_also_after_a_restart() {
    let (server, state) = (server().await, tempfile::tempdir().unwrap());
    server.page(PAGE, mesh(1), Some("\"one\""));
    let location = server.url(PAGE);
    let mut agent = Agent::start(options(&location, None, state.path()))
        .await
        .unwrap();
    assert_eq!(agent.text(), mesh(1));
    agent.reload().await.unwrap();
    server.page(PAGE, mesh(2), Some("\"two\""));
    agent.reload().await.unwrap();
    assert_eq!(agent.text(), mesh(2));
    drop(agent);
    let mut again = options(&location, None, state.path());
    again.look_first = true;
    assert_eq!(restarted(again).await.text(), mesh(2));
    let statuses: Vec<u16> = server
        .answers()
        .into_iter()
        .map(|(_, status)| status)
        .collect();
    assert_eq!(statuses, [200, 304, 200, 304]);
}

#[tokio::test]
async fn a_server_without_etags_is_fine_and_the_same_content_is_no_change() {
    let (server, state) = (server().await, tempfile::tempdir().unwrap());
    server.page(PAGE, mesh(1), None);
    let mut agent = Agent::start(options(&server.url(PAGE), None, state.path()))
        .await
        .unwrap();
    let revision = agent.status().revision;
    agent.reload().await.unwrap();
    assert_eq!(agent.status().revision, revision);
    assert_eq!(agent.text(), mesh(1));
}

#[tokio::test]
async fn what_is_no_mesh_file_changes_nothing() {
    let (server, state) = (server().await, tempfile::tempdir().unwrap());
    server.page(PAGE, mesh(1), None);
    let mut agent = Agent::start(options(&server.url(PAGE), None, state.path()))
        .await
        .unwrap();
    server.page(PAGE, vec![b'#'; (8 << 20) + 1], None);
    let error = agent.reload().await.unwrap_err();
    assert!(error.contains("more than 8192 KiB"), "{error}");
    assert_eq!(agent.status().problem, Some(Problem::Refused));
    server.shown.lock().unwrap().pages.clear();
    assert!(agent.reload().await.unwrap_err().contains("404"));
    let loop_back = Page {
        redirect: Some(PAGE.to_owned()),
        ..Page::default()
    };
    server
        .shown
        .lock()
        .unwrap()
        .pages
        .insert(PAGE.to_owned(), loop_back);
    assert!(agent.reload().await.unwrap_err().contains("redirect"));
    server.page(PAGE, "<html>a portal</html>", None);
    assert!(agent.reload().await.is_err());
    assert_eq!(
        agent.status().revision.map(|revision| revision.len()),
        Some(64)
    );
    server.page(PAGE, mesh(3), None);
    agent.reload().await.unwrap();
    assert_eq!(agent.text(), mesh(3));
}

fn redirect(server: &Server, path: &str, to: String) {
    let page = Page {
        redirect: Some(to),
        ..Page::default()
    };
    let mut shown = server.shown.lock().unwrap();
    shown.pages.insert(path.to_owned(), page);
}

#[tokio::test]
async fn a_server_can_not_send_this_machine_to_another_host() {
    let (server, inner) = (server().await, server().await);
    let state = tempfile::tempdir().unwrap();
    server.page(PAGE, mesh(1), None);
    inner.page(PAGE, mesh(9), None);
    let mut agent = Agent::start(options(&server.url(PAGE), None, state.path()))
        .await
        .unwrap();
    let targets = [
        inner.url(PAGE),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        format!("http://[::1]:{}{PAGE}", inner.address.port()),
    ];
    for to in targets {
        redirect(&server, PAGE, to.clone());
        let error = agent.reload().await.unwrap_err();
        assert!(
            error.contains("a redirect to another host is not followed"),
            "{to}: {error}"
        );
        assert!(
            error.contains("write the URL that it redirects to"),
            "{error}"
        );
        assert_eq!(agent.text(), mesh(1));
    }
    assert_eq!(inner.answers(), [], "nothing was asked there");
    // Within the host it is the server's own business.
    server.page("/moved.toml", mesh(2), None);
    redirect(&server, PAGE, "/moved.toml".to_owned());
    agent.reload().await.unwrap();
    assert_eq!(agent.text(), mesh(2));
}

#[tokio::test]
async fn a_git_server_can_not_send_this_machine_to_another_host() {
    let repository = Repository::new();
    repository.publish(&mesh(1), None);
    let server = Server::start(repository.served()).await;
    let inner = Server::start(repository.served()).await;
    let state = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(options(&server.git_url("mesh.toml"), None, state.path()))
        .await
        .unwrap();
    repository.publish(&mesh(2), None);
    let refs = "/mesh.git/info/refs";
    redirect(
        &server,
        refs,
        inner.url(&format!("{refs}?service=git-upload-pack")),
    );
    let error = agent.reload().await.unwrap_err();
    assert!(
        error.contains("write the URL that it redirects to"),
        "{error}"
    );
    assert_eq!(agent.text(), mesh(1));
    assert_eq!(inner.answers(), [], "nothing was asked there");
}

#[tokio::test]
async fn plain_http_over_a_network_needs_explicit_words() {
    let state = tempfile::tempdir().unwrap();
    let error = Agent::open(options("http://192.0.2.1/mesh.toml", None, state.path()))
        .await
        .err()
        .unwrap();
    assert!(error.to_string().contains("plain HTTP"), "{error}");
    assert!(error.helps()[0].contains("plain_http = true"));
}

/// minisign's formats: <https://jedisct1.github.io/minisign/#signature-format>.
struct Minisign(Ed25519KeyPair);

impl Minisign {
    const ID: &[u8; 8] = b"natpunch";

    fn new() -> Self {
        Self(Ed25519KeyPair::generate().unwrap())
    }

    fn public(&self) -> String {
        BASE64.encode([b"Ed", Self::ID.as_slice(), self.0.public_key().as_ref()].concat())
    }

    fn sign(&self, content: &[u8]) -> String {
        self.sign_saying("about", content)
    }

    fn sign_saying(&self, comment: &str, content: &[u8]) -> String {
        let signature = self.0.sign(&Blake2b512::digest(content));
        let global = self
            .0
            .sign(&[signature.as_ref(), comment.as_bytes()].concat());
        format!(
            "untrusted comment: x\n{}\ntrusted comment: {comment}\n{}\n",
            BASE64.encode([b"ED", Self::ID.as_slice(), signature.as_ref()].concat()),
            BASE64.encode(global.as_ref())
        )
    }
}

#[tokio::test]
async fn with_signers_a_file_must_be_signed_and_newer() {
    let (server, state) = (server().await, tempfile::tempdir().unwrap());
    let (signer, stranger) = (Minisign::new(), Minisign::new());
    let trust = state.path().join("trust.toml");
    fs::write(
        &trust,
        format!("[trust]\nsigners = [\"{}\"]\n", signer.public()),
    )
    .unwrap();
    let publish = |text: &str, by: Option<&Minisign>| {
        server.page(PAGE, text, None);
        match by {
            Some(by) => server.page("/mesh.toml.minisig", by.sign(text.as_bytes()), None),
            None => {
                _ = server
                    .shown
                    .lock()
                    .unwrap()
                    .pages
                    .remove("/mesh.toml.minisig")
            }
        }
    };
    publish(&mesh_of_generation(1, 1), Some(&signer));
    let mut agent = Agent::start(options(&server.url(PAGE), Some(&trust), state.path()))
        .await
        .unwrap();
    for (text, by, why) in [
        (mesh_of_generation(2, 2), None, "is not signed"),
        (
            mesh_of_generation(2, 2),
            Some(&stranger),
            "not signed by any listed signer",
        ),
        (
            mesh_of_generation(2, 1),
            Some(&signer),
            "its generation is 1",
        ),
        (mesh(2), Some(&signer), "no generation"),
    ] {
        publish(&text, by);
        let error = agent.reload().await.unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    publish(&mesh_of_generation(2, 2), Some(&signer));
    server.page(PAGE, mesh_of_generation(3, 2), None);
    let error = agent.reload().await.unwrap_err();
    assert!(
        error.contains("not signed by any listed signer"),
        "another file's signature: {error}"
    );
    assert_eq!(agent.text(), mesh_of_generation(1, 1));
    publish(&mesh_of_generation(2, 2), Some(&signer));
    agent.reload().await.unwrap();
    assert_eq!(agent.status().generation, Some(2));
}

#[tokio::test]
async fn a_file_that_was_signed_too_long_ago_raises_an_alarm_until_it_is_signed_again() {
    let (server, state) = (server().await, tempfile::tempdir().unwrap());
    let signer = Minisign::new();
    let trust = state.path().join("trust.toml");
    let text = mesh_of_generation(1, 1);
    let publish = |comment: &str| {
        server.page(PAGE, text.clone(), Some("\"one\""));
        let signature = signer.sign_saying(comment, text.as_bytes());
        server.page("/mesh.toml.minisig", signature, None);
    };
    let limit = |more: &str| {
        let signers = format!("[trust]\nsigners = [\"{}\"]\n{more}", signer.public());
        fs::write(&trust, signers).unwrap();
    };
    publish("timestamp:1700000000\tfile:mesh.toml");
    limit("");
    let mut agent = Agent::start(options(&server.url(PAGE), Some(&trust), state.path()))
        .await
        .unwrap();
    assert_eq!(agent.status().stale, None);
    limit("max_age_days = 30\n");
    for comment in ["timestamp:1700000001", "no time at all"] {
        publish(comment);
        agent.reload().await.unwrap();
        assert!(agent.status().stale.is_some(), "{comment}");
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    publish(&format!("timestamp:{}", now.unwrap().as_secs()));
    agent.reload().await.unwrap();
    assert_eq!(agent.status().stale, None);
}
