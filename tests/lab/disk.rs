//! A disk that does what disks do: it forgets at a power cut what was not flushed, it fills up, it
//! fails. A file system in memory, in user space (FUSE), that remembers of each file and directory
//! what it is and what of it was flushed.
//!
//! It is as strict as POSIX allows: flushing a file keeps its bytes and not its name, a name is
//! kept by flushing its directory, and a file whose name was kept but not its bytes is empty.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use natpunch_lab::Host;

const ROOT: u64 = 1;
/// Nothing is cached: what the disk holds may change under the kernel.
const NOT_CACHED: Duration = Duration::ZERO;
const NO_HANDLE: FileHandle = FileHandle(0);

/// What is wrong with the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// There is no room: ENOSPC.
    Full,
    /// It was mounted read-only: EROFS.
    ReadOnly,
    /// It takes writes and can't flush them: EIO from fsync.
    Flush,
    /// It neither reads nor writes: EIO.
    Broken,
}

/// A disk at a directory of a host. It is there until the lab ends.
pub(crate) struct Disk {
    tree: Arc<Mutex<Tree>>,
    _session: BackgroundSession,
}

impl Disk {
    /// Puts an empty one over a directory of this host.
    pub(crate) fn at(host: &Host, directory: &Path) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let tree = Arc::new(Mutex::new(Tree::default()));
        let (served, directory) = (Server(Arc::clone(&tree)), directory.to_owned());
        let session = host
            .run(move || fuser::spawn_mount(served, &directory, &Config::default()))
            .unwrap();
        let _session =
            session.expect("FUSE is needed: /dev/fuse, and a kernel with CONFIG_FUSE_FS");
        Self { tree, _session }
    }

    /// From now on this is wrong with it.
    pub(crate) fn set(&self, fault: Fault) {
        lock(&self.tree).fault = fault;
    }

    /// Only what was flushed is left.
    pub(crate) fn cut_power(&self) {
        lock(&self.tree).cut_power();
    }
}

fn lock(tree: &Mutex<Tree>) -> MutexGuard<'_, Tree> {
    tree.lock().unwrap()
}

/// What it is, and what of it was flushed.
#[derive(Default)]
struct Kept<T> {
    now: T,
    flushed: T,
}

enum Node {
    File(Kept<Vec<u8>>),
    Directory(Kept<BTreeMap<OsString, u64>>),
}

struct Tree {
    nodes: BTreeMap<u64, (Node, u32)>,
    last: u64,
    fault: Fault,
}

impl Default for Tree {
    fn default() -> Self {
        let root = (Node::Directory(Kept::default()), 0o755);
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            last: ROOT,
            fault: Fault::None,
        }
    }
}

type Result<T> = std::result::Result<T, Errno>;

impl Tree {
    fn cut_power(&mut self) {
        for (node, _) in self.nodes.values_mut() {
            match node {
                Node::File(file) => file.now.clone_from(&file.flushed),
                Node::Directory(directory) => directory.now.clone_from(&directory.flushed),
            }
        }
        let (mut reached, mut todo) = (BTreeSet::new(), vec![ROOT]);
        while let Some(number) = todo.pop() {
            if let Some((Node::Directory(directory), _)) = self.nodes.get(&number) {
                todo.extend(directory.now.values());
            }
            reached.insert(number);
        }
        self.nodes.retain(|number, _| reached.contains(number));
    }

    fn may_read(&self) -> Result<()> {
        if self.fault == Fault::Broken {
            Err(Errno::EIO)
        } else {
            Ok(())
        }
    }

    fn may_write(&self) -> Result<()> {
        match self.fault {
            Fault::None | Fault::Flush => Ok(()),
            Fault::Full => Err(Errno::ENOSPC),
            Fault::ReadOnly => Err(Errno::EROFS),
            Fault::Broken => Err(Errno::EIO),
        }
    }

    fn flush(&mut self, number: u64) -> Result<()> {
        match self.fault {
            Fault::Flush | Fault::Broken => return Err(Errno::EIO),
            Fault::None | Fault::Full | Fault::ReadOnly => {}
        }
        match self.nodes.get_mut(&number) {
            Some((Node::File(file), _)) => file.flushed.clone_from(&file.now),
            Some((Node::Directory(directory), _)) => directory.flushed.clone_from(&directory.now),
            None => return Err(Errno::ENOENT),
        }
        Ok(())
    }

