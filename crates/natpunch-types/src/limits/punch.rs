/// The punch budget: bounds of what this node sends to guessed ports, for all peers together.
///
/// Each guess that a NAT lets out costs an entry in its table, so the bounds protect routers, not
/// links: at 250 probes a second and 30 s for an entry that nobody answers, 1,024 probes a round
/// stay far below the 4,096 to 16,384 entries of common home routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PunchSpec {
    /// Most probes per second.
    pub rate: u32,
    /// Most probes in one round towards one peer.
    pub per_round: u32,
    /// Most probes in any ten minutes.
    pub per_10_minutes: u32,
    /// Whether ports are guessed at all.
    pub spray: bool,
}

impl Default for PunchSpec {
    fn default() -> Self {
        Self {
            rate: 250,
            per_round: 1024,
            per_10_minutes: 2048,
            spray: true,
        }
    }
}
