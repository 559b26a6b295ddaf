//! What the nodes of a world say to each other through their tunnels.

use super::*;

impl World {
    /// Sends pings both ways, 20 times a second for up to `patience`; true once one arrived each
    /// way.
    pub fn data_flows(&mut self, a: HostId, b: HostId, patience: Duration) -> bool {
        let (key_a, key_b) = (self.key(a), self.key(b));
        let received = |world: &Self| {
            (
                world.device(a).received_data(&key_b),
                world.device(b).received_data(&key_a),
            )
        };
        let before = received(self);
        let end = self.now + patience;
        while self.now < end {
            let now = self.now;
            self.node_mut(a).device.send_data(key_b, 64, now);
            self.node_mut(b).device.send_data(key_a, 64, now);
            self.drain();
            self.run_until(now + Duration::from_millis(50));
            let after = received(self);
            if after.0 > before.0 && after.1 > before.1 {
                return true;
            }
        }
        false
    }

    /// Sends one data packet each way, without waiting.
    pub fn ping(&mut self, a: HostId, b: HostId) {
        let (key_a, key_b, now) = (self.key(a), self.key(b), self.now);
        self.node_mut(a).device.send_data(key_b, 64, now);
        self.node_mut(b).device.send_data(key_a, 64, now);
        self.drain();
    }

    /// Sends one data packet one way, without waiting.
    pub fn send(&mut self, from: HostId, to: HostId) {
        let (key, now) = (self.key(to), self.now);
        self.node_mut(from).device.send_data(key, 64, now);
        self.drain();
    }

    /// Sends one data packet one way that is as large as the routes to the peer let it be.
    pub fn send_large(&mut self, from: HostId, to: HostId) {
        let (key, now) = (self.key(to), self.now);
        let length = self.mtu(from, to).unwrap_or(MTU);
        let device = &mut self.node_mut(from).device;
        device.send_data(key, length.into(), now);
        self.drain();
    }

    /// The MTU of a node's routes to a peer, unless it is the interface's.
    pub fn mtu(&self, node: HostId, peer: HostId) -> Option<u16> {
        let mtu = self.nodes[&node].mtus.get(&self.key(peer));
        mtu.copied().flatten()
    }
}
