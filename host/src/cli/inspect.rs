//! `stepwell compile` and `stepwell inspect`: graphs to components, and what a component is and may ask for, found out in
//! the sandbox, without a server.

use std::path::Path;

use anyhow::{Context, bail};
use serde_json::json;
use stepwell_core::TenantId;
use stepwell_core::graph::{DelegateSpec, ItemFailure, Problem, ScopeKind};

use super::{EXIT_OK, out};
use crate::clock;
use crate::sandbox::{Sandbox, SandboxConfig, UploadError, compile};

/// Whoever sits at the terminal.
fn local() -> anyhow::Result<TenantId> {
    Ok("local".parse()?)
}

/// A sandbox for one look, and the folder it keeps code in.
fn sandbox() -> anyhow::Result<(Sandbox, tempfile::TempDir)> {
    let code_dir = tempfile::tempdir().context("cannot make a folder for compiled code")?;
    let sandbox = Sandbox::new(SandboxConfig {
        slots: 1,
        slots_per_tenant: 1,
        threads: 1,
        code_dir: code_dir.path().to_owned(),
        secret: clock::random_bytes(),
        compiler: compile::this_program(),
    })?;
    Ok((sandbox, code_dir))
}

/// `stepwell compile`: a graph document to a component, with all that is wrong with the document.
pub(super) async fn compile(graph: &Path, output: &Path) -> anyhow::Result<u8> {
    let document = std::fs::read(graph).with_context(|| format!("cannot read {}", graph.display()))?;
    let (sandbox, _code_dir) = sandbox()?;
    let compiled = match out::with_progress("compiling", sandbox.compile_graph(&local()?, document.into())).await {
        Err(UploadError::Graph(problems)) => {
            for problem in &problems {
                out::note(problem_line(problem));
            }
            bail!("{} has {} problem(s)", graph.display(), problems.len());
        }
        compiled => compiled?,
    };
    std::fs::write(output, &compiled.component).with_context(|| format!("cannot write {}", output.display()))?;
    out::line(output.display());
    Ok(EXIT_OK)
}

fn problem_line(problem: &Problem) -> String {
    let node = problem.node.as_ref().map(|node| format!("{node} ")).unwrap_or_default();
    let hint = problem.hint.as_ref().map(|hint| format!("\n{hint}")).unwrap_or_default();
    out::printable(&format!("  {node}{}: {} ({}){hint}", problem.field, problem.message, problem.code))
}

pub(super) async fn inspect(path: &Path, json: bool) -> anyhow::Result<u8> {
    let component = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (sandbox, _code_dir) = sandbox()?;
    let inspection = out::with_progress("compiling", sandbox.inspect(&local()?, component.into())).await?;
    let graph = &inspection.graph;
    if json {
        let (version, size_bytes, imports) = (inspection.version, inspection.size_bytes, &inspection.imports);
        out::json(&json!({ "version": version, "size_bytes": size_bytes, "imports": imports, "graph": graph }));
        return Ok(EXIT_OK);
    }
    out::line(format_args!("version   {}", inspection.version));
    out::line(format_args!("size      {}", out::size(inspection.size_bytes)));
    let imports =
        if inspection.imports.is_empty() { "nothing".to_owned() } else { inspection.imports.join("\n          ") };
    out::line(format_args!("imports   {imports}"));
    out::line(format_args!(
        "topics    {}",
        if graph.topics.is_empty() { "none".to_owned() } else { graph.topics.join(", ") }
    ));
    if let Some(channel) = &graph.channel {
        out::line(format_args!("channel   {channel}"));
    }
    out::line(format_args!("output    {}", graph.output.as_deref().unwrap_or("null")));
    if let Some(schema) = &graph.input_schema {
        out::line(format_args!("input     {}", out::printable(schema.as_str())));
    }
    for node in &graph.nodes {
        out::line(format_args!("\nnode      {}", node.id));
        if let Some(description) = &node.description {
            out::line(format_args!("          {}", out::printable(description).replace('\n', " ")));
        }
        let sources = graph.edges.iter().filter(|edge| edge.target == node.id).map(|edge| match &edge.label {
            Some(label) => format!("{} [{label}]", edge.source),
            None => edge.source.clone(),
        });
        let sources: Vec<String> = sources.collect();
        let after = if sources.is_empty() { "the start".to_owned() } else { sources.join(", ") };
        out::line(format_args!("  after   {after}"));
        out::line(format_args!(
            "  needs   {}",
            if node.needs.is_empty() { "nothing".to_owned() } else { node.needs.join(", ") }
        ));
        match node.opens {
            Some(ScopeKind::Each { concurrency, on_failure }) => {
                let on_failure = match on_failure {
                    ItemFailure::Cancel => "one that fails cancels the others",
                    ItemFailure::Finish => "one that fails lets the others finish",
                    ItemFailure::Collect => "one that fails is told to the closing node",
                };
                out::line(format_args!("  opens   a fan-out, {concurrency} items at once; {on_failure}"));
            }
            Some(ScopeKind::Repeat { max }) => out::line(format_args!("  opens   a loop of at most {max} iterations")),
            None => {}
        }
        if let Some(opener) = &node.closes {
            out::line(format_args!("  closes  {opener}"));
        }
        if let Some(DelegateSpec { workflow, version, node }) = &node.delegates_to {
            out::line(format_args!("  runs    {node} of {workflow} {version}, and may ask for what that one imports"));
        }
        let (limits, retry) = (node.limits, &node.retry);
        let memory = out::size(limits.memory_bytes);
        out::line(format_args!("  limits  fuel {}, {} ms, {memory}", limits.fuel, limits.timeout_ms));
        out::line(format_args!(
            "  retry   {} attempts, {} ms × {} up to {} ms, jitter {}",
            retry.max_attempts, retry.initial_ms, retry.factor, retry.max_ms, retry.jitter
        ));
    }
    Ok(EXIT_OK)
}
