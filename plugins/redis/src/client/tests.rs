use natpunch_redis::Reader;
use rand_core::SeedableRng as _;

use super::*;

const TAG: RecordTag = RecordTag([0xa1; 16]);
const OTHER: RecordTag = RecordTag([0xa2; 16]);
/// The answer to HELLO, as Redis 7 has it.
const HELLO: &str = "%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nmodules\r\n*0\r\n";

fn at(seconds: u64) -> Time {
    Time::from_millis(seconds * 1_000)
}

fn key(tag: RecordTag) -> String {
    format!("n:{tag}")
}

fn record(tag: RecordTag, blob: &[u8]) -> SealedRecord {
    SealedRecord {
        tag,
        blob: blob.into(),
    }
}

/// A client, and the commands that it has sent.
struct Bench {
    client: Client,
    now: Time,
}

impl Bench {
    fn with(config: Config) -> Self {
        let now = at(100);
        let client = Client::new(config, ChaCha20Rng::from_seed([7; 32]), now);
        Self { client, now }
    }

    fn new() -> Self {
        Self::with(Config {
            prefix: "n:".to_owned(),
            user: "default".to_owned(),
            password: None,
            database: 0,
            lifetime: Duration::from_secs(3_600),
        })
    }

    /// A client with these, greeted.
    fn ready(tags: &[RecordTag], records: &[SealedRecord]) -> Self {
        let mut bench = Self::new();
        bench.client.set_tags(tags.iter().copied());
        bench.client.set_records(records);
        bench.connects();
        bench.answer(HELLO);
        bench
    }

    fn connects(&mut self) {
        assert!(self.client.poll_connect(self.now), "no connection is made");
        self.client.handle_connected(self.now);
        assert_eq!(self.sent(), ["HELLO 3"]);
    }

    /// Lets so much time pass; what is due then happens.
    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.client.handle_timeout(self.now);
    }

    /// What is sent now.
    fn sent(&mut self) -> Vec<String> {
        let mut reader = Reader::default();
        let mut sent = Vec::new();
        while let Some(bytes) = self.client.poll_transmit(self.now) {
            reader.push(&bytes);
            let Some(Reply::List(parts)) = reader.next_reply().unwrap() else {
                panic!("no command: {bytes:?}")
            };
            let text = |part: &Reply| match part {
                Reply::Text(text) => String::from_utf8_lossy(text).into_owned(),
                other => panic!("{other:?}"),
            };
            sent.push(parts.iter().map(text).collect::<Vec<_>>().join(" "));
        }
        sent
    }

    fn answer(&mut self, bytes: &str) {
        self.client.handle_bytes(bytes.as_bytes(), self.now);
    }

    /// Answers everything as a server does that has nothing yet, until nothing more is asked.
    fn settle(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let sent = self.sent();
            if sent.is_empty() {
                return all;
            }
            for command in &sent {
                self.answer(&honest(command));
            }
            all.extend(sent);
        }
    }

    fn news(&mut self) -> Vec<SealedRecord> {
        std::iter::from_fn(|| self.client.poll_news()).collect()
    }

    fn complaint(&self) -> String {
        match self.client.health() {
            Some(Health::Bad(problem)) => problem,
            other => panic!("no complaint: {other:?}"),
        }
    }

    fn is_good(&self) -> bool {
        matches!(self.client.health(), Some(Health::Good(_)))
    }
}

/// The answer to a command.
fn honest(command: &str) -> String {
    let words: Vec<&str> = command.split(' ').collect();
    match words[0] {
        "HELLO" => HELLO.to_owned(),
        "PING" => "+PONG\r\n".to_owned(),
        "SELECT" | "SET" => "+OK\r\n".to_owned(),
        "PUBLISH" => ":1\r\n".to_owned(),
        "GETRANGE" => "$0\r\n\r\n".to_owned(),
        kind @ ("SUBSCRIBE" | "UNSUBSCRIBE") => {
            let (kind, channel) = (kind.to_lowercase(), words[1]);
            format!(">3\r\n+{kind}\r\n${}\r\n{channel}\r\n:1\r\n", channel.len())
        }
        other => panic!("{other}"),
    }
}

fn message(tag: RecordTag, payload: &str) -> String {
    let (channel, length) = (key(tag), payload.len());
    format!(
        ">3\r\n$7\r\nmessage\r\n${}\r\n{channel}\r\n${length}\r\n{payload}\r\n",
        channel.len()
    )
}

