//! Disks that are full, read-only, or fail, under an agent that runs: what runs stays, the error
//! says what is wrong, and it goes on by itself. And hosts that are rebooted.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use natpunch_lab::{Ping, Router, lab_test};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::disk::{Disk, Fault};
use crate::safety::{pair, revision};
use crate::world::{Discovery, INTERFACE, Node, World, soon};

/// Puts a disk under the state of a node that was not started yet.
fn disk_of(node: &Node) -> Disk {
    Disk::at(&node.host, &node.host.directory().unwrap().join("state"))
}

/// Two connected nodes, the state of the first on such a disk, and a ping to it that passes.
pub(crate) fn pair_on_a_disk(world: &mut World) -> (Node, Node, [Router; 2], Disk, Ping) {
    let (mut a, b, routers) = pair(world, "");
    a.stop();
    let disk = disk_of(&a);
    a.start();
    a.wait_connected("b");
    let ping = b.ping(a.address, Duration::from_millis(20));
    assert!(ping.wait_for(10, soon()));
    (a, b, routers, disk, ping)
}

lab_test!(
    while_the_disk_fails_the_mesh_stays_and_goes_on_by_itself,
    120,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let (_, key) = crate::world::new_key(&world.lab.public_host("third").unwrap());
        world.mesh.add("third", &key, "");
        let (mut a, b, _routers, disk, ping) = pair_on_a_disk(&mut world);
        let before = a.wg_peer(&b);
        for (n, fault, words) in [
            (1, Fault::Full, "No space left"),
            (2, Fault::ReadOnly, "Read-only file system"),
            (3, Fault::Flush, "Input/output error"),
            (4, Fault::Broken, "Input/output error"),
        ] {
            let running = revision(&a);
            disk.set(fault);
            world.mesh.member("third").more = format!("routes = [\"172.20.{n}.0/24\"]\n");
            world.mesh.write(&a.file);
            a.wait("the error", soon(), |status| {
                let error = status["reload_error"].as_str()?;
                assert!(
                    error.contains(words) && error.contains("the mesh stays as it was"),
                    "{error}"
                );
                (status["journal_error"].as_str()?.contains(words)
                    && status["revision"] == *running)
                    .then_some(())
            });
            if n % 2 == 0 {
                // Also an agent that starts on such a disk.
                a.kill();
                a.start();
                a.wait_connected("b");
            }
            disk.set(Fault::None);
            // An agent that has just started shows the new version before it is made, too.
            let is_made = || {
                a.wg().iter().any(|peer| {
                    peer.public_key == key && peer.allowed_ips.contains(&format!("172.20.{n}."))
                })
            };
            a.wait("the change, without anybody's doing", soon(), |status| {
                (status["reload_error"].is_null()
                    && status["journal_error"].is_null()
                    && status["revision"] != *running
                    && is_made())
                .then_some(())
            });
        }
        let after = a.wg_peer(&b);
        assert_eq!(
            (after.latest_handshake, after.endpoint),
            (before.latest_handshake, before.endpoint)
        );
        assert_eq!(ping.stop().lost(), 0);
    }
);

/// Cuts the power of a host and starts it again: its processes, its interface, its `/run` and what
/// was not flushed are gone, and the boot has another name.
fn reboot(node: &mut Node, disk: &Disk, number: u32) {
    node.kill();
    disk.cut_power();
    let boot = node
        .host
        .directory()
        .unwrap()
        .join(format!("boot-{number}"));
    std::fs::write(&boot, format!("00000000-0000-4000-8000-{number:012}\n")).unwrap();
    node.host.run(move || end_boot(&boot)).unwrap();
    let deadline = soon();
    while node
        .host
        .output("ip", &["link", "show", INTERFACE])
        .unwrap()
        .status
        .success()
    {
        assert!(Instant::now() < deadline, "the interface outlives its host");
        // The kernel's own device has no process.
        let _ = node.host.output("ip", &["link", "delete", INTERFACE]);
    }
}

/// On the host: ends every process there, and begins another boot.
fn end_boot(boot: &Path) {
    let network = |process: &Path| {
        std::fs::metadata(process.join("ns/net"))
            .map(|meta| meta.ino())
            .ok()
    };
    let here = network(Path::new("/proc/thread-self"));
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let id = process
            .file_name()
            .to_string_lossy()
            .parse::<i32>()
            .unwrap_or(1);
        // The first one is this test, whose threads are on many hosts.
        if id > 1 && network(&process.path()) == here {
            let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
    for directory in ["/run/natpunch", "/run/wireguard"] {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let name = PathBuf::from("/proc/sys/kernel/random/boot_id");
    mount(
        Some(boot),
        &name,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .unwrap();
}

lab_test!(
    a_host_that_is_rebooted_within_the_window_of_a_change_comes_back_without_it,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        // Much longer than this test: the reboot ends the window.
        let (mut a, b, _routers) = pair(&mut world, "[apply]\nconfirm = \"1h\"\n");
        a.stop();
        let disk = disk_of(&a);
        a.start();
        a.wait_connected("b");
        let (before, good) = (revision(&a), world.mesh.clone());
        world.mesh.member("b").address = "10.77.0.99".parse().unwrap();
        world.mesh.write(&a.file);
        a.wait("the change", soon(), |status| {
            (!status["change"].is_null()).then_some(())
        });
        assert_ne!(revision(&a), before);
        // The second reboot finds what the first one left.
        for number in 1..=2 {
            reboot(&mut a, &disk, number);
            a.start();
            let reason = a.wait("the version before", soon(), |status| {
                (status["revision"] == *before && status["change"].is_null())
                    .then(|| status["held"]["reason"].clone())
            });
            assert_eq!(reason, "the host was restarted before it was confirmed");
            assert!(
                a.status().unwrap()["reload_error"]
                    .as_str()
                    .unwrap()
                    .contains("rolled back")
            );
            a.wait_connected("b");
            let deadline = soon();
            while !a.reaches(b.address) {
                assert!(Instant::now() < deadline, "boot {number}: no way back");
            }
        }
        good.write(&a.file);
        a.wait("the end of it", soon(), |status| {
            (status["reload_error"].is_null() && status["held"].is_null()).then_some(())
        });
    }
);
