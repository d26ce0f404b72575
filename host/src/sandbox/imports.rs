//! What a guest can ask for. Each import checks its limits, takes its price in fuel, and passes on to [`StepHost`](super::StepHost).
//!
//! Linked by hand rather than through generated traits, because each call takes fuel from the store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use stepwell_core::event::LogLevel;
use stepwell_core::graph::RUN_MS_MAX;
use stepwell_core::{Digest, Json, RunId};
use stepwell_outbound::{Completion, HttpError, HttpRequest, HttpResponse, LlmError, LlmRequest, Message, Role};
use wasmtime::component::{Linker, LinkerInstance, WasmList, WasmStr};
use wasmtime::{Engine, StoreContextMut, Trap};

use super::attempt::AttemptState;
use super::generated::stepwell::workflow::artifacts::{Artifact, ArtifactError};
use super::generated::stepwell::workflow::log::Level;
use super::generated::stepwell::workflow::publish::PublishError;
use super::generated::stepwell::workflow::{children, http, llm, wait};
use super::limits::{
    ARTIFACT_BYTES_MAX, ARTIFACT_NAME_BYTES_MAX, HOST_CALL_FUEL, LOG_LINE_BYTES_MAX, MEDIA_TYPE_BYTES_MAX,
    OUTPUT_BYTES_MAX, RANDOM_BYTES_MAX, UPDATE_BYTES_MAX,
};
use super::replay::{CompletionRecord, Divergence, FileRefused, SentRecord, StartRecord, sha256};
use super::{Authorization, ChildError, ChildRequest, CompletionError, HostRefusal, StandIn, Wait, WaitRecord, Waited};

/// Interfaces that only declare types. A component imports them when it uses a type; they permit nothing.
pub(super) const TYPE_INTERFACES: &[&str] = &["stepwell:workflow/types@0.1.0", "stepwell:workflow/graph@0.1.0"];
/// What a component may import, and so may ask for.
pub(super) const INTERFACES: &[&str] = &[PUBLISH, LOG, CLOCK, RANDOM, ARTIFACTS, HTTP, LLM, WAIT, CHILDREN];
/// What a component must export, and all that it may.
pub(super) const EXPORT: &str = "stepwell:workflow/steps@0.1.0";

const PUBLISH: &str = "stepwell:workflow/publish@0.1.0";
const LOG: &str = "stepwell:workflow/log@0.1.0";
const CLOCK: &str = "stepwell:workflow/clock@0.1.0";
const RANDOM: &str = "stepwell:workflow/random@0.1.0";
const ARTIFACTS: &str = "stepwell:workflow/artifacts@0.1.0";
const HTTP: &str = "stepwell:workflow/http@0.1.0";
const LLM: &str = "stepwell:workflow/llm@0.1.0";
const WAIT: &str = "stepwell:workflow/wait@0.1.0";
const CHILDREN: &str = "stepwell:workflow/children@0.1.0";

/// All imports there are.
pub(super) fn linker(engine: &Engine) -> wasmtime::Result<Linker<AttemptState>> {
    let mut linker = Linker::new(engine);
    for name in TYPE_INTERFACES {
        linker.instance(name)?;
    }
    publish(&mut linker.instance(PUBLISH)?)?;
    log(&mut linker.instance(LOG)?)?;
    clock(&mut linker.instance(CLOCK)?)?;
    random(&mut linker.instance(RANDOM)?)?;
    artifacts(&mut linker.instance(ARTIFACTS)?)?;
    http(&mut linker.instance(HTTP)?)?;
    llm(&mut linker.instance(LLM)?)?;
    wait(&mut linker.instance(WAIT)?)?;
    children(&mut linker.instance(CHILDREN)?)?;
    Ok(linker)
}

type Interface<'a> = LinkerInstance<'a, AttemptState>;
pub(super) type Store<'a> = StoreContextMut<'a, AttemptState>;

/// Takes the price of a call that hands over so many bytes.
fn charge(store: &mut Store<'_>, bytes: usize) -> wasmtime::Result<()> {
    let price = HOST_CALL_FUEL.saturating_add(bytes as u64);
    match store.get_fuel()?.checked_sub(price) {
        Some(left) => store.set_fuel(left),
        None => {
            store.set_fuel(0)?;
            Err(Trap::OutOfFuel.into())
        }
    }
}

