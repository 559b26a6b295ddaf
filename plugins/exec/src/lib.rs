//! Discovery by a program of one's own: a child process with lines of JSON on its standard input
//! and output, as `docs/reference/plugin-protocol.md` has them.
//!
//! The program is not trusted. It runs as another user with an empty environment, behind a fence of
//! Landlock, can't gain privileges, and ends with its process group when the plugin does. Its lines
//! are bounded in length and rate: a program that writes too fast waits at a full pipe. A line that
//! is wrong is refused with a sentence for the program's author, and after too many the plugin
//! fails, upon which its host starts it anew with back-off. The program sees public keys, tags and
//! sealed records, no private key.

mod fence;
mod lines;
mod log;
mod own_settings;
mod process;
mod protocol;
mod settings;
mod text;
pub mod trial;

use std::sync::Arc;
use std::time::Duration;

use natpunch_plugin::{BoxFuture, Discovery, Health, Host, Input, PluginError, Time};
use natpunch_types::{Bucket, Rate, RateBudget};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::{Instant, timeout};

use lines::{Line, Lines};
use log::Log;
use trial::Watch;

pub use own_settings::{OwnSetting, OwnSettings};
use protocol::{Heard, LONGEST_LINE, Session};
pub use settings::{Program, Settings};

/// How long a program may take for its first line.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long a program may leave a message unread.
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// How long a program may take to end after `shutdown`. The host waits for 2 s.
const STOP_DEADLINE: Duration = Duration::from_secs(1);
/// How long natpunch waits for the exit status and the last words of a program that is ending.
const END_DEADLINE: Duration = Duration::from_millis(500);
/// What a program may write: so many messages of 256 bytes.
const LINES: Rate = Rate::per_second(4_096, 4_096);
const BYTES_PER_UNIT: usize = 256;
/// Lines that may be wrong before the program is restarted.
const REFUSALS: Rate = Rate::every(Duration::from_secs(10), 32);

/// The exec plugin.
#[derive(Debug)]
pub struct Plugin {
    program: Program,
    watch: Watch,
}

impl Plugin {
    /// The plugin that is this program.
    pub fn new(program: Program) -> Self {
        Self::watched(program, Watch::default())
    }

    fn watched(program: Program, watch: Watch) -> Self {
        Self { program, watch }
    }
}

impl Discovery for Plugin {
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async move { run(&self.program, &*host, &self.watch).await })
    }
}

/// Runs the program once, to its end.
async fn run(program: &Program, host: &dyn Host, watch: &Watch) -> Result<(), PluginError> {
    let process::Running {
        child,
        group,
        stdin,
        stdout,
        stderr,
    } = process::start(program).await?;
    let path = program.command.first().map_or("", String::as_str);
    let log = Log::default();
    let logging = log.run(path, stderr, host);
    tokio::pin!(logging);
    let mut is_logged = false;
    let outcome = {
        let conversation = Conversation {
            host,
            watch,
            child,
            stdin,
            lines: Lines::new(stdout, LONGEST_LINE),
            resume: Time::ZERO,
            bucket: Bucket::full_at(Time::ZERO),
            refusals: RateBudget::new(REFUSALS),
            refused: 0,
        };
        let outcome = conversation.run(program);
        tokio::pin!(outcome);
        loop {
            tokio::select! {
                outcome = &mut outcome => break outcome,
                () = &mut logging, if !is_logged => is_logged = true,
            }
        }
    };
    drop(group);
    if !is_logged {
        // A process that left the group may keep the pipe open.
        let _ = timeout(END_DEADLINE, &mut logging).await;
    }
    outcome.map_err(|error| match (error, log.last_words()) {
        (PluginError::Failed(problem), Some(words)) => {
            PluginError::Failed(format!("{path}: {problem}; its last words: {words}"))
        }
        (PluginError::Failed(problem), None) => PluginError::Failed(format!("{path}: {problem}")),
        (error, _) => error,
    })
}

