//! A run's events: as a stream (SSE) or as pages, by `Accept`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

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
use super::viewer::{self, Viewer};
use super::wire::{EventBody, EventSchema, Page, PageInfo};
use super::{room, sse};
use crate::journal::{Journal, JournalError, RedbJournal, error_chain};
use crate::stream_tokens::Target;
use crate::streams::RunStream;

/// Events on a page when the client does not say.
pub(super) const LIMIT_DEFAULT: usize = 100;
/// Events on a page at most.
pub(super) const LIMIT_MAX: usize = 1_000;
/// Bytes of a page, whatever its limit. One event alone may be larger, up to 4 MiB and a little.
pub(super) const PAGE_BYTES_MAX: usize = 1 << 20;
/// Topics, or kinds, that a client may ask for. A workflow has no more topics.
const WORDS_MAX: usize = 64;
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
    after: Option<Position>,
    /// Only updates on these topics of the workflow, separated by commas. Events that are no updates are not affected.
    topics: Option<String>,
    /// Only events of these kinds, separated by commas. The terminal event always comes.
    kinds: Option<String>,
    /// Events on the page, 1 to 1,000; 100 when it is left out. Not for streams.
    limit: Option<usize>,
    /// Like `after`; what a page says.
    #[param(value_type = Option<u64>)]
    cursor: Option<Position>,
    /// Seconds, 0 to 60, that a page without events waits for one, or for the run's end. Not for streams.
    wait: Option<u64>,
    /// A stream token, where there is no `Authorization`.
    #[serde(rename = "token")]
    #[param(value_type = Option<String>)]
    _token: Option<serde::de::IgnoredAny>,
}

/// A place in a stream: digits and nothing else, wherever it is named.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Position(pub(super) u64);

impl TryFrom<String> for Position {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        let number = Some(&text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        number.and_then(|text| text.parse().ok()).map(Self).ok_or("a position is a number")
    }
}

/// Which events a client wants, and may have.
#[derive(Debug, Default)]
struct Filter {
    topics: Option<HashSet<String>>,
    kinds: Option<HashSet<String>>,
    /// The topics that a token is limited to.
    allowed: Option<HashSet<String>>,
    /// Whether it shows inputs, outputs and details of failures.
    shows_values: bool,
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

    /// An event as this client is shown it.
    fn body(&self, journal: &RedbJournal, key: &RunKey, recorded: &Recorded) -> Result<Box<RawValue>, Problem> {
        let body = EventBody::of(journal, key, recorded, self.shows_values)?;
        to_raw_value(&body).map_err(|_| Problem::internal())
    }
}

/// The parts of a list in a query.
pub(super) fn words(list: &str) -> Result<HashSet<String>, Problem> {
    // Counted before they are kept: a stream keeps them for as long as it is open.
    if list.split(',').count() > WORDS_MAX {
        return Err(Problem::invalid("too_many", format!("a filter has at most {WORDS_MAX} topics, or kinds")));
    }
    Ok(list.split(',').map(|word| word.trim().to_owned()).collect())
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
    let topics = words(list)?;
    match topics.iter().find(|topic| !graph.has_topic(topic)) {
        Some(topic) => Err(unknown_topic(topic)),
        None => Ok(Some(topics)),
    }
}

fn known_kinds(list: Option<&str>) -> Result<Option<HashSet<String>>, Problem> {
    let Some(list) = list else { return Ok(None) };
    let kinds = words(list)?;
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
        (status = 422, description = "`unknown_topic`, `unknown_kind`, `too_many`", body = ProblemBody),
        (status = 429, description = "`too_many_streams`, `too_many_pages`", body = ProblemBody),
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
    let after = last_event_id(headers)?.or(asked.after).or(asked.cursor).map_or(0, |Position(seq)| seq);
    let (limit, wait) = (limit(asked.limit, LIMIT_DEFAULT, LIMIT_MAX)?, wait(asked.wait)?);
    let graph = app.driver.graph(&key.tenant, &summary.workflow, summary.version)?;
    let topics = known_topics(asked.topics.as_deref(), &graph)?;
    viewer.check_topics(topics.as_ref())?;
    let filter = Filter {
        topics,
        kinds: known_kinds(asked.kinds.as_deref())?,
        allowed: viewer.topics(),
        shows_values: viewer.sees_values(),
    };
    if wants_stream(headers) {
        return follow(app, viewer, key, after, filter);
    }
    page(app, viewer, Wanted { key, after, filter: Arc::new(filter), limit }, wait).await
}

/// Whether a stream is asked for, and not a page: one of the types that are accepted is a stream's, and not with `q=0`.
pub(super) fn wants_stream(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_stream = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("text/event-stream"));
        let weight =
            parts.find_map(|part| part.split_once('=').filter(|(name, _)| name.trim().eq_ignore_ascii_case("q")));
        is_stream && weight.is_none_or(|(_, weight)| weight.trim().parse().is_ok_and(|weight: f32| weight > 0.0))
    })
}

/// How long a page may wait.
pub(super) fn wait(seconds: Option<u64>) -> Result<Duration, Problem> {
    match seconds.unwrap_or(0) {
        seconds @ 0..=WAIT_SECONDS_MAX => Ok(Duration::from_secs(seconds)),
        _ => Err(Problem::bad_request("invalid_query", format!("wait is 0 to {WAIT_SECONDS_MAX} seconds"))),
    }
}

/// Where whoever comes back goes on.
pub(super) fn last_event_id(headers: &HeaderMap) -> Result<Option<Position>, Problem> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let position = value.to_str().ok().and_then(|text| Position::try_from(text.to_owned()).ok());
    let refusal = || Problem::bad_request("invalid_query", "Last-Event-ID is the id of a frame, a number");
    position.map(Some).ok_or_else(refusal)
}

