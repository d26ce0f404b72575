//! What the server says about a run, and how that differs from what the reference says.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::interpreter::{Expected, Fate, Outcome, Step};

/// How often there was what a run can have. Whoever finds no differences wants to know how much was looked at.
pub(super) type Sights = [(&'static str, usize); 11];

/// A run's history, by steps.
#[derive(Debug, Default)]
pub(super) struct Trace {
    started: BTreeMap<Step, usize>,
    completed: BTreeMap<Step, Value>,
    skipped: BTreeSet<Step>,
    failed: BTreeMap<Step, String>,
    cancelled: BTreeSet<Step>,
    /// Topics and payloads of the updates that count.
    updates: BTreeMap<Step, Vec<(String, Value)>>,
    /// The output, or what failed the run.
    end: Option<Result<Value, (Step, String)>>,
    problems: Vec<String>,
}

impl Trace {
    pub(super) fn of(events: &[Value]) -> Self {
        let mut this = Self::default();
        // Updates of each step by their numbers, until an attempt is rolled back.
        let mut updates: BTreeMap<Step, BTreeMap<u64, (String, Value)>> = BTreeMap::new();
        for event in events {
            let kind = event["kind"].as_str().unwrap();
            let items = event["items"].as_array().into_iter().flatten();
            let items = items.map(|item| u32::try_from(item.as_u64().unwrap()).unwrap()).collect();
            let step: Step = (event["node"].as_str().unwrap_or_default().to_owned(), items);
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let is_new = match kind {
                "step.started" => {
                    *this.started.entry(step.clone()).or_default() += 1;
                    event["attempt"] == 1
                }
                "step.completed" => this.completed.insert(step.clone(), event["output"].clone()).is_none(),
                "step.skipped" => this.skipped.insert(step.clone()),
                "step.cancelled" => this.cancelled.insert(step.clone()),
                "step.failed" => {
                    let code = text(&event["failure"]["code"]);
                    this.failed.insert(step.clone(), code).is_none() && event["will_retry"] == false
                }
                "step.update" => {
                    let update = (text(&event["topic"]), event["payload"].clone());
                    updates.entry(step.clone()).or_default().insert(event["seq"].as_u64().unwrap(), update).is_none()
                }
                "step.rolled_back" => {
                    let range = event["first_seq"].as_u64().unwrap()..=event["last_seq"].as_u64().unwrap();
                    updates.entry(step.clone()).or_default().retain(|seq, _| !range.contains(seq));
                    true
                }
                "run.completed" => this.end.replace(Ok(event["output"].clone())).is_none(),
                "run.failed" => {
                    let failure = (step.clone(), text(&event["failure"]["code"]));
                    this.end.replace(Err(failure)).is_none()
                }
                "run.queued" | "run.started" => true,
                _ => false,
            };
            if !is_new {
                this.problems.push(format!("this should not happen: {event}"));
            }
        }
        this.updates = updates.into_iter().map(|(step, updates)| (step, updates.into_values().collect())).collect();
        this
    }

    /// Which of these steps has failed.
    pub(super) fn which_failed(&self, steps: &BTreeSet<Step>) -> Option<Step> {
        steps.iter().find(|step| self.failed.contains_key(*step)).cloned()
    }

    /// What there was to see, as far as it does not depend on what came first.
    pub(super) fn sights(&self, expected: &Outcome) -> Sights {
        let has_completed = matches!(self.end, Some(Ok(_)));
        let codes = |wanted: &str| self.failed.values().filter(|code| *code == wanted).count();
        let could_fail = expected.end.as_ref().err().map_or(0, BTreeSet::len);
        [
            ("runs completed", usize::from(has_completed)),
            ("runs failed", usize::from(!has_completed)),
            ("races to fail", usize::from(could_fail > 1)),
            ("steps completed", self.completed.len()),
            ("steps skipped", self.skipped.len()),
            ("updates", self.updates.values().map(Vec::len).sum()),
            ("steps in scopes in scopes", self.started.keys().filter(|(_, items)| items.len() > 1).count()),
            ("failures survived", if has_completed { self.failed.len() } else { 0 }),
            ("expression_failed", codes("expression_failed")),
            ("not_an_array", codes("not_an_array")),
            ("loop_limit", codes("loop_limit")),
        ]
    }

    /// All that is not as it should be.
    pub(super) fn problems(&self, expected: &Outcome) -> Vec<String> {
        let mut problems = self.problems.clone();
        match (&self.end, &expected.end) {
            (Some(Ok(output)), Ok(right)) if output == right => {}
            (Some(Err((step, code))), Err(could)) if could.contains(step) && self.failed.get(step) == Some(code) => {}
            (got, right) => problems.push(format!("the run's end: expected {right:?}, got {got:?}")),
        }
        let seen: BTreeSet<&Step> = (self.started.keys().chain(self.completed.keys()).chain(&self.skipped))
            .chain(self.failed.keys().chain(&self.cancelled).chain(self.updates.keys()))
            .chain(expected.steps.keys())
            .collect();
        for step in seen {
            let what = |got: &str| match expected.steps.get(step) {
                Some(right) => format!("{step:?}: expected {right:?}, got {got}"),
                None => format!("{step:?}: expected nothing of it, got {got}"),
            };
            if let Some(got) = self.difference(step, expected.steps.get(step)) {
                problems.push(what(&got));
            }
        }
        problems
    }

    fn difference(&self, step: &Step, expected: Option<&Expected>) -> Option<String> {
        let started = self.started.get(step).copied().unwrap_or(0);
        let (completed, failed) = (self.completed.get(step), self.failed.get(step));
        let (skipped, cancelled) = (self.skipped.contains(step), self.cancelled.contains(step));
        let updates = self.updates.get(step).map(Vec::as_slice).unwrap_or_default();
        let got = || {
            format!(
                "started {started} times, completed {completed:?}, failed {failed:?}, skipped {skipped}, cancelled {cancelled}, updates {updates:?}"
            )
        };
        let Some(Expected { fate, certain }) = expected else { return Some(got()) };
        let ended = usize::from(completed.is_some()) + usize::from(failed.is_some()) + usize::from(skipped);
        let is_cut_off = ended == 0 && started <= 1;
        let update = match fate {
            Fate::Completed { output, topic: Some(topic) } => vec![((*topic).to_owned(), output.clone())],
            _ => Vec::new(),
        };
        let is_right = match fate {
            _ if cancelled || ended != 1 => {
                // The update may have come before the end did.
                !certain && is_cut_off && (updates.is_empty() || (updates == update && !cancelled))
            }
            Fate::Completed { output, .. } => started == 1 && completed == Some(output) && updates == update,
            Fate::Failed { code } => started == 1 && failed.is_some_and(|got| got == code) && updates.is_empty(),
            Fate::Skipped => skipped && started == 0 && updates.is_empty(),
        };
        (!is_right).then(got)
    }
}
