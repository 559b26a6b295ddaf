//! `init`, `add-peer`, `remove-peer`: edits by command keep what people wrote.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use natpunch::config;

use crate::support::{done, key_pair, refused, root, write};

const BY_HAND: &str = r#"# Our mesh.

[mesh]
name = "home"   # a label
networks = ["10.77.0.0/24", "fd77:1::/64"]

# -- Berlin --

# the storage box
[peers.nas]
public_key = "GLWva7ueKNMExqU//jb+hvFyq8Tf5BtAa/w35GDSuXs="
addresses = ["10.77.0.1", "fd77:1::1"]
routes    = [ "192.168.1.0/24" ]   # odd spaces stay

[peers.nas.interface]
listen_port = 51820

# -- Oslo --

# roams
[peers.laptop]
public_key = "bpkhiX1Y/wM5/yXBV2jwwQkvJSrwJA4T5+iUtAOAviY="
addresses = ["10.77.0.3"]

[[preshared]]
peers = ["nas", "laptop"]
preshared_key_file = "/etc/natpunch/pair.psk"
# the end
"#;

fn mesh(directory: &Path) -> std::path::PathBuf {
    let file = directory.join("mesh.toml");
    write(&file, BY_HAND, 0o640);
    file
}

/// The lines that only one of two texts has.
fn changed<'a>(before: &'a str, after: &'a str) -> (Vec<&'a str>, Vec<&'a str>) {
    let lost = before
        .lines()
        .filter(|line| !after.lines().any(|other| other == *line))
        .collect();
    let new = after
        .lines()
        .filter(|line| !before.lines().any(|other| other == *line))
        .collect();
    (lost, new)
}

#[test]
fn a_new_mesh_is_valid_as_soon_as_it_has_a_peer() {
    let directory = tempfile::tempdir().unwrap();
    done(directory.path(), &["init"]);
    let text = fs::read_to_string(directory.path().join("mesh.toml")).unwrap();
    let error = refused(directory.path(), &["check", "mesh.toml"]);
    assert_eq!(error.matches("error: ").count(), 1, "{error}");
    assert!(
        error.contains("[peers] is missing") && error.contains("natpunch add-peer"),
        "{error}"
    );
    for name in ["a", "b"] {
        done(
            directory.path(),
            &[
                "add-peer",
                name,
                "--private-key-file",
                &format!("{name}.key"),
            ],
        );
    }
    let mesh = config::load(&directory.path().join("mesh.toml")).unwrap();
    assert_eq!(mesh.networks.len(), 2);
    assert!(mesh.peers.values().all(|peer| peer.addresses.len() == 2));
    // What was written stays in its place, and the peers come behind it.
    let after = fs::read_to_string(directory.path().join("mesh.toml")).unwrap();
    assert!(after.starts_with(&text), "{after}");
    assert_eq!(after.matches("\n\n[peers.").count(), 2, "{after}");
    assert!(!after.contains("\n\n\n"), "{after}");
    // Each node finds itself by the key that was made for it.
    let node = config::resolve_node(&mesh, Some(&directory.path().join("b.key"))).unwrap();
    assert_eq!(node.name, "b");
    let mode = fs::metadata(directory.path().join("a.key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn a_file_that_is_there_is_never_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let file = mesh(directory.path());
    assert!(refused(directory.path(), &["init"]).contains("never overwritten"));
    assert_eq!(fs::read_to_string(file).unwrap(), BY_HAND);
    let key = directory.path().join("other.key");
    write(&key, "not a key\n", 0o600);
    refused(
        directory.path(),
        &["add-peer", "x", "--private-key-file", "other.key"],
    );
    assert_eq!(fs::read_to_string(key).unwrap(), "not a key\n");
}

#[test]
fn a_bad_name_or_network_makes_no_file() {
    let directory = tempfile::tempdir().unwrap();
    for args in [
        ["init", "--name", "My Mesh"],
        ["init", "--network", "10.77.0.1/24"],
    ] {
        refused(directory.path(), &args);
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            0,
            "{args:?}"
        );
    }
}

#[test]
fn a_peer_is_added_behind_the_last_one_and_nothing_else_changes() {
    let directory = tempfile::tempdir().unwrap();
    let file = mesh(directory.path());
    let key = key_pair(3).1.to_string();
    let args = [
        "add-peer",
        "phone",
        "--public-key",
        &key,
        "--unmanaged",
        "--route",
        "172.16.0.0/24",
        "--tag",
        "mobile",
    ];
    done(directory.path(), &args);
    let after = fs::read_to_string(&file).unwrap();
    let (lost, new) = changed(BY_HAND, &after);
    assert!(lost.is_empty(), "{lost:?}");
    let key = format!("public_key = \"{key}\"");
    assert_eq!(
        new,
        [
            "[peers.phone]",
            &key,
            "addresses = [\"10.77.0.2\", \"fd77:1::2\"]",
            "routes = [\"172.16.0.0/24\"]",
            "managed = false",
            "tags = [\"mobile\"]"
        ]
    );
    assert!(after.find("[peers.laptop]") < after.find("[peers.phone]"));
    assert!(after.find("[peers.phone]") < after.find("[[preshared]]"));
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o640,
        "the mode stays"
    );
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        1,
        "no temporary file is left"
    );
    // The same again changes nothing; another key is not taken silently.
    assert!(done(directory.path(), &args).contains("nothing changed"));
    assert_eq!(fs::read_to_string(&file).unwrap(), after);
    let error = refused(
        directory.path(),
        &[
            "add-peer",
            "phone",
            "--public-key",
            &key_pair(4).1.to_string(),
        ],
    );
    assert!(
        error.contains("another public_key, routes, managed, tags"),
        "{error}"
    );
}

