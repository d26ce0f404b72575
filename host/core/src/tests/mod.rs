//! What the core promises, told as histories.
//!
//! * [`histories`] — small stories with every event written down.
//! * [`pauses`], [`reruns`], [`limits`], [`views`] — the same for what their names say.
//! * [`prefixes`] — each story cut off after each event, recovered and finished.
//! * [`world`] — what surrounds a run there: people who send signals, children that end.
//! * [`simulation`] — random graphs, outcomes, crashes and cancellations, with properties in plain words.

mod histories;
mod limits;
mod pauses;
mod prefixes;
mod reruns;
mod simulation;
mod views;
mod world;

use std::sync::Arc;

use crate::decide::{Next, Success};
use crate::effect::Effect;
use crate::event::{ChildEnd, Event, Recorded, Woke};
use crate::failure::{Failure, FailureKind, FailureSource};
use crate::graph::tests::spec;
use crate::graph::{Graph, GraphSpec};
use crate::ids::{Digest, NodeId, StepId};
use crate::json::{Json, Payload};
use crate::retry::Dice;
use crate::run::Run;
use crate::time::Timestamp;
use crate::{Input, Refusal};

/// A run with its history, and a clock that only moves when told to.
#[derive(Debug, Clone)]
struct Play {
    run: Run,
    now: Timestamp,
    history: Vec<Recorded>,
    /// How many events there were after each append: where a crash can cut.
    appends: Vec<usize>,
}

fn payload(text: &str) -> Payload {
    Payload::Inline(Json::parse(text.to_owned()).unwrap())
}

/// A step by its name: `a`, or `a[0][2]` inside fan-outs and loops.
fn step(name: &str) -> StepId {
    let (node, items) = name.split_once('[').unwrap_or((name, ""));
    let items = items.split(['[', ']']).filter(|item| !item.is_empty()).map(|item| item.parse().unwrap());
    StepId { node: node.parse::<NodeId>().unwrap(), items: items.collect() }
}

fn failure(kind: FailureKind, code: &str) -> Failure {
    let message = "it failed".to_owned();
    Failure {
        kind,
        source: FailureSource::Workflow,
        code: code.to_owned(),
        message,
        retry_after_ms: None,
        details: None,
    }
}

impl Play {
    fn new(graph: &Arc<Graph>) -> Self {
        let mut play = Self {
            run: Run::new(Arc::clone(graph)),
            now: Timestamp::from_millis(1_000),
            history: vec![],
            appends: vec![],
        };
        play.tell(Input::Queue {
            workflow: "w".parse().unwrap(),
            version: Digest::from_bytes([0; 32]),
            input: payload("1"),
            parent: None,
            rerun_of: None,
            shadow_of: None,
            taken_over: vec![],
            place: None,
        });
        play
    }

    /// A started run of the graph that the lines describe (see `graph::tests::spec`).
    fn started(lines: &str, change: impl FnOnce(&mut GraphSpec)) -> Self {
        let mut spec = spec(lines);
        change(&mut spec);
        let mut play = Self::new(&Arc::new(Graph::check(spec).unwrap()));
        play.tell(Input::Start);
        play
    }

    /// The run as it is after recovery from the history.
    fn recovered(graph: &Arc<Graph>, history: &[Recorded], now: Timestamp) -> Self {
        let mut run = Run::new(Arc::clone(graph));
        for recorded in history {
            run.apply(&recorded.event).unwrap();
        }
        Self { run, now, history: history.to_vec(), appends: vec![history.len()] }
    }

    fn try_tell(&mut self, input: Input, dice: Dice) -> Result<(), Refusal> {
        let before = self.run.clone();
        let expected = recorded_as(&input);
        let events = self.run.decide(input, self.now, dice)?;
        assert_eq!(before, self.run, "deciding changes nothing");
        let first = events.first().map(Event::kind);
        assert!(expected.is_none_or(|expected| first == Some(expected)), "accepted and not recorded: {first:?}");
        let events = self.run.follow(events).unwrap_or_else(|error| panic!("{error}\n{}", self.text()));
        for event in events {
            let seq = self.history.len() as u64 + 1;
            self.history.push(Recorded { seq, at: self.now, event });
        }
        assert_eq!(self.run.last_seq(), self.history.len() as u64);
        self.appends.push(self.history.len());
        Ok(())
    }

    fn tell(&mut self, input: Input) {
        self.try_tell(input, Dice(1 << 63)).unwrap();
    }

    fn succeed(&mut self, id: &str, attempt: u32, labels: &[&str]) {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let result = Ok(Success { output: payload(&format!("\"{id}\"")), labels, next: Next::Done });
        self.tell(Input::AttemptEnded { step: step(id), attempt, result, fuel_used: 1 });
    }

    /// The outcome of a node that opens or closes something.
    fn hand_over(&mut self, id: &str, output: &str, next: Next) {
        let attempt = self.run.step(&step(id)).unwrap().1.attempts;
        let result = Ok(Success { output: payload(output), labels: vec![], next });
        self.tell(Input::AttemptEnded { step: step(id), attempt, result, fuel_used: 1 });
    }

    fn fail(&mut self, id: &str, attempt: u32, kind: FailureKind) {
        let result = Err(failure(kind, "oops"));
        self.tell(Input::AttemptEnded { step: step(id), attempt, result, fuel_used: 1 });
    }

    fn publish(&mut self, id: &str, attempt: u32) {
        self.tell(Input::Publish {
            step: step(id),
            attempt,
            topic: "update".into(),
            payload: payload("{}"),
            within_call: false,
        });
    }

