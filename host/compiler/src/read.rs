//! A document out of JSON, however much of it is wrong.
//!
//! Owns: what a document's fields are called, which types and ranges they have, and which words they take.
//! Does not: compare nodes with each other, and read expressions.
//! Invariant: whatever has a fault is told, and a placeholder stands for it in what is read on. A node remembers which of
//! its fields are placeholders, so that nobody tells a second time what is wrong with them. Without a problem, what was
//! read is what serde reads.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};
use stepwell_core::failure::is_code;
use stepwell_core::graph::{
    DESCRIPTION_BYTES_MAX, EDGES_MAX, FUEL_MAX, NODES_MAX, RUN_MS_MAX, SIGNALS_MAX, TIMEOUT_MS_MAX, TOPICS_MAX,
};
use stepwell_core::ids::is_word;
use stepwell_core::retry::{ATTEMPTS_MAX, ERRORS_MAX, RetryPolicy, WAIT_MS_MAX};
use stepwell_core::{NodeId, WorkflowName};
use stepwell_document::duration::parse_ms;
use stepwell_document::json_schema;
use stepwell_document::template::{Part, has_parts, parts};
use stepwell_document::{
    Authorization, Branch, CONCURRENCY_MAX, Case, Component, Document, Edge, FORMAT, Http, ITEMS_MAX, ITERATIONS_MAX,
    Join, Kind, Llm, Loop, Map as FanOut, Node, OnFailure, OnMax, OnTimeout, Retry, RetryOfError, Signal, Sleep,
    StatusRule, StatusRules, Transform, WhenExhausted, Workflow,
};

use crate::problems::{Fault, Path, Place, Problems, clip, closest, did_you_mean, listed};

/// The kinds of nodes.
const KINDS: [&str; 11] =
    ["transform", "branch", "map", "loop", "join", "llm", "http", "component", "sleep", "signal", "workflow"];
/// What fields are called elsewhere.
const ALIASES: [(&str, &str); 8] = [
    ("type", "kind"),
    ("name", "id"),
    ("from", "source"),
    ("to", "target"),
    ("condition", "while"),
    ("default", "else"),
    ("expression", "output"),
    ("max_iterations", "max"),
];
/// Unknown fields among which a missing one is looked for. There are never more but by mistake or on purpose.
const COMPARED_MAX: usize = 100;
/// Tokens of an answer. As in `wit/llm.wit`.
const ANSWER_TOKENS_MAX: u64 = 1_000_000;
/// Stands for a condition that is not known: one without a fault.
const ANY_CONDITION: &str = "${null}";
/// Of words and topics.
const WORD_RULE: &str = "1 to 64 characters out of A-Z, a-z, 0-9, _, . and -";

/// A document as far as it could be read.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) input: Option<Value>,
    pub(crate) topics: Vec<String>,
    pub(crate) channel: Option<String>,
    pub(crate) signals: BTreeMap<String, Value>,
    pub(crate) timeout: Option<String>,
    pub(crate) nodes: Vec<DraftNode>,
    pub(crate) edges: Vec<DraftEdge>,
    pub(crate) output: Option<String>,
}

/// A node as far as it could be read.
#[derive(Debug)]
pub(crate) struct DraftNode {
    /// As it was written, valid or not, so that edges to it are not wrong as well.
    pub(crate) id: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) retry: Option<Retry>,
    pub(crate) timeout: Option<String>,
    pub(crate) fuel: Option<u64>,
    /// `None` when it is not known.
    pub(crate) kind: Option<Kind>,
    /// Fields that are placeholders.
    pub(crate) faulty: Vec<&'static str>,
}

impl DraftNode {
    /// Whether a field is what the document says.
    pub(crate) fn is_sound(&self, field: &str) -> bool {
        !self.faulty.contains(&field)
    }
}

/// An edge as far as it could be read.
#[derive(Debug)]
pub(crate) struct DraftEdge {
    pub(crate) source: Option<String>,
    pub(crate) target: Option<String>,
    pub(crate) label: Option<String>,
}

impl Draft {
    /// The document, if nothing is missing.
    pub(crate) fn into_document(self) -> Option<Document> {
        let nodes = self.nodes.into_iter().map(|node| {
            let DraftNode { id, description, retry, timeout, fuel, kind, faulty: _ } = node;
            Some(Node { id: id?, description, retry, timeout, fuel, kind: kind? })
        });
        let edges = self.edges.into_iter().map(|edge| {
            let DraftEdge { source, target, label } = edge;
            Some(Edge { source: source?, target: target?, label })
        });
        Some(Document {
            stepwell: FORMAT,
            name: self.name,
            description: self.description,
            input: self.input,
            topics: self.topics,
            channel: self.channel,
            signals: self.signals,
            timeout: self.timeout,
            nodes: nodes.collect::<Option<_>>()?,
            edges: edges.collect::<Option<_>>()?,
            output: self.output,
        })
    }
}

