//! A run's events: as a stream (SSE) or as pages, by `Accept`.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json as Answer;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use stepwell_core::{Event, Recorded, RunKey, Seq};
use utoipa::IntoParams;

use super::App;
use super::auth::{Segments, Tenant};
use super::problem::{Problem, ProblemBody};
use super::runs::{limit, query};
use super::wire::{EventBody, EventSchema, Page, PageInfo};
use crate::journal::{Journal, JournalError, RedbJournal};
use crate::streams::RunStream;

/// A comment goes out this often when there is nothing else to say: proxies cut silent connections after a minute or
/// less.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// What a browser waits before it connects again.
const RETRY: Duration = Duration::from_secs(1);
/// Events on a page when the client does not say.
const LIMIT_DEFAULT: usize = 100;
/// Events on a page at most.
const LIMIT_MAX: usize = 1_000;
/// Bytes after which a page ends, whatever its limit. An event has 4 MiB at most, so a page has twelve.
const PAGE_BYTES_MAX: usize = 8 << 20;
/// Stored bytes that are read at once.
const READ_BYTES: usize = 1 << 20;
/// Reads for one page at most.
const READS_MAX: usize = 16;

/// Which events, and from where.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Only events after this one. `Last-Event-ID` wins.
    after: Option<Seq>,
    /// Only updates on these topics, separated by commas. Events that are no updates are not affected.
    topics: Option<String>,
    /// Only events of these kinds, separated by commas. The terminal event always comes.
    kinds: Option<String>,
    /// Events on the page, 1 to 1,000; 100 when it is left out. Not for streams.
    limit: Option<usize>,
    /// Like `after`; what a page says.
    cursor: Option<Seq>,
}

/// Which events a client wants.
#[derive(Debug, Default)]
struct Filter {
    topics: Option<HashSet<String>>,
    kinds: Option<HashSet<String>>,
}

impl Filter {
    fn wants(&self, event: &Event) -> bool {
        if event.is_terminal() {
            return true; // without it a client could not tell the end from a cut connection
        }
        let topic = match event {
            Event::StepUpdate { topic, .. } => self.topics.as_ref().is_none_or(|topics| topics.contains(topic)),
            _ => true,
        };
        topic && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(event.kind()))
    }
}

/// The events of a run: `text/event-stream` follows it to its end, anything else gets a page of JSON.
#[utoipa::path(get, path = "/v1/runs/{id}/events", tag = "runs",
    params(
        ("id" = String, Path, description = "The run's id."),
        ("Last-Event-ID" = Option<Seq>, Header, description = "Only events after this one."),
        EventsQuery,
    ),
    responses(
        (status = 200, description = "A page, or with `Accept: text/event-stream` a stream: `id` is the event's seq, `event` its kind, `data` the event. The terminal event is the last.", body = Page<EventSchema>),
        (status = 204, description = "A stream was asked for and nothing follows: the run has ended. A browser stops connecting again."),
        (status = 404, description = "`unknown_run`", body = ProblemBody),
    ))]
pub(super) async fn get(
    State(app): State<App>,
    tenant: Tenant,
    Segments(id): Segments<String>,
    asked: Result<Query<EventsQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let key = tenant.run(&id)?;
    let asked = query(asked)?;
    app.journal.summary(&key)?.ok_or_else(Problem::unknown_run)?;
    let after = last_event_id(&headers)?.or(asked.after).or(asked.cursor).unwrap_or(0);
    let words = |list: String| list.split(',').map(|word| word.trim().to_owned()).collect();
    let filter = Filter { topics: asked.topics.map(words), kinds: asked.kinds.map(words) };
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("text/event-stream") {
        follow(app, key, after, filter)
    } else {
        page(&app, &key, after, &filter, limit(asked.limit, LIMIT_DEFAULT, LIMIT_MAX)?)
    }
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<Seq>, Problem> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let seq = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    seq.map(Some).ok_or_else(|| Problem::bad_request("invalid_query", "Last-Event-ID is the seq of an event"))
}

