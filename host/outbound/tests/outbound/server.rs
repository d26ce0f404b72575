//! A server that follows a script, so that it can do what no library for servers would.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stepwell_outbound::{Egress, Outbound, OutboundConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// What the server does after it has read a request. At the end of the script it closes the connection.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    Send(Vec<u8>),
    /// Sends the same until the client has had enough.
    Repeat(Vec<u8>),
    /// Lets the network deliver what was sent, or the client wait.
    Pause(Duration),
    /// Says nothing more, and waits for the client to go.
    Stall,
}

pub(crate) fn send(bytes: impl AsRef<[u8]>) -> Act {
    Act::Send(bytes.as_ref().to_vec())
}

/// A response with a length, after which the connection is closed.
pub(crate) fn response(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Act {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    send([head.as_bytes(), body].concat())
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    gone: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Server {
    /// Plays the script to everybody who connects.
    pub(crate) async fn start(script: impl IntoIterator<Item = Act>) -> Self {
        let script: Vec<Act> = script.into_iter().collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (ended, gone) = watch::channel(0);
        let log = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (script, log, ended) = (script.clone(), Arc::clone(&log), ended.clone());
                tokio::spawn(async move {
                    let request = read_request(&mut stream).await;
                    log.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
                    // A client that goes away in the middle is what some tests are about.
                    let _gone_early = play(&mut stream, &script).await;
                    drop(stream);
                    ended.send_modify(|count| *count += 1);
                });
            }
        });
        Self { address, requests, gone, task }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What was asked so far, head and body.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// Waits until a connection is over.
    pub(crate) async fn connection_over(&mut self) {
        timeout(Duration::from_secs(10), self.gone.wait_for(|count| *count > 0)).await.unwrap().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
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

async fn play(stream: &mut TcpStream, script: &[Act]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    for act in script {
        match act {
            Act::Send(bytes) => stream.write_all(bytes).await?,
            Act::Repeat(bytes) => loop {
                stream.write_all(bytes).await?;
            },
            Act::Pause(time) => sleep(*time).await,
            Act::Stall => {
                stream.read_to_end(&mut Vec::new()).await?;
            }
        }
    }
    stream.shutdown().await
}

/// May reach the servers of these tests, and gives up soon on those that stall.
pub(crate) fn outbound() -> Outbound {
    Outbound::new(config()).unwrap()
}

pub(crate) fn config() -> OutboundConfig {
    let egress = Egress { allow: vec!["127.0.0.1/32".parse().unwrap()], ..Egress::default() };
    OutboundConfig { egress, stall: Duration::from_millis(400), ..OutboundConfig::default() }
}