#[test]
fn adding_and_removing_a_peer_gives_the_same_file() {
    for eol in ["\n", "\r\n"] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mesh.toml");
        let by_hand = BY_HAND.replace('\n', eol);
        write(&file, &by_hand, 0o644);
        done(
            directory.path(),
            &["add-peer", "x", "--public-key", &key_pair(3).1.to_string()],
        );
        done(directory.path(), &["remove-peer", "x"]);
        assert_eq!(fs::read_to_string(&file).unwrap(), by_hand);
    }
    for example in [
        "home.toml",
        "two-nodes.toml",
        "preshared.toml",
        "plain-wireguard-peer.toml",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mesh.toml");
        fs::copy(root().join("examples/configs").join(example), &file).unwrap();
        let before = fs::read_to_string(&file).unwrap();
        done(
            directory.path(),
            &["add-peer", "x", "--public-key", &key_pair(3).1.to_string()],
        );
        assert!(
            changed(&before, &fs::read_to_string(&file).unwrap())
                .0
                .is_empty()
        );
        done(directory.path(), &["remove-peer", "x"]);
        assert_eq!(fs::read_to_string(&file).unwrap(), before, "{example}");
    }
}

#[test]
fn a_peer_goes_with_its_own_comments_and_keys_and_leaves_those_of_others() {
    let directory = tempfile::tempdir().unwrap();
    let file = mesh(directory.path());
    done(directory.path(), &["remove-peer", "nas"]);
    let after = fs::read_to_string(&file).unwrap();
    for gone in ["nas", "# the storage box", "51820", "[[preshared]]"] {
        assert!(!after.contains(gone), "{gone}: {after}");
    }
    for kept in [
        "# Our mesh.",
        "# -- Berlin --",
        "# -- Oslo --\n\n# roams\n[peers.laptop]",
        "# the end",
        "# a label",
    ] {
        assert!(after.contains(kept), "{kept}: {after}");
    }
}

#[test]
fn removing_a_peer_that_is_not_there_is_an_error_with_a_suggestion() {
    let directory = tempfile::tempdir().unwrap();
    let file = mesh(directory.path());
    assert!(
        refused(directory.path(), &["remove-peer", "lapto"]).contains("did you mean `laptop`?")
    );
    assert!(
        done(directory.path(), &["remove-peer", "lapto", "--if-present"])
            .contains("nothing changed")
    );
    assert_eq!(fs::read_to_string(file).unwrap(), BY_HAND);
}

#[test]
fn an_edit_that_would_break_the_mesh_writes_nothing_and_makes_no_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = mesh(directory.path());
    for (args, problem) in [
        (&["add-peer", "Phone"][..], "not a DNS label"),
        (
            &["add-peer", "phone", "--address", "10.77.0.1"],
            "both have 10.77.0.1",
        ),
        (
            &["add-peer", "phone", "--address", "10.78.0.1"],
            "outside of the mesh's networks",
        ),
        (
            &["add-peer", "phone", "--route", "192.168.0.0/16"],
            "overlaps",
        ),
        (
            &["add-peer", "phone", "--route", "0.0.0.0/0"],
            "default route",
        ),
        (
            &["add-peer", "phone", "--endpoint", "nowhere"],
            "port is missing",
        ),
    ] {
        let error = refused(
            directory.path(),
            &[args, &["--private-key-file", "new.key"]].concat(),
        );
        assert!(error.contains(problem), "{args:?}: {error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), BY_HAND, "{args:?}");
        assert!(!directory.path().join("new.key").exists(), "{args:?}");
    }
    // The last peer stays.
    done(directory.path(), &["remove-peer", "nas"]);
    let before = fs::read_to_string(&file).unwrap();
    assert!(refused(directory.path(), &["remove-peer", "laptop"]).contains("[peers] is missing"));
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
}