/// Shows all events of a run, oldest first, to `see`, without holding more than a part of them. Reading a long run takes
/// a while, so this is not done where others wait.
pub(super) async fn fold<T: Send + 'static>(
    app: &App,
    key: &RunKey,
    mut view: T,
    see: impl Fn(&mut T, &Recorded) + Send + 'static,
) -> Result<T, Problem> {
    let (journal, key) = (Arc::clone(&app.journal), key.clone());
    let fold = move || {
        let mut last_seq = 0;
        loop {
            let page = journal.read(&key, last_seq, READ_BYTES)?;
            let Some(last) = page.last() else { return Ok(view) };
            last_seq = last.seq;
            page.iter().for_each(|recorded| see(&mut view, recorded));
        }
    };
    let folded: Result<T, JournalError> = tokio::task::spawn_blocking(fold).await.map_err(|_| Problem::internal())?;
    Ok(folded?)
}

fn page(app: &App, key: &RunKey, after: Seq, filter: &Filter, limit: usize) -> Result<Response, Problem> {
    let mut data: Vec<Box<RawValue>> = Vec::new();
    let mut size = 0;
    let mut cursor = after;
    let mut reads = 0;
    let has_more = 'pages: loop {
        let page = app.journal.read(key, cursor, READ_BYTES)?;
        if page.is_empty() {
            break false;
        }
        reads += 1;
        for recorded in &page {
            if filter.wants(&recorded.event) {
                if data.len() == limit || size >= PAGE_BYTES_MAX {
                    break 'pages true;
                }
                let body = EventBody::of(&*app.journal, key, recorded)?;
                let body = to_raw_value(&body).map_err(|_| Problem::internal())?;
                size += body.get().len();
                data.push(body);
            }
            cursor = recorded.seq;
        }
        if reads == READS_MAX {
            break true; // a filter that matches little makes a short page instead of a long wait
        }
    };
    let page = PageInfo { cursor: Some(cursor.to_string()), has_more, limit };
    Ok(Answer(Page { data, page }).into_response())
}

/// A subscriber: where it is, and what it still has to send.
struct Subscriber {
    app: App,
    key: RunKey,
    stream: RunStream<RedbJournal>,
    filter: Filter,
    waiting: std::vec::IntoIter<Recorded>,
}

fn follow(app: App, key: RunKey, after: Seq, filter: Filter) -> Result<Response, Problem> {
    let stream = RunStream::new(app.journal.clone(), key.clone(), after)?;
    if stream.is_at_end() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let hello = stream::iter([Ok(Frame::default().retry(RETRY))]);
    let subscriber = Subscriber { app, key, stream, filter, waiting: Vec::new().into_iter() };
    let frames = futures_util::StreamExt::chain(hello, frames(subscriber));
    let mut response =
        Sse::new(frames).keep_alive(KeepAlive::new().interval(KEEPALIVE).text("keepalive")).into_response();
    // nginx and others collect responses before they pass them on, unless told not to.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

fn frames(subscriber: Subscriber) -> impl Stream<Item = Result<Frame, Infallible>> {
    stream::unfold(subscriber, |mut this| async move {
        loop {
            while let Some(recorded) = this.waiting.next() {
                if this.filter.wants(&recorded.event) {
                    // A value that cannot be read ends the stream: a gap would be a lie. The log says why.
                    let body = EventBody::of(&*this.app.journal, &this.key, &recorded).ok()?;
                    let data = serde_json::to_string(&body).ok()?;
                    let frame = Frame::default().id(recorded.seq.to_string()).event(recorded.event.kind()).data(data);
                    return Some((Ok(frame), this));
                }
            }
            let next = tokio::select! {
                next = this.stream.next() => next,
                // A closed stream is not the end of the run: the client connects again, to the next process.
                () = this.app.stopping.cancelled() => return None,
            };
            match next {
                Ok(Some(page)) => this.waiting = page.into_iter(),
                Ok(None) => return None,
                Err(error) => {
                    tracing::error!(run = %this.key, %error, "a stream ended because the journal could not be read");
                    return None;
                }
            }
        }
    })
}