fn publish(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func_wrap_async("publish", |mut store: Store<'_>, (topic, payload): (String, WasmStr)| {
        Box::new(async move {
            // Read where it is, and copied only when it is small enough.
            let payload = payload.to_str(&store)?;
            let size = payload.len();
            let payload = (size <= UPDATE_BYTES_MAX).then(|| payload.into_owned());
            charge(&mut store, topic.len() + size)?;
            Ok((publish_update(&mut store, topic, payload).await?,))
        })
    })
}

pub(super) async fn publish_update(
    store: &mut Store<'_>,
    topic: String,
    payload: Option<String>,
) -> wasmtime::Result<Result<u64, PublishError>> {
    // What is refused is refused again when the attempt is taken up again, so it is not on record.
    let Some(payload) = payload else { return Ok(Err(PublishError::TooLarge(UPDATE_BYTES_MAX as u64))) };
    let size = payload.len();
    let payload = match Json::parse(payload) {
        Ok(payload) => payload,
        Err(error) => return Ok(Err(PublishError::InvalidPayload(error.to_string()))),
    };
    if !store.data().host.has_topic(&topic) {
        return Ok(Err(PublishError::UnknownTopic));
    }
    if !store.data_mut().updates.take(size) {
        return Ok(Err(PublishError::RateLimited(None)));
    }
    if let Some(position) = store.data_mut().replay.update(&topic, &payload).await? {
        return Ok(Ok(position));
    }
    Ok(Err(match store.data().host.publish(topic, payload, false).await {
        Ok(position) => return Ok(Ok(position)),
        // On no record either, and another answer when there is room again: so this is the attempt's end.
        Err(HostRefusal::JournalFull) => return Err(NoRoom.into()),
        Err(HostRefusal::UnknownTopic) => PublishError::UnknownTopic,
        Err(HostRefusal::Cancelled) => PublishError::StepCancelled,
        Err(HostRefusal::Unavailable | HostRefusal::NotAChild | HostRefusal::TooLarge(_)) => PublishError::Unavailable,
    }))
}

