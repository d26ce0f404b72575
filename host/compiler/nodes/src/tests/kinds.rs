use serde_json::{Value, json};

use super::{Fake, again, context, inputs, load, load_with, output, parsed, permanent, plan, run, run_one};
use crate::bindings::stepwell::workflow::children::{AwaitError, ChildFailure};
use crate::bindings::stepwell::workflow::http::{Authorization, HttpError, Request, Response};
use crate::bindings::stepwell::workflow::llm::{Completion, LlmError, Role};
use crate::bindings::stepwell::workflow::types::{Failure, FailureKind, Outcome};
use crate::bindings::stepwell::workflow::wait::WaitError;
use crate::program::Program;
use crate::step;

#[test]
fn a_branch_takes_the_first_case_that_holds() {
    let branch = |otherwise: Value| {
        json!({
            "id": "b", "kind": "branch", "else": otherwise,
            "cases": [
                { "when": "${.input > 10}", "label": "big" },
                { "when": "${if .input > 5 then 0 else null end}", "label": "medium" },
            ],
        })
    };
    for (input, otherwise, expected, labels) in [
        (20, json!("small"), json!("big"), vec!["big"]),
        (7, json!("small"), json!("medium"), vec!["medium"]),
        (1, json!("small"), json!("small"), vec!["small"]),
        (1, json!(null), json!(null), vec![]),
    ] {
        let Ok(Outcome::Route(routed)) = run_one(branch(otherwise), &[("input", json!(input))]) else { panic!() };
        assert_eq!(
            (parsed(&routed.output), routed.labels),
            (expected, labels.into_iter().map(str::to_owned).collect())
        );
    }
}

#[test]
fn a_map_hands_over_an_array_that_is_not_too_long() {
    let map = |items: Value| json!({ "id": "m", "kind": "map", "items": items });
    let items = |outcome: Result<Outcome, Failure>| match outcome {
        Ok(Outcome::FanOut(items)) => parsed(&items),
        other => panic!("{other:?}"),
    };
    assert_eq!(items(run_one(map(json!("${.input | map(. * 2)}")), &[("input", json!([1, 2]))])), json!([2, 4]));
    assert_eq!(items(run_one(map(json!([1, "${2}"])), &[])), json!([1, 2]));
    assert_eq!(items(run_one(map(json!("${[range(10000)]}")), &[])).as_array().unwrap().len(), 10_000);
    assert_eq!(permanent(run_one(map(json!("${[range(10001)]}")), &[])), "too_many_items");
    assert_eq!(permanent(run_one(map(json!("${.input}")), &[("input", json!({}))])), "not_an_array");
}

fn map_and_join(output: Value) -> Program {
    let mut join = json!({ "id": "j", "kind": "join", "of": "m" });
    if !output.is_null() {
        join["output"] = output;
    }
    let nodes = json!([
        { "id": "m", "kind": "map", "items": [] },
        { "id": "each", "kind": "transform", "output": "${[.index, .item, .nodes.m == .item, .run.items]}" },
        join,
    ]);
    load_with(nodes, vec![plan(&[], None), plan(&["m"], None), plan(&[], Some("each"))]).unwrap()
}

#[test]
fn within_a_map_there_are_an_item_and_its_number() {
    let program = map_and_join(json!(null));
    let made = output(run(&program, "each", &[3], &[("m", json!({ "a": 1 }))]));
    assert_eq!(made, json!([3, { "a": 1 }, true, [3]]));
}

#[test]
fn the_innermost_scope_is_the_one_that_is_seen() {
    let nodes = json!([{ "id": "n", "kind": "transform", "output": "${[.item, .index, .nodes.outer, .nodes.inner]}" }]);
    let program = load_with(nodes, vec![plan(&["outer", "inner"], None)]).unwrap();
    let made = output(run(&program, "n", &[4, 9], &[("outer", json!("o")), ("inner", json!("i"))]));
    assert_eq!(made, json!(["i", 9, "o", "i"]));
    // What no expression refers to is not handed over.
    let made = output(run(&program, "n", &[4, 9], &[("outer", json!("o"))]));
    assert_eq!(made, json!([null, 9, "o", null]));
}