/// A running program, and what natpunch is about to do with it.
struct Conversation<'a> {
    host: &'a dyn Host,
    watch: &'a Watch,
    child: Child,
    stdin: ChildStdin,
    lines: Lines<ChildStdout>,
    /// When its next line is read.
    resume: Time,
    bucket: Bucket,
    refusals: RateBudget,
    /// How many of its lines were refused.
    refused: u64,
}

/// A message on its way to the program.
struct Sending {
    line: Vec<u8>,
    sent: usize,
    deadline: Instant,
}

impl Sending {
    fn new(line: String) -> Self {
        Self {
            line: line.into_bytes(),
            sent: 0,
            deadline: Instant::now() + READ_DEADLINE,
        }
    }

    fn rest(&self) -> &[u8] {
        self.line.get(self.sent..).unwrap_or_default()
    }
}

impl Conversation<'_> {
    async fn run(mut self, program: &Program) -> Result<(), PluginError> {
        let greeting = self.greet(program.meetings);
        let mut session = match timeout(HELLO_DEADLINE, greeting).await {
            Ok(session) => session?,
            Err(_) => {
                return Err(PluginError::Failed(format!(
                    "it said no hello within {} s; its first line is \
                     {{\"natpunch\":1,\"name\":…,\"abilities\":[…]}}, written out and flushed",
                    HELLO_DEADLINE.as_secs()
                )));
            }
        };
        let settings = session.settings(&program.settings);
        let mut sending = settings.map_err(PluginError::Settings)?.map(Sending::new);
        self.watch.said_hello(session.carries_records());
        self.host
            .report(Health::Good(format!("{} runs", session.name())));
        loop {
            let pause = self.resume.since(self.host.now());
            let deadline = sending.as_ref().map(|sending| sending.deadline);
            // Each message is fetched when the one before is read, so the program is told the
            // newest state however slow it reads.
            tokio::select! {
                line = self.lines.next(), if pause.is_zero() => match line {
                    Ok(Some(line)) => self.hear(&session, line)?,
                    Ok(None) | Err(_) => return Err(self.ending().await.into()),
                },
                () = tokio::time::sleep(pause), if !pause.is_zero() => {}
                // Its output may go on without it: what it started holds it open.
                _ = self.child.wait() => return Err(self.last_of(&session).await.into()),
                sent = write(&mut self.stdin, sending.as_ref()), if sending.is_some() => {
                    let Ok(sent) = sent else {
                        return Err(self.last_of(&session).await.into());
                    };
                    sending = sending.and_then(|message| progress(message, sent));
                }
                () = sleep_until(deadline), if deadline.is_some() => {
                    return Err(PluginError::Failed(format!(
                        "it left a message unread for {} s; read standard input all the time",
                        READ_DEADLINE.as_secs()
                    )));
                }
                input = self.host.next(), if sending.is_none() => {
                    if matches!(input, Input::Shutdown) {
                        self.stop().await;
                        return Ok(());
                    }
                    sending = session.handle_input(&input).map(Sending::new);
                }
            }
        }
    }

    /// Exchanges the first lines.
    async fn greet(&mut self, may_meet: bool) -> Result<Session, String> {
        let welcome = protocol::welcome(self.host.own_key(), self.host.listen_port());
        // One that ends at once, or never reads, is known by what it writes.
        let _ = self.stdin.write_all(welcome.as_bytes()).await;
        match self.lines.next().await {
            Ok(Some(Line::Whole(hello))) => Session::start(&hello, may_meet),
            Ok(Some(Line::TooLong)) => Err(format!(
                "its first line has more than {LONGEST_LINE} bytes and so is not a hello"
            )),
            Ok(Some(Line::Half)) => {
                let ending = self.ending().await;
                Err(format!("its hello has no end of line; {ending}"))
            }
            Ok(None) | Err(_) => {
                let ending = self.ending().await;
                Err(format!("it said no hello; {ending}"))
            }
        }
    }

    /// Takes in one line of the program's.
    fn hear(&mut self, session: &Session, line: Line) -> Result<(), String> {
        let now = self.host.now();
        let length = match &line {
            Line::Whole(line) => line.len(),
            Line::TooLong => LONGEST_LINE,
            Line::Half => 0,
        };
        let units = 1 + length.div_ceil(BYTES_PER_UNIT) as u64;
        let reserved = self.bucket.reserve(LINES, units, Duration::MAX, now);
        self.resume = reserved.unwrap_or(now);
        let heard = match line {
            Line::Whole(line) => session.handle_line(&line),
            Line::TooLong => Err(format!(
                "it has more than {LONGEST_LINE} bytes; write several messages"
            )),
            Line::Half => Err("the output ended before its end of line".to_owned()),
        };
        match heard {
            Ok(heard) => {
                for one in heard {
                    match one {
                        Heard::News(news) => self.host.tell(news),
                        Heard::Health(health) => self.host.report(health),
                    }
                }
                Ok(())
            }
            Err(problem) => {
                self.watch.refused(&problem);
                self.refused += 1;
                let count = self.refused;
                if !self.refusals.take(now) {
                    return Err(format!(
                        "too many of its lines were refused ({count}); the last: {problem}"
                    ));
                }
                let name = session.name();
                self.host.report(Health::Bad(format!(
                    "{name}: a line was refused ({count} so far): {problem}"
                )));
                Ok(())
            }
        }
    }

    /// Asks the program to end, and ends it when it does not.
    async fn stop(mut self) {
        let farewell = protocol::farewell();
        let ended = timeout(STOP_DEADLINE, async {
            // One that reads no more sees the end of its input.
            let _ = self.stdin.write_all(farewell.as_bytes()).await;
            drop(self.stdin);
            // One that writes to a full pipe would never come to read the word. What it started may
            // hold the pipe open.
            let drained = async {
                while let Ok(Some(_)) = self.lines.next().await {}
                std::future::pending::<()>().await;
            };
            tokio::select! {
                _ = self.child.wait() => {}
                () = drained => {}
            }
        });
        if ended.await.is_err() {
            let problem = format!(
                "it did not end within {} s of `shutdown`, and was killed; end at `shutdown` and \
                 at the end of standard input",
                STOP_DEADLINE.as_secs()
            );
            self.watch.killed(&problem);
            self.host.report(Health::Bad(problem));
        }
    }

    /// Why its output ended.
    async fn ending(&mut self) -> String {
        match timeout(END_DEADLINE, self.child.wait()).await {
            Ok(Ok(status)) => format!("it ended ({status}) without being told to"),
            Ok(Err(error)) => format!("it ended: {error}"),
            Err(_) => "it closed its standard output and was killed; keep it open".to_owned(),
        }
    }

    /// Why it is over, once what it wrote before is heard: it has ended, or closed its input, which
    /// a program that ends does, too.
    async fn last_of(&mut self, session: &Session) -> String {
        let rest = async {
            loop {
                let pause = self.resume.since(self.host.now());
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                match self.lines.next().await {
                    Ok(Some(line)) => self.hear(session, line)?,
                    Ok(None) | Err(_) => return Ok::<(), String>(()),
                }
            }
        };
        match timeout(END_DEADLINE, rest).await {
            Ok(Ok(())) => self.ending().await,
            Ok(Err(problem)) => problem,
            Err(_) => match self.child.try_wait() {
                // What it started holds its output open.
                Ok(Some(status)) => format!("it ended ({status}) without being told to"),
                Ok(None) | Err(_) => {
                    "it closed its standard input and was killed; keep reading it".to_owned()
                }
            },
        }
    }
}

/// Writes some of a message; how many bytes.
async fn write(stdin: &mut ChildStdin, message: Option<&Sending>) -> std::io::Result<usize> {
    stdin.write(message.map_or(&[], Sending::rest)).await
}

/// A message after so many more bytes of it were read; `None` when it is done.
fn progress(mut message: Sending, sent: usize) -> Option<Sending> {
    message.sent += sent;
    message.deadline = Instant::now() + READ_DEADLINE;
    (!message.rest().is_empty()).then_some(message)
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
