//! `import` and `export`: people who have plain WireGuard, and peers that keep it. Also the pairs'
//! preshared keys.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use natpunch::config::{self, NodeConfig};
use natpunch_types::SecretKey;

use crate::support::{done, key_pair, natpunch, refused, root, write};

fn base64(key: &SecretKey) -> String {
    key.expose_base64().to_string()
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o7777
}

/// A node, a reachable peer with a preshared key, and a phone.
fn mesh(directory: &Path) {
    for (n, name) in [(1, "nas"), (2, "laptop"), (3, "phone")] {
        write(
            &directory.join(format!("{name}.key")),
            &base64(&key_pair(n).0),
            0o600,
        );
    }
    write(
        &directory.join("pair.psk"),
        &base64(&SecretKey::from_bytes([9; 32])),
        0o600,
    );
    let text = format!(
        "[mesh]\nname = 'home'\nnetworks = ['10.77.0.0/24', 'fd77::/64']\n\n[interface]\nprivate_key_file = 'none.key'\nmtu = 1380\n
         [discovery.rv]\nplugin = 'nat-hole-punching'\nserver = 'rv.example.org:49918'\n
         [peers.nas]\npublic_key = '{}'\naddresses = ['10.77.0.1', 'fd77::1']\nroutes = ['192.168.1.0/24']\nendpoint = 'nas.example.org:51820'\n
         [peers.laptop]\npublic_key = '{}'\naddresses = ['10.77.0.2']\n
         [peers.phone]\npublic_key = '{}'\naddresses = ['10.77.0.3', 'fd77::3']\nmanaged = false\n
         [[preshared]]\npeers = ['phone', 'nas']\npreshared_key_file = 'pair.psk'\n",
        key_pair(1).1,
        key_pair(2).1,
        key_pair(3).1
    );
    write(&directory.join("mesh.toml"), &text, 0o644);
}

#[test]
fn an_exported_file_has_everything_that_the_peer_needs() {
    let directory = tempfile::tempdir().unwrap();
    mesh(directory.path());
    let text = done(
        directory.path(),
        &["export", "phone", "--private-key-file", "phone.key"],
    );
    let expected = format!(
        "[Interface]\n# Name = phone\nPrivateKey = {}\nAddress = 10.77.0.3/24, fd77::3/64\nMTU = 1380\n\n[Peer]\n# Name = nas\n\
         PublicKey = {}\nPresharedKey = {}\nAllowedIPs = 10.77.0.1/32, 192.168.1.0/24, fd77::1/128\n\
         Endpoint = nas.example.org:51820\nPersistentKeepalive = 25\n\n# laptop is left out: neither side has an endpoint\n",
        base64(&key_pair(3).0),
        key_pair(1).1,
        base64(&SecretKey::from_bytes([9; 32])),
    );
    assert_eq!(text, expected);
    let without = done(directory.path(), &["export", "phone"]);
    assert!(without.contains("# PrivateKey = …") && !without.contains(&base64(&key_pair(3).0)));
    assert!(refused(directory.path(), &["export", "phon"]).contains("did you mean `phone`?"));
    assert!(
        refused(
            directory.path(),
            &["export", "phone", "--private-key-file", "nas.key"]
        )
        .contains("does not hold the key")
    );
}

#[test]
fn files_with_keys_are_their_owners_only_and_never_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    mesh(directory.path());
    let args = [
        "export",
        "phone",
        "--private-key-file",
        "phone.key",
        "--output",
        "phone.conf",
        "--svg",
        "phone.svg",
    ];
    done(directory.path(), &args);
    for file in ["phone.conf", "phone.svg"] {
        assert_eq!(mode(&directory.path().join(file)), 0o600, "{file}");
    }
    assert!(
        fs::read_to_string(directory.path().join("phone.svg"))
            .unwrap()
            .contains("<svg")
    );
    assert!(refused(directory.path(), &args).contains("never overwritten"));
}