#[test]
fn a_tag_is_subscribed_to_before_it_is_read_and_a_record_stored_before_it_is_published() {
    let mut bench = Bench::ready(&[TAG, RecordTag::NONE], &[record(OTHER, b"mine")]);
    let (theirs, mine) = (key(TAG), key(OTHER));
    assert_eq!(
        bench.settle(),
        [
            format!("SUBSCRIBE {theirs}"),
            format!("GETRANGE {theirs} 0 2048"),
            format!("SET {mine} mine PX 3600000"),
            format!("PUBLISH {mine} mine"),
        ]
    );
    assert!(bench.is_good());
}

#[test]
fn nothing_is_asked_before_the_login_is_accepted_and_the_database_selected() {
    let mut bench = Bench::with(Config {
        user: "mesh".to_owned(),
        password: "open sesame".parse().ok(),
        database: 3,
        ..Bench::new().client.config
    });
    bench.client.set_tags([TAG]);
    assert!(bench.client.poll_connect(bench.now));
    bench.client.handle_connected(bench.now);
    assert_eq!(bench.sent(), ["HELLO 3 AUTH mesh open sesame"]);
    assert!(bench.client.health().is_none());
    bench.answer(HELLO);
    assert_eq!(bench.sent(), ["SELECT 3"]);
    bench.answer("+OK\r\n");
    assert_eq!(bench.sent().len(), 2);

    let mut refused = Bench::new();
    refused.connects();
    refused.answer("-NOAUTH Authentication required.\r\n");
    assert!(!refused.client.is_up() && refused.sent().is_empty());
    assert!(refused.complaint().contains("password_file"));
}

#[test]
fn what_a_peer_left_and_what_it_publishes_is_told_once() {
    let mut bench = Bench::ready(&[TAG], &[]);
    bench.sent();
    bench.answer(&honest(&format!("SUBSCRIBE {}", key(TAG))));
    bench.answer("$3\r\nold\r\n");
    bench.answer(&message(TAG, "new"));
    bench.answer(&message(TAG, "new"));
    bench.answer(&message(TAG, ""));
    assert_eq!(bench.news(), [record(TAG, b"old"), record(TAG, b"new")]);

    // After another connection only what is another than before.
    bench.client.handle_lost(Trouble::Closed, bench.now);
    bench.wait(Duration::from_secs(5));
    bench.connects();
    bench.answer(HELLO);
    assert_eq!(bench.sent().len(), 2);
    bench.answer(&honest(&format!("SUBSCRIBE {}", key(TAG))));
    bench.answer("$3\r\nnew\r\n");
    assert!(bench.news().is_empty());
    bench.answer(&message(TAG, "newest"));
    assert_eq!(bench.news(), [record(TAG, b"newest")]);
}

#[test]
fn a_new_peer_and_a_new_record_are_served_at_once_and_one_that_left_no_more() {
    let mut bench = Bench::ready(&[TAG], &[record(TAG, b"1")]);
    bench.settle();
    bench.client.set_tags([OTHER]);
    let (old, new) = (key(TAG), key(OTHER));
    let expected = [
        format!("UNSUBSCRIBE {old}"),
        format!("SUBSCRIBE {new}"),
        format!("GETRANGE {new} 0 2048"),
    ];
    assert_eq!(bench.settle(), expected);
    bench.answer(&message(TAG, "late"));
    assert!(bench.news().is_empty());

    bench
        .client
        .set_records(&[record(TAG, b"1"), record(OTHER, b"2")]);
    let expected = [
        format!("SET {new} 2 PX 3600000"),
        format!("PUBLISH {new} 2"),
    ];
    assert_eq!(bench.settle(), expected);
}

#[test]
fn records_are_stored_again_well_before_they_expire_and_read_again_seldom() {
    let mut bench = Bench::ready(&[TAG], &[record(OTHER, b"mine")]);
    bench.settle();
    let (mut stored, mut read) = (Vec::new(), 0);
    let start = bench.now;
    while bench.now.since(start) < Duration::from_secs(3 * 3_600) {
        let due = bench.client.poll_timeout().unwrap();
        assert!(due > bench.now, "it does not rest");
        let wait = due.since(bench.now);
        bench.wait(wait);
        for command in bench.settle() {
            match command.split(' ').next().unwrap() {
                "SET" => stored.push(bench.now),
                "GETRANGE" => read += 1,
                "PING" => {}
                other => panic!("{other}"),
            }
        }
    }
    let gaps = stored.windows(2).map(|two| two[1].since(two[0]));
    let longest = gaps.max().unwrap();
    assert!(longest < Duration::from_secs(3_600 / 2), "{longest:?}");
    assert!(
        stored.len() < 15 && (10..30).contains(&read),
        "{stored:?} {read}"
    );
}

