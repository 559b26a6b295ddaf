//! README's mesh, and commands of the how-tos that need no network, typed in a directory of their
//! own.

use std::path::Path;
use std::process::Command;

use crate::blocks::Block;

const NATPUNCH: &str = env!("CARGO_BIN_EXE_natpunch");

/// Types it there, and gives what it printed. It must succeed.
fn types(directory: &Path, text: &str) -> String {
    let programs = Path::new(NATPUNCH).parent().unwrap().display().to_string();
    let output = Command::new("sh")
        .args(["-eu", "-c", text])
        .current_dir(directory)
        .env(
            "PATH",
            format!("{programs}:{}", std::env::var("PATH").unwrap()),
        )
        .env("HOME", directory)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_mesh_that_readme_shows_is_valid_and_free_of_warnings() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let new_key = || types(here, "natpunch keygen | natpunch pubkey");
    let keys = [new_key(), new_key()].map(|key| key.trim().to_owned());
    let mesh = Block::named("README.md", "mesh").filled(&[&keys[0], &keys[1]]);
    std::fs::write(here.join("mesh.toml"), mesh).unwrap();
    let said = types(here, "natpunch check --strict mesh.toml");
    assert!(said.contains("ok: mesh home, 2 peers"), "{said}");
}

#[test]
fn a_mesh_file_is_made_changed_and_drawn_as_the_how_tos_say() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let key = types(here, "natpunch keygen | natpunch pubkey");
    let made = Block::named("docs/how-to/peers.md", "from-nothing").text;
    let checked = types(here, &made.replace("bpkhi…=", key.trim()));
    assert!(checked.contains("ok: mesh home, 2 peers"), "{checked}");
    let code = types(
        here,
        &Block::named("docs/how-to/plain-wireguard.md", "phone").text,
    );
    assert!(code.contains('█'), "{code}");
    let drawn = types(here, &Block::named("docs/how-to/peers.md", "graph").text);
    assert!(drawn.contains("phone") && types(here, "cat mesh.svg").contains("laptop"));
    let changed = Block::named("docs/how-to/peers.md", "edit-peer").text;
    let changed = types(here, &changed);
    assert!(changed.contains("renamed nas to box"), "{changed}");
    let left = types(
        here,
        &Block::named("docs/how-to/peers.md", "remove-peer").text,
    );
    assert!(
        left.contains("ok: mesh home, 2 peers (1 plain WireGuard)"),
        "{left}"
    );
}

#[test]
fn the_meshes_without_a_server_that_the_how_tos_show_are_valid() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let new_key = || types(here, "natpunch keygen | natpunch pubkey");
    let keys = [new_key(), new_key()].map(|key| key.trim().to_owned());
    let mesh = Block::named("docs/how-to/lan.md", "mesh").filled(&[&keys[0], &keys[1]]);
    std::fs::write(here.join("mesh.toml"), &mesh).unwrap();
    types(here, "natpunch check mesh.toml");
    for section in [
        Block::named("docs/how-to/shared-directory.md", "section"),
        Block::named("docs/how-to/redis.md", "section"),
    ] {
        std::fs::write(here.join("mesh.toml"), format!("{mesh}{}", section.text)).unwrap();
        let said = types(here, "natpunch check --strict mesh.toml");
        assert!(said.contains("ok: mesh home, 2 peers"), "{said}");
    }
    // Where no peer has an endpoint, gossip alone has nothing to begin with.
    let section = Block::named("docs/how-to/gossip.md", "section").text;
    std::fs::write(here.join("mesh.toml"), format!("{mesh}{section}")).unwrap();
    types(here, "natpunch check mesh.toml");
}