#[test]
fn a_qr_code_needs_the_private_key() {
    let directory = tempfile::tempdir().unwrap();
    mesh(directory.path());
    assert!(
        refused(directory.path(), &["export", "phone", "--qr"]).contains("without the private key")
    );
    let code = done(
        directory.path(),
        &["export", "phone", "--qr", "--private-key-file", "phone.key"],
    );
    let width = code.lines().next().unwrap().chars().count();
    assert!(
        width > 40 && code.lines().all(|line| line.chars().count() == width),
        "{code}"
    );
    assert!(code.contains('█') && !code.contains("PrivateKey"));
}

#[test]
fn importing_what_was_exported_gives_the_same_peers() {
    let directory = tempfile::tempdir().unwrap();
    mesh(directory.path());
    done(
        directory.path(),
        &[
            "export",
            "phone",
            "--private-key-file",
            "phone.key",
            "--output",
            "wg0.conf",
        ],
    );
    let new = directory.path().join("new");
    fs::create_dir(&new).unwrap();
    done(
        directory.path(),
        &["import", "wg0.conf", "--output", "new/mesh.toml"],
    );
    for key in ["phone.key", "phone-nas.psk"] {
        assert_eq!(mode(&new.join(key)), 0o600, "{key}");
    }
    let text = fs::read_to_string(new.join("mesh.toml")).unwrap();
    assert!(
        !text.contains(&base64(&key_pair(3).0)),
        "no key stands in the mesh file"
    );
    let before = config::load(&directory.path().join("mesh.toml")).unwrap();
    let after = config::load(&new.join("mesh.toml")).unwrap();
    assert_eq!(after.networks, before.networks);
    for name in ["nas", "phone"] {
        let (a, b) = (&before.peers[name], &after.peers[name]);
        assert_eq!(
            (a.public_key, &a.addresses, &a.routes, &a.endpoint),
            (b.public_key, &b.addresses, &b.routes, &b.endpoint)
        );
    }
    let node = config::resolve_node(&after, None).unwrap();
    assert_eq!(
        (node.name.as_str(), node.interface.as_str(), node.mtu),
        ("phone", "wg0", 1380)
    );
    assert!(
        node.peers[0].preshared_key
            == config::peers_of(&before, "phone", &config::Local::default()).unwrap()[1]
                .preshared_key
    );
    // And once more around.
    done(
        &new,
        &[
            "export",
            "phone",
            "--private-key-file",
            "phone.key",
            "--output",
            "wg0.conf",
        ],
    );
    let (first, second) = (
        fs::read_to_string(directory.path().join("wg0.conf")).unwrap(),
        fs::read_to_string(new.join("wg0.conf")).unwrap(),
    );
    assert_eq!(second, first.split("\n# laptop").next().unwrap());
}

