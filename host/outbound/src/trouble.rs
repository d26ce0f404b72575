//! What an error of the HTTP client means, told apart once for both kinds of request.
//!
//! The invariant: the text of an error names the host that the caller asked for and the cause at the bottom of the
//! chain. It carries no URL (a query may hold a token) and no header.

use std::error::Error;

use crate::egress::Denied;
use crate::text::excerpt;

/// Of the cause. It comes from the operating system or the TLS library, and is one sentence.
const CAUSE_BYTES_MAX: usize = 300;

/// Why there is no response, or no more of it.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The client does not take the request.
    Request(String),
    /// The name resolved to no address that may be reached.
    Denied(Denied),
    /// The connection could not be made, or broke.
    Connection(String),
}

impl Trouble {
    /// Of a request to `host`.
    pub(crate) fn of(error: &reqwest::Error, host: &str) -> Self {
        if let Some(denied) = causes(error).find_map(|cause| cause.downcast_ref::<Denied>()) {
            return Self::Denied(denied.clone());
        }
        let cause = causes(error).last().map(ToString::to_string).unwrap_or_default();
        let cause = excerpt(&cause, CAUSE_BYTES_MAX);
        if error.is_builder() {
            Self::Request(cause)
        } else if error.is_connect() {
            Self::Connection(format!("{host} cannot be reached: {cause}"))
        } else {
            Self::Connection(format!("the connection to {host} broke: {cause}"))
        }
    }
}

/// What lies below an error, from the top down.
fn causes<'a>(error: &'a reqwest::Error) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}
