//! What goes over the wire: headers, the first and the last frame, HTTP/2, clients that take nothing.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::stalls::unchunked;
use super::{frames_of, header};
use crate::support::{Frame, PATIENCE, Server, eventually, problem};

#[tokio::test]
async fn a_stream_begins_with_what_to_do_when_it_breaks_and_nothing_holds_it_back() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"updates": 2})).await;
    let request = server.request(Method::GET, &format!("/v1/runs/{id}/events")).header("accept", "text/event-stream");
    let response = request.header("accept-encoding", "gzip, br, zstd").send().await.unwrap();
    assert_eq!(header(&response, "content-type"), Some("text/event-stream"));
    assert_eq!(header(&response, "cache-control"), Some("no-store"));
    assert_eq!(header(&response, "x-accel-buffering"), Some("no"));
    assert_eq!((header(&response, "content-encoding"), header(&response, "content-length")), (None, None));
    let text = response.text().await.unwrap();
    assert!(text.starts_with("retry: 1000\n\n") || text.starts_with("retry:1000\n\n"), "{text}");
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.contains("run.completed"), "the end comes last: {last}");
    let frames = text.split("\n\n").filter(|frame| frame.contains("data:")).count();
    assert_eq!(frames, server.events(&id).await.len());
    let page = server.request(Method::GET, &format!("/v1/runs/{id}/events")).header("accept-encoding", "gzip");
    let page = page.send().await.unwrap();
    assert_eq!((header(&page, "cache-control"), header(&page, "content-encoding")), (Some("no-store"), None));
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive_by_comments() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    // Nothing happens in this channel.
    let request = server.request(Method::GET, "/v1/channels/silent/events").header("accept", "text/event-stream");
    let mut response = request.send().await.unwrap();
    let mut text = String::new();
    while !text.contains("\n:") && !text.starts_with(':') {
        let chunk = tokio::time::timeout(PATIENCE, response.chunk()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert!(text.contains("keepalive") && !text.contains("data"), "{text}");
}

#[tokio::test]
async fn a_stopping_host_says_when_to_come_back_and_closes_cleanly() {
    let mut server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 300, "updates": 3})).await;
    let open = |path: String| server.request(Method::GET, &path).header("accept", "text/event-stream").send();
    let (run, channel) = (open(format!("/v1/runs/{id}/events")), open("/v1/channels/probes/events".to_owned()));
    let (run, channel) = (run.await.unwrap(), channel.await.unwrap());
    server.event_when(&id, |event| event["kind"] == "step.update").await;
    let reading = tokio::spawn(async move { (run.text().await, channel.text().await) });
    assert_eq!(server.stop(), 0);
    let (run, channel) = reading.await.unwrap();
    for text in [run.unwrap(), channel.unwrap()] {
        let last = text.trim_end().rsplit("\n\n").next().unwrap();
        let retry: u64 = last.strip_prefix("retry:").unwrap_or_else(|| panic!("{text}")).trim().parse().unwrap();
        assert!((1_000..3_000).contains(&retry), "all would come back in one moment: {retry}");
        assert!(!text.contains("run.completed"), "the end of a stream is not the end of the run");
    }
}

