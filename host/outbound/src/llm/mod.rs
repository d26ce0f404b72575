//! Questions to language models, and answers while they come.
//!
//! It owns the rules of `wit/llm.wit` that concern one question, what a provider is, and what an answer costs. It does
//! not know topics: whoever asks gives a [`DeltaSink`], which is told the text in small pieces and may take its time.
//!
//! ```text
//! exchange ── bytes ──> sse ── events ──> openai, anthropic ── text ──> relay ── deltas ──> DeltaSink
//!                                          mock ────────────── text ────^
//! ```
//!
//! The invariants: what the sink was told, put together, is the text of the completion; and an answer that was cut off
//! is never given out as a completion. Providers say when an answer is whole, and where they did not it is an error.
//!
//! Read `exchange.rs` next, then one of the dialects.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::value::RawValue;

use crate::{Outbound, Secret};

mod anthropic;
mod exchange;
mod mock;
mod openai;
mod price;
mod relay;
mod sse;

pub use price::{Price, UsdPerMtok, UsdPerMtokError};

use relay::Relay;

/// Of `system` and all messages. Two million bytes are half a million tokens and more, as much as large models read.
const PROMPT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Providers refuse schemas that are far smaller.
const SCHEMA_BYTES_MAX: usize = 256 * 1024;
/// JSON is nowhere deeper than this in Stepwell.
const SCHEMA_DEPTH_MAX: usize = 100;
/// Names of models, of those that answered, and of the reasons to stop.
const NAME_BYTES_MAX: usize = 256;
/// Tokens of an answer. No model writes as many.
const TOKENS_MAX: u32 = 1_000_000;
/// An hour: the slowest models think for half of one.
const TIMEOUT_MS_MAX: u32 = 60 * 60 * 1000;

/// Who said a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// `user` or `assistant`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A part of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub text: String,
}

/// What a step wants to know.
#[derive(Debug, Clone)]
pub struct LlmRequest {
    /// The provider's name of the model.
    pub model: String,
    /// What the model should know before the conversation.
    pub system: Option<String>,
    /// At least one.
    pub messages: Vec<Message>,
    /// Of the answer, 1 to 1,000,000.
    pub max_tokens: u32,
    /// In the provider's terms.
    pub temperature: Option<f64>,
    /// A JSON Schema that the answer should follow, as JSON text.
    pub schema: Option<String>,
    /// For the whole answer.
    pub timeout_ms: u32,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// All of it.
    pub text: String,
    /// The model that answered, in the provider's words.
    pub model: String,
    /// `stop`, `length`, or another word of the provider.
    pub stop_reason: String,
    /// `None` where the provider does not say.
    pub input_tokens: Option<u64>,
    /// `None` where the provider does not say.
    pub output_tokens: Option<u64>,
    /// In millionths of a US dollar. `None` without a price or without the number of tokens.
    pub cost_micros: Option<u64>,
}

/// Why there is no completion.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LlmError {
    /// Nothing was sent: the request, or what was set up for the provider, breaks a rule.
    #[error("invalid request: {0}")]
    InvalidRequest(String),
    /// Nothing was sent: the provider's address may not be reached.
    #[error("denied: {0}")]
    Denied(String),
    /// The provider refuses this request and would refuse it again.
    #[error("the provider refuses the request: {0}")]
    Refused(String),
    /// The provider has too much to do, or is out of order. Milliseconds to wait, where it says so.
    #[error("the provider is overloaded")]
    Overloaded(Option<u64>),
    /// No whole answer within the time, or the provider fell silent.
    #[error("no whole answer within the time")]
    Timeout,
    /// The connection could not be made, broke, or carried something that is not an answer.
    #[error("{0}")]
    Connection(String),
    /// The answer has more than 4 MiB.
    #[error("the answer is too large")]
    TooLarge,
    /// The [`DeltaSink`] stopped it.
    #[error("the completion was cancelled")]
    Cancelled,
}

/// How a provider is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderKind {
    /// Chat completions, by `OpenAI` and by many who are compatible.
    OpenAi,
    /// Messages, by Anthropic.
    Anthropic,
    /// Made up by the host, see `mock.rs`.
    Mock,
}

