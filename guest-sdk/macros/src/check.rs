//! The rules of the contract, as far as the source can break them.
//!
//! Owns nothing but the answer: the run's output, or every mistake with its place. The host checks the same
//! rules again on upload, because a component need not come from here.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::Errors;
use crate::parse::{At, Retry, Step, Workflow};

/// The contract's bounds; see `wit/graph.wit` for each.
const NODES_MAX: usize = 10_000;
const TOPICS_MAX: usize = 64;
const SIGNALS_MAX: usize = 64;
const ERRORS_MAX: usize = 32;
const RUN_MS: RangeInclusive<u64> = 1..=31_622_400_000;
const NAME_BYTES_MAX: usize = 64;
const DESCRIPTION_BYTES_MAX: usize = 1024;
const WAIT_MS: RangeInclusive<u64> = 0..=86_400_000;
const TIMEOUT_MS: RangeInclusive<u64> = 1..=3_600_000;
const FUEL: RangeInclusive<u64> = 1..=100_000_000_000;
const MEMORY_BYTES: RangeInclusive<u64> = 1024 * 1024..=256 * 1024 * 1024;

/// Names that a parameter cannot mean a step by.
const RESERVED: [&str; 2] = ["input", "ctx"];

/// Returns the id of the step whose output is the run's.
pub(crate) fn check(workflow: &Workflow) -> syn::Result<String> {
    let mut errors = Errors::default();
    let ids = check_names(workflow, &mut errors);
    for step in &workflow.steps {
        check_edges(step, &ids, &mut errors);
        check_policy(step, &mut errors);
    }
    // A cycle or a wrong output follows from a name that is wrong, so the names come first.
    errors.finish()?;

    check_cycles(workflow)?;
    output(workflow, &ids)
}

fn check_names<'a>(workflow: &'a Workflow, errors: &mut Errors) -> HashSet<&'a str> {
    if workflow.steps.is_empty() {
        let name = &workflow.module.ident;
        errors.push(syn::Error::new(name.span(), "a workflow needs at least one `#[step]` function"));
    }
    if let Some(step) = workflow.steps.get(NODES_MAX) {
        errors.push(step.id.error(format_args!("a workflow has at most {NODES_MAX} steps")));
    }

    let mut ids = HashSet::new();
    for step in &workflow.steps {
        let id = &step.id;
        if RESERVED.contains(&id.value.as_str()) {
            errors.push(id.error(format_args!("`{}` is reserved and cannot be a step", id.value)));
        } else if !id.value.is_ascii() || id.value.len() > NAME_BYTES_MAX {
            errors.push(id.error(format_args!("a step's name has at most {NAME_BYTES_MAX} ASCII characters")));
        } else if id.value.starts_with('_') {
            errors.push(id.error("a step's name cannot start with `_`, which is ignored in parameters"));
        } else if !ids.insert(id.value.as_str()) {
            errors.push(id.error(format_args!("there are two steps `{}`", id.value)));
        }
        if let Some(text) = step.description.as_ref().filter(|text| text.value.len() > DESCRIPTION_BYTES_MAX) {
            errors.push(text.error(format_args!(
                "the first paragraph is the node's description and has at most {DESCRIPTION_BYTES_MAX} bytes"
            )));
        }
    }

    let mut topics = HashSet::new();
    for topic in &workflow.topics {
        check_word("topic", topic, errors);
        if !topics.insert(&topic.value) {
            errors.push(topic.error(format_args!("`{}` is given twice", topic.value)));
        }
    }
    if let Some(topic) = workflow.topics.get(TOPICS_MAX) {
        errors.push(topic.error(format_args!("a workflow has at most {TOPICS_MAX} topics")));
    }
    if let Some(channel) = &workflow.channel {
        check_word("channel", channel, errors);
    }
    let mut signals = HashSet::new();
    for signal in &workflow.signals {
        check_word("signal", signal, errors);
        if !signals.insert(&signal.value) {
            errors.push(signal.error(format_args!("`{}` is given twice", signal.value)));
        }
    }
    if let Some(signal) = workflow.signals.get(SIGNALS_MAX) {
        errors.push(signal.error(format_args!("a workflow has at most {SIGNALS_MAX} signals")));
    }
    check_range("milliseconds", &workflow.timeout_ms, &RUN_MS, errors);
    ids
}