/// Reads a document. `None` when there is no point in looking on.
pub(crate) fn read(value: Value, problems: &mut Problems) -> Option<Draft> {
    let Value::Object(fields) = value else {
        let message = format!("a document is an object, not {}", type_of(&value));
        problems.add(Fault::new(Place::Document, "", "wrong_type", message));
        return None;
    };
    let mut document = Object::new(problems, Place::Document, String::new(), fields);
    if let Some(format) = document.required("stepwell") {
        match format.as_u64() {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(_) => {
                // What the rest means depends on it.
                let message = format!("documents of version {format} are not known, only of version {FORMAT}");
                document.fault("stepwell", "unsupported_format", message);
                return None;
            }
            None => document.wrong_type("stepwell", "a whole number", &format),
        }
    }
    let mut draft = Draft {
        name: document.optional_string("name"),
        description: document.optional_string("description"),
        input: document.schema("input"),
        ..Draft::default()
    };
    for (index, topic) in document.list("topics", TOPICS_MAX, false).into_iter().enumerate() {
        let field = format!("topics[{index}]");
        match topic {
            Value::String(topic) if !is_word(&topic) => {
                let message = format!("the topic `{}` is not valid: a topic has {WORD_RULE}", clip(&topic));
                document.fault(&field, "invalid_topic", message);
            }
            Value::String(topic) if draft.topics.contains(&topic) => {
                document.fault(&field, "duplicate_topic", format!("the topic `{topic}` is named twice"));
            }
            Value::String(topic) => draft.topics.push(topic),
            other => document.wrong_type(&field, "a string", &other),
        }
    }
    draft.channel = document.optional_string("channel");
    if let Some(channel) = draft.channel.as_ref().filter(|channel| !is_word(channel)) {
        let message = format!("the channel `{}` is not valid: a channel has {WORD_RULE}", clip(channel));
        document.fault("channel", "invalid_channel", message);
    }
    draft.signals = read_signals(&mut document);
    draft.timeout = document.duration("timeout", 1..=RUN_MS_MAX);
    let nodes = document.list("nodes", NODES_MAX, true);
    let edges = document.list("edges", EDGES_MAX, false);
    if nodes.is_empty() && document.is_sound("nodes") {
        document.fault("nodes", "no_nodes", "a graph has at least one node");
    }
    draft.output = document.optional_string("output");
    let stop = !document.is_sound("nodes") || !document.is_sound("edges");
    document.finish();
    if stop {
        return None; // without nodes everything else would look wrong; too many of them are not looked at
    }
    let nodes = nodes.into_iter().enumerate();
    draft.nodes = nodes.map(|(index, node)| read_node(index, node, problems)).collect();
    draft.edges = edges.into_iter().enumerate().map(|(index, edge)| read_edge(index, edge, problems)).collect();
    Some(draft)
}

/// The document's signals. One whose schema is wrong stays among them, so that who waits for it is not wrong as well.
fn read_signals(document: &mut Object<'_>) -> BTreeMap<String, Value> {
    let signals = document.map("signals");
    if signals.len() > SIGNALS_MAX {
        document.fault("signals", "too_many", format!("{} signals, at most {SIGNALS_MAX} are allowed", signals.len()));
        return BTreeMap::new();
    }
    for (name, schema) in &signals {
        let field = Path::Key(&Path::Field("signals"), name).to_string();
        if !is_word(name) {
            let message = format!("the signal `{}` is not valid: a signal has {WORD_RULE}", clip(name));
            document.fault(&field, "invalid_signal", message);
        }
        document.check_schema(&field, schema);
    }
    signals
}

fn read_edge(index: usize, value: Value, problems: &mut Problems) -> DraftEdge {
    let Some(mut edge) = Object::of(problems, Place::Edge(index), String::new(), value) else {
        return DraftEdge { source: None, target: None, label: None };
    };
    let source = edge.required_string("source");
    let target = edge.required_string("target");
    let label = edge.optional_string("label");
    if let Some(label) = label.as_ref().filter(|label| !is_word(label)) {
        edge.fault(
            "label",
            "invalid_label",
            format!("`{}` is not a valid label: a label has {WORD_RULE}", clip(label)),
        );
    }
    edge.finish();
    DraftEdge { source, target, label }
}

