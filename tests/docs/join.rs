//! docs/how-to/join.md: nodes join a mesh that is on a git server, each by one line.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use natpunch::invite::{self, Invite};
use natpunch_lab::{Host, Lab, Nat, Process, Router, lab_test};

use crate::blocks::Block;
use crate::git_server::Server;
use crate::typed::{Typist, eventually};

/// A host that has a bare repository, and gives it out by HTTP.
struct Forge {
    directory: PathBuf,
    /// As `git clone` takes it.
    url: String,
}

impl Forge {
    fn at(host: &Host) -> Self {
        let directory = host.directory().unwrap().join("forge");
        fs::create_dir(&directory).unwrap();
        let made = Command::new("git")
            .args(["init", "-q", "--bare", "-b", "main", "mesh.git"])
            .current_dir(&directory)
            .status();
        assert!(made.unwrap().success());
        let repositories = directory.clone();
        let (tell, told) = std::sync::mpsc::channel();
        // A thread that begins there stays in the host's network.
        host.run(move || {
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                runtime.block_on(async {
                    let server = Server::start_at("0.0.0.0:8000", repositories).await;
                    tell.send(()).unwrap();
                    std::future::pending::<()>().await;
                    server.stop().await;
                });
            });
        })
        .unwrap();
        told.recv().unwrap();
        let url = format!("http://{}:8000/mesh.git", host.ipv4().unwrap());
        Self { directory, url }
    }
}

/// The person who keeps the mesh, at a node of it, in a clone.
struct Keeper {
    typist: Typist,
}

impl Keeper {
    fn publish(&self, message: &str) {
        let commit = "git add -A && git commit -q -S -m";
        self.typist.types(&format!(
            "cd mesh && {commit} '{message}' && git push -q origin HEAD:main"
        ));
    }

    fn types(&self, text: &str) -> String {
        self.typist.types(&format!("cd mesh && {text}"))
    }
}

/// A mesh of one node at a server, in a repository whose commits are signed.
fn mesh(lab: &mut Lab) -> (Keeper, Vec<Process>) {
    let typist = Typist::at(lab.public_host("a").unwrap());
    let forge = Forge::at(&typist.host);
    let address = typist.host.ipv4().unwrap();
    let mut processes = vec![typist.leaves(
        "natpunch keygen > admission.key; chmod 600 admission.key
         exec natpunch serve --listen 0.0.0.0:51900 --key-file server.key --admission-secret-file admission.key",
        "serve.log",
    )];
    let server_key = typist.reads("serve.log", "public key: ");
    let key = typist.types(
        "install -d -m 700 /etc/natpunch; cp -p admission.key /etc/natpunch/admission.key
         (umask 077; natpunch keygen > /etc/natpunch/home.key); natpunch pubkey < /etc/natpunch/home.key",
    );
    typist.types(&format!(
        "ssh-keygen -q -t ed25519 -N '' -f signer
         printf '[trust]\\nsigners = [\"%s\"]\\nplain_http = true\\n' \"$(cat signer.pub)\" > /etc/natpunch/trust.toml
         git clone -q {forge} mesh
         cd mesh
         git remote set-url --push origin {bare}
         git config gpg.format ssh
         git config user.signingKey ../signer",
        forge = forge.url,
        bare = forge.directory.join("mesh.git").display(),
    ));
    let file = format!(
        "[mesh]\nname = \"home\"\nnetworks = [\"10.77.0.0/24\"]\n\n\
         [interface]\nprivate_key_file = \"/etc/natpunch/home.key\"\n\n\
         [discovery.rv]\nplugin = \"rendezvous\"\nserver = \"{address}:51900\"\npublic_key = \"{server_key}\"\n\
         admission_secret_file = \"/etc/natpunch/admission.key\"\n\n\
         [peers.a]\npublic_key = \"{}\"\naddresses = [\"10.77.0.1\"]\n",
        key.trim()
    );
    fs::write(typist.file("mesh/mesh.toml"), file).unwrap();
    let keeper = Keeper { typist };
    keeper.publish("the mesh");
    let source = format!("git+{}#main:mesh.toml", forge.url);
    let agent = format!("exec natpunch apply {source} --poll 1s");
    processes.push(keeper.typist.leaves(&agent, "apply.log"));
    (keeper, processes)
}

/// A machine behind a NAT that has never heard of the mesh.
fn new_machine(lab: &mut Lab, name: &str) -> (Typist, Router) {
    let nat = lab.router(&format!("nat-{name}"), Nat::PortPreserving);
    let nat = nat.unwrap();
    (Typist::at(lab.host_behind(&nat, name).unwrap()), nat)
}

/// The document's command with this line, and no service: no systemd runs in the lab.
fn join(line: &str) -> String {
    let text = Block::named("docs/how-to/join.md", "join").text;
    text.trim()
        .replace("join LINE", &format!("join --no-service {line}"))
}

/// What the command that fails says. It must leave nothing behind.
fn refused(machine: &Typist, command: &str) -> String {
    let said = machine.types(&format!("! {{ {command}; }} 2>&1"));
    let left = machine.types("ls -A /etc/natpunch 2>/dev/null || true");
    assert_eq!(left, "", "{said}");
    said
}

fn pings(machine: &Typist, address: &str) {
    eventually("answer through the tunnel", || {
        let answer = machine.types(&format!("ping -n -c1 -W1 {address} 2>&1 || true"));
        match answer.contains(" 1 received") {
            true => Ok(()),
            false => Err(answer),
        }
    });
}

