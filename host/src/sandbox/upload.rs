//! What an uploaded component must look like. Everything is found out before anything is stored.

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use stepwell_core::event::LogLevel;
use stepwell_core::graph::{DelegateSpec, EdgeSpec, ItemFailure, Limits, NodeSpec, Problem, ScopeKind, SignalSpec};
use stepwell_core::retry::{ErrorPolicy, Exhausted, RetryPolicy};
use stepwell_core::{Digest, Graph, GraphSpec, Json, RunId, Seq, TenantId};
use stepwell_outbound::{Completion, HttpError, HttpRequest, HttpResponse, LlmRequest};
use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;

use super::code::{CodeError, Compiled};
use super::compile::CompileError;
use super::end::failure_of_error;
use super::generated::stepwell::workflow::graph as guest;
use super::imports::{EXPORT, INTERFACES, TYPE_INTERFACES};
use super::limits::{COMPONENT_BYTES_MAX, DESCRIBE_LIMITS};
use super::{
    Authorization, ChildError, ChildRequest, CompletionError, HostRefusal, Sandbox, StepHost, StoredArtifact, Wait,
    Waited, attempt,
};

/// What a component is and asks for.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// SHA-256 of the component.
    pub version: Digest,
    /// Bytes of the component.
    pub size_bytes: u64,
    /// The interfaces that it imports, which is all it may ask for.
    pub imports: Vec<String>,
    /// Its graph, checked.
    pub graph: GraphSpec,
}