#[test]
fn a_zone_is_set_up_as_the_how_to_says() {
    let block = |name| match name {
        "section" => Block::named("docs/how-to/dns.md", "section"),
        "key" => Block::named("docs/how-to/dns.md", "key"),
        "zone" => Block::named("docs/how-to/dns.md", "zone"),
        "knot" => Block::named("docs/how-to/dns.md", "knot"),
        "hash" => Block::named("docs/how-to/dns.md", "hash"),
        _ => Block::named("docs/how-to/dns.md", "srv"),
    };
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let at = here.display().to_string();
    types(here, &block("key").text.replace("/etc/natpunch", &at));
    let secret = types(here, "cat dns.key");
    let new_key = || types(here, "natpunch keygen | natpunch pubkey");
    let keys = [new_key(), new_key()].map(|key| key.trim().to_owned());
    let mesh = Block::named("docs/how-to/lan.md", "mesh").filled(&[&keys[0], &keys[1]]);
    let section = block("section").text;
    std::fs::write(here.join("mesh.toml"), format!("{mesh}{section}")).unwrap();
    let said = types(here, "natpunch check --strict mesh.toml");
    assert!(said.contains("ok: mesh home, 2 peers"), "{said}");

    // The server that reads it, with its files here.
    let zone = format!("{}{}", block("zone").text, block("srv").text);
    std::fs::write(here.join("natpunch.example.org.zone"), zone).unwrap();
    let server = format!(
        "server:\n  rundir: \"{at}\"\ndatabase:\n  storage: \"{at}\"\n\
         template:\n  - id: default\n    storage: \"{at}\"\n{}",
        block("knot").text.replace("SECRET", secret.trim())
    );
    std::fs::write(here.join("knot.conf"), server).unwrap();
    types(here, "PATH=$PATH:/usr/sbin; knotc -c knot.conf conf-check");
    types(here, "PATH=$PATH:/usr/sbin; knotc -c knot.conf zone-check");
    let zeros = "A".repeat(43) + "=";
    let hash = types(here, &block("hash").text.replace("PUBLIC KEY", &zeros));
    assert!(block("srv").text.contains(hash.trim()), "{hash}");
}

#[test]
fn a_plugin_is_written_as_the_how_to_says() {
    let block = |name| match name {
        "new" => Block::named("docs/how-to/write-a-plugin.md", "new"),
        "by-hand" => Block::named("docs/how-to/write-a-plugin.md", "by-hand"),
        "find" => Block::named("docs/how-to/write-a-plugin.md", "find"),
        "test-again" => Block::named("docs/how-to/write-a-plugin.md", "test-again"),
        _ => Block::named("docs/how-to/write-a-plugin.md", "section"),
    };
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let tested = types(here, &block("new").text);
    let shown = std::fs::read_to_string(crate::blocks::root("docs/how-to/write-a-plugin.md"));
    let report = tested.split_once("py\n").unwrap().1;
    assert!(shown.unwrap().contains(report), "{tested}");
    let said = types(here, &block("by-hand").text);
    assert!(said.contains("0 addresses of 0 peers"), "{said}");

    let file = here.join("my-plugin/my-plugin.py");
    let old = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = old.split_once("SETTINGS = {").unwrap();
    let (_, after) = rest.split_once("def say(").unwrap();
    let before = before.replace("import queue\n", "import queue\nimport socket\n");
    let new = format!(
        "{before}{}\n\n\ndef say({after}",
        block("find").text.trim_end()
    );
    std::fs::write(&file, new).unwrap();
    let tested = types(here, &block("test-again").text);
    assert!(tested.contains("It keeps all 9 rules."), "{tested}");

    let key = types(here, "natpunch keygen | natpunch pubkey");
    let mesh = Block::named("README.md", "mesh").filled(&[key.trim(), key.trim()]);
    let (mesh, _) = mesh.rsplit_once("[peers.").unwrap();
    std::fs::write(
        here.join("mesh.toml"),
        format!("{mesh}{}", block("section").text),
    )
    .unwrap();
    types(here, "natpunch check mesh.toml");
}

#[test]
fn an_editor_gets_its_schemas_and_a_shell_its_completions_as_the_how_to_says() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    types(here, &Block::named("docs/how-to/editor.md", "schema").text);
    types(
        here,
        &Block::named("docs/how-to/editor.md", "completions").text,
    );
    let schema = types(here, "cat natpunch.schema.json");
    assert!(
        schema.contains("\"required\"") && types(here, "cat natpunch-part.schema.json") != schema
    );
    let written = here.join(".local/share/bash-completion/completions/natpunch");
    assert!(
        std::fs::read_to_string(written)
            .unwrap()
            .contains("add-peer")
    );
}