/// Topics, channels and labels have the same characters.
fn check_word(what: &str, name: &At<String>, errors: &mut Errors) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if !(1..=NAME_BYTES_MAX).contains(&name.value.len()) || !name.value.chars().all(allowed) {
        errors.push(name.error(format_args!("a {what} has 1 to {NAME_BYTES_MAX} of the characters A-Z a-z 0-9 _ . -")));
    }
}

fn check_edges(step: &Step, ids: &HashSet<&str>, errors: &mut Errors) {
    let check_source = |source: &At<String>, errors: &mut Errors| {
        if source.value == step.id.value {
            errors.push(source.error("a step cannot wait for itself"));
        } else if !ids.contains(source.value.as_str()) {
            let mut known: Vec<&str> = ids.iter().copied().filter(|&id| id != step.id.value).collect();
            known.sort_unstable();
            let known = if known.is_empty() { "none".to_owned() } else { format!("`{}`", known.join("`, `")) };
            errors.push(
                source.error(format_args!("`{}` is no step of this workflow; other steps: {known}", source.value)),
            );
        }
    };

    let mut needs = HashSet::new();
    for parameter in &step.parameters {
        let need = &parameter.need;
        if need.value != "input" {
            check_source(need, errors);
        }
        if !needs.insert(need.value.as_str()) {
            errors.push(need.error(format_args!("`{}` is taken twice", need.value)));
        }
    }

    let mut labelled = HashSet::new();
    for when in &step.when {
        check_source(&when.source, errors);
        if !labelled.insert(when.source.value.as_str()) {
            errors.push(when.source.error("several labels of one step are written `a = [\"x\", \"y\"]`"));
        }
        if when.labels.is_empty() {
            errors.push(when.source.error("at least one label is needed"));
        }
        let mut labels = HashSet::new();
        for label in &when.labels {
            check_word("label", label, errors);
            if !labels.insert(&label.value) {
                errors.push(label.error(format_args!("`{}` is given twice", label.value)));
            }
        }
    }

    let mut after = HashSet::new();
    for source in &step.after {
        check_source(source, errors);
        let id = source.value.as_str();
        if needs.contains(id) || labelled.contains(id) || !after.insert(id) {
            errors.push(source.error(format_args!("there is an edge from `{id}` already")));
        }
    }
}

fn check_policy(step: &Step, errors: &mut Errors) {
    let retry = &step.retry;
    check_retry(retry, errors);
    check_range("of a wait", &retry.jitter, &(0.0..=1.0), errors);
    if let Some(word) = retry.when_exhausted.as_ref().filter(|word| !matches!(word.value.as_str(), "fail" | "pause")) {
        errors.push(word.error("`when_exhausted` is \"fail\" or \"pause\""));
    }
    let mut codes = HashSet::new();
    for (code, policy) in &retry.errors {
        if code.value.len() > NAME_BYTES_MAX
            || !code.value.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        {
            errors.push(code.error("a failure's code has 1 to 64 of the characters a-z 0-9 _"));
        }
        if !codes.insert(&code.value) {
            errors.push(code.error(format_args!("`{}` is given twice", code.value)));
        }
        check_retry(policy, errors);
    }
    if let Some((code, _)) = retry.errors.get(ERRORS_MAX) {
        errors.push(code.error(format_args!("a step has at most {ERRORS_MAX} errors")));
    }
    check_range("milliseconds", &step.timeout_ms, &TIMEOUT_MS, errors);
    check_range("instructions", &step.fuel, &FUEL, errors);
    check_range("bytes", &step.memory_bytes, &MEMORY_BYTES, errors);

    // Without `initial` its default counts, which is `stepwell_guest::defaults::RETRY_INITIAL_MS`.
    let initial_ms = retry.initial_ms.as_ref().map_or(1_000, |initial| initial.value);
    if let Some(max) = retry.max_ms.as_ref().filter(|max| max.value < initial_ms) {
        errors.push(max.error(format_args!("`max` is less than `initial`, which is {initial_ms} ms")));
    }
}

