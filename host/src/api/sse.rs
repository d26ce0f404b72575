//! Server-sent events: how a stream goes out.
//!
//! Owns: the first and the last frame, keepalive, and the headers that keep proxies from holding frames back.
//! Does not: know what is streamed: that is a [`Source`]'s.
//! Keeps: a stream that the host closes before its end says so with a last `retry:`; whoever reads it comes back.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::permits::Permit;

/// A comment goes out this often when there is nothing else to say: proxies cut silent connections after a minute or
/// less.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// What a browser waits before it connects again.
const RETRY: Duration = Duration::from_secs(1);
/// What is added to that, at most, when the host stops: the next one would otherwise meet everybody in one moment.
const RETRY_SPREAD_MS: u64 = 2_000;

/// What a stream is fed from.
pub(super) trait Source: Send + 'static {
    /// The next frame; waits for it. `None` when nothing follows. Cancel safe: a frame is given out only by returning.
    fn next(&mut self) -> impl Future<Output = Option<Frame>> + Send;
}

/// What ends a stream besides its source.
#[derive(Debug, Clone)]
pub(super) struct Ends {
    /// The host stops.
    pub(super) stopping: CancellationToken,
    /// Whoever opened it may not any more.
    pub(super) revoked: CancellationToken,
    /// From then on they may not.
    pub(super) at: Option<Instant>,
}

impl Ends {
    /// Waits for the first of them.
    async fn come(&self) {
        let at = async {
            match self.at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.stopping.cancelled() => {}
            () = self.revoked.cancelled() => {}
            () = at => {}
        }
    }
}

/// A stream as an answer.
pub(super) fn answer(room: Permit, ends: Ends, source: impl Source) -> Response {
    let hello = stream::iter([Ok(Frame::default().retry(RETRY))]);
    let frames = hello.chain(frames(room, ends, source));
    let keepalive = KeepAlive::new().interval(KEEPALIVE).text("keepalive");
    let mut response = Sse::new(frames).keep_alive(keepalive).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx and others collect responses before they pass them on, unless told not to.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

fn frames(room: Permit, ends: Ends, source: impl Source) -> impl Stream<Item = Result<Frame, Infallible>> {
    stream::unfold(Some((source, ends, room)), |state| async {
        let (mut source, ends, room) = state?;
        tokio::select! {
            // An end comes first: whoever may not read any more is shown nothing that was still to come.
            biased;
            // A closed stream is not the end of the run: the client connects again, to the next process, or is refused then.
            () = ends.come() => Some((Ok(farewell()), None)),
            frame = source.next() => frame.map(|frame| (Ok(frame), Some((source, ends, room)))),
        }
    })
}

fn farewell() -> Frame {
    Frame::default().retry(RETRY + Duration::from_millis(clock::dice().0 % RETRY_SPREAD_MS))
}
