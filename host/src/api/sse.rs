//! Server-sent events: how a stream goes out.
//!
//! Owns: the first and the last frame, keepalive, and the headers that keep proxies from holding frames back.
//! Does not: know what is streamed: that is a [`Source`]'s.
//! Keeps: a stream that the host closes before its end says so with a last `retry:`; whoever reads it comes back.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};
use stepwell_core::TenantId;
use tokio_util::sync::CancellationToken;

use super::App;
use super::problem::Problem;
use crate::clock;
use crate::permits::Permit;

/// A comment goes out this often when there is nothing else to say: proxies cut silent connections after a minute or
/// less.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// What a browser waits before it connects again.
const RETRY: Duration = Duration::from_secs(1);
/// What is added to that, at most, when the host stops: the next one would otherwise meet everybody in one moment.
const RETRY_SPREAD_MS: u64 = 2_000;

/// Streams, and pages that wait, of all tenants at once. Each is a connection of some 60 KB; a process rarely may have
/// more files open.
pub(crate) const STREAMS_MAX: usize = 40_000;
/// The same for one tenant unless the operator says otherwise: half of them.
pub(crate) const STREAMS_PER_TENANT_DEFAULT: usize = STREAMS_MAX / 2;

/// What a stream is fed from.
pub(super) trait Source: Send + 'static {
    /// The next frame; waits for it. `None` when nothing follows. Cancel safe: a frame is given out only by returning.
    fn next(&mut self) -> impl Future<Output = Option<Frame>> + Send;
}

/// Room for one more stream of a tenant.
pub(super) fn room(app: &App, tenant: &TenantId) -> Result<Permit, Problem> {
    let detail = "there are too many streams at once; close some, or follow a channel instead of its runs";
    let full = || Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", detail);
    app.streams.try_acquire(tenant).ok_or_else(full)
}

/// A stream as an answer. It ends with its source, with the host, or when `revoked` says so.
pub(super) fn answer(app: &App, room: Permit, revoked: Option<CancellationToken>, source: impl Source) -> Response {
    let hello = stream::iter([Ok(Frame::default().retry(RETRY))]);
    let frames = hello.chain(frames(app.stopping.clone(), room, revoked.unwrap_or_default(), source));
    let keepalive = KeepAlive::new().interval(KEEPALIVE).text("keepalive");
    let mut response = Sse::new(frames).keep_alive(keepalive).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx and others collect responses before they pass them on, unless told not to.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

fn frames(
    stopping: CancellationToken,
    room: Permit,
    revoked: CancellationToken,
    source: impl Source,
) -> impl Stream<Item = Result<Frame, Infallible>> {
    stream::unfold(Some((source, room)), move |source| {
        let (stopping, revoked) = (stopping.clone(), revoked.clone());
        async move {
            let (mut source, room) = source?;
            tokio::select! {
                frame = source.next() => frame.map(|frame| (Ok(frame), Some((source, room)))),
                // A closed stream is not the end of the run: the client connects again, to the next process.
                () = stopping.cancelled() => Some((Ok(farewell()), None)),
                // Or is refused then.
                () = revoked.cancelled() => Some((Ok(farewell()), None)),
            }
        }
    })
}

fn farewell() -> Frame {
    Frame::default().retry(RETRY + Duration::from_millis(clock::dice().0 % RETRY_SPREAD_MS))
}
