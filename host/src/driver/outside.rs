//! What steps ask of the world outside: requests and completions, with the tenant's secrets and providers.
//!
//! Owns: the way from the name of a secret or provider to its use. Secrets are opened here, go into a request and are
//! forgotten; no guest and no log sees one.
//! Does not: decide where requests may go ([`stepwell_outbound::egress`]), or count an attempt's requests (the sandbox).

use std::net::IpAddr;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use stepwell_core::{Json, TenantId};
use stepwell_outbound::{
    Completion, DeltaSink, HttpError, HttpRequest, HttpResponse, LlmError, LlmRequest, Outbound, Price, Provider,
    ProviderKind, Secret, SecretHeader, Stopped,
};

use crate::journal::RedbJournal;
use crate::journal::catalog::{ProviderKindRecord, ProviderRecord, SecretRecord};
use crate::sandbox::{Authorization, CompletionError, HostRefusal, StepHost};
use crate::vault::Vault;

/// The way out for all steps.
#[derive(Clone)]
pub struct Outside {
    /// The client.
    pub outbound: Outbound,
    /// Where secrets and providers are.
    pub journal: Arc<RedbJournal>,
    /// What opens secrets.
    pub vault: Arc<Vault>,
}

impl std::fmt::Debug for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outside")
    }
}

impl Outside {
    /// Sends a request of a tenant's step.
    pub(super) async fn send(
        &self,
        tenant: &TenantId,
        request: HttpRequest,
        authorization: Option<Authorization>,
    ) -> Result<HttpResponse, HttpError> {
        let header = match authorization {
            None => None,
            Some(Authorization { secret, header, prefix }) => {
                let value = self.secret_for(tenant, &secret, &request.url)?;
                Some(SecretHeader { name: header, prefix, value })
            }
        };
        self.outbound.send(request, header).await
    }

    /// A secret, if it may be sent to the host of this URL.
    fn secret_for(&self, tenant: &TenantId, name: &str, url: &str) -> Result<Secret, HttpError> {
        let denied = |why: String| HttpError::Denied(why);
        let record = self.journal.secret_record(tenant, name).map_err(|error| {
            tracing::error!(%tenant, %error, "a secret could not be read");
            // Our trouble and not the step's: it may pass.
            HttpError::Connection("the secret could not be read".to_owned())
        })?;
        let record = record.ok_or_else(|| denied(format!("there is no secret `{name}`")))?;
        let url = reqwest::Url::parse(url).map_err(|error| HttpError::InvalidRequest(format!("the URL: {error}")))?;
        may_be_sent(&record, &url).map_err(denied)?;
        if !record.hosts.iter().any(|allowed| covers(allowed, url.host_str().unwrap_or_default())) {
            let host = url.host_str().unwrap_or_default();
            return Err(denied(format!("the secret `{name}` may not be sent to `{host}`")));
        }
        self.vault.unseal(tenant, name, &record.sealed).map_err(|error| denied(error.to_string()))
    }

    /// Asks a model for a tenant's step. With a topic, the answer is published on it while it comes.
    pub(super) async fn complete(
        &self,
        tenant: &TenantId,
        host: &dyn StepHost,
        provider: &str,
        request: &LlmRequest,
        topic: Option<String>,
    ) -> Result<Completion, CompletionError> {
        let provider = self.provider(tenant, provider)?;
        let mut sink = Publishing { host, topic, refusal: None };
        let answer = self.outbound.complete(&provider, request, &mut sink).await;
        match (answer, sink.refusal) {
            (Err(LlmError::Cancelled), Some(HostRefusal::UnknownTopic)) => {
                let why = "the workflow does not have the topic that the answer goes to".to_owned();
                Err(CompletionError::Llm(LlmError::InvalidRequest(why)))
            }
            (answer, _) => answer.map_err(CompletionError::Llm),
        }
    }

