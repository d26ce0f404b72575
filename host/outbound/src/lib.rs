//! What leaves the host on behalf of a step: HTTP requests ([`http`]) and questions to language models ([`llm`]).
//!
//! It owns the one HTTP client, the rules about where it may connect ([`egress`]), and the limits of `wit/http.wit` and
//! `wit/llm.wit` that can be checked on one request. It does not know tenants, secrets by name, quotas of an attempt or
//! WebAssembly: the sandbox looks those up and counts, and hands over what came of it.
//!
//! The invariant: no connection is made to an address that the operator's [`Egress`] does not permit. Addresses are
//! judged after names are resolved and immediately before connecting, so it does not matter what a name resolved to a
//! moment ago, or how an address is spelled. A [`Secret`] is written into a request header and nowhere else.
//!
//! Every method may be dropped at any of its awaits; what was under way is then abandoned.
//!
//! Read `egress.rs` next, then `http.rs`, then `llm/mod.rs`.

use std::sync::Arc;
use std::time::Duration;

pub mod egress;
pub mod http;
pub mod llm;
pub mod lookup;

mod secret;
mod text;
mod trouble;

pub use egress::{AddressRange, Egress, Reach};
pub use http::{HttpAnswer, HttpError, HttpRequest, HttpResponse, SecretHeader};
pub use llm::{Completion, DeltaSink, LlmError, LlmRequest, Message, Price, Provider, ProviderKind, Role, Stopped};
pub use lookup::{Lookup, SystemLookup};
pub use secret::Secret;

/// For a connection including TLS. Anything that answers at all does so in less, and a step should learn soon that an
/// address is dead.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Shorter than the keep-alive of common servers and load balancers (60 s and more), so that a request rarely meets a
/// connection that is just being closed.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(45);
/// Idle connections to one host. Enough for steps that ask one provider in parallel, few enough for a host that serves
/// many tenants to stay within its file descriptors.
const POOL_IDLE_PER_HOST_MAX: usize = 16;
/// Header fields of one response. The same as for requests.
const RESPONSE_HEADERS_MAX: usize = 100;
/// Once an answer of a model has begun, its provider sends something (text, or a ping) every few seconds. A minute
/// without a byte means that nothing more is coming.
const STALL: Duration = Duration::from_secs(60);

/// How requests leave the host.
#[derive(Clone)]
pub struct OutboundConfig {
    /// Where they may go.
    pub egress: Egress,
    /// The `user-agent` of requests that bring none of their own.
    pub user_agent: String,
    /// How names become addresses.
    pub lookup: Arc<dyn Lookup>,
    /// How long a provider may be silent in the middle of an answer.
    pub stall: Duration,
}

impl Default for OutboundConfig {
    fn default() -> Self {
        Self {
            egress: Egress::default(),
            user_agent: concat!("stepwell/", env!("CARGO_PKG_VERSION")).to_owned(),
            lookup: Arc::new(SystemLookup::default()),
            stall: STALL,
        }
    }
}

/// The way out. Cheap to clone: clones share connections.
#[derive(Clone)]
pub struct Outbound {
    client: reqwest::Client,
    egress: Arc<Egress>,
    stall: Duration,
}

/// The HTTP client cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("the client for outbound requests cannot be set up")]
pub struct SetupError(#[source] reqwest::Error);

impl Outbound {
    /// Sets up the client. Fails when the system has no certificates to trust, or the user agent is not a header value.
    pub fn new(config: OutboundConfig) -> Result<Self, SetupError> {
        // `ring` rather than a library of C that takes minutes to compile. Fails only when another one was chosen before.
        drop(rustls::crypto::ring::default_provider().install_default());
        let egress = Arc::new(config.egress);
        let client = reqwest::Client::builder()
            .user_agent(config.user_agent)
            .dns_resolver(lookup::Guarded::new(Arc::clone(&egress), config.lookup))
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .pool_max_idle_per_host(POOL_IDLE_PER_HOST_MAX)
            .http1_max_headers(RESPONSE_HEADERS_MAX)
            // A proxy from the environment would resolve names itself, past the egress rules.
            .no_proxy()
            // A redirect is a new address that the guest did not ask for; it can follow one with a request of its own.
            .redirect(reqwest::redirect::Policy::none())
            // Whether a request may be repeated is for the step to say.
            .retry(reqwest::retry::never())
            .referer(false)
            // Some features of the client are switched on for all crates when one crate asks for them.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .build()
            .map_err(SetupError)?;
        Ok(Self { client, egress, stall: config.stall })
    }
}