fn read_node(index: usize, value: Value, problems: &mut Problems) -> DraftNode {
    let mut read = DraftNode {
        id: None,
        description: None,
        retry: None,
        timeout: None,
        fuel: None,
        kind: None,
        faulty: Vec::new(),
    };
    let Some(mut node) = Object::of(problems, Place::Node(index), String::new(), value) else { return read };
    read.id = node.required_string("id");
    if let Some(reason) = read.id.as_ref().and_then(|id| id.parse::<NodeId>().err()) {
        let id = read.id.as_deref().map(clip).unwrap_or_default();
        node.fault("id", "invalid_id", format!("`{id}` is not valid: {reason}"));
    }
    read.description = node.optional_string("description");
    if read.description.as_ref().is_some_and(|text| text.len() > DESCRIPTION_BYTES_MAX) {
        let message = format!("a description has at most {DESCRIPTION_BYTES_MAX} bytes");
        node.fault("description", "too_large", message);
    }
    read.retry = read_retry(&mut node);
    read.timeout = node.duration("timeout", 1..=TIMEOUT_MS_MAX);
    read.fuel = node.whole("fuel", 1..=FUEL_MAX);
    let kind = node.required_string("kind");
    read.kind = match kind.as_deref() {
        Some("transform") => Some(Kind::Transform(Transform {
            output: node.required("output").unwrap_or_default(),
            topic: node.optional_string("topic"),
        })),
        Some("branch") => Some(Kind::Branch(read_branch(&mut node))),
        Some("map") => Some(Kind::Map(read_map(&mut node))),
        Some("loop") => Some(Kind::Loop(read_loop(&mut node))),
        Some("join") => Some(Kind::Join(Join {
            of: node.required_string("of").unwrap_or_default(),
            output: node.optional("output"),
        })),
        Some("llm") => Some(Kind::Llm(read_llm(&mut node))),
        Some("http") => Some(Kind::Http(read_http(&mut node))),
        Some("component") => Some(Kind::Component(read_component(&mut node))),
        Some("sleep") => Some(Kind::Sleep(read_sleep(&mut node))),
        Some("signal") => Some(Kind::Signal(read_signal(&mut node))),
        Some("workflow") => Some(Kind::Workflow(read_workflow(&mut node))),
        Some(other) => {
            let message = format!("there is no kind `{}`", clip(other));
            let hint = format!("the kinds are {}", listed(KINDS));
            let hint = did_you_mean(other, KINDS).map_or(hint.clone(), |meant| format!("{meant} {hint}"));
            node.fault_with_hint("kind", "unknown_kind", message, hint);
            None
        }
        None => None,
    };
    // Which fields there are depends on the kind.
    read.faulty = if read.kind.is_some() { node.finish() } else { node.finish_misspelt() };
    read
}

fn read_retry(node: &mut Object<'_>) -> Option<Retry> {
    let mut retry = node.object("retry")?;
    let max_attempts = retry.whole("max_attempts", 1..=u64::from(ATTEMPTS_MAX)).and_then(|n| u32::try_from(n).ok());
    let initial = retry.duration("initial", 0..=WAIT_MS_MAX);
    let factor = retry.number("factor", 1.0..=10.0);
    let max = retry.duration("max", 0..=WAIT_MS_MAX);
    let jitter = retry.number("jitter", 0.0..=1.0);
    let when_exhausted =
        retry.choice("when_exhausted", [("fail", WhenExhausted::Fail), ("pause", WhenExhausted::Pause)]);
    let errors = read_errors(&mut retry);
    if retry.faulty.is_empty() {
        let defaults = RetryPolicy::default();
        let ms = |text: &Option<String>, default| text.as_deref().and_then(parse_ms).unwrap_or(default);
        // Without `max`, the longest wait is never shorter than the first one.
        if max.is_some() && ms(&max, 0) < ms(&initial, defaults.initial_ms) {
            let message = "the longest wait is shorter than the first one";
            retry.fault_with_hint("max", "out_of_range", message, "without `initial` the first one is 1s".to_owned());
        }
    }
    let faulty = retry.finish();
    node.placeholder_if(!faulty.is_empty(), "retry");
    Some(Retry { max_attempts, initial, factor, max, jitter, errors, when_exhausted })
}

fn read_errors(retry: &mut Object<'_>) -> BTreeMap<String, RetryOfError> {
    let given = retry.map("errors");
    if given.len() > ERRORS_MAX {
        retry.fault("errors", "too_many", format!("{} codes, at most {ERRORS_MAX} are allowed", given.len()));
        return BTreeMap::new();
    }
    let mut errors = BTreeMap::new();
    for (code, policy) in given {
        let path = Path::Key(&Path::Field("errors"), &code).to_string();
        if !is_code(&code) {
            let message = format!("no failure has the code `{}`", clip(&code));
            let hint = "a code has 1 to 64 characters out of a-z, 0-9 and _".to_owned();
            retry.fault_with_hint(&path, "invalid_code", message, hint);
            retry.placeholder_if(true, "errors");
            continue;
        }
        let Some(mut policy) = retry.nested(path, policy) else {
            retry.placeholder_if(true, "errors");
            continue;
        };
        let max_attempts = policy.whole("max_attempts", 1..=u64::from(ATTEMPTS_MAX));
        let read = RetryOfError {
            max_attempts: max_attempts.and_then(|n| u32::try_from(n).ok()),
            initial: policy.duration("initial", 0..=WAIT_MS_MAX),
            factor: policy.number("factor", 1.0..=10.0),
            max: policy.duration("max", 0..=WAIT_MS_MAX),
        };
        let faulty = policy.finish();
        retry.placeholder_if(!faulty.is_empty(), "errors");
        errors.insert(code, read);
    }
    errors
}