#[test]
fn an_imported_node_keeps_its_key_its_port_and_the_name_of_its_interface() {
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = 10.9.0.2/32\nListenPort = 51820\nFwMark = 0x77\nDNS = 10.9.0.1\nPostUp = true\n\n\
         # Office Router\n[Peer]\nPublicKey = {}\nAllowedIPs = 0.0.0.0/0, 10.9.0.0/16, 192.168.7.0/24\nEndpoint = 192.0.2.1:51820\n\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = 10.9.3.1/32\n",
        base64(&key_pair(1).0),
        key_pair(2).1,
        key_pair(3).1
    );
    write(&directory.path().join("wg7.conf"), &text, 0o600);
    let error = refused(directory.path(), &["import", "wg7.conf", "--name", "me"]);
    assert!(error.contains("--peer-address office-router="), "{error}");
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        1,
        "nothing is made"
    );
    let args = [
        "import",
        "wg7.conf",
        "--name",
        "me",
        "--peer-address",
        "office-router=10.9.0.1",
    ];
    let error = refused(directory.path(), &args);
    for lost in ["DNS (line 6)", "PostUp (line 7)", "IPv6 (line 12)"] {
        assert!(error.contains(lost), "{error}");
    }
    assert!(error.contains("--leave-out DNS,IPv6,PostUp"), "{error}");
    let args = [&args[..], &["--leave-out", "DNS,IPv6,PostUp"]].concat();
    let dry = natpunch(directory.path(), &[&args[..], &["--dry-run"]].concat());
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        1,
        "nothing is made"
    );
    let said = done(directory.path(), &args);
    for lost in ["DNS", "PostUp", "IPv6"] {
        assert!(said.contains(&format!("left out: {lost}")), "{said}");
    }
    assert_eq!(
        fs::read(directory.path().join("mesh.toml")).unwrap(),
        dry.stdout
    );
    let mesh = config::load(&directory.path().join("mesh.toml")).unwrap();
    assert_eq!(
        mesh.networks,
        ["10.9.0.0/22".parse().unwrap()],
        "the smallest around all"
    );
    let node = config::resolve_node(&mesh, None).unwrap();
    assert_eq!(
        (node.listen_port, node.fwmark, node.interface.as_str()),
        (51820, 0x77, "wg7")
    );
    let exit = node
        .exit_node
        .as_ref()
        .expect("the default route leads to an exit node");
    assert_eq!(
        (exit.peer.as_str(), exit.ipv4, exit.ipv6),
        ("office-router", true, false)
    );
    assert_eq!(node.private_key.expose(), key_pair(1).0.expose());
    let names: Vec<&str> = node.peers.iter().map(|peer| peer.name.as_str()).collect();
    assert_eq!(names, ["office-router", "peer-2"]);
    assert_eq!(node.peers[0].routes, ["192.168.7.0/24".parse().unwrap()]);
    assert!(node.peers.iter().all(|peer| !peer.managed));
    assert!(refused(directory.path(), &args).contains("never overwritten"));
}

fn node(mesh: &str, directory: &Path, key: u8) -> NodeConfig {
    write(&directory.join("mesh.toml"), mesh, 0o644);
    let file = directory.join("own.key");
    write(&file, &base64(&key_pair(key).0), 0o600);
    config::resolve_node(
        &config::load(&directory.join("mesh.toml")).unwrap(),
        Some(&file),
    )
    .unwrap()
}

fn meshed(peers: &[u8], more: &str) -> String {
    let mut text = format!(
        "[mesh]\nname = 'm'\nnetworks = ['10.0.0.0/24']\npreshared_secret_file = 'mesh.secret'\n{more}\n"
    );
    for n in peers {
        text.push_str(&format!(
            "[peers.p{n}]\npublic_key = '{}'\naddresses = ['10.0.0.{n}']\n",
            key_pair(*n).1
        ));
    }
    text
}

fn psk(node: &NodeConfig, peer: u8) -> [u8; 32] {
    let peer = node
        .peers
        .iter()
        .find(|other| other.name == format!("p{peer}"))
        .unwrap();
    *peer.preshared_key.as_ref().unwrap().expose()
}

#[test]
fn each_pair_has_its_own_key_from_the_secret_and_a_new_peer_changes_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    write(
        &directory.join("mesh.secret"),
        &base64(&SecretKey::from_bytes([7; 32])),
        0o600,
    );
    let two = meshed(&[1, 2], "");
    let ours = psk(&node(&two, directory, 1), 2);
    // From a second implementation: hashlib.blake2s(label + keys, key=secret) of Python.
    let expected = Command::new("python3")
        .args(["-c", "import sys,hashlib,base64 as b\na,c=sorted(b.b64decode(k) for k in sys.argv[1:])\nprint(hashlib.blake2s(b'natpunch preshared key of a pair, v1'+a+c,key=b'\\x07'*32).hexdigest())"])
        .args([key_pair(1).1.to_string(), key_pair(2).1.to_string()])
        .output();
    if let Ok(output) = expected {
        let hex: String = ours.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), hex);
    }
    assert_eq!(
        psk(&node(&two, directory, 2), 1),
        ours,
        "both sides have the same"
    );
    let three = node(&meshed(&[1, 2, 3], ""), directory, 1);
    assert_eq!(psk(&three, 2), ours, "a third peer changes nothing");
    assert_ne!(psk(&three, 3), ours, "another pair has another");
    let renamed = two
        .replace("'m'", "'other'")
        .replace("10.0.0.2'", "10.0.0.9'");
    assert_eq!(
        psk(&node(&renamed, directory, 1), 2),
        ours,
        "names and addresses take no part"
    );
    write(
        &directory.join("mesh.secret"),
        &base64(&SecretKey::from_bytes([8; 32])),
        0o600,
    );
    assert_ne!(
        psk(&node(&two, directory, 1), 2),
        ours,
        "another secret, other keys"
    );
    // What a section says wins.
    write(
        &directory.join("pair.psk"),
        &base64(&SecretKey::from_bytes([5; 32])),
        0o600,
    );
    let section = "preshared = [{ peers = ['p1', 'p2'], preshared_key_file = 'pair.psk' }]\n";
    let explicit = node(
        &format!("{section}{}", meshed(&[1, 2, 3], "")),
        directory,
        1,
    );
    assert_eq!(psk(&explicit, 2), [5; 32]);
    assert_eq!(
        psk(&explicit, 3),
        psk(&node(&meshed(&[1, 2, 3], ""), directory, 1), 3),
        "only for its pair"
    );
}

