//! Clients that take nothing, or say nothing: what they hold, for how long, and what others get meanwhile.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use super::wires::{over_http2, parse};
use super::{frames_of, tenant};
use crate::support::{PATIENCE, Server, eventually, problem};

const DISCONNECTED: &str = "a client that takes nothing was disconnected";

fn address(server: &Server) -> std::net::SocketAddr {
    server.url.strip_prefix("http://").unwrap().parse().unwrap()
}

/// Asks over HTTP/1 on a connection of its own that takes a few kilobytes and then nothing.
async fn ask_and_sleep(server: &Server, key: &str, path: &str, accept: &str) -> TcpStream {
    let (address, socket) = (address(server), TcpSocket::new_v4().unwrap());
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut connection = socket.connect(address).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\naccept: {accept}\r\nconnection: close\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    connection
}

/// A connection of HTTP/2 whose answers may each have so many bytes on their way.
async fn with_window(server: &Server, bytes: u32) -> (http2::SendRequest<Empty<Bytes>>, JoinHandle<hyper::Result<()>>) {
    let stream = TcpStream::connect(address(server)).await.unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder.initial_stream_window_size(bytes).handshake(TokioIo::new(stream)).await.unwrap();
    (sender, tokio::spawn(connection))
}

/// A run whose output is in its last two events: more than the system keeps for a connection whose other end takes
/// nothing.
async fn much(server: &Server) -> String {
    server.deploy("probe", "stepwell_probe").await;
    let run = server.run("probe", json!({"payload_bytes": 4_000_000})).await;
    run["id"].as_str().unwrap().to_owned()
}

/// *The story:* the clock ran while a write to the socket was stuck. A client of HTTP/2 that gives its answers no window
/// has nothing written to it, so nothing is stuck, and a page was held for it for ever.
#[tokio::test]
async fn a_client_of_http_2_that_opens_no_window_is_disconnected_and_its_room_given_back() {
    let server = Server::start_with(&["--dev", "--stall-seconds", "2", "--streams-per-tenant", "2"]);
    let id = much(&server).await;
    // This one has nothing to be told, for longer than others may take nothing. It is not stuck.
    let silent = server.request(Method::GET, "/v1/channels/probes/events?correlation=mine");
    let mut silent = super::open(silent).await;
    let started = Instant::now();
    let (mut sender, connection) = with_window(&server, 0).await;
    let path = format!("/v1/runs/{id}/events");
    let held = sender.send_request(over_http2(&server, &path, Some("Bearer dev"))).await.unwrap();
    assert_eq!(held.status(), 200);
    let third = server.request(Method::GET, &path).header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(problem(third).await, (429, "too_many_streams".to_owned()));

    let ended = tokio::time::timeout(PATIENCE, connection).await.expect("it was held").unwrap();
    assert!(started.elapsed() >= Duration::from_secs(2), "it was given no time");
    drop(ended);
    eventually("a word of it", || async { server.log().contains(DISCONNECTED).then_some(()) }).await;
    assert!(held.into_body().collect().await.is_err(), "an answer that was cut off is no end");
    let frames = eventually("its room", || async {
        let request = server.request(Method::GET, &path).header("accept", "text/event-stream");
        let response = request.send().await.unwrap();
        (response.status() == 200).then_some(response)
    })
    .await;
    assert_eq!(parse(&frames.text().await.unwrap()), frames_of(&server.events(&id).await));
    // The silent one was there all the time.
    let run = server.post_run("probe", json!({"updates": 1})).header("stepwell-correlation", "mine");
    let run: Value = run.send().await.unwrap().json().await.unwrap();
    assert_eq!(silent.next().await.unwrap().data["run"], run["id"]);
    assert_eq!(server.log().matches(DISCONNECTED).count(), 1);
}

/// The same on a connection that others share: one that takes its answers slowly, part by part, is no reason to cut it.
#[tokio::test]
async fn a_client_of_http_2_that_is_slow_gets_all_of_its_answer() {
    let server = Server::start_with(&["--dev", "--stall-seconds", "1"]);
    let id = much(&server).await;
    let (mut sender, _connection) = with_window(&server, 64 << 10).await;
    let request = over_http2(&server, &format!("/v1/runs/{id}/events"), Some("Bearer dev"));
    let mut body = sender.send_request(request).await.unwrap().into_body();
    let (started, mut text, mut parts) = (Instant::now(), Vec::new(), 0u32);
    while let Some(frame) = body.frame().await {
        text.extend_from_slice(&frame.unwrap().into_data().unwrap());
        parts += 1;
        if parts.is_multiple_of(20) {
            // A slow reader is what this is about. Together this is longer than a client may take nothing.
            tokio::time::sleep(Duration::from_millis(80)).await;
        }
    }
    assert!(started.elapsed() >= Duration::from_secs(1), "it was not slow: {parts} parts");
    assert_eq!(parse(std::str::from_utf8(&text).unwrap()), frames_of(&server.events(&id).await));
}

