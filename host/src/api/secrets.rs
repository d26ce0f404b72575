//! Secrets of a tenant: set, listed by name, deleted. None is ever shown.

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use stepwell_core::ids::is_word;
use utoipa::ToSchema;

use super::App;
use super::auth::{Segments, Tenant};
use super::problem::{self, Problem, ProblemBody};
use super::wire::Page;
use crate::clock::{self, rfc3339};
use crate::journal::catalog::SecretRecord;

/// Bytes of a secret. Keys and tokens have far less.
const SECRET_BYTES_MAX: usize = 16 << 10;
/// Bytes of the request: the secret, escaped, and its hosts.
const BODY_BYTES_MAX: usize = 128 << 10;
/// Hosts of one secret.
const HOSTS_MAX: usize = 32;
/// Secrets of one tenant.
const SECRETS_MAX: usize = 1_000;

/// A secret to be kept.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSecret {
    /// The secret, at most 16 KiB.
    value: String,
    /// The hosts that `http` nodes may send it to, such as `api.example.com` or `*.example.com`. Providers of language
    /// models do not need them.
    #[serde(default)]
    hosts: Vec<String>,
}

/// A secret, without the secret.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Secret)]
pub(super) struct SecretBody {
    /// Its name.
    name: String,
    /// The hosts that `http` nodes may send it to.
    hosts: Vec<String>,
    /// When it was first set.
    created_at: String,
    /// When it was last set.
    updated_at: String,
}

impl From<SecretRecord> for SecretBody {
    fn from(record: SecretRecord) -> Self {
        let (created_at, updated_at) = (rfc3339(record.created_at), rfc3339(record.updated_at));
        Self { name: record.name, hosts: record.hosts, created_at, updated_at }
    }
}

/// The name of a secret or provider.
pub(super) fn checked_name(name: &str) -> Result<(), Problem> {
    if is_word(name) {
        return Ok(());
    }
    Err(Problem::invalid("invalid_name", "a name has 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -"))
}

fn is_host(host: &str) -> bool {
    let name = host.strip_prefix("*.").unwrap_or(host);
    // As URLs spell them: in lower case, without a port.
    let is_literal = name.starts_with('[') && name.ends_with(']');
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
    let allowed = |b: u8| plain(b) || (is_literal && b":[]".contains(&b));
    (1..=253).contains(&name.len()) && name.bytes().all(allowed)
}

/// Sets a secret, in place of one with the same name. Steps that start from now on use it.
#[utoipa::path(put, path = "/v1/secrets/{name}", tag = "secrets",
    params(("name" = String, Path, description = "The secret's name: 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -.")),
    request_body = NewSecret,
    responses(
        (status = 200, description = "The secret is kept.", body = SecretBody),
        (status = 413, description = "`too_large`", body = ProblemBody),
        (status = 422, description = "`invalid_name`, `invalid_json`, `invalid_body`, `too_many`", body = ProblemBody),
    ))]
pub(super) async fn put(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer<SecretBody>, Problem> {
    checked_name(&name)?;
    let body = problem::body(&headers, body, BODY_BYTES_MAX).await?;
    let NewSecret { value, hosts } = problem::parse(&body)?;
    if value.is_empty() || value.len() > SECRET_BYTES_MAX {
        return Err(Problem::invalid("invalid_body", format!("a secret has 1 to {SECRET_BYTES_MAX} bytes")));
    }
    if hosts.len() > HOSTS_MAX || !hosts.iter().all(|host| is_host(host)) {
        let rule = format!(
            "a secret has at most {HOSTS_MAX} hosts, each a name or address in lower case, without scheme, port and path"
        );
        return Err(Problem::invalid("invalid_body", rule));
    }
    let known = app.journal.secret_records(&tenant.0)?;
    if known.len() >= SECRETS_MAX && !known.iter().any(|record| record.name == name) {
        return Err(Problem::invalid("too_many", format!("a tenant has at most {SECRETS_MAX} secrets")));
    }
    let sealed = app.vault.seal(&tenant.0, &name, &value);
    let now = clock::now();
    let record = SecretRecord { name, hosts, created_at: now, updated_at: now, sealed };
    let record = app.journal.put_secret(&tenant.0, record).await?;
    tracing::info!(tenant = %tenant.0, secret = record.name, "secret set");
    Ok(Answer(record.into()))
}

/// The tenant's secrets, by name, without their values.
#[utoipa::path(get, path = "/v1/secrets", tag = "secrets", responses((status = 200, body = Page<SecretBody>)))]
pub(super) async fn list(State(app): State<App>, tenant: Tenant) -> Result<Answer<Page<SecretBody>>, Problem> {
    let secrets = app.journal.secret_records(&tenant.0)?;
    Ok(Answer(Page::whole(secrets.into_iter().map(SecretBody::from).collect())))
}

/// Deletes a secret.
#[utoipa::path(delete, path = "/v1/secrets/{name}", tag = "secrets",
    params(("name" = String, Path, description = "The secret's name.")),
    responses(
        (status = 204, description = "The secret is gone."),
        (status = 404, description = "`unknown_secret`", body = ProblemBody),
    ))]
pub(super) async fn delete(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
) -> Result<StatusCode, Problem> {
    if !app.journal.delete_secret(&tenant.0, &name).await? {
        return Err(Problem::not_found("unknown_secret", "there is no such secret"));
    }
    tracing::info!(tenant = %tenant.0, secret = name, "secret deleted");
    Ok(StatusCode::NO_CONTENT)
}