#[test]
fn the_free_address_is_the_lowest_and_a_full_network_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mesh.toml");
    done(directory.path(), &["init", "--network", "10.9.0.0/29"]);
    for n in 1..=6 {
        let key = key_pair(n).1.to_string();
        done(
            directory.path(),
            &["add-peer", &format!("p{n}"), "--public-key", &key],
        );
        let mesh = config::load(&file).unwrap();
        assert_eq!(
            mesh.peers[&format!("p{n}")].addresses[0].to_string(),
            format!("10.9.0.{n}")
        );
    }
    let key = key_pair(7).1.to_string();
    let error = refused(directory.path(), &["add-peer", "p7", "--public-key", &key]);
    assert!(
        error.contains("no address is free in 10.9.0.0/29"),
        "{error}"
    );
    done(directory.path(), &["remove-peer", "p3"]);
    done(directory.path(), &["add-peer", "p7", "--public-key", &key]);
    assert_eq!(
        config::load(&file).unwrap().peers["p7"].addresses[0].to_string(),
        "10.9.0.3"
    );
}

#[test]
fn in_a_directory_the_file_is_chosen_or_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("split");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(root().join("examples/configs/split")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let key = key_pair(3).1.to_string();
    let add = ["add-peer", "--mesh", "split", "x", "--public-key", &key];
    let error = refused(directory.path(), &add);
    assert!(
        error.contains("20-berlin.toml, 30-oslo.toml") && error.contains("--file"),
        "{error}"
    );
    for outside in ["../x.toml", "/tmp/x.toml", ".x.toml", "x.txt"] {
        refused(directory.path(), &[&add[..], &["--file", outside]].concat());
    }
    done(
        directory.path(),
        &[&add[..], &["--file", "30-oslo.toml"]].concat(),
    );
    assert!(
        fs::read_to_string(copy.join("30-oslo.toml"))
            .unwrap()
            .contains("[peers.x]")
    );
    done(directory.path(), &["remove-peer", "--mesh", "split", "x"]);
    done(
        directory.path(),
        &[&add[..], &["--file", "40-new.toml"]].concat(),
    );
    assert!(
        fs::read_to_string(copy.join("40-new.toml"))
            .unwrap()
            .starts_with("[peers.x]")
    );
    config::load(&copy).unwrap();
}

#[test]
fn where_each_peer_has_a_file_a_new_one_gets_one() {
    let directory = tempfile::tempdir().unwrap();
    write(
        &directory.path().join("00-mesh.toml"),
        "[mesh]\nname = 'm'\nnetworks = ['10.1.0.0/24']\n",
        0o644,
    );
    for (n, name) in [(1, "a"), (2, "b"), (3, "c")] {
        let key = key_pair(n).1;
        if n < 3 {
            let text =
                format!("[peers.{name}]\npublic_key = '{key}'\naddresses = ['10.1.0.{n}']\n");
            write(&directory.path().join(format!("{name}.toml")), &text, 0o644);
        } else {
            done(
                directory.path(),
                &[
                    "add-peer",
                    "--mesh",
                    ".",
                    name,
                    "--public-key",
                    &key.to_string(),
                ],
            );
        }
    }
    assert!(
        fs::read_to_string(directory.path().join("c.toml"))
            .unwrap()
            .contains("10.1.0.3")
    );
}

#[test]
fn inline_peers_stay_inline() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (key_pair(1).1, key_pair(2).1.to_string());
    let text = format!(
        "[mesh]\nname = 'm'\nnetworks = ['10.1.0.0/24']\n\n[peers]\na = {{ public_key = '{one}', addresses = ['10.1.0.1'] }}\n"
    );
    let file = directory.path().join("mesh.toml");
    write(&file, &text, 0o644);
    done(directory.path(), &["add-peer", "b", "--public-key", &two]);
    let after = fs::read_to_string(&file).unwrap();
    assert_eq!(
        after,
        format!("{text}b = {{ public_key = \"{two}\", addresses = [\"10.1.0.2\"] }}\n")
    );
    done(directory.path(), &["remove-peer", "b"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn a_symbolic_link_to_the_mesh_file_stays_one() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("repository")).unwrap();
    mesh(&directory.path().join("repository"));
    std::os::unix::fs::symlink("repository/mesh.toml", directory.path().join("mesh.toml")).unwrap();
    done(
        directory.path(),
        &["add-peer", "x", "--public-key", &key_pair(3).1.to_string()],
    );
    assert!(
        fs::symlink_metadata(directory.path().join("mesh.toml"))
            .unwrap()
            .is_symlink()
    );
    assert!(
        fs::read_to_string(directory.path().join("repository/mesh.toml"))
            .unwrap()
            .contains("[peers.x]")
    );
}

