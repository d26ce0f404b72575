//! A run's events: as a stream (SSE) or as pages, by `Accept`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json as Answer;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::sse::Event as Frame;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use stepwell_core::{Event, Graph, Recorded, RunKey, Seq};
use tokio::time::Instant;
use utoipa::IntoParams;

use super::App;
use super::auth::Segments;
use super::problem::{Problem, ProblemBody};
use super::runs::{limit, query};
use super::sse;
use super::viewer::{self, Viewer};
use super::wire::{EventBody, EventSchema, Page, PageInfo};
use crate::journal::{Journal, JournalError, RedbJournal, error_chain};
use crate::stream_tokens::Target;
use crate::streams::RunStream;

/// Events on a page when the client does not say.
pub(super) const LIMIT_DEFAULT: usize = 100;
/// Events on a page at most.
pub(super) const LIMIT_MAX: usize = 1_000;
/// Bytes after which a page ends, whatever its limit. An event has 4 MiB at most, so a page has twelve.
pub(super) const PAGE_BYTES_MAX: usize = 8 << 20;
/// Stored bytes that are read at once.
const READ_BYTES: usize = 1 << 20;
/// Reads for one page at most.
pub(super) const READS_MAX: usize = 16;
/// The longest that a page waits for its first event. Proxies cut connections that are silent for longer.
const WAIT_SECONDS_MAX: u64 = 60;

/// Which events, and from where.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Only events after this one. `Last-Event-ID` wins.
    #[param(value_type = Option<u64>)]
    after: Option<Seq>,
    /// Only updates on these topics of the workflow, separated by commas. Events that are no updates are not affected.
    topics: Option<String>,
    /// Only events of these kinds, separated by commas. The terminal event always comes.
    kinds: Option<String>,
    /// Events on the page, 1 to 1,000; 100 when it is left out. Not for streams.
    limit: Option<usize>,
    /// Like `after`; what a page says.
    #[param(value_type = Option<u64>)]
    cursor: Option<Seq>,
    /// Seconds, 0 to 60, that a page without events waits for one, or for the run's end. Not for streams.
    wait: Option<u64>,
    /// A stream token, where there is no `Authorization`.
    #[serde(rename = "token")]
    #[param(value_type = Option<String>)]
    _token: Option<serde::de::IgnoredAny>,
}

/// Which events a client wants, and may have.
#[derive(Debug, Default)]
struct Filter {
    topics: Option<HashSet<String>>,
    kinds: Option<HashSet<String>>,
    /// The topics that a token is limited to.
    allowed: Option<HashSet<String>>,
}

impl Filter {
    fn wants(&self, event: &Event) -> bool {
        if event.is_terminal() {
            return true; // without it a client could not tell the end from a cut connection
        }
        let has = |topics: &Option<HashSet<String>>, topic| topics.as_ref().is_none_or(|topics| topics.contains(topic));
        let topic = match event {
            Event::StepUpdate { topic, .. } => has(&self.topics, topic) && has(&self.allowed, topic),
            // What steps write and ask for besides, and what the run was told, is not for whoever has a few topics.
            Event::StepLog { .. }
            | Event::StepCall { .. }
            | Event::StepArtifact { .. }
            | Event::SignalReceived { .. } => self.allowed.is_none(),
            _ => true,
        };
        topic && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(event.kind()))
    }
}

/// The parts of a list in a query.
pub(super) fn words(list: &str) -> HashSet<String> {
    list.split(',').map(|word| word.trim().to_owned()).collect()
}

/// A topic that the workflow does not have.
pub(super) fn unknown_topic(topic: &str) -> Problem {
    Problem::invalid("unknown_topic", "the workflow has no such topic").with("topic", clipped(topic))
}

/// What a client sent, for an answer: not more of it than a name has.
fn clipped(text: &str) -> &str {
    text.get(..text.floor_char_boundary(64)).unwrap_or_default()
}

fn known_topics(list: Option<&str>, graph: &Graph) -> Result<Option<HashSet<String>>, Problem> {
    let Some(list) = list else { return Ok(None) };
    let topics = words(list);
    match topics.iter().find(|topic| !graph.has_topic(topic)) {
        Some(topic) => Err(unknown_topic(topic)),
        None => Ok(Some(topics)),
    }
}

