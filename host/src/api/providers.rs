//! Providers of language models that a tenant has set up, besides `openai`, `anthropic` and `mock`.

use std::collections::BTreeMap;

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use stepwell_core::ids::is_word;
use stepwell_outbound::llm::UsdPerMtok;
use utoipa::ToSchema;

use super::App;
use super::auth::{Segments, Tenant};
use super::problem::{self, Problem, ProblemBody};
use super::secrets::checked_name;
use super::wire::Page;
use crate::journal::catalog::{PriceRecord, ProviderKindRecord, ProviderRecord};

/// Bytes of the request.
const BODY_BYTES_MAX: usize = 128 << 10;
/// Providers of one tenant.
const PROVIDERS_MAX: usize = 100;
/// Models with a price, of one provider.
const PRICES_MAX: usize = 500;
/// Bytes of a base URL, and of a model's name.
const TEXT_BYTES_MAX: usize = 2_048;

/// A provider.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewProvider {
    /// How it is spoken to.
    kind: ProviderKindRecord,
    /// What comes before `/chat/completions` (openai) or `/v1/messages` (anthropic); without it the address of whoever
    /// invented the protocol.
    base_url: Option<String>,
    /// The name of the secret that holds its key. Servers of one's own often want none.
    secret: Option<String>,
    /// What its models cost. Without a price, a step's cost is not known.
    #[serde(default)]
    prices: BTreeMap<String, PriceRecord>,
}

/// A provider.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Provider)]
pub(super) struct ProviderBody {
    /// Its name.
    name: String,
    /// How it is spoken to.
    kind: ProviderKindRecord,
    /// Where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    base_url: Option<String>,
    /// The name of the secret that holds its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    /// What its models cost.
    prices: BTreeMap<String, PriceRecord>,
}

impl From<ProviderRecord> for ProviderBody {
    fn from(record: ProviderRecord) -> Self {
        let ProviderRecord { name, kind, base_url, secret, prices } = record;
        Self { name, kind, base_url, secret, prices }
    }
}

fn check(new: &NewProvider) -> Result<(), &'static str> {
    if let Some(url) = &new.base_url {
        let parsed = reqwest::Url::parse(url).map_err(|_| "the base URL is not a URL")?;
        if url.len() > TEXT_BYTES_MAX || !matches!(parsed.scheme(), "http" | "https") {
            return Err("a base URL begins with http or https and has at most 2,048 bytes");
        }
        if !parsed.username().is_empty() || parsed.password().is_some() || parsed.query().is_some() {
            return Err("a base URL has no user, password or query");
        }
    }
    if new.secret.as_ref().is_some_and(|name| !is_word(name)) {
        return Err("the secret has no name that a secret can have");
    }
    let is_price = |price: f64| UsdPerMtok::try_from(price).is_ok();
    let fits = |(model, price): (&String, &PriceRecord)| {
        model.len() <= TEXT_BYTES_MAX && is_price(price.input_usd_per_mtok) && is_price(price.output_usd_per_mtok)
    };
    if new.prices.len() > PRICES_MAX || !new.prices.iter().all(fits) {
        return Err("a price is an amount of US dollars with at most six places; at most 500 models have one");
    }
    Ok(())
}

/// Sets up a provider, in place of one with the same name.
#[utoipa::path(put, path = "/v1/providers/{name}", tag = "providers",
    params(("name" = String, Path, description = "What `llm` nodes call it. `openai` and `anthropic` can be set up anew, `mock` cannot.")),
    request_body = NewProvider,
    responses(
        (status = 200, description = "The provider is set up.", body = ProviderBody),
        (status = 422, description = "`invalid_name`, `invalid_json`, `invalid_body`, `too_many`", body = ProblemBody),
    ))]
pub(super) async fn put(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer<ProviderBody>, Problem> {
    checked_name(&name)?;
    if name == "mock" {
        // What is called so is made up, everywhere and always.
        return Err(Problem::invalid("invalid_name", "`mock` is the host's own"));
    }
    let body = problem::body(&headers, body, BODY_BYTES_MAX).await?;
    let new: NewProvider = problem::parse(&body)?;
    check(&new).map_err(|why| Problem::invalid("invalid_body", why))?;
    let known = app.journal.providers(&tenant.0)?;
    if known.len() >= PROVIDERS_MAX && !known.iter().any(|record| record.name == name) {
        return Err(Problem::invalid("too_many", format!("a tenant has at most {PROVIDERS_MAX} providers")));
    }
    let NewProvider { kind, base_url, secret, prices } = new;
    let record = ProviderRecord { name, kind, base_url, secret, prices };
    app.journal.put_provider(&tenant.0, &record).await?;
    tracing::info!(tenant = %tenant.0, provider = record.name, "provider set up");
    Ok(Answer(record.into()))
}

/// The providers that the tenant has set up, by name.
#[utoipa::path(get, path = "/v1/providers", tag = "providers", responses((status = 200, body = Page<ProviderBody>)))]
pub(super) async fn list(State(app): State<App>, tenant: Tenant) -> Result<Answer<Page<ProviderBody>>, Problem> {
    let providers = app.journal.providers(&tenant.0)?;
    Ok(Answer(Page::whole(providers.into_iter().map(ProviderBody::from).collect())))
}

/// Forgets a provider that was set up.
#[utoipa::path(delete, path = "/v1/providers/{name}", tag = "providers",
    params(("name" = String, Path, description = "The provider's name.")),
    responses(
        (status = 204, description = "The provider is forgotten."),
        (status = 404, description = "`unknown_provider`", body = ProblemBody),
    ))]
pub(super) async fn delete(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
) -> Result<StatusCode, Problem> {
    if !app.journal.delete_provider(&tenant.0, &name).await? {
        return Err(Problem::not_found("unknown_provider", "there is no such provider"));
    }
    tracing::info!(tenant = %tenant.0, provider = name, "provider forgotten");
    Ok(StatusCode::NO_CONTENT)
}