/// What a call outside is answered: from the record, or live and then recorded. `arguments` is what tells it from other
/// calls, and what came of it is written and read as JSON.
async fn answered<R: Serialize + DeserializeOwned>(
    store: &mut Store<'_>,
    call: &'static str,
    arguments: &impl Serialize,
    live: impl AsyncFnOnce(&mut Store<'_>) -> Option<R>,
) -> wasmtime::Result<R> {
    let arguments = sha256(serde_json::to_vec(arguments).map_err(|_| NotRecorded)?);
    if let Some(result) = on_record(store, call, arguments).await? {
        return read_back(call, &result);
    }
    let result = live(store).await.ok_or(NotRecorded)?;
    let recorded = Json::of(&result).map_err(|_| NotRecorded)?;
    record(store, call, arguments, recorded).await?;
    Ok(result)
}

/// What a call is answered without being made: because this attempt has made it before, or because another run has and
/// this one shadows that.
async fn on_record(store: &mut Store<'_>, call: &'static str, arguments: Digest) -> wasmtime::Result<Option<Json>> {
    let made = store.data_mut().calls.entry((call, arguments)).or_default();
    let nth = *made;
    *made += 1;
    if let Some(result) = store.data_mut().replay.call(call, arguments).await? {
        return Ok(Some(result));
    }
    let host = Arc::clone(&store.data().host);
    match host.stand_in(call, arguments, nth).await.map_err(|_| NotRecorded)? {
        StandIn::Make => Ok(None),
        StandIn::Answer(result) => {
            record(store, call, arguments, result.clone()).await?;
            Ok(Some(result))
        }
        StandIn::Nothing => Err(NoRecording { call }.into()),
    }
}

/// A call of a shadow is not on the record of the run that it shadows.
#[derive(Debug, thiserror::Error)]
#[error("a call of {call} is not on the record of the run that this one shadows, and a shadow does not make it")]
pub(super) struct NoRecording {
    /// What was called.
    pub(super) call: &'static str,
}

/// Puts an answer on record.
async fn record(store: &mut Store<'_>, call: &'static str, arguments: Digest, result: Json) -> wasmtime::Result<()> {
    store.data().host.record(call, arguments, result).await.map_err(|refusal| match refusal {
        HostRefusal::JournalFull => NoRoom.into(),
        _ => NotRecorded.into(),
    })
}

/// An answer that is on record.
fn read_back<R: DeserializeOwned>(call: &str, result: &Json) -> wasmtime::Result<R> {
    serde_json::from_str(result.as_str()).map_err(|error| {
        // Written by another version of this host.
        let expected = format!("a call of {call} with an answer that cannot be read ({error})");
        Divergence { expected, found: format!("a call of {call}") }.into()
    })
}

/// A step waits, so its instance ends. Nobody asks how: the attempt goes on in another one.
#[derive(Debug, thiserror::Error)]
#[error("the step waits")]
pub(super) struct Suspended;

/// What ended a wait: from the record, or at once because it was there already. Otherwise the instance ends here. A
/// refusal depends on what the run has done by then, so it is on record too.
async fn waited(
    store: &mut Store<'_>,
    call: &'static str,
    arguments: &impl Serialize,
    wait: Wait,
) -> wasmtime::Result<WaitRecord> {
    let arguments = sha256(serde_json::to_vec(arguments).map_err(|_| NotRecorded)?);
    if let Some(result) = on_record(store, call, arguments).await? {
        return read_back(call, &result);
    }
    match store.data().host.wait(call, arguments, wait).await {
        Ok(Waited::Answered(result)) => read_back(call, &result),
        Ok(Waited::Suspended) => Err(Suspended.into()),
        Err(HostRefusal::NotAChild) => {
            let refused = WaitRecord::NotAChild;
            record(store, call, arguments, Json::of(&refused).map_err(|_| NotRecorded)?).await?;
            Ok(refused)
        }
        Err(HostRefusal::JournalFull) => Err(NoRoom.into()),
        Err(
            HostRefusal::Cancelled | HostRefusal::Unavailable | HostRefusal::UnknownTopic | HostRefusal::TooLarge(_),
        ) => Err(NotRecorded.into()),
    }
}

/// What a wait cannot have ended with: the record was written by another version of this host.
fn unexpected(call: &str) -> wasmtime::Error {
    let expected = format!("a call of {call} with an answer of another kind");
    Divergence { expected, found: format!("a call of {call}") }.into()
}

fn wait(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func_wrap_async("sleep", |mut store: Store<'_>, (ms,): (u64,)| {
        Box::new(async move {
            charge(&mut store, 0)?;
            Ok((sleep(&mut store, ms.min(RUN_MS_MAX)).await?,))
        })
    })?;
    interface.func_wrap_async("signal", |mut store: Store<'_>, (name, timeout_ms): (String, Option<u64>)| {
        Box::new(async move {
            charge(&mut store, name.len())?;
            let answer = signal(&mut store, name, timeout_ms.map(|ms| ms.min(RUN_MS_MAX))).await?;
            charge(&mut store, answer.as_ref().map_or(0, String::len))?;
            Ok((answer,))
        })
    })
}

pub(super) async fn sleep(store: &mut Store<'_>, ms: u64) -> wasmtime::Result<Result<(), wait::WaitError>> {
    const CALL: &str = "wait.sleep";
    if !store.data_mut().waits.take(0) {
        return Ok(Err(wait::WaitError::QuotaExceeded));
    }
    match waited(store, CALL, &ms, Wait::Timer { ms }).await? {
        WaitRecord::Elapsed => Ok(Ok(())),
        _ => Err(unexpected(CALL)),
    }
}

pub(super) async fn signal(
    store: &mut Store<'_>,
    name: String,
    timeout_ms: Option<u64>,
) -> wasmtime::Result<Result<String, wait::WaitError>> {
    const CALL: &str = "wait.signal";
    if !store.data().host.has_signal(&name) {
        return Ok(Err(wait::WaitError::UnknownSignal));
    }
    if !store.data_mut().waits.take(0) {
        return Ok(Err(wait::WaitError::QuotaExceeded));
    }
    match waited(store, CALL, &(&name, timeout_ms), Wait::Signal { name: name.clone(), timeout_ms }).await? {
        WaitRecord::Signal(payload) => Ok(Ok(payload.as_str().to_owned())),
        WaitRecord::TimedOut => Ok(Err(wait::WaitError::Timeout)),
        _ => Err(unexpected(CALL)),
    }
}

