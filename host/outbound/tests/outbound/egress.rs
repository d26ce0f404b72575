//! Where requests may go, tried with requests.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use stepwell_outbound::{Egress, HttpError, Lookup, Outbound, OutboundConfig, Reach, SystemLookup};

use crate::http::get;
use crate::server::{Server, config, response};

/// Answers with one list after the other, and again with the last one.
struct Scripted {
    answers: Mutex<Vec<Vec<IpAddr>>>,
    asked: AtomicUsize,
}

impl Scripted {
    fn new(answers: &[&[&str]]) -> Arc<Self> {
        let addresses = |answer: &&[&str]| answer.iter().map(|address| address.parse().unwrap()).collect();
        let answers = answers.iter().rev().map(addresses).collect();
        Arc::new(Self { answers: Mutex::new(answers), asked: AtomicUsize::new(0) })
    }
}

impl Lookup for Scripted {
    fn lookup(&self, _name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.pop() } else { answers.last().cloned() };
        Box::pin(std::future::ready(Ok(answer.unwrap_or_default())))
    }
}

fn outbound(egress: Egress, lookup: Arc<dyn Lookup>) -> Outbound {
    Outbound::new(OutboundConfig { egress, lookup, ..OutboundConfig::default() }).unwrap()
}

#[track_caller]
fn assert_denied<T: std::fmt::Debug>(result: Result<T, HttpError>, host: &str) {
    match result {
        Err(HttpError::Denied(text)) => assert_eq!(text, format!("the address of `{host}` may not be reached")),
        other => panic!("{host}: {other:?}"),
    }
}

#[tokio::test]
async fn a_host_that_is_an_address_is_denied_however_it_is_spelled() {
    let server = Server::start([response("200 OK", "", "")]).await;
    let outbound = outbound(Egress::default(), Arc::new(SystemLookup::default()));
    let port = server.address.port();
    for (host, read_as) in [
        ("127.0.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("%31%32%37.0.0.1", "127.0.0.1"),
        ("１２７。０。０。１", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("[::1]", "[::1]"),
        ("[::]", "[::]"),
        ("[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
        ("[::127.0.0.1]", "[::7f00:1]"),
        ("[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]"),
        ("169.254.169.254", "169.254.169.254"),
        ("10.0.0.1", "10.0.0.1"),
        ("[fd00::1]", "[fd00::1]"),
        ("[fe80::1]", "[fe80::1]"),
    ] {
        assert_denied(outbound.send(get(format!("http://{host}:{port}/")), None).await, read_as);
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn the_names_of_this_machine_are_denied() {
    let outbound = outbound(Egress::default(), Arc::new(SystemLookup::default()));
    for host in ["localhost", "LOCALHOST"] {
        assert_denied(outbound.send(get(format!("http://{host}/")), None).await, "localhost");
    }
    // Not every system knows the name with a dot.
    match outbound.send(get("http://localhost./".to_owned()), None).await {
        Err(HttpError::Connection(text)) => assert!(text.contains("lookup"), "{text}"),
        other => assert_denied(other, "localhost."),
    }
}

#[tokio::test]
async fn a_name_is_denied_for_what_it_resolves_to() {
    for address in [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.1.2.3",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:a00:1::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ] {
        let outbound = outbound(Egress::default(), Scripted::new(&[&[address]]));
        assert_denied(outbound.send(get("http://a-name.example/".to_owned()), None).await, "a-name.example");
        assert_denied(outbound.send(get("https://a-name.example:8443/".to_owned()), None).await, "a-name.example");
    }
}

#[tokio::test]
async fn a_name_that_changes_its_mind_is_denied_from_then_on() {
    let server = Server::start([response("200 OK", "", "")]).await;
    let lookup = Scripted::new(&[&["127.0.0.1"], &["10.0.0.1"]]);
    let outbound = Outbound::new(OutboundConfig { lookup, ..config() }).unwrap();
    let url = format!("http://a-name.example:{}/", server.address.port());
    assert_eq!(outbound.send(get(url.clone()), None).await.unwrap().status, 200);
    assert_denied(outbound.send(get(url), None).await, "a-name.example");
    assert!(server.requests()[0].contains(&format!("host: a-name.example:{}\r\n", server.address.port())));
}

#[tokio::test]
async fn a_name_is_reached_at_those_of_its_addresses_that_may_be_reached() {
    let server = Server::start([response("200 OK", "", "")]).await;
    let lookup = Scripted::new(&[&["10.0.0.1", "::1", "127.0.0.1", "169.254.169.254"]]);
    let outbound = Outbound::new(OutboundConfig { lookup, ..config() }).unwrap();
    let url = format!("http://a-name.example:{}/", server.address.port());
    assert_eq!(outbound.send(get(url), None).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_name_without_addresses_is_no_denial() {
    let outbound = outbound(Egress::default(), Scripted::new(&[&[]]));
    let result = outbound.send(get("http://a-name.example/".to_owned()), None).await;
    assert!(matches!(result, Err(HttpError::Connection(_))), "{result:?}");
}

#[tokio::test]
async fn when_nothing_may_be_reached_no_name_is_looked_up() {
    let lookup = Scripted::new(&[&["1.1.1.1"]]);
    let closed = Egress { reach: Reach::Nothing, allow: Vec::new() };
    let outbound = outbound(closed, Arc::clone(&lookup) as Arc<dyn Lookup>);
    assert_denied(outbound.send(get("http://a-name.example/".to_owned()), None).await, "a-name.example");
    assert_denied(outbound.send(get("http://1.1.1.1/".to_owned()), None).await, "1.1.1.1");
    assert_eq!(lookup.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn private_networks_can_be_opened() {
    let server = Server::start([response("200 OK", "", "")]).await;
    let private = Egress { reach: Reach::PublicAndPrivate, allow: Vec::new() };
    let outbound = outbound(private, Scripted::new(&[&["169.254.169.254"]]));
    assert_eq!(outbound.send(get(server.url("/")), None).await.unwrap().status, 200);
    assert_denied(outbound.send(get("http://metadata.example/".to_owned()), None).await, "metadata.example");
}
