//! A channel: what the runs of many workflows publish, in one order. As a stream (SSE) or as pages, by `Accept`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json as Answer;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Uri};
use axum::response::sse::Event as Frame;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use stepwell_core::ids::is_word;
use stepwell_core::{RunId, RunKey, WorkflowName};
use tokio::time::Instant;
use utoipa::IntoParams;

use super::App;
use super::auth::Segments;
use super::events::{LIMIT_DEFAULT, LIMIT_MAX, PAGE_BYTES_MAX, last_event_id, unknown_topic, wait, waits, words};
use super::problem::{Problem, ProblemBody};
use super::runs::{limit, query};
use super::sse;
use super::viewer::{self, Viewer};
use super::wire::{ChannelEventBody, ChannelEventSchema, Page, PageInfo};
use crate::journal::channels::{ChannelEntry, ChannelFilter, ChannelKey};
use crate::journal::{JournalError, RedbJournal, error_chain};
use crate::stream_tokens::Target;
use crate::streams::ChannelStream;

/// Stored bytes that are read for a page at most. An update of 64 KiB and more is stored apart, so a page can become
/// larger; then it ends early.
const READ_BYTES: usize = 1 << 20;

/// Which entries, and from where.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ChannelQuery {
    /// Only entries after this one; without it, from the first that exists. `Last-Event-ID` wins.
    after: Option<u64>,
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
    cursor: Option<u64>,
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
        (status = 200, description = "A page, or with `Accept: text/event-stream` a stream: `id` is the entry's cursor, `event` its kind, `data` the entry.", body = Page<ChannelEventSchema>),
        (status = 400, description = "`invalid_query`", body = ProblemBody),
        (status = 401, description = "`unauthorized`, `invalid_token`, `expired_token`", body = ProblemBody),
        (status = 403, description = "`out_of_scope`", body = ProblemBody),
        (status = 404, description = "`unknown_channel`", body = ProblemBody),
        (status = 410, description = "`history_truncated`, with `first_seq`: the first cursor that exists", body = ProblemBody),
        (status = 422, description = "`unknown_topic`", body = ProblemBody),
        (status = 429, description = "`too_many_streams`", body = ProblemBody),
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
    let after = last_event_id(headers)?.or(asked.after).or(asked.cursor);
    let topics = asked.topics.as_deref().map(words);
    if let Some(topic) = topics.iter().flatten().find(|topic| !is_word(topic)) {
        return Err(unknown_topic(topic)); // nobody can have it
    }
    viewer.check_topics(topics.as_ref())?;
    let topics = topics.or_else(|| viewer.topics());
    let filter = ChannelFilter { run: asked.run, workflow: asked.workflow, correlation: asked.correlation, topics };
    let key = ChannelKey { tenant: viewer.tenant.clone(), channel };
    if super::events::wants_stream(headers) {
        let stream = ChannelStream::new(Arc::clone(&app.journal), key.clone(), filter, after)?;
        let journal = Arc::clone(&app.journal);
        let follower = Follower { journal, key, stream, waiting: Vec::new().into_iter() };
        return Ok(sse::answer(app, sse::room(app, &viewer.tenant)?, viewer.revoked(), follower));
    }
    let wait = wait(asked.wait)?;
    let _room = (!wait.is_zero()).then(|| sse::room(app, &viewer.tenant)).transpose()?;
    page(app, &key, &filter, after, limit(asked.limit, LIMIT_DEFAULT, LIMIT_MAX)?, wait).await
}

/// A page; without an entry on it, it waits for one.
async fn page(
    app: &App,
    key: &ChannelKey,
    filter: &ChannelFilter,
    after: Option<u64>,
    limit: usize,
    wait: Duration,
) -> Result<Response, Problem> {
    let until = Instant::now() + wait;
    // The listener stands before the first read.
    let mut tail = app.journal.channel_tail(key)?;
    let mut from = match after {
        Some(after) => after,
        None => app.journal.channel_bounds(key)?.0 - 1,
    };
    let found = loop {
        let found = app.journal.channel(key, filter, from, limit, READ_BYTES)?;
        from = found.cursor;
        if !found.entries.is_empty() || Instant::now() >= until {
            break found;
        }
        if !found.has_more && !waits(app, until, tail.beyond(from)).await {
            break found;
        }
        tokio::task::yield_now().await; // a filter that matches little must not hold up others
    };
    let mut data: Vec<Box<RawValue>> = Vec::new();
    let (mut size, mut cursor, mut has_more) = (0, found.cursor, found.has_more);
    for entry in &found.entries {
        if size >= PAGE_BYTES_MAX {
            (cursor, has_more) = (entry.cursor - 1, true);
            break;
        }
        let run = RunKey { tenant: key.tenant.clone(), run: entry.run };
        let body = ChannelEventBody::of(&*app.journal, &run, entry)?;
        let body = to_raw_value(&body).map_err(|_| Problem::internal())?;
        size += body.get().len();
        data.push(body);
    }
    let page = PageInfo { cursor: Some(cursor.to_string()), has_more, limit };
    Ok(Answer(Page { data, page }).into_response())
}

/// A subscriber: where it is, and what it still has to send.
struct Follower {
    journal: Arc<RedbJournal>,
    key: ChannelKey,
    stream: ChannelStream,
    waiting: std::vec::IntoIter<ChannelEntry>,
}

impl sse::Source for Follower {
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(entry) = self.waiting.next() {
                let run = RunKey { tenant: self.key.tenant.clone(), run: entry.run };
                // A value that cannot be read ends the stream: a gap would be a lie. The log says why.
                let body = ChannelEventBody::of(&*self.journal, &run, &entry).ok()?;
                let data = serde_json::to_string(&body).ok()?;
                let frame = Frame::default().id(entry.cursor.to_string());
                return Some(frame.event(entry.recorded.event.kind()).data(data));
            }
            match self.stream.next().await {
                Ok(entries) => self.waiting = entries.into_iter(),
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
