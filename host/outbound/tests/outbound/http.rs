//! Requests and responses.

use std::time::Duration;

use stepwell_outbound::{HttpError, HttpRequest, Secret, SecretHeader};
use tokio::net::TcpListener;

use crate::server::{Act, Server, outbound, response, send};

pub(crate) fn get(url: String) -> HttpRequest {
    HttpRequest { method: "GET".to_owned(), url, headers: Vec::new(), body: None, timeout_ms: 10_000 }
}

fn secret() -> Option<SecretHeader> {
    let (name, prefix) = ("Authorization".to_owned(), "Bearer ".to_owned());
    Some(SecretHeader { name, prefix, value: Secret::new("hunter2") })
}

/// What comes of a request to a server with this script. Its text never has the secret that was sent.
async fn outcome(script: impl IntoIterator<Item = Act>, timeout_ms: u32) -> Result<u16, HttpError> {
    let server = Server::start(script).await;
    let result = outbound().send(HttpRequest { timeout_ms, ..get(server.url("/")) }, secret()).await;
    assert!(!format!("{result:?}").contains("hunter2"), "{result:?}");
    result.map(|response| response.status)
}

#[tokio::test]
async fn a_request_arrives_as_it_was_asked_for() {
    let server = Server::start([response("200 OK", "", "")]).await;
    let request = HttpRequest {
        method: "POST".to_owned(),
        headers: vec![("X-One".to_owned(), "1".to_owned()), ("x-one".to_owned(), "2".to_owned())],
        body: Some("the body".into()),
        ..get(server.url("/a/b?c=d%20e#fragment"))
    };
    outbound().send(request, secret()).await.unwrap();
    let requests = server.requests();
    let (head, body) = requests[0].split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<&str> = head.lines().collect();
    assert_eq!(lines.remove(0), "POST /a/b?c=d%20e HTTP/1.1");
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "accept-encoding: identity",
            "accept: */*",
            "authorization: Bearer hunter2",
            "content-length: 8",
            &format!("host: {}", server.address),
            concat!("user-agent: stepwell/", env!("CARGO_PKG_VERSION")),
            "x-one: 1",
            "x-one: 2",
        ]
    );
    assert_eq!(body, "the body");
}

#[tokio::test]
async fn what_a_step_says_of_itself_is_not_said_twice() {
    let server = Server::start([response("200 OK", "", "")]).await;
    let own = [("User-Agent", "mine"), ("Accept", "text/plain"), ("Accept-Encoding", "gzip")];
    let headers = own.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    outbound().send(HttpRequest { headers, ..get(server.url("/")) }, None).await.unwrap();
    let request = &server.requests()[0];
    for line in ["user-agent: mine\r\n", "accept: text/plain\r\n", "accept-encoding: gzip\r\n"] {
        assert!(request.contains(line), "{request}");
    }
    assert!(!request.contains("identity") && !request.contains("*/*") && !request.contains("stepwell"), "{request}");
}

#[tokio::test]
async fn a_response_comes_back_as_it_was_sent() {
    let server = Server::start([
        send("HTTP/1.1 418 I'm a teapot\r\n"),
        send(b"X-Twice: 1\r\nx-twice: 2\r\nX-Latin: \xfc\r\n"),
        send("content-length: 3\r\ncontent-encoding: gzip\r\n\r\n\x1f"),
        send(b"\x8b\xff"),
        Act::Stall,
    ])
    .await;
    let response = outbound().send(get(server.url("/")), None).await.unwrap();
    assert_eq!(response.status, 418);
    assert_eq!(response.body, b"\x1f\x8b\xff");
    let headers: Vec<_> = response.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(
        headers,
        [
            ("x-twice", "1"),
            ("x-twice", "2"),
            ("x-latin", "\u{fffd}"),
            ("content-length", "3"),
            ("content-encoding", "gzip")
        ]
    );
}

#[tokio::test]
async fn nothing_is_remembered_from_one_request_to_the_next() {
    let server = Server::start([response("200 OK", "set-cookie: a=b\r\n", "")]).await;
    let outbound = outbound();
    outbound.send(get(server.url("/")), secret()).await.unwrap();
    outbound.send(get(server.url("/")), None).await.unwrap();
    let requests = server.requests();
    assert!(requests[0].contains("hunter2") && !requests[1].contains("hunter2"));
    assert!(!requests[1].contains("cookie") && !requests[1].contains("referer"));
}

