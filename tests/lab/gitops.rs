//! A mesh that is changed by commits alone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use natpunch_lab::{Lab, Nat, Ping, Router, lab_test};

use crate::world::{Discovery, Node, World, soon};

const INTERVAL: Duration = Duration::from_millis(50);

/// The repository of the mesh, and who may sign in it.
struct Repository {
    directory: PathBuf,
}

impl Repository {
    fn new(directory: PathBuf) -> Self {
        std::fs::create_dir(&directory).unwrap();
        let repository = Self { directory };
        repository.run(&["git", "init", "-q", "--bare", "-b", "main", "mesh.git"]);
        repository.run(&["git", "clone", "-q", "mesh.git", "work"]);
        repository.run(&[
            "ssh-keygen",
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-f",
            "signer",
        ]);
        let key = std::fs::read_to_string(repository.directory.join("signer.pub")).unwrap();
        let trust = format!("[trust]\nsigners = [\"{}\"]\n", key.trim());
        std::fs::write(repository.directory.join("trust.toml"), trust).unwrap();
        repository
    }

    fn run(&self, command: &[&str]) -> String {
        let output = Command::new(command[0])
            .args(&command[1..])
            .current_dir(&self.directory)
            .envs([
                ("GIT_CONFIG_NOSYSTEM", "1"),
                ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ])
            .envs([
                ("GIT_AUTHOR_NAME", "a"),
                ("GIT_AUTHOR_EMAIL", "a@example.org"),
            ])
            .envs([
                ("GIT_COMMITTER_NAME", "a"),
                ("GIT_COMMITTER_EMAIL", "a@example.org"),
            ])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn git(&self, arguments: &[&str]) -> String {
        self.run(&[&["git", "-C", "work"], arguments].concat())
    }

    /// Commits and pushes; the commit's name.
    fn publish(&self, file: &str, text: &str, signed: bool, message: &str) -> String {
        std::fs::write(self.directory.join("work").join(file), text).unwrap();
        self.git(&["add", "-A"]);
        let key = format!(
            "user.signingKey={}",
            self.directory.join("signer").display()
        );
        let sign = if signed { "-S" } else { "--no-gpg-sign" };
        self.git(&[
            "-c",
            "gpg.format=ssh",
            "-c",
            &key,
            "commit",
            "-q",
            sign,
            "-m",
            message,
        ]);
        self.git(&["push", "-q", "--force", "origin", "HEAD:main"]);
        self.git(&["rev-parse", "HEAD"])
    }

    fn url(&self) -> PathBuf {
        format!(
            "git+file://{}/mesh.git#main:mesh.toml",
            self.directory.display()
        )
        .into()
    }

    fn trust(&self) -> &Path {
        &self.directory
    }
}

/// What every node does with a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Runs it.
    Applied,
    /// Says why not, and goes on with the version before: the mesh is not valid.
    Invalid,
    /// The same: the commit may not be used.
    Refused,
}

/// Nodes that follow a repository, and pings from the first to each other one.
struct Play {
    world: World,
    repository: Repository,
    nodes: Vec<Node>,
    _routers: Vec<Router>,
    pings: Vec<Ping>,
    generation: u32,
    running: String,
}

impl Play {
    fn start(lab: Lab, behind_nats: &[&str], public: &[&str]) -> Self {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let repository = Repository::new(world.lab.directory().join("repository"));
        let (mut nodes, mut routers) = (Vec::new(), Vec::new());
        for name in behind_nats {
            let (node, router) = world.node_behind(Nat::PortPreserving, name);
            nodes.push(node);
            routers.push(router);
        }
        for name in public {
            let host = world.lab.public_host(name).unwrap();
            nodes.push(world.node(host));
        }
        let mut play = Self {
            world,
            repository,
            nodes,
            _routers: routers,
            pings: Vec::new(),
            generation: 0,
            running: String::new(),
        };
        let text = play.text();
        play.running = play
            .repository
            .publish("mesh.toml", &text, true, "the mesh");
        for node in &mut play.nodes {
            node.file = play.repository.url();
            let trust = play
                .repository
                .trust()
                .join("trust.toml")
                .display()
                .to_string();
            node.arguments = ["--poll", "1s", "--trust", &trust]
                .map(str::to_owned)
                .into();
            node.start();
        }
        let (first, others) = play.nodes.split_first().unwrap();
        for node in others {
            first.wait_connected(node.name());
        }
        play.pings = others
            .iter()
            .map(|node| first.ping(node.address, INTERVAL))
            .collect();
        for ping in &play.pings {
            assert!(ping.wait_for(5, soon()));
        }
        play
    }

    /// The mesh file of the next generation.
    fn text(&mut self) -> String {
        self.generation += 1;
        self.world.mesh.text().replacen(
            "[mesh]\n",
            &format!("[mesh]\ngeneration = {}\n", self.generation),
            1,
        )
    }

    fn change(&mut self, peer: &str, more: &str, message: &str) {
        self.world.mesh.member(peer).more = more.to_owned();
        let text = self.text();
        self.commit("mesh.toml", &text, Expected::Applied, message);
    }

