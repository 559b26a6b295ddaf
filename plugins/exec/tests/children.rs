//! Real programs, good and broken, as an author may write them: the plugin survives each, stays
//! within its bounds, and says a sentence that the author can act on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use landlock::{ABI, AccessFs, Ruleset, RulesetAttr as _};
use natpunch_plugin::testing::{Effect, FakeHost};
use natpunch_plugin::{
    Ask, CandidateKind, Discovery as _, Health, Input, Interest, News, PeerKey, PluginError,
    RecordTag, SealedRecord,
};
use natpunch_plugin_exec::{OwnSetting, OwnSettings, Plugin, Program};
use nix::unistd::{Uid, User};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longer than any deadline of the plugin's.
const PATIENCE: Duration = Duration::from_secs(30);
const HELLO: &str = r#"read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates","records"]}'
"#;
const OWN: PeerKey = PeerKey::from_bytes([1; 32]);
const PEER: PeerKey = PeerKey::from_bytes([2; 32]);

fn own_user() -> String {
    User::from_uid(Uid::effective()).unwrap().unwrap().name
}

fn program(command: &[&str]) -> Program {
    Program {
        command: command.iter().map(|&part| part.to_owned()).collect(),
        user: own_user(),
        meetings: false,
        read_paths: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")],
        write_paths: vec![std::env::temp_dir()],
        settings: OwnSettings::new(),
    }
}

fn shell(script: &str) -> Program {
    program(&["/bin/sh", "-c", script])
}

/// A plugin that runs.
struct Running {
    host: Arc<FakeHost>,
    task: JoinHandle<Result<(), PluginError>>,
}

impl Running {
    fn start(program: Program) -> Self {
        let host = FakeHost::new(OWN, None, 1);
        host.put(peers(RecordTag([0xa1; 16]), RecordTag([0xa2; 16])));
        let mut plugin = Plugin::new(program);
        let for_plugin = host.clone();
        let task = tokio::spawn(async move { plugin.run(for_plugin).await });
        Self { host, task }
    }

    async fn effect(&self) -> Effect {
        timeout(PATIENCE, self.host.effect()).await.unwrap()
    }

    /// The next bad health.
    async fn complaint(&self) -> String {
        loop {
            if let Effect::Reported(Health::Bad(problem)) = self.effect().await {
                return problem;
            }
        }
    }

    async fn said_hello(&self) {
        while !matches!(self.effect().await, Effect::Reported(Health::Good(_))) {}
    }

    /// How the plugin ends.
    async fn end(self) -> Result<(), String> {
        let outcome = timeout(PATIENCE, self.task).await.unwrap().unwrap();
        outcome.map_err(|error| error.to_string())
    }

    async fn stop(self) -> Duration {
        self.host.put(Input::Shutdown);
        let before = Instant::now();
        self.end().await.unwrap();
        before.elapsed()
    }
}

fn peers(inbound_tag: RecordTag, outbound_tag: RecordTag) -> Input {
    let peer = Interest {
        inbound_tag,
        outbound_tag,
        ..Interest::new(PEER)
    };
    Input::Ask(Ask::Peers(Arc::from([peer])))
}

/// Why a plugin with this script fails.
async fn failure(script: &str) -> String {
    Running::start(shell(script)).end().await.unwrap_err()
}

fn assert_says(problem: &str, words: &[&str]) {
    for words in words {
        assert!(problem.contains(words), "no {words:?} in: {problem}");
    }
}

