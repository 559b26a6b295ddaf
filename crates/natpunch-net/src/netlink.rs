//! The kernel's links and addresses, read over rtnetlink, and its announcements that something
//! about them changed.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, recvfrom, sendto};
use socket2::{Domain, Protocol, Socket, Type};

/// The kernel never sends more than this at once to a reader that offers it.
const BUFFER: usize = 64 * 1024;
/// A dump that others kept interrupting is taken as it is after this many attempts.
const DUMP_ATTEMPTS: usize = 4;
const DUMP_TIMEOUT: Duration = Duration::from_secs(2);

/// A netlink socket that is subscribed to a bit mask of multicast groups.
pub(crate) fn socket(groups: u32) -> io::Result<Socket> {
    let domain = Domain::from(libc::AF_NETLINK);
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// One read of a socket: the messages in it. `ENOBUFS` means that some were lost.
pub(crate) fn receive(
    socket: &Socket,
    buffer: &mut Vec<u8>,
) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
    buffer.resize(BUFFER, 0);
    let (length, sender) = recvfrom::<NetlinkAddr>(socket.as_raw_fd(), buffer)?;
    // Anything else than the kernel is an imposter.
    if sender.is_none_or(|sender| sender.pid() != 0) {
        return Ok(Vec::new());
    }
    Ok(messages(buffer.get(..length).unwrap_or_default()))
}

/// The messages of one datagram; those that can't be read are left out.
fn messages(mut datagram: &[u8]) -> Vec<NetlinkMessage<RouteNetlinkMessage>> {
    let mut messages = Vec::new();
    while let Some(length) = datagram.first_chunk::<4>() {
        let length = u32::from_ne_bytes(*length) as usize;
        let Some(message) = datagram.get(..length).filter(|message| message.len() >= 16) else {
            break;
        };
        match NetlinkMessage::deserialize(message) {
            Ok(message) => messages.push(message),
            Err(error) => tracing::debug!(%error, "skipped a netlink message"),
        }
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    messages
}

/// Asks the kernel for all objects of a kind. Blocks for as long as the kernel takes to answer:
/// less than a millisecond.
pub(crate) fn dump(request: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    dump_first(request, usize::MAX)
}

/// The same for the first objects, about so many.
pub(crate) fn dump_first(
    request: &RouteNetlinkMessage,
    most: usize,
) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut objects = Vec::new();
    for _ in 0..DUMP_ATTEMPTS {
        let interrupted;
        (objects, interrupted) = dump_once(request.clone(), most)?;
        if !interrupted {
            break;
        }
    }
    Ok(objects)
}

/// The objects, and whether they changed in the middle of it.
fn dump_once(
    request: RouteNetlinkMessage,
    most: usize,
) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
    let (socket, mut buffer) = send(request, NLM_F_REQUEST | NLM_F_DUMP)?;
    let mut objects = Vec::new();
    let mut interrupted = false;
    while objects.len() < most {
        for message in receive(&socket, &mut buffer)? {
            interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(object) => objects.push(object),
                NetlinkPayload::Done(_) => return Ok((objects, interrupted)),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
    }
    Ok((objects, interrupted))
}

/// Asks the kernel for one object: the answer, or the kernel's error.
pub(crate) fn get(request: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
    let (socket, mut buffer) = send(request, NLM_F_REQUEST)?;
    loop {
        for message in receive(&socket, &mut buffer)? {
            match message.payload {
                NetlinkPayload::InnerMessage(object) => return Ok(object),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
    }
}

/// Sends a request to the kernel by a socket of its own.
fn send(request: RouteNetlinkMessage, flags: u16) -> io::Result<(Socket, Vec<u8>)> {
    let socket = socket(0)?;
    socket.set_read_timeout(Some(DUMP_TIMEOUT))?;
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    request.finalize();
    let mut buffer = vec![0; request.buffer_len()];
    request.serialize(&mut buffer);
    sendto(
        socket.as_raw_fd(),
        &buffer,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    Ok((socket, buffer))
}