#[tokio::test]
async fn a_redirect_is_a_response() {
    let server = Server::start([response("302 Found", "location: http://169.254.169.254/\r\n", "")]).await;
    let response = outbound().send(get(server.url("/")), None).await.unwrap();
    assert_eq!(response.status, 302);
    assert!(response.headers.contains(&("location".to_owned(), "http://169.254.169.254/".to_owned())));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_body_of_four_mebibytes_passes_and_a_byte_more_does_not() {
    const LIMIT: usize = 4 * 1024 * 1024;
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
    assert_eq!(outcome([response("200 OK", "", vec![b'x'; LIMIT])], 10_000).await, Ok(200));
    assert_eq!(outcome([send(head), send(vec![b'x'; LIMIT])], 10_000).await, Ok(200));
    let too_large = Err(HttpError::TooLarge(LIMIT as u64));
    assert_eq!(outcome([send(head), send(vec![b'x'; LIMIT + 1])], 10_000).await, too_large);
    assert_eq!(outcome([send(head), Act::Repeat(vec![b'x'; 1000])], 10_000).await, too_large);
    // What is announced is not waited for.
    let announced = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", LIMIT + 1);
    assert_eq!(outcome([send(announced), Act::Stall], 10_000).await, too_large);
}

#[tokio::test]
async fn a_head_response_announces_what_does_not_come() {
    let server = Server::start([send("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n"), Act::Stall]).await;
    let request = HttpRequest { method: "HEAD".to_owned(), ..get(server.url("/")) };
    assert!(outbound().send(request, None).await.unwrap().body.is_empty());
}

#[tokio::test]
async fn the_head_of_a_response_has_its_limits() {
    let header = |value_bytes: usize| format!("x: {}\r\n", "v".repeat(value_bytes));
    let hundred = header(1).repeat(98);
    assert_eq!(outcome([response("200 OK", &hundred, "")], 10_000).await, Ok(200));
    let more = header(1).repeat(99);
    assert!(matches!(outcome([response("200 OK", &more, "")], 10_000).await, Err(HttpError::Connection(_))));
    let large = header(70 * 1024);
    assert_eq!(outcome([response("200 OK", &large, "")], 10_000).await, Err(HttpError::TooLarge(65_536)));
    let endless = outcome([send("HTTP/1.1 200 OK\r\nx: "), Act::Repeat(vec![b'v'; 1000])], 10_000).await;
    assert!(matches!(endless, Err(HttpError::Connection(_))), "{endless:?}");
}

#[tokio::test]
async fn a_response_that_breaks_off_is_an_error() {
    for script in [
        vec![],
        vec![send("HTTP/1.1 200 OK\r\n")],
        vec![send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n123")],
        vec![send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n123")],
        vec![send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n123\r\n")],
        vec![send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n")],
        vec![send("SSH-2.0-OpenSSH_9.9\r\n")],
        vec![send("HTTP/1.1 99999 OK\r\n\r\n")],
    ] {
        let result = outcome(script.clone(), 10_000).await;
        let Err(HttpError::Connection(text)) = result else { panic!("{script:?}: {result:?}") };
        assert!(text.contains("127.0.0.1") && !text.contains("http://"), "{text}");
    }
}

#[tokio::test]
async fn a_server_that_stalls_is_waited_for_no_longer_than_asked() {
    for script in [
        vec![Act::Stall],
        vec![send("HTTP/1.1 200 OK\r\nx: "), Act::Stall],
        vec![send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n123"), Act::Stall],
    ] {
        assert_eq!(outcome(script, 100).await, Err(HttpError::Timeout));
    }
    let slow = [Act::Pause(Duration::from_millis(50)), response("200 OK", "", "slow")];
    assert_eq!(outcome(slow, 10_000).await, Ok(200));
}

#[tokio::test]
async fn nobody_there_is_an_error_that_names_the_host() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/?token=t0ken", listener.local_addr().unwrap());
    drop(listener);
    let Err(HttpError::Connection(text)) = outbound().send(get(url), secret()).await else { panic!() };
    assert!(text.starts_with("127.0.0.1 cannot be reached: "), "{text}");
    assert!(!text.contains("t0ken") && !text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn a_request_that_breaks_a_rule_does_not_reach_the_server() {
    let server = Server::start([response("200 OK", "", "")]).await;
    let header = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    for request in [
        HttpRequest { method: "CONNECT".to_owned(), ..get(server.url("/")) },
        HttpRequest { headers: header("x", "a\r\nhost: b"), ..get(server.url("/")) },
        HttpRequest { headers: header("host", "another.example"), ..get(server.url("/")) },
        HttpRequest { timeout_ms: 0, ..get(server.url("/")) },
        HttpRequest { timeout_ms: 600_001, ..get(server.url("/")) },
        get(server.url("/").replace("http://", "http://user:password@")),
    ] {
        let result = outbound().send(request, None).await;
        assert!(matches!(result, Err(HttpError::InvalidRequest(_))), "{result:?}");
    }
    assert!(server.requests().is_empty());
}