#[test]
fn a_full_server_is_said_and_records_are_published_all_the_same() {
    let mut bench = Bench::ready(&[], &[record(TAG, b"1")]);
    assert_eq!(bench.sent().len(), 2);
    bench.answer("-OOM command not allowed\r\n:1\r\n");
    assert!(bench.complaint().contains("maxmemory"));

    // What is new is published at once, and not stored before its time.
    bench.client.set_records(&[record(TAG, b"2")]);
    assert_eq!(bench.settle(), [format!("PUBLISH {} 2", key(TAG))]);
    bench.wait(REFUSED / 2);
    assert!(bench.sent().is_empty());
    let wait = bench.client.poll_timeout().unwrap().since(bench.now);
    assert!(!wait.is_zero());
    bench.wait(REFUSED);
    let sent = bench.settle();
    assert!(
        sent.contains(&format!("SET {} 2 PX 3600000", key(TAG))),
        "{sent:?}"
    );
    // Who came meanwhile found nothing.
    assert!(
        sent.contains(&format!("PUBLISH {} 2", key(TAG))),
        "{sent:?}"
    );
    assert!(bench.is_good());
}

#[test]
fn what_the_user_may_not_do_is_said_and_the_rest_goes_on() {
    let mut bench = Bench::ready(&[TAG], &[record(OTHER, b"1")]);
    assert_eq!(bench.sent().len(), 4);
    bench.answer("-NOPERM no permission\r\n$3\r\nold\r\n+OK\r\n-NOPERM no permission\r\n");
    let complaint = bench.complaint();
    assert!(
        complaint.contains("SUBSCRIBE") && complaint.contains("PUBLISH"),
        "{complaint}"
    );
    assert_eq!(bench.news(), [record(TAG, b"old")]);
    // Nobody waits for the tag any more: nothing is refused.
    bench.client.set_tags([]);
    bench.client.set_records(&[]);
    bench.wait(REFUSED * 2);
    bench.settle();
    bench.wait(Duration::ZERO);
    assert!(bench.is_good(), "{:?}", bench.client.health());
}

#[test]
fn no_more_is_under_way_than_a_window_holds() {
    let tags: Vec<RecordTag> = (0..200).map(|n| RecordTag([n + 1; 16])).collect();
    let mut bench = Bench::ready(&tags, &[]);
    let sent = bench.sent();
    assert_eq!(sent.len(), 32);
    bench.answer(&honest(&sent[0]));
    assert_eq!(bench.sent().len(), 1);
}

#[test]
fn an_answer_that_is_overdue_ends_the_connection() {
    let mut bench = Bench::ready(&[TAG], &[]);
    bench.sent();
    bench.wait(Duration::from_secs(9));
    assert!(bench.client.is_up());
    bench.wait(Duration::from_secs(2));
    assert!(!bench.client.is_up());
    assert!(bench.complaint().contains("does not answer"));
}

#[test]
fn a_quiet_server_is_asked_whether_it_is_there() {
    let mut bench = Bench::ready(&[TAG], &[]);
    bench.settle();
    bench.wait(Duration::from_secs(31));
    assert_eq!(bench.sent(), ["PING"]);
    bench.wait(Duration::from_secs(11));
    assert!(!bench.client.is_up());
}

#[test]
fn another_network_makes_a_connection_prove_itself_soon_and_ends_a_wait() {
    let mut bench = Bench::ready(&[TAG], &[]);
    bench.settle();
    bench.client.handle_network_change(bench.now);
    assert_eq!(bench.sent(), ["PING"]);
    bench.wait(Duration::from_secs(4));
    assert!(!bench.client.is_up());

    for _ in 0..10 {
        bench.client.handle_lost(Trouble::Closed, bench.now);
    }
    bench.client.handle_network_change(bench.now);
    bench.connects();
    bench.client.handle_lost(Trouble::Closed, bench.now);
    bench.client.handle_network_change(bench.now);
    assert!(
        !bench.client.poll_connect(bench.now),
        "a network that flaps is no storm"
    );
    bench.now += SOONEST;
    assert!(bench.client.poll_connect(bench.now));
}

