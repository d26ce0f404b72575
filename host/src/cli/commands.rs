//! The commands that talk to a server.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use reqwest::Method;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{
    AdminCommand, AdminServer, EXIT_FAILED, EXIT_OK, KeyCommand, ProviderCommand, SecretCommand, Server, TenantCommand,
    out, tenants,
};
use crate::access::OPERATOR_KEY_FILE;
use crate::client::{Client, EventLine};

/// What to start.
pub(super) struct Start {
    pub(super) name: String,
    pub(super) input: String,
    pub(super) version: Option<String>,
    pub(super) idempotency_key: Option<String>,
}

#[derive(serde::Serialize)]
struct StartBody<'a> {
    input: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
}

impl Server {
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(&self.url, &self.api_key)?)
    }
}

impl AdminServer {
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let key = match &self.operator_key {
            Some(key) => key.clone(),
            None => {
                let path = self.data_dir.join(OPERATOR_KEY_FILE);
                std::fs::read_to_string(&path).with_context(|| {
                    format!("no operator's key: neither STEPWELL_OPERATOR_KEY nor {}", path.display())
                })?
            }
        };
        Ok(Client::new(&self.url, key.trim())?)
    }
}

/// One part of a path. Names with other characters are refused by the server, and must get there as one part.
pub(super) fn part(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

pub(super) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

pub(super) async fn deploy(server: &Server, name: &str, path: &Path, promote: bool, json: bool) -> anyhow::Result<u8> {
    let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let is_component = content.starts_with(b"\0asm");
    let content_type = if is_component { "application/wasm" } else { "application/json" };
    let client = server.client()?;
    let url = format!("/v1/workflows/{}/versions?promote={promote}", part(name));
    let upload = client.upload(&url, content_type, content.into());
    let version = out::with_progress("compiling", upload).await?;
    if json {
        out::json(&version);
    } else {
        let what = if promote { "deployed" } else { "stored a version of" };
        out::note(format_args!("{what} {name}"));
        out::line(text(&version, "version"));
    }
    Ok(EXIT_OK)
}

pub(super) async fn promote(server: &Server, name: &str, version: &str) -> anyhow::Result<u8> {
    let path = format!("/v1/workflows/{}/promote", part(name));
    server.client()?.json(Method::POST, &path, Some(&json!({ "version": version }))).await?;
    out::note(format_args!("new runs of {name} get {version}"));
    Ok(EXIT_OK)
}

pub(super) async fn run(server: &Server, start: Start, follow: bool, json: bool) -> anyhow::Result<u8> {
    let client = server.client()?;
    let input: Box<RawValue> = serde_json::from_str(&read_input(&start.input)?).context("the input is not JSON")?;
    // Raw, because a detour over parsed values would change numbers.
    let body = serde_json::to_string(&StartBody { input: &input, version: start.version.as_deref() })?;
    let path = format!("/v1/workflows/{}/runs", part(&start.name));
    let run = client.post(&path, body, start.idempotency_key.as_deref()).await?;
    started(&client, &run, follow, json).await
}

/// Shows a run that was accepted, and its events if they are wanted.
async fn started(client: &Client, run: &Value, follow: bool, json: bool) -> anyhow::Result<u8> {
    let id = text(run, "id").to_owned();
    if json {
        out::line(json!({ "run_id": id }));
    } else if follow {
        out::line(format_args!("run {id}"));
    } else {
        out::line(&id);
    }
    if follow { follow_to_end(client, &id, json).await } else { Ok(EXIT_OK) }
}

pub(super) fn read_input(input: &str) -> anyhow::Result<String> {
    match input.strip_prefix('@') {
        None => Ok(input.to_owned()),
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            Ok(text)
        }
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {path}")),
    }
}

async fn follow_to_end(client: &Client, id: &str, json: bool) -> anyhow::Result<u8> {
    let last = client.follow(id, |event| show(event, json)).await?;
    Ok(if last.kind == "run.completed" { EXIT_OK } else { EXIT_FAILED })
}

fn show(event: &EventLine, json: bool) {
    if json { out::line(&event.json) } else { out::event(&event.json) }
}

