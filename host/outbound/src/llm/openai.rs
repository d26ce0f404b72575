//! Chat completions, as `OpenAI` invented them and as many servers speak them.
//!
//! An answer is a stream of chunks. The text is in `choices[0].delta.content`; a chunk with a `finish_reason` says that
//! the text is whole, a further one has the `usage`, and `[DONE]` ends the stream. Some servers leave out the last two.
//!
//! The invariant: without a `finish_reason` there is no answer, whatever else came.

use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::exchange::{Complaint, Dialect, NotUnderstood, Said, read_json};
use super::{Heard, LlmError, LlmRequest, schema, sse};

/// Where `max_tokens` is deprecated and newer models refuse it. Compatible servers know no other name.
const INVENTOR: &str = "api.openai.com";
/// Shown to the model.
const SCHEMA_NAME: &str = "answer";
/// Anthropic's word for the end of an answer that is none. Here the provider says `stop`.
const REFUSAL: &str = "refusal";

pub(super) struct OpenAi;

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<BodyMessage<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<ResponseFormat<'a>>,
    stream: bool,
    stream_options: StreamOptions,
}

#[derive(Serialize)]
struct BodyMessage<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Serialize)]
struct ResponseFormat<'a> {
    r#type: &'static str,
    json_schema: JsonSchema<'a>,
}

/// Without `strict`, which takes only a part of JSON Schema and refuses the rest.
#[derive(Serialize)]
struct JsonSchema<'a> {
    name: &'static str,
    schema: &'a RawValue,
}

#[derive(Deserialize)]
struct Chunk {
    model: Option<String>,
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    /// A model that was held to a schema and declines says so in words of its own.
    refusal: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

impl Dialect for OpenAi {
    const PATH: &'static str = "/chat/completions";
    const KEY_HEADER: (&'static str, &'static str) = ("authorization", "Bearer ");
    const HEADERS: &'static [(&'static str, &'static str)] = &[];

    fn body(request: &LlmRequest, url: &Url) -> Result<Vec<u8>, LlmError> {
        let system = request.system.as_deref().map(|content| BodyMessage { role: "system", content });
        let messages = request.messages.iter();
        let messages = messages.map(|message| BodyMessage { role: message.role.as_str(), content: &message.text });
        let is_inventor = url.host_str() == Some(INVENTOR);
        let body = Body {
            model: &request.model,
            messages: system.into_iter().chain(messages).collect(),
            max_tokens: (!is_inventor).then_some(request.max_tokens),
            max_completion_tokens: is_inventor.then_some(request.max_tokens),
            temperature: request.temperature,
            response_format: schema(request)?.map(|schema| ResponseFormat {
                r#type: "json_schema",
                json_schema: JsonSchema { name: SCHEMA_NAME, schema },
            }),
            stream: true,
            stream_options: StreamOptions { include_usage: true },
        };
        serde_json::to_vec(&body).map_err(|error| LlmError::InvalidRequest(error.to_string()))
    }

    fn read(event: &sse::Event, heard: &mut Heard) -> Result<Said, NotUnderstood> {
        if event.data.trim() == "[DONE]" {
            // Without a reason to stop the answer was cut off on the way to a server that then ended in good order.
            return Ok(if Self::may_end(heard) { Said::End } else { Said::Nothing });
        }
        let chunk: Chunk = read_json(event)?;
        if let Some(error) = chunk.error {
            return Ok(Said::Failed(Complaint::read(&error)));
        }
        heard.model = chunk.model.filter(|model| !model.is_empty()).or_else(|| heard.model.take());
        if let Some(usage) = chunk.usage {
            heard.input_tokens = usage.prompt_tokens.or(heard.input_tokens);
            heard.output_tokens = usage.completion_tokens.or(heard.output_tokens);
        }
        let Some(choice) = chunk.choices.into_iter().next() else { return Ok(Said::Nothing) };
        let text = match choice.delta {
            Some(Delta { refusal: Some(words), .. }) if !words.is_empty() => {
                heard.is_refusal = true;
                Some(words)
            }
            Some(Delta { content, .. }) => content,
            None => None,
        };
        if let Some(reason) = choice.finish_reason {
            heard.stop_reason = Some(if heard.is_refusal { REFUSAL.to_owned() } else { reason });
        }
        Ok(text.map_or(Said::Nothing, Said::Text))
    }