#[tokio::test]
async fn a_program_without_a_hello_is_ended_at_its_deadline() {
    let before = Instant::now();
    let problem = failure("read -r welcome; sleep 60").await;
    assert_says(&problem, &["said no hello within 5 s", "flushed"]);
    assert!(before.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_program_that_ends_at_once_is_quoted_with_its_last_words() {
    let problem = failure("echo 'no such directory' >&2; exit 3").await;
    assert_says(
        &problem,
        &[
            "said no hello",
            "exit status: 3",
            "last words: no such directory",
        ],
    );
}

#[tokio::test]
async fn a_hello_that_is_wrong_says_what_to_write() {
    for (hello, words) in [
        (
            r#"{"natpunch":2,"name":"x","abilities":[]}"#,
            "speaks version 2",
        ),
        (
            r#"{"type":"health","ok":true,"note":""}"#,
            "is not a hello; write",
        ),
        ("starting up", "is not JSON"),
        (r#"{"natpunch":1,"name":"x"}"#, "missing field `abilities`"),
        (
            r#"{"natpunch":1,"name":"x","abilities":["magic"]}"#,
            "unknown variant `magic`",
        ),
        (
            r#"{"natpunch":1,"name":"x","abilities":["meetings"]}"#,
            "meetings = true",
        ),
    ] {
        let problem = failure(&format!("echo '{hello}'; sleep 60")).await;
        assert_says(&problem, &[words]);
    }
}

#[tokio::test]
async fn a_hello_of_half_a_line_or_of_too_long_a_line_is_none() {
    let problem = failure(r#"printf '{"natpunch":1'"#).await;
    assert_says(&problem, &["hello has no end of line", "it ended"]);
    let problem = failure("head -c 71680 /dev/zero | tr '\\0' x; echo; sleep 60").await;
    assert_says(&problem, &["more than 65536 bytes"]);
}

#[tokio::test]
async fn a_line_of_70_kib_is_refused_and_the_next_one_is_heard() {
    let script = format!(
        "{HELLO} head -c 71680 /dev/zero | tr '\\0' x; echo
         echo '{{\"type\":\"health\",\"ok\":true,\"note\":\"still here\"}}'
         read -r peers; read -r shutdown"
    );
    let running = Running::start(shell(&script));
    assert_says(
        &running.complaint().await,
        &["1 so far", "more than 65536 bytes", "several messages"],
    );
    let health = running.effect().await;
    assert_eq!(
        health,
        Effect::Reported(Health::Good("broken: still here".to_owned()))
    );
    running.stop().await;
}

#[tokio::test]
async fn half_a_line_at_the_end_is_told() {
    let running = Running::start(shell(&format!("{HELLO} printf '{{\"type\":'; exit 1")));
    assert_says(&running.complaint().await, &["before its end of line"]);
    assert_says(&running.end().await.unwrap_err(), &["exit status: 1"]);
}

#[tokio::test]
async fn an_answer_about_nobody_is_refused() {
    let stranger = PeerKey::from_bytes([9; 32]);
    let candidate = format!(
        r#"{{"type":"candidate","peer":"{stranger}","address":"192.0.2.1:1","kind":"host","lifetime":60}}"#
    );
    let record = format!(
        r#"{{"type":"records","records":[{{"tag":"{}","blob":"aGk="}}]}}"#,
        "b7".repeat(16)
    );
    let script = format!("{HELLO} read -r peers; echo '{candidate}'; echo '{record}'; read -r end");
    let running = Running::start(shell(&script));
    assert_says(&running.complaint().await, &["answer for those only"]);
    assert_says(
        &running.complaint().await,
        &["2 so far", "look for those only"],
    );
    running.stop().await;
}

#[tokio::test]
async fn a_program_that_keeps_writing_notes_to_standard_output_is_ended() {
    let problem = failure(&format!("{HELLO} while :; do echo working; done")).await;
    assert_says(
        &problem,
        &["too many of its lines were refused (33)", "standard error"],
    );
}

#[tokio::test]
async fn a_flood_is_read_at_a_bounded_rate_and_stop_is_heard() {
    let line = format!(r#"{{"type":"withdraw","peer":"{PEER}","address":"192.0.2.1:1"}}"#);
    let running = Running::start(shell(&format!("{HELLO} exec yes '{line}'")));
    running.said_hello().await;
    let second = tokio::time::sleep(Duration::from_secs(1));
    tokio::pin!(second);
    let mut count = 0;
    loop {
        tokio::select! {
            biased;
            () = &mut second => break,
            _ = running.host.effect() => count += 1,
        }
    }
    // The burst and what a second earns, at two units a line.
    assert!(count < 3 * 4_096, "{count}");
    assert!(running.stop().await < Duration::from_secs(2));
}

#[tokio::test]
async fn a_flood_of_standard_error_does_not_hold_up_the_rest() {
    let script = format!("{HELLO} yes flood >&2 & read -r peers; read -r shutdown; kill $!");
    let running = Running::start(shell(&script));
    running.said_hello().await;
    assert!(running.stop().await < Duration::from_secs(2));
}

/// Waits for the end of the process whose id is in this file.
async fn dies(file: &Path) {
    let pid = fs::read_to_string(file).unwrap();
    let process = PathBuf::from(format!("/proc/{}/stat", pid.trim()));
    let before = Instant::now();
    // Dead, or waiting for whoever inherits it.
    while fs::read_to_string(&process).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(before.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_program_that_hangs_at_stop_is_killed_with_what_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = format!(
        "trap '' TERM HUP PIPE; sleep 60 & echo $! > '{file}.new'; mv '{file}.new' '{file}'
         {HELLO} while :; do sleep 60; done",
        file = file.display()
    );
    let running = Running::start(shell(&script));
    running.said_hello().await;
    let host = running.host.clone();
    assert!(running.stop().await < Duration::from_secs(2));
    let Effect::Reported(Health::Bad(problem)) = host.effect().await else {
        panic!("no complaint")
    };
    assert_says(&problem, &["did not end within 1 s", "end at `shutdown`"]);
    dies(&file).await;
}

#[tokio::test]
async fn a_plugin_that_is_dropped_takes_its_program_and_what_that_started_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = format!("sleep 60 & echo $! > '{}'\n{HELLO} wait", file.display());
    let running = Running::start(shell(&script));
    running.said_hello().await;
    running.task.abort();
    assert!(running.task.await.unwrap_err().is_cancelled());
    dies(&file).await;
}

#[tokio::test]
async fn a_program_that_closes_its_input_or_its_output_is_ended() {
    let running = Running::start(shell(&format!("{HELLO} exec 0<&-; exec sleep 60")));
    running.said_hello().await;
    while !running.task.is_finished() {
        running.host.put(Input::NetworkChanged);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let problem = running.end().await.unwrap_err();
    assert_says(&problem, &["closed its standard input"]);
    let problem = failure(&format!("{HELLO} exec >&-; exec sleep 60")).await;
    assert_says(&problem, &["closed its standard output"]);
}

#[tokio::test]
async fn a_program_that_dies_is_noticed_although_what_it_started_holds_its_output() {
    let before = Instant::now();
    let problem = failure(&format!("{HELLO} sleep 60 & kill -KILL $$")).await;
    assert_says(&problem, &["it ended (signal: 9", "without being told to"]);
    assert!(before.elapsed() < PATIENCE);
}

#[tokio::test]
async fn a_program_that_reads_nothing_is_ended() {
    let running = Running::start(shell(&format!("{HELLO} exec sleep 60")));
    // More than a pipe holds.
    let many: Vec<Interest> = (0..2_000).map(|_| Interest::new(PEER)).collect();
    running.host.put(Input::Ask(Ask::Peers(many.into())));
    let problem = running.end().await.unwrap_err();
    assert_says(&problem, &["unread for 10 s", "read standard input"]);
}

#[tokio::test]
async fn a_program_that_others_can_change_or_that_is_missing_is_not_started() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("plugin");
    fs::write(&file, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o775)).unwrap();
    let path = file.to_str().unwrap();
    let problem = Running::start(program(&[path])).end().await.unwrap_err();
    assert_says(&problem, &["others than its owner", "chmod go-w"]);
    let missing = Running::start(program(&["/nowhere/plugin"]));
    assert_says(&missing.end().await.unwrap_err(), &["install the program"]);
    let nobody = Program {
        user: "no-such-user".to_owned(),
        ..shell("true")
    };
    let problem = Running::start(nobody).end().await.unwrap_err();
    assert_says(&problem, &["no user `no-such-user`", "useradd"]);
}

/// A program that says what this script writes as the note of its health.
fn noting(script: &str) -> String {
    format!(
        "{HELLO} note=$({script})
         printf '{{\"type\":\"health\",\"ok\":false,\"note\":\"%s\"}}\\n' \"$note\"
         read -r peers; read -r shutdown"
    )
}

async fn note(user: &str, script: &str) -> String {
    let program = Program {
        user: user.to_owned(),
        ..shell(&noting(script))
    };
    note_of(program).await
}

/// The note of a program's health.
async fn note_of(program: Program) -> String {
    let running = Running::start(program);
    let note = running.complaint().await;
    running.stop().await;
    note
}

#[tokio::test]
async fn a_program_sees_an_empty_environment_and_can_gain_no_privileges() {
    let names = note(&own_user(), "env | cut -d= -f1 | sort | tr '\\n' ' '").await;
    for name in names.trim_start_matches("broken: ").split_whitespace() {
        // The last three are the shell's own.
        assert!(
            ["PATH", "LANG", "PWD", "_", "OLDPWD"].contains(&name),
            "{names}"
        );
    }
    let status = note(
        &own_user(),
        "grep NoNewPrivs /proc/self/status | tr -d '\\t'",
    )
    .await;
    assert_eq!(status, "broken: NoNewPrivs:1");
    let limit = note(&own_user(), "ulimit -n").await;
    assert_eq!(limit, "broken: 256");
}

/// The Landlock of this kernel, which tells it to a thread that fences itself.
fn landlock_here() -> ABI {
    let fenced = std::thread::spawn(|| {
        let ruleset = Ruleset::default().handle_access(AccessFs::Execute).unwrap();
        ruleset.create().unwrap().restrict_self().unwrap()
    });
    fenced.join().unwrap().landlock.into()
}

#[tokio::test]
async fn a_program_can_change_nothing_outside_of_its_fence() {
    let landlock = landlock_here();
    if landlock == ABI::Unsupported {
        println!("this kernel has no Landlock");
        return;
    }
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let write = |path: &Path| format!("touch {}/file 2>/dev/null", path.display());
    let script = format!(
        "{} && printf 'wrote inside, '; {} || printf 'not outside, '; \
         cat {} 2>/dev/null || printf 'nor read; '; \
         kill -0 {} 2>/dev/null || printf 'signals nobody'",
        write(inside.path()),
        write(outside.path()),
        secret.display(),
        std::process::id(),
    );
    let fenced = Program {
        write_paths: vec![inside.path().to_owned()],
        ..shell(&noting(&script))
    };
    let said = "wrote inside, not outside, nor read; ";
    let note = note_of(fenced).await;
    assert!(note.starts_with(&format!("broken: {said}")), "{note}");
    // Signals are a matter of Landlock's sixth version.
    if landlock >= ABI::V6 {
        assert_eq!(note, format!("broken: {said}signals nobody"));
    }
    let missing = Program {
        write_paths: vec!["/nowhere/records".into()],
        ..shell(HELLO)
    };
    let problem = Running::start(missing).end().await.unwrap_err();
    assert_says(
        &problem,
        &["`write_paths` names /nowhere/records", "make it"],
    );
}

#[tokio::test]
async fn settings_are_checked_by_the_hello_and_told_before_the_peers() {
    const SCRIPT: &str = r#"read -r welcome
printf '{"natpunch":1,"name":"own","abilities":[],"settings":{'
printf '"directory":{"type":"string","required":true,"doc":"where the records lie"},'
echo '"seconds":{"type":"integer","doc":"between two looks"}}}'
read -r settings; read -r peers
note=$(printf '%s' "$settings $peers" | cut -c -79 | sed 's/"/\\"/g')
printf '{"type":"health","ok":false,"note":"%s"}\n' "$note"
read -r shutdown
"#;
    let with = |settings: &[(&str, OwnSetting)]| Program {
        settings: settings
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .collect(),
        ..shell(SCRIPT)
    };
    let directory = ("directory", OwnSetting::String("/srv".to_owned()));
    let good = with(&[directory.clone(), ("seconds", OwnSetting::Integer(2))]);
    let running = Running::start(good);
    let told = r#"{"type":"settings","settings":{"directory":"/srv","seconds":2}} {"type":"peers""#;
    assert_eq!(running.complaint().await, format!("own: {told}"));
    running.stop().await;

    let bad = with(&[
        ("second", OwnSetting::Integer(2)),
        ("seconds", OwnSetting::Boolean(true)),
    ]);
    let problem = Running::start(bad).end().await.unwrap_err();
    let sentences = [
        "`settings.second` is not a setting of own; its settings: directory, seconds",
        "`settings.seconds` is not a whole number; between two looks: write seconds = 1",
        "`settings.directory` is missing; where the records lie: add a line",
    ];
    assert_says(&problem, &sentences);
    let none = Program {
        settings: OwnSettings::from([("a".to_owned(), OwnSetting::Integer(1))]),
        ..shell(&format!("{HELLO} read -r shutdown"))
    };
    let problem = Running::start(none).end().await.unwrap_err();
    assert_says(
        &problem,
        &["`settings.a` is not a setting of broken; take it out"],
    );
}

#[tokio::test]
async fn a_program_runs_as_its_user_without_groups_and_capabilities() {
    if !Uid::effective().is_root() {
        println!("only root can change to another user");
        return;
    }
    // The last one counts the lines of no capability at all.
    let ids = "id -un; id -G | wc -w; grep -c '^CapEff:[[:space:]]*0*$' /proc/self/status";
    let ids = note("nobody", &format!("{{ {ids}; }} | tr '\\n' ' '")).await;
    assert_eq!(ids.trim_end(), "broken: nobody 1 1");
}

#[tokio::test]
async fn a_candidate_comes_through() {
    let line = format!(
        r#"{{"type":"candidate","peer":"{PEER}","address":"192.0.2.1:51820","kind":"mapped","lifetime":60}}"#
    );
    let running = Running::start(shell(&format!(
        "{HELLO} read -r peers; echo '{line}'; read -r shutdown"
    )));
    running.said_hello().await;
    let Effect::Told(News::Candidate { peer, candidate }) = running.effect().await else {
        panic!("no candidate")
    };
    assert_eq!((peer, candidate.kind), (PEER, CandidateKind::Mapped));
    running.stop().await;
}

/// Two nodes that share a directory, each with one of these examples.
async fn find_each_other(examples: [&str; 2]) {
    let shared = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/plugins");
    let tags = [RecordTag([0xa1; 16]), RecordTag([0xa2; 16])];
    let start = |example: &str| {
        let path = root.join(example);
        let directory = shared.path().to_str().unwrap();
        // Not by its own mode, which a checkout may have widened.
        let interpreter = if example.ends_with(".py") {
            "/usr/bin/env"
        } else {
            "/bin/sh"
        };
        let path = path.to_str().unwrap();
        let command = match interpreter {
            "/usr/bin/env" => vec![interpreter, "python3", path],
            _ => vec![interpreter, path, directory],
        };
        let mut program = program(&command);
        if example.ends_with(".py") {
            let directory = OwnSetting::String(directory.to_owned());
            program.settings.insert("directory".to_owned(), directory);
        }
        Running::start(program)
    };
    let nodes = examples.map(start);
    for (index, node) in nodes.iter().enumerate() {
        let (inbound, outbound) = (tags[index], tags[1 - index]);
        node.host.put(peers(inbound, outbound));
        let record = SealedRecord {
            tag: outbound,
            blob: Arc::from(vec![u8::try_from(index).unwrap(); 300]),
        };
        node.host.put(Input::Ask(Ask::Records(Arc::from([record]))));
    }
    for (index, node) in nodes.into_iter().enumerate() {
        let record = loop {
            match node.effect().await {
                Effect::Told(News::Record(record)) => break record,
                Effect::Reported(Health::Good(_)) => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(record.tag, tags[index]);
        assert_eq!(record.blob[..], vec![u8::try_from(1 - index).unwrap(); 300]);
        assert!(node.stop().await < Duration::from_secs(2));
    }
}

#[tokio::test]
async fn the_examples_bring_records_to_each_other() {
    find_each_other(["file.sh", "file.py"]).await;
    find_each_other(["file.py", "file.sh"]).await;
}

#[test]
fn each_example_is_short() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/plugins");
    for entry in fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines < 60, "{}: {lines}", path.display());
    }
}