fn children(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func_wrap_async("start", |mut store: Store<'_>, (request,): (children::Request,)| {
        Box::new(async move {
            charge(&mut store, request.input.len())?;
            Ok((start_child(&mut store, request).await?,))
        })
    })?;
    interface.func_wrap_async("await", |mut store: Store<'_>, (run, timeout_ms): (String, Option<u64>)| {
        Box::new(async move {
            charge(&mut store, run.len())?;
            let answer = await_child(&mut store, &run, timeout_ms.map(|ms| ms.min(RUN_MS_MAX))).await?;
            charge(&mut store, answer.as_ref().map_or(0, String::len))?;
            Ok((answer,))
        })
    })
}

pub(super) async fn start_child(
    store: &mut Store<'_>,
    request: children::Request,
) -> wasmtime::Result<Result<String, children::StartError>> {
    const CALL: &str = "children.start";
    let invalid = |why: String| Ok(Err(children::StartError::InvalidRequest(why)));
    let children::Request { workflow, version, input, detached } = request;
    let workflow = match workflow.parse() {
        Ok(workflow) => workflow,
        Err(error) => return invalid(format!("the workflow: {error}")),
    };
    let version = match version.map(|version| version.parse()).transpose() {
        Ok(version) => version,
        Err(error) => return invalid(format!("the version: {error}")),
    };
    if input.len() > OUTPUT_BYTES_MAX {
        return invalid(format!("an input has at most {OUTPUT_BYTES_MAX} bytes"));
    }
    let input = match Json::parse(input) {
        Ok(input) => input,
        Err(error) => return invalid(format!("the input is not JSON: {error}")),
    };
    if !store.data_mut().children.take(input.len_bytes()) {
        return Ok(Err(children::StartError::QuotaExceeded));
    }
    let arguments = (&workflow, version, sha256(input.as_str()), detached);
    let arguments = sha256(serde_json::to_vec(&arguments).map_err(|_| NotRecorded)?);
    let record = match on_record(store, CALL, arguments).await? {
        Some(result) => read_back(CALL, &result)?,
        None => {
            let child = ChildRequest { workflow, version, input, detached };
            match store.data().host.start_child(CALL, arguments, child).await {
                Ok(Ok(run)) => StartRecord::Started(run),
                Ok(Err(refused)) => {
                    let record = StartRecord::Refused(refused);
                    let json = Json::of(&record).map_err(|_| NotRecorded)?;
                    self::record(store, CALL, arguments, json).await?;
                    record
                }
                Err(_) => return Err(NotRecorded.into()),
            }
        }
    };
    Ok(match record {
        StartRecord::Started(run) => Ok(run.to_string()),
        StartRecord::Refused(ChildError::UnknownWorkflow) => Err(children::StartError::UnknownWorkflow),
        StartRecord::Refused(ChildError::UnknownVersion) => Err(children::StartError::UnknownVersion),
        StartRecord::Refused(ChildError::InvalidInput(why)) => Err(children::StartError::InvalidInput(why)),
        StartRecord::Refused(ChildError::TooDeep) => Err(children::StartError::TooDeep),
        StartRecord::Refused(ChildError::TooMany | ChildError::TooManyRuns) => Err(children::StartError::QuotaExceeded),
    })
}

pub(super) async fn await_child(
    store: &mut Store<'_>,
    run: &str,
    timeout_ms: Option<u64>,
) -> wasmtime::Result<Result<String, children::AwaitError>> {
    const CALL: &str = "children.await";
    let Ok(run) = run.parse::<RunId>() else { return Ok(Err(children::AwaitError::NotAChild)) };
    if !store.data_mut().waits.take(0) {
        return Ok(Err(children::AwaitError::QuotaExceeded));
    }
    Ok(match waited(store, CALL, &(run, timeout_ms), Wait::Child { run, timeout_ms }).await? {
        WaitRecord::Completed(output) => Ok(output.as_str().to_owned()),
        WaitRecord::Failed { code, message } => {
            Err(children::AwaitError::Failed(children::ChildFailure { code, message }))
        }
        WaitRecord::Cancelled => Err(children::AwaitError::Cancelled),
        WaitRecord::TimedOut => Err(children::AwaitError::Timeout),
        WaitRecord::NotAChild => Err(children::AwaitError::NotAChild),
        _ => return Err(unexpected(CALL)),
    })
}

/// What a step did could not be recorded: its attempt does not count any more, or the host is about to stop.
#[derive(Debug, thiserror::Error)]
#[error("a call could not be recorded")]
pub(super) struct NotRecorded;