impl ProviderKind {
    /// The base URL that the inventor of the protocol uses. Empty for [`ProviderKind::Mock`].
    #[must_use]
    pub fn default_base_url(self) -> &'static str {
        match self {
            Self::OpenAi => "https://api.openai.com/v1",
            Self::Anthropic => "https://api.anthropic.com",
            Self::Mock => "",
        }
    }
}

/// Who answers, and with which key.
#[derive(Debug, Clone)]
pub struct Provider {
    /// How it is spoken to.
    pub kind: ProviderKind,
    /// What comes before `/chat/completions` or `/v1/messages`.
    pub base_url: String,
    /// Servers of one's own often want none.
    pub key: Option<Secret>,
    /// By the names of models.
    pub prices: BTreeMap<String, Price>,
}

/// Told by a [`DeltaSink`]: nobody wants the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// Is told an answer while it comes.
pub trait DeltaSink: Send {
    /// The next piece of the text: never empty, at most 32 KiB. Nothing more is read from the provider until this is
    /// done, and an error abandons the completion.
    fn delta(&mut self, text: String) -> BoxFuture<'_, Result<(), Stopped>>;
}

/// For answers that nobody follows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

impl DeltaSink for Discard {
    fn delta(&mut self, _text: String) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// What a provider says about its answer besides the text, as far as it has come.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    model: Option<String>,
    stop_reason: Option<String>,
    /// The text says why there is no answer.
    is_refusal: bool,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

impl Outbound {
    /// Asks, tells the sink the answer while it comes, and waits for all of it. The timeout includes what the sink takes.
    pub async fn complete(
        &self,
        provider: &Provider,
        request: &LlmRequest,
        sink: &mut dyn DeltaSink,
    ) -> Result<Completion, LlmError> {
        check(request)?;
        let mut relay = Relay::new(sink);
        let answer = async {
            let heard = match provider.kind {
                ProviderKind::OpenAi => self.ask::<openai::OpenAi>(provider, request, &mut relay).await?,
                ProviderKind::Anthropic => self.ask::<anthropic::Anthropic>(provider, request, &mut relay).await?,
                ProviderKind::Mock => mock::answer(request, &mut relay).await?,
            };
            relay.flush().await?;
            Ok(heard)
        };
        let heard = tokio::time::timeout(Duration::from_millis(request.timeout_ms.into()), answer)
            .await
            .unwrap_or(Err(LlmError::Timeout))?;
        Ok(completion(provider, request, heard, relay.into_text()))
    }
}

fn completion(provider: &Provider, request: &LlmRequest, heard: Heard, text: String) -> Completion {
    let name = |name: Option<String>| name.map(|name| crate::text::excerpt(&name, NAME_BYTES_MAX));
    let model = name(heard.model).unwrap_or_else(|| request.model.clone());
    // Providers answer with the exact version of the model that was asked for; prices are set up for either name.
    let price = provider.prices.get(&request.model).or_else(|| provider.prices.get(&model));
    let cost_micros = match (price, heard.input_tokens, heard.output_tokens) {
        (Some(price), Some(input), Some(output)) => price.cost_micros(input, output),
        _ => None,
    };
    Completion {
        text,
        model,
        stop_reason: name(heard.stop_reason).unwrap_or_else(|| "stop".to_owned()),
        input_tokens: heard.input_tokens,
        output_tokens: heard.output_tokens,
        cost_micros,
    }
}

/// The rules that hold for every provider.
fn check(request: &LlmRequest) -> Result<(), LlmError> {
    let refused = |why: String| Err(LlmError::InvalidRequest(why));
    let prompt_bytes = request.messages.iter().map(|message| message.text.len()).sum::<usize>()
        + request.system.as_ref().map_or(0, String::len);
    if request.model.is_empty() || request.model.len() > NAME_BYTES_MAX || request.model.contains(char::is_control) {
        return refused(format!("the model's name is not within 1 and {NAME_BYTES_MAX} bytes of text"));
    }
    if request.messages.is_empty() {
        return refused("there is no message".to_owned());
    }
    if prompt_bytes > PROMPT_BYTES_MAX {
        return refused(format!("the messages have more than {PROMPT_BYTES_MAX} bytes"));
    }
    if request.max_tokens == 0 || request.max_tokens > TOKENS_MAX {
        return refused(format!("the number of tokens is not within 1 and {TOKENS_MAX}"));
    }
    if request.temperature.is_some_and(|temperature| !temperature.is_finite()) {
        return refused("the temperature is not a number".to_owned());
    }
    if request.timeout_ms == 0 || request.timeout_ms > TIMEOUT_MS_MAX {
        return refused(format!("the timeout is not within 1 and {TIMEOUT_MS_MAX} ms"));
    }
    schema(request).map(drop)
}

/// The schema as it was written: models fill in its properties in the order in which they are listed.
fn schema(request: &LlmRequest) -> Result<Option<&RawValue>, LlmError> {
    let Some(text) = &request.schema else { return Ok(None) };
    let refused = |why: String| Err(LlmError::InvalidRequest(why));
    if text.len() > SCHEMA_BYTES_MAX {
        return refused(format!("the schema has more than {SCHEMA_BYTES_MAX} bytes"));
    }
    match serde_json::from_str::<&RawValue>(text) {
        Ok(_) if depth(text) > SCHEMA_DEPTH_MAX => {
            refused(format!("the schema is over {SCHEMA_DEPTH_MAX} levels deep"))
        }
        Ok(schema) if schema.get().starts_with('{') => Ok(Some(schema)),
        Ok(_) => refused("the schema is not a JSON object".to_owned()),
        Err(error) => refused(format!("the schema is not JSON: {error}")),
    }
}

/// Levels of text that is known to be JSON.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A request with one message.
    pub(crate) fn request(model: &str, text: &str) -> LlmRequest {
        LlmRequest {
            model: model.to_owned(),
            system: None,
            messages: vec![Message { role: Role::User, text: text.to_owned() }],
            max_tokens: 100,
            temperature: None,
            schema: None,
            timeout_ms: 10_000,
        }
    }

