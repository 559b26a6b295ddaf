//! The timers of a peer, in one table: what arms each of them and what it does when it fires stand
//! side by side, so that a timer that is set can't be forgotten when it is due.

use crate::Time;
use crate::env::Env;

use super::Peer;
use super::health::Health;

macro_rules! timers {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a peer may wait for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Timer {
            $($(#[$doc])* $name,)*
        }

        impl Timer {
            /// All of them, in the order in which those that are due at one moment fire.
            pub(super) const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

timers! {
    /// Some origin's word for a path ends.
    Claim,
    /// A moment at which both sides probe, as discovery has arranged.
    Fire,
    /// The path in use is suspect: the other paths are asked.
    AskOthers,
    /// WireGuard has had its time to show that it works on the path in use.
    Check,
    /// The next copy of WireGuard's initiation.
    Initiation,
    /// The next copy of WireGuard's answer.
    Response,
    /// A relay is in use and no direct path is looked for: the search begins again.
    Search,
    /// A round of probing ends, or the silence after it.
    Round,
    /// A beacon on the LAN.
    Beacon,
    /// A ping to some path. It comes after the timers that plan pings for this moment.
    Ping,
    /// A shot of a strategy, or its next step.
    Punch,
    /// Sizes are to be asked about. They are whenever the choice has been looked at.
    Sizes,
    /// The next try of a plain peer, or the end of its session.
    Plain,
    /// The choice of the path, or what the pair wants of a relay, may come out differently though
    /// nothing has happened. Always later than now: both are looked at after every input anyway.
    Choice,
}

impl Peer {
    /// When a timer fires; `None` if it is not set.
    fn deadline(&self, timer: Timer, env: &Env, now: Time) -> Option<Time> {
        // A peer that answers no probes has no other timers than these.
        match timer {
            Timer::Claim => return self.table.next_expiry(),
            Timer::Plain if !self.probes() => return self.plain_timeout(now),
            _ if !self.probes() || self.rests() => return None,
            _ => {}
        }
        match timer {
            Timer::Claim | Timer::Plain => None,
            Timer::Fire => self.meeting.fires_at(),
            Timer::AskOthers => self.ask_others_at(env, now),
            Timer::Check => self.check_at(now),
            Timer::Initiation => self.initiation.next_copy(),
            Timer::Response => self.response.next_copy(),
            Timer::Search => self.search_at(now),
            Timer::Round => self.round.ends_at(),
            Timer::Beacon => self.round.next_beacon(),
            Timer::Ping => self.table.iter().filter_map(|(_, e)| e.next_ping).min(),
            Timer::Punch => self.punching.wakes_at(),
            Timer::Sizes => self.sizing.wakes_at(),
            Timer::Choice => {
                let selection = self.choice.selection.as_ref()?;
                let entry = self.table.get(&selection.path);
                let health = Health::changes_at(selection, entry, now);
                let relaying = self.relaying_changes_at(now);
                [health, relaying].into_iter().flatten().min()
            }
        }
    }

    fn fire_timer(&mut self, timer: Timer, env: &mut Env, now: Time) {
        match timer {
            // Done before every timer, see below.
            Timer::Claim => {}
            Timer::Fire => self.fire(now),
            Timer::AskOthers => self.ask_others(env, now),
            Timer::Check => self.check_selection(env, now),
            Timer::Initiation => self.send_initiation(env, now),
            Timer::Response => self.send_response(env, now),
            Timer::Search => self.round.search_on(now),
            Timer::Round => self.advance_round(env, now),
            Timer::Beacon => self.send_beacons(env, now),
            Timer::Ping => self.send_pings(env, now),
            Timer::Punch => self.punch(env, now),
            // What they wait for is decided after all of them.
            Timer::Sizes | Timer::Plain | Timer::Choice => {}
        }
    }

    /// Fires what is due.
    pub(crate) fn handle_timeout(&mut self, env: &mut Env, now: Time) {
        // Also without a claim that ends now: a path that nobody claims stays while it is proven.
        self.table.expire(self.keep(), now);
        self.leave_barred(env, now);
        for timer in Timer::ALL {
            // Looked up one by one: a timer that fires may set one that comes after it.
            if self.deadline(*timer, env, now).is_some_and(|at| at <= now) {
                self.fire_timer(*timer, env, now);
            }
        }
        self.decide(env, now);
    }

    /// When something is due next.
    pub(crate) fn next_timeout(&self, env: &Env, now: Time) -> Option<Time> {
        let deadlines = Timer::ALL
            .iter()
            .filter_map(|timer| self.deadline(*timer, env, now));
        deadlines.min()
    }
}
