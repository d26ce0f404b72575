//! The graph document: what a builder saves, what the compiler checks, and what the nodes guest interprets.
//!
//! Owns: the document's types, from which its JSON Schema is made; how expressions stand in texts ([`template`]); how
//! durations are written ([`duration`]); which filters the guest adds to jaq's ([`filters`]); which JSON Schemas are understood, and what they say ([`json_schema`]); what the
//! compiler hands to the guest ([`Program`]).
//! Does not: check anything. A [`Document`] that came through the compiler is valid, any other is not known to be.

pub mod duration;
pub mod filters;
pub mod json_schema;
pub mod template;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of the format, which a document states as `"stepwell": 1`.
pub const FORMAT: u32 = 1;
/// The most items of a `map`.
pub const ITEMS_MAX: u32 = 10_000;
/// Items of a `map` under way at once, where it does not say.
pub const CONCURRENCY_DEFAULT: u32 = 10;
/// The most items of a `map` under way at once.
pub const CONCURRENCY_MAX: u32 = 1_000;
/// The most iterations of a `loop`.
pub const ITERATIONS_MAX: u32 = 1_000_000;
/// Tokens of an answer, where an `llm` node does not say.
pub const ANSWER_TOKENS_DEFAULT: u32 = 4_096;
/// Fuel of an attempt, where a node does not say: a few seconds of computing. Reading the largest input takes a fifth.
pub const FUEL_DEFAULT: u64 = 5_000_000_000;
/// Fuel of an attempt of a `join`, which may be handed the outputs of thousands of items.
pub const JOIN_FUEL_DEFAULT: u64 = 50_000_000_000;
/// Memory of an attempt: the largest inputs, parsed, with room to work.
pub const MEMORY_BYTES: u64 = 128 << 20;
/// Memory of an attempt of a `join`: as much as there can be.
pub const JOIN_MEMORY_BYTES: u64 = 256 << 20;

/// A workflow, drawn as a graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// The version of this format: 1.
    pub stepwell: u32,
    /// What people call it. The name it runs under is given when it is deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A sentence or two for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A JSON Schema that a run's input must follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Value>,
    /// The topics that nodes may publish on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<String>,
    /// The channel that the updates of all runs reach besides their own run's stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// The signals that runs take, by name, each with the JSON Schema of its payload; `true` takes anything.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub signals: BTreeMap<String, Value>,
    /// How long a run may take from its start to its end, such as `24h`; at most 366 days. Without it there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// The nodes, 1 to 10,000.
    pub nodes: Vec<Node>,
    /// The edges, at most 50,000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edges: Vec<Edge>,
    /// The id of the node whose output is the run's output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

/// One node of a graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Node {
    /// Letters, digits, `_` and `-`, not starting with a digit or `-`, at most 64. `input` is reserved.
    pub id: String,
    /// One sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// When a failed attempt is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// How long one attempt may take, such as `30s`. Without it 30 s, for `http` 1 minute, for `llm` 10 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// The metered instructions one attempt may use. Without it 5,000,000,000, some seconds of computing, and ten times that
    /// for a `join`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
    /// What it does.
    #[serde(flatten)]
    pub kind: Kind,
}

/// What a node does. Strings may hold jq expressions, written `${ … }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// Makes a value out of others.
    Transform(Transform),
    /// Chooses a way on.
    Branch(Branch),
    /// Runs the nodes up to its `join` once for each element of an array.
    Map(Map),
    /// Runs the nodes up to its `join` again and again while a condition holds.
    Loop(Loop),
    /// Closes a `map` or a `loop`.
    Join(Join),
    /// Asks a language model.
    Llm(Llm),
    /// Sends an HTTP request.
    Http(Http),
    /// Runs a node of another workflow.
    Component(Component),
    /// Waits for a time.
    Sleep(Sleep),
    /// Waits for somebody outside.
    Signal(Signal),
    /// Starts a run of another workflow and waits for its end.
    Workflow(Workflow),
}

impl Kind {
    /// Its name in a document.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Transform(_) => "transform",
            Self::Branch(_) => "branch",
            Self::Map(_) => "map",
            Self::Loop(_) => "loop",
            Self::Join(_) => "join",
            Self::Llm(_) => "llm",
            Self::Http(_) => "http",
            Self::Component(_) => "component",
            Self::Sleep(_) => "sleep",
            Self::Signal(_) => "signal",
            Self::Workflow(_) => "workflow",
        }
    }
}

/// Makes a value out of others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Transform {
    /// The node's output: any JSON, with expressions in its strings.
    pub output: Value,
    /// A topic on which the output is published as well, once for each attempt that comes so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
}

