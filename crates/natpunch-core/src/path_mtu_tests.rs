use super::*;

const RTT: Duration = Duration::from_millis(40);

/// A path that lets packets of up to `limit` bytes pass, and an end that answers.
struct Path {
    limit: u16,
    answers: bool,
    /// Every n-th question is lost.
    loses: usize,
    asked: Vec<u16>,
    now: Time,
}

impl Path {
    fn new(limit: u16) -> Self {
        Self {
            limit,
            answers: true,
            loses: usize::MAX,
            asked: Vec::new(),
            now: Time::ZERO + Duration::from_secs(1_000),
        }
    }

    /// Lets it work until it waits for data.
    fn settle(&mut self, mtu: &mut PathMtu) {
        let before = self.asked.len();
        while let Some(at) = mtu.wakes_at() {
            self.now = self.now.max(at);
            for size in mtu.due(RTT, self.now) {
                let number = self.asked.len() as u8;
                self.asked.push(size);
                let transaction = Transaction::from_bytes([number; 12]);
                mtu.on_asked(size, transaction);
                let lost = self.asked.len().is_multiple_of(self.loses);
                if self.answers && size <= self.limit && !lost {
                    mtu.on_answer(&transaction, self.now + RTT);
                }
            }
            assert!(self.asked.len() < before + 100, "it ends");
        }
    }

    fn measure(&mut self, whole: u32) -> PathMtu {
        let mut mtu = PathMtu::default();
        mtu.begin(whole, self.now);
        self.settle(&mut mtu);
        mtu
    }

    /// Data goes out for so long; how many questions that costs.
    fn talk(&mut self, mtu: &mut PathMtu, long: Duration) -> usize {
        let (before, end) = (self.asked.len(), self.now + long);
        while self.now < end {
            self.now += Duration::from_secs(1);
            mtu.on_data(50_000, false, self.now);
            self.settle(mtu);
        }
        self.asked.len() - before
    }
}

#[test]
fn a_path_that_lets_everything_pass_costs_one_question() {
    let mut path = Path::new(1_420);
    let mtu = path.measure(1_420);
    assert_eq!(mtu.found(), Some((1_420, false)));
    assert_eq!(path.asked, [1_420]);
}

#[test]
fn every_limit_is_found_to_the_grain_with_few_questions_in_few_seconds() {
    for limit in BASE..1_420 {
        let mut path = Path::new(limit);
        let start = path.now;
        let mtu = path.measure(1_420);
        assert_eq!(mtu.found(), Some((limit / GRAIN * GRAIN, true)), "{limit}");
        assert!(path.asked.len() <= 22, "{limit}: {:?}", path.asked);
        let took = path.now.since(start);
        assert!(
            took <= SETTLED + Duration::from_millis(3_600),
            "{limit}: {took:?}"
        );
    }
    let mut path = Path::new(1_500);
    assert_eq!(path.measure(2_000).found(), Some((1_488, true)));
    assert_eq!(path.measure(8_920).found(), None, "more than is received");
}

#[test]
fn less_than_the_base_is_not_looked_for() {
    let mut path = Path::new(1_000);
    assert_eq!(path.measure(1_420).found(), Some((BASE, true)));
}

#[test]
fn an_end_that_answers_nothing_shows_nothing() {
    let mut path = Path::new(1_420);
    path.answers = false;
    let mut mtu = path.measure(1_420);
    assert_eq!(mtu.found(), None);
    assert_eq!(path.talk(&mut mtu, Duration::from_secs(60)), 0);
}

#[test]
fn what_is_lost_by_chance_limits_nothing() {
    for loses in 2..8 {
        let mut path = Path::new(1_420);
        path.loses = loses;
        let mtu = path.measure(1_420);
        assert_eq!(mtu.found(), Some((1_420, false)), "every {loses}th");
    }
}

#[test]
fn a_black_hole_is_found_within_ten_seconds_of_traffic_and_not_looked_for_without() {
    let mut path = Path::new(1_420);
    let mut mtu = path.measure(1_420);
    let confirmed = path.talk(&mut mtu, Duration::from_secs(60));
    assert!((10..=12).contains(&confirmed), "{confirmed}");
    path.limit = 1_240;
    let start = path.now;
    while mtu.found() == Some((1_420, false)) {
        path.talk(&mut mtu, Duration::from_secs(1));
    }
    assert_eq!(mtu.found(), Some((1_232, true)));
    let took = path.now.since(start);
    assert!(took < Duration::from_secs(10), "{took:?}");

    let before = path.asked.len();
    path.now += Duration::from_secs(86_400);
    mtu.on_data(64, false, path.now);
    path.settle(&mut mtu);
    assert_eq!(path.asked.len(), before, "keepalives ask nothing");
}

#[test]
fn a_path_that_has_become_wide_again_is_noticed_after_ten_minutes() {
    let mut path = Path::new(1_300);
    let mut mtu = path.measure(1_420);
    assert_eq!(mtu.found(), Some((1_296, true)));
    path.limit = 1_420;
    path.talk(&mut mtu, RAISE_AFTER - Duration::from_secs(10));
    assert_eq!(mtu.found(), Some((1_296, true)), "not to and fro");
    path.talk(&mut mtu, Duration::from_secs(20));
    assert_eq!(mtu.found(), Some((1_420, false)));
}

#[test]
fn a_dead_path_says_nothing_of_sizes() {
    let mut path = Path::new(1_420);
    let mut mtu = path.measure(1_420);
    path.answers = false;
    path.talk(&mut mtu, Duration::from_secs(30));
    assert_eq!(mtu.found(), Some((1_420, false)));
}

#[test]
fn a_question_that_can_not_leave_is_not_counted_as_unanswered() {
    let mut path = Path::new(1_420);
    let mut mtu = PathMtu::default();
    mtu.begin(1_420, path.now);
    path.now += SETTLED;
    for _ in 0..20 {
        assert!(!mtu.due(RTT, path.now).is_empty());
        path.now += Duration::from_secs(1);
        mtu.postpone(path.now);
    }
    path.settle(&mut mtu);
    assert_eq!(mtu.found(), Some((1_420, false)));
    assert_eq!(path.asked, [1_420]);
}
