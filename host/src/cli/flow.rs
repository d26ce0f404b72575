//! The command for flow control.

use anyhow::Context;
use reqwest::Method;
use serde_json::{Value, json};

use super::commands::{list, part, read_input, text};
use super::{EXIT_OK, Server, out};

/// What is to be done before it is shown.
pub(super) enum Change {
    None,
    Set(String),
    Clear,
}

pub(super) async fn flow(server: &Server, name: &str, change: Change, as_json: bool) -> anyhow::Result<u8> {
    let client = server.client()?;
    let path = format!("/v1/workflows/{}/flow-control", part(name));
    match change {
        Change::None => {}
        Change::Set(settings) => {
            let settings: Value = serde_json::from_str(&read_input(&settings)?).context("the settings are not JSON")?;
            client.json(Method::PUT, &path, Some(&settings)).await?;
        }
        Change::Clear => drop(client.json(Method::DELETE, &path, None).await?),
    }
    let settings = client.json(Method::GET, &path, None).await?;
    let keys = format!("{path}/keys");
    if as_json {
        out::json(&json!({ "settings": settings, "keys": client.json(Method::GET, &keys, None).await? }));
        return Ok(EXIT_OK);
    }
    for (field, value) in settings.as_object().into_iter().flatten() {
        out::line(format_args!("{field:<12}  {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
    }
    if settings.as_object().is_none_or(serde_json::Map::is_empty) {
        out::note(format_args!("{name} has no flow control"));
    }
    let line = |key: &Value| {
        let number = |name| key.get(name).and_then(Value::as_u64).unwrap_or_default();
        let next = key.get("next_start_at").and_then(Value::as_str).map(|at| format!("  next start {at}"));
        let name = match text(key, "key") {
            "" => "(no key)",
            name => name,
        };
        format!(
            "{name:<24}  {:>6} queued  {:>6} running{}",
            number("queued"),
            number("running"),
            next.unwrap_or_default()
        )
    };
    list(server, &keys, line).await?;
    Ok(EXIT_OK)
}
