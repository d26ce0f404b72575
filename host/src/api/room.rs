//! Room for those who read: streams, and pages.
//!
//! Owns: how many there are at once, and giving room back when an answer has been sent.
//! Keeps: what clients can have the host hold in memory for them is bounded, however slowly they take it: by these
//! numbers, and by how long a client may take nothing (see `connections`).

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use serde::Serialize;
use stepwell_core::TenantId;

use super::App;
use super::problem::Problem;
use crate::permits::Permit;

/// Streams, and pages that wait, of all tenants at once, where the system allows so many connections and a third more.
/// Each is a connection of some 60 KB.
pub(crate) const STREAMS_MAX: usize = 40_000;
/// Pages of events that are read and sent at once. Each has about a megabyte, or one event of four.
pub(crate) const PAGES_MAX: usize = 64;
/// Those of one tenant.
pub(crate) const PAGES_PER_TENANT: usize = PAGES_MAX / 2;
/// How long a page waits for others to be sent. One takes milliseconds, unless its client is slow.
const PAGE_WAIT: Duration = Duration::from_secs(5);

/// Room for one more stream of a tenant, or page that waits.
pub(super) fn for_stream(app: &App, tenant: &TenantId) -> Result<Permit, Problem> {
    let detail = "there are too many streams at once; close some, or follow a channel instead of its runs";
    let full = || Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", detail);
    app.streams.try_acquire(tenant).ok_or_else(full)
}

/// Room for one more page of a tenant; waits for it a little.
pub(super) async fn for_page(app: &App, tenant: &TenantId) -> Result<Permit, Problem> {
    let room = tokio::time::timeout(PAGE_WAIT, app.pages.acquire(tenant)).await;
    let detail = "there are too many pages at once that are not taken; take them, or follow a stream";
    room.map_err(|_| Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_pages", detail))
}

/// Reads a page where others do not have to wait for it. The room is taken for as long as that lasts, even if nobody waits
/// for the page any more.
pub(super) async fn read_in<T: Send + 'static>(
    room: Permit,
    read: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<(Permit, T), Problem> {
    let read = tokio::task::spawn_blocking(move || read().map(|page| (room, page)));
    read.await.map_err(|_| Problem::internal())?
}

/// A page as an answer, which has its room until it is sent. One without entries needs none.
pub(super) fn answer(room: Option<Permit>, page: &impl Serialize) -> Result<Response, Problem> {
    let bytes = serde_json::to_vec(page).map_err(|_| Problem::internal())?;
    let mut response = Body::new(Page { bytes: bytes.into(), _room: room }).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// A page's bytes.
struct Page {
    bytes: Bytes,
    _room: Option<Permit>,
}

impl HttpBody for Page {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = std::mem::take(&mut self.get_mut().bytes);
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}