fn read_sleep(node: &mut Object<'_>) -> Sleep {
    let duration = node.required("for").unwrap_or_default();
    match &duration {
        Value::String(text) if !has_parts(text) && node.is_sound("for") => match parse_ms(text) {
            Some(ms) if ms <= RUN_MS_MAX => {}
            Some(_) => node.fault("for", "out_of_range", format!("`{}` is more than 366 days", clip(text))),
            None => {
                let message = format!("`{}` is not a duration", clip(text));
                let hint = "whole numbers with ms, s, m, h or d, such as `30s` or `1m30s`; or an expression".to_owned();
                node.fault_with_hint("for", "invalid_duration", message, hint);
            }
        },
        Value::String(_) => {}
        Value::Number(number) if number.as_u64().is_some_and(|ms| ms <= RUN_MS_MAX) => {}
        Value::Number(number) => {
            let message = format!("{number} is not a whole number of milliseconds from 0 to {RUN_MS_MAX}");
            node.fault("for", "out_of_range", message);
        }
        _ if !node.is_sound("for") => {}
        other => node.wrong_type("for", "a duration, a number of milliseconds or an expression", other),
    }
    Sleep { duration }
}

fn read_signal(node: &mut Object<'_>) -> Signal {
    let name = node.required_string("name").unwrap_or_default();
    let within = node.duration("within", 1..=RUN_MS_MAX);
    let on_timeout = node.choice("on_timeout", [("fail", OnTimeout::Fail), ("null", OnTimeout::Null)]);
    Signal { name, within, on_timeout }
}

fn read_workflow(node: &mut Object<'_>) -> Workflow {
    let workflow = node.required_string("workflow").unwrap_or_default();
    if let Some(reason) = workflow.parse::<WorkflowName>().err().filter(|_| node.is_sound("workflow")) {
        node.fault("workflow", "invalid_workflow", format!("`{}` is not valid: {reason}", clip(&workflow)));
    }
    let version = node.optional_string("version");
    if let Some(version) = version.as_deref() {
        check_version(node, version);
    }
    let input = node.optional("input");
    let detached = node.flag("detached");
    Workflow { workflow, version, input, detached }
}

fn check_version(node: &mut Object<'_>, version: &str) {
    let is_digest = version.len() == 64 && version.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !is_digest {
        let message = format!("`{}` is not a version: it consists of 64 characters out of 0-9 and a-f", clip(version));
        node.fault("version", "invalid_version", message);
    }
}

fn read_branch(node: &mut Object<'_>) -> Branch {
    let mut cases = Vec::new();
    let given = node.list("cases", EDGES_MAX, true);
    if given.is_empty() && node.is_sound("cases") {
        node.fault("cases", "no_cases", "a branch has at least one case");
    }
    for (index, case) in given.into_iter().enumerate() {
        let Some(mut case) = node.nested(format!("cases[{index}]"), case) else {
            node.placeholder_if(true, "cases");
            continue;
        };
        let when = case.required_string("when");
        let label = case.required_string("label");
        if let Some(label) = label.as_deref() {
            case.word("label", label, "invalid_label");
        }
        let faulty = case.finish();
        node.placeholder_if(faulty.contains(&"label"), "cases");
        cases.push(Case { when: when.unwrap_or_else(|| ANY_CONDITION.to_owned()), label: label.unwrap_or_default() });
    }
    let otherwise = node.optional_string("else");
    if let Some(label) = otherwise.as_deref() {
        node.word("else", label, "invalid_label");
    }
    Branch { cases, otherwise }
}

fn read_map(node: &mut Object<'_>) -> FanOut {
    let items = node.required("items").unwrap_or_default();
    match &items {
        Value::Array(list) if list.len() > ITEMS_MAX as usize => {
            let message = format!("{} items, at most {ITEMS_MAX} are allowed", list.len());
            node.fault("items", "too_many", message);
        }
        Value::Array(_) | Value::String(_) => {}
        _ if !node.is_sound("items") => {}
        other => node.wrong_type("items", "an expression or an array", other),
    }
    let concurrency = node.whole("concurrency", 1..=u64::from(CONCURRENCY_MAX));
    let on_failure = node.choice(
        "on_failure",
        [("cancel", OnFailure::Cancel), ("finish", OnFailure::Finish), ("collect", OnFailure::Collect)],
    );
    FanOut { items, concurrency: concurrency.and_then(|n| u32::try_from(n).ok()), on_failure }
}

