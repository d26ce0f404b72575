//! A channel: what the runs of many workflows publish, in one order. As a stream (SSE) or as pages, by `Accept`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use axum::response::sse::Event as Frame;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use stepwell_core::ids::is_word;
use stepwell_core::{RunId, RunKey, WorkflowName};
use tokio::time::Instant;
use utoipa::IntoParams;

use super::App;
use super::auth::Segments;
use super::events::{
    LIMIT_DEFAULT, LIMIT_MAX, PAGE_BYTES_MAX, Position, last_event_id, unknown_topic, wait, waits, words,
};
use super::problem::{Problem, ProblemBody};
use super::runs::{checked_correlation, limit, query};
use super::viewer::{self, Viewer};
use super::wire::{ChannelEventBody, ChannelEventSchema, Page, PageInfo};
use super::{room, sse};
use crate::journal::channels::{ChannelEntry, ChannelFilter, ChannelKey, ChannelPage};
use crate::journal::{JournalError, RedbJournal, error_chain};
use crate::stream_tokens::Target;
use crate::streams::ChannelStream;

/// Stored bytes that are read for a page at most. An update of 64 KiB and more is stored apart, so a page can become
/// larger; then it ends early.
const READ_BYTES: usize = 1 << 20;

/// Entries that a follower is not told of, because it wants none of them, before it is told how far they go. Otherwise it
/// would come back to a place that may be gone by then, and all of them would be read again.
const UNTOLD_MAX: u64 = 256;

/// Which entries, and from where.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ChannelQuery {
    /// Only entries after this one; without it, from the first that exists. `Last-Event-ID` wins.
    #[param(value_type = Option<u64>)]
    after: Option<Position>,
    /// Only those of this run.
    #[param(value_type = Option<String>)]
    run: Option<RunId>,
    /// Only those of runs of this workflow.
    #[param(value_type = Option<String>)]
    workflow: Option<WorkflowName>,
    /// Only those of runs that were started with this `Stepwell-Correlation`.
    correlation: Option<String>,
    /// Only updates on these topics, separated by commas. Rollbacks and ends of runs are not affected.
    topics: Option<String>,
    /// Entries on the page, 1 to 1,000; 100 when it is left out. Not for streams.
    limit: Option<usize>,
    /// Like `after`; what a page says.
    #[param(value_type = Option<u64>)]
    cursor: Option<Position>,
    /// Seconds, 0 to 60, that a page without entries waits for one. Not for streams.
    wait: Option<u64>,
    /// A stream token, where there is no `Authorization`.
    #[serde(rename = "token")]
    #[param(value_type = Option<String>)]
    _token: Option<serde::de::IgnoredAny>,
}

/// What happens in all runs whose workflow names this channel: their updates, their rollbacks and their ends.
/// `text/event-stream` follows it for as long as the client wants, anything else gets a page of JSON.
#[utoipa::path(get, path = "/v1/channels/{name}/events", tag = "streams",
    params(
        ("name" = String, Path, description = "The channel's name. One that nothing has come to yet is empty."),
        ("Last-Event-ID" = Option<u64>, Header, description = "Only entries after this one."),
        ChannelQuery,
    ),
    responses(
        (status = 200, description = "A page, or with `Accept: text/event-stream` a stream: `id` is the entry's cursor, `event` its kind, `data` the entry. A frame with an `id` alone says how far the channel was looked at.", body = Page<ChannelEventSchema>),
        (status = 400, description = "`invalid_query`", body = ProblemBody),
        (status = 401, description = "`unauthorized`, `invalid_token`, `expired_token`", body = ProblemBody),
        (status = 403, description = "`out_of_scope`", body = ProblemBody),
        (status = 404, description = "`unknown_channel`", body = ProblemBody),
        (status = 410, description = "`history_truncated`, with `first_seq`: the first cursor that exists", body = ProblemBody),
        (status = 422, description = "`unknown_topic`, `invalid_correlation`, `too_many`", body = ProblemBody),
        (status = 429, description = "`too_many_streams`, `too_many_pages`", body = ProblemBody),
    ))]