fn known_kinds(list: Option<&str>) -> Result<Option<HashSet<String>>, Problem> {
    let Some(list) = list else { return Ok(None) };
    let kinds = words(list);
    match kinds.iter().find(|kind| !Event::KINDS.contains(&kind.as_str())) {
        Some(kind) => Err(Problem::invalid("unknown_kind", "there are no such events").with("kind", clipped(kind))),
        None => Ok(Some(kinds)),
    }
}

/// The events of a run: `text/event-stream` follows it to its end, anything else gets a page of JSON.
#[utoipa::path(get, path = "/v1/runs/{id}/events", tag = "streams",
    params(
        ("id" = String, Path, description = "The run's id."),
        ("Last-Event-ID" = Option<u64>, Header, description = "Only events after this one."),
        EventsQuery,
    ),
    responses(
        (status = 200, description = "A page, or with `Accept: text/event-stream` a stream: `id` is the event's seq, `event` its kind, `data` the event. The terminal event is the last.", body = Page<EventSchema>),
        (status = 204, description = "A stream was asked for and nothing follows: the run has ended. A browser stops connecting again."),
        (status = 400, description = "`invalid_query`", body = ProblemBody),
        (status = 401, description = "`unauthorized`, `invalid_token`, `expired_token`", body = ProblemBody),
        (status = 403, description = "`out_of_scope`", body = ProblemBody),
        (status = 404, description = "`unknown_run`", body = ProblemBody),
        (status = 410, description = "`history_truncated`, with `first_seq`", body = ProblemBody),
        (status = 422, description = "`unknown_topic`, `unknown_kind`", body = ProblemBody),
        (status = 429, description = "`too_many_streams`", body = ProblemBody),
    ))]