fn read_loop(node: &mut Object<'_>) -> Loop {
    let initial = node.required("initial").unwrap_or_default();
    let condition = node.required_string("while").unwrap_or_else(|| ANY_CONDITION.to_owned());
    let range = 1..=u64::from(ITERATIONS_MAX);
    let max = node.required("max").and_then(|max| node.as_whole("max", &max, range));
    let on_max = node.choice("on_max", [("fail", OnMax::Fail), ("stop", OnMax::Stop)]);
    Loop { initial, condition, max: max.and_then(|n| u32::try_from(n).ok()).unwrap_or(1), on_max }
}

fn read_llm(node: &mut Object<'_>) -> Llm {
    let provider = node.required_string("provider").unwrap_or_default();
    if node.is_sound("provider") {
        node.word("provider", &provider, "invalid_provider");
    }
    let model = node.required_string("model").unwrap_or_default();
    if model.is_empty() && node.is_sound("model") {
        node.fault("model", "invalid_model", "a model's name is not empty");
    }
    let system = node.optional_string("system");
    let prompt = node.required_string("prompt").unwrap_or_default();
    let max_tokens = node.whole("max_tokens", 1..=ANSWER_TOKENS_MAX);
    let temperature = node.number("temperature", 0.0..=2.0);
    let schema = node.schema("schema");
    let topic = node.optional_string("topic");
    let max_tokens = max_tokens.and_then(|n| u32::try_from(n).ok());
    Llm { provider, model, system, prompt, max_tokens, temperature, schema, topic }
}

fn read_http(node: &mut Object<'_>) -> Http {
    let method = node.optional_string("method");
    if let Some(method) = method.as_deref() {
        check_method(node, method);
    }
    let url = node.required_string("url").unwrap_or_default();
    if node.is_sound("url") {
        check_url(node, &url);
    }
    let query = node.map("query");
    for (name, value) in &query {
        if value.is_array() || value.is_object() {
            let field = Path::Key(&Path::Field("query"), name).to_string();
            node.wrong_type(&field, "a string, a number, true, false or null", value);
        }
    }
    let mut headers = BTreeMap::new();
    for (name, value) in node.map("headers") {
        let field = Path::Key(&Path::Field("headers"), &name).to_string();
        if !is_header(&name) {
            node.fault(&field, "invalid_header", format!("`{}` is not the name of a header", clip(&name)));
        }
        match value {
            Value::String(value) => drop(headers.insert(name, value)),
            other => node.wrong_type(&field, "a string", &other),
        }
    }
    let body = node.optional("body");
    Http { method, url, query, headers, body, authorization: read_authorization(node), status: read_status(node) }
}

fn check_method(node: &mut Object<'_>, method: &str) {
    if matches!(method, "CONNECT" | "TRACE") {
        node.fault("method", "invalid_method", format!("`{method}` is refused"));
    } else if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase()) {
        let message = format!("`{}` is not a method: it consists of letters A-Z", clip(method));
        let upper = method.to_ascii_uppercase();
        let hint = method.bytes().all(|b| b.is_ascii_alphabetic()).then(|| format!("write `{}`", clip(&upper)));
        node.add(
            Fault::new(node.place, "method", "invalid_method", message).maybe_hint(hint.filter(|_| !upper.is_empty())),
        );
    }
}

/// Of a URL that begins with an expression nothing is known.
fn check_url(node: &mut Object<'_>, url: &str) {
    let begin = match parts(url).as_deref() {
        Ok([Part::Text(begin), ..]) => *begin,
        Ok([]) => "",
        Ok([Part::Expression { .. }, ..]) | Err(_) => return,
    };
    let lower = begin.to_ascii_lowercase();
    let behind = lower.strip_prefix("http://").or_else(|| lower.strip_prefix("https://"));
    if behind.is_none_or(|host| begin.len() == url.len() && host.is_empty()) {
        let message = format!("`{}` does not begin with http:// or https:// and a host", clip(url));
        node.fault("url", "invalid_url", message);
    } else if begin.contains(|c: char| c.is_whitespace() || c.is_control()) {
        node.fault("url", "invalid_url", "there is white space in the URL");
    }
}