/// Shows all events of a run, oldest first, to `see`, without holding more than a part of them. Reading a long run takes
/// a while, so this is not done where others wait.
pub(super) async fn fold<T: Send + 'static>(
    app: &App,
    key: &RunKey,
    mut view: T,
    see: impl Fn(&mut T, &Recorded) + Send + 'static,
) -> Result<T, Problem> {
    let (journal, key, stopping) = (Arc::clone(&app.journal), key.clone(), app.stopping.clone());
    let fold = move || {
        let mut last_seq = 0;
        while !stopping.is_cancelled() {
            let page = journal.read(&key, last_seq, READ_BYTES)?;
            let Some(last) = page.last() else { return Ok(view) };
            last_seq = last.seq;
            page.iter().for_each(|recorded| see(&mut view, recorded));
        }
        // A history can take longer than a host that stops has time for.
        Err(Problem::unavailable("the host is stopping"))
    };
    tokio::task::spawn_blocking(fold).await.map_err(|_| Problem::internal())?
}

/// What a page is to have.
#[derive(Clone)]
struct Wanted {
    key: RunKey,
    after: Seq,
    filter: Arc<Filter>,
    limit: usize,
}

/// What a page has.
struct Found {
    data: Vec<Box<RawValue>>,
    cursor: Seq,
    has_more: bool,
}

/// A page; without an event on it, it waits for one.
async fn page(app: &App, viewer: &Viewer, mut wanted: Wanted, wait: Duration) -> Result<Response, Problem> {
    let until = Instant::now() + wait;
    let _waits = (!wait.is_zero()).then(|| room::for_stream(app, &viewer.tenant)).transpose()?;
    // The listener stands before the first read, and the run is still there when it stands.
    let mut tail = app.journal.tail(&wanted.key)?;
    app.journal.summary(&wanted.key)?.ok_or_else(Problem::unknown_run)?;
    loop {
        let state = tail.state();
        let room = room::for_page(app, &viewer.tenant).await?;
        let (journal, part) = (Arc::clone(&app.journal), wanted.clone());
        let (room, found) = room::read_in(room, move || read(&journal, &part)).await?;
        viewer.check_still()?;
        wanted.after = found.cursor;
        let is_over = !found.data.is_empty() || Instant::now() >= until || (state.ended && !found.has_more);
        // Whoever waits holds no room that others need.
        let room = Some(room).filter(|_| is_over);
        let beyond = wanted.after.max(state.last_seq);
        if is_over || (!found.has_more && !waits(app, viewer, until, tail.beyond(beyond)).await?) {
            let page =
                PageInfo { cursor: Some(found.cursor.to_string()), has_more: found.has_more, limit: wanted.limit };
            return room::answer(room, &Page { data: found.data, page });
        }
    }
}

/// Waits for something, but not beyond a time, nor for longer than the host goes on. Whether it has come. Refuses whoever
/// may not wait any more.
pub(super) async fn waits<T>(
    app: &App,
    viewer: &Viewer,
    until: Instant,
    what: impl Future<Output = T>,
) -> Result<bool, Problem> {
    let has_come = tokio::select! {
        _ = what => true,
        () = tokio::time::sleep_until(until) => false,
        () = app.stopping.cancelled() => false,
        () = viewer.revoked().cancelled() => false,
    };
    viewer.check_still()?;
    Ok(has_come)
}

fn read(journal: &RedbJournal, wanted: &Wanted) -> Result<Found, Problem> {
    let Wanted { key, after, filter, limit } = wanted;
    let mut found = Found { data: Vec::new(), cursor: *after, has_more: false };
    let mut size = 0;
    for _ in 0..READS_MAX {
        let page = journal.read(key, found.cursor, READ_BYTES)?;
        if page.is_empty() {
            return Ok(found);
        }
        for recorded in &page {
            if filter.wants(&recorded.event) {
                let is_full = found.data.len() == *limit;
                let body = if is_full { None } else { Some(filter.body(journal, key, recorded)?) };
                // An event that would make the page too large is the first of the next one.
                let Some(body) = body.filter(|body| size == 0 || size + body.get().len() <= PAGE_BYTES_MAX) else {
                    found.has_more = true;
                    return Ok(found);
                };
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
    // Now that the listener stands: a run that was deleted just before would never move.
    app.journal.summary(&key)?.ok_or_else(Problem::unknown_run)?;
    if stream.is_at_end() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let journal = Arc::clone(&app.journal);
    let subscriber = Subscriber { journal, key, stream, filter, waiting: None };
    Ok(sse::answer(room::for_stream(app, &viewer.tenant)?, viewer.ends(app), subscriber))
}

impl Subscriber {
    /// The next frame of what was read, if it has one. An error is in the log.
    fn of_page(&mut self) -> Result<Option<Frame>, ()> {
        while let Some((page, place)) = &mut self.waiting {
            let Some(recorded) = page.get(*place) else {
                self.waiting = None;
                break;
            };
            *place += 1;
            if self.filter.wants(&recorded.event) {
                let body = self.filter.body(&self.journal, &self.key, recorded).map_err(drop)?;
                let frame = Frame::default().id(recorded.seq.to_string()).event(recorded.event.kind());
                return Ok(Some(frame.data(body.get())));
            }
        }
        Ok(None)
    }
}

impl sse::Source for Subscriber {
    async fn next(&mut self) -> Option<Frame> {
        loop {
            let had_page = self.waiting.is_some();
            // A value that cannot be read ends the stream: a gap would be a lie.
            if let Some(frame) = self.of_page().ok()? {
                return Some(frame);
            }
            if had_page {
                tokio::task::yield_now().await; // a filter that matches little must not hold up others
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
