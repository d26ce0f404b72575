//! The other end of a connection: a server that plays a script, so that it can do what no library for servers would.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What the server does once it has read a request. At the end it closes the connection.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    Send(Vec<u8>),
    /// Has the client wait for the next act.
    Pause(Duration),
    /// Says nothing more, and waits for the client to go.
    Stall,
}

pub(crate) type Script = Vec<Act>;

/// A server for one test.
pub(crate) struct Scripted {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Scripted {
    /// Plays the first script to the first who connects, and so on, and the last one to all who come later.
    pub(crate) async fn start(scripts: Vec<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let (log, count) = (Arc::clone(&requests), Arc::clone(&connections));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let script = scripts.get(number).or(scripts.last()).cloned().unwrap_or_default();
                tokio::spawn(play(stream, script, Arc::clone(&log)));
            }
        });
        Self { address, requests, connections, task }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What was asked so far, in order, head and body. Names of headers are in lower case.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// How many have connected.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The JSON in the body of a request.
    pub(crate) fn body(&self, number: usize) -> Value {
        serde_json::from_str(self.requests()[number].split_once("\r\n\r\n").unwrap().1).unwrap()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn play(mut stream: TcpStream, script: Script, log: Arc<Mutex<Vec<String>>>) {
    let request = read_request(&mut stream).await;
    log.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
    stream.set_nodelay(true).unwrap();
    for act in script {
        let gone = match act {
            Act::Send(bytes) => stream.write_all(&bytes).await.is_err(),
            Act::Pause(time) => {
                tokio::time::sleep(time).await;
                false
            }
            Act::Stall => stream.read_to_end(&mut Vec::new()).await.is_err(),
        };
        // A client that goes away in the middle is what some tests are about.
        if gone {
            return;
        }
    }
    drop(stream.shutdown().await);
}

async fn read_request(stream: &mut TcpStream) -> Vec<u8> {
    let mut request = Vec::new();
    loop {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return request;
        }
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return request;
        }
    }
}

/// A whole response. `headers` are lines that end with `\r\n`.
pub(crate) fn response(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Script {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    vec![Act::Send([head.as_bytes(), body].concat())]
}

pub(crate) fn json_response(body: &Value) -> Script {
    response("200 OK", "content-type: application/json\r\n", body.to_string())
}

/// The head of a stream of events, which ends with the connection.
pub(crate) fn stream_head() -> Act {
    Act::Send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".to_vec())
}

/// A piece of an answer in OpenAI's words.
pub(crate) fn openai_piece(text: &str) -> Act {
    let choices = json!([{"index": 0, "delta": {"content": text}, "finish_reason": null}]);
    Act::Send(format!("data: {}\n\n", json!({"model": "model-7", "choices": choices})).into_bytes())
}

/// The end of an answer in OpenAI's words: 1,000 tokens read, 200 written.
pub(crate) fn openai_end() -> Act {
    let stop = json!({"model": "model-7", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
    let usage = json!({"model": "model-7", "choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 200}});
    Act::Send(format!("data: {stop}\n\ndata: {usage}\n\ndata: [DONE]\n\n").into_bytes())
}

/// An answer in OpenAI's words.
pub(crate) fn openai(pieces: &[&str]) -> Script {
    let pieces = pieces.iter().map(|text| openai_piece(text));
    [stream_head()].into_iter().chain(pieces).chain([openai_end()]).collect()
}

/// The same answer in Anthropic's words.
pub(crate) fn anthropic(pieces: &[&str]) -> Script {
    let event = |event: Value| {
        let kind = event["type"].as_str().unwrap();
        Act::Send(format!("event: {kind}\ndata: {event}\n\n").into_bytes())
    };
    let usage = json!({"input_tokens": 1000, "output_tokens": 1});
    let piece =
        |text| event(json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}));
    let mut script = vec![
        stream_head(),
        event(
            json!({"type": "message_start", "message": {"id": "m", "model": "model-7", "content": [], "usage": usage}}),
        ),
    ];
    script.extend(pieces.iter().map(piece));
    let end = json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 200}});
    script.extend([event(end), event(json!({"type": "message_stop"}))]);
    script
}