pub(super) async fn get(
    State(app): State<App>,
    name: Result<Segments<String>, Problem>,
    uri: Uri,
    asked: Result<Query<ChannelQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Response {
    match Viewer::of(&app, &headers, &uri) {
        Ok(viewer) => {
            let answer = answer(&app, &viewer, name, asked, &headers).await;
            viewer::finish(&app, &headers, Some(&viewer.tenant), answer)
        }
        Err(denied) => viewer::finish(&app, &headers, denied.tenant.as_ref(), Err(denied.problem)),
    }
}

async fn answer(
    app: &App,
    viewer: &Viewer,
    name: Result<Segments<String>, Problem>,
    asked: Result<Query<ChannelQuery>, axum::extract::rejection::QueryRejection>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let Segments(channel) = name?;
    if !is_word(&channel) || !viewer.may_open(&Target::Channel(channel.clone())) {
        return Err(Problem::unknown_channel());
    }
    let asked = query(asked)?;
    let after = last_event_id(headers)?.or(asked.after).or(asked.cursor).map(|Position(cursor)| cursor);
    let (limit, wait) = (limit(asked.limit, LIMIT_DEFAULT, LIMIT_MAX)?, wait(asked.wait)?);
    let topics = asked.topics.as_deref().map(words).transpose()?;
    if let Some(topic) = topics.iter().flatten().find(|topic| !is_word(topic)) {
        return Err(unknown_topic(topic)); // nobody can have it
    }
    asked.correlation.as_deref().map_or(Ok(()), checked_correlation)?;
    viewer.check_topics(topics.as_ref())?;
    let topics = topics.or_else(|| viewer.topics());
    let mut filter = ChannelFilter { run: asked.run, workflow: asked.workflow, correlation: asked.correlation, topics };
    viewer.narrow(&mut filter)?;
    let key = ChannelKey { tenant: viewer.tenant.clone(), channel };
    let shows_values = viewer.sees_values();
    if super::events::wants_stream(headers) {
        let stream = ChannelStream::new(Arc::clone(&app.journal), key.clone(), filter, after)?;
        let told = stream.after();
        let journal = Arc::clone(&app.journal);
        let follower = Follower { journal, key, stream, shows_values, waiting: None, told };
        return Ok(sse::answer(room::for_stream(app, &viewer.tenant)?, viewer.ends_with_token(app), follower));
    }
    page(app, viewer, Wanted { key, filter: Arc::new(filter), after, limit, shows_values }, wait).await
}

/// What a page is to have.
#[derive(Clone)]
struct Wanted {
    key: ChannelKey,
    filter: Arc<ChannelFilter>,
    /// `None`: from the beginning, wherever that is.
    after: Option<u64>,
    limit: usize,
    shows_values: bool,
}

/// What a page has.
struct Found {
    data: Vec<Box<RawValue>>,
    cursor: u64,
    has_more: bool,
}

/// A page; without an entry on it, it waits for one.
async fn page(app: &App, viewer: &Viewer, mut wanted: Wanted, wait: Duration) -> Result<Response, Problem> {
    let until = Instant::now() + wait;
    let _waits = (!wait.is_zero()).then(|| room::for_stream(app, &viewer.tenant)).transpose()?;
    // The listener stands before the first read.
    let mut tail = app.journal.channel_tail(&wanted.key)?;
    loop {
        let room = room::for_page(app, &viewer.tenant).await?;
        let (journal, part) = (Arc::clone(&app.journal), wanted.clone());
        let (room, found) = room::read_in(room, move || read(&journal, &part)).await?;
        viewer.check_still()?;
        wanted.after = Some(found.cursor);
        let is_over = !found.data.is_empty() || Instant::now() >= until;
        // Whoever waits holds no room that others need.
        let room = Some(room).filter(|_| is_over);
        if is_over || (!found.has_more && !waits(app, viewer, until, tail.beyond(found.cursor)).await?) {
            let page =
                PageInfo { cursor: Some(found.cursor.to_string()), has_more: found.has_more, limit: wanted.limit };
            return room::answer(room, &Page { data: found.data, page });
        }
    }
}

fn read(journal: &RedbJournal, wanted: &Wanted) -> Result<Found, Problem> {
    let page = part(journal, wanted)?;
    let mut found = Found { data: Vec::new(), cursor: page.cursor, has_more: page.has_more };
    let mut size = 0;
    for entry in &page.entries {
        let body = shown(journal, &wanted.key, entry, wanted.shows_values)?;
        // An entry that would make the page too large is the first of the next one.
        if size > 0 && size + body.get().len() > PAGE_BYTES_MAX {
            (found.cursor, found.has_more) = (entry.cursor - 1, true);
            break;
        }
        size += body.get().len();
        found.data.push(body);
    }
    Ok(found)
}

fn part(journal: &RedbJournal, wanted: &Wanted) -> Result<ChannelPage, JournalError> {
    let Wanted { key, filter, after, limit, .. } = wanted;
    loop {
        let from = match after {
            Some(after) => *after,
            None => journal.channel_bounds(key)?.0 - 1,
        };
        match journal.channel(key, filter, from, *limit, READ_BYTES) {
            // The beginning has moved since; whoever did not name it need not know.
            Err(JournalError::Truncated { .. }) if after.is_none() => {}
            page => return page,
        }
    }
}

/// An entry as a client is shown it.
fn shown(
    journal: &RedbJournal,
    key: &ChannelKey,
    entry: &ChannelEntry,
    shows_values: bool,
) -> Result<Box<RawValue>, Problem> {
    let run = RunKey { tenant: key.tenant.clone(), run: entry.run };
    let body = match ChannelEventBody::of(journal, &run, entry, shows_values) {
        Ok(body) => to_raw_value(&body),
        // Its run was deleted after the entry was read, so the channel begins further on.
        Err(gone) if gone.code() == "unknown_run" => {
            return Err(JournalError::Truncated { first_seq: journal.channel_bounds(key)?.0 }.into());
        }
        Err(problem) => return Err(problem),
    };
    body.map_err(|_| Problem::internal())
}

/// A subscriber: where it is, and what it still has to send.
struct Follower {
    journal: Arc<RedbJournal>,
    key: ChannelKey,
    stream: ChannelStream,
    shows_values: bool,
    /// Gone when it has been sent: whoever waits holds nothing.
    waiting: Option<std::vec::IntoIter<ChannelEntry>>,
    /// The last `id` that went out, or where it began.
    told: u64,
}

impl Follower {
    fn frame(&mut self, entry: &ChannelEntry) -> Option<Frame> {
        // A value that cannot be read ends the stream: a gap would be a lie. The log says why.
        let body = shown(&self.journal, &self.key, entry, self.shows_values).ok()?;
        self.told = entry.cursor;
        let frame = Frame::default().id(entry.cursor.to_string()).event(entry.recorded.event.kind());
        Some(frame.data(body.get()))
    }
}

impl sse::Source for Follower {
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(entry) = self.waiting.as_mut().and_then(Iterator::next) {
                return self.frame(&entry);
            }
            self.waiting = None;
            let after = self.stream.after();
            if after >= self.told.saturating_add(UNTOLD_MAX) {
                // Nothing was wanted of all this. It comes back to here, and not to where something was.
                self.told = after;
                return Some(Frame::default().id(after.to_string()));
            }
            match self.stream.next().await {
                Ok(page) if page.entries.is_empty() => tokio::task::yield_now().await, // others wait, too
                Ok(page) => self.waiting = Some(page.entries.into_iter()),
                // Whoever comes back is told where the history begins.
                Err(JournalError::Truncated { .. }) => return None,
                Err(error) => {
                    let (channel, error) = (&self.key.channel, error_chain(&error));
                    tracing::error!(channel, error, "a stream ended because the journal could not be read");
                    return None;
                }
            }
        }
    }
}