/// One connection for many streams, without TLS: what a proxy speaks to the host behind it.
async fn connect(server: &Server) -> http2::SendRequest<Empty<Bytes>> {
    let address = server.url.strip_prefix("http://").unwrap();
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(super) fn over_http2(server: &Server, path: &str, authorization: Option<&str>) -> hyper::Request<Empty<Bytes>> {
    let mut request = hyper::Request::get(format!("{}{path}", server.url)).header("accept", "text/event-stream");
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    request.body(Empty::new()).unwrap()
}

/// One request on a connection of its own, and all of its answer.
pub(super) async fn ask_over_http2(server: &Server, path: &str, authorization: Option<&str>) -> (u16, String) {
    let mut sender = connect(server).await;
    let response = sender.send_request(over_http2(server, path, authorization)).await.unwrap();
    assert_eq!(response.version(), hyper::Version::HTTP_2);
    let status = response.status().as_u16();
    let body = tokio::time::timeout(PATIENCE, response.into_body().collect()).await.unwrap().unwrap();
    (status, String::from_utf8(body.to_bytes().to_vec()).unwrap())
}

pub(super) fn parse(text: &str) -> Vec<Frame> {
    let field = |frame: &str, name: &str| {
        frame.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    };
    let frames = text.split("\n\n").filter_map(|frame| {
        let data = serde_json::from_str(&field(frame, "data:")?).unwrap();
        Some(Frame { id: field(frame, "id:")?.parse().unwrap(), event: field(frame, "event:")?, data })
    });
    frames.collect()
}

#[tokio::test]
async fn many_streams_share_one_connection_of_http_2() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 200, "updates": 20})).await;
    let sender = connect(&server).await;
    let path = format!("/v1/runs/{id}/events");
    let streams: Vec<_> = (0..20)
        .map(|n| {
            let (mut sender, path) = (sender.clone(), format!("{path}?after={}", n % 5));
            let request = over_http2(&server, &path, Some("Bearer dev"));
            tokio::spawn(async move {
                let response = sender.send_request(request).await.unwrap();
                assert_eq!((response.status().as_u16(), response.version()), (200, hyper::Version::HTTP_2));
                let body = tokio::time::timeout(PATIENCE, response.into_body().collect()).await.unwrap().unwrap();
                String::from_utf8(body.to_bytes().to_vec()).unwrap()
            })
        })
        .collect();
    let mut texts = Vec::new();
    for stream in streams {
        texts.push(stream.await.unwrap());
    }
    let expected = frames_of(&server.events(&id).await);
    for (n, text) in texts.iter().enumerate() {
        assert_eq!(parse(text), expected[n % 5..], "stream {n}");
    }
}

#[tokio::test]
async fn a_subscriber_that_takes_nothing_is_disconnected_and_comes_back_to_its_place() {
    let server = Server::start_with(&["--dev", "--stall-seconds", "1"]);
    server.deploy("probe", "stepwell_probe").await;
    // The output is in two events: more than the system keeps for a connection whose other end takes nothing.
    let run = server.run("probe", json!({"payload_bytes": 4_000_000})).await;
    let id = run["id"].as_str().unwrap();
    let address = server.url.strip_prefix("http://").unwrap().parse().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut asleep = socket.connect(address).await.unwrap();
    let request = format!(
        "GET /v1/runs/{id}/events HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer dev\r\naccept: text/event-stream\r\n\r\n"
    );
    asleep.write_all(request.as_bytes()).await.unwrap();
    let started = Instant::now();
    eventually("the server to give up", || async {
        server.log().contains("a client that takes nothing was disconnected").then_some(())
    })
    .await;
    assert!(started.elapsed() >= Duration::from_secs(1), "it was given no time");
    // What had gone out is the beginning of the stream, cut off somewhere before its end.
    let mut got = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, asleep.read_to_end(&mut got)).await.unwrap();
    let text = unchunked(&got);
    let whole = text.rfind("\n\n").map_or("", |end| &text[..end]);
    let (seen, all) = (parse(whole), frames_of(&server.events(id).await));
    assert!(!seen.is_empty() && seen.len() < all.len() && all.starts_with(&seen), "{} of {}", seen.len(), all.len());
    let rest = server.follow(id, seen.last().map(|last| last.id)).await.rest().await;
    assert_eq!([seen, rest].concat(), all);
}

#[tokio::test]
async fn a_tenant_has_so_many_streams_and_gets_room_back_when_one_ends() {
    let server = Server::start_with(&["--dev", "--streams-per-tenant", "2"]);
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 20_000, "updates": 1})).await;
    let run = format!("/v1/runs/{id}/events");
    let open = |path: &str| server.request(Method::GET, path).header("accept", "text/event-stream").send();
    let first = open(&run).await.unwrap();
    let second = open("/v1/channels/probes/events").await.unwrap();
    let page = server.request(Method::GET, &format!("{run}?wait=9")).send();
    for refused in [open(&run).await, open("/v1/channels/c/events").await, page.await] {
        let refused = refused.unwrap();
        assert_eq!(header(&refused, "retry-after"), Some("1"));
        assert_eq!(problem(refused).await, (429, "too_many_streams".to_owned()));
    }
    // A page that does not wait needs none, and a stream that was let go of makes room.
    server.get(&run).await;
    drop(first);
    eventually("room for another stream", || async { (open(&run).await.unwrap().status() == 200).then_some(()) }).await;
    drop(second);
    server.cli(&["cancel", &id]);
}