#[test]
fn a_peer_is_changed_and_everything_around_it_stays() {
    let directory = tempfile::tempdir().unwrap();
    let file = mesh(directory.path());
    done(
        directory.path(),
        &[
            "edit-peer",
            "nas",
            "endpoint=nas.example.org:51820",
            "routes=[\"192.168.2.0/24\"]",
            "interface.mtu=1380",
            "tags=[\"db\"]",
        ],
    );
    let after = fs::read_to_string(&file).unwrap();
    let (lost, new) = changed(BY_HAND, &after);
    assert_eq!(
        lost,
        ["routes    = [ \"192.168.1.0/24\" ]   # odd spaces stay"]
    );
    assert_eq!(
        new,
        [
            "routes    = [\"192.168.2.0/24\"]   # odd spaces stay",
            "endpoint = \"nas.example.org:51820\"",
            "tags = [\"db\"]",
            "mtu = 1380",
        ]
    );
    let gone = ["edit-peer", "nas", "--unset", "endpoint", "--unset", "tags"];
    done(directory.path(), &gone);
    done(
        directory.path(),
        &["edit-peer", "laptop", "interface.listen_port=51821"],
    );
    let after = fs::read_to_string(&file).unwrap();
    let laptop = after.find("[peers.laptop.interface]").unwrap();
    assert!(after.find("[peers.laptop]").unwrap() < laptop, "{after}");
    assert!(!after.contains("endpoint") && !after.contains("tags"));
    // What would not be valid is not written.
    for bad in [
        &["edit-peer", "nas", "adresses=[]"][..],
        &["edit-peer", "nas", "addresses=[\"10.99.0.1\"]"],
        &["edit-peer", "nas", "endpoint"],
        &["edit-peer", "nas", "public_key.x=1"],
        &["edit-peer", "nas", "--unset", "public_key"],
        &["edit-peer", "nobody", "managed=false"],
    ] {
        refused(directory.path(), bad);
        assert_eq!(fs::read_to_string(&file).unwrap(), after, "{bad:?}");
    }
}

#[test]
fn a_renamed_peer_keeps_its_place_and_those_that_name_it_follow() {
    let directory = tempfile::tempdir().unwrap();
    let file = mesh(directory.path());
    done(directory.path(), &["edit-peer", "nas", "exit=true"]);
    done(directory.path(), &["edit-peer", "laptop", "exit_node=nas"]);
    let before = fs::read_to_string(&file).unwrap();
    done(directory.path(), &["rename-peer", "nas", "box"]);
    let after = fs::read_to_string(&file).unwrap();
    let expected = before
        .replace("[peers.nas", "[peers.box")
        .replace("\"nas\"", "\"box\"");
    assert_eq!(after, expected);
    let taken = refused(directory.path(), &["rename-peer", "box", "laptop"]);
    assert!(taken.contains("already"), "{taken}");
    refused(directory.path(), &["rename-peer", "box", "The Box"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), after);
}

#[test]
fn a_new_key_comes_with_the_file_that_holds_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = mesh(directory.path());
    let new = directory.path().join("nas-2.key").display().to_string();
    let arguments = ["rotate-key", "nas", "--private-key-file", &new];
    done(directory.path(), &arguments);
    let made = config::read_key_file(Path::new(&new)).unwrap();
    let mesh = config::load(&file).unwrap();
    assert_eq!(mesh.peers["nas"].public_key, made.public_key());
    let after = fs::read_to_string(&file).unwrap();
    let (lost, new_lines) = changed(BY_HAND, &after);
    assert_eq!((lost.len(), new_lines.len()), (1, 2), "{new_lines:?}");
    // The file in use holds the key that works until the change has arrived.
    let again = refused(directory.path(), &arguments);
    assert!(again.contains("in use"), "{again}");
    // A key that was made on the machine itself.
    let public = key_pair(9).1.to_string();
    let there = "/etc/natpunch/laptop-2.key";
    let mut arguments = vec!["rotate-key", "laptop", "--private-key-file", there];
    arguments.extend(["--public-key", &public]);
    done(directory.path(), &arguments);
    let mesh = config::load(&file).unwrap();
    assert_eq!(mesh.peers["laptop"].public_key.to_string(), public);
}

#[test]
fn a_removed_node_leaves_word_of_the_secrets_that_it_knows() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mesh.toml");
    let secret = "preshared_secret_file = \"/etc/natpunch/psk.key\"";
    let text = BY_HAND.replace("# -- Berlin --", &format!("{secret}\n\n# -- Berlin --"));
    write(&file, &text, 0o640);
    let said = done(directory.path(), &["remove-peer", "laptop"]);
    assert!(
        said.contains("laptop still knows preshared_secret_file of [mesh]"),
        "{said}"
    );
}
