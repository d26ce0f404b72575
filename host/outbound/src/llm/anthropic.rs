//! Messages, as Anthropic speaks them (version 2023-06-01).
//!
//! An answer begins with `message_start`, which has the model and the tokens read. Its text is in the `text_delta`s of
//! `content_block_delta`; `message_delta` has the reason to stop and the tokens written so far, and `message_stop` is
//! the end. `error` may come at any time, `ping` as well, and the documentation says that there will be other events.
//!
//! The invariant: without a `message_stop` there is no answer.

use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::exchange::{Complaint, Dialect, NotUnderstood, Said, read_json};
use super::{Heard, LlmError, LlmRequest, schema, sse};

pub(super) struct Anthropic;

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<&'a str>,
    messages: Vec<BodyMessage<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<OutputConfig<'a>>,
    stream: bool,
}

#[derive(Serialize)]
struct BodyMessage<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
struct OutputConfig<'a> {
    format: Format<'a>,
}

#[derive(Serialize)]
struct Format<'a> {
    r#type: &'static str,
    schema: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    MessageStart {
        message: Start,
    },
    ContentBlockDelta {
        delta: BlockDelta,
    },
    MessageDelta {
        delta: MessageDelta,
        usage: Option<Usage>,
    },
    MessageStop,
    Error {
        error: Value,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Start {
    model: Option<String>,
    usage: Option<Usage>,
}

/// Of thinking and of tools there are others, which are not the answer.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum BlockDelta {
    TextDelta {
        text: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct MessageDelta {
    stop_reason: Option<String>,
}

/// The numbers grow while the answer comes: the last ones count.
#[derive(Deserialize)]
struct Usage {
    input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

impl Usage {
    fn tell(self, heard: &mut Heard) {
        // What was read from a cache was read all the same.
        let cached = [self.cache_creation_input_tokens, self.cache_read_input_tokens].into_iter().flatten();
        let input = self.input_tokens.map(|input| cached.fold(input, u64::saturating_add));
        heard.input_tokens = input.or(heard.input_tokens);
        heard.output_tokens = self.output_tokens.or(heard.output_tokens);
    }
}

impl Dialect for Anthropic {
    const PATH: &'static str = "/v1/messages";
    const KEY_HEADER: (&'static str, &'static str) = ("x-api-key", "");
    const HEADERS: &'static [(&'static str, &'static str)] = &[("anthropic-version", "2023-06-01")];

    fn body(request: &LlmRequest, _url: &Url) -> Result<Vec<u8>, LlmError> {
        let messages = request.messages.iter();
        let body = Body {
            model: &request.model,
            max_tokens: request.max_tokens,
            system: request.system.as_deref(),
            messages: messages
                .map(|message| BodyMessage { role: message.role.as_str(), content: &message.text })
                .collect(),
            temperature: request.temperature,
            output_config: schema(request)?
                .map(|schema| OutputConfig { format: Format { r#type: "json_schema", schema } }),
            stream: true,
        };
        serde_json::to_vec(&body).map_err(|error| LlmError::InvalidRequest(error.to_string()))
    }

    fn read(event: &sse::Event, heard: &mut Heard) -> Result<Said, NotUnderstood> {
        match read_json(event)? {
            Event::MessageStart { message } => {
                heard.model = message.model;
                if let Some(usage) = message.usage {
                    usage.tell(heard);
                }
            }
            Event::ContentBlockDelta { delta: BlockDelta::TextDelta { text } } => return Ok(Said::Text(text)),
            Event::MessageDelta { delta, usage } => {
                if let Some(reason) = delta.stop_reason {
                    heard.stop_reason = Some(common_word(reason));
                }
                if let Some(usage) = usage {
                    usage.tell(heard);
                }
            }
            Event::MessageStop => return Ok(Said::End),
            Event::Error { error } => return Ok(Said::Failed(Complaint::read(&error))),
            Event::ContentBlockDelta { delta: BlockDelta::Other } | Event::Other => {}
        }
        Ok(Said::Nothing)
    }

    fn may_end(_heard: &Heard) -> bool {
        false
    }
}

/// What both kinds of providers know gets one word.
fn common_word(reason: String) -> String {
    match reason.as_str() {
        "end_turn" | "stop_sequence" => "stop".to_owned(),
        "max_tokens" => "length".to_owned(),
        _ => reason,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::request;
    use super::super::{Message, Role};
    use super::*;

    fn url() -> Url {
        Url::parse("https://api.anthropic.com/v1/messages").unwrap()
    }

    fn read(heard: &mut Heard, data: &Value) -> Said {
        Anthropic::read(&sse::Event { kind: "message".to_owned(), data: data.to_string() }, heard).unwrap()
    }

    #[test]
    fn a_request_has_what_was_asked_for_and_nothing_else() {
        let body: Value =
            serde_json::from_slice(&Anthropic::body(&request("claude", "hello"), &url()).unwrap()).unwrap();
        assert_eq!(
            body,
            json!({
                "model": "claude", "max_tokens": 100, "stream": true,
                "messages": [{"role": "user", "content": "hello"}]
            })
        );
        let mut request = request("claude", "hello");
        request.system = Some("be brief".to_owned());
        request.messages.push(Message { role: Role::Assistant, text: "hi".to_owned() });
        request.temperature = Some(0.5);
        request.schema = Some(r#"{"type":"object"}"#.to_owned());
        let body: Value = serde_json::from_slice(&Anthropic::body(&request, &url()).unwrap()).unwrap();
        assert_eq!(
            body,
            json!({
                "model": "claude", "max_tokens": 100, "stream": true, "system": "be brief", "temperature": 0.5,
                "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}],
                "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}
            })
        );
    }

    #[test]
    fn events_that_are_not_the_text_of_the_answer_say_nothing() {
        let mut heard = Heard::default();
        for event in [
            json!({"type": "ping"}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "{"}}),
            json!({"type": "content_block_stop", "index": 0}),
            json!({"type": "an_event_of_the_future", "x": [1, 2]}),
        ] {
            assert_eq!(read(&mut heard, &event), Said::Nothing);
        }
        assert_eq!(heard, Heard::default());
    }

    #[test]
    fn tokens_count_with_those_of_caches_and_as_they_were_last() {
        let mut heard = Heard::default();
        let usage = json!({
            "input_tokens": 10, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 1
        });
        read(&mut heard, &json!({"type": "message_start", "message": {"model": "claude-x", "usage": usage}}));
        assert_eq!((heard.input_tokens, heard.output_tokens), (Some(17), Some(1)));
        read(
            &mut heard,
            &json!({"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 9}}),
        );
        assert_eq!((heard.input_tokens, heard.output_tokens), (Some(17), Some(9)));
        assert_eq!(heard.stop_reason.as_deref(), Some("length"));
        assert_eq!(heard.model.as_deref(), Some("claude-x"));
    }
}
