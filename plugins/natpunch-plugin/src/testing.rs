//! A host in memory, for the tests of plugins.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

use natpunch_types::{HostNetwork, Time, lock};
use tokio::time::Instant;

use crate::{BoxFuture, Health, Host, Input, News, PeerKey, SecretKey, StreamPort, Upstream};

/// Something that a plugin did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// [`Host::tell`].
    Told(News),
    /// [`Host::send_from_wireguard_port`].
    Sent {
        /// To where.
        destination: SocketAddr,
        /// The payload.
        payload: Vec<u8>,
    },
    /// [`Host::send_to_peer`].
    SentToPeer {
        /// To whom.
        peer: PeerKey,
        /// The payload.
        payload: Vec<u8>,
    },
    /// [`Host::report`] of something new.
    Reported(Health),
}

/// A [`Host`] that gives what a test puts in, and keeps what a plugin does until the test takes it.
/// Its random bytes are a fixed sequence.
pub struct FakeHost {
    own_key: PeerKey,
    private_key: Option<SecretKey>,
    start: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    inputs: VecDeque<Input>,
    effects: VecDeque<Effect>,
    plugin: Option<Waker>,
    test: Option<Waker>,
    random: u64,
    health: Option<Health>,
    slept: Duration,
    network: HostNetwork,
}

impl FakeHost {
    /// A host of this node. `seed` starts its random bytes.
    pub fn new(own_key: PeerKey, private_key: Option<SecretKey>, seed: u64) -> Arc<Self> {
        let state = State {
            random: seed,
            ..State::default()
        };
        Arc::new(Self {
            own_key,
            private_key,
            start: Instant::now(),
            state: Mutex::new(state),
        })
    }

    /// Sleeps for this long: tokio's timers stand still, the time goes on. Then the plugin is told.
    pub fn sleep(&self, time: Duration) {
        self.state().slept += time;
        self.put(Input::NetworkChanged);
    }

    /// Is in this network from now on.
    pub fn set_network(&self, network: HostNetwork) {
        self.state().network = network;
        self.put(Input::NetworkChanged);
    }

    /// Puts in the next input.
    pub fn put(&self, input: Input) {
        let mut state = self.state();
        state.inputs.push_back(input);
        if let Some(waker) = state.plugin.take() {
            waker.wake();
        }
    }

    /// Waits for what the plugin does next.
    pub async fn effect(&self) -> Effect {
        poll_fn(|context| {
            let mut state = self.state();
            match state.effects.pop_front() {
                Some(effect) => Poll::Ready(effect),
                None => {
                    state.test = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The plugin's effects that were not taken yet.
    pub fn effects(&self) -> Vec<Effect> {
        self.state().effects.drain(..).collect()
    }

    /// How many inputs the plugin has not fetched yet.
    pub fn unread(&self) -> usize {
        self.state().inputs.len()
    }

    fn did(&self, effect: Effect) {
        let mut state = self.state();
        state.effects.push_back(effect);
        if let Some(waker) = state.test.take() {
            waker.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Host for FakeHost {
    fn own_key(&self) -> PeerKey {
        self.own_key
    }

    fn private_key(&self) -> Option<SecretKey> {
        self.private_key.clone()
    }

    fn listen_port(&self) -> u16 {
        51820
    }

    fn network(&self) -> HostNetwork {
        self.state().network.clone()
    }

    fn now(&self) -> Time {
        Time::from_origin(self.start.elapsed() + self.state().slept)
    }

    fn next<'a>(&'a self) -> BoxFuture<'a, Input> {
        Box::pin(poll_fn(|context| {
            let mut state = self.state();
            match state.inputs.pop_front() {
                Some(input) => Poll::Ready(input),
                None => {
                    state.plugin = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }

    fn open_stream<'a>(
        &'a self,
        _server: &'a Upstream,
        port: u16,
    ) -> BoxFuture<'a, Result<StreamPort, String>> {
        // A forwarder that has connected at once.
        let address = SocketAddr::from((natpunch_types::FORWARDER, 10_000 + port));
        Box::pin(std::future::ready(Ok(StreamPort {
            address,
            is_connected: true,
            problem: None,
        })))
    }

    fn tell(&self, news: News) {
        self.did(Effect::Told(news));
    }

    fn send_from_wireguard_port(&self, destination: SocketAddr, payload: Vec<u8>) {
        self.did(Effect::Sent {
            destination,
            payload,
        });
    }

    fn send_to_peer(&self, peer: PeerKey, payload: Vec<u8>) {
        self.did(Effect::SentToPeer { peer, payload });
    }

    fn random(&self, buffer: &mut [u8]) {
        let mut state = self.state();
        for byte in buffer {
            // An LCG (Knuth, MMIX): different bytes, nothing more.
            state.random = state
                .random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = (state.random >> 56) as u8;
        }
    }

    fn report(&self, health: Health) {
        let before = self.state().health.replace(health.clone());
        if before.as_ref() != Some(&health) {
            self.did(Effect::Reported(health));
        }
    }
}
