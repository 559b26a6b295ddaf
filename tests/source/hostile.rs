//! What a repository may not do, from whatever server it comes.

use std::fs;
use std::io::Read as _;

use natpunch::source::Problem;

use crate::server::Server;
use crate::support::{Agent, Repository, Signer, mesh, options};

/// More than may be fetched: the pack is as large as the file, since noise does not compress.
pub(crate) fn write_noise(repository: &Repository, mebibytes: u64) {
    // To try costs nobody's time.
    repository.git(&["config", "core.compression", "0"]);
    repository.git(&[
        "--git-dir",
        "../served/mesh.git",
        "config",
        "core.compression",
        "0",
    ]);
    let noise = fs::File::open("/dev/urandom").unwrap();
    let mut file = fs::File::create(repository.work().join("noise.bin")).unwrap();
    std::io::copy(&mut noise.take(mebibytes << 20), &mut file).unwrap();
}

/// Goes through unsigned, forged, older, force-pushed, oversize, truncated and unreachable
/// repositories at `location`: each is refused with its reason, and what ran goes on.
pub(crate) async fn is_refused(repository: &Repository, location: &str, stop: impl AsyncFnOnce()) {
    let (signer, stranger, state) = (Signer::new(), Signer::new(), tempfile::tempdir().unwrap());
    let trust = signer.trust("");
    let first = repository.publish(&mesh(1), Some(&signer));
    let second = repository.publish(&mesh(2), Some(&signer));
    let mut agent = Agent::start(options(location, Some(&trust), state.path()))
        .await
        .unwrap();
    let back_to = |commit: &str| {
        repository.git(&["reset", "-q", "--hard", commit]);
        repository.push();
    };
    let mut refused = async |what: &str, why: &str, problem: Problem| {
        let error = agent
            .reload()
            .await
            .err()
            .unwrap_or_else(|| panic!("{what}: it was taken"));
        assert!(error.contains(why), "{what}: {error}");
        let status = agent.status();
        assert_eq!(
            (status.revision, status.problem),
            (Some(second.clone()), Some(problem)),
            "{what}"
        );
        assert_eq!(agent.text(), mesh(2), "{what}");
    };

    repository.publish(&mesh(3), None);
    refused("unsigned", "is not signed", Problem::Refused).await;
    repository.publish(&mesh(4), Some(&signer));
    refused(
        "signed on top of unsigned",
        "is not signed",
        Problem::Refused,
    )
    .await;
    back_to(&second);
    repository.publish(&mesh(5), Some(&stranger));
    refused(
        "signed by a stranger",
        "not signed by a listed signer",
        Problem::Refused,
    )
    .await;

    back_to(&second);
    repository.write("mesh.toml", mesh(6));
    repository.commit(Some(&signer));
    let forged = repository
        .git(&["cat-file", "commit", "HEAD"])
        .replace("\n\nchange", "\n\nforged");
    let file = repository.directory.path().join("forged");
    fs::write(&file, forged + "\n").unwrap();
    let forged = repository.git(&["hash-object", "-t", "commit", "-w", file.to_str().unwrap()]);
    back_to(&forged);
    refused("forged", "not signed by a listed signer", Problem::Refused).await;

    back_to(&first);
    refused("older", "rewritten or set back", Problem::Refused).await;
    repository.publish(&mesh(7), Some(&signer));
    refused("force-pushed", "rewritten or set back", Problem::Refused).await;

    back_to(&second);
    repository.publish(
        &format!("{}# {}", mesh(8), "x".repeat(9 << 20)),
        Some(&signer),
    );
    refused("a file too large", "8 MiB a file", Problem::Refused).await;
    back_to(&second);
    write_noise(repository, 66);
    repository.publish(&mesh(9), Some(&signer));
    refused(
        "a repository too large",
        "more than 64 MiB",
        Problem::Refused,
    )
    .await;

    back_to(&second);
    repository.publish(&mesh(10), Some(&signer));
    let blob = repository.git(&["rev-parse", "HEAD:mesh.toml"]);
    let object = repository
        .served()
        .join("mesh.git/objects")
        .join(&blob[..2])
        .join(&blob[2..]);
    let whole = fs::read(&object).unwrap();
    fs::remove_file(&object).unwrap();
    fs::write(&object, &whole[..whole.len() / 2]).unwrap();
    refused("truncated", "can't fetch", Problem::Unreachable).await;
    fs::write(&object, &whole).unwrap();
    stop().await;
    refused("unreachable", "can't fetch", Problem::Unreachable).await;
}

#[tokio::test]
async fn what_must_be_refused_is_refused_over_http() {
    let repository = Repository::new();
    let server = Server::start(repository.served()).await;
    let location = server.git_url("mesh.toml");
    is_refused(&repository, &location, async || server.stop().await).await;
}
