//! Calls of a step, against a host that is made up: what is refused, what is on record afterwards, and that an attempt which
//! is taken up again is told the same.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use stepwell_core::event::LogLevel;
use stepwell_core::{Digest, Json, RunId, Seq};
use stepwell_outbound::{Completion, HttpError, HttpRequest, HttpResponse, LlmRequest};
use wasmtime::{AsContextMut, Engine};

use super::attempt::AttemptState;
use super::generated::stepwell::workflow::children::{AwaitError, Request, StartError};
use super::imports::{self, NotRecorded, Suspended};
use super::limits::WAITS_MAX;
use super::replay::Divergence;
use super::{
    Authorization, ChildError, ChildRequest, CompletionError, HostRefusal, Record, Recorded, StepHost, StoredArtifact,
    Wait, WaitRecord, Waited,
};

/// A record that is all in memory.
pub(super) struct InMemory(pub(super) VecDeque<Recorded>);

impl Record for InMemory {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Recorded>, String>> {
        std::future::ready(Ok(self.0.pop_front())).boxed()
    }
}

/// What comes of the next wait, or of the next child.
type Next<T> = Mutex<VecDeque<T>>;

/// A host that answers what it is told to, and keeps what it is to record. Nobody should ask it for more.
#[derive(Default)]
struct Fake {
    waits: Next<Result<Waited, HostRefusal>>,
    starts: Next<Result<Result<RunId, ChildError>, HostRefusal>>,
    recorded: Mutex<VecDeque<Recorded>>,
}

impl Fake {
    fn waiting(waits: impl IntoIterator<Item = Result<Waited, HostRefusal>>) -> Arc<Self> {
        Arc::new(Self { waits: Mutex::new(waits.into_iter().collect()), ..Self::default() })
    }

    fn starting(starts: impl IntoIterator<Item = Result<Result<RunId, ChildError>, HostRefusal>>) -> Arc<Self> {
        Arc::new(Self { starts: Mutex::new(starts.into_iter().collect()), ..Self::default() })
    }

    /// What a host that comes after this one finds on record.
    fn record(&self) -> VecDeque<Recorded> {
        self.recorded.lock().unwrap().clone()
    }

    fn put(&self, call: &str, arguments: Digest, result: Json) {
        self.recorded.lock().unwrap().push_back(Recorded::Call { call: call.to_owned(), arguments, result });
    }
}

impl StepHost for Fake {
    fn has_topic(&self, topic: &str) -> bool {
        topic == "known"
    }

    fn publish(&self, _: String, _: Json, _: bool) -> BoxFuture<'_, Result<Seq, HostRefusal>> {
        async { Ok(1) }.boxed()
    }

    fn record(&self, call: &'static str, arguments: Digest, result: Json) -> BoxFuture<'_, Result<(), HostRefusal>> {
        self.put(call, arguments, result);
        async { Ok(()) }.boxed()
    }

    fn log(&self, _: LogLevel, _: String) -> BoxFuture<'_, Result<(), HostRefusal>> {
        async { Ok(()) }.boxed()
    }

    fn send(&self, _: HttpRequest, _: Option<Authorization>) -> BoxFuture<'_, Result<HttpResponse, HttpError>> {
        unreachable!("no test sends anything")
    }

    fn complete(
        &self,
        _: String,
        _: LlmRequest,
        _: Option<String>,
    ) -> BoxFuture<'_, Result<Completion, CompletionError>> {
        unreachable!("no test asks a model")
    }

    fn has_signal(&self, name: &str) -> bool {
        name == "go"
    }

    fn wait(&self, call: &'static str, arguments: Digest, _: Wait) -> BoxFuture<'_, Result<Waited, HostRefusal>> {
        let waited = self.waits.lock().unwrap().pop_front().expect("nobody waits any more");
        if let Ok(Waited::Answered(answer)) = &waited {
            // The driver has it on record as two events.
            self.put(call, arguments, answer.clone());
        }
        std::future::ready(waited).boxed()
    }

    fn start_child(
        &self,
        call: &'static str,
        arguments: Digest,
        _: ChildRequest,
    ) -> BoxFuture<'_, Result<Result<RunId, ChildError>, HostRefusal>> {
        let started = self.starts.lock().unwrap().pop_front().expect("nobody starts anything any more");
        if let Ok(Ok(run)) = &started {
            self.put(call, arguments, Json::of(&serde_json::json!({ "started": run })).unwrap());
        }
        std::future::ready(started).boxed()
    }

    fn store_artifact(&self, _: String, _: String, _: Bytes) -> BoxFuture<'_, Result<StoredArtifact, HostRefusal>> {
        unreachable!("no test stores anything")
    }
}

/// An attempt without a guest: its calls are made by the test.
fn attempt(host: &Arc<Fake>, record: Option<VecDeque<Recorded>>) -> wasmtime::Store<AttemptState> {
    let record = record.map(|record| Box::new(InMemory(record)) as Box<dyn Record>);
    let state = AttemptState::new(Arc::clone(host) as Arc<dyn StepHost>, record, [0; 32], Arc::default());
    wasmtime::Store::new(&Engine::default(), state)
}

fn answered(record: &WaitRecord) -> Result<Waited, HostRefusal> {
    Ok(Waited::Answered(Json::of(record).unwrap()))
}

fn run(n: u8) -> RunId {
    RunId::from_bytes([n; 16])
}

