//! `llm`: asks a language model, and sees to it that an answer follows the node's JSON Schema.
//!
//! A provider may ignore a schema, so the model is also told of it, and the answer is checked here. A wrong answer is
//! sent back once with what is wrong. One that is still wrong ends the attempt; the next attempt asks afresh.

use serde_json::{Value, json};
use stepwell_document as document;
use stepwell_document::ANSWER_TOKENS_DEFAULT;

use crate::bindings::stepwell::workflow::llm::{Completion, LlmError, Message, Request, Role};
use crate::bindings::stepwell::workflow::types::{Failure, Outcome};
use crate::failure::{permanent, quoted, retryable, with_details};
use crate::step::{Outside, Step};
use crate::template::{Template, Templates};
use stepwell_document::json_schema;

/// One hour, as in `wit/llm.wit`.
const TIMEOUT_MS_MAX: u32 = 3_600_000;

pub(crate) struct Llm {
    provider: String,
    model: Template,
    system: Option<Template>,
    prompt: Template,
    max_tokens: u32,
    temperature: Option<f64>,
    schema: Option<Value>,
    topic: Option<String>,
}

impl Llm {
    pub(crate) fn compile(node: document::Llm, templates: &mut Templates) -> Self {
        Self {
            provider: node.provider,
            model: templates.text("model", &node.model),
            system: node.system.map(|system| templates.text("system", &system)),
            prompt: templates.text("prompt", &node.prompt),
            max_tokens: node.max_tokens.unwrap_or(ANSWER_TOKENS_DEFAULT),
            temperature: node.temperature,
            schema: node.schema,
            topic: node.topic,
        }
    }

    pub(crate) fn run(&self, step: &Step, outside: &impl Outside) -> Result<Outcome, Failure> {
        let mut request = self.request(step)?;
        let first = outside.complete(&request).map_err(|error| self.failed(error))?;
        let Some(schema) = &self.schema else { return Ok(self.output(&first, None, &Usage::of(&first))) };

        let wrong = match checked(schema, &first.text) {
            Ok(json) => return Ok(self.output(&first, Some(json), &Usage::of(&first))),
            Err(wrong) => wrong,
        };
        // An empty message would be refused by some providers.
        if !first.text.trim().is_empty() {
            request.messages.push(Message { role: Role::Assistant, text: first.text.clone() });
        }
        let text = format!("That answer is not valid: {}. Answer again with JSON only.", wrong.join("; "));
        request.messages.push(Message { role: Role::User, text });
        let second = outside.complete(&request).map_err(|error| self.failed(error))?;
        match checked(schema, &second.text) {
            Ok(json) => Ok(self.output(&second, Some(json), &Usage::of(&first).and(&Usage::of(&second)))),
            Err(wrong) => {
                let message =
                    format!("the answer of {} does not follow the schema: {}", self.provider, wrong.join("; "));
                let failure = retryable("llm_invalid_answer", message, None);
                Err(with_details(failure, &json!({ "problems": wrong, "text": quoted(&second.text) })))
            }
        }
    }

    fn request(&self, step: &Step) -> Result<Request, Failure> {
        let mut system = self.system.as_ref().map(|system| step.text("system", system)).transpose()?;
        let schema = self.schema.as_ref().map(Value::to_string);
        if let Some(schema) = &schema {
            let rule =
                format!("Answer with JSON only, and with nothing else, that follows this JSON Schema:\n{schema}");
            system = Some(system.map_or_else(|| rule.clone(), |system| format!("{system}\n\n{rule}")));
        }
        Ok(Request {
            provider: self.provider.clone(),
            model: step.text("model", &self.model)?,
            system,
            messages: vec![Message { role: Role::User, text: step.text("prompt", &self.prompt)? }],
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            schema,
            topic: self.topic.clone(),
            timeout_ms: u32::try_from(step.node.plan.timeout_ms).unwrap_or(TIMEOUT_MS_MAX).min(TIMEOUT_MS_MAX),
        })
    }

    fn output(&self, answer: &Completion, json: Option<&str>, usage: &Usage) -> Outcome {
        let output = json!({
            "text": answer.text,
            "model": answer.model,
            "provider": self.provider,
            "stop_reason": answer.stop_reason,
            "usage": {
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "cost_usd": usage.cost_micros.map(|micros| micros as f64 / 1e6),
            },
        });
        let mut output = output.to_string();
        if let Some(json) = json {
            // As it was answered, so that no digit is lost. The object is not empty, and ends with its brace.
            output.pop();
            output.push_str(",\"json\":");
            output.push_str(json);
            output.push('}');
        }
        Outcome::Output(output)
    }

    fn failed(&self, error: LlmError) -> Failure {
        let provider = &self.provider;
        match error {
            LlmError::InvalidRequest(why) => permanent("llm_invalid_request", format!("nothing was asked: {why}")),
            LlmError::UnknownProvider => {
                permanent("llm_unknown_provider", format!("there is no provider `{provider}`"))
            }
            LlmError::MissingSecret(secret) => {
                permanent("llm_missing_secret", format!("{provider} has no key: the secret `{secret}` is missing"))
            }
            LlmError::Denied(why) => permanent("llm_denied", format!("{provider} may not be asked: {why}")),
            LlmError::Refused(why) => permanent("llm_refused", format!("{provider} refuses: {why}")),
            LlmError::Overloaded(after) => retryable("llm_overloaded", format!("{provider} has too much to do"), after),
            LlmError::Timeout => {
                retryable("llm_timeout", format!("no whole answer from {provider} within the time"), None)
            }
            LlmError::Connection(why) => retryable("llm_connection", format!("no answer from {provider}: {why}"), None),
            LlmError::TooLarge => permanent("llm_too_large", format!("the answer of {provider} is too large")),
            LlmError::QuotaExceeded => permanent("llm_quota", "this attempt has asked as often as it may"),
        }
    }
}

/// The JSON in an answer, or what is wrong with it.
fn checked<'a>(schema: &Value, answer: &'a str) -> Result<&'a str, Vec<String>> {
    let text = without_fence(answer.trim());
    let value = serde_json::from_str(text).map_err(|error| vec![format!("it is not JSON: {error}")])?;
    let problems = json_schema::validate(schema, &value);
    if problems.is_empty() { Ok(text) } else { Err(problems.iter().map(ToString::to_string).collect()) }
}

/// A text without the Markdown fence that models like to put around JSON.
fn without_fence(text: &str) -> &str {
    let inner = text.strip_prefix("```").and_then(|text| text.strip_suffix("```"));
    let inner = inner.map(|inner| inner.strip_prefix("json").unwrap_or(inner).trim());
    inner.unwrap_or(text)
}

/// What calls have used. A sum is unknown when one of its parts is.
struct Usage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cost_micros: Option<u64>,
}

impl Usage {
    fn of(answer: &Completion) -> Self {
        let Completion { input_tokens, output_tokens, cost_micros, .. } = *answer;
        Self { input_tokens, output_tokens, cost_micros }
    }

    fn and(&self, other: &Self) -> Self {
        let sum = |one: Option<u64>, other: Option<u64>| Some(one?.saturating_add(other?));
        Self {
            input_tokens: sum(self.input_tokens, other.input_tokens),
            output_tokens: sum(self.output_tokens, other.output_tokens),
            cost_micros: sum(self.cost_micros, other.cost_micros),
        }
    }
}
