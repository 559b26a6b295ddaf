//! `[names] hosts`: the names of the peers in the hosts file, in a block of each interface's own.
//!
//! Everything else in the file is its owner's. The file is replaced in one step, keeps owner and
//! mode, and a symbolic link to it stays one. A file that can't be written costs nothing but the
//! names.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use natpunch_os::durable;

use super::{Calls, Node, Service};
use crate::config::NodeConfig;

/// How long the last write may take at the end.
const STOP_DEADLINE: Duration = Duration::from_secs(2);
/// Longest file that is touched, in bytes.
const LONGEST: u64 = 16 << 20;

/// The hosts file: `$NATPUNCH_HOSTS_FILE`, else `/etc/hosts`.
pub(crate) fn path() -> PathBuf {
    std::env::var_os("NATPUNCH_HOSTS_FILE")
        .map_or_else(|| PathBuf::from("/etc/hosts"), PathBuf::from)
}

/// The names that a node's hosts file shall have: address, and `NAME.MESH NAME`. Empty if the mesh
/// wants none.
pub(crate) fn names(node: &NodeConfig) -> Vec<(IpAddr, [String; 2])> {
    if !node.hosts {
        return Vec::new();
    }
    let peer = |name: &str, addresses: &[IpAddr]| {
        let names = [format!("{name}.{}", node.mesh), name.to_owned()];
        addresses
            .iter()
            .map(|address| (*address, names.clone()))
            .collect::<Vec<_>>()
    };
    node.peers
        .iter()
        .flat_map(|peer_of| peer(&peer_of.name, &peer_of.addresses))
        .collect()
}

/// How a hosts file differs from what it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Lines that are added.
    pub(crate) added: usize,
    /// Lines that are removed.
    pub(crate) removed: usize,
    text: String,
}

/// Compares the block of `interface` in the file with what it shall be. `None`: nothing is to be
/// done.
///
/// # Errors
/// The file can't be read, is not text, or is too long.
pub(crate) fn compare(
    file: &Path,
    interface: &str,
    names: &[(IpAddr, [String; 2])],
) -> io::Result<Option<Difference>> {
    let text = match read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    Ok(with_block(&text, interface, names))
}

/// Makes the block of `interface` what it shall be. `None`: nothing was to be done.
///
/// # Errors
/// The file can't be read or replaced.
pub(crate) fn apply(
    file: &Path,
    interface: &str,
    names: &[(IpAddr, [String; 2])],
) -> io::Result<Option<Difference>> {
    let difference = compare(file, interface, names)?;
    if let Some(difference) = &difference {
        durable::rewrite(file, difference.text.as_bytes())?;
    }
    Ok(difference)
}

/// Keeps the block of one interface, on a task of its own: disks may be slow.
pub(crate) struct HostsFile {
    wanted: watch::Sender<Wanted>,
    problem: watch::Receiver<Option<String>>,
    task: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Wanted {
    interface: String,
    names: Vec<(IpAddr, [String; 2])>,
    /// It was so, and is looked at again.
    again: bool,
}

impl HostsFile {
    fn spawn() -> Self {
        let (wanted, told) = watch::channel(Wanted::default());
        let (tell, problem) = watch::channel(None);
        Self {
            wanted,
            problem,
            task: tokio::spawn(keep(told, tell)),
        }
    }

    /// The names from now on.
    fn set(&self, node: &NodeConfig) {
        self.wanted.send_replace(Wanted {
            interface: node.interface.clone(),
            names: names(node),
            again: false,
        });
    }

    /// Checks whether others changed the block, and repairs it.
    pub(crate) fn heal(&self) {
        self.wanted.send_if_modified(|wanted| {
            wanted.again = true;
            !wanted.names.is_empty()
        });
    }
}

impl Service for HostsFile {
    /// Why the names are not in the file, if they aren't.
    type Status = Option<String>;

    fn start(_: &Calls) -> Self {
        Self::spawn()
    }

    async fn node_changed(&mut self, node: &Node<'_>) {
        self.set(node.config);
    }

    fn status(&self) -> Self::Status {
        self.problem.borrow().clone()
    }