pub(super) async fn runs(
    server: &Server,
    workflow: Option<&str>,
    status: Option<&str>,
    shadows: bool,
    limit: usize,
    json: bool,
) -> anyhow::Result<u8> {
    let mut path = format!("/v1/runs?limit={limit}&shadows={shadows}");
    for (name, value) in [("workflow", workflow), ("status", status)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", part(value)));
        }
    }
    let page = server.client()?.json(Method::GET, &path, None).await?;
    if json {
        out::json(&page);
        return Ok(EXIT_OK);
    }
    for run in page.get("data").and_then(Value::as_array).into_iter().flatten() {
        let (id, status, at, workflow) =
            (text(run, "id"), text(run, "status"), text(run, "created_at"), text(run, "workflow"));
        let of = run.get("shadow_of").and_then(Value::as_str).map(|run| format!("  shadow of {run}"));
        out::line(format_args!("{id}  {status:<9}  {at}  {workflow}{}", of.unwrap_or_default()));
    }
    Ok(EXIT_OK)
}

pub(super) async fn run_info(server: &Server, id: &str, json: bool) -> anyhow::Result<u8> {
    let client = server.client()?;
    let id = &part(id);
    let run = client.json(Method::GET, &format!("/v1/runs/{id}"), None).await?;
    let steps = client.json(Method::GET, &format!("/v1/runs/{id}/steps"), None).await?;
    let artifacts = client.json(Method::GET, &format!("/v1/artifacts?run_id={id}"), None).await?;
    let list = |page: &Value| page.get("data").cloned().unwrap_or_default();
    if json {
        out::json(&json!({ "run": run, "steps": list(&steps), "artifacts": list(&artifacts) }));
        return Ok(EXIT_OK);
    }
    let fields = [
        "id",
        "workflow",
        "version",
        "status",
        "waits_for",
        "waits_until",
        "parent",
        "rerun_of",
        "shadow_of",
        "created_at",
        "started_at",
        "ended_at",
    ];
    for name in fields {
        if run.get(name).is_some_and(|value| !value.is_null()) {
            out::line(format_args!("{name:<12}{}", text(&run, name)));
        }
    }
    for name in ["input", "output", "failure"] {
        if let Some(value) = run.get(name) {
            out::line(format_args!("{name:<12}{}", out::printable(&value.to_string())));
        }
    }
    for step in list(&steps).as_array().into_iter().flatten() {
        let attempts = step.get("attempts").and_then(Value::as_array).map_or(0, Vec::len);
        out::line(format_args!(
            "step        {:<24} {:<10} {attempts} attempt(s)",
            text(step, "node"),
            text(step, "status")
        ));
    }
    for artifact in list(&artifacts).as_array().into_iter().flatten() {
        let size = out::size(artifact.get("size_bytes").and_then(Value::as_u64).unwrap_or_default());
        out::line(format_args!(
            "artifact    {} {size} {}",
            text(artifact, "url"),
            out::printable(text(artifact, "name"))
        ));
    }
    Ok(EXIT_OK)
}

pub(super) async fn events(server: &Server, id: &str, follow: bool, json: bool) -> anyhow::Result<u8> {
    let client = server.client()?;
    let id = part(id);
    if follow {
        return follow_to_end(&client, &id, json).await;
    }
    client.events(&id, |event| show(&event, json)).await?;
    Ok(EXIT_OK)
}

pub(super) async fn cancel(server: &Server, id: &str, reason: Option<String>) -> anyhow::Result<u8> {
    let body = json!({ "reason": reason });
    server.client()?.json(Method::POST, &format!("/v1/runs/{}/cancel", part(id)), Some(&body)).await?;
    out::note(format_args!("cancelled {id}"));
    Ok(EXIT_OK)
}