/// The journal has no room for what a step does, so its attempt ends here, and another one is made later.
#[derive(Debug, thiserror::Error)]
#[error("the journal is full")]
pub(super) struct NoRoom;

fn log(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func_wrap_async("log", |mut store: Store<'_>, (level, message): (Level, WasmStr)| {
        Box::new(async move {
            let message = message.to_str(&store)?;
            let size = message.len();
            let line = message.get(..message.floor_char_boundary(LOG_LINE_BYTES_MAX)).unwrap_or_default().to_owned();
            charge(&mut store, size)?;
            write_line(&mut store, level, line).await
        })
    })
}

async fn write_line(store: &mut Store<'_>, level: Level, message: String) -> wasmtime::Result<()> {
    let state = store.data_mut();
    let (level, message) = if state.logs.take(message.len()) {
        let level = match level {
            Level::Debug => LogLevel::Debug,
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error => LogLevel::Error,
        };
        (level, message)
    } else if state.logs_ended {
        return Ok(());
    } else {
        state.logs_ended = true;
        (LogLevel::Warn, "the attempt has written too many lines; further ones are dropped".to_owned())
    };
    if !state.replay.log(level, &message).await? {
        // A line that cannot be recorded belongs to an attempt that no longer counts, or to a host that is about to stop.
        let _ = state.host.log(level, message).await;
    }
    Ok(())
}

fn clock(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func_wrap_async("now-ms", |mut store: Store<'_>, (): ()| {
        Box::new(async move {
            charge(&mut store, 0)?;
            if !store.data_mut().clock_reads.take(0) {
                return Ok((store.data().clock_ms,));
            }
            let last_ms = store.data().clock_ms;
            let now_ms = answered(&mut store, "clock.now-ms", &(), async |_| Some(later_than(last_ms).await)).await?;
            store.data_mut().clock_ms = now_ms;
            Ok((now_ms,))
        })
    })
}

/// The time, once it is later than this. Each reading is an event; a step that waits for the clock makes one of them a
/// millisecond.
async fn later_than(last_ms: u64) -> u64 {
    let now_ms = crate::clock::now().as_millis();
    if now_ms > last_ms {
        return now_ms;
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    // The machine's clock may have been set back meanwhile.
    crate::clock::now().as_millis().max(last_ms + 1)
}

fn random(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func_wrap("bytes", |mut store: Store<'_>, (len,): (u32,)| {
        let mut bytes = vec![0; len.min(RANDOM_BYTES_MAX) as usize];
        charge(&mut store, bytes.len())?;
        store.data_mut().random.fill(&mut bytes);
        Ok((bytes,))
    })
}

fn artifacts(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func_wrap_async(
        "create",
        |mut store: Store<'_>, (name, media_type, content): (String, String, WasmList<u8>)| {
            Box::new(async move {
                charge(&mut store, name.len() + media_type.len() + content.len())?;
                Ok((create_artifact(&mut store, name, media_type, content).await?,))
            })
        },
    )
}

async fn create_artifact(
    store: &mut Store<'_>,
    name: String,
    media_type: String,
    content: WasmList<u8>,
) -> wasmtime::Result<Result<Artifact, ArtifactError>> {
    if let Err(why) = check_file_name(&name).and_then(|()| check_media_type(&media_type)) {
        return Ok(Err(ArtifactError::InvalidName(why.to_owned())));
    }
    if content.len() > ARTIFACT_BYTES_MAX {
        return Ok(Err(ArtifactError::TooLarge(ARTIFACT_BYTES_MAX as u64)));
    }
    let size_bytes = content.len() as u64;
    // Copied only now that it is known to be small enough.
    let bytes = Bytes::copy_from_slice(content.as_le_slice(&*store));
    if !store.data_mut().artifacts.take(bytes.len()) {
        return Ok(Err(ArtifactError::QuotaExceeded));
    }
    // What was refused because of the tenant's limits might not be the next time, so it is on record.
    const CALL: &str = "artifacts.create";
    let arguments = || {
        let arguments = (&name, &media_type, sha256(&bytes));
        serde_json::to_vec(&arguments).map(sha256).map_err(|_| NotRecorded)
    };
    if store.data_mut().replay.has_call(CALL).await?
        && let Some(result) = store.data_mut().replay.call(CALL, arguments()?).await?
    {
        return read_back::<FileRefused>(CALL, &result).map(|refused| Err(refused.into()));
    }
    let stored = match store.data_mut().replay.artifact(&name, &media_type, &bytes).await? {
        Some(stored) => Ok(stored),
        None => store.data().host.store_artifact(name.clone(), media_type.clone(), bytes.clone()).await,
    };
    let refused = match stored {
        Err(HostRefusal::JournalFull) => Some(FileRefused::JournalFull),
        Err(HostRefusal::TooLarge(most)) => Some(FileRefused::TooLarge(most)),
        _ => None,
    };
    if let Some(refused) = refused {
        let result = Json::of(&refused).map_err(|_| NotRecorded)?;
        record(store, CALL, arguments()?, result).await?;
        return Ok(Err(refused.into()));
    }
    Ok(match stored {
        Ok(stored) => {
            Ok(Artifact { id: stored.id, position: stored.seq, size_bytes, sha256: stored.sha256.to_string() })
        }
        Err(HostRefusal::Cancelled) => Err(ArtifactError::StepCancelled),
        Err(_) => Err(ArtifactError::Unavailable),
    })
}