    fn attributes(&self, number: u64) -> Result<FileAttr> {
        let (node, mode) = self.nodes.get(&number).ok_or(Errno::ENOENT)?;
        let (kind, size) = match node {
            Node::File(file) => (FileType::RegularFile, file.now.len() as u64),
            Node::Directory(_) => (FileType::Directory, 0),
        };
        Ok(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: u16::try_from(mode & 0o7777).unwrap(),
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn directory(&mut self, number: u64) -> Result<&mut BTreeMap<OsString, u64>> {
        match self.nodes.get_mut(&number) {
            Some((Node::Directory(directory), _)) => Ok(&mut directory.now),
            Some(_) => Err(Errno::ENOTDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn file(&mut self, number: u64) -> Result<&mut Vec<u8>> {
        match self.nodes.get_mut(&number) {
            Some((Node::File(file), _)) => Ok(&mut file.now),
            Some(_) => Err(Errno::EISDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn look_up(&mut self, parent: u64, name: &OsStr) -> Result<FileAttr> {
        self.may_read()?;
        let number = *self.directory(parent)?.get(name).ok_or(Errno::ENOENT)?;
        self.attributes(number)
    }

    fn add(&mut self, parent: u64, name: &OsStr, node: Node, mode: u32) -> Result<FileAttr> {
        self.may_write()?;
        let number = self.last + 1;
        let directory = self.directory(parent)?;
        if directory.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        directory.insert(name.to_owned(), number);
        self.last = number;
        self.nodes.insert(number, (node, mode));
        self.attributes(number)
    }

    /// Takes a name away. What it named stays for those who have it open.
    fn remove(&mut self, parent: u64, name: &OsStr, is_directory: bool) -> Result<()> {
        self.may_write()?;
        let number = *self.directory(parent)?.get(name).ok_or(Errno::ENOENT)?;
        match (self.directory(number), is_directory) {
            (Ok(entries), true) if !entries.is_empty() => return Err(Errno::ENOTEMPTY),
            (Ok(_), true) | (Err(_), false) => {}
            (Ok(_), false) => return Err(Errno::EISDIR),
            (Err(_), true) => return Err(Errno::ENOTDIR),
        }
        self.directory(parent)?.remove(name);
        Ok(())
    }

    fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<()> {
        self.may_write()?;
        let number = *self.directory(from.0)?.get(from.1).ok_or(Errno::ENOENT)?;
        if let Some(other) = self.directory(to.0)?.get(to.1).copied()
            && self
                .directory(other)
                .is_ok_and(|entries| !entries.is_empty())
        {
            return Err(Errno::ENOTEMPTY);
        }
        self.directory(from.0)?.remove(from.1);
        self.directory(to.0)?.insert(to.1.to_owned(), number);
        Ok(())
    }

    fn resize(&mut self, number: u64, size: u64) -> Result<()> {
        self.may_write()?;
        self.file(number)?.resize(usize::try_from(size).unwrap(), 0);
        Ok(())
    }

    fn write(&mut self, number: u64, offset: u64, data: &[u8]) -> Result<u32> {
        self.may_write()?;
        let file = self.file(number)?;
        let start = usize::try_from(offset).unwrap();
        file.resize(file.len().max(start + data.len()), 0);
        file[start..start + data.len()].copy_from_slice(data);
        Ok(u32::try_from(data.len()).unwrap())
    }
}

/// What the kernel asks.
struct Server(Arc<Mutex<Tree>>);

impl Server {
    fn tree(&self) -> MutexGuard<'_, Tree> {
        lock(&self.0)
    }
}

fn empty(result: Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn entry(result: Result<FileAttr>, reply: ReplyEntry) {
    match result {
        Ok(attributes) => reply.entry(&NOT_CACHED, &attributes, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn attr(result: Result<FileAttr>, reply: ReplyAttr) {
    match result {
        Ok(attributes) => reply.attr(&NOT_CACHED, &attributes),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(self.tree().look_up(parent.0, name), reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let tree = self.tree();
        attr(tree.may_read().and_then(|()| tree.attributes(ino.0)), reply);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut tree = self.tree();
        let resized = match size {
            Some(size) => tree.resize(ino.0, size),
            None => tree.may_write(),
        };
        if let (Some(mode), Some((_, old))) = (mode, tree.nodes.get_mut(&ino.0)) {
            *old = mode;
        }
        attr(resized.and_then(|()| tree.attributes(ino.0)), reply);
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let node = Node::Directory(Kept::default());
        entry(self.tree().add(parent.0, name, node, mode & !umask), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.tree().remove(parent.0, name, false), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.tree().remove(parent.0, name, true), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        empty(
            self.tree().rename((parent.0, name), (newparent.0, newname)),
            reply,
        );
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let tree = self.tree();
        let may = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => tree.may_read(),
            // A full disk opens what is there.
            _ if tree.fault == Fault::Full => Ok(()),
            _ => tree.may_write(),
        };
        match may {
            Ok(()) => reply.opened(NO_HANDLE, FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let node = Node::File(Kept::default());
        match self.tree().add(parent.0, name, node, mode & !umask) {
            Ok(attributes) => {
                let direct = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&NOT_CACHED, &attributes, Generation(0), NO_HANDLE, direct);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut tree = self.tree();
        match tree.may_read().and_then(|()| tree.file(ino.0)) {
            Ok(file) => {
                let start = file.len().min(usize::try_from(offset).unwrap());
                let end = file.len().min(start + size as usize);
                reply.data(&file[start..end]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.tree().write(ino.0, offset, data) {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(self.tree().flush(ino.0), reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(self.tree().flush(ino.0), reply);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let mut tree = self.tree();
        let entries = match tree.may_read().and_then(|()| tree.directory(ino.0)) {
            Ok(entries) => entries.clone(),
            Err(error) => return reply.error(error),
        };
        for (index, (name, number)) in (0..).zip(entries).skip(usize::try_from(offset).unwrap()) {
            let kind = tree
                .attributes(number)
                .map_or(FileType::RegularFile, |attributes| attributes.kind);
            if reply.add(INodeNo(number), index + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
