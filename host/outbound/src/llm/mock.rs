//! A provider that needs no network, no key and no money: for trying things out, for examples and for tests.
//!
//! It is no language model, and its answers say so. The same request always gets the same answer. Models:
//!
//! | name        | what it does                                                                |
//! |-------------|-----------------------------------------------------------------------------|
//! | `mock`      | answers at once, beginning with `[mock]`, and repeats what it was told      |
//! | `mock-slow` | the same, with 20 ms before each word                                       |
//! | `mock-echo` | answers with the last message of the user and nothing else                  |
//! | `mock-fail` | is always overloaded                                                        |
//!
//! With a schema, the first two answer with the smallest JSON that follows it, as `example.rs` makes it up. A token is a
//! word and the space after it. Every answer comes word by word and ends at the request's `max_tokens`, as a real one
//! would.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::relay::Relay;
use super::{Heard, LlmError, LlmRequest, Role, schema};

mod example;

/// Slow enough to watch, fast enough to wait for.
const SLOW_TOKEN: Duration = Duration::from_millis(20);
/// Of the user's last message, those that are repeated.
const REPEATED_WORDS_MAX: usize = 40;

pub(super) async fn answer(request: &LlmRequest, relay: &mut Relay<'_>) -> Result<Heard, LlmError> {
    let (text, delay) = match request.model.as_str() {
        "mock" => (made_up(request)?, None),
        "mock-slow" => (made_up(request)?, Some(SLOW_TOKEN)),
        "mock-echo" => (last_words(request).to_owned(), None),
        "mock-fail" => return Err(LlmError::Overloaded(None)),
        _ => {
            let models = "`mock`, `mock-slow`, `mock-echo` and `mock-fail`";
            return Err(LlmError::Refused(format!("the mock provider has the models {models}")));
        }
    };
    let tokens_max = usize::try_from(request.max_tokens).unwrap_or(usize::MAX);
    for token in tokens(&text).take(tokens_max) {
        if let Some(delay) = delay {
            sleep(delay).await;
        }
        relay.push(token, Instant::now()).await?;
    }
    let said = tokens(&text).count();
    let texts = request.system.iter().chain(request.messages.iter().map(|message| &message.text));
    Ok(Heard {
        model: Some(request.model.clone()),
        stop_reason: Some(if said <= tokens_max { "stop" } else { "length" }.to_owned()),
        input_tokens: Some(texts.map(|text| text.split_whitespace().count() as u64).sum()),
        output_tokens: Some(said.min(tokens_max) as u64),
        ..Heard::default()
    })
}

fn made_up(request: &LlmRequest) -> Result<String, LlmError> {
    if let Some(schema) = schema(request)? {
        return example::of(schema.get()).map_err(|why| LlmError::Refused(format!("the mock provider: {why}")));
    }
    let words: Vec<&str> = last_words(request).split_whitespace().collect();
    let repeated = words.iter().take(REPEATED_WORDS_MAX).copied().collect::<Vec<_>>().join(" ");
    let more = if words.len() > REPEATED_WORDS_MAX { " …" } else { "" };
    Ok(format!("[mock] No model has read this. You wrote {} words: {repeated}{more}", words.len()))
}

fn last_words(request: &LlmRequest) -> &str {
    let last = request.messages.iter().rfind(|message| message.role == Role::User);
    last.map_or("", |message| message.text.as_str())
}

/// Words with the space after them; put together they are the text.
fn tokens(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let word = rest.find(|character: char| !character.is_whitespace()).unwrap_or(rest.len());
        let after_word = rest.get(word..)?.find(char::is_whitespace).map_or(rest.len(), |at| word + at);
        let space = rest.get(after_word..)?;
        let next = rest.len() - space.trim_start().len();
        let (token, after) = rest.split_at_checked(next)?;
        rest = after;
        Some(token).filter(|token| !token.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::request;
    use super::super::{Discard, Message};
    use super::*;

    async fn ask(request: &LlmRequest) -> Result<(String, Heard), LlmError> {
        let mut discard = Discard;
        let mut relay = Relay::new(&mut discard);
        let heard = answer(request, &mut relay).await?;
        Ok((relay.into_text(), heard))
    }

    #[test]
    fn tokens_are_words_and_lose_nothing() {
        for (text, expected) in [
            ("", &[][..]),
            ("one", &["one"]),
            ("one two", &["one ", "two"]),
            ("  one\n\n two ", &["  one\n\n ", "two "]),
            ("   ", &["   "]),
        ] {
            assert_eq!(tokens(text).collect::<Vec<_>>(), expected);
        }
    }

    #[tokio::test]
    async fn the_mock_says_that_it_is_one() {
        let (text, heard) = ask(&request("mock", "what is  a\nstep?")).await.unwrap();
        assert_eq!(text, "[mock] No model has read this. You wrote 4 words: what is a step?");
        assert_eq!(heard.model.as_deref(), Some("mock"));
        assert_eq!(heard.stop_reason.as_deref(), Some("stop"));
        assert_eq!((heard.input_tokens, heard.output_tokens), (Some(4), Some(14)));
    }

    #[tokio::test]
    async fn a_long_message_is_not_repeated_whole() {
        let (text, _) = ask(&request("mock", &"word ".repeat(1000))).await.unwrap();
        assert!(text.ends_with("word word …"));
        assert!(text.len() < 300);
    }

    #[tokio::test]
    async fn an_answer_ends_at_the_number_of_tokens() {
        let mut request = request("mock-echo", "one two three");
        request.max_tokens = 2;
        let (text, heard) = ask(&request).await.unwrap();
        assert_eq!(text, "one two ");
        assert_eq!(heard.stop_reason.as_deref(), Some("length"));
        assert_eq!(heard.output_tokens, Some(2));
    }

    #[tokio::test]
    async fn the_echo_is_the_last_message_of_the_user() {
        let mut request = request("mock-echo", "first");
        request.messages.push(Message { role: Role::User, text: " as it\n is\t".to_owned() });
        request.messages.push(Message { role: Role::Assistant, text: "mine".to_owned() });
        request.schema = Some("{}".to_owned());
        assert_eq!(ask(&request).await.unwrap().0, " as it\n is\t");
    }

    #[tokio::test]
    async fn a_schema_is_followed() {
        let mut request = request("mock", "hello");
        request.schema = Some(r#"{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}"#.to_owned());
        assert_eq!(ask(&request).await.unwrap().0, r#"{"n":0}"#);
    }

    #[tokio::test]
    async fn other_models_are_refused_and_one_always_fails() {
        assert!(matches!(ask(&request("gpt", "hello")).await, Err(LlmError::Refused(_))));
        assert!(matches!(ask(&request("mock-fial", "hello")).await, Err(LlmError::Refused(_))));
        assert_eq!(ask(&request("mock-fail", "hello")).await, Err(LlmError::Overloaded(None)));
    }
}