    async fn stop(self) {
        drop(self.wanted);
        match tokio::time::timeout(STOP_DEADLINE, self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => tracing::debug!("the names in the hosts file may be those of before"),
            Err(_) => tracing::warn!("the hosts file is still being written"),
        }
    }
}

async fn keep(mut told: watch::Receiver<Wanted>, tell: watch::Sender<Option<String>>) {
    // The last request is still seen after the sender is gone.
    while told.changed().await.is_ok() {
        let Wanted {
            interface,
            names,
            again,
        } = told.borrow_and_update().clone();
        let file = path();
        let shown = file.display().to_string();
        let done = tokio::task::spawn_blocking(move || apply(&file, &interface, &names)).await;
        let problem = match done {
            Ok(Ok(None)) => None,
            Ok(Ok(Some(Difference { added, removed, .. }))) => {
                if again && tell.borrow().is_none() {
                    tracing::warn!(file = %shown, added, removed, "somebody changed the names of the peers; it was put right");
                } else {
                    tracing::info!(file = %shown, added, removed, "the names of the peers");
                }
                None
            }
            Ok(Err(error)) => Some(format!("can't put the peers' names into {shown}: {error}")),
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem
            .as_ref()
            .filter(|problem| tell.borrow().as_ref() != Some(*problem))
        {
            tracing::warn!("{problem}; the tunnels are not affected, and it is tried again");
        }
        tell.send_replace(problem);
    }
}

fn read(file: &Path) -> io::Result<String> {
    // O_NONBLOCK: opening a FIFO would wait for a writer.
    let open = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(file)?;
    let meta = open.metadata()?;
    if !meta.is_file() || meta.len() > LONGEST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not a file, or too long for a hosts file",
        ));
    }
    let mut text = String::new();
    open.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// The text with the block as it shall be; `None` if it is so.
fn with_block(text: &str, interface: &str, names: &[(IpAddr, [String; 2])]) -> Option<Difference> {
    let begin = format!("# natpunch {interface}: begin (these lines are replaced)");
    let end = format!("# natpunch {interface}: end");
    let mut others = String::with_capacity(text.len());
    let mut before: Vec<&str> = Vec::new();
    let mut blocks = 0;
    let mut lines = text.split_inclusive('\n');
    while let Some(line) = lines.next() {
        // A beginning without an end is left alone: the lines behind it may be other programs'.
        if line.trim_end() == begin && lines.clone().any(|later| later.trim_end() == end) {
            blocks += 1;
            before.extend(
                lines
                    .by_ref()
                    .map(str::trim_end)
                    .take_while(|inner| *inner != end),
            );
        } else {
            others.push_str(line);
        }
    }
    let wanted = block(&others, names);
    if before == wanted && blocks == usize::from(!wanted.is_empty()) {
        return None;
    }
    if !wanted.is_empty() {
        if !others.is_empty() && !others.ends_with('\n') {
            others.push('\n');
        }
        let _ = writeln!(others, "{begin}\n{}\n{end}", wanted.join("\n"));
    }
    let before: BTreeSet<&str> = before.into_iter().collect();
    let wanted: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
    let (added, removed) = (
        wanted.difference(&before).count(),
        before.difference(&wanted).count(),
    );
    Some(Difference {
        added,
        removed,
        text: others,
    })
}

/// The lines of the block. A name that the rest of the file has keeps its meaning there.
fn block(others: &str, names: &[(IpAddr, [String; 2])]) -> Vec<String> {
    let mut taken = BTreeSet::from(["localhost".to_owned()]);
    for line in others.lines() {
        let words = line
            .split('#')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1);
        taken.extend(words.map(str::to_lowercase));
    }
    let free = |name: &&String| is_host_name(name) && !taken.contains(*name);
    names
        .iter()
        .filter_map(|(address, names)| {
            let names: Vec<&str> = names.iter().filter(free).map(String::as_str).collect();
            (!names.is_empty()).then(|| format!("{address} {}", names.join(" ")))
        })
        .collect()
}