/// A refusal that depends on what the run has done by then was on no record: an attempt that was taken up again behind it
/// came with its call where the record had the next one, and diverged every time.
#[tokio::test]
async fn a_wait_for_what_is_no_child_is_refused_the_same_when_the_attempt_is_taken_up_again() {
    let host = Fake::waiting([Err(HostRefusal::NotAChild), Ok(Waited::Suspended)]);
    let mut first = attempt(&host, None);
    let foreign = run(7).to_string();
    let refused = imports::await_child(&mut first.as_context_mut(), &foreign, None).await.unwrap();
    assert!(matches!(refused, Err(AwaitError::NotAChild)), "{refused:?}");
    let suspended = imports::sleep(&mut first.as_context_mut(), 300).await.unwrap_err();
    assert!(suspended.is::<Suspended>(), "{suspended:?}");

    // The time is over. Were the host asked again, it would have no answer; by now the run may even be a child.
    let mut record = host.record();
    assert_eq!(record.len(), 1, "{record:?}");
    let arguments = super::sha256(serde_json::to_vec(&300u64).unwrap());
    let result = Json::of(&WaitRecord::Elapsed).unwrap();
    record.push_back(Recorded::Call { call: "wait.sleep".to_owned(), arguments, result });
    let mut second = attempt(&Fake::waiting([]), Some(record));
    let refused = imports::await_child(&mut second.as_context_mut(), &foreign, None).await.unwrap();
    assert!(matches!(refused, Err(AwaitError::NotAChild)), "{refused:?}");
    assert!(imports::sleep(&mut second.as_context_mut(), 300).await.unwrap().is_ok());
}

#[tokio::test]
async fn what_ended_a_wait_is_told_again_and_only_to_the_same_call() {
    let ends = [
        WaitRecord::Completed(Json::parse("[1]".to_owned()).unwrap()),
        WaitRecord::Failed { code: "c".to_owned(), message: "m".to_owned() },
        WaitRecord::Cancelled,
        WaitRecord::TimedOut,
    ];
    let host = Fake::waiting(ends.iter().map(answered));
    let said = async |store: &mut wasmtime::Store<AttemptState>| {
        let mut said = Vec::new();
        for n in 0..4 {
            let answer = imports::await_child(&mut store.as_context_mut(), &run(n).to_string(), Some(5)).await.unwrap();
            said.push(format!("{answer:?}"));
        }
        said
    };
    let first = said(&mut attempt(&host, None)).await;
    let again = said(&mut attempt(&Fake::waiting([]), Some(host.record()))).await;
    assert_eq!(first, again);

    let mut other = attempt(&Fake::waiting([]), Some(host.record()));
    let diverged = imports::await_child(&mut other.as_context_mut(), &run(0).to_string(), None).await.unwrap_err();
    assert!(diverged.is::<Divergence>(), "another time limit is another call: {diverged:?}");
}

#[tokio::test]
async fn what_is_wrong_with_a_call_itself_is_refused_without_the_host_and_the_record() {
    let host = Fake::waiting([]);
    let mut store = attempt(&host, None);
    let mut store = store.as_context_mut();
    assert!(matches!(imports::await_child(&mut store, "no id", None).await.unwrap(), Err(AwaitError::NotAChild)));
    assert!(imports::signal(&mut store, "unheard".to_owned(), None).await.unwrap().is_err());
    assert!(imports::publish_update(&mut store, "unknown".to_owned(), Some("1".to_owned())).await.unwrap().is_err());
    assert!(imports::publish_update(&mut store, "known".to_owned(), Some("{".to_owned())).await.unwrap().is_err());
    assert!(imports::publish_update(&mut store, "known".to_owned(), None).await.unwrap().is_err());
    assert!(host.record().is_empty());
}

/// The count goes by the calls, not by the host: so the call that is one too many is the same one each time.
#[tokio::test]
async fn the_wait_that_is_one_too_many_is_the_same_one_when_the_attempt_is_taken_up_again() {
    let host = Fake::waiting((0..WAITS_MAX).map(|_| answered(&WaitRecord::Elapsed)));
    for record in [None, Some(())] {
        let mut store = attempt(&host, record.map(|()| host.record()));
        for _ in 0..WAITS_MAX {
            assert!(imports::sleep(&mut store.as_context_mut(), 0).await.unwrap().is_ok());
        }
        assert!(imports::sleep(&mut store.as_context_mut(), 0).await.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_child_that_was_refused_is_refused_again_and_one_that_was_started_is_the_same() {
    let request = || Request { workflow: "w".to_owned(), version: None, input: "1".to_owned(), detached: false };
    let starts = [Ok(Err(ChildError::UnknownWorkflow)), Ok(Err(ChildError::TooMany)), Ok(Ok(run(3)))];
    let host = Fake::starting(starts);
    for record in [None, Some(())] {
        let mut store = attempt(&host, record.map(|()| host.record()));
        let first = imports::start_child(&mut store.as_context_mut(), request()).await.unwrap();
        let second = imports::start_child(&mut store.as_context_mut(), request()).await.unwrap();
        let third = imports::start_child(&mut store.as_context_mut(), request()).await.unwrap();
        assert!(matches!(first, Err(StartError::UnknownWorkflow)), "{first:?}");
        assert!(matches!(second, Err(StartError::QuotaExceeded)), "{second:?}");
        assert!(matches!(&third, Ok(id) if *id == run(3).to_string()), "{third:?}");
    }
}

/// What the host could not do is no answer: the attempt ends, and nothing is on record.
#[tokio::test]
async fn a_host_that_cannot_answer_ends_the_attempt() {
    let host = Fake::waiting([Err(HostRefusal::Unavailable), Err(HostRefusal::Cancelled)]);
    for _ in 0..2 {
        let mut store = attempt(&host, None);
        assert!(imports::sleep(&mut store.as_context_mut(), 1).await.unwrap_err().is::<NotRecorded>());
    }
    assert!(host.record().is_empty());
}