impl From<FileRefused> for ArtifactError {
    fn from(refused: FileRefused) -> Self {
        match refused {
            FileRefused::JournalFull => Self::QuotaExceeded,
            FileRefused::TooLarge(most) => Self::TooLarge(most),
        }
    }
}

fn http(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func_wrap_async("send", |mut store: Store<'_>, (request,): (http::Request,)| {
        Box::new(async move {
            let size = request.url.len()
                + request.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
                + request.body.as_ref().map_or(0, Vec::len);
            charge(&mut store, size)?;
            let answer = send(&mut store, request, size).await?;
            charge(&mut store, answer.as_ref().map_or(0, |response| response.body.len()))?;
            Ok((answer,))
        })
    })
}

async fn send(
    store: &mut Store<'_>,
    request: http::Request,
    size: usize,
) -> wasmtime::Result<Result<http::Response, http::HttpError>> {
    if !store.data_mut().requests.take(size) {
        return Ok(Err(http::HttpError::QuotaExceeded));
    }
    let http::Request { method, url, headers, body, authorization, timeout_ms } = request;
    let authorization =
        authorization.map(|http::Authorization { secret, header, prefix }| Authorization { secret, header, prefix });
    let request = HttpRequest { method, url, headers, body: body.map(Bytes::from), timeout_ms };
    let HttpRequest { method, url, headers, body, timeout_ms } = &request;
    let with = authorization.as_ref().map(|with| (&with.secret, &with.header, &with.prefix));
    let arguments = (method, url, headers, body.as_ref().map(sha256), timeout_ms, with);
    let arguments = serde_json::to_value(arguments).map_err(|_| NotRecorded)?;
    let live = async |store: &mut Store<'_>| Some(SentRecord::of(store.data().host.send(request, authorization).await));
    let sent = answered(store, "http.send", &arguments, live).await?.into_result();
    Ok(sent.map(|HttpResponse { status, headers, body }| http::Response { status, headers, body }).map_err(|error| {
        match error {
            HttpError::InvalidRequest(why) => http::HttpError::InvalidRequest(why),
            HttpError::Denied(why) => http::HttpError::Denied(why),
            HttpError::Timeout => http::HttpError::Timeout,
            HttpError::Connection(why) => http::HttpError::Connection(why),
            HttpError::TooLarge(most) => http::HttpError::TooLarge(most),
        }
    }))
}

fn llm(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func_wrap_async("complete", |mut store: Store<'_>, (request,): (llm::Request,)| {
        Box::new(async move {
            let size = request.system.as_ref().map_or(0, String::len)
                + request.schema.as_ref().map_or(0, String::len)
                + request.messages.iter().map(|message| message.text.len()).sum::<usize>();
            charge(&mut store, size)?;
            let answer = complete(&mut store, request, size).await?;
            charge(&mut store, answer.as_ref().map_or(0, |completion| completion.text.len()))?;
            Ok((answer,))
        })
    })
}