lab_test!(
    a_machine_joins_a_mesh_of_a_git_server_by_one_line,
    180,
    |lab| {
        let (keeper, _processes) = mesh(&mut lab);

        // A machine that makes its own key waits until the mesh has it.
        let invite = Block::named("docs/how-to/join.md", "invite").text;
        let line = keeper.types(&invite).trim().to_owned();
        let (laptop, _nat) = new_machine(&mut lab, "laptop");
        let plan = laptop.types(&join(&format!("--dry-run {line}")));
        assert!(plan.contains("becomes laptop of the mesh home"), "{plan}");
        for file in ["home.key", "admission.key", "trust.toml"] {
            assert!(plan.contains(&format!("+ /etc/natpunch/{file}")), "{plan}");
        }
        assert_eq!(laptop.types("ls -A /etc/natpunch 2>/dev/null || true"), "");
        let _joining = laptop.leaves(&join(&line), "join.log");
        let add = laptop.reads("join.log", "  natpunch add-peer ");
        keeper.types(&format!("natpunch add-peer {add}"));
        keeper.publish("laptop joins");
        let run = laptop.reads("join.log", "run the agent: ");
        let _agent = laptop.leaves(&format!("exec {run} --poll 1s"), "apply.log");
        pings(&laptop, "10.77.0.1");
        let modes = laptop.types("stat -c '%a %n' /etc/natpunch/*.key");
        assert!(
            modes.lines().all(|line| line.starts_with("600 ")),
            "{modes}"
        );
        // The same line again changes nothing.
        let again = laptop.types(&join(&line));
        assert!(
            !again.contains(" + ") && again.contains("run the agent"),
            "{again}"
        );

        // Lines that are not, or not any more, for this machine.
        let (other, _other_nat) = new_machine(&mut lab, "other");
        let used = refused(&other, &join(&line));
        assert!(
            used.contains("this invite was used, or the name is somebody's"),
            "{used}"
        );
        let cut = refused(&other, &join(&line[..line.len() - 9]));
        assert!(
            cut.contains("the last 9 of its characters are missing"),
            "{cut}"
        );
        let mut altered = line.clone();
        let to = if altered.as_bytes()[60] == b'A' {
            "B"
        } else {
            "A"
        };
        altered.replace_range(60..61, to);
        assert!(refused(&other, &join(&altered)).contains("was altered"));
        let mut made = invite::decode(&keeper.types("natpunch invite other"), None).unwrap();
        let mut refuses = |why: &str, change: &dyn Fn(&mut Invite)| {
            let before = made.clone();
            change(&mut made);
            let line = invite::encode(&made, None).unwrap();
            let said = refused(&other, &join(&line));
            assert!(said.contains(why), "{said}");
            made = before;
        };
        refuses("has expired, ", &|invite| {
            (invite.made, invite.expires) = (1_000_000_000, 1_100_000_000);
        });
        refuses("is for the mesh `office`", &|invite| {
            invite.mesh = "office".to_owned()
        });
        refuses("where no invite may put any", &|invite| {
            let secret = invite.secrets.values().next().cloned().unwrap();
            invite
                .secrets
                .insert("/etc/natpunch/../shadow".into(), secret);
        });
        refuses("is not signed", &|invite| {
            let trust = invite.trust.as_mut().unwrap();
            let key = fs::read_to_string(keeper.typist.file("signer.pub")).unwrap();
            let stranger =
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB0JmGnV7FNxVmyz3VYHLMYZp8xd7Q8iBTNPwKRKC5Gv";
            *trust = trust.replace(key.trim(), stranger);
        });
        let taken = keeper.types("! natpunch invite laptop 2>&1");
        assert!(taken.contains("is a peer of the mesh already"), "{taken}");

        // A line with a key, sealed by a code: no waiting.
        let with_key = Block::named("docs/how-to/join.md", "with-key").text;
        let with_key = with_key.replacen("--with-key", "--with-key --code 2> code", 1);
        let with_key = with_key
            .replace("laptop", "other")
            .replace("commit -a", "commit -q -S -a");
        let with_key = with_key.replace("git push", "git push -q origin HEAD:main");
        let line = keeper.types(&with_key).trim().to_owned();
        let said = keeper.types("cat code");
        let code = said
            .strip_prefix("code: ")
            .unwrap()
            .split(' ')
            .next()
            .unwrap();
        let wrong = refused(
            &other,
            &format!("printf '%s\\nAAAAA-AAAAA\\n' {line} | {}", join("-")),
        );
        assert!(
            wrong.contains("the code does not open this invite"),
            "{wrong}"
        );
        // A file that is there and holds something else is not written over, and neither is another.
        other.types("install -d -m 700 /etc/natpunch; echo '[trust]' > /etc/natpunch/trust.toml");
        let input = format!("printf '%s\\n{code}\\n' {line}");
        let kept = other.types(&format!("! {{ {input} | {}; }} 2>&1", join("-")));
        assert!(
            kept.contains("is there already, and holds something else"),
            "{kept}"
        );
        assert_eq!(
            other.types("ls /etc/natpunch; rm /etc/natpunch/trust.toml"),
            "trust.toml\n"
        );
        let joined = other.types(&format!("{input} | {}", join("-")));
        let run = joined
            .lines()
            .find_map(|line| line.strip_prefix("run the agent: "));
        let _agent = other.leaves(&format!("exec {}", run.unwrap()), "apply.log");
        pings(&other, "10.77.0.1");
    }
);