#[test]
fn a_map_is_joined_with_a_template_or_as_the_array() {
    let handed = [("each", json!([1, null, 3])), ("failures", json!([{ "index": 1, "code": "bad" }]))];
    assert_eq!(output(run(&map_and_join(json!(null)), "j", &[], &handed)), json!([1, null, 3]));
    let program = map_and_join(json!({ "sum": "${.nodes.each | add}", "bad": "${.failures | map(.code)}" }));
    assert_eq!(output(run(&program, "j", &[], &handed)), json!({ "sum": 4, "bad": ["bad"] }));
}

#[test]
fn a_node_that_is_called_failures_is_not_taken_for_the_failures() {
    let program = map_and_join(json!("${[.nodes.failures, .failures]}"));
    let both = [("failures", json!([7])), ("failures", json!([]))];
    assert_eq!(output(run(&program, "j", &[], &both)), json!([[7], []]));
    assert_eq!(output(run(&program, "j", &[], &[("failures", json!([]))])), json!([null, []]));
}

fn looping(on_max: &str, next: Value) -> Program {
    let mut join = json!({ "id": "j", "kind": "join", "of": "l" });
    if !next.is_null() {
        join["output"] = next;
    }
    let nodes = json!([
        {
            "id": "l", "kind": "loop", "initial": { "n": "${.input}" }, "max": 3, "on_max": on_max,
            "while": "${.item.n < 10 and .nodes.l.n == .item.n and .index < 100}",
        },
        { "id": "step", "kind": "transform", "output": { "n": "${.item.n + 1}" } },
        join,
    ]);
    load_with(nodes, vec![plan(&[], None), plan(&["l"], None), plan(&["l"], Some("step"))]).unwrap()
}

#[test]
fn a_loop_begins_when_its_condition_holds() {
    let program = looping("fail", json!(null));
    assert_eq!(again(run(&program, "l", &[], &[("input", json!(3))])), json!({ "n": 3 }));
    assert_eq!(output(run(&program, "l", &[], &[("input", json!(10))])), json!({ "n": 10 }));
}

#[test]
fn the_join_of_a_loop_goes_on_until_the_condition_does_not_hold() {
    let program = looping("fail", json!(null));
    let state = |n: u32| json!({ "n": n });
    let join =
        |index: u32, from: u32, to: u32| run(&program, "j", &[index], &[("l", state(from)), ("step", state(to))]);
    assert_eq!(again(join(0, 3, 4)), state(4));
    assert_eq!(again(join(1, 4, 5)), state(5));
    assert_eq!(output(join(1, 4, 10)), state(10));
    // The last iteration that is allowed may still be the last that is needed.
    assert_eq!(output(join(2, 5, 10)), state(10));
    assert_eq!(permanent(join(2, 5, 6)), "loop_limit");
}

#[test]
fn a_loop_may_stop_at_its_limit() {
    let program = looping("stop", json!({ "n": "${.item.n + .nodes.step.n}" }));
    let handed = [("l", json!({ "n": 1 })), ("step", json!({ "n": 2 }))];
    assert_eq!(again(run(&program, "j", &[1], &handed)), json!({ "n": 3 }));
    assert_eq!(output(run(&program, "j", &[2], &handed)), json!({ "n": 3 }));
}

#[test]
fn a_loop_without_iterations_ends_with_its_first_state() {
    let program = looping("fail", json!("${error(\"there was no iteration\")}"));
    for items in [&[0][..], &[]] {
        assert_eq!(output(run(&program, "j", items, &[("l", json!({ "n": 10 }))])), json!({ "n": 10 }));
    }
    assert_eq!(permanent(run(&program, "j", &[0], &[])), "missing_input");
}

