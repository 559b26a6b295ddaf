//! What systemd's watchdog hears of an agent: that its event loop turns, and from nowhere else.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use natpunch_lab::lab_test;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};

use crate::world::{Discovery, World, within};

/// Longer than the agent is ever silent between two signs of life.
const SILENCE: Duration = Duration::from_secs(5);

lab_test!(
    a_watchdog_hears_of_an_agent_only_while_its_event_loop_turns,
    90,
    |lab| {
        let (_world, mut a) = World::with_one_node(lab, Discovery::Rendezvous);
        let path = a.host.directory().unwrap().join("notify.sock");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let patience = within(20) - std::time::Instant::now();
        systemd.set_read_timeout(Some(patience)).unwrap();
        let told = || {
            let mut buffer = [0; 512];
            let length = systemd.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        a.environment = vec![("NOTIFY_SOCKET", path.to_str().unwrap().to_owned())];
        a.start();
        while !told().unwrap().contains("READY=1") {}
        for _ in 0..3 {
            assert_eq!(told().unwrap().trim(), "WATCHDOG=1");
        }
        // The first thread runs the loop. All others go on.
        let thread = a.pid();
        ptrace::seize(thread, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        systemd.set_nonblocking(true).unwrap();
        while told().is_some() {}
        systemd.set_nonblocking(false).unwrap();
        systemd.set_read_timeout(Some(SILENCE)).unwrap();
        assert_eq!(told(), None);
        ptrace::detach(thread, None).unwrap();
        systemd.set_read_timeout(Some(patience)).unwrap();
        assert_eq!(told().unwrap().trim(), "WATCHDOG=1");
    }
);