/// What is written into the file is made of DNS labels and nothing else, whatever was checked
/// before.
fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    const REST: &str = "127.0.0.1\tlocalhost\n192.0.2.9 NAS # mine\n";

    fn names(peers: &[(&str, &str)]) -> Vec<(IpAddr, [String; 2])> {
        let peer = |(name, address): &(&str, &str)| {
            (
                address.parse().unwrap(),
                [format!("{name}.home"), (*name).to_owned()],
            )
        };
        peers.iter().map(peer).collect()
    }

    fn after(text: &str, interface: &str, peers: &[(&str, &str)]) -> String {
        with_block(text, interface, &names(peers))
            .map_or_else(|| text.to_owned(), |difference| difference.text)
    }

    #[test]
    fn the_block_is_added_replaced_and_removed_and_the_rest_stays() {
        let one = after(REST, "wg-a", &[("oslo", "10.0.0.1")]);
        let block = "# natpunch wg-a: begin (these lines are replaced)\n10.0.0.1 oslo.home oslo\n# natpunch wg-a: end\n";
        assert_eq!(one, format!("{REST}{block}"));
        assert_eq!(
            with_block(&one, "wg-a", &names(&[("oslo", "10.0.0.1")])),
            None,
            "there is nothing to do"
        );
        let more = format!("{one}::1 ip6-localhost\n");
        let two = after(&more, "wg-a", &[("oslo", "10.0.0.2"), ("rome", "fd00::1")]);
        assert!(
            two.starts_with(REST)
                && two.contains("::1 ip6-localhost\n")
                && !two.contains("10.0.0.1"),
            "{two}"
        );
        assert!(
            two.contains("10.0.0.2 oslo.home oslo\nfd00::1 rome.home rome\n"),
            "{two}"
        );
        assert_eq!(
            after(&two, "wg-a", &[]),
            format!("{REST}::1 ip6-localhost\n")
        );
    }

    #[test]
    fn each_mesh_has_a_block_of_its_own() {
        let both = after(
            &after(REST, "wg-a", &[("oslo", "10.0.0.1")]),
            "wg-b",
            &[("rome", "10.1.0.1")],
        );
        let without = after(&both, "wg-a", &[]);
        assert!(
            without.contains("rome") && !without.contains("oslo"),
            "{without}"
        );
        assert_eq!(after(&without, "wg-b", &[]), REST);
    }

    #[test]
    fn names_that_the_file_gives_to_others_stay_theirs() {
        let text = after(
            REST,
            "wg-a",
            &[
                ("nas", "10.0.0.1"),
                ("localhost", "10.0.0.2"),
                ("mine", "10.0.0.3"),
            ],
        );
        let block: Vec<&str> = text.lines().skip(3).collect();
        let expected = [
            "10.0.0.1 nas.home",
            "10.0.0.2 localhost.home",
            "10.0.0.3 mine.home mine",
        ];
        assert_eq!(block.split_last().unwrap().1, expected);
    }

    #[test]
    fn nothing_but_names_is_written() {
        for bad in ["a b", "a\nb", "A", "", "-a", "a-", "a#", "a..b", "é", "*"] {
            assert!(!is_host_name(bad), "{bad:?}");
            assert_eq!(
                block(
                    "",
                    &[(
                        "10.0.0.1".parse().unwrap(),
                        [bad.to_owned(), bad.to_owned()]
                    )]
                )
                .len(),
                0
            );
        }
        assert!(is_host_name("nas-1.home"));
    }

    #[test]
    fn a_block_without_an_end_takes_nothing_with_it() {
        let torn =
            format!("# natpunch wg-a: begin (these lines are replaced)\n10.0.0.1 oslo\n{REST}");
        assert!(after(&torn, "wg-a", &[("rome", "10.0.0.2")]).starts_with(&torn));
    }

    #[test]
    fn owner_mode_and_link_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (
            directory.path().join("real"),
            directory.path().join("hosts"),
        );
        fs::write(&real, REST).unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(&real, Some(1), Some(2)).unwrap();
        symlink(&real, &link).unwrap();
        let difference = apply(&link, "wg-a", &names(&[("oslo", "10.0.0.1")]))
            .unwrap()
            .unwrap();
        assert_eq!((difference.added, difference.removed), (1, 0));
        let meta = fs::metadata(&real).unwrap();
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.gid()),
            (0o640, 1, 2)
        );
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read_to_string(&real).unwrap().contains("oslo.home"));
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            2,
            "nothing is left beside it"
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_made_only_for_names() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("hosts");
        assert_eq!(apply(&file, "wg-a", &[]).unwrap(), None);
        assert!(!file.exists());
        apply(&file, "wg-a", &names(&[("oslo", "10.0.0.1")]))
            .unwrap()
            .unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o644);
    }
}
