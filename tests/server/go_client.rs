//! A client of natpunch-go's protocol, written from its description alone and on snow's own
//! ciphers: independent of the implementation under test.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use natpunch_types::PeerKey;
use snow::{Builder, HandshakeState, StatelessTransportState};

pub(crate) struct Keys {
    pub(crate) private: [u8; 32],
    pub(crate) public: [u8; 32],
}

impl Keys {
    pub(crate) fn new() -> Self {
        let pair = builder().generate_keypair().unwrap();
        Self {
            private: pair.private.try_into().unwrap(),
            public: pair.public.try_into().unwrap(),
        }
    }
}

fn builder<'a>() -> Builder<'a> {
    Builder::new("Noise_IK_25519_ChaChaPoly_BLAKE2s".parse().unwrap())
        .prologue(b"natpunch-go is the best :)")
        .unwrap()
}

/// A handshake whose payload is any bytes (natpunch-go: eight bytes of time).
pub(crate) fn init(keys: &Keys, server: &PeerKey, payload: &[u8]) -> (Vec<u8>, HandshakeState) {
    let mut handshake = builder()
        .local_private_key(&keys.private)
        .unwrap()
        .remote_public_key(server.as_bytes())
        .unwrap()
        .build_initiator()
        .unwrap();
    let mut datagram = vec![1, 0, 0, 0, 7];
    datagram.resize(5 + 1024, 0);
    let length = handshake
        .write_message(payload, &mut datagram[5..])
        .unwrap();
    datagram.truncate(5 + length);
    (datagram, handshake)
}

pub(crate) struct Session {
    pub(crate) index: [u8; 4],
    transport: StatelessTransportState,
    nonce: u64,
}

impl Session {
    pub(crate) fn of(response: &[u8], mut handshake: HandshakeState) -> Self {
        assert_eq!((response.len(), response[0]), (53, 2));
        assert_eq!(
            handshake
                .read_message(&response[5..], &mut [0; 64])
                .unwrap(),
            0
        );
        Self {
            index: response[1..5].try_into().unwrap(),
            transport: handshake.into_stateless_transport_mode().unwrap(),
            nonce: 0,
        }
    }

    pub(crate) fn request(&mut self, own: &[u8; 32], wanted: &[u8; 32]) -> Vec<u8> {
        let mut datagram = [&[3][..], &self.index, &self.nonce.to_be_bytes()].concat();
        datagram.resize(13 + 80, 0);
        let length = self
            .transport
            .write_message(
                self.nonce,
                &[&own[..], wanted].concat(),
                &mut datagram[13..],
            )
            .unwrap();
        assert_eq!(length, 80);
        self.nonce += 1;
        datagram
    }

    /// The address in an answer, if one is known.
    pub(crate) fn answer(&self, datagram: &[u8]) -> Option<SocketAddr> {
        assert_eq!(datagram[0], 3);
        let nonce = u64::from_be_bytes(datagram[1..9].try_into().unwrap());
        let mut plain = [0; 64];
        let length = self
            .transport
            .read_message(nonce, &datagram[9..], &mut plain)
            .unwrap();
        let port = |at: usize| u16::from_be_bytes(plain[at..at + 2].try_into().unwrap());
        match length {
            0 => None,
            6 => Some(SocketAddr::new(
                IpAddr::from(<[u8; 4]>::try_from(&plain[..4]).unwrap()),
                port(4),
            )),
            18 => Some(SocketAddr::new(
                IpAddr::from(<[u8; 16]>::try_from(&plain[..16]).unwrap()),
                port(16),
            )),
            other => panic!("an answer of {other} bytes"),
        }
    }
}

/// A client with a socket of its own.
pub(crate) struct GoClient {
    pub(crate) socket: UdpSocket,
    pub(crate) keys: Keys,
    session: Session,
}

/// A socket on this address that talks to one server.
pub(crate) fn socket(local: IpAddr, server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((local, 0)).unwrap();
    socket.connect(server).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}

pub(crate) fn exchange(socket: &UdpSocket, datagram: &[u8]) -> std::io::Result<Vec<u8>> {
    socket.send(datagram)?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    assert!(
        length <= datagram.len(),
        "an answer of {length} bytes to {}",
        datagram.len()
    );
    Ok(buffer[..length].to_vec())
}

impl GoClient {
    pub(crate) fn register(socket: UdpSocket, server: &PeerKey) -> std::io::Result<Self> {
        Self::register_as(Keys::new(), socket, server)
    }

    pub(crate) fn register_as(
        keys: Keys,
        socket: UdpSocket,
        server: &PeerKey,
    ) -> std::io::Result<Self> {
        let (datagram, handshake) =
            init(&keys, server, &1_700_000_000_000_000_000_u64.to_be_bytes());
        let session = Session::of(&exchange(&socket, &datagram)?, handshake);
        Ok(Self {
            socket,
            keys,
            session,
        })
    }

    pub(crate) fn request(&mut self, wanted: &[u8; 32]) -> Vec<u8> {
        self.session.request(&self.keys.public, wanted)
    }

    pub(crate) fn look_up(&mut self, wanted: &[u8; 32]) -> Option<SocketAddr> {
        let datagram = self.request(wanted);
        self.session
            .answer(&exchange(&self.socket, &datagram).unwrap())
    }
}
