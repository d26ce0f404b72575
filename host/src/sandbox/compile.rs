//! Compiling in a process of its own, with limits on memory and time. A component or graph that makes the compiler run for
//! ever or out of memory costs that upload and nothing else.
//!
//! Such a process reads its work from standard input and writes what came of it to standard output. What a component is
//! compiled to is code that will run in this process, so the program that compiles must be this one.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Resource, Rlimit, nice, setrlimit};
use stepwell_core::TenantId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::limits::COMPONENT_BYTES_MAX;
use super::{engine, graph};
use crate::permits::Permits;

/// The subcommand under which the program compiles a component.
pub const COMPONENT_SUBCOMMAND: &str = "compile-component";
/// The subcommand under which the program compiles a graph.
pub const GRAPH_SUBCOMMAND: &str = "compile-graph";
/// Memory that a compiling process may write to.
const MEMORY_BYTES_MAX: u64 = 4 << 30;
/// Address space of a compiling process: its memory, and what an instance that loads a graph reserves.
const ADDRESS_SPACE_BYTES_MAX: u64 = 32 << 30;
/// Processor time of a compiling process.
const CPU_SECONDS_MAX: u64 = 60;
/// Time that a compiling process may take.
const TIMEOUT: Duration = Duration::from_secs(90);
/// What one process may make: compiled code has some ten times the size of its component.
const MADE_BYTES_MAX: u64 = 256 << 20;
/// How far a compiling process stands back behind the runs, of 19.
const NICENESS: i32 = 10;
/// Bytes of an error message.
const MESSAGE_BYTES_MAX: u64 = 4 << 10;
/// The exit code that says: the component is at fault, and standard error says why.
const EXIT_INVALID: u8 = 10;

/// Why there is no code.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CompileError {
    /// The component is not valid, or uses what is not allowed.
    #[error("{0}")]
    Invalid(String),
    /// The compiler was stopped or died over it.
    #[error("compiling it took more than {CPU_SECONDS_MAX} s, or more than 4 GiB, or broke the compiler")]
    Exceeded,
    /// The compiler could not be run.
    #[error("the compiler could not be run: {0}")]
    Unavailable(String),
}

/// This program, to compile with: the very file that runs, even after another one has taken its name.
#[must_use]
pub fn this_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

/// Starts compiling processes, one at a time: the rest of the machine is for the runs. Tenants take turns, so that one with
/// many uploads delays another's by one of them.
#[derive(Debug)]
pub(super) struct Compiler {
    program: PathBuf,
    turn: Permits,
}

impl Compiler {
    pub(super) fn new(program: PathBuf) -> Self {
        Self { program, turn: Permits::new(1, 1) }
    }

    /// Compiled code for a component.
    pub(super) async fn component(&self, tenant: &TenantId, component: Bytes) -> Result<Vec<u8>, CompileError> {
        self.run(tenant, COMPONENT_SUBCOMMAND, &[component]).await
    }

    /// What a compiling process makes of its work.
    pub(super) async fn run(
        &self,
        tenant: &TenantId,
        subcommand: &str,
        work: &[Bytes],
    ) -> Result<Vec<u8>, CompileError> {
        let unavailable = |error: std::io::Error| CompileError::Unavailable(error.to_string());
        let _turn = self.turn.acquire(tenant).await;
        let mut child = Command::new(&self.program)
            .arg(subcommand)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(unavailable)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(CompileError::Unavailable("it has no pipes".to_owned()));
        };
        let talk = async {
            let send = async {
                for part in work {
                    // A child that dies early closes its end; its exit code tells more than the failed write.
                    if stdin.write_all(part).await.is_err() {
                        break;
                    }
                }
                drop(stdin);
            };
            let (mut made, mut message) = (Vec::new(), Vec::new());
            let (mut stdout, mut stderr) = (stdout.take(MADE_BYTES_MAX + 1), stderr.take(MESSAGE_BYTES_MAX));
            let tell = async {
                stderr.read_to_end(&mut message).await?;
                // The rest is read too, or the child would wait for someone to read it.
                tokio::io::copy(&mut stderr.into_inner(), &mut tokio::io::sink()).await
            };
            let ((), read, told) = tokio::join!(send, stdout.read_to_end(&mut made), tell);
            read?;
            told?;
            Ok((made, message, child.wait().await?))
        };
        let (made, message, status) = match tokio::time::timeout(TIMEOUT, talk).await {
            Ok(answer) => answer.map_err(unavailable)?,
            Err(_elapsed) => return Err(CompileError::Exceeded),
        };
        match status.code() {
            Some(0) if made.len() as u64 <= MADE_BYTES_MAX => Ok(made),
            Some(code) if code == i32::from(EXIT_INVALID) => {
                Err(CompileError::Invalid(String::from_utf8_lossy(&message).trim().to_owned()))
            }
            _ => Err(CompileError::Exceeded),
        }
    }
}

/// The compiling process for a component: a component on standard input, code on standard output.
pub fn component_main() -> ExitCode {
    run_child(COMPONENT_BYTES_MAX, |component| Ok(engine::compiler(None)?.precompile_component(component)?))
}

/// The compiling process for a graph, see `graph.rs`.
pub fn graph_main() -> ExitCode {
    run_child(graph::WORK_BYTES_MAX, graph::compile)
}

/// Reads at most so many bytes of work, does it, and writes what came of it.
fn run_child(work_bytes_max: usize, make: impl FnOnce(&[u8]) -> anyhow::Result<Vec<u8>>) -> ExitCode {
    let made = || -> anyhow::Result<Vec<u8>> {
        // Before the first byte from outside is read.
        let limits = [
            (Resource::As, ADDRESS_SPACE_BYTES_MAX),
            (Resource::Data, MEMORY_BYTES_MAX),
            (Resource::Cpu, CPU_SECONDS_MAX),
            (Resource::Core, 0),
        ];
        // Runs come first; on a machine with nothing else to do this costs nothing.
        nice(NICENESS)?;
        for (resource, most) in limits {
            setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
        }
        let mut work = Vec::new();
        std::io::stdin().take(work_bytes_max as u64 + 1).read_to_end(&mut work)?;
        make(&work)
    };
    match made() {
        Ok(made) => match std::io::stdout().write_all(&made) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_closed) => ExitCode::FAILURE,
        },
        Err(error) => {
            // The chain on one line: the first sentence says that compiling failed, the others why.
            drop(std::io::stderr().write_all(format!("{error:#}").as_bytes()));
            ExitCode::from(EXIT_INVALID)
        }
    }
}