async fn complete(
    store: &mut Store<'_>,
    request: llm::Request,
    size: usize,
) -> wasmtime::Result<Result<llm::Completion, llm::LlmError>> {
    if !store.data_mut().completions.take(size) {
        return Ok(Err(llm::LlmError::QuotaExceeded));
    }
    if request.topic.as_ref().is_some_and(|topic| !store.data().host.has_topic(topic)) {
        let why = "the workflow does not have the topic that the answer goes to";
        return Ok(Err(llm::LlmError::InvalidRequest(why.to_owned())));
    }
    let message = |message: llm::Message| Message {
        role: match message.role {
            llm::Role::User => Role::User,
            llm::Role::Assistant => Role::Assistant,
        },
        text: message.text,
    };
    let question = LlmRequest {
        model: request.model,
        system: request.system,
        messages: request.messages.into_iter().map(message).collect(),
        max_tokens: request.max_tokens,
        temperature: request.temperature,
        schema: request.schema,
        timeout_ms: request.timeout_ms,
    };
    let said: Vec<(&str, &str)> = question.messages.iter().map(|m| (m.role.as_str(), m.text.as_str())).collect();
    let arguments = json!([
        request.provider,
        question.model,
        question.system,
        said,
        question.max_tokens,
        question.temperature,
        question.schema,
        request.topic,
        question.timeout_ms,
    ]);
    let (provider, topic) = (request.provider, request.topic);
    let live =
        async |store: &mut Store<'_>| CompletionRecord::of(store.data().host.complete(provider, question, topic).await);
    let answer = answered(store, "llm.complete", &arguments, live).await?.into_result();
    let completion = |completion: Completion| llm::Completion {
        text: completion.text,
        model: completion.model,
        stop_reason: completion.stop_reason,
        input_tokens: completion.input_tokens,
        output_tokens: completion.output_tokens,
        cost_micros: completion.cost_micros,
    };
    Ok(answer.map(completion).map_err(|error| match error {
        CompletionError::UnknownProvider => llm::LlmError::UnknownProvider,
        CompletionError::MissingSecret(name) => llm::LlmError::MissingSecret(name),
        CompletionError::Llm(error) => match error {
            LlmError::InvalidRequest(why) => llm::LlmError::InvalidRequest(why),
            LlmError::Denied(why) => llm::LlmError::Denied(why),
            LlmError::Refused(why) => llm::LlmError::Refused(why),
            LlmError::Overloaded(wait_ms) => llm::LlmError::Overloaded(wait_ms),
            LlmError::Timeout => llm::LlmError::Timeout,
            LlmError::Connection(why) => llm::LlmError::Connection(why),
            LlmError::TooLarge => llm::LlmError::TooLarge,
            // The attempt does not count any more; what it makes of this is of no interest.
            LlmError::Cancelled => llm::LlmError::Connection("the step was cancelled".to_owned()),
        },
    }))
}

/// A name that is safe to offer for download and to put into a URL: a relative path that leads nowhere else.
fn check_file_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > ARTIFACT_NAME_BYTES_MAX {
        return Err("a name has 1 to 255 bytes");
    }
    if name.chars().any(|c| c.is_control() || c == '\\') {
        return Err("a name has neither control characters nor `\\`");
    }
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("a name has no `/` at either end and no empty, `.` or `..` part");
    }
    Ok(())
}

/// `type/subtype` with parameters or without, in characters that can stand in a header.
fn check_media_type(media_type: &str) -> Result<(), &'static str> {
    const RULE: &str = "a media type has the form `type/subtype`";
    let essence = media_type.split(';').next().unwrap_or_default().trim_end();
    let is_token =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b));
    let (kind, subtype) = essence.split_once('/').ok_or(RULE)?;
    let printable = media_type.bytes().all(|b| (0x20..0x7f).contains(&b));
    if media_type.len() <= MEDIA_TYPE_BYTES_MAX && printable && is_token(kind) && is_token(subtype) {
        Ok(())
    } else {
        Err(RULE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_lead_nowhere_else() {
        for good in ["a", "report.html", "out/a b.txt", "…", ".hidden", "a..b"] {
            assert_eq!(check_file_name(good), Ok(()), "{good:?}");
        }
        for bad in ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a\\b", "a\nb", "a\0", "\u{85}", &"x".repeat(256)] {
            assert!(check_file_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn media_types_fit_into_a_header() {
        for good in ["text/html", "text/html; charset=utf-8", "application/vnd.a+json"] {
            assert_eq!(check_media_type(good), Ok(()), "{good:?}");
        }
        for bad in ["", "text", "text/", "/html", "a b/c", "text/html\r\nSet-Cookie: a=b", "text/ä", &"a/b".repeat(100)]
        {
            assert!(check_media_type(bad).is_err(), "{bad:?}");
        }
    }
}