/// How long a client waits after each of so many failures.
fn waits(client: &mut Client, failures: usize, now: Time) -> Vec<Duration> {
    let wait = |_| {
        client.handle_lost(Trouble::Closed, now);
        client.poll_timeout().unwrap().since(now)
    };
    (0..failures).map(wait).collect()
}

#[test]
fn waits_grow_up_to_a_minute_differ_and_begin_anew_after_a_good_connection() {
    let mut bench = Bench::new();
    let first = waits(&mut bench.client, 12, bench.now);
    for (index, wait) in first.iter().enumerate() {
        let middle = backoff(RECONNECT, u32::try_from(index).unwrap());
        assert!(
            (middle.mul_f64(0.75)..=middle.mul_f64(1.25)).contains(wait),
            "{first:?}"
        );
    }
    let last: BTreeSet<_> = first[7..].iter().collect();
    assert_eq!(last.len(), 5, "{first:?}");

    // Who greets well and fails at once is no good server.
    bench.now += Duration::from_secs(100);
    bench.connects();
    bench.answer(HELLO);
    assert!(waits(&mut bench.client, 1, bench.now)[0] > Duration::from_secs(40));
    bench.now += Duration::from_secs(100);
    bench.connects();
    bench.answer(HELLO);
    bench.now += GOOD;
    assert!(waits(&mut bench.client, 1, bench.now)[0] < Duration::from_secs(2));
}

#[test]
fn a_flood_of_messages_ends_the_connection() {
    let mut bench = Bench::ready(&[TAG], &[]);
    bench.settle();
    let mut count = 0;
    while bench.client.is_up() && count < 100_000 {
        bench.answer(&message(TAG, &count.to_string()));
        count += 1;
    }
    assert!((4_096..10_000).contains(&count), "{count}");
    assert!(bench.complaint().contains("more messages"));
}

#[test]
fn what_is_no_record_is_not_told_and_said() {
    let mut bench = Bench::ready(&[TAG, OTHER], &[]);
    bench.sent();
    for tag in [TAG, OTHER] {
        bench.answer(&honest(&format!("SUBSCRIBE {}", key(tag))));
    }
    bench.answer(&format!("$2049\r\n{}\r\n", "x".repeat(2049)));
    bench.answer("-WRONGTYPE Operation against a key\r\n");
    assert!(bench.complaint().contains("2 of the mesh's keys"));
    bench.answer(&message(RecordTag([9; 16]), "of nobody"));
    bench.answer(">3\r\n$7\r\nmessage\r\n$1\r\n\u{1}\r\n$1\r\na\r\n");
    bench.answer(">2\r\n+invalidate\r\n_\r\n");
    assert!(bench.news().is_empty() && bench.client.is_up());
}

#[test]
fn a_server_that_lies_is_left() {
    for (lie, words) in [
        ("HTTP/1.1 400 Bad Request\r\n", "no Redis or Valkey"),
        (
            ">3\r\n+message\r\n+a\r\n$1073741824\r\n",
            "longer than any record",
        ),
        (":1\r\n", "answer to SUBSCRIBE"),
    ] {
        let mut bench = Bench::ready(&[TAG], &[]);
        bench.sent();
        bench.answer(lie);
        assert!(!bench.client.is_up(), "{lie}");
        assert!(bench.complaint().contains(words), "{}", bench.complaint());
    }
    // An answer to nothing.
    let mut bench = Bench::ready(&[], &[]);
    bench.answer("+OK\r\n");
    assert!(!bench.client.is_up());
}

#[test]
fn only_so_many_peers_are_served() {
    let tags = (0..5_000_u128).map(|n| RecordTag((n + 1).to_be_bytes()));
    let mut bench = Bench::new();
    bench.client.set_tags(tags);
    bench.connects();
    bench.answer(HELLO);
    let subscribed = bench.settle();
    let subscribed = subscribed.iter().filter(|it| it.starts_with("SUBSCRIBE"));
    assert_eq!(subscribed.count(), MOST_TAGS);
    assert!(bench.complaint().contains("4096"));
}