pub(super) async fn admin(command: AdminCommand) -> anyhow::Result<u8> {
    match command {
        AdminCommand::Tenant(TenantCommand::Create { id, retention_days, server }) => {
            let body = json!({ "id": id, "retention_days": retention_days });
            let tenant = server.client()?.json(Method::POST, "/v1/admin/tenants", Some(&body)).await?;
            out::line(text(&tenant, "id"));
        }
        AdminCommand::Tenant(TenantCommand::List { server }) => {
            let tenants = server.client()?.json(Method::GET, "/v1/admin/tenants", None).await?;
            for tenant in tenants.get("data").and_then(Value::as_array).into_iter().flatten() {
                let days = tenant.get("retention_days").and_then(Value::as_u64).unwrap_or_default();
                out::line(format_args!(
                    "{:<40}  {}  keeps runs {days} days",
                    text(tenant, "id"),
                    text(tenant, "created_at")
                ));
            }
        }
        AdminCommand::Tenant(TenantCommand::Show { id, server }) => tenants::show(&server, &id).await?,
        AdminCommand::Tenant(TenantCommand::Set { id, settings, server }) => {
            tenants::set(&server, &id, &settings).await?;
        }
        AdminCommand::Key(KeyCommand::Create { tenant, server }) => {
            let key = server.client()?.json(Method::POST, "/v1/admin/keys", Some(&json!({ "tenant": tenant }))).await?;
            out::note("this is the only time that the key is shown:");
            out::line(text(&key, "key"));
        }
        AdminCommand::Key(KeyCommand::List { server }) => {
            let keys = server.client()?.json(Method::GET, "/v1/admin/keys", None).await?;
            for key in keys.get("data").and_then(Value::as_array).into_iter().flatten() {
                let state = key.get("revoked_at").and_then(Value::as_str).map(|at| format!("revoked {at}"));
                let state = state.unwrap_or_else(|| "valid".to_owned());
                out::line(format_args!(
                    "{}  {:<40}  {}  {state}",
                    text(key, "id"),
                    text(key, "tenant"),
                    text(key, "created_at")
                ));
            }
        }
        AdminCommand::Key(KeyCommand::Revoke { id, server }) => {
            server.client()?.json(Method::POST, &format!("/v1/admin/keys/{}/revoke", part(&id)), None).await?;
            out::note(format_args!("revoked {id}"));
        }
    }
    Ok(EXIT_OK)
}

/// How a run is to be repeated.
pub(super) struct Rerun {
    pub(super) from_step: Option<String>,
    pub(super) input: Option<String>,
    pub(super) version: Option<String>,
}

#[derive(serde::Serialize)]
struct RerunBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    from_step: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
}

pub(super) async fn rerun(server: &Server, id: &str, rerun: Rerun, follow: bool, json: bool) -> anyhow::Result<u8> {
    let client = server.client()?;
    let input = rerun.input.as_deref().map(read_input).transpose()?;
    let input: Option<Box<RawValue>> =
        input.as_deref().map(serde_json::from_str).transpose().context("the input is not JSON")?;
    let body =
        RerunBody { from_step: rerun.from_step.as_deref(), input: input.as_deref(), version: rerun.version.as_deref() };
    let path = format!("/v1/runs/{}/rerun", part(id));
    let run = client.post(&path, serde_json::to_string(&body)?, None).await?;
    started(&client, &run, follow, json).await
}

pub(super) async fn signal(
    server: &Server,
    id: &str,
    name: &str,
    data: &str,
    idempotency_key: Option<&str>,
) -> anyhow::Result<u8> {
    let payload: Box<RawValue> = serde_json::from_str(&read_input(data)?).context("the payload is not JSON")?;
    let path = format!("/v1/runs/{}/signals/{}", part(id), part(name));
    let taken = server.client()?.post(&path, payload.get().to_owned(), idempotency_key).await?;
    out::note(format_args!("sent {name}, event {}", taken.get("seq").and_then(Value::as_u64).unwrap_or_default()));
    Ok(EXIT_OK)
}

pub(super) async fn pause(server: &Server, id: &str, reason: Option<String>) -> anyhow::Result<u8> {
    let body = json!({ "reason": reason });
    server.client()?.json(Method::POST, &format!("/v1/runs/{}/pause", part(id)), Some(&body)).await?;
    out::note(format_args!("paused {id}"));
    Ok(EXIT_OK)
}