/// A reader whose connection is full holds its place, and misses nothing.
#[tokio::test]
async fn a_subscriber_whose_connection_is_full_for_a_while_gets_every_event() {
    let server = Server::start_with(&["--dev", "--streams-per-tenant", "1"]);
    let id = much(&server).await;
    let path = format!("/v1/runs/{id}/events");
    let mut asleep = ask_and_sleep(&server, "dev", &path, "text/event-stream").await;
    let mut got = vec![0];
    asleep.read_exact(&mut got).await.unwrap();
    // It has its room still, so there is something left to send: its connection is full.
    for _ in 0..20 {
        let second = server.request(Method::GET, &path).header("accept", "text/event-stream").send().await.unwrap();
        assert_eq!(problem(second).await, (429, "too_many_streams".to_owned()));
    }
    tokio::time::timeout(PATIENCE, asleep.read_to_end(&mut got)).await.unwrap().unwrap();
    assert_eq!(parse(&unchunked(&got)), frames_of(&server.events(&id).await));
}

/// The body of an answer that came in chunks, as far as it came.
pub(super) fn unchunked(answer: &[u8]) -> String {
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let (mut rest, mut body) = (&answer[head + 4..], Vec::new());
    while let Some(line) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        let chunk = &rest[line + 2..];
        body.extend_from_slice(&chunk[..size.min(chunk.len())]);
        rest = chunk.get(size + 2..).unwrap_or_default();
    }
    String::from_utf8_lossy(&body).into_owned()
}

/// *The story:* a page that did not wait needed no room, and each that was not taken held megabytes.
#[tokio::test]
async fn a_tenant_has_so_many_pages_that_it_does_not_take_and_others_have_theirs() {
    let server = Server::start_with(&[]);
    let (acme, rival) = (tenant(&server, "acme"), tenant(&server, "rival"));
    let mut paths = Vec::new();
    for key in [&acme, &rival] {
        server.deploy_as(key, "probe", "stepwell_probe").await;
        let request = server.request_as(key, Method::POST, "/v1/workflows/probe/runs").header("prefer", "wait=30");
        let request = request.json(&json!({"input": {"payload_bytes": 4_000_000}}));
        let run: Value = request.send().await.unwrap().json().await.unwrap();
        paths.push(format!("/v1/runs/{}/events?kinds=run.completed", run["id"].as_str().unwrap()));
    }
    let [path, rivals] = [&paths[0], &paths[1]];
    // Over HTTP/2 without a window: sockets would take a page that is not read.
    let (mut sender, _connection) = with_window(&server, 0).await;
    let mut asleep = Vec::new();
    for _ in 0..32 {
        let mut request = over_http2(&server, path, Some(&format!("Bearer {acme}")));
        request.headers_mut().insert("accept", "application/json".parse().unwrap());
        let page = sender.send_request(request).await.unwrap();
        assert_eq!(page.status(), 200);
        asleep.push(page);
    }
    let one_more = server.request_as(&acme, Method::GET, path).send().await.unwrap();
    assert_eq!(super::header(&one_more, "retry-after"), Some("1"));
    assert_eq!(problem(one_more).await, (429, "too_many_pages".to_owned()));
    let theirs = server.request_as(&rival, Method::GET, rivals).send().await.unwrap();
    assert_eq!(theirs.json::<Value>().await.unwrap()["data"].as_array().unwrap().len(), 1);
    // What was let go of gives its room back.
    drop((asleep, sender));
    eventually("room for a page", || async {
        (server.request_as(&acme, Method::GET, path).send().await.unwrap().status() == 200).then_some(())
    })
    .await;
}

/// *The story:* connections on which nothing was asked for were kept for ever, until the system had no files left.
#[tokio::test]
async fn a_connection_that_asks_for_nothing_is_closed_and_one_that_waits_for_its_answer_is_not() {
    let server = Server::start_with(&["--dev", "--request-seconds", "1"]);
    let mut silent = TcpStream::connect(address(&server)).await.unwrap();
    let mut slow = TcpStream::connect(address(&server)).await.unwrap();
    let started = Instant::now();
    // A head that comes letter by letter does not count as a request until it is whole.
    let dripping = async {
        let head = b"GET /healthz HTTP/1.1\r\nx: ".iter().chain(std::iter::repeat(&b'x'));
        for letter in head {
            if slow.write_all(&[*letter]).await.is_err() || started.elapsed() > PATIENCE {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Longer than it may say nothing before a request.
    let waiting = server.get("/v1/channels/none/events?wait=3");
    let mut got = Vec::new();
    let closed = async { tokio::time::timeout(PATIENCE, silent.read_to_end(&mut got)).await.expect("it was kept") };
    let (closed, page, ()) = tokio::join!(closed, waiting, dripping);
    assert_eq!((closed.ok(), &page["data"]), (Some(0), &json!([])));
    assert!(started.elapsed() >= Duration::from_secs(1) && started.elapsed() < PATIENCE);
}

#[test]
fn a_server_asks_for_as_many_files_as_it_may_have_and_says_when_they_are_few() {
    let data = tempfile::tempdir().unwrap();
    let serve = "ulimit -Sn 256; ulimit -Hn 1024; exec \"$1\" serve --dev --listen 127.0.0.1:0 --data-dir \"$2\"";
    let mut child = std::process::Command::new("sh")
        .args(["-c", serve, "sh", env!("CARGO_BIN_EXE_stepwell")])
        .arg(data.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some("1024"), "{files}");
    assert!(log.contains("room for fewer streams") && log.contains("768"), "{log}");
}
