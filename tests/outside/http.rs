//! `http` nodes, and a server that says what a script has it say.

use serde_json::{Value, json};

use super::server::{Act, Script, Scripted, json_response, response};
use super::{KEY, failed, ms_between, put_secret};
use crate::graphs::{events, of, row};
use crate::support::Server;

/// Runs one `http` node against a server with these scripts. `URL` in it stands for the server.
async fn send(server: &Server, scripts: Vec<Script>, more: &Value) -> (Value, Scripted) {
    let scripted = Scripted::start(scripts).await;
    let mut node = json!({
        "id": "send", "kind": "http", "url": "URL/x", "retry": {"max_attempts": 3, "initial": "1ms", "jitter": 0},
    });
    node.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let document = row(json!([node])).to_string().replace("URL", &scripted.url(""));
    server.deploy_graph("sending", &serde_json::from_str(&document).unwrap()).await;
    let run = server.run("sending", json!({"id": "a/b c", "n": 7, "list": [1, 2]})).await;
    (run, scripted)
}

#[tokio::test]
async fn a_request_is_sent_as_it_is_written_and_its_response_read() {
    let server = Server::start_prepared(&["--dev"]);
    let more = json!({
        "url": "URL/items/${ .input.id }?x=1", "query": {"n": "${ .input.n }", "no": null, "t": true, "a b": "ü"},
        "headers": {"X-Run": "${ .run.node }"}, "body": {"list": "${ .input.list }"},
    });
    let answer = response(
        "201 Created",
        "content-type: application/vnd.x+json; charset=utf-8\r\nX-A: 1\r\nx-a: 2\r\n",
        "{\"big\": 1234567890123456789012}",
    );
    let (run, scripted) = send(&server, vec![answer], &more).await;
    assert_eq!((&run["output"]["status"], &run["output"]["headers"]["x-a"]), (&json!(201), &json!("1, 2")), "{run}");
    let request = &scripted.requests()[0];
    assert!(request.starts_with("POST /items/a%2Fb%20c?x=1&a%20b=%C3%BC&n=7&t=true HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("x-run: send\r\n") && request.contains("content-type: application/json\r\n"), "{request}");
    assert_eq!(scripted.body(0), json!({"list": [1, 2]}));
    let text = server.request(reqwest::Method::GET, &format!("/v1/runs/{}", run["id"].as_str().unwrap()));
    let text = text.send().await.unwrap().text().await.unwrap();
    assert!(text.contains("1234567890123456789012"), "no digit is lost: {text}");

    for (headers, body, expected) in [
        ("content-type: application/json\r\n", "{\"a\": [1]}", json!({"a": [1]})),
        ("content-type: application/json\r\n", "not JSON", json!("not JSON")),
        ("content-type: application/json\r\n", "", json!("")),
        ("content-type: text/plain\r\n", "{\"a\": 1}", json!("{\"a\": 1}")),
        ("", "plain", json!("plain")),
    ] {
        let (run, scripted) = send(&server, vec![response("200 OK", headers, body)], &json!({})).await;
        assert_eq!(run["output"]["body"], expected, "{headers} {body}: {run}");
        assert!(scripted.requests()[0].starts_with("GET /x HTTP/1.1\r\n"));
    }
    let text = json!({"method": "PUT", "body": "${ .input.id }", "headers": {"content-type": "text/x"}});
    let (_, scripted) = send(&server, vec![json_response(&Value::Null)], &text).await;
    let request = scripted.requests()[0].clone();
    assert!(request.starts_with("PUT ") && request.contains("content-type: text/x\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\na/b c"), "{request}");

    for (more, expected) in [
        (json!({"url": "${ \"ftp://x/\" }"}), "permanent workflow http_invalid_request"),
        (json!({"query": {"q": "${ .input.list }"}}), "permanent workflow http_invalid_request"),
        (json!({"headers": {"x": "${ \"a\\nb\" }"}}), "permanent workflow http_invalid_request"),
        (json!({"headers": {"x": "${ empty }"}}), "permanent workflow no_value"),
    ] {
        let (run, scripted) = send(&server, vec![json_response(&Value::Null)], &more).await;
        assert_eq!((failed(&run).as_str(), scripted.requests().len()), (expected, 0), "{more}: {run}");
    }
}

#[tokio::test]
async fn a_status_says_what_becomes_of_the_step() {
    let server = Server::start_prepared(&["--dev"]);
    let of_status = |status: &str| response(status, "", "because");
    let any = json!({"status": {"ok": ["3xx", 404], "retry": ["2xx"]}});
    for (status, rules, requests, expected) in [
        ("500 Oops", json!({}), 3, "retryable workflow http_status"),
        ("408 Late", json!({}), 3, "retryable workflow http_status"),
        ("404 No", json!({}), 1, "permanent workflow http_status"),
        ("302 Found", json!({}), 1, "permanent workflow http_status"),
        ("200 OK", any.clone(), 3, "retryable workflow http_status"),
        ("500 Oops", any.clone(), 1, "permanent workflow http_status"),
    ] {
        let (run, scripted) = send(&server, vec![of_status(status)], &rules).await;
        assert_eq!((failed(&run).as_str(), scripted.requests().len()), (expected, requests), "{status} {rules}: {run}");
        let number: u16 = status[..3].parse().unwrap();
        assert_eq!(run["failure"]["details"], json!({"status": number, "body": "because"}));
    }
    let (run, _) = send(&server, vec![of_status("404 No")], &any).await;
    assert_eq!((&run["output"]["status"], &run["output"]["body"]), (&json!(404), &json!("because")));

    // A redirect is a response like any other: nobody goes there.
    let there = Scripted::start(vec![json_response(&Value::Null)]).await;
    let redirect = response("302 Found", &format!("location: {}\r\n", there.url("/")), "");
    let (run, scripted) = send(&server, vec![redirect], &any).await;
    assert_eq!((&run["output"]["status"], scripted.requests().len()), (&json!(302), 1), "{run}");
    assert!(there.requests().is_empty());

    let busy = response("503 Busy", "retry-after: 1\r\n", "");
    let (run, _) = send(&server, vec![busy, json_response(&json!(1))], &json!({})).await;
    assert_eq!(run["output"]["body"], 1, "{run}");
    let history = events(&server, &run).await;
    let failure = of(&history, "step.failed", "send")[0];
    assert!(ms_between(&failure["at"], &failure["next_attempt_at"]) >= 1_000, "{failure}");

    let large = response("200 OK", "", "x".repeat((4 << 20) + 1));
    let cut = vec![Act::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_vec())];
    for (script, more, requests, expected) in [
        (large, json!({}), 1, "permanent workflow http_too_large"),
        (cut, json!({}), 3, "retryable workflow http_connection"),
        (vec![], json!({}), 3, "retryable workflow http_connection"),
        (vec![Act::Send(b"nonsense\r\n\r\n".to_vec())], json!({}), 3, "retryable workflow http_connection"),
        (vec![Act::Stall], json!({"timeout": "200ms", "retry": {"max_attempts": 2, "initial": "1ms"}}), 2, "timeout"),
    ] {
        let (run, scripted) = send(&server, vec![script], &more).await;
        assert!(failed(&run).ends_with(expected), "{expected}: {run}");
        assert_eq!(scripted.requests().len(), requests, "{expected}");
    }
    let gone = json!({"url": "http://127.0.0.1:1/?token=abc", "retry": {"max_attempts": 1}});
    let (run, _) = send(&server, vec![], &gone).await;
    assert_eq!(failed(&run), "retryable workflow http_connection");
    assert!(!run["failure"].to_string().contains("abc"), "a query may hold what nobody should read: {run}");
}

#[tokio::test]
async fn a_secret_goes_to_its_hosts_and_no_step_sees_it() {
    let server = Server::start_prepared(&["--dev"]);
    put_secret(&server, "TOKEN", &["127.0.0.1"]).await;
    put_secret(&server, "ELSEWHERE", &["*.example.com", "localhost"]).await;
    let authorized = |secret: &str| json!({"authorization": {"secret": secret}});
    let (run, scripted) = send(&server, vec![json_response(&json!(1))], &authorized("TOKEN")).await;
    assert_eq!(run["status"], "completed", "{run}");
    assert!(scripted.requests()[0].contains(&format!("authorization: Bearer {KEY}\r\n")));
    let other = json!({"authorization": {"secret": "TOKEN", "header": "X-Api-Key", "prefix": ""}});
    let (run, scripted) = send(&server, vec![json_response(&json!(1))], &other).await;
    assert!(scripted.requests()[0].contains(&format!("x-api-key: {KEY}\r\n")));
    let id = run["id"].as_str().unwrap();
    for path in [format!("/v1/runs/{id}"), format!("/v1/runs/{id}/events?limit=1000"), format!("/v1/runs/{id}/steps")] {
        assert!(!server.get(&path).await.to_string().contains("hunter2"), "{path}");
    }
    for (secret, why) in [("ELSEWHERE", "may not be sent to"), ("NOBODY", "there is no secret")] {
        let (run, scripted) = send(&server, vec![json_response(&json!(1))], &authorized(secret)).await;
        assert_eq!((failed(&run).as_str(), scripted.requests().len()), ("permanent workflow http_denied", 0), "{run}");
        assert!(run["failure"]["message"].as_str().unwrap().contains(why), "{run}");
    }
    // A name that resolves to this machine is not an address of it: whoever resolves names could read along.
    let named = json!({"url": "http://localhost:1/", "authorization": {"secret": "ELSEWHERE"}});
    assert_eq!(failed(&send(&server, vec![], &named).await.0), "permanent workflow http_denied");
    let twice = json!({"headers": {"Authorization": "mine"}, "authorization": {"secret": "TOKEN"}});
    let (run, scripted) = send(&server, vec![json_response(&json!(1))], &twice).await;
    assert_eq!((failed(&run).as_str(), scripted.requests().len()), ("permanent workflow http_invalid_request", 0));
}

#[tokio::test]
async fn where_the_operator_allows_no_connection_none_is_made() {
    let server = Server::start_prepared(&["--dev", "--egress", "public"]);
    let (run, scripted) = send(&server, vec![json_response(&json!(1))], &json!({})).await;
    assert_eq!((failed(&run).as_str(), scripted.connections()), ("permanent workflow http_denied", 0), "{run}");
    let port = scripted.address().port();
    for host in
        ["localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.1", "169.254.169.254", "0.0.0.0"]
    {
        let (run, _) = send(&server, vec![], &json!({"url": format!("http://{host}:{port}/")})).await;
        assert_eq!(failed(&run), "permanent workflow http_denied", "{host}: {run}");
    }
    let provider = json!({"kind": "openai", "base_url": scripted.url("/v1")});
    super::put(&server, "/v1/providers/there", &provider).await;
    let ask = row(json!([{"id": "ask", "kind": "llm", "provider": "there", "model": "m", "prompt": "p"}]));
    server.deploy_graph("asking", &ask).await;
    assert_eq!(failed(&server.run("asking", Value::Null).await), "permanent workflow llm_denied");
    assert_eq!(scripted.connections(), 0, "nobody came");
}
