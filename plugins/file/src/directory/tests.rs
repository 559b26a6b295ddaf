use std::os::unix::fs::symlink;
use std::time::Duration;

use super::*;

const TAG: RecordTag = RecordTag([7; 16]);

fn record(version: u8) -> SealedRecord {
    SealedRecord {
        tag: TAG,
        blob: [version; 40].into(),
    }
}

/// A directory with a node that looks into it for [`TAG`].
fn world() -> (tempfile::TempDir, Directory, BTreeSet<RecordTag>) {
    let shared = tempfile::tempdir().unwrap();
    let directory = Directory::new(shared.path().to_owned(), "own.natpunch".to_owned());
    (shared, directory, BTreeSet::from([TAG]))
}

fn other(shared: &tempfile::TempDir, name: &str) -> Directory {
    Directory::new(shared.path().to_owned(), name.to_owned())
}

#[test]
fn a_record_is_found_once_and_a_newer_one_too() {
    let (shared, mut directory, wanted) = world();
    let peer = other(&shared, "peer.natpunch");
    peer.publish(&[record(1)]).unwrap();
    assert_eq!(directory.look(&wanted).unwrap().records, [record(1)]);
    assert_eq!(directory.look(&wanted).unwrap().records, []);
    peer.publish(&[record(2)]).unwrap();
    let found = directory.look(&wanted).unwrap();
    assert_eq!((found.records, found.files), (vec![record(2)], 1));
    // One that comes again, from a backup, is no news.
    peer.publish(&[record(1)]).unwrap();
    assert_eq!(directory.look(&wanted).unwrap().records, []);
}

#[test]
fn a_tag_that_is_wanted_later_is_found_in_files_that_were_read_before() {
    let (shared, mut directory, wanted) = world();
    other(&shared, "peer.natpunch")
        .publish(&[record(1)])
        .unwrap();
    assert_eq!(directory.look(&BTreeSet::new()).unwrap().records, []);
    directory.read_anew(&wanted);
    assert_eq!(directory.look(&wanted).unwrap().records, [record(1)]);
}

#[test]
fn a_forged_record_under_the_same_tag_does_not_hide_the_peers() {
    let (shared, mut directory, wanted) = world();
    other(&shared, "a.natpunch").publish(&[record(66)]).unwrap();
    other(&shared, "b.natpunch").publish(&[record(1)]).unwrap();
    other(&shared, "c.natpunch").publish(&[record(67)]).unwrap();
    let mut records = directory.look(&wanted).unwrap().records;
    records.sort_by_key(|record| record.blob[0]);
    assert_eq!(records, [record(1), record(66), record(67)]);
}

#[test]
fn the_own_file_is_replaced_as_a_whole_and_left_alone_while_it_says_the_same() {
    let (shared, directory, _) = world();
    directory.publish(&[record(1), record(2)]).unwrap();
    let file = shared.path().join("own.natpunch");
    let before = Stamp::of(&fs::metadata(&file).unwrap());
    std::thread::sleep(Duration::from_millis(10));
    directory.publish(&[record(1), record(2)]).unwrap();
    assert_eq!(Stamp::of(&fs::metadata(&file).unwrap()), before);
    directory.publish(&[]).unwrap();
    assert_ne!(Stamp::of(&fs::metadata(&file).unwrap()).inode, before.inode);
    assert_eq!(
        fs::read_dir(shared.path()).unwrap().count(),
        1,
        "nothing is left beside it"
    );
}

#[test]
fn what_others_put_there_is_neither_followed_nor_waited_for_nor_read_without_end() {
    let (shared, mut directory, wanted) = world();
    let at = |name: &str| shared.path().join(name);
    symlink("/dev/zero", at("link.natpunch")).unwrap();
    fs::create_dir(at("directory.natpunch")).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(at("pipe.natpunch"))
        .status();
    assert!(made.unwrap().success());
    let long = File::create(at("long.natpunch")).unwrap();
    long.set_len(LONGEST + 1).unwrap();
    fs::write(at("notes.natpunch"), "mine").unwrap();
    fs::write(at("README"), "mine").unwrap();
    other(&shared, "peer.natpunch")
        .publish(&[record(1)])
        .unwrap();
    let found = directory.look(&wanted).unwrap();
    assert_eq!(
        (found.records, found.files, found.left_out),
        (vec![record(1)], 1, 5)
    );
}

#[test]
fn a_directory_that_is_not_there_is_said() {
    let mut directory = Directory::new("/nowhere/records".into(), "own.natpunch".to_owned());
    assert!(directory.publish(&[record(1)]).is_err());
    assert!(directory.look(&BTreeSet::new()).is_err());
}