    /// Publishes, and waits until every node did with it what it should.
    fn commit(&mut self, file: &str, text: &str, expected: Expected, message: &str) {
        let signed = expected != Expected::Refused;
        let commit = self.repository.publish(file, text, signed, message);
        let pushed = Instant::now();
        let mut record = Vec::new();
        for node in &self.nodes {
            let what = format!("`{message}` ({expected:?})");
            let said = node.wait(&what, soon(), |status| {
                let source = &status["source"];
                let (is_new, is_old) = (
                    source["revision"] == *commit,
                    source["revision"] == *self.running,
                );
                match expected {
                    Expected::Applied => {
                        (is_new && status["reload_error"].is_null()).then(String::new)
                    }
                    Expected::Invalid => {
                        let error = status["reload_error"].as_str()?;
                        (is_old && source["newest"] == *commit)
                            .then(|| error.lines().next().unwrap_or("").to_owned())
                    }
                    Expected::Refused => {
                        let error = source["problem_text"].as_str()?;
                        (is_old && error.contains(&commit[..12])).then(|| error.to_owned())
                    }
                }
            });
            record.push(format!(
                "{} {:.1} s",
                node.name(),
                pushed.elapsed().as_secs_f64()
            ));
            if !said.is_empty() && record.len() == 1 {
                println!("gitops: {} says: {said}", node.name());
            }
        }
        println!(
            "gitops: | {message} | {expected:?} | {} |",
            record.join(", ")
        );
        match expected {
            Expected::Applied => self.running = commit,
            // What is refused has to leave the branch; an invalid mesh is mended by the next
            // commit.
            Expected::Refused => _ = self.repository.git(&["reset", "-q", "--hard", "HEAD~1"]),
            Expected::Invalid => {}
        }
    }

    /// No node lost a packet in all this.
    fn end(self) {
        for (ping, node) in self.pings.into_iter().zip(&self.nodes[1..]) {
            let pings = ping.stop();
            assert_eq!(pings.lost(), 0, "to {}", node.name());
            println!("gitops: no packet lost to {}", node.name());
        }
    }

    /// What `natpunch reload` on the first node does: its exit code and what it says.
    fn reload(&self) -> (bool, String) {
        let output = self.nodes[0].natpunch(&["reload"]);
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }
}

lab_test!(
    a_mesh_follows_its_repository_and_nothing_that_it_may_not,
    90,
    |lab| {
        let mut play = Play::start(lab, &["a", "b"], &[]);
        play.change("b", "routes = [\"172.20.1.0/24\"]\n", "a route of b");
        assert!(
            play.nodes[0]
                .wg_peer(&play.nodes[1])
                .allowed_ips
                .contains("172.20.1.0/24")
        );
        let text = play.text();
        play.commit(
            "mesh.toml",
            &text.replace("172.20.1", "172.20.2"),
            Expected::Refused,
            "an unsigned route",
        );
        let (ok, said) = play.reload();
        assert!(!ok && said.contains("is not signed"), "{said}");
        assert!(
            play.nodes[0]
                .wg_peer(&play.nodes[1])
                .allowed_ips
                .contains("172.20.1.0/24")
        );
        // The repository is gone, and so is the agent: the node comes back with what it had.
        play.nodes[0].kill();
        let (there, gone) = (
            play.repository.directory.join("mesh.git"),
            play.repository.directory.join("gone"),
        );
        std::fs::rename(&there, &gone).unwrap();
        play.nodes[0].start();
        play.nodes[0].wait("the last good version", soon(), |status| {
            let source = &status["source"];
            (source["revision"] == *play.running && source["problem"] == "unreachable")
                .then_some(())
        });
        std::fs::rename(&gone, &there).unwrap();
        play.change("b", "", "no route of b");
        assert!(play.reload().0);
        assert!(
            !play.nodes[0]
                .wg_peer(&play.nodes[1])
                .allowed_ips
                .contains("172.20.1.0/24")
        );
        play.end();
    }
);

lab_test!(
    #[ignore = "a record: cargo test --test lab -- --ignored --nocapture ten_commits"]
    five_nodes_are_driven_by_ten_commits_two_of_them_bad,
    300,
    |lab| {
        let mut play = Play::start(lab, &["a", "b"], &["c", "d", "e"]);
        play.change("c", "routes = [\"172.20.1.0/24\"]\n", "1 a route behind c");
        play.change(
            "d",
            "tags = [\"db\"]\nroutes = [\"172.20.2.0/24\"]\n",
            "2 a tag and a route of d",
        );
        let broken = play.text().replace("10.77.0.5", "10.77.0.4");
        play.commit(
            "mesh.toml",
            &broken,
            Expected::Invalid,
            "3 BAD: two nodes with one address",
        );
        play.change("c", "", "4 mended; c has no route");
        play.commit(
            "README.md",
            "Ask before you merge.\n",
            Expected::Applied,
            "5 only the README",
        );
        let unsigned = play.text();
        play.commit(
            "mesh.toml",
            &unsigned,
            Expected::Refused,
            "6 BAD: not signed",
        );
        let phone = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        play.world.mesh.add("phone", phone, "managed = false\n");
        let text = play.text();
        play.commit(
            "mesh.toml",
            &text,
            Expected::Applied,
            "7 the branch put back; a phone joins",
        );
        play.change("e", "persistent_keepalive = 20\n", "8 keepalives to e");
        play.world
            .mesh
            .members
            .retain(|member| member.name != "phone");
        let text = play.text();
        play.commit("mesh.toml", &text, Expected::Applied, "9 the phone leaves");
        play.change("b", "routes = [\"172.20.3.0/24\"]\n", "10 a route behind b");
        let (first, others) = play.nodes.split_first().unwrap();
        assert_eq!(first.wg().len(), others.len());
        play.end();
    }
);
