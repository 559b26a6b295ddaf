//! Repositories behind OpenSSH's own server: whom the agent lets in, and who lets the agent in.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use natpunch::source::Problem;
use natpunch_lab::{lab_test, sandbox};

use crate::blocks::{self, Block};
use crate::disks::run;
use crate::hostile;
use crate::support::{Agent, Repository, mesh, options};

const PORT: u16 = 2222;
const SSHD: &str = "/usr/sbin/sshd";

/// A user with a home of its own, as ssh sees it, and a server with a key, both in the sandbox of a
/// test.
pub(crate) struct Ssh {
    directory: PathBuf,
    server: Option<Child>,
}

fn key(file: &Path) {
    let mut command = Command::new("ssh-keygen");
    command
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(file);
    assert!(command.status().unwrap().success());
}

impl Ssh {
    /// Everything is as it should be: the server knows the user's key, the user knows the server's.
    pub(crate) fn start(directory: &Path) -> Self {
        let ssh = Self {
            directory: directory.join("ssh"),
            server: None,
        };
        let own = ssh.home().join(".ssh");
        fs::create_dir_all(&own).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o700)).unwrap();
        // ssh asks the list of users, not the environment, for the user's home.
        let passwd = format!(
            "root:x:0:0:root:{}:/bin/sh\ngit:x:0:0:git:/:/bin/sh\nsshd:x:104:65534::/run/sshd:/bin/false\n",
            ssh.home().display()
        );
        ssh.over("/etc/passwd", &passwd);
        ssh.over(
            "/etc/shadow",
            "root:*:19000:0:99999:7:::\ngit:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\n",
        );
        fs::create_dir_all("/run/sshd").unwrap();
        let loopback = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap();
        assert!(loopback.success(), "ip link set lo up");
        key(&own.join("id_ed25519"));
        for name in ["host", "other-host"] {
            key(&ssh.directory.join(name));
        }
        fs::copy(own.join("id_ed25519.pub"), ssh.directory.join("authorized")).unwrap();
        let mut ssh = ssh;
        ssh.trust_host("host");
        ssh.serve("host");
        ssh
    }

    fn home(&self) -> PathBuf {
        self.directory.join("home")
    }

    /// Puts a file over one of the system's, for this sandbox only.
    fn over(&self, file: &str, text: &str) {
        let own = self.directory.join(Path::new(file).file_name().unwrap());
        fs::write(&own, text).unwrap();
        let status = Command::new("mount")
            .arg("--bind")
            .arg(&own)
            .arg(file)
            .status()
            .unwrap();
        assert!(status.success(), "mount --bind over {file}");
    }

    /// The user knows this key of the server, and no other.
    fn trust_host(&self, key: &str) {
        let public = fs::read_to_string(self.directory.join(key).with_extension("pub")).unwrap();
        fs::write(
            self.home().join(".ssh/known_hosts"),
            format!("[127.0.0.1]:{PORT} {public}"),
        )
        .unwrap();
    }

    /// Starts the server, with this key.
    pub(crate) fn serve(&mut self, key: &str) {
        self.stop();
        let config = format!(
            "ListenAddress 127.0.0.1:{PORT}\nListenAddress 127.0.0.1:22\nHostKey {0}/{key}\nAuthorizedKeysFile {0}/authorized\nPidFile none\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             StrictModes no\nLogLevel ERROR\n",
            self.directory.display()
        );
        let file = self.directory.join("sshd_config");
        fs::write(&file, config).unwrap();
        assert!(
            Path::new(SSHD).exists(),
            "{SSHD} (package openssh-server) is needed"
        );
        let mut command = Command::new(SSHD);
        command
            .args(["-D", "-e", "-f"])
            .arg(&file)
            .stdin(Stdio::null());
        let mut server = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20) * sandbox::patience();
        while TcpStream::connect(("127.0.0.1", PORT)).is_err() {
            assert!(
                server.try_wait().unwrap().is_none(),
                "sshd ended: is this run as root?"
            );
            assert!(Instant::now() < deadline, "sshd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.server = Some(server);
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    pub(crate) fn url(&self, repository: &Repository) -> String {
        format!(
            "git+ssh://root@127.0.0.1:{PORT}{}/mesh.git#main:mesh.toml",
            repository.served().display()
        )
    }
}

lab_test!(
    a_repository_behind_sshd_is_followed_and_the_host_must_be_known,
    90,
    |lab| {
        run(async move {
            let mut ssh = Ssh::start(lab.directory());
            let (repository, state) = (Repository::new(), tempfile::tempdir().unwrap());
            repository.publish(&mesh(1), None);
            let location = ssh.url(&repository);
            let mut agent = Agent::start(options(&location, None, state.path()))
                .await
                .unwrap();
            assert_eq!(agent.text(), mesh(1));
            repository.publish(&mesh(2), None);
            agent.reload().await.unwrap();
            assert_eq!(agent.text(), mesh(2));

            // Somebody else answers.
            repository.publish(&mesh(3), None);
            ssh.serve("other-host");
            let error = agent.reload().await.unwrap_err();
            assert!(
                error.contains("host key")
                    && error.contains("changed")
                    && error.contains("ssh-keygen -R"),
                "{error}"
            );
            assert_eq!(
                (agent.text(), agent.status().problem),
                (mesh(2), Some(Problem::Unreachable))
            );
            // A key that nobody ever said anything about is not believed either, and not
            // remembered.
            let known = ssh.home().join(".ssh/known_hosts");
            for _ in 0..2 {
                fs::write(&known, "").unwrap();
                let error = agent.reload().await.unwrap_err();
                assert!(error.contains("never accepts an unknown one"), "{error}");
                assert_eq!(fs::read_to_string(&known).unwrap(), "");
            }
            ssh.trust_host("other-host");
            agent.reload().await.unwrap();
            assert_eq!(agent.text(), mesh(3));

            // The server does not know the user any more.
            repository.publish(&mesh(4), None);
            fs::write(ssh.directory.join("authorized"), "").unwrap();
            let error = agent.reload().await.unwrap_err();
            assert!(
                error.contains("Permission denied") && error.contains("deploy key"),
                "{error}"
            );
            fs::copy(
                ssh.home().join(".ssh/id_ed25519.pub"),
                ssh.directory.join("authorized"),
            )
            .unwrap();
            ssh.stop();
            let error = agent.reload().await.unwrap_err();
            assert!(error.contains("Connection refused"), "{error}");
            assert_eq!(agent.text(), mesh(3));
            ssh.serve("other-host");
            agent.reload().await.unwrap();
            assert_eq!(agent.text(), mesh(4));
        });
    }
);

/// Mounts a directory over another one, for this sandbox only.
fn bind(directory: &Path, over: &str) {
    let mut command = Command::new("mount");
    let status = command.arg("--bind").arg(directory).arg(over).status();
    assert!(status.unwrap().success(), "mount --bind over {over}");
}

lab_test!(
    the_example_of_gitops_fetches_from_sshd_with_the_key_that_the_docs_make,
    90,
    |lab| {
        run(async move {
            let ssh = Ssh::start(lab.directory());
            let (repository, state) = (Repository::new(), tempfile::tempdir().unwrap());
            repository.publish(&mesh(1), None);
            bind(&repository.served(), "/srv");
            // A copy of /etc in memory, which may be written to.
            let etc = ssh.directory.join("etc");
            let mut copy = Command::new("cp");
            copy.args(["-a", "/etc"]).arg(&etc).stderr(Stdio::null());
            copy.status().unwrap();
            bind(&etc, "/etc");
            fs::write("/etc/hosts", "127.0.0.1 git.example\n").unwrap();
            // Root's own key and known_hosts are not what is used.
            fs::remove_dir_all(ssh.home().join(".ssh")).unwrap();

            let typed = Block::named("docs/how-to/git.md", "ssh-key").text;
            let shell = Command::new("sh").args(["-eu", "-c", &typed]).status();
            assert!(shell.unwrap().success(), "{typed}");
            fs::copy(
                "/etc/natpunch/deploy_key.pub",
                ssh.directory.join("authorized"),
            )
            .unwrap();
            fs::create_dir_all("/etc/ssh/ssh_config.d").unwrap();
            fs::copy(
                blocks::root("examples/gitops/ssh_config.conf"),
                "/etc/ssh/ssh_config.d/natpunch.conf",
            )
            .unwrap();

            let unit = blocks::root("examples/gitops/natpunch.service.d.conf");
            let unit = fs::read_to_string(unit).unwrap();
            let location = unit
                .split_whitespace()
                .find(|word| word.starts_with("git+ssh://"))
                .unwrap();
            let mut agent = Agent::start(options(location, None, state.path()))
                .await
                .unwrap();
            assert_eq!(agent.text(), mesh(1));
            // The host key is checked against the file that is named, and nothing else.
            repository.publish(&mesh(2), None);
            fs::write("/etc/natpunch/known_hosts", "").unwrap();
            let error = agent.reload().await.unwrap_err();
            assert!(error.contains("never accepts an unknown one"), "{error}");
        });
    }
);

lab_test!(what_must_be_refused_is_refused_over_ssh, 120, |lab| {
    run(async move {
        let mut ssh = Ssh::start(lab.directory());
        let repository = Repository::new();
        let location = ssh.url(&repository);
        hostile::is_refused(&repository, &location, async || ssh.stop()).await;
    });
});
