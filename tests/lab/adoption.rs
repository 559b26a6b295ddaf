//! A running interface of wg-quick becomes a node of a mesh, and nobody notices.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use natpunch_lab::{Host, Process, lab_test};

use crate::world::{NATPUNCH, WgPeer, new_key, soon, wg_peers};

/// Two hosts with wg-quick, and a third peer that is nowhere.
struct Plain {
    host: Host,
    directory: PathBuf,
    key_file: PathBuf,
    public_key: String,
}

impl Plain {
    fn new(host: Host) -> Self {
        let directory = host.directory().unwrap();
        let (key_file, public_key) = new_key(&host);
        Self {
            host,
            directory,
            key_file,
            public_key,
        }
    }

    /// What people have: a file, and `wg-quick up`.
    fn up(&self, address: &str, peers: &[(&str, &str, Option<String>)]) {
        let key = std::fs::read_to_string(&self.key_file).unwrap();
        let mut text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = {address}\nListenPort = 51820\n",
            key.trim()
        );
        for (key, allowed, endpoint) in peers {
            text.push_str(&format!(
                "\n[Peer]\nPublicKey = {key}\nAllowedIPs = {allowed}\n"
            ));
            if let Some(endpoint) = endpoint {
                text.push_str(&format!(
                    "Endpoint = {endpoint}:51820\nPersistentKeepalive = 25\n"
                ));
            }
        }
        let file = self.directory.join("wg7.conf");
        let open = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&file);
        std::io::Write::write_all(&mut open.unwrap(), text.as_bytes()).unwrap();
        let mut command = Command::new("wg-quick");
        command
            .arg("up")
            .arg(&file)
            .env("LOG_LEVEL", "silent")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command.stderr(Stdio::null());
        assert!(
            self.host
                .run(move || command.status())
                .unwrap()
                .unwrap()
                .success(),
            "wg-quick up"
        );
    }

    fn natpunch(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(NATPUNCH);
        command
            .args(arguments)
            .current_dir(&self.directory)
            .env("NATPUNCH_STATE_DIR", self.directory.join("state"));
        let output = self
            .host
            .run(move || command.stdin(Stdio::null()).output())
            .unwrap()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    }

    fn apply(&self, arguments: &[&str]) -> Process {
        let mut command = Command::new(NATPUNCH);
        command
            .args(["apply", "mesh.toml"])
            .args(arguments)
            .current_dir(&self.directory);
        command.env("NATPUNCH_STATE_DIR", self.directory.join("state"));
        self.host.spawn(command).unwrap()
    }

    fn wait_connected(&self) {
        let deadline = soon();
        loop {
            let (_, status, error) = self.natpunch(&["status", "--json"]);
            if status.contains("\"connected\"") {
                return;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "not connected: {status} {error}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn peer(&self, key: &str) -> WgPeer {
        wg_peers(&self.host, "wg7")
            .into_iter()
            .find(|peer| peer.public_key == key)
            .unwrap()
    }

    fn is_kernel(&self) -> bool {
        let output = self
            .host
            .output("ip", &["-d", "link", "show", "wg7"])
            .unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("wireguard")
    }
}

fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

lab_test!(
    a_running_interface_of_wg_quick_is_taken_over_without_a_lost_packet,
    90,
    |lab| {
        let mut lab = lab;
        let [a, hub, ghost] =
            ["a", "hub", "ghost"].map(|name| Plain::new(lab.public_host(name).unwrap()));
        let at = |plain: &Plain| Some(plain.host.ipv4().unwrap().to_string());
        a.up(
            "10.9.0.1/24",
            &[
                (&hub.public_key, "10.9.0.2/32, 192.168.44.0/24", at(&hub)),
                (&ghost.public_key, "10.9.0.3/32", None),
            ],
        );
        hub.up("10.9.0.2/24", &[(&a.public_key, "10.9.0.1/32", at(&a))]);
        let address = "10.9.0.2".parse().unwrap();
        let ping = natpunch_lab::Ping::start(&a.host, address, Duration::from_millis(20)).unwrap();
        assert!(
            ping.first(soon()).is_some(),
            "plain WireGuard does not work"
        );
        let before = a.peer(&hub.public_key);

        let key = a.key_file.to_str().unwrap();
        let (code, _, error) = a.natpunch(&[
            "import",
            "--interface",
            "wg7",
            "--private-key-file",
            key,
            "--name",
            "a",
        ]);
        assert_eq!(code, Some(0), "{error}");
        let text = std::fs::read_to_string(a.directory.join("mesh.toml")).unwrap();
        let (before_key, _) = text.split_once(&ghost.public_key).unwrap();
        let name = before_key
            .rsplit_once("[peers.")
            .unwrap()
            .1
            .split(']')
            .next()
            .unwrap();
        let (code, _, error) = a.natpunch(&["remove-peer", name]);
        assert_eq!(code, Some(0), "{error}");
        let kernel = a.is_kernel();
        if kernel {
            let (code, _, error) = a.natpunch(&["plan", "mesh.toml"]);
            assert_eq!(code, Some(1));
            assert!(error.contains("--adopt"), "{error}");
        }
        let (code, plan, error) = a.natpunch(&["plan", "mesh.toml", "--adopt"]);
        assert_eq!(code, Some(2), "{plan}{error}");
        println!("{plan}");
        assert!(
            !plan.contains("interruption") && !plan.contains("re-handshake"),
            "{plan}"
        );
        assert!(
            plan.contains("taken over") && plan.contains(&ghost.public_key),
            "{plan}"
        );

        let agent = a.apply(&["--adopt"]);
        a.wait_connected();
        let (code, plan, _) = a.natpunch(&["plan", "mesh.toml", "--adopt"]);
        assert_eq!(code, Some(0), "{plan}");
        let after = a.peer(&hub.public_key);
        assert_eq!(
            after.latest_handshake, before.latest_handshake,
            "the session goes on"
        );
        assert!(
            after.received >= before.received && after.sent >= before.sent,
            "counters go on"
        );
        a.peer(&ghost.public_key);

        // Killed and started again, without the word: it is ours now.
        agent.kill().unwrap();
        let agent = a.apply(&[]);
        a.wait_connected();
        let so_far = ping.so_far().answers.len();
        assert!(ping.wait_for(so_far + 50, soon()), "no more answers");
        let pings = ping.stop();
        println!(
            "measured: {} pings lost of {} while an interface was taken over",
            pings.lost(),
            pings.answers.len()
        );
        assert_eq!(pings.lost(), 0, "of {}", pings.answers.len());
        assert_eq!(
            a.peer(&hub.public_key).latest_handshake,
            before.latest_handshake
        );

        let (code, down, error) = a.natpunch(&["down"]);
        assert_eq!(code, Some(0), "{error}");
        assert_eq!(down.contains("removed the interface"), kernel, "{down}");
        drop(agent);
        for plain in [&a, &hub] {
            remove(&plain.directory.join("wg7.conf"));
        }
    }
);