pub(super) async fn resume(server: &Server, id: &str) -> anyhow::Result<u8> {
    server.client()?.json(Method::POST, &format!("/v1/runs/{}/resume", part(id)), None).await?;
    out::note(format_args!("resumed {id}"));
    Ok(EXIT_OK)
}

pub(super) async fn failures(server: &Server, workflow: Option<&str>, json: bool) -> anyhow::Result<u8> {
    let query = workflow.map(|workflow| format!("?workflow={}", part(workflow))).unwrap_or_default();
    let page = server.client()?.json(Method::GET, &format!("/v1/failures{query}"), None).await?;
    if json {
        out::json(&page);
        return Ok(EXIT_OK);
    }
    for group in page.get("data").and_then(Value::as_array).into_iter().flatten() {
        let field = |name| text(group, name);
        let runs = group.get("runs").and_then(Value::as_u64).unwrap_or_default();
        out::line(format_args!(
            "{runs:>6}  {:<30}  {:<20}  {:<20}  last {} {}",
            field("workflow"),
            field("node"),
            field("code"),
            field("last_failed_at"),
            field("last_run_id")
        ));
    }
    Ok(EXIT_OK)
}

/// Entries of a listing, one line each.
pub(super) async fn list(server: &Server, path: &str, line: impl Fn(&Value) -> String) -> anyhow::Result<()> {
    let client = server.client()?;
    let mut next = path.to_owned();
    loop {
        let page = client.json(Method::GET, &next, None).await?;
        for entry in page.get("data").and_then(Value::as_array).into_iter().flatten() {
            out::line(line(entry));
        }
        match page.pointer("/page/cursor").and_then(Value::as_str) {
            Some(cursor) => next = format!("{path}?cursor={}", part(cursor)),
            None => return Ok(()),
        }
    }
}

pub(super) async fn secret(command: SecretCommand) -> anyhow::Result<u8> {
    match command {
        SecretCommand::Set { name, hosts, server } => {
            let mut value = String::new();
            std::io::stdin().read_to_string(&mut value).context("cannot read the secret from standard input")?;
            let body = json!({ "value": value.trim_end_matches(['\r', '\n']), "hosts": hosts });
            server.client()?.json(Method::PUT, &format!("/v1/secrets/{}", part(&name)), Some(&body)).await?;
            out::note(format_args!("set {name}"));
        }
        SecretCommand::List { server } => {
            let hosts = |secret: &Value| {
                let hosts = secret.get("hosts").and_then(Value::as_array).into_iter().flatten();
                hosts.filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
            };
            let line = |secret: &Value| {
                format!("{:<40}  {}  {}", text(secret, "name"), text(secret, "updated_at"), hosts(secret))
            };
            list(&server, "/v1/secrets", line).await?;
        }
        SecretCommand::Delete { name, server } => {
            server.client()?.json(Method::DELETE, &format!("/v1/secrets/{}", part(&name)), None).await?;
            out::note(format_args!("deleted {name}"));
        }
    }
    Ok(EXIT_OK)
}

pub(super) async fn provider(command: ProviderCommand) -> anyhow::Result<u8> {
    match command {
        ProviderCommand::Set { name, kind, base_url, secret, server } => {
            let body = json!({ "kind": kind, "base_url": base_url, "secret": secret });
            server.client()?.json(Method::PUT, &format!("/v1/providers/{}", part(&name)), Some(&body)).await?;
            out::note(format_args!("set up {name}"));
        }
        ProviderCommand::List { server } => {
            let line = |provider: &Value| {
                let field = |name| text(provider, name);
                format!("{:<40}  {:<10}  {}", field("name"), field("kind"), field("base_url"))
            };
            list(&server, "/v1/providers", line).await?;
        }
        ProviderCommand::Delete { name, server } => {
            server.client()?.json(Method::DELETE, &format!("/v1/providers/{}", part(&name)), None).await?;
            out::note(format_args!("forgot {name}"));
        }
    }
    Ok(EXIT_OK)
}