#[test]
fn a_secret_that_others_can_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    write(
        &directory.path().join("mesh.toml"),
        &meshed(&[1, 2], ""),
        0o644,
    );
    write(
        &directory.path().join("mesh.secret"),
        &base64(&SecretKey::from_bytes([7; 32])),
        0o640,
    );
    let error = refused(directory.path(), &["export", "p1"]);
    assert!(
        error.contains("can be read by others") && error.contains("preshared_secret_file"),
        "{error}"
    );
}

#[test]
fn a_credential_of_systemd_is_a_key_file() {
    let directory = tempfile::tempdir().unwrap();
    let text = meshed(
        &[1, 2],
        "[interface]\nprivate_key_file = 'credential:home.key'\n",
    )
    .replace("'mesh.secret'", "'credential:mesh'");
    write(&directory.path().join("mesh.toml"), &text, 0o644);
    let credentials = directory.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    // As systemd shows a file that an access list opens to the service's user.
    write(
        &credentials.join("home.key"),
        &base64(&key_pair(1).0),
        0o440,
    );
    write(
        &credentials.join("mesh"),
        &base64(&SecretKey::from_bytes([7; 32])),
        0o440,
    );
    let plan = |credentials: Option<&Path>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_natpunch"));
        command
            .args(["export", "p1"])
            .current_dir(directory.path())
            .env_remove("CREDENTIALS_DIRECTORY");
        if let Some(path) = credentials {
            command.env("CREDENTIALS_DIRECTORY", path);
        }
        let output = command.output().unwrap();
        (
            output.status.success(),
            String::from_utf8([output.stdout, output.stderr].concat()).unwrap(),
        )
    };
    let (good, text) = plan(Some(&credentials));
    assert!(good, "{text}");
    let (good, text) = plan(None);
    assert!(!good && text.contains("LoadCredential=mesh:"), "{text}");
    // A mesh is checked where there are no credentials.
    done(directory.path(), &["check", "mesh.toml"]);
    for wrong in ["credential:", "credential:../x", "credential:.."] {
        let text = meshed(
            &[1],
            &format!("[interface]\nprivate_key_file = '{wrong}'\n"),
        );
        write(&directory.path().join("mesh.toml"), &text, 0o644);
        assert!(
            refused(directory.path(), &["check", "mesh.toml"])
                .contains("not the name of a credential"),
            "{wrong}"
        );
    }
}

#[test]
fn a_picture_of_the_mesh_is_the_same_every_time_and_has_every_peer() {
    for example in ["home.toml", "split"] {
        let path = root().join("examples/configs").join(example);
        let path = path.to_str().unwrap();
        let mesh = config::load(Path::new(path)).unwrap();
        for (format, solid) in [("svg", " d=\"M"), ("mermaid", " --- ")] {
            let draw = || done(&root(), &["graph", path, "--format", format]);
            let text = draw();
            assert_eq!(text, draw());
            for (name, peer) in &mesh.peers {
                assert!(text.contains(name.as_str()), "{name}");
                assert!(
                    peer.addresses
                        .iter()
                        .all(|address| text.contains(&address.to_string())),
                    "{name}"
                );
                assert!(
                    peer.routes
                        .iter()
                        .all(|route| text.contains(&route.to_string())),
                    "{name}"
                );
            }
            assert!(text.contains(solid));
        }
    }
    // The nas reaches both by its endpoint; laptop and phone have no way to each other.
    let text = done(
        &root(),
        &["graph", "examples/configs/home.toml", "--format", "mermaid"],
    );
    assert_eq!(
        text.matches(" --- ").count() + text.matches(" -.- ").count(),
        2,
        "{text}"
    );
}

