//! Answers on their way out.
//!
//! Owns: cutting them into small parts, and telling the connection when a part waits to be taken.
//! Does not: change a byte of them.
//!
//! On HTTP/1 what is not taken stays in the socket, and the connection sees that by itself. On HTTP/2 each answer has a
//! window of its own that the client opens: while it is shut, nothing is written and nothing is stuck. So it counts from
//! when a part was handed out until the next one is asked for. Parts are small because one of them is taken from us as
//! soon as the window has room for a byte.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{FromRequestParts, Request};
use axum::http::Version;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use super::traffic::{Traffic, UnderWay};

/// Bytes that are handed out at once: what HTTP/2 makes of them in any case.
const PART_BYTES: usize = 16 << 10;

/// Counts a request, and watches its answer. A layer around all routes.
pub(crate) async fn watch(request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    // Missing where there is no connection, as in tests.
    let traffic = ConnectInfo::<Traffic>::from_request_parts(&mut parts, &()).await;
    let has_window = parts.version == Version::HTTP_2;
    let request = Request::from_parts(parts, body);
    let Ok(ConnectInfo(traffic)) = traffic else { return next.run(request).await };
    let under_way = traffic.begin();
    let answer = next.run(request).await;
    answer.map(|body| Body::new(Watched { body, rest: Bytes::new(), has_window, under_way }))
}

/// An answer's body.
struct Watched {
    body: Body,
    /// Of a part that was larger than what is handed out at once.
    rest: Bytes,
    has_window: bool,
    under_way: UnderWay,
}

impl Watched {
    /// What of the rest is handed out now. The very last byte goes by itself: it is taken only where there is room for
    /// it, so an answer that was taken to its end is not left lying in front of a window that is shut.
    fn part(&mut self) -> Bytes {
        let is_last = self.rest.len() <= PART_BYTES && self.body.is_end_stream();
        let size = if is_last && self.has_window { self.rest.len().saturating_sub(1).max(1) } else { PART_BYTES };
        self.rest.split_to(size.min(self.rest.len()))
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        this.under_way.has_gone();
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return Poll::Ready(other),
            }
        }
        if this.has_window {
            this.under_way.hand_out(Instant::now());
        }
        Poll::Ready(Some(Ok(Frame::data(this.part()))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, of_body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower().saturating_add(rest));
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn an_answer_comes_out_in_small_parts_and_whole() {
        let bytes: Vec<u8> = (0..100_000).map(|n| (n % 251) as u8).collect();
        for has_window in [false, true] {
            for size in [0, 1, 2, PART_BYTES, PART_BYTES + 1, 100_000] {
                let sent = &bytes[..size];
                let under_way = Traffic::new(Instant::now()).begin();
                let body = Body::from(sent.to_vec());
                let mut answer = Watched { body, rest: Bytes::new(), has_window, under_way };
                assert_eq!(answer.size_hint().exact(), Some(size as u64), "or there is no Content-Length");
                let mut parts = Vec::new();
                while let Some(frame) = answer.frame().await {
                    parts.push(frame.unwrap().into_data().unwrap());
                }
                assert!(answer.is_end_stream() && parts.iter().all(|part| part.len() <= PART_BYTES));
                assert!(!has_window || size < 2 || parts.last().unwrap().len() == 1);
                assert_eq!(parts.concat(), sent);
            }
        }
    }
}
