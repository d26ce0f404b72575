//! Questions to providers, and what they make of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use stepwell_outbound::llm::Discard;
use stepwell_outbound::{
    Completion, DeltaSink, Egress, LlmError, LlmRequest, Message, Outbound, OutboundConfig, Price, Provider,
    ProviderKind, Role, Secret, Stopped,
};
use tokio::time::sleep;

use crate::server::{Act, Server, config, outbound, response, send};

const EVENT_STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// Keeps the deltas. May take its time over each, and may stop after some.
#[derive(Default)]
struct Kept {
    deltas: Vec<String>,
    time: Duration,
    stop_after: Option<usize>,
}

impl DeltaSink for Kept {
    fn delta(&mut self, text: String) -> BoxFuture<'_, Result<(), Stopped>> {
        self.deltas.push(text);
        let result = if self.stop_after == Some(self.deltas.len()) { Err(Stopped) } else { Ok(()) };
        let time = self.time;
        Box::pin(async move {
            sleep(time).await;
            result
        })
    }
}

fn provider(kind: ProviderKind, base_url: String) -> Provider {
    let price = Price { input: "3".parse().unwrap(), output: "15".parse().unwrap() };
    let prices = BTreeMap::from([("model".to_owned(), price)]);
    Provider { kind, base_url, key: Some(Secret::new("sk-hunter2")), prices }
}

fn question(model: &str) -> LlmRequest {
    LlmRequest {
        model: model.to_owned(),
        system: None,
        messages: vec![Message { role: Role::User, text: "say hello".to_owned() }],
        max_tokens: 50,
        temperature: None,
        schema: None,
        timeout_ms: 10_000,
    }
}

/// What comes of a question to a server with this script, and what was told meanwhile.
async fn ask(kind: ProviderKind, script: impl IntoIterator<Item = Act>) -> (Result<Completion, LlmError>, String) {
    let server = Server::start(script).await;
    let mut kept = Kept::default();
    let result = outbound().complete(&provider(kind, server.url("")), &question("model"), &mut kept).await;
    assert!(!format!("{result:?}").contains("hunter2"), "{result:?}");
    (result, kept.deltas.concat())
}

async fn error(kind: ProviderKind, script: impl IntoIterator<Item = Act>) -> LlmError {
    match ask(kind, script).await.0 {
        Err(error) => error,
        Ok(completion) => panic!("{completion:?}"),
    }
}

#[track_caller]
fn assert_connection(error: &LlmError, part: &str) {
    let LlmError::Connection(text) = error else { panic!("{error:?}") };
    assert!(text.contains(part) && text.contains("127.0.0.1"), "{text}");
}

fn openai_stream() -> String {
    let chunk = |choices: Value, usage: Value| json!({"id": "c1", "object": "chat.completion.chunk", "model": "model-1", "choices": choices, "usage": usage});
    let delta = |text: &str| json!([{"index": 0, "delta": {"content": text}, "finish_reason": null}]);
    [
        chunk(json!([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]), Value::Null),
        chunk(delta("Grüß "), Value::Null),
        chunk(delta("Gott"), Value::Null),
        chunk(delta(" 🦀"), Value::Null),
        chunk(json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]), Value::Null),
        chunk(json!([]), json!({"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200})),
    ]
    .map(|chunk| format!("data: {chunk}\n\n"))
    .concat()
        + "data: [DONE]\n\n"
}

fn anthropic_stream() -> String {
    let usage = json!({"input_tokens": 1000, "cache_read_input_tokens": 0, "output_tokens": 1});
    [
        json!({"type": "message_start", "message": {"id": "m", "model": "model-1", "content": [], "usage": usage}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "ping"}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Grüß "}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Gott"}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " 🦀"}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 200}}),
        json!({"type": "message_stop"}),
    ]
    .map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap()))
    .concat()
}

fn whole_answer() -> Completion {
    Completion {
        text: "Grüß Gott 🦀".to_owned(),
        model: "model-1".to_owned(),
        stop_reason: "stop".to_owned(),
        input_tokens: Some(1000),
        output_tokens: Some(200),
        cost_micros: Some(6000),
    }
}

#[tokio::test]
async fn an_answer_comes_whole_and_is_told_meanwhile() {
    for (kind, stream) in [(ProviderKind::OpenAi, openai_stream()), (ProviderKind::Anthropic, anthropic_stream())] {
        let (result, told) = ask(kind, [send(EVENT_STREAM), send(&stream)]).await;
        assert_eq!(result, Ok(whole_answer()), "{kind:?}");
        assert_eq!(told, whole_answer().text);
    }
}