/// A device process, ended with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_running_interface_is_imported_as_it_is() {
    use natpunch_wg::{Device as _, DeviceChange, PeerChange, PeerSpec, UapiDevice};
    let directory = tempfile::tempdir().unwrap();
    let name = "npimport0";
    write(
        &directory.path().join("wg.key"),
        &base64(&key_pair(1).0),
        0o600,
    );
    write(
        &directory.path().join("other.key"),
        &base64(&key_pair(2).0),
        0o600,
    );
    // Children are in the network namespace of the thread that starts them.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
    let mut device = Command::new(env!("CARGO_BIN_EXE_natpunch"));
    device
        .args(["device", name, "--socket"])
        .arg(directory.path().join("control.sock"))
        .env("NATPUNCH_LOG", "error");
    let _device = Ended(device.spawn().unwrap());
    let mut uapi = UapiDevice::external(name);
    let started = std::time::Instant::now();
    while uapi.get().is_err() {
        assert!(
            started.elapsed().as_secs() < 30,
            "the device does not answer"
        );
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let peer = PeerSpec {
        key: key_pair(3).1,
        preshared_key: Some(natpunch_types::PresharedKey::from_bytes([9; 32])),
        allowed_ips: vec![
            "10.55.0.3/32".parse().unwrap(),
            "192.168.9.0/24".parse().unwrap(),
        ],
        persistent_keepalive: Some(std::time::Duration::from_secs(20)),
        adapts_keepalive: false,
        route_mtu: natpunch_wg::RouteMtu::AsIs,
        endpoint: Some("192.0.2.3:51820".parse().unwrap()),
        rests: false,
    };
    let change = DeviceChange {
        private_key: Some(key_pair(1).0),
        listen_port: Some(51_855),
        peers: vec![PeerChange::add(&peer)],
        ..DeviceChange::default()
    };
    uapi.configure(&change).unwrap();
    for args in [
        &["addr", "add", "10.55.0.1/24", "dev", name][..],
        &["link", "set", name, "mtu", "1370", "up"],
    ] {
        assert!(Command::new("ip").args(args).status().unwrap().success());
    }
    let before = uapi.get().unwrap();
    let error = refused(
        directory.path(),
        &[
            "import",
            "--interface",
            name,
            "--private-key-file",
            "other.key",
        ],
    );
    assert!(
        error.contains("does not hold the key of npimport0"),
        "{error}"
    );
    done(
        directory.path(),
        &[
            "import",
            "--interface",
            name,
            "--private-key-file",
            "wg.key",
            "--name",
            "me",
        ],
    );
    assert_eq!(uapi.get().unwrap(), before, "nothing on it is changed");
    let mesh = config::load(&directory.path().join("mesh.toml")).unwrap();
    let node = config::resolve_node(&mesh, None).unwrap();
    assert_eq!(
        (node.interface.as_str(), node.listen_port, node.mtu),
        (name, 51_855, 1370)
    );
    assert_eq!(node.addresses, ["10.55.0.1/24".parse().unwrap()]);
    let imported = &node.peers[0];
    assert_eq!(
        (imported.key, &imported.preshared_key),
        (peer.key, &peer.preshared_key)
    );
    assert_eq!(imported.allowed_ips, peer.allowed_ips);
    assert_eq!(imported.persistent_keepalive, peer.persistent_keepalive);
    assert_eq!(imported.endpoint.as_deref(), Some("192.0.2.3:51820"));
}
