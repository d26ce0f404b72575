//! The commands for triggers, events and webhooks.

use std::path::Path;

use anyhow::Context;
use reqwest::Method;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::commands::{list, part, read_input, text};
use super::{EXIT_OK, NamedCommand, Server, out};

/// What a set-up command is about.
pub(super) enum What {
    Trigger,
    Webhook,
}

pub(super) async fn triggers(server: &Server, as_json: bool) -> anyhow::Result<u8> {
    if as_json {
        out::json(&server.client()?.json(Method::GET, "/v1/triggers", None).await?);
        return Ok(EXIT_OK);
    }
    let line = |trigger: &Value| {
        let field = |name| text(trigger, name);
        let on = match field("kind") {
            "cron" => format!("cron {} {}", field("schedule"), field("time_zone")),
            "event" => format!("event {}", field("event")),
            _ => format!("webhook {}", field("path")),
        };
        let next = trigger.pointer("/next_fire_times/0").and_then(Value::as_str).unwrap_or_default();
        let state = if trigger.get("enabled") == Some(&Value::Bool(false)) { "  (disabled)" } else { "" };
        format!("{:<24}  {:<40}  {:<24}  {next}{state}", field("name"), on, field("workflow"))
    };
    list(server, "/v1/triggers", line).await?;
    Ok(EXIT_OK)
}

pub(super) async fn webhooks(server: &Server, as_json: bool) -> anyhow::Result<u8> {
    if as_json {
        out::json(&server.client()?.json(Method::GET, "/v1/webhooks", None).await?);
        return Ok(EXIT_OK);
    }
    let line = |webhook: &Value| format!("{:<24}  {}", text(webhook, "name"), text(webhook, "url"));
    list(server, "/v1/webhooks", line).await?;
    Ok(EXIT_OK)
}

pub(super) async fn named(what: What, command: NamedCommand) -> anyhow::Result<u8> {
    let base = match what {
        What::Trigger => "triggers",
        What::Webhook => "webhooks",
    };
    match command {
        NamedCommand::Put { name, file, server } => {
            let body = read(&file)?;
            server.client()?.json(Method::PUT, &format!("/v1/{base}/{}", part(&name)), Some(&body)).await?;
            out::note(format_args!("set up {name}"));
        }
        NamedCommand::Delete { name, server } => {
            server.client()?.json(Method::DELETE, &format!("/v1/{base}/{}", part(&name)), None).await?;
            out::note(format_args!("deleted {name}"));
        }
    }
    Ok(EXIT_OK)
}

fn read(file: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))
}

pub(super) async fn event(server: &Server, name: &str, data: &str, id: Option<&str>) -> anyhow::Result<u8> {
    let data: Box<RawValue> = serde_json::from_str(&read_input(data)?).context("the data is not JSON")?;
    // As a text, so that its numbers keep their digits.
    let body = format!(r#"{{"name":{},"data":{}}}"#, json!(name), data.get());
    let sent = server.client()?.post("/v1/events", body, id).await?;
    out::note(format_args!("sent {name}, {}", text(&sent, "id")));
    for acted in sent.get("triggers").and_then(Value::as_array).into_iter().flatten() {
        let why = acted.pointer("/problem/message").and_then(Value::as_str).unwrap_or_default();
        let what = if why.is_empty() { text(acted, "run_id") } else { why };
        out::line(out::printable(&format!("{:<24}  {:<10}  {what}", text(acted, "trigger"), text(acted, "outcome"))));
    }
    Ok(EXIT_OK)
}
