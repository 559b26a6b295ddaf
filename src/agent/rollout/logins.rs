//! The logins on this host from other hosts, as the host's own records have them: systemd-logind
//! writes a session after the login service has authenticated somebody (pam_systemd), and so do
//! login services themselves to utmp. A TCP connection to the port of SSH is in neither.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use natpunch_rollout::Login;
use utmp_rs::UtmpEntry;

/// Where logind keeps its sessions (sd_session_get_remote_host(3) reads the same files).
const SESSIONS: &str = "/run/systemd/sessions";
const UTMP: &str = "/run/utmp";
/// Sessions that are read, and the longest file of either kind, in bytes.
const MOST_SESSIONS: usize = 4096;
const LONGEST: u64 = 4 << 20;

/// The logins from other hosts. Where the host keeps no records there are none.
pub(crate) fn logins() -> Vec<Login> {
    let is_alive = |pid: &str| Path::new("/proc").join(pid).exists();
    let mut found: BTreeSet<(String, String)> = sessions(Path::new(SESSIONS), is_alive);
    found.extend(utmp(Path::new(UTMP), is_alive));
    let login = |(user, from)| Login { user, from };
    found.into_iter().map(login).collect()
}

fn sessions(directory: &Path, is_alive: impl Fn(&str) -> bool) -> BTreeSet<(String, String)> {
    let Ok(entries) = fs::read_dir(directory) else {
        return BTreeSet::new();
    };
    let texts = entries.flatten().take(MOST_SESSIONS).filter_map(|entry| {
        // Beside each session lies a FIFO of its name and `.ref`.
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        is_file.then(|| read(&entry.path()))?
    });
    texts
        .filter_map(|text| session(&String::from_utf8_lossy(&text), &is_alive))
        .collect()
}

/// The user and the remote host of a session file: lines of `KEY=VALUE`.
fn session(text: &str, is_alive: &impl Fn(&str) -> bool) -> Option<(String, String)> {
    let value = |key: &str| {
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    };
    let is_ending = value("STATE") == Some("closing");
    let is_gone = value("LEADER").is_some_and(|leader| !is_alive(leader));
    let from = value("REMOTE_HOST").filter(|from| !from.is_empty())?;
    let user = value("USER").or_else(|| value("UID"))?;
    (!is_ending && !is_gone).then(|| (user.to_owned(), from.to_owned()))
}

fn utmp(file: &Path, is_alive: impl Fn(&str) -> bool) -> BTreeSet<(String, String)> {
    let bytes = read(file).unwrap_or_default();
    let entries = utmp_rs::UtmpParser::from_reader(bytes.as_slice()).flatten();
    let logins = entries.filter_map(|entry| match entry {
        UtmpEntry::UserProcess {
            pid, user, host, ..
        } => {
            // X terminals and screens on this host name a display.
            let is_remote = !host.is_empty() && !host.starts_with(':');
            (is_remote && is_alive(&pid.to_string())).then_some((user, host))
        }
        _ => None,
    });
    logins.collect()
}

fn read(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(file).ok()?;
    file.take(LONGEST).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_an_authenticated_session_from_elsewhere_that_is_not_over() {
        let directory = tempfile::tempdir().unwrap();
        let session = |name: &str, lines: &str| {
            let text = format!("# This is private data. Do not parse.\nUID=0\n{lines}");
            fs::write(directory.path().join(name), text).unwrap();
        };
        session(
            "1",
            "USER=root\nREMOTE=1\nSTATE=active\nREMOTE_HOST=10.77.0.2\nLEADER=7\n",
        );
        session(
            "2",
            "USER=eve\nREMOTE=1\nSTATE=closing\nREMOTE_HOST=10.77.0.3\nLEADER=7\n",
        );
        session(
            "3",
            "USER=gone\nREMOTE=1\nSTATE=active\nREMOTE_HOST=10.77.0.4\nLEADER=8\n",
        );
        session("4", "USER=here\nREMOTE=0\nSTATE=active\nLEADER=7\n");
        let found = sessions(directory.path(), |pid| pid == "7");
        assert_eq!(found, [("root".into(), "10.77.0.2".into())].into());
        assert!(sessions(Path::new("/does/not/exist"), |_| true).is_empty());
    }

    /// A record of utmp(5) as glibc has it on most platforms: 384 bytes.
    fn record(kind: u16, pid: i32, user: &str, host: &str) -> Vec<u8> {
        let mut bytes = vec![0; 384];
        bytes[..2].copy_from_slice(&kind.to_ne_bytes());
        bytes[4..8].copy_from_slice(&pid.to_ne_bytes());
        bytes[44..44 + user.len()].copy_from_slice(user.as_bytes());
        bytes[76..76 + host.len()].copy_from_slice(host.as_bytes());
        bytes
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn utmp_tells_of_logins_where_there_is_no_logind() {
        const USER: u16 = 7;
        const DEAD: u16 = 8;
        let file = tempfile::NamedTempFile::new().unwrap();
        let records = [
            record(USER, 7, "root", "10.77.0.2"),
            record(USER, 7, "me", ":0"),
            record(USER, 9, "gone", "10.77.0.3"),
            record(DEAD, 7, "", "10.77.0.4"),
            vec![1, 2, 3],
        ];
        fs::write(file.path(), records.concat()).unwrap();
        let found = utmp(file.path(), |pid| pid == "7");
        assert_eq!(found, [("root".into(), "10.77.0.2".into())].into());
    }
}