    fn refused(change: impl FnOnce(&mut LlmRequest)) -> bool {
        let mut request = request("m", "hello");
        change(&mut request);
        matches!(check(&request), Err(LlmError::InvalidRequest(_)))
    }

    #[test]
    fn a_request_within_the_rules_passes() {
        assert!(!refused(|_| {}));
        assert!(!refused(|request| request.max_tokens = TOKENS_MAX));
        assert!(!refused(|request| request.timeout_ms = TIMEOUT_MS_MAX));
        assert!(!refused(|request| request.temperature = Some(0.7)));
        assert!(!refused(|request| request.schema = Some(" {\"type\":\"object\"} ".to_owned())));
        assert!(!refused(|request| request.system = Some("s".repeat(PROMPT_BYTES_MAX - 5))));
    }

    #[test]
    fn a_request_that_breaks_a_rule_is_refused() {
        assert!(refused(|request| request.model.clear()));
        assert!(refused(|request| request.model = "m".repeat(257)));
        assert!(refused(|request| request.model = "a\nb".to_owned()));
        assert!(refused(|request| request.messages.clear()));
        assert!(refused(|request| request.system = Some("s".repeat(PROMPT_BYTES_MAX - 4))));
        assert!(refused(|request| request.max_tokens = 0));
        assert!(refused(|request| request.max_tokens = TOKENS_MAX + 1));
        assert!(refused(|request| request.temperature = Some(f64::NAN)));
        assert!(refused(|request| request.timeout_ms = 0));
        assert!(refused(|request| request.timeout_ms = TIMEOUT_MS_MAX + 1));
        for schema in ["", "{", "true", "[]", "{} {}", "{\"a\":1,}"] {
            assert!(refused(|request| request.schema = Some(schema.to_owned())), "{schema}");
        }
        assert!(refused(|request| request.schema = Some(format!("{{\"a\":\"{}\"}}", "s".repeat(SCHEMA_BYTES_MAX)))));
    }

    #[test]
    fn a_schema_may_be_deep_but_not_deeper_than_other_json() {
        let nested = |levels: usize| format!("{}1{}", "{\"]\\\"[\":".repeat(levels), "}".repeat(levels));
        assert!(!refused(|request| request.schema = Some(nested(100))));
        assert!(refused(|request| request.schema = Some(nested(101))));
        assert!(refused(|request| request.schema = Some(nested(10_000))));
    }
}