    fn may_end(heard: &Heard) -> bool {
        heard.stop_reason.is_some()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::request;
    use super::super::{Message, Role};
    use super::*;

    fn body(request: &LlmRequest, base: &str) -> Value {
        serde_json::from_slice(&OpenAi::body(request, &Url::parse(base).unwrap()).unwrap()).unwrap()
    }

    fn read(heard: &mut Heard, data: &str) -> Said {
        OpenAi::read(&sse::Event { kind: "message".to_owned(), data: data.to_owned() }, heard).unwrap()
    }

    #[test]
    fn a_request_has_what_was_asked_for_and_nothing_else() {
        assert_eq!(
            body(&request("gpt", "hello"), "https://api.openai.com/v1/chat/completions"),
            json!({
                "model": "gpt", "max_completion_tokens": 100, "stream": true,
                "stream_options": {"include_usage": true},
                "messages": [{"role": "user", "content": "hello"}]
            })
        );
        let mut request = request("gpt", "hello");
        request.system = Some("be brief".to_owned());
        request.messages.push(Message { role: Role::Assistant, text: "hi".to_owned() });
        request.temperature = Some(0.5);
        request.schema = Some(r#"{"type":"object"}"#.to_owned());
        assert_eq!(
            body(&request, "https://another.example/v1/chat/completions"),
            json!({
                "model": "gpt", "max_tokens": 100, "stream": true, "stream_options": {"include_usage": true},
                "temperature": 0.5,
                "messages": [
                    {"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"},
                    {"role": "assistant", "content": "hi"}
                ],
                "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
            })
        );
    }

    #[test]
    fn a_schema_keeps_the_order_of_its_properties() {
        let mut request = request("gpt", "hello");
        request.schema = Some(r#"{"properties":{"reasoning":{},"answer":{}}}"#.to_owned());
        let body = OpenAi::body(&request, &Url::parse("https://a.example/").unwrap()).unwrap();
        assert!(String::from_utf8(body).unwrap().contains(request.schema.as_deref().unwrap()));
    }

    #[test]
    fn the_end_needs_a_reason() {
        let mut heard = Heard::default();
        assert_eq!(read(&mut heard, "[DONE]"), Said::Nothing);
        assert!(!OpenAi::may_end(&heard));
        read(&mut heard, r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#);
        assert!(OpenAi::may_end(&heard));
        assert_eq!(read(&mut heard, "[DONE]"), Said::End);
        assert_eq!(heard.stop_reason.as_deref(), Some("length"));
    }

    #[test]
    fn chunks_of_other_servers_are_understood() {
        let mut heard = Heard::default();
        for nothing in [
            "{}",
            r#"{"choices":[]}"#,
            r#"{"model":"","choices":[{"index":0,"delta":null,"finish_reason":null}],"usage":null}"#,
            r#"{"choices":[{"delta":{"role":"assistant","content":null}}],"x_extra":{"y":1}}"#,
            r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#,
        ] {
            assert_eq!(read(&mut heard, nothing), Said::Nothing, "{nothing}");
        }
        assert_eq!(heard, Heard::default());
    }

    #[test]
    fn a_model_that_declines_says_so_in_the_text_and_in_the_reason() {
        let mut heard = Heard::default();
        let words = read(&mut heard, r#"{"choices":[{"delta":{"content":null,"refusal":"I will not."}}]}"#);
        assert_eq!(words, Said::Text("I will not.".to_owned()));
        assert!(!OpenAi::may_end(&heard));
        read(&mut heard, r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#);
        assert_eq!(heard.stop_reason.as_deref(), Some("refusal"));
    }
}