pub(super) async fn get(
    State(app): State<App>,
    id: Result<Segments<String>, Problem>,
    uri: Uri,
    asked: Result<Query<EventsQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Response {
    match Viewer::of(&app, &headers, &uri) {
        Ok(viewer) => {
            let answer = answer(&app, &viewer, id, asked, &headers).await;
            viewer::finish(&app, &headers, Some(&viewer.tenant), answer)
        }
        Err(denied) => viewer::finish(&app, &headers, denied.tenant.as_ref(), Err(denied.problem)),
    }
}

async fn answer(
    app: &App,
    viewer: &Viewer,
    id: Result<Segments<String>, Problem>,
    asked: Result<Query<EventsQuery>, axum::extract::rejection::QueryRejection>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let Segments(id) = id?;
    let run = id.parse().map_err(|_| Problem::unknown_run())?;
    let key = RunKey { tenant: viewer.tenant.clone(), run };
    if !viewer.may_open(&Target::Run(run)) {
        return Err(Problem::unknown_run());
    }
    let asked = query(asked)?;
    let summary = app.journal.summary(&key)?.ok_or_else(Problem::unknown_run)?;
    let after = last_event_id(headers)?.or(asked.after).or(asked.cursor).unwrap_or(0);
    let graph = app.driver.graph(&key.tenant, &summary.workflow, summary.version)?;
    let topics = known_topics(asked.topics.as_deref(), &graph)?;
    viewer.check_topics(topics.as_ref())?;
    let filter = Filter { topics, kinds: known_kinds(asked.kinds.as_deref())?, allowed: viewer.topics() };
    if wants_stream(headers) {
        return follow(app, viewer, key, after, filter);
    }
    let wait = wait(asked.wait)?;
    let _room = (!wait.is_zero()).then(|| sse::room(app, &viewer.tenant)).transpose()?;
    page(app, &key, after, &filter, limit(asked.limit, LIMIT_DEFAULT, LIMIT_MAX)?, wait).await
}

/// Whether a stream is asked for, and not a page.
pub(super) fn wants_stream(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/event-stream"))
}

/// How long a page may wait.
pub(super) fn wait(seconds: Option<u64>) -> Result<Duration, Problem> {
    match seconds.unwrap_or(0) {
        seconds @ 0..=WAIT_SECONDS_MAX => Ok(Duration::from_secs(seconds)),
        _ => Err(Problem::bad_request("invalid_query", format!("wait is 0 to {WAIT_SECONDS_MAX} seconds"))),
    }
}

/// Where whoever comes back goes on.
pub(super) fn last_event_id(headers: &HeaderMap) -> Result<Option<Seq>, Problem> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let seq = text.and_then(|text| text.parse().ok());
    seq.map(Some).ok_or_else(|| Problem::bad_request("invalid_query", "Last-Event-ID is the id of a frame, a number"))
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

/// What a page has.
struct Found {
    data: Vec<Box<RawValue>>,
    cursor: Seq,
    has_more: bool,
}

/// A page; without an event on it, it waits for one.
async fn page(
    app: &App,
    key: &RunKey,
    after: Seq,
    filter: &Filter,
    limit: usize,
    wait: Duration,
) -> Result<Response, Problem> {
    let until = Instant::now() + wait;
    // The listener stands before the first read.
    let mut tail = app.journal.tail(key)?;
    let mut from = after;
    let mut found = loop {
        let state = tail.state();
        let found = read(app, key, from, filter, limit)?;
        from = found.cursor;
        let is_over = !found.data.is_empty() || Instant::now() >= until;
        if is_over || (state.ended && !found.has_more) {
            break found;
        }
        if !found.has_more && !waits(app, until, tail.beyond(from.max(state.last_seq))).await {
            break found;
        }
        tokio::task::yield_now().await; // a filter that matches little must not hold up others
    };
    let data = std::mem::take(&mut found.data);
    let page = PageInfo { cursor: Some(found.cursor.to_string()), has_more: found.has_more, limit };
    Ok(Answer(Page { data, page }).into_response())
}

/// Waits for something, but not beyond a time, nor for longer than the host goes on. Whether it has come.
pub(super) async fn waits<T>(app: &App, until: Instant, what: impl Future<Output = T>) -> bool {
    tokio::select! {
        _ = what => true,
        () = tokio::time::sleep_until(until) => false,
        () = app.stopping.cancelled() => false,
    }
}

fn read(app: &App, key: &RunKey, after: Seq, filter: &Filter, limit: usize) -> Result<Found, Problem> {
    let mut found = Found { data: Vec::new(), cursor: after, has_more: false };
    let mut size = 0;
    for _ in 0..READS_MAX {
        let page = app.journal.read(key, found.cursor, READ_BYTES)?;
        if page.is_empty() {
            return Ok(found);
        }
        for recorded in &page {
            if filter.wants(&recorded.event) {
                if found.data.len() == limit || size >= PAGE_BYTES_MAX {
                    found.has_more = true;
                    return Ok(found);
                }
                let body = EventBody::of(&*app.journal, key, recorded)?;
                let body = to_raw_value(&body).map_err(|_| Problem::internal())?;
                size += body.get().len();
                found.data.push(body);
            }
            found.cursor = recorded.seq;
        }
    }
    found.has_more = true; // a filter that matches little makes a short page instead of a long wait
    Ok(found)
}

/// A subscriber: where it is, and what it still has to send.
struct Subscriber {
    journal: Arc<RedbJournal>,
    key: RunKey,
    stream: RunStream<RedbJournal>,
    filter: Filter,
    /// What it still has to send, from a place on. Gone when it has been sent: whoever waits holds nothing.
    waiting: Option<(Arc<[Recorded]>, usize)>,
}

fn follow(app: &App, viewer: &Viewer, key: RunKey, after: Seq, filter: Filter) -> Result<Response, Problem> {
    let stream = RunStream::new(app.journal.clone(), key.clone(), after)?;
    if stream.is_at_end() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let journal = Arc::clone(&app.journal);
    let subscriber = Subscriber { journal, key, stream, filter, waiting: None };
    Ok(sse::answer(app, sse::room(app, &viewer.tenant)?, viewer.revoked(), subscriber))
}

impl sse::Source for Subscriber {
    async fn next(&mut self) -> Option<Frame> {
        loop {
            while let Some((page, place)) = &mut self.waiting {
                let Some(recorded) = page.get(*place) else {
                    self.waiting = None;
                    break;
                };
                *place += 1;
                if self.filter.wants(&recorded.event) {
                    // A value that cannot be read ends the stream: a gap would be a lie. The log says why.
                    let body = EventBody::of(&*self.journal, &self.key, recorded).ok()?;
                    let data = serde_json::to_string(&body).ok()?;
                    return Some(Frame::default().id(recorded.seq.to_string()).event(recorded.event.kind()).data(data));
                }
            }
            match self.stream.next().await {
                Ok(page) => self.waiting = Some((page?, 0)),
                // Whoever comes back is told where the history begins.
                Err(JournalError::Truncated { .. }) => return None,
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::error!(run = %self.key, error, "a stream ended because the journal could not be read");
                    return None;
                }
            }
        }
    }
}
