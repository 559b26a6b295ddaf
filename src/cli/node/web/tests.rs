use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::cli::node::status::sample;
use crate::control::{self, Call, Reply, Server};

/// An agent. With it its connections end.
struct Agent {
    _server: Server,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An agent that answers `status` by what is in `status`, and counts how often.
async fn agent(directory: &Path, status: Arc<Mutex<Value>>, asked: Arc<AtomicUsize>) -> Agent {
    let (calls_in, mut calls) = tokio::sync::mpsc::channel(4);
    let path = control::socket_path(directory, "wg-home");
    let task = tokio::spawn(async move {
        while let Some(Call {
            answer, request, ..
        }) = calls.recv().await
        {
            let reply = match request {
                Ask::Status => {
                    asked.fetch_add(1, Ordering::Relaxed);
                    Reply::Ok(status.lock().unwrap().clone())
                }
                Ask::Why { peer } if peer == "berlin-05" || peer == "home-01" => {
                    Reply::Ok(why(&peer))
                }
                Ask::Why { peer } => Reply::Error(format!("this mesh has no peer {peer:?}")),
                _ => Reply::Error("not asked".to_owned()),
            };
            let _ = answer.send(reply);
        }
    });
    let _server = Server::listen(&path, None, calls_in).await.unwrap();
    Agent { _server, task }
}

fn why(peer: &str) -> Value {
    json!({
        "node": "home-00", "cause": { "situation": "direct", "text": "the path is direct" },
        "own_nat": "easy", "peer_nat": "hard",
        "changes": [{ "ago_s": 3.0, "text": "direct by 198.51.100.7:20035, for the relay hub" }],
        "steps": [{ "ago_s": 4.0, "text": "<i>a probe was answered</i>" }],
        "peer": { "name": peer, "path": "direct", "endpoint": null, "rtt_ms": 6.5, "candidates": [{
            "address": "198.51.100.7:20035", "kind": "reflexive", "probes": 12, "answers": 12,
            "rtt_ms": 6.5,
        }],
            "rx_bytes": 1, "tx_bytes": 2, "handshake_age_s": 4.0 },
    })
}

/// A page with an agent behind it.
struct Scene {
    directory: tempfile::TempDir,
    status: Arc<Mutex<Value>>,
    asked: Arc<AtomicUsize>,
    agent: Option<Agent>,
    app: Arc<App>,
    at: SocketAddr,
}

impl Scene {
    async fn new(status: Value, interval: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (status, asked) = (Arc::new(Mutex::new(status)), Arc::default());
        let agent = agent(directory.path(), Arc::clone(&status), Arc::clone(&asked)).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let token = Token::new().unwrap();
        let app = start(
            directory.path().to_owned(),
            "wg-home".to_owned(),
            token,
            interval,
        );
        tokio::spawn(serve(listener, app.clone()));
        Self {
            directory,
            status,
            asked,
            agent: Some(agent),
            app,
            at,
        }
    }

    /// The head and the body of an answer to these bytes.
    async fn raw(&self, request: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.at).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let split = answer
            .windows(4)
            .position(|bytes| bytes == b"\r\n\r\n")
            .unwrap();
        let body = answer.split_off(split + 4);
        (String::from_utf8(answer).unwrap(), body)
    }