/// Chooses a way on: the edge whose label is that of the first case that holds. Its output is that label.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Branch {
    /// The cases, tried in order; at least one.
    pub cases: Vec<Case>,
    /// The label when no case holds. Without it no labelled edge is taken then, and the output is `null`.
    #[serde(default, rename = "else", skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<String>,
}

/// One way of a branch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// An expression. It holds unless its value is `false` or `null`.
    pub when: String,
    /// The label of the edges to take.
    pub label: String,
}

/// Runs the nodes up to its `join` once for each element of an array. They see the element as `.item` and its number,
/// from 0, as `.index`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Map {
    /// An expression for the array, at most 10,000 elements; or the array itself.
    pub items: Value,
    /// Items under way at once, 1 to 1,000. Without it 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// What becomes of the others when one item has failed for good.
    #[serde(default)]
    pub on_failure: OnFailure,
}

/// What becomes of the other items of a `map` when one has failed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// They are cancelled, and what the map is part of has failed.
    #[default]
    Cancel,
    /// They are brought to their end; then what the map is part of has failed.
    Finish,
    /// They are brought to their end. The `join` sees `null` for what failed, and `.failures`.
    Collect,
}

/// Runs the nodes up to its `join` again and again. They see the state as `.item` and the iteration's number, from 0, as
/// `.index`; the `join` makes the next state. The `join`'s output is the last state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Loop {
    /// The first state: any JSON, with expressions in its strings.
    pub initial: Value,
    /// An expression that is asked before each iteration, of the state as `.item` and the iteration's number as
    /// `.index`. It holds unless its value is `false` or `null`.
    #[serde(rename = "while")]
    pub condition: String,
    /// The most iterations, 1 to 1,000,000.
    pub max: u32,
    /// What happens when the condition still holds after so many.
    #[serde(default)]
    pub on_max: OnMax,
}

/// What happens when a loop's condition still holds after its last iteration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnMax {
    /// The `join` fails with `loop_limit`.
    #[default]
    Fail,
    /// The loop ends with the state that it has.
    Stop,
}

/// Closes a `map` or a `loop`. All ways out of one lead through its join.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Join {
    /// The id of the `map` or `loop` that it closes.
    pub of: String,
    /// For a `map` the node's output, in which `.nodes.<id>` of a node in between is the array of its outputs; for a
    /// `loop` the next state. Without it, what the one node before it has put out: for a `map` the array.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
}

/// Asks a language model. Its output is `{text, json, model, provider, stop_reason, usage: {input_tokens,
/// output_tokens, cost_usd}}`, where `json` is there only with `schema`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Llm {
    /// `openai`, `anthropic`, `mock`, or the name of a provider that the tenant has set up. Not an expression.
    pub provider: String,
    /// The model, in the provider's words; expressions may stand in it.
    pub model: String,
    /// What the model is told before everything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// What the model is asked.
    pub prompt: String,
    /// Tokens of the answer, 1 to 1,000,000. Without it 4,096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// 0 to 2, as the provider understands it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// A JSON Schema that the answer must follow, as JSON. An answer that does not is sent back once, with what is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// The topic on which the answer is published while it comes, as updates `{"delta": "text"}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
}

/// Sends an HTTP request. Its output is `{status, headers, body}`; `body` is parsed where it is JSON, and text elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Http {
    /// The method. Without it `GET`, or `POST` with a body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// `http` or `https`. Values that expressions put into it are percent-encoded, unless the whole of it is one.
    pub url: String,
    /// Added to the URL, percent-encoded. Values may be any JSON that is not an array or object; `null` is left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub query: BTreeMap<String, Value>,
    /// Headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// A string is sent as it is, anything else as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// A header with a secret in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<Authorization>,
    /// What the response's status means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<StatusRules>,
}

/// A header that the host adds: `<header>: <prefix><the secret>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Authorization {
    /// The name of one of the tenant's secrets.
    pub secret: String,
    /// The header. Without it `authorization`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// What stands before the secret. Without it `Bearer `.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

/// What a response's status means: each entry is a number such as `404`, or a class such as `"5xx"`. What is in neither
/// list is a permanent failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StatusRules {
    /// The step completes. Without it `["2xx"]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ok: Option<Vec<StatusRule>>,
    /// The attempt is tried again. Without it `[408, 425, 429, "5xx"]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Vec<StatusRule>>,
}

/// One status or a class of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum StatusRule {
    /// 100 to 599.
    Code(u16),
    /// `1xx` to `5xx`.
    Class(String),
}

impl StatusRule {
    /// Whether a status is meant.
    pub fn matches(&self, status: u16) -> bool {
        match self {
            Self::Code(code) => *code == status,
            Self::Class(class) => class.strip_suffix("xx").is_some_and(|digit| digit == (status / 100).to_string()),
        }
    }
}