#[tokio::test]
async fn an_answer_is_whole_wherever_the_network_cuts_it() {
    let stream = anthropic_stream();
    let bytes = stream.as_bytes();
    let crab = stream.find('🦀').unwrap() + 2;
    for (one, two) in [bytes.split_at(crab), bytes.split_at(20)] {
        let chunk = |piece: &[u8]| [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
        let pause = Act::Pause(Duration::from_millis(30));
        let script = [send(CHUNKED), send(chunk(one)), pause, send(chunk(two)), send("0\r\n\r\n")];
        let (result, told) = ask(ProviderKind::Anthropic, script).await;
        assert_eq!(result, Ok(whole_answer()));
        assert_eq!(told, whole_answer().text);
    }
}

#[tokio::test]
async fn a_provider_is_asked_in_its_own_words() {
    let server = Server::start([send(EVENT_STREAM), send(openai_stream())]).await;
    let openai = provider(ProviderKind::OpenAi, server.url("/v1/"));
    outbound().complete(&openai, &question("model"), &mut Discard).await.unwrap();
    let request = &server.requests()[0];
    assert!(request.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{request}");
    for line in [
        "authorization: Bearer sk-hunter2\r\n",
        "content-type: application/json\r\n",
        "accept: text/event-stream\r\n",
        "accept-encoding: identity\r\n",
    ] {
        assert!(request.contains(line), "{request}");
    }
    let body: Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((&body["max_tokens"], &body["stream_options"]["include_usage"]), (&json!(50), &json!(true)));

    let server = Server::start([send(EVENT_STREAM), send(anthropic_stream())]).await;
    let anthropic = provider(ProviderKind::Anthropic, server.url(""));
    outbound().complete(&anthropic, &question("model"), &mut Discard).await.unwrap();
    let request = &server.requests()[0];
    assert!(request.starts_with("POST /v1/messages HTTP/1.1\r\n"), "{request}");
    for line in ["x-api-key: sk-hunter2\r\n", "anthropic-version: 2023-06-01\r\n"] {
        assert!(request.contains(line), "{request}");
    }

    let server = Server::start([send(EVENT_STREAM), send(openai_stream())]).await;
    let keyless = Provider { key: None, ..provider(ProviderKind::OpenAi, server.url("")) };
    outbound().complete(&keyless, &question("model"), &mut Discard).await.unwrap();
    assert!(!server.requests()[0].contains("authorization"));
}

#[tokio::test]
async fn an_answer_that_is_cut_off_anywhere_is_no_completion() {
    for (kind, stream, whole_from) in [
        // From here on it is known why it ended, only the tokens are missing.
        (ProviderKind::OpenAi, openai_stream(), "\"finish_reason\":\"stop\""),
        (ProviderKind::Anthropic, anthropic_stream(), "\"message_stop\""),
    ] {
        let whole_from = stream.find(whole_from).unwrap();
        let whole_from = whole_from + stream[whole_from..].find("\n\n").unwrap() + 2;
        for end in (0..stream.len()).step_by(7).chain([whole_from - 1, whole_from, stream.len()]) {
            let (result, told) = ask(kind, [send(EVENT_STREAM), send(&stream.as_bytes()[..end])]).await;
            assert!(whole_answer().text.starts_with(&told));
            match result {
                Ok(completion) => assert!(end >= whole_from && completion.text == told, "{kind:?} cut at {end}"),
                Err(error) => {
                    assert!(end < whole_from, "{kind:?} cut at {end}: {error}");
                    assert_connection(&error, "cut the answer off");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_no_end() {
    // All but the end of the message on the level of HTTP.
    let stream = openai_stream().replace("data: [DONE]\n\n", "");
    let chunk = format!("{:x}\r\n{stream}\r\n", stream.len());
    assert_connection(&error(ProviderKind::OpenAi, [send(CHUNKED), send(&chunk)]).await, "broke");
    assert_connection(&error(ProviderKind::OpenAi, []).await, "broke");
}

#[tokio::test]
async fn a_provider_that_falls_silent_in_the_middle_is_given_up() {
    let begun = "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n";
    let (result, told) = ask(ProviderKind::OpenAi, [send(EVENT_STREAM), send(begun), Act::Stall]).await;
    assert_eq!(result, Err(LlmError::Timeout));
    // The text does not wait for more.
    assert_eq!(told, "Hel");
}

#[tokio::test]
async fn a_provider_may_think_before_it_speaks_and_keep_the_line_open() {
    let pause = || Act::Pause(Duration::from_millis(500));
    let (result, _) = ask(ProviderKind::OpenAi, [pause(), send(EVENT_STREAM), pause(), send(openai_stream())]).await;
    assert_eq!(result, Ok(whole_answer()));
    let short = || Act::Pause(Duration::from_millis(160));
    let stream = anthropic_stream();
    let (begun, rest) = stream.split_at(stream.find("Gott").unwrap());
    let (last_begun, rest_of_event) = rest.split_at(rest.find("\n\n").unwrap() + 2);
    let ping = "event: ping\ndata: {\"type\":\"ping\"}\n\n";
    let script = [
        send(EVENT_STREAM),
        send(begun),
        send(last_begun),
        short(),
        send(ping),
        short(),
        send(": comment\n"),
        short(),
        send(rest_of_event),
    ];
    assert_eq!(ask(ProviderKind::Anthropic, script).await.0, Ok(whole_answer()));
}

#[tokio::test]
async fn nobody_waits_longer_than_asked() {
    for script in [vec![Act::Stall], vec![send(EVENT_STREAM), Act::Repeat(b": wait\n\n".to_vec())]] {
        let server = Server::start(script).await;
        let request = LlmRequest { timeout_ms: 100, ..question("model") };
        let result = outbound().complete(&provider(ProviderKind::OpenAi, server.url("")), &request, &mut Discard).await;
        assert_eq!(result, Err(LlmError::Timeout));
    }
}

#[tokio::test]
async fn a_refusal_is_passed_on_without_the_key() {
    let body = json!({"error": {"message": "key sk-hunter2 has no such model", "type": "not_found_error"}}).to_string();
    let json = "content-type: application/json\r\n";
    for kind in [ProviderKind::OpenAi, ProviderKind::Anthropic] {
        let refused = |text: &str| LlmError::Refused(text.to_owned());
        assert_eq!(
            error(kind, [response("404 Not Found", json, &body)]).await,
            refused("HTTP 404: key [secret] has no such model")
        );
        assert_eq!(
            error(kind, [response("401 Unauthorized", json, &body)]).await,
            refused("HTTP 401: the provider does not accept the key")
        );
        assert_eq!(
            error(kind, [response("400 Bad Request", "content-type: text/html\r\n", "<h1>Bad</h1>")]).await,
            refused("HTTP 400: <h1>Bad</h1>")
        );
        assert_eq!(
            error(kind, [response("307 Temporary Redirect", "location: http://10.0.0.1/\r\n", "")]).await,
            refused("HTTP 307")
        );
        // One who does not end saying no is not listened to for ever.
        let endless = error(kind, [send("HTTP/1.1 400 Bad Request\r\n\r\n"), Act::Repeat(vec![b'n'; 1000])]).await;
        let LlmError::Refused(text) = endless else { panic!("{endless:?}") };
        assert_eq!(text.len(), "HTTP 400: ".len() + 500);
    }
}

#[tokio::test]
async fn a_provider_with_too_much_to_do_says_how_long_to_wait() {
    for (status, headers, wait_ms) in [
        ("429 Too Many Requests", "retry-after: 2\r\n", Some(2000)),
        ("429 Too Many Requests", "retry-after: 2\r\nretry-after-ms: 1200\r\n", Some(1200)),
        ("503 Service Unavailable", "", None),
        ("529 Overloaded", "", None),
        ("500 Internal Server Error", "", None),
    ] {
        let body = json!({"error": {"message": "later", "type": "overloaded_error"}}).to_string();
        let error = error(ProviderKind::Anthropic, [response(status, headers, body)]).await;
        assert_eq!(error, LlmError::Overloaded(wait_ms), "{status}");
    }
}

#[tokio::test]
async fn an_error_in_the_middle_of_an_answer_is_an_error() {
    let text = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\
                \"delta\":{\"type\":\"text_delta\",\"text\":\"Hel\"}}\n\n";
    let overloaded = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n";
    let error_of = error(ProviderKind::Anthropic, [send(EVENT_STREAM), send(text), send(overloaded)]).await;
    assert_eq!(error_of, LlmError::Overloaded(None));
    let refused =
        "data: {\"error\":{\"message\":\"sk-hunter2 is bad\",\"type\":\"invalid_request_error\",\"code\":null}}\n\n";
    let error_of = error(ProviderKind::OpenAi, [send(EVENT_STREAM), send(refused), send(openai_stream())]).await;
    assert_eq!(error_of, LlmError::Refused("[secret] is bad".to_owned()));
}

#[tokio::test]
async fn what_is_not_an_answer_is_an_error() {
    let json = "content-type: application/json\r\n";
    for kind in [ProviderKind::OpenAi, ProviderKind::Anthropic] {
        let whole =
            response("200 OK", json, "{\"choices\":[{\"message\":{\"content\":\"hi\"},\"finish_reason\":\"stop\"}]}");
        assert_connection(&error(kind, [whole]).await, "no event stream");
        assert_connection(&error(kind, [response("200 OK", "", openai_stream())]).await, "no event stream");
        let not_understood = "something else than an answer";
        assert_connection(&error(kind, [send(EVENT_STREAM), send("data: hello\n\n")]).await, not_understood);
        assert_connection(&error(kind, [send(EVENT_STREAM), send("data: [1]\n\n")]).await, not_understood);
        assert_connection(&error(kind, [send(EVENT_STREAM), send(b"data: \"\xff\"\n\n")]).await, not_understood);
        let endless_line = [send(EVENT_STREAM), send("data: "), Act::Repeat(vec![b'x'; 64 * 1024])];
        assert_connection(&error(kind, endless_line).await, not_understood);
        let deep = format!("data: {}\n\n", "[".repeat(100_000));
        assert_connection(&error(kind, [send(EVENT_STREAM), send(deep)]).await, not_understood);
        assert_connection(&error(kind, [send("SSH-2.0-OpenSSH_9.9\r\n")]).await, "broke");
    }
}

#[tokio::test]
async fn an_answer_without_end_is_too_large() {
    let event = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "x".repeat(60_000));
    let (result, told) = ask(ProviderKind::OpenAi, [send(EVENT_STREAM), Act::Repeat(event.into_bytes())]).await;
    assert_eq!(result, Err(LlmError::TooLarge));
    assert!(told.len() <= 4 * 1024 * 1024);
}

#[tokio::test]
async fn syllables_are_told_together() {
    let syllable = "data: {\"choices\":[{\"delta\":{\"content\":\"la\"}}]}\n\n";
    let stream = syllable.repeat(500) + &openai_stream();
    let server = Server::start([send(EVENT_STREAM), send(stream)]).await;
    let mut kept = Kept::default();
    let openai = provider(ProviderKind::OpenAi, server.url(""));
    let completion = outbound().complete(&openai, &question("model"), &mut kept).await.unwrap();
    assert_eq!(kept.deltas.concat(), completion.text);
    assert!(kept.deltas.len() < 50, "{} deltas", kept.deltas.len());
}

#[tokio::test]
async fn a_sink_that_stops_ends_the_connection() {
    let event = "data: {\"choices\":[{\"delta\":{\"content\":\"word after word \"}}]}\n\n";
    let mut server = Server::start([send(EVENT_STREAM), send(event), Act::Stall]).await;
    let mut kept = Kept { stop_after: Some(1), ..Kept::default() };
    let openai = provider(ProviderKind::OpenAi, server.url(""));
    assert_eq!(outbound().complete(&openai, &question("model"), &mut kept).await, Err(LlmError::Cancelled));
    server.connection_over().await;
    assert_eq!(kept.deltas, ["word after word "]);
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_the_connection() {
    let event = "data: {\"choices\":[{\"delta\":{\"content\":\"word\"}}]}\n\n";
    let mut server = Server::start([send(EVENT_STREAM), send(event), Act::Stall]).await;
    let openai = provider(ProviderKind::OpenAi, server.url(""));
    let outbound = Outbound::new(OutboundConfig { stall: Duration::from_secs(60), ..config() }).unwrap();
    let asking = async {
        outbound.complete(&openai, &question("model"), &mut Discard).await.unwrap();
    };
    assert!(tokio::time::timeout(Duration::from_millis(100), asking).await.is_err());
    server.connection_over().await;
}

#[tokio::test]
async fn a_sink_that_takes_its_time_is_no_stall_of_the_provider() {
    let pause = || Act::Pause(Duration::from_millis(50));
    let stream = openai_stream();
    let events: Vec<&str> = stream.split_inclusive("\n\n").collect();
    let script = [send(EVENT_STREAM)].into_iter().chain(events.into_iter().flat_map(|event| [send(event), pause()]));
    let server = Server::start(script).await;
    let mut kept = Kept { time: Duration::from_millis(500), ..Kept::default() };
    let openai = provider(ProviderKind::OpenAi, server.url(""));
    assert_eq!(outbound().complete(&openai, &question("model"), &mut kept).await, Ok(whole_answer()));
    assert_eq!(kept.deltas.concat(), whole_answer().text);
}

#[tokio::test]
async fn a_providers_address_is_subject_to_the_rules_of_egress() {
    let server = Server::start([send(EVENT_STREAM), send(openai_stream())]).await;
    let closed = Outbound::new(OutboundConfig { egress: Egress::default(), ..config() }).unwrap();
    let localhost = format!("http://localhost:{}", server.address.port());
    for (base_url, host) in [(server.url(""), "127.0.0.1"), (localhost, "localhost")] {
        for kind in [ProviderKind::OpenAi, ProviderKind::Anthropic] {
            let denied = closed.complete(&provider(kind, base_url.clone()), &question("model"), &mut Discard).await;
            assert_eq!(denied, Err(LlmError::Denied(format!("the address of `{host}` may not be reached"))));
        }
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_provider_that_was_set_up_wrong_is_not_asked() {
    let server = Server::start([send(EVENT_STREAM), send(openai_stream())]).await;
    let openai = provider(ProviderKind::OpenAi, server.url(""));
    for wrong in [
        Provider { base_url: String::new(), ..openai.clone() },
        Provider { base_url: server.url("").replace("http://", "http://user@"), ..openai.clone() },
        Provider { key: Some(Secret::new("sk-hunter2\n")), ..openai.clone() },
    ] {
        assert!(!format!("{wrong:?}").contains("hunter2"));
        let result = outbound().complete(&wrong, &question("model"), &mut Discard).await;
        let Err(LlmError::InvalidRequest(text)) = result else { panic!("{result:?}") };
        assert!(!text.contains("hunter2"), "{text}");
    }
    let empty = LlmRequest { messages: Vec::new(), ..question("model") };
    let result = outbound().complete(&openai, &empty, &mut Discard).await;
    assert!(matches!(result, Err(LlmError::InvalidRequest(_))), "{result:?}");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn the_mock_answers_without_a_network() {
    let closed = Egress { reach: stepwell_outbound::Reach::Nothing, allow: Vec::new() };
    let outbound = Outbound::new(OutboundConfig { egress: closed, ..config() }).unwrap();
    let mock = Provider { key: None, ..provider(ProviderKind::Mock, String::new()) };
    let mut kept = Kept::default();
    let completion = outbound.complete(&mock, &question("mock"), &mut kept).await.unwrap();
    assert_eq!(completion.text, "[mock] No model has read this. You wrote 2 words: say hello");
    assert_eq!(kept.deltas.concat(), completion.text);
    assert_eq!(completion.cost_micros, None);

    let started = Instant::now();
    let mut kept = Kept::default();
    let slow = outbound.complete(&mock, &question("mock-slow"), &mut kept).await.unwrap();
    assert_eq!((&slow.text, kept.deltas.concat()), (&completion.text, completion.text.clone()));
    assert!(started.elapsed() >= Duration::from_millis(12 * 20));
    assert!(kept.deltas.len() > 3, "{:?}", kept.deltas);

    let hasty = LlmRequest { timeout_ms: 50, ..question("mock-slow") };
    assert_eq!(outbound.complete(&mock, &hasty, &mut Discard).await, Err(LlmError::Timeout));
    assert_eq!(outbound.complete(&mock, &question("mock-fail"), &mut Discard).await, Err(LlmError::Overloaded(None)));
}

/// The sandbox awaits these on any thread.
#[test]
fn what_is_awaited_can_move_between_threads() {
    fn is_send<T: Send>(_: &T) {}
    let outbound = outbound();
    let mock = provider(ProviderKind::Mock, String::new());
    let request = question("mock");
    let mut sink = Discard;
    is_send(&outbound.complete(&mock, &request, &mut sink));
    is_send(&outbound.send(crate::http::get("http://a.example/".to_owned()), None));
    is_send(&Arc::new(outbound.clone()));
}
