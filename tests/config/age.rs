//! Secrets that stand in the mesh file encrypted with age, made and opened by the program itself.

use std::path::{Path, PathBuf};

use natpunch::config::{self, Local, NodeConfig};
use natpunch_types::{PresharedKey, SecretKey};
use tempfile::TempDir;

use crate::support::{key_pair, natpunch, piped, shown, write};

/// A directory with the identities of `a`, `b` and an administrator, and a mesh of `a`, `b` and a
/// plain `phone`.
struct World {
    directory: TempDir,
}

fn base64(seed: u8) -> String {
    key_pair(seed).0.expose_base64().to_string()
}

impl World {
    fn new() -> Self {
        let world = Self {
            directory: TempDir::new().unwrap(),
        };
        for name in ["a", "b", "admin"] {
            let identity = piped(world.path(), &["keygen", "--age"], "").unwrap();
            write(&world.file(&format!("{name}.age")), &identity, 0o600);
        }
        world
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn recipient(&self, name: &str) -> String {
        let identity = std::fs::read_to_string(self.file(&format!("{name}.age"))).unwrap();
        piped(self.path(), &["pubkey", "--age"], &identity)
            .unwrap()
            .trim()
            .to_owned()
    }

    /// A line of the mesh file with a key, encrypted to these.
    fn line(&self, key: &str, to: &[&str], secret: &str) -> String {
        let recipients: Vec<String> = to.iter().map(|name| self.recipient(name)).collect();
        let mut args = vec!["encrypt", "--toml", key];
        args.extend(
            recipients
                .iter()
                .flat_map(|recipient| ["--recipient", recipient.as_str()]),
        );
        piped(self.path(), &args, secret).unwrap()
    }

    fn mesh(&self, in_mesh: &str, of_a: &str, of_b: &str, more: &str) {
        let [a, b, phone] = [1, 2, 3].map(|seed| key_pair(seed).1);
        let text = format!(
            "[mesh]\nname = 'home'\nnetworks = ['10.77.0.0/16']\n{in_mesh}\n\
             [peers.a]\npublic_key = '{a}'\naddresses = ['10.77.0.1']\nendpoint = '192.0.2.1:51820'\n\
             [peers.a.interface]\n{of_a}\n\
             [peers.b]\npublic_key = '{b}'\naddresses = ['10.77.0.2']\n[peers.b.interface]\n{of_b}\n\
             [peers.phone]\npublic_key = '{phone}'\naddresses = ['10.77.0.3']\nmanaged = false\n{more}"
        );
        write(&self.file("mesh.toml"), &text, 0o644);
    }

    /// The mesh in which every node's key is encrypted to itself and the administrator.
    fn usual(&self) {
        let a = self.line("private_key_age", &["a", "admin"], &base64(1));
        let b = self.line("private_key_age", &["b", "admin"], &base64(2));
        self.mesh("", &a, &b, "");
    }

    fn resolve(&self, identity: &str, node: Option<&str>) -> Result<NodeConfig, String> {
        let mesh =
            config::load(&self.file("mesh.toml")).map_err(|errors| shown(&errors, self.path()))?;
        let local = Local {
            age_identity_file: Some(self.file(identity)),
            node: node.map(str::to_owned),
            ..Local::default()
        };
        config::resolve_node_at(&mesh, &local).map_err(|errors| shown(&errors, self.path()))
    }
}

#[test]
fn a_node_finds_itself_by_the_key_that_its_identity_opens() {
    let world = World::new();
    world.usual();
    let (a, b) = (
        world.resolve("a.age", None).unwrap(),
        world.resolve("b.age", None).unwrap(),
    );
    assert_eq!((a.name.as_str(), b.name.as_str()), ("a", "b"));
    assert!(a.private_key == key_pair(1).0);
    assert!(a.files.contains(&world.file("a.age")), "{:?}", a.files);
}

#[test]
fn who_opens_the_keys_of_several_says_who_it_is() {
    let world = World::new();
    world.usual();
    let error = world.resolve("admin.age", None).unwrap_err();
    assert!(
        error.contains("several peers: a, b") && error.contains("--node NAME"),
        "{error}"
    );
    assert_eq!(world.resolve("admin.age", Some("b")).unwrap().name, "b");
    let error = world.resolve("admin.age", Some("c")).unwrap_err();
    assert!(error.contains("no peer `c`"), "{error}");
}

#[test]
fn a_key_file_on_the_host_wins_over_what_its_identity_opens() {
    let world = World::new();
    let b = world.line("private_key_age", &["b", "a"], &base64(2));
    write(&world.file("a.key"), &base64(1), 0o600);
    world.mesh("", "private_key_file = 'a.key'", &b, "");
    assert_eq!(world.resolve("a.age", None).unwrap().name, "a");
}

#[test]
fn preshared_keys_of_a_pair_and_of_the_mesh_are_opened_too() {
    let world = World::new();
    let secret = |seed: u8| {
        SecretKey::from_bytes([seed; 32])
            .expose_base64()
            .to_string()
    };
    let a = world.line("private_key_age", &["a"], &base64(1));
    let all = world.line("preshared_secret_age", &["a", "b"], &secret(8));
    let pair = world.line("preshared_key_age", &["a"], &secret(9));
    world.mesh(
        &all,
        &a,
        "",
        &format!("[[preshared]]\npeers = ['a', 'phone']\n{pair}"),
    );
    let node = world.resolve("a.age", None).unwrap();
    assert!(node.peers[1].preshared_key == Some(PresharedKey::from_bytes([9; 32])));
    let derived = node.peers[0].preshared_key.clone();
    // The same as from a file.
    write(&world.file("mesh.secret"), &secret(8), 0o600);
    world.mesh("preshared_secret_file = 'mesh.secret'", &a, "", "");
    assert!(
        derived.is_some()
            && world.resolve("a.age", None).unwrap().peers[0].preshared_key == derived
    );
}

#[test]
fn a_mesh_is_checked_without_any_identity_and_shows_no_secret() {
    let world = World::new();
    world.usual();
    let output = natpunch(world.path(), &["check", "--strict", "mesh.toml"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let errors = [
        world.resolve("nobody.age", None).unwrap_err(),
        world.resolve("admin.age", None).unwrap_err(),
        format!("{:?}", world.resolve("a.age", None).unwrap()),
    ];
    for text in errors {
        assert!(
            !text.contains(&base64(1)) && !text.contains("AGE-SECRET"),
            "{text}"
        );
    }
}

#[test]
fn without_its_identity_a_node_says_where_the_key_stands_and_what_to_make() {
    let world = World::new();
    world.usual();
    let error = world.resolve("nobody.age", None).unwrap_err();
    assert!(error.contains("nobody.age: no such file"), "{error}");
    assert!(
        error.contains("--> mesh.toml:10:1") && error.contains("private_key_age = "),
        "{error}"
    );
    assert!(
        error.contains("natpunch keygen --age > ") && error.contains("--age-identity FILE"),
        "{error}"
    );

    write(
        &world.file("other.age"),
        &piped(world.path(), &["keygen", "--age"], "").unwrap(),
        0o600,
    );
    let error = world.resolve("other.age", None).unwrap_err();
    assert!(error.contains("does not open this"), "{error}");
    assert!(
        error.contains(&format!("--recipient {}", world.recipient("other"))),
        "{error}"
    );

    write(
        &world.file("open.age"),
        &std::fs::read_to_string(world.file("a.age")).unwrap(),
        0o644,
    );
    let error = world.resolve("open.age", None).unwrap_err();
    assert!(error.contains("can be read by others"), "{error}");

    write(&world.file("empty.age"), "# nothing\n", 0o600);
    let error = world.resolve("empty.age", None).unwrap_err();
    assert!(error.contains("holds no age identity"), "{error}");
}

#[test]
fn the_key_of_another_peer_is_refused_where_it_stands() {
    let world = World::new();
    let wrong = world.line("private_key_age", &["a"], &base64(2));
    world.mesh("", &wrong, "", "");
    let error = world.resolve("a.age", None).unwrap_err();
    assert!(
        error.contains("not the private key of `a`") && error.contains("mesh.toml:10:1"),
        "{error}"
    );
    assert!(error.contains(&key_pair(2).1.to_string()), "{error}");
}

#[test]
fn a_value_that_was_changed_is_never_used() {
    let world = World::new();
    let line = world.line("private_key_age", &["a"], &base64(1));
    // The last full line of the armor holds what is encrypted, and the tag of it.
    let last = line.lines().rev().find(|line| line.len() == 64).unwrap();
    let mut refused = 0;
    for at in 0..64 {
        let mut changed = last.as_bytes().to_vec();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        world.mesh("", &line.replace(last, &changed), "", "");
        let error = world.resolve("a.age", None).unwrap_err();
        assert!(
            error.contains("damaged") || error.contains("does not open"),
            "{error}"
        );
        refused += 1;
    }
    assert_eq!(refused, 64);
}

#[test]
fn the_form_survives_an_editor() {
    let world = World::new();
    let line = world.line("private_key_age", &["a"], &base64(1));
    let indented = line.replace('\n', "\r\n    ");
    world.mesh("", &indented, "", "");
    assert_eq!(world.resolve("a.age", None).unwrap().name, "a");
    assert_eq!(line.matches("\"\"\"").count(), 2, "{line}");
}

#[test]
fn what_is_no_key_or_no_recipient_is_not_encrypted() {
    let world = World::new();
    let to = world.recipient("a");
    let error = piped(world.path(), &["encrypt", "--recipient", &to], "hello").unwrap_err();
    assert!(error.contains("this is not a key"), "{error}");
    let identity = std::fs::read_to_string(world.file("a.age")).unwrap();
    let secret = identity.lines().last().unwrap();
    let error = piped(
        world.path(),
        &["encrypt", "--recipient", secret],
        &base64(1),
    )
    .unwrap_err();
    assert!(error.contains("which is secret"), "{error}");
    assert!(
        piped(world.path(), &["encrypt"], &base64(1))
            .unwrap_err()
            .contains("--recipient")
    );
    assert!(
        piped(world.path(), &["pubkey", "--age"], &base64(1))
            .unwrap_err()
            .contains("not an age identity")
    );
}

#[test]
fn the_file_of_a_phone_is_exported_by_whoever_opens_its_key() {
    let world = World::new();
    let phone = world.line("private_key_age", &["admin"], &base64(3));
    world.mesh("", "", "", &format!("[peers.phone.interface]\n{phone}"));
    let args = ["export", "phone", "--age-identity"];
    let text = piped(world.path(), &[&args[..], &["admin.age"]].concat(), "").unwrap();
    assert!(
        text.contains(&format!("PrivateKey = {}", base64(3))),
        "{text}"
    );
    let error = piped(world.path(), &[&args[..], &["a.age"]].concat(), "").unwrap_err();
    assert!(error.contains("does not open this"), "{error}");
}