    fn provider(&self, tenant: &TenantId, name: &str) -> Result<Provider, CompletionError> {
        let broken = |why: &str| CompletionError::Llm(LlmError::Denied(why.to_owned()));
        let unreadable = |error: crate::journal::JournalError| {
            tracing::error!(%tenant, %error, "a provider could not be read");
            // Our trouble and not the step's: it may pass.
            CompletionError::Llm(LlmError::Connection("the provider could not be read".to_owned()))
        };
        let stored = self.journal.provider(tenant, name).map_err(unreadable)?;
        let record = stored.or_else(|| ProviderRecord::built_in(name)).ok_or(CompletionError::UnknownProvider)?;
        let kind = match record.kind {
            ProviderKindRecord::Openai => ProviderKind::OpenAi,
            ProviderKindRecord::Anthropic => ProviderKind::Anthropic,
            ProviderKindRecord::Mock => ProviderKind::Mock,
        };
        let base_url = record.base_url.unwrap_or_else(|| kind.default_base_url().to_owned());
        let key = match &record.secret {
            None => None,
            Some(secret) => {
                let stored = self.journal.secret_record(tenant, secret).map_err(unreadable)?;
                let stored = stored.ok_or_else(|| CompletionError::MissingSecret(secret.clone()))?;
                let url = reqwest::Url::parse(&base_url).map_err(|_| broken("the provider's base URL is not a URL"))?;
                may_be_sent(&stored, &url).map_err(|why| broken(&why))?;
                let opened = self.vault.unseal(tenant, secret, &stored.sealed);
                Some(opened.map_err(|error| broken(&error.to_string()))?)
            }
        };
        let prices = record.prices.into_iter().filter_map(|(model, price)| {
            let (input, output) =
                (price.input_usd_per_mtok.try_into().ok()?, price.output_usd_per_mtok.try_into().ok()?);
            Some((model, Price { input, output }))
        });
        Ok(Provider { kind, base_url, key, prices: prices.collect() })
    }
}

/// Whether a secret may go to this place at all: whoever reads along must not learn it, and where it has hosts, they are
/// all that it is sent to.
fn may_be_sent(record: &SecretRecord, url: &reqwest::Url) -> Result<(), String> {
    let (name, host) = (&record.name, url.host_str().unwrap_or_default());
    if url.scheme() != "https" && !is_loopback(url) {
        return Err(format!("the secret `{name}` is sent over https only"));
    }
    if !record.hosts.is_empty() && !record.hosts.iter().any(|allowed| covers(allowed, host)) {
        return Err(format!("the secret `{name}` may not be sent to `{host}`"));
    }
    Ok(())
}

fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    literal.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether an entry of a secret's hosts means this host: the host itself, or with `*.` in front all names below one.
fn covers(allowed: &str, host: &str) -> bool {
    match allowed.strip_prefix("*.") {
        Some(domain) => host.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        None => host.eq_ignore_ascii_case(allowed),
    }
}

/// Publishes an answer while it comes.
struct Publishing<'a> {
    host: &'a dyn StepHost,
    topic: Option<String>,
    refusal: Option<HostRefusal>,
}

impl DeltaSink for Publishing<'_> {
    fn delta(&mut self, text: String) -> BoxFuture<'_, Result<(), Stopped>> {
        async move {
            let Some(topic) = self.topic.clone() else { return Ok(()) };
            // A text is always JSON.
            let Ok(payload) = Json::of(&json!({ "delta": text })) else { return Ok(()) };
            match self.host.publish(topic, payload, true).await {
                Ok(_) => Ok(()),
                Err(refusal) => {
                    self.refusal = Some(refusal);
                    Err(Stopped)
                }
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_secret_goes_to_its_hosts_and_no_others() {
        for (allowed, host, expected) in [
            ("api.example.com", "api.example.com", true),
            ("api.example.com", "API.example.com", true),
            ("api.example.com", "api.example.com.evil.net", false),
            ("api.example.com", "evilapi.example.com", false),
            ("*.example.com", "api.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "evilexample.com", false),
            ("*.example.com", ".example.com", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("", "", true),
        ] {
            assert_eq!(covers(allowed, host), expected, "{allowed} {host}");
        }
    }
}