/// RFC 9110, section 5.6.2.
fn is_header(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn read_authorization(node: &mut Object<'_>) -> Option<Authorization> {
    let mut authorization = node.object("authorization")?;
    let secret = authorization.required_string("secret");
    if let Some(secret) = secret.as_deref() {
        authorization.word("secret", secret, "invalid_secret");
    }
    let header = authorization.optional_string("header");
    if let Some(header) = header.as_ref().filter(|header| !is_header(header)) {
        let message = format!("`{}` is not the name of a header", clip(header));
        authorization.fault("header", "invalid_header", message);
    }
    let prefix = authorization.optional_string("prefix");
    authorization.finish();
    Some(Authorization { secret: secret.unwrap_or_default(), header, prefix })
}

fn read_status(node: &mut Object<'_>) -> Option<StatusRules> {
    let mut status = node.object("status")?;
    let ok = read_rules(&mut status, "ok");
    let retry = read_rules(&mut status, "retry");
    let matched = |rules: &Vec<StatusRule>, status: u16| rules.iter().any(|rule| rule.matches(status));
    // What completes the step is asked first, so a list of one's own that is hidden by it would do nothing.
    let is_ok = |status: u16| ok.as_ref().map_or((200..300).contains(&status), |rules| matched(rules, status));
    let retried = |status: u16| retry.as_ref().is_some_and(|rules| matched(rules, status));
    if let Some(both) = (100..600).find(|status| is_ok(*status) && retried(*status)) {
        status.fault(
            "retry",
            "ambiguous_status",
            format!("a response with status {both} is in both lists, of which `ok` is asked first"),
        );
    }
    status.finish();
    Some(StatusRules { ok, retry })
}

fn read_rules(status: &mut Object<'_>, name: &'static str) -> Option<Vec<StatusRule>> {
    // There are no more statuses, and everybody is compared with everybody.
    const RULES_MAX: usize = 500;
    let given = status.optional(name)?;
    let Value::Array(list) = given else {
        status.wrong_type(name, "an array", &given);
        return None;
    };
    if list.len() > RULES_MAX {
        status.fault(name, "too_many", format!("{} statuses, at most {RULES_MAX} are allowed", list.len()));
        return None;
    }
    let mut rules = Vec::with_capacity(list.len());
    for (index, rule) in list.into_iter().enumerate() {
        let code = rule.as_u64().and_then(|code| u16::try_from(code).ok()).filter(|code| (100..600).contains(code));
        match (code, rule) {
            (Some(code), _) => rules.push(StatusRule::Code(code)),
            (None, Value::String(class)) if matches!(class.as_str(), "1xx" | "2xx" | "3xx" | "4xx" | "5xx") => {
                rules.push(StatusRule::Class(class));
            }
            (None, other) => {
                let message = format!("{} is not a status", shown(&other));
                let hint = "a number from 100 to 599, or a class such as \"5xx\"".to_owned();
                status.fault_with_hint(&format!("{name}[{index}]"), "invalid_status", message, hint);
            }
        }
    }
    Some(rules)
}

fn read_component(node: &mut Object<'_>) -> Component {
    let workflow = node.required_string("workflow").unwrap_or_default();
    if let Some(reason) = workflow.parse::<WorkflowName>().err().filter(|_| node.is_sound("workflow")) {
        node.fault("workflow", "invalid_workflow", format!("`{}` is not valid: {reason}", clip(&workflow)));
    }
    let version = node.required_string("version").unwrap_or_default();
    if node.is_sound("version") {
        check_version(node, &version);
    }
    let other = node.required_string("node").unwrap_or_default();
    if let Some(reason) = other.parse::<NodeId>().err().filter(|_| node.is_sound("node")) {
        node.fault("node", "invalid_node", format!("`{}` is not valid: {reason}", clip(&other)));
    }
    let inputs = node.map("inputs");
    for name in inputs.keys().filter(|name| *name != "input") {
        if let Err(reason) = name.parse::<NodeId>() {
            let message = format!("`{}` is not the name of a need: {reason}", clip(name));
            let field = Path::Key(&Path::Field("inputs"), name).to_string();
            node.fault(&field, "invalid_input_name", message);
        }
    }
    Component { workflow, version, node: other, inputs }
}

/// The fields of an object that are not read yet.
struct Object<'p> {
    problems: &'p mut Problems,
    place: Place,
    /// Where it stands in its place; empty for the place itself.
    path: String,
    fields: Map<String, Value>,
    /// The fields that were asked for, in the order of asking.
    known: Vec<&'static str>,
    faulty: Vec<&'static str>,
}

impl<'p> Object<'p> {
    fn new(problems: &'p mut Problems, place: Place, path: String, fields: Map<String, Value>) -> Self {
        Self { problems, place, path, fields, known: Vec::new(), faulty: Vec::new() }
    }

    fn of(problems: &'p mut Problems, place: Place, path: String, value: Value) -> Option<Self> {
        match value {
            Value::Object(fields) => Some(Self::new(problems, place, path, fields)),
            other => {
                let message = format!("expected an object, found {}", type_of(&other));
                problems.add(Fault::new(place, path, "wrong_type", message));
                None
            }
        }
    }