    /// Waits for the next timer.
    fn wait(&mut self) {
        let timers = self.run.owed().into_iter().filter_map(|effect| match effect {
            Effect::WakeAt { at, .. } => Some(at),
            _ => None,
        });
        self.now = self.now.max(timers.min().expect("a timer is owed"));
        self.tell(Input::TimerDue);
    }

    /// Steps that are due or under way.
    fn running(&self) -> Vec<(StepId, u32)> {
        let running = self.run.owed().into_iter().filter_map(|effect| match effect {
            Effect::RunStep { step, attempt, .. } => Some((step, attempt)),
            _ => None,
        });
        running.collect()
    }

    /// What the host that comes after a crash does first.
    fn lose_all_attempts(&mut self) {
        self.lose(false);
    }

    /// The same, where nothing stands in the way of going on.
    fn resume_all_attempts(&mut self) {
        self.lose(true);
    }

    fn lose(&mut self, can_resume: bool) {
        for (step, attempt) in self.running() {
            match self.try_tell(Input::AttemptLost { step, attempt, can_resume }, Dice(1 << 63)) {
                // One that was lost once too often has taken the others with it: its item's, or all.
                Ok(()) | Err(Refusal::NotUnderWay { .. } | Refusal::Ended(_)) => {}
                Err(refusal) => panic!("{refusal}\n{}", self.text()),
            }
        }
    }

    fn text(&self) -> String {
        self.history.iter().map(line).collect()
    }
}

/// The event that whoever is told of an input's acceptance counts on.
fn recorded_as(input: &Input) -> Option<&'static str> {
    match input {
        Input::Queue { .. } => Some("run.queued"),
        Input::Start => Some("run.started"),
        Input::Publish { .. } => Some("step.update"),
        Input::RecordCall { .. } | Input::StartChild { .. } => Some("step.call"),
        Input::Wait { .. } => Some("step.suspended"),
        Input::Signal { .. } => Some("signal.received"),
        Input::Pause { .. } => Some("run.paused"),
        Input::Resume => Some("run.resumed"),
        Input::Log { .. } => Some("step.log"),
        Input::StoreArtifact { .. } => Some("step.artifact"),
        Input::Cancel { .. } => Some("run.cancelled"),
        // These tell what has happened, and nobody waits for an answer.
        Input::ChildEnded { .. } | Input::AttemptEnded { .. } | Input::AttemptLost { .. } | Input::TimerDue => None,
    }
}

fn line(Recorded { seq, event, .. }: &Recorded) -> String {
    let what = match event {
        Event::RunQueued { .. } | Event::RunResumed {} => String::new(),
        Event::RunStarted { deadline } => deadline.map(|at| format!("until {}", at.as_millis())).unwrap_or_default(),
        Event::RunPaused { reason } => reason.clone().unwrap_or_default(),
        Event::SignalReceived { name, .. } => name.clone(),
        Event::RunSuspended { reason, until } => format!("{reason:?} until {}", until.map_or(0, Timestamp::as_millis)),
        Event::RunCompleted { output: Payload::Inline(json) } => json.as_str().to_owned(),
        Event::RunCompleted { .. } => "stored".to_owned(),
        Event::RunFailed { step, failure } => {
            format!("{} {}", step.as_ref().map(ToString::to_string).unwrap_or_default(), failure.code)
        }
        Event::RunCancelled { reason } => reason.clone().unwrap_or_default(),
        Event::StepStarted { step, attempt }
        | Event::StepUpdate { step, attempt, .. }
        | Event::StepLog { step, attempt, .. }
        | Event::StepCall { step, attempt, .. }
        | Event::StepArtifact { step, attempt, .. } => format!("{step} {attempt}"),
        Event::StepSuspended { step, reason, until, .. } => {
            format!("{step} {reason:?} until {}", until.map_or(0, Timestamp::as_millis))
        }
        Event::StepResumed { step, woke } => match woke.as_deref() {
            None => step.to_string(),
            Some(Woke::Signal { seq, .. }) => format!("{step} by signal {seq}"),
            Some(Woke::Child(ChildEnd::Completed { .. })) => format!("{step} by a child that completed"),
            Some(Woke::Child(ChildEnd::Failed { code, .. })) => format!("{step} by a child that failed, {code}"),
            Some(woke) => format!("{step} by {woke:?}"),
        },
        Event::StepSkipped { step } | Event::StepCancelled { step } => step.to_string(),
        Event::StepTakenOver { step, labels, .. } => format!("{step} {}", labels.join(",")),
        Event::StepCompleted { step, attempt, labels, fan_out, again, .. } => {
            let fan_out = fan_out.map(|count| format!("{count} items")).unwrap_or_default();
            format!("{step} {attempt} {}{fan_out}{}", labels.join(","), if *again { "again" } else { "" })
        }
        Event::StepFailed { step, attempt, failure, will_retry, pauses, .. } => {
            let then = [(*will_retry, ", will retry"), (*pauses, ", pauses")];
            let then = then.into_iter().find(|(holds, _)| *holds).map_or("", |(_, then)| then);
            format!("{step} {attempt} {}{then}", failure.code)
        }
        Event::StepRolledBack { step, attempt, first_seq, last_seq } => {
            format!("{step} {attempt} from {first_seq} to {last_seq}")
        }
    };
    format!("{seq} {} {what}", event.kind()).trim_end().to_owned() + "\n"
}