/// Runs a node of another workflow of the same tenant, which was uploaded as a component or a graph. What that component
/// may ask for, this workflow asks for too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Component {
    /// The other workflow's name.
    pub workflow: String,
    /// The other workflow's version: the SHA-256 of the component, in lower-case hex.
    pub version: String,
    /// The node of it.
    pub node: String,
    /// What that node is handed, by the names of its needs: any JSON, with expressions in its strings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, Value>,
}

/// Waits for a time, and holds nothing meanwhile. Its output is `null`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Sleep {
    /// How long: a duration such as `1m30s`, a number of milliseconds, or an expression for one of both. At most 366 days.
    #[serde(rename = "for")]
    pub duration: Value,
}

/// Waits for a signal of the run, and holds nothing meanwhile. Its output is the signal's payload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Signal {
    /// One of the document's signals. Not an expression.
    pub name: String,
    /// How long at most, such as `24h`. Without it there is no limit but the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
    /// What happens when it has not come by then.
    #[serde(default)]
    pub on_timeout: OnTimeout,
}

/// What happens when a signal has not come in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// The node fails with `signal_timeout`.
    #[default]
    Fail,
    /// The node's output is `null`.
    Null,
}

/// Starts a run of another workflow of the same tenant and waits for its end. Its output is that run's. When this run or
/// this node ends before it, that run is cancelled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Workflow {
    /// The other workflow's name.
    pub workflow: String,
    /// The SHA-256 of its component, in lower-case hex. Without it the version that is the latest when the node runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The other run's input: any JSON, with expressions in its strings. Without it `null`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Value>,
    /// Do not wait: the output is `{run_id}`, and the other run goes on by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detached: bool,
}

/// When a failed attempt is tried again. What is left out has the value of the default: 4 attempts, 1 s, twice as long
/// each time, at most 1 minute, moved by up to a fifth.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Attempts in all, 1 to 100. 1 means: do not retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// The first wait, such as `1s`; at most 24 hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<String>,
    /// What each further wait is multiplied by, 1 to 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// The longest wait, such as `1m`; at most 24 hours. Without it one minute, or `initial` where that is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
    /// The share of itself by which a wait is moved at random, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<f64>,
    /// How failures with certain codes are tried again instead, by code; at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, RetryOfError>,
    /// What happens when a failure that could be tried again finds no attempts left.
    #[serde(default, skip_serializing_if = "is_default")]
    pub when_exhausted: WhenExhausted,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How failures with one code are tried again. What is left out is as in the [`Retry`] around it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RetryOfError {
    /// Attempts in all, those that failed otherwise included, 1 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// The first wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<String>,
    /// What each further wait is multiplied by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// The longest wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
}

/// What happens when a failure that could be tried again finds no attempts left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WhenExhausted {
    /// The node has failed.
    #[default]
    Fail,
    /// The run is paused. When somebody resumes it, the node has its attempts anew.
    Pause,
}

/// A way from one node to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Edge {
    /// Where it starts.
    pub source: String,
    /// Where it ends.
    pub target: String,
    /// Taken only when the source, a `branch`, has chosen this label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// What the compiler hands to the nodes guest: a valid document, and what it has found out about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The document.
    pub document: Document,
    /// One for each node, in the order of the document.
    pub plans: Vec<Plan>,
}

/// What the compiler has found out about a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What its expressions refer to: `input`, and ids of nodes.
    pub needs: Vec<String>,
    /// Ids of the `map`s and `loop`s that it stands in, outermost first. A loop's join stands in its loop, a map's join
    /// does not stand in its map.
    pub scopes: Vec<String>,
    /// For a join without `output`: the node whose output it hands on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joins: Option<String>,
    /// When a failed attempt is tried again, with every default filled in.
    pub retry: RetryPlan,
    /// How long one attempt may take.
    pub timeout_ms: u64,
    /// The metered instructions one attempt may use.
    pub fuel: u64,
    /// The memory one attempt may use.
    pub memory_bytes: u64,
}

/// A [`Retry`] with every default filled in. As in `wit/graph.wit`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetryPlan {
    /// Attempts in all.
    pub max_attempts: u32,
    /// The first wait.
    pub initial_ms: u64,
    /// What each further wait is multiplied by.
    pub factor: f64,
    /// The longest wait.
    pub max_ms: u64,
    /// The share of itself by which a wait is moved at random.
    pub jitter: f64,
    /// How failures with certain codes are tried again instead, in the order of codes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ErrorPlan>,
    /// What happens when there are no attempts left.
    #[serde(default)]
    pub when_exhausted: WhenExhausted,
}

/// A [`RetryOfError`] with every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorPlan {
    /// The code.
    pub code: String,
    /// Attempts in all.
    pub max_attempts: u32,
    /// The first wait.
    pub initial_ms: u64,
    /// What each further wait is multiplied by.
    pub factor: f64,
    /// The longest wait.
    pub max_ms: u64,
}