/// Why a component was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UploadError {
    /// Too many bytes.
    #[error("the component has {0} bytes, at most {COMPONENT_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// Not WebAssembly at all.
    #[error("this is not a WebAssembly component: {0}")]
    NotAComponent(&'static str),
    /// A core module.
    #[error("this is a core module; `stepwell build` makes a component of it")]
    CoreModule,
    /// It does not validate, or uses what is not allowed.
    #[error("the component is not valid: {0}")]
    Invalid(String),
    /// It imports what no workflow may have.
    #[error("the component imports what a workflow may not have: {}", .0.join(", "))]
    ForbiddenImports(Vec<String>),
    /// It exports something else.
    #[error("a workflow exports `{EXPORT}` and nothing else; this component exports {}", list(.0))]
    WrongExports(Vec<String>),
    /// An interface has another shape than in `wit/`.
    #[error("the component does not fit this host: {0}")]
    DoesNotFit(String),
    /// `describe` failed.
    #[error("the component could not describe its graph: {0}")]
    Describe(String),
    /// Its graph has problems.
    #[error("the graph has {} problem(s), the first: {}", .0.len(), .0.first().map(|p| p.message.as_str()).unwrap_or_default())]
    Graph(Vec<Problem>),
    /// A graph that takes more than there is to load.
    #[error("the graph could not be compiled within the limits: {0}")]
    GraphTooMuch(String),
    /// It was too much for the compiler.
    #[error("the component could not be compiled within the limits")]
    CompilerExceeded,
    /// The compiler could not be run.
    #[error("components cannot be compiled at present")]
    CompilerUnavailable(String),
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

pub(super) async fn inspect(sandbox: &Sandbox, tenant: &TenantId, bytes: Bytes) -> Result<Inspection, UploadError> {
    check_kind(&bytes)?;
    let compiled = sandbox.code.compile(sandbox, tenant, bytes.clone()).await.map_err(|error| match error {
        CodeError::Compile(CompileError::Invalid(why)) => UploadError::Invalid(why),
        CodeError::Compile(CompileError::Exceeded) => UploadError::CompilerExceeded,
        CodeError::Compile(CompileError::Unavailable(why)) => UploadError::CompilerUnavailable(why),
        CodeError::Gone | CodeError::Link(_) => UploadError::DoesNotFit(error.to_string()),
    })?;
    inspect_compiled(sandbox, tenant, &bytes, compiled).await
}

/// Checks what there is to check about a component whose code is at hand, and keeps the code.
pub(super) async fn inspect_compiled(
    sandbox: &Sandbox,
    tenant: &TenantId,
    bytes: &[u8],
    compiled: Compiled,
) -> Result<Inspection, UploadError> {
    let size_bytes = bytes.len() as u64;
    let version = Digest::from_bytes(Sha256::digest(bytes).into());
    let imports = check_type(sandbox, &compiled.component)?;
    let code = sandbox.code.link(&compiled.component).map_err(|error| UploadError::DoesNotFit(error.to_string()))?;

    let engine = sandbox.engine.clone();
    let _turn = sandbox.describing.acquire(tenant).await;
    // On the guests' threads, like everything a guest does.
    let described = sandbox.guests.spawn(async move { attempt::describe(&engine, &code).await });
    let described = described.await.map_err(|error| UploadError::Describe(error.to_string()))?;
    let described = described.map_err(|error| {
        UploadError::Describe(failure_of_error(&error, false, DESCRIBE_LIMITS.memory_bytes).message)
    })?;
    let spec = spec_of(described).map_err(UploadError::Describe)?;
    let graph = Graph::check(spec).map_err(UploadError::Graph)?;
    // Only what is accepted leaves something behind.
    sandbox.code.keep(version, &compiled);
    Ok(Inspection { version, size_bytes, imports, graph: graph.spec().clone() })
}

/// What the first bytes say, for a message that is better than the compiler's.
fn check_kind(bytes: &[u8]) -> Result<(), UploadError> {
    if bytes.len() > COMPONENT_BYTES_MAX {
        return Err(UploadError::TooLarge(bytes.len()));
    }
    match bytes.get(..8) {
        Some([0, b'a', b's', b'm', 1, 0, 0, 0]) => Err(UploadError::CoreModule),
        Some([0, b'a', b's', b'm', ..]) => Ok(()),
        // Compiled code is an ELF file. It is never loaded from outside; the compiler would not read it either.
        Some([0x7f, b'E', b'L', b'F', ..]) => Err(UploadError::NotAComponent("it is compiled code")),
        _ => Err(UploadError::NotAComponent("it does not begin like one")),
    }
}

/// Imports and exports by name. The linker checks their shapes.
fn check_type(sandbox: &Sandbox, component: &Component) -> Result<Vec<String>, UploadError> {
    let kind = component.component_type();
    let is_instance = |item: &ComponentItem| matches!(item, ComponentItem::ComponentInstance(_));
    let mut imports = Vec::new();
    let mut forbidden = Vec::new();
    for (name, item) in kind.imports(&sandbox.engine) {
        if TYPE_INTERFACES.contains(&name) && is_instance(&item.ty) {
            continue;
        }
        let known = INTERFACES.contains(&name) && is_instance(&item.ty);
        if known { &mut imports } else { &mut forbidden }.push(clip(name));
    }
    if !forbidden.is_empty() {
        return Err(UploadError::ForbiddenImports(forbidden));
    }
    imports.sort();
    let exports: Vec<_> = kind.exports(&sandbox.engine).collect();
    if !matches!(&exports[..], [(EXPORT, item)] if is_instance(&item.ty)) {
        return Err(UploadError::WrongExports(exports.iter().take(20).map(|(name, _)| clip(name)).collect()));
    }
    Ok(imports)
}

fn clip(name: &str) -> String {
    name.get(..name.floor_char_boundary(120)).unwrap_or(name).to_owned()
}

fn spec_of(graph: guest::Graph) -> Result<GraphSpec, String> {
    let schema = graph.input_schema.map(Json::parse).transpose();
    let input_schema = schema.map_err(|error| format!("the input schema is not JSON: {error}"))?;
    let node = |node: guest::Node| NodeSpec {
        id: node.id,
        description: node.description,
        needs: node.needs,
        retry: RetryPolicy {
            max_attempts: node.retry.max_attempts,
            initial_ms: node.retry.initial_ms,
            factor: node.retry.factor,
            max_ms: node.retry.max_ms,
            jitter: node.retry.jitter,
            errors: node.retry.errors.into_iter().map(error_policy).collect(),
            when_exhausted: match node.retry.when_exhausted {
                guest::Exhausted::Fail => Exhausted::Fail,
                guest::Exhausted::Pause => Exhausted::Pause,
            },
        },
        limits: Limits {
            fuel: node.limits.fuel,
            timeout_ms: node.limits.timeout_ms,
            memory_bytes: node.limits.memory_bytes,
        },
        opens: node.opens.map(|scope| match scope {
            guest::Scope::Each(guest::Each { concurrency, on_failure }) => ScopeKind::Each {
                concurrency,
                on_failure: match on_failure {
                    guest::ItemFailure::Cancel => ItemFailure::Cancel,
                    guest::ItemFailure::Finish => ItemFailure::Finish,
                    guest::ItemFailure::Collect => ItemFailure::Collect,
                },
            },
            guest::Scope::Repeat(guest::Repeat { max }) => ScopeKind::Repeat { max },
        }),
        closes: node.closes,
        delegates_to: node.delegates_to.map(|delegate| DelegateSpec {
            workflow: delegate.workflow,
            version: delegate.version,
            node: delegate.node,
        }),
    };
    let edge = |edge: guest::Edge| EdgeSpec { source: edge.source, target: edge.target, label: edge.label };
    Ok(GraphSpec {
        nodes: graph.nodes.into_iter().map(node).collect(),
        edges: graph.edges.into_iter().map(edge).collect(),
        output: graph.output,
        topics: graph.topics,
        channel: graph.channel,
        input_schema,
        signals: graph.signals.into_iter().map(signal).collect::<Result<_, String>>()?,
        timeout_ms: graph.timeout_ms,
    })
}

fn signal(guest::Signal { name, schema }: guest::Signal) -> Result<SignalSpec, String> {
    let schema = schema.map(Json::parse).transpose();
    let schema = schema.map_err(|error| format!("the schema of the signal `{}` is not JSON: {error}", clip(&name)))?;
    Ok(SignalSpec { name, schema })
}

fn error_policy(policy: guest::ErrorPolicy) -> ErrorPolicy {
    let guest::ErrorPolicy { code, max_attempts, initial_ms, factor, max_ms } = policy;
    ErrorPolicy { code, max_attempts, initial_ms, factor, max_ms }
}

/// What `describe` and `check-input` get: nothing belongs to a run, so nothing is recorded.
pub(super) struct Denied;

impl StepHost for Denied {
    fn has_topic(&self, _: &str) -> bool {
        false
    }

    fn record(&self, _: &'static str, _: Digest, _: Json) -> BoxFuture<'_, Result<(), HostRefusal>> {
        async { Ok(()) }.boxed()
    }

    fn publish(&self, _: String, _: Json, _: bool) -> BoxFuture<'_, Result<Seq, HostRefusal>> {
        async { Err(HostRefusal::Cancelled) }.boxed()
    }

    fn log(&self, _: LogLevel, _: String) -> BoxFuture<'_, Result<(), HostRefusal>> {
        async { Err(HostRefusal::Cancelled) }.boxed()
    }

    fn send(&self, _: HttpRequest, _: Option<Authorization>) -> BoxFuture<'_, Result<HttpResponse, HttpError>> {
        async { Err(HttpError::Denied("nothing is sent while a workflow is looked at".to_owned())) }.boxed()
    }

    fn complete(
        &self,
        _: String,
        _: LlmRequest,
        _: Option<String>,
    ) -> BoxFuture<'_, Result<Completion, CompletionError>> {
        async { Err(CompletionError::UnknownProvider) }.boxed()
    }

    fn has_signal(&self, _: &str) -> bool {
        false
    }

    fn wait(&self, _: &'static str, _: Digest, _: Wait) -> BoxFuture<'_, Result<Waited, HostRefusal>> {
        async { Err(HostRefusal::Cancelled) }.boxed()
    }

    fn start_child(
        &self,
        _: &'static str,
        _: Digest,
        _: ChildRequest,
    ) -> BoxFuture<'_, Result<Result<RunId, ChildError>, HostRefusal>> {
        async { Err(HostRefusal::Cancelled) }.boxed()
    }

    fn store_artifact(&self, _: String, _: String, _: Bytes) -> BoxFuture<'_, Result<StoredArtifact, HostRefusal>> {
        async { Err(HostRefusal::Cancelled) }.boxed()
    }
}