fn check_retry(retry: &Retry, errors: &mut Errors) {
    check_range("attempts", &retry.max_attempts, &(1..=100), errors);
    check_range("milliseconds", &retry.initial_ms, &WAIT_MS, errors);
    check_range("times", &retry.factor, &(1.0..=10.0), errors);
    check_range("milliseconds", &retry.max_ms, &WAIT_MS, errors);
}

fn check_range<T: PartialOrd + Display>(
    unit: &str,
    given: &Option<At<T>>,
    range: &RangeInclusive<T>,
    errors: &mut Errors,
) {
    if let Some(given) = given.as_ref().filter(|given| !range.contains(&given.value)) {
        errors.push(given.error(format_args!("must be {} to {} {unit}", range.start(), range.end())));
    }
}

impl Step {
    /// The steps this one has edges from.
    fn sources(&self) -> impl Iterator<Item = &At<String>> {
        let needs = self.parameters.iter().map(|parameter| &parameter.need).filter(|need| need.value != "input");
        needs.chain(&self.after).chain(self.when.iter().map(|when| &when.source))
    }
}

/// Takes away, again and again, the steps that wait for none of those left. What cannot be taken away is on a
/// cycle or behind one; walking backwards from there runs into the cycle.
fn check_cycles(workflow: &Workflow) -> syn::Result<()> {
    let mut left: HashMap<&str, &Step> = workflow.steps.iter().map(|step| (step.id.value.as_str(), step)).collect();
    loop {
        let before = left.len();
        let free: Vec<&str> = left
            .values()
            .filter(|step| step.sources().all(|source| !left.contains_key(source.value.as_str())))
            .map(|step| step.id.value.as_str())
            .collect();
        for id in free {
            left.remove(id);
        }
        if left.len() == before {
            break;
        }
    }

    // In the order of the source, so that the message does not depend on a hash.
    let Some(mut step) = workflow.steps.iter().find(|step| left.contains_key(step.id.value.as_str())) else {
        return Ok(());
    };
    let mut path: Vec<&str> = Vec::new();
    loop {
        if let Some(start) = path.iter().position(|&id| id == step.id.value) {
            let mut cycle = path.split_off(start);
            cycle.push(&step.id.value);
            cycle.reverse();
            return Err(step.id.error(format_args!("steps wait for each other: {}", cycle.join(" → "))));
        }
        path.push(&step.id.value);
        match step.sources().find_map(|source| left.get(source.value.as_str())) {
            Some(source) => step = source,
            None => return Ok(()),
        }
    }
}

fn output(workflow: &Workflow, ids: &HashSet<&str>) -> syn::Result<String> {
    if let Some(output) = &workflow.output {
        return if ids.contains(output.value.as_str()) {
            Ok(output.value.clone())
        } else {
            Err(output.error(format_args!("`{}` is no step of this workflow", output.value)))
        };
    }
    let sources: HashSet<&str> =
        workflow.steps.iter().flat_map(Step::sources).map(|source| source.value.as_str()).collect();
    let last: Vec<&str> =
        workflow.steps.iter().map(|step| step.id.value.as_str()).filter(|id| !sources.contains(id)).collect();
    match last.as_slice() {
        [only] => Ok((*only).to_owned()),
        several => Err(syn::Error::new(
            workflow.module.ident.span(),
            format!(
                "the run's output could be that of `{}`: say which with `#[workflow(output = \"…\")]`",
                several.join("`, `")
            ),
        )),
    }
}