#[test]
fn a_component_is_handed_its_inputs() {
    let node = json!({
        "id": "c", "kind": "component", "workflow": "w", "version": "v", "node": "n",
        "inputs": { "input": { "a": "${.input.x}" }, "other": "${[.input.x]}" },
    });
    let Ok(Outcome::Delegate(delegation)) = run_one(node, &[("input", json!({ "x": 1 }))]) else { panic!() };
    let expected = [("input".to_owned(), r#"{"a":1}"#.to_owned()), ("other".to_owned(), "[1]".to_owned())];
    assert_eq!(delegation.inputs, expected);
}

#[test]
fn a_step_that_cannot_be_is_a_failure() {
    let program = load(json!([{ "id": "t", "kind": "transform", "output": 1 }])).unwrap();
    assert_eq!(permanent(run(&program, "x", &[], &[])), "unknown_node");
    let handed = [("input".to_owned(), "{".to_owned())];
    let failed = step::run(&program, &Fake::default(), &context("t", &[]), &handed);
    assert_eq!(permanent(failed), "invalid_input");
}

// llm

fn llm(extra: Value) -> Value {
    let mut node = json!({ "id": "ask", "kind": "llm", "provider": "mock", "model": "m-${.input.size}", "prompt": "Say ${.input.what}." });
    node.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    node
}

fn answer(text: &str) -> Result<Completion, LlmError> {
    Ok(Completion {
        text: text.to_owned(),
        model: "m-1".to_owned(),
        stop_reason: "stop".to_owned(),
        input_tokens: Some(10),
        output_tokens: Some(5),
        cost_micros: Some(2_500),
    })
}

fn ask(node: Value, answers: Vec<Result<Completion, LlmError>>) -> (Result<Outcome, Failure>, Fake) {
    let fake = Fake::default();
    fake.completions.borrow_mut().extend(answers);
    let program = load(json!([node])).unwrap();
    let handed = inputs(&[("input", json!({ "size": 1, "what": "hi" }))]);
    let outcome = step::run(&program, &fake, &context("ask", &[]), &handed);
    assert!(fake.completions.borrow().is_empty(), "an answer was not asked for");
    (outcome, fake)
}

#[test]
fn a_model_is_asked_as_the_node_says() {
    let (outcome, fake) =
        ask(llm(json!({ "system": "Be ${.input.what}", "topic": "t", "temperature": 0.5 })), vec![answer("hello")]);
    let expected = json!({
        "text": "hello", "model": "m-1", "provider": "mock", "stop_reason": "stop",
        "usage": { "input_tokens": 10, "output_tokens": 5, "cost_usd": 0.0025 },
    });
    assert_eq!(output(outcome), expected);
    let asked = fake.asked.borrow();
    let request = &asked[0];
    assert_eq!((request.provider.as_str(), request.model.as_str()), ("mock", "m-1"));
    assert_eq!(request.system.as_deref(), Some("Be hi"));
    assert_eq!(request.messages.len(), 1);
    assert_eq!((request.messages[0].role, request.messages[0].text.as_str()), (Role::User, "Say hi."));
    assert_eq!((request.max_tokens, request.temperature), (4_096, Some(0.5)));
    assert_eq!((request.topic.as_deref(), request.timeout_ms), (Some("t"), 30_000));
    assert_eq!(request.schema, None);
}

fn with_schema() -> Value {
    llm(json!({ "schema": { "type": "object", "required": ["a"], "properties": { "a": { "type": "integer" } } } }))
}

#[test]
fn an_answer_that_follows_the_schema_is_taken_as_it_is() {
    for text in ["{\"a\": 12345678901234567890123}", "```json\n{\"a\": 1.0}\n```", "```\n{\"a\":1}```"] {
        let (outcome, fake) = ask(with_schema(), vec![answer(text)]);
        let Ok(Outcome::Output(output)) = outcome else { panic!("{outcome:?}") };
        let inner = text.trim_matches(|c: char| c == '`' || c.is_whitespace()).trim_start_matches("json\n");
        assert!(output.ends_with(&format!(",\"json\":{inner}}}")), "{output}");
        assert!(parsed(&output)["json"]["a"].is_number());
        let asked = fake.asked.borrow();
        assert!(asked[0].schema.is_some());
        assert!(asked[0].system.as_ref().unwrap().contains(r#""required":["a"]"#));
    }
}

#[test]
fn a_wrong_answer_is_sent_back_once() {
    let (outcome, fake) = ask(with_schema(), vec![answer("{\"a\":\"x\"}"), answer("{\"a\":1}")]);
    let output = output(outcome);
    assert_eq!(output["json"], json!({ "a": 1 }));
    assert_eq!(output["usage"], json!({ "input_tokens": 20, "output_tokens": 10, "cost_usd": 0.005 }));
    let asked = fake.asked.borrow();
    let messages: Vec<_> = asked[1].messages.iter().map(|message| (message.role, message.text.as_str())).collect();
    let back = "That answer is not valid: /a must be of type integer. Answer again with JSON only.";
    assert_eq!(messages, [(Role::User, "Say hi."), (Role::Assistant, "{\"a\":\"x\"}"), (Role::User, back)]);
}

#[test]
fn an_answer_that_stays_wrong_is_tried_again() {
    let (outcome, _) = ask(with_schema(), vec![answer("no"), answer("{}")]);
    let failure = outcome.unwrap_err();
    assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Retryable, "llm_invalid_answer"));
    assert_eq!(parsed(&failure.details.unwrap()), json!({ "problems": ["/a is missing"], "text": "{}" }));
}

#[test]
fn what_a_provider_says_becomes_a_failure() {
    use FailureKind::{Permanent, Retryable};
    for (error, kind, code, after) in [
        (LlmError::InvalidRequest("x".to_owned()), Permanent, "llm_invalid_request", None),
        (LlmError::UnknownProvider, Permanent, "llm_unknown_provider", None),
        (LlmError::MissingSecret("k".to_owned()), Permanent, "llm_missing_secret", None),
        (LlmError::Denied("x".to_owned()), Permanent, "llm_denied", None),
        (LlmError::Refused("x".to_owned()), Permanent, "llm_refused", None),
        (LlmError::Overloaded(Some(1_500)), Retryable, "llm_overloaded", Some(1_500)),
        (LlmError::Timeout, Retryable, "llm_timeout", None),
        (LlmError::Connection("x".to_owned()), Retryable, "llm_connection", None),
        (LlmError::TooLarge, Permanent, "llm_too_large", None),
        (LlmError::QuotaExceeded, Permanent, "llm_quota", None),
    ] {
        let failure = ask(llm(json!({})), vec![Err(error)]).0.unwrap_err();
        assert_eq!((failure.kind, failure.code.as_str(), failure.retry_after_ms), (kind, code, after));
    }
}

// http

fn http(extra: Value) -> Value {
    let mut node = json!({ "id": "get", "kind": "http", "url": "https://example.com/a" });
    node.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    node
}

fn response(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Result<Response, HttpError> {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Ok(Response { status, headers, body: body.to_vec() })
}

fn send(node: Value, answer: Result<Response, HttpError>) -> (Result<Outcome, Failure>, Vec<Request>) {
    let fake = Fake::default();
    fake.responses.borrow_mut().push_back(answer);
    let program = load(json!([node])).unwrap();
    let handed = inputs(&[("input", json!({ "q": "a b&c/é", "u": "http://x.y/?z=1", "n": 3, "o": {} }))]);
    (step::run(&program, &fake, &context("get", &[]), &handed), fake.sent.into_inner())
}

fn sent(node: Value) -> Request {
    send(node, response(200, &[], b"")).1.remove(0)
}

#[test]
fn a_url_is_put_together_safely() {
    for (extra, expected) in [
        (json!({}), "https://example.com/a"),
        (json!({ "url": "https://x.y/${.input.q}?p=${.input.n}" }), "https://x.y/a%20b%26c%2F%C3%A9?p=3"),
        (json!({ "url": "${.input.u}" }), "http://x.y/?z=1"),
        (
            json!({ "query": { "b": "${.input.q}", "a ": 1, "n": null, "t": true } }),
            "https://example.com/a?a%20=1&b=a%20b%26c%2F%C3%A9&t=true",
        ),
        (json!({ "url": "${.input.u}", "query": { "a": "1" } }), "http://x.y/?z=1&a=1"),
        (json!({ "url": "http://x.y/?#top", "query": { "a": "1" } }), "http://x.y/?a=1"),
    ] {
        assert_eq!(sent(http(extra.clone())).url, expected, "{extra}");
    }
    let (outcome, sent) = send(http(json!({ "query": { "a": "${.input.o}" } })), response(200, &[], b""));
    assert_eq!((permanent(outcome).as_str(), sent.len()), ("http_invalid_request", 0));
}

#[test]
fn a_body_is_sent_as_text_or_as_json() {
    let plain = sent(http(json!({ "body": "n=${.input.n}" })));
    assert_eq!((plain.method.as_str(), plain.headers.len()), ("POST", 0));
    assert_eq!(plain.body.as_deref(), Some(&b"n=3"[..]));
    let typed =
        sent(http(json!({ "body": { "n": "${.input.n}" }, "method": "put", "headers": { "x-a": "v${.input.n}" } })));
    assert_eq!(typed.method, "PUT");
    let expected =
        [("x-a", "v3"), ("content-type", "application/json")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(typed.headers, expected);
    assert_eq!(typed.body.as_deref(), Some(&b"{\"n\":3}"[..]));
    let own = sent(http(json!({ "body": [1], "headers": { "Content-Type": "application/ld+json" } })));
    assert_eq!(own.headers, [("Content-Type".to_owned(), "application/ld+json".to_owned())]);
    assert_eq!(sent(http(json!({}))).method, "GET");
}

#[test]
fn a_secret_is_named_and_not_known() {
    let request = sent(http(json!({ "authorization": { "secret": "key" } })));
    let bearer =
        Authorization { secret: "key".to_owned(), header: "authorization".to_owned(), prefix: "Bearer ".to_owned() };
    assert_eq!(request.authorization, Some(bearer));
    let request = sent(http(json!({ "authorization": { "secret": "key", "header": "x-key", "prefix": "" } })));
    let own = Authorization { secret: "key".to_owned(), header: "x-key".to_owned(), prefix: String::new() };
    assert_eq!((request.authorization, request.timeout_ms), (Some(own), 30_000));
}

#[test]
fn a_response_is_an_output() {
    let json = [("content-type", "application/problem+json; charset=utf-8"), ("x-a", "1"), ("x-a", "2")];
    let made = output(send(http(json!({})), response(201, &json, b" {\"a\": 1} ")).0);
    let headers = json!({ "content-type": "application/problem+json; charset=utf-8", "x-a": "1, 2" });
    assert_eq!(made, json!({ "status": 201, "headers": headers, "body": { "a": 1 } }));
    for (content_type, body, expected) in [
        ("application/json", &b"{nope"[..], "{nope"),
        ("text/plain", b"{}", "{}"),
        ("text/plain", b"a\xff", "a\u{FFFD}"),
        ("application/json", b"", ""),
    ] {
        let made = output(send(http(json!({})), response(200, &[("content-type", content_type)], body)).0);
        assert_eq!(made["body"], json!(expected));
    }
}

#[test]
fn the_status_tells_what_becomes_of_the_step() {
    use FailureKind::{Permanent, Retryable};
    let status = |rules: Value, status: u16| {
        let node = http(json!({ "url": "https://x.y/p?token=t", "status": rules }));
        send(node, response(status, &[("retry-after", "7")], b"why")).0
    };
    assert!(status(json!(null), 204).is_ok());
    for (code, kind) in [(429, Retryable), (503, Retryable), (408, Retryable), (404, Permanent), (302, Permanent)] {
        let failure = status(json!(null), code).unwrap_err();
        assert_eq!((failure.kind, failure.code.as_str()), (kind, "http_status"));
        assert_eq!(failure.message, format!("GET https://x.y/p answered {code}"));
        assert_eq!(failure.retry_after_ms, (kind == Retryable).then_some(7_000));
        assert_eq!(parsed(&failure.details.unwrap()), json!({ "status": code, "body": "why" }));
    }
    assert!(status(json!({ "ok": [404, "3xx"] }), 404).is_ok());
    assert!(status(json!({ "ok": [404, "3xx"] }), 302).is_ok());
    assert_eq!(status(json!({ "ok": [404], "retry": ["2xx"] }), 200).unwrap_err().kind, Retryable);
    assert_eq!(status(json!({ "retry": [] }), 500).unwrap_err().kind, Permanent);
}

#[test]
fn a_date_to_try_again_at_is_ignored() {
    let headers = [("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")];
    assert_eq!(send(http(json!({})), response(503, &headers, b"")).0.unwrap_err().retry_after_ms, None);
}

#[test]
fn a_request_without_a_response_is_a_failure() {
    use FailureKind::{Permanent, Retryable};
    for (error, kind, code) in [
        (HttpError::InvalidRequest("x".to_owned()), Permanent, "http_invalid_request"),
        (HttpError::Denied("x".to_owned()), Permanent, "http_denied"),
        (HttpError::Timeout, Retryable, "http_timeout"),
        (HttpError::Connection("x".to_owned()), Retryable, "http_connection"),
        (HttpError::TooLarge(4 << 20), Permanent, "http_too_large"),
        (HttpError::QuotaExceeded, Permanent, "http_quota"),
    ] {
        let failure = send(http(json!({ "query": { "token": "t" } })), Err(error)).0.unwrap_err();
        assert_eq!((failure.kind, failure.code.as_str()), (kind, code));
        assert!(!failure.message.contains("token"), "{}", failure.message);
    }
}

#[test]
fn a_sleep_is_as_long_as_its_text_its_number_or_its_expression_says() {
    for (duration, input, ms) in [
        (json!("1m30s"), json!(null), 90_000),
        (json!(250), json!(null), 250),
        (json!("${ .input.minutes * 60000 }"), json!({ "minutes": 0.5 }), 30_000),
        (json!("${ .input }"), json!("2h"), 7_200_000),
    ] {
        let outside = Fake::default();
        let program = load(json!([{ "id": "s", "kind": "sleep", "for": duration }])).unwrap();
        let slept = step::run(&program, &outside, &context("s", &[]), &inputs(&[("input", input)]));
        assert_eq!((output(slept), outside.slept.take()), (json!(null), vec![ms]), "{duration}");
    }
    for wrong in [json!("soon"), json!(-1), json!(null), json!([1]), json!(1e300)] {
        let outside = Fake::default();
        let program = load(json!([{ "id": "s", "kind": "sleep", "for": "${ .input }" }])).unwrap();
        let slept = step::run(&program, &outside, &context("s", &[]), &inputs(&[("input", wrong.clone())]));
        assert_eq!(permanent(slept), "invalid_duration", "{wrong}");
        assert!(outside.slept.take().is_empty(), "{wrong}");
    }
}

#[test]
fn a_signal_is_its_payload_and_its_absence_is_a_failure_or_null() {
    let heard = |fields: Value, answer: Result<&str, WaitError>| {
        let mut node = json!({ "id": "s", "kind": "signal", "name": "go" });
        node.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let outside = Fake::default();
        outside.signals.borrow_mut().push_back(answer.map(str::to_owned));
        let outcome = step::run(&load(json!([node])).unwrap(), &outside, &context("s", &[]), &inputs(&[]));
        (outcome, outside.awaited.take())
    };
    let (taken, awaited) = heard(json!({}), Ok("{\"by\":1.10}"));
    // The payload is handed on as it came, to the last digit.
    assert!(matches!(taken, Ok(Outcome::Output(text)) if text == "{\"by\":1.10}"));
    assert_eq!(awaited, [("go".to_owned(), None)]);

    let (late, awaited) = heard(json!({ "within": "24h" }), Err(WaitError::Timeout));
    assert_eq!((permanent(late), awaited), ("signal_timeout".to_owned(), vec![("go".to_owned(), Some(86_400_000))]));
    let (late, _) = heard(json!({ "within": "1s", "on_timeout": "null" }), Err(WaitError::Timeout));
    assert_eq!(output(late), json!(null));
    let (often, _) = heard(json!({ "on_timeout": "null" }), Err(WaitError::QuotaExceeded));
    assert_eq!(permanent(often), "wait_quota", "only what is late is null");
}

#[test]
fn a_workflow_is_started_with_its_input_and_ends_as_the_other_run_does() {
    let version = "ab".repeat(32);
    let node = json!({
        "id": "w", "kind": "workflow", "workflow": "other", "version": version, "input": { "n": "${ .input + 1 }" },
    });
    let ended = |node: &Value, end: Result<&str, AwaitError>| {
        let outside = Fake::default();
        outside.ends.borrow_mut().push_back(end.map(str::to_owned));
        let handed = inputs(&[("input", json!(41))]);
        let outcome = step::run(&load(json!([node])).unwrap(), &outside, &context("w", &[]), &handed);
        (outcome, outside.started.take(), outside.ends.take().len())
    };
    let (outcome, started, _) = ended(&node, Ok("[1]"));
    assert_eq!(output(outcome), json!([1]));
    assert_eq!((started[0].workflow.as_str(), started[0].version.as_ref()), ("other", Some(&version)));
    assert_eq!((parsed(&started[0].input), started[0].detached), (json!({ "n": 42 }), false));

    let broken = AwaitError::Failed(ChildFailure { code: "broken".to_owned(), message: "it broke".to_owned() });
    let failure = ended(&node, Err(broken)).0.unwrap_err();
    assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Permanent, "child_failed"));
    let details = json!({ "run_id": "child", "code": "broken", "message": "it broke" });
    assert_eq!(failure.details.map(|details| parsed(&details)), Some(details));
    assert_eq!(permanent(ended(&node, Err(AwaitError::Cancelled)).0), "child_cancelled");

    // One that goes on by itself is not waited for, and without an input it is handed `null`.
    let detached = json!({ "id": "w", "kind": "workflow", "workflow": "other", "detached": true });
    let (outcome, started, not_asked) = ended(&detached, Ok("1"));
    assert_eq!((output(outcome), not_asked), (json!({ "run_id": "child" }), 1));
    assert_eq!((started[0].input.as_str(), started[0].detached), ("null", true));
}