    fn add(&mut self, fault: Fault) {
        self.problems.add(fault);
    }

    fn at(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    fn fault(&mut self, field: &str, code: &'static str, message: impl Into<String>) {
        self.problems.add(Fault::new(self.place, self.at(field), code, message));
        self.doubt(field);
    }

    fn fault_with_hint(&mut self, field: &str, code: &'static str, message: impl Into<String>, hint: String) {
        self.problems.add(Fault::new(self.place, self.at(field), code, message).hint(hint));
        self.doubt(field);
    }

    fn wrong_type(&mut self, field: &str, expected: &str, found: &Value) {
        self.fault(field, "wrong_type", format!("expected {expected}, found {}", type_of(found)));
    }

    /// Remembers that a field is a placeholder from here on.
    fn doubt(&mut self, field: &str) {
        let name = field.split(['.', '[']).next();
        let name = self.known.iter().copied().find(|known| Some(*known) == name);
        self.faulty.extend(name);
    }

    fn placeholder_if(&mut self, faulty: bool, field: &'static str) {
        self.faulty.extend(faulty.then_some(field));
    }

    fn is_sound(&self, field: &str) -> bool {
        !self.faulty.contains(&field)
    }

    /// A field that may be left out. `null` is taken for that, as serde does.
    fn optional(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    fn required(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        let value = self.fields.remove(name);
        if value.is_none() {
            // A misspelt field is told by itself; together they would be one fault told twice.
            if self.fields.keys().take(COMPARED_MAX).any(|key| self.meant_by(key) == Some(name)) {
                self.doubt(name);
            } else {
                self.fault(name, "missing_field", format!("`{name}` is missing"));
            }
        }
        value
    }

    /// The known field that an unknown one most likely stands for.
    fn meant_by(&self, key: &str) -> Option<&'static str> {
        let alias = ALIASES.iter().find(|(alias, name)| *alias == key && self.known.contains(name));
        alias.map(|(_, name)| *name).or_else(|| closest(key, self.known.iter().copied()))
    }

    fn required_string(&mut self, name: &'static str) -> Option<String> {
        let value = self.required(name)?;
        self.as_string(name, value)
    }

    fn optional_string(&mut self, name: &'static str) -> Option<String> {
        let value = self.optional(name)?;
        self.as_string(name, value)
    }

    fn as_string(&mut self, name: &'static str, value: Value) -> Option<String> {
        match value {
            Value::String(text) => Some(text),
            other => {
                self.wrong_type(name, "a string", &other);
                None
            }
        }
    }

    /// A name with the alphabet of topics and labels.
    fn word(&mut self, field: &'static str, text: &str, code: &'static str) {
        if !is_word(text) {
            self.fault(field, code, format!("`{}` is not valid: {field} has {WORD_RULE}", clip(text)));
        }
    }

    fn whole(&mut self, name: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.optional(name)?;
        self.as_whole(name, &value, range)
    }

    fn as_whole(&mut self, name: &'static str, value: &Value, range: RangeInclusive<u64>) -> Option<u64> {
        match value.as_u64() {
            Some(number) if range.contains(&number) => return Some(number),
            None if !value.is_number() => self.wrong_type(name, "a whole number", value),
            // Negative, or with a fraction.
            _ => {
                let message = format!("{value} is not a whole number from {} to {}", range.start(), range.end());
                self.fault(name, "out_of_range", message);
            }
        }
        None
    }

    fn number(&mut self, name: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let value = self.optional(name)?;
        match value.as_f64() {
            Some(number) if range.contains(&number) => return Some(number),
            Some(_) => {
                let message = format!("{value} is not between {} and {}", range.start(), range.end());
                self.fault(name, "out_of_range", message);
            }
            None => self.wrong_type(name, "a number", &value),
        }
        None
    }

    fn duration(&mut self, name: &'static str, range_ms: RangeInclusive<u64>) -> Option<String> {
        let text = self.optional_string(name)?;
        match parse_ms(&text) {
            Some(ms) if range_ms.contains(&ms) => return Some(text),
            Some(ms) => {
                let message = format!(
                    "`{}` is {ms} ms, which is not between {} ms and {} ms",
                    clip(&text),
                    range_ms.start(),
                    range_ms.end()
                );
                self.fault(name, "out_of_range", message);
            }
            None => {
                let message = format!("`{}` is not a duration", clip(&text));
                let hint = "whole numbers with ms, s, m, h or d, such as `500ms`, `30s` or `1m30s`".to_owned();
                self.fault_with_hint(name, "invalid_duration", message, hint);
            }
        }
        None
    }

    /// `true` or `false`, which is what it is where it is left out.
    fn flag(&mut self, name: &'static str) -> bool {
        self.known.push(name);
        match self.fields.remove(name) {
            None => false,
            Some(Value::Bool(flag)) => flag,
            Some(other) => {
                self.wrong_type(name, "true or false", &other);
                false
            }
        }
    }

    /// One of a few words, the first where none is given.
    fn choice<T: Default, const N: usize>(&mut self, name: &'static str, words: [(&'static str, T); N]) -> T {
        self.known.push(name);
        let Some(value) = self.fields.remove(name) else { return T::default() };
        let names = words.each_ref().map(|(word, _)| *word);
        let Value::String(text) = value else {
            self.wrong_type(name, &format!("one of {}", listed(names)), &value);
            return T::default();
        };
        if let Some((_, chosen)) = words.into_iter().find(|(word, _)| *word == text) {
            return chosen;
        }
        let message = format!("`{}` is not one of {}", clip(&text), listed(names));
        self.add(Fault::new(self.place, self.at(name), "unknown_word", message).maybe_hint(did_you_mean(&text, names)));
        self.doubt(name);
        T::default()
    }

    fn list(&mut self, name: &'static str, most: usize, is_required: bool) -> Vec<Value> {
        let value = if is_required {
            self.required(name)
        } else {
            self.known.push(name);
            self.fields.remove(name)
        };
        match value {
            Some(Value::Array(list)) if list.len() > most => {
                self.fault(name, "too_many", format!("{} {name}, at most {most} are allowed", list.len()));
                Vec::new()
            }
            Some(Value::Array(list)) => list,
            Some(other) => {
                self.wrong_type(name, "an array", &other);
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// An object with any keys.
    fn map(&mut self, name: &'static str) -> BTreeMap<String, Value> {
        self.known.push(name);
        match self.fields.remove(name) {
            Some(Value::Object(fields)) => fields.into_iter().collect(),
            Some(other) => {
                self.wrong_type(name, "an object", &other);
                BTreeMap::new()
            }
            None => BTreeMap::new(),
        }
    }

    /// A JSON Schema.
    fn schema(&mut self, name: &'static str) -> Option<Value> {
        let value = self.optional(name)?;
        if !value.is_object() && !value.is_boolean() {
            self.wrong_type(name, "a JSON Schema, which is an object, true or false", &value);
            return None;
        }
        self.check_schema(name, &value);
        Some(value)
    }

    fn check_schema(&mut self, field: &str, schema: &Value) {
        if !schema.is_object() && !schema.is_boolean() {
            return self.wrong_type(field, "a JSON Schema, which is an object, true or false", schema);
        }
        for json_schema::Problem { pointer, message } in json_schema::check(schema) {
            let message = if pointer.is_empty() { message } else { format!("at `{}`: {message}", clip(&pointer)) };
            self.fault(field, "invalid_schema", message);
        }
    }

    /// An object with fields of its own.
    fn object(&mut self, name: &'static str) -> Option<Object<'_>> {
        let value = self.optional(name)?;
        if !value.is_object() {
            self.doubt(name);
        }
        self.nested(name.to_owned(), value)
    }

    fn nested(&mut self, path: String, value: Value) -> Option<Object<'_>> {
        let path = self.at(&path);
        Object::of(self.problems, self.place, path, value)
    }

    /// Tells the fields that nobody asked for, but those that cannot be told to be something else. Returns those that
    /// are placeholders.
    fn finish_misspelt(mut self) -> Vec<&'static str> {
        let unknown: Vec<String> = self.fields.keys().filter(|key| self.meant_by(key).is_none()).cloned().collect();
        for key in unknown {
            self.fields.remove(&key);
        }
        self.finish()
    }

    /// Tells the fields that nobody asked for. Returns those that are placeholders.
    fn finish(self) -> Vec<&'static str> {
        let mut unknown: Vec<&String> = self.fields.keys().collect();
        unknown.sort_unstable();
        for key in unknown {
            let message = format!("there is no field `{}` here", clip(key));
            let hint = self.problems.if_kept(|| {
                Some(match self.meant_by(key) {
                    Some(name) => format!("did you mean `{name}`?"),
                    None => format!("the fields are {}", listed(self.known.iter().copied())),
                })
            });
            let field = match self.path.as_str() {
                "" => Path::Field(clip(key)).to_string(),
                path => Path::Key(&Path::Field(path), key).to_string(),
            };
            self.problems.add(Fault::new(self.place, field, "unknown_field", message).maybe_hint(hint));
        }
        self.faulty
    }
}

/// What a value is, in a sentence.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A value in a sentence.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("`{}`", clip(text)),
        Value::Number(number) => number.to_string(),
        other => type_of(other).to_owned(),
    }
}
