//! The http plugin of two nodes, over the real server.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use natpunch_plugin::testing::{Effect, FakeHost};
use natpunch_plugin::{
    Ask, Discovery as _, Health, Input, Interest, News, PeerKey, RecordTag, SealedRecord,
    Settings as _,
};
use natpunch_plugin_http::{Plugin, Settings};

use crate::process::Server;

struct Node {
    host: Arc<FakeHost>,
    task: tokio::task::JoinHandle<()>,
    health: Option<Health>,
    record: Option<String>,
}

impl Node {
    /// A node whose peer leaves records under the tag `inbound`.
    fn start(http: SocketAddr, inbound: u8) -> Self {
        let host = FakeHost::new(PeerKey::from_bytes([1; 32]), None, inbound.into());
        let settings = Settings {
            url: format!("http://{http}/v1"),
            stun: vec![],
            interval: 1,
        };
        let mut plugin = Plugin::new(settings.check().unwrap());
        let task = tokio::spawn({
            let host = host.clone();
            async move { plugin.run(host).await.unwrap() }
        });
        let key = PeerKey::from_bytes([2; 32]);
        let peer = Interest {
            inbound_tag: RecordTag([inbound; 16]),
            ..Interest::new(key)
        };
        host.put(Input::Ask(Ask::Peers([peer].into())));
        Self {
            host,
            task,
            health: None,
            record: None,
        }
    }

    fn publish(&self, tag: u8, text: &str) {
        let record = SealedRecord {
            tag: RecordTag([tag; 16]),
            blob: text.as_bytes().into(),
        };
        self.host.put(Input::Ask(Ask::Records([record].into())));
    }

    /// Lets the plugin go on until this is so.
    async fn until(&mut self, is_so: impl Fn(&Self) -> bool) {
        while !is_so(self) {
            let effect = tokio::time::timeout(Duration::from_secs(10), self.host.effect()).await;
            match effect.unwrap_or_else(|_| panic!("nothing in 10 s: {:?}", self.health)) {
                Effect::Told(News::Record(record)) => {
                    self.record = Some(String::from_utf8(record.blob.to_vec()).unwrap())
                }
                Effect::Reported(health) => self.health = Some(health),
                other => panic!("{other:?}"),
            }
        }
    }

    async fn delivered(&mut self) -> String {
        self.until(|node| node.record.is_some()).await;
        self.record.take().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_reach_the_other_side_at_once_and_survive_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start_in(directory.path(), &["--http", "127.0.0.1:0"]);
    let address = server.http.unwrap();
    let (mut a, mut b) = (Node::start(address, 1), Node::start(address, 2));
    a.publish(2, "from a");
    b.publish(1, "from b");
    assert_eq!(
        (a.delivered().await, b.delivered().await),
        ("from b".into(), "from a".into())
    );
    a.until(|node| matches!(node.health, Some(Health::Good(_))))
        .await;

    let start = Instant::now();
    a.publish(2, "a moved");
    assert_eq!(b.delivered().await, "a moved");
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "took {:?}",
        start.elapsed()
    );

    // The store is in memory. Whoever comes after the restart finds what was published before it.
    drop(server);
    let _server = Server::start_in(directory.path(), &["--http", &address.to_string()]);
    let mut c = Node::start(address, 2);
    assert_eq!(c.delivered().await, "a moved");

    a.host.put(Input::NetworkChanged);
    a.publish(2, "a roamed");
    assert_eq!(c.delivered().await, "a roamed");
    for node in [&a, &b, &c] {
        node.host.put(Input::Shutdown);
    }
    for node in [a, b, c] {
        tokio::time::timeout(Duration::from_secs(2), node.task)
            .await
            .expect("a plugin stops")
            .unwrap();
    }
}

/// A web server of files: answers each GET from `files`, and refuses everything else.
fn file_server(files: Arc<Mutex<HashMap<String, &'static str>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = String::new();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            while !head.ends_with("\r\n\r\n")
                && lines.read_line(&mut head).is_ok_and(|read| read > 0)
            {}
            let path = head.split(' ').nth(1).unwrap_or_default();
            let file = files
                .lock()
                .unwrap()
                .get(path)
                .copied()
                .filter(|_| head.starts_with("GET"));
            let (status, content) = match file {
                Some(file) if head.contains(&format!("\"{}\"", file.len())) => {
                    ("304 Not Modified", "")
                }
                Some(file) => ("200 OK", file),
                None if head.starts_with("GET") => ("404 Not Found", ""),
                None => ("405 Method Not Allowed", ""),
            };
            let etag = file.map_or(0, str::len);
            let length = content.len();
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\netag: \"{etag}\"\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{content}"
            );
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_files_on_any_web_server_are_read_and_read_again() {
    let files = Arc::new(Mutex::new(HashMap::new()));
    let path = format!("/v1/{}", RecordTag([1; 16]));
    let mut node = Node::start(file_server(files.clone()), 1);
    node.publish(2, "nobody takes this");
    files.lock().unwrap().insert(path.clone(), "first");
    assert_eq!(node.delivered().await, "first");
    files.lock().unwrap().insert(path, "second one");
    assert_eq!(
        node.delivered().await,
        "second one",
        "an unchanged file is not delivered twice"
    );
    let said = |node: &Node| matches!(&node.health, Some(Health::Bad(why)) if why.contains("can't be published"));
    node.until(said).await;
}