    async fn get(&self, path: &str) -> (String, Vec<u8>) {
        let (host, token) = (self.at, self.app.token.fragment());
        self.raw(&format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Natpunch-Token: {token}\r\n\
             Connection: close\r\n\r\n"
        ))
        .await
    }

    async fn json(&self, path: &str) -> Value {
        let (head, body) = self.get(path).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
        serde_json::from_slice(&body).unwrap_or_default()
    }

    /// What the page shows, once it is like this.
    async fn until(&self, is_so: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..200 {
            let now = self.json("/api/now").await;
            if is_so(&now) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{:#}", self.json("/api/now").await);
    }
}

const FAST: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_hardened_and_data_needs_the_token() {
    let scene = Scene::new(sample::json(12), FAST).await;
    for path in [
        "/",
        "/page.js",
        "/page.css",
        "/favicon.ico",
        "/api/now",
        "/nothing",
        "/api/why",
    ] {
        let (head, _) = scene.get(path).await;
        let head = head.to_lowercase();
        for line in [
            "content-security-policy: default-src 'none';",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
            "x-frame-options: deny",
        ] {
            assert!(head.contains(line), "{path}: {head}");
        }
    }
    for path in [
        "/api/now",
        "/api/picture",
        "/api/why?peer=berlin-05",
        "/api/versions",
        "/api/x",
    ] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            scene.at
        );
        let (head, body) = scene.raw(&request).await;
        assert!(head.starts_with("HTTP/1.1 401 "), "{path}: {head}");
        assert!(!String::from_utf8_lossy(&body).contains("berlin"));
    }
    // The page itself holds nothing of the mesh.
    let (head, body) = scene
        .raw(&format!(
            "GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            scene.at
        ))
        .await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && !String::from_utf8_lossy(&body).contains("berlin")
    );
    let token = scene.app.token.fragment();
    for (method, host, status) in [
        ("GET", "evil.example", 421),
        ("POST", "127.0.0.1", 405),
        ("DELETE", "localhost", 405),
    ] {
        let request = format!(
            "{method} /api/now HTTP/1.1\r\nHost: {host}\r\nX-Natpunch-Token: {token}\r\n\
             Connection: close\r\n\r\n"
        );
        let (head, _) = scene.raw(&request).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{method} {host}: {head}"
        );
    }
    assert!(url(scene.at, &scene.app.token).contains(&format!("/#{token}")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_changes_while_one_looks_and_an_agent_that_restarts_are_shown() {
    let mut scene = Scene::new(sample::json(60), FAST).await;
    let now = scene
        .until(|now| {
            now["peers"]
                .as_array()
                .is_some_and(|peers| peers.len() == 59)
        })
        .await;
    assert!(
        now["node"]["summary"]
            .as_str()
            .unwrap()
            .contains("of 59 connected")
    );
    let picture = scene.json("/api/picture").await;
    assert!(picture["shapes"].as_array().unwrap().len() > 100);
    let changed = now["peers"][3]["name"].clone();
    scene.status.lock().unwrap()["peers"][3]["path"] = json!("lan");
    let now = scene.until(|now| now["events"][0]["peer"] == changed).await;
    assert!(
        now["events"][0]["text"]
            .as_str()
            .unwrap()
            .ends_with("→ lan"),
        "{now}"
    );
    drop(scene.agent.take());
    let now = scene.until(|now| !now["away"].is_null()).await;
    assert_eq!(
        now["peers"].as_array().unwrap().len(),
        59,
        "what was known stays"
    );
    let again = agent(
        scene.directory.path(),
        scene.status.clone(),
        scene.asked.clone(),
    )
    .await;
    scene.until(|now| now["away"].is_null()).await;
    drop(again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_is_asked_no_oftener_for_many_who_look_and_a_picture_is_drawn_when_it_differs() {
    let scene = Scene::new(sample::json(60), Duration::from_millis(300)).await;
    let began = tokio::time::Instant::now();
    for _ in 0..100 {
        scene.json("/api/now").await;
    }
    let most = 3 + began.elapsed().as_millis() as usize / 300;
    assert!(scene.asked.load(Ordering::Relaxed) <= most);
    // Counters move; the picture of many peers does not.
    let picture = scene.json("/api/now").await["picture"].clone();
    scene.status.lock().unwrap()["peers"][0]["rx_bytes"] = json!(1_000_000_000);
    let moved = |now: &Value| now["peers"][0]["rx_bytes"] == json!(1_000_000_000);
    assert_eq!(scene.until(moved).await["picture"], picture);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_is_asked_for_one_peer_and_a_bad_question_is_refused_in_words() {
    let scene = Scene::new(sample::json(12), FAST).await;
    let why = scene.json("/api/why?peer=berlin-05").await;
    assert_eq!(why["cause"]["text"], "the path is direct");
    let long = format!("/api/why?peer={}", "x".repeat(300));
    for (path, status, says) in [
        ("/api/why", 400, "name a peer"),
        (long.as_str(), 400, "name a peer"),
        ("/api/why?peer=%3Cscript%3E", 502, "no peer"),
        ("/api/reload", 404, "no such page"),
        ("/../../etc/passwd", 404, "no such page"),
    ] {
        let (head, body) = scene.get(path).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {head}"
        );
        assert!(head.contains("text/plain"), "never read as markup: {head}");
        assert!(String::from_utf8_lossy(&body).contains(says), "{path}");
    }
    let head = format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "x".repeat(64 << 10)
    );
    let mut stream = TcpStream::connect(scene.at).await.unwrap();
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn the_page_loads_nothing_from_elsewhere_and_makes_no_markup_of_text() {
    for bad in [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "srcdoc",
        "import(",
        "localStorage",
        "cookie",
    ] {
        assert!(!SCRIPT.contains(bad), "{bad}");
    }
    for text in [SCRIPT, PAGE, STYLE, natpunch_picture::STYLE] {
        let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!elsewhere.contains("://") && !elsewhere.contains("url("));
    }
    assert!(!PAGE.contains("style=") && !PAGE.contains(" on") && !PAGE.contains("<style"));
    assert_eq!(PAGE.matches("<script").count(), 1);
    // Every element that the script looks for is there.
    for name in SCRIPT
        .split("at(\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
    {
        assert!(PAGE.contains(&format!("id=\"{name}\"")), "{name}");
    }
}

/// A status whose names attack the page.
fn hostile() -> Value {
    let mut status = sample::json(20);
    let names = [
        "<script>document.title='owned'</script>",
        "\u{202e}txt.exe",
        "<img src=x onerror=alert(1)>",
    ];
    for (n, name) in names.into_iter().enumerate() {
        status["peers"][n]["name"] = json!(name);
    }
    status["peers"][4]["name"] = json!("x".repeat(63));
    status["warnings"] = json!(["<b>bold</b>"]);
    status
}

/// What Chromium has made of the page after some seconds.
async fn browse(scene: &Scene, more: &[&str], fragment: &str) -> String {
    let profile = tempfile::tempdir().unwrap();
    let log = profile.path().join("net.json");
    let mut command = Command::new("chromium");
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .args(["--virtual-time-budget=9000", "--timeout=20000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--log-net-log={}", log.display()))
        .args(more)
        .arg(format!("http://{}/{fragment}", scene.at));
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    // All that the page asked for is of this host. The browser has questions of its own.
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let own = format!("http://{}", scene.at);
    let by_page = format!("\"initiator\":\"{own}\"");
    let asked = log.lines().filter(|line| line.contains(&by_page));
    let mut count = 0;
    for line in asked {
        let url = line.split("\"url\":\"").nth(1);
        let Some(url) = url.and_then(|url| url.split('"').next()) else {
            continue;
        };
        assert!(url.starts_with(&format!("{own}/")), "{url}");
        count += 1;
    }
    assert!(count > 2, "script, style and data: {count}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The value of the variable, for pictures of the page: a directory.
fn pictures() -> Option<PathBuf> {
    std::env::var_os("NATPUNCH_SCREENSHOTS").map(PathBuf::from)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs chromium: make browser"]
async fn in_a_browser_a_page_shows_the_mesh_and_hostile_names_are_text() {
    let scene = Scene::new(hostile(), FAST).await;
    let token = format!("#{}", scene.app.token.fragment());
    let dom = browse(&scene, &["--dump-dom"], &token).await;
    assert!(dom.contains("mesh home"), "{dom}");
    assert!(
        dom.contains("&lt;script&gt;document.title='owned'&lt;/script&gt;"),
        "{dom}"
    );
    assert!(!dom.contains("<script>document") && !dom.contains("<img") && !dom.contains("<b>bold"));
    assert!(!dom.contains("<title>owned"));
    assert!(dom.contains(&"x".repeat(63)), "told whole in the list");
    let peer = browse(&scene, &["--dump-dom"], &format!("{token}/home-01")).await;
    assert!(peer.contains("the path is direct"), "what why says: {peer}");
    assert!(peer.contains("&lt;i&gt;a probe was answered") && !peer.contains("<i>a probe"));
    let stranger = browse(&scene, &["--dump-dom"], "#wrong").await;
    assert!(
        stranger.contains("token is missing or wrong") && !stranger.contains("of 19 connected")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs chromium: make browser"]
async fn in_a_browser_a_path_that_changes_and_an_agent_that_goes_are_shown() {
    let mut scene = Scene::new(sample::json(60), FAST).await;
    let token = format!("#{}", scene.app.token.fragment());
    // Each time that it is asked the agent tells of another path.
    let (status, asked) = (scene.status.clone(), scene.asked.clone());
    let change = tokio::spawn(async move {
        loop {
            let is_even = asked.load(Ordering::Relaxed).is_multiple_of(2);
            status.lock().unwrap()["peers"][5]["path"] =
                json!(if is_even { "lan" } else { "direct" });
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let dom = browse(&scene, &["--dump-dom"], &token).await;
    change.abort();
    assert!(
        dom.contains("direct → lan") || dom.contains("lan → direct"),
        "{dom}"
    );
    assert!(dom.matches("data-peer").count() > 100, "{dom}");
    drop(scene.agent.take());
    scene.until(|now| !now["away"].is_null()).await;
    let dom = browse(&scene, &["--dump-dom"], &token).await;
    assert!(dom.contains("The agent is away since"), "{dom}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "makes the pictures of the documents: make browser"]
async fn in_a_browser_the_page_is_pictured() {
    let Some(directory) = pictures() else { return };
    for count in [3, 12, 60, 300] {
        let scene = Scene::new(sample::json(count), FAST).await;
        let peer = if count == 12 { "/berlin-05" } else { "" };
        let token = format!("#{}{peer}", scene.app.token.fragment());
        for (theme, scheme) in [("light", "1"), ("dark", "0")] {
            let file = directory.join(format!("web-{count}-{theme}.png"));
            let (file, theme) = (
                format!("--screenshot={}", file.display()),
                format!("--blink-settings=preferredColorScheme={scheme}"),
            );
            browse(&scene, &[&file, &theme, "--window-size=1500,1000"], &token).await;
        }
    }
}

/// Seconds of CPU of a process, as its directory in /proc tells.
fn cpu_of(process: &Path) -> f64 {
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = times.filter_map(|time| time.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

/// The same of all whose command line has this in it.
fn cpu_of_all(mark: &str) -> f64 {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let is_it = |process: &PathBuf| {
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(mark)
    };
    let processes = processes.map(|entry| entry.path()).filter(is_it);
    processes.map(|process| cpu_of(&process)).sum()
}

/// Measured while somebody looks, with counters that move in each status. The build for tests is
/// not optimized.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs chromium: make browser"]
async fn in_a_browser_300_peers_cost_less_than_5_percent_of_a_core() {
    const FOR: Duration = Duration::from_secs(20);
    let scene = Scene::new(sample::json(300), INTERVAL).await;
    let (status, asked) = (scene.status.clone(), scene.asked.clone());
    let traffic = tokio::spawn(async move {
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = asked.load(Ordering::Relaxed);
            if now != std::mem::replace(&mut before, now) {
                for peer in status.lock().unwrap()["peers"].as_array_mut().unwrap() {
                    peer["rx_bytes"] = json!(peer["rx_bytes"].as_u64().unwrap() + 9_000);
                }
            }
        }
    });
    let profile = tempfile::tempdir().unwrap();
    let mark = profile.path().display().to_string();
    let mut chromium = Command::new("chromium")
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-port=0",
        ])
        .arg(format!("--user-data-dir={mark}"))
        .arg(format!(
            "http://{}/#{}",
            scene.at,
            scene.app.token.fragment()
        ))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (own, browser, polls) = (
        cpu_of(Path::new("/proc/self")),
        cpu_of_all(&mark),
        scene.asked.load(Ordering::Relaxed),
    );
    tokio::time::sleep(FOR).await;
    let polls = scene.asked.load(Ordering::Relaxed) - polls;
    let share = |seconds: f64| 100.0 * seconds / FOR.as_secs_f64();
    let (own, browser) = (
        share(cpu_of(Path::new("/proc/self")) - own),
        share(cpu_of_all(&mark) - browser),
    );
    chromium.kill().unwrap();
    chromium.wait().unwrap();
    traffic.abort();
    println!(
        "measured web of 300 peers: {polls} statuses in 20 s; natpunch and the agent's answers \
         {own:.1} %, Chromium {browser:.1} % of a core"
    );
    assert!(polls >= 5, "{polls}");
    assert!(own < 5.0, "{own}");
}
