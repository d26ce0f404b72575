//! The server that is measured: the real program, in a process and on a journal of its own.
//!
//! Keeps: neither the process nor the folder outlives the [`Server`]. [`Server::stop`] ends it as an operator would;
//! when it is dropped instead, after an error, it is killed.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use stepwell_core::Digest;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::http::Connection;

/// How long a server may take to accept connections: it has next to nothing to do.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a server may take to stop: more than its own patience with attempts and connections.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a killed server may take: the system takes back its memory.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// What the server prints before its address when it accepts connections.
const LISTENING: &str = "stepwell is listening on http://";

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    // Fields are dropped after the process has gone: see `Drop`.
    child: Child,
    address: SocketAddr,
    data_dir: TempDir,
}

impl Server {
    /// Starts a server with a new journal in a folder of its own in `disk`.
    pub(crate) async fn start(program: &Path, disk: &Path) -> anyhow::Result<Self> {
        Self::start_in(program, scratch_dir(disk)?).await
    }

    /// Stops the server, does something with its journal's file, and starts it again. Says how long that took until it
    /// accepted connections.
    pub(crate) async fn restart(
        mut self,
        program: &Path,
        between: impl AsyncFnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<(Self, Duration)> {
        self.end().await?;
        let data_dir = std::mem::replace(&mut self.data_dir, tempfile::tempdir().context("cannot make a folder")?);
        between(&data_dir.path().join("journal.redb")).await?;
        let started = Instant::now();
        let server = Self::start_in(program, data_dir).await?;
        Ok((server, started.elapsed()))
    }

    async fn start_in(program: &Path, data_dir: TempDir) -> anyhow::Result<Self> {
        let mut child = Command::new(program)
            .args(["serve", "--dev", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir.path())
            // What it has to say that is no routine is shown among our progress.
            .env("STEPWELL_LOG", "warn")
            // What one tenant may publish is a rule and not a limit of the machine.
            .env("STEPWELL_UPDATES_PER_SECOND", "1000000")
            // Nor how many streams it may have: there is one tenant here.
            .env("STEPWELL_STREAMS_PER_TENANT", "40000")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true) // when it does not even start
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let stdout = child.stdout.take().context("the server has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(START_TIMEOUT, lines.next_line()).await;
        let line = line.context("the server does not start")??.context("the server ended before it started")?;
        let address = line.strip_prefix(LISTENING).and_then(|address| address.parse().ok());
        let address = address.with_context(|| format!("the server said what it should not: {line}"))?;
        // Kept open: a server that prints more must not fail for it.
        child.stdout = Some(lines.into_inner().into_inner());
        Ok(Self { child, address, data_dir })
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        Connection::open(self.address).await
    }

    /// Deploys a component and says which version it is.
    pub(crate) async fn deploy_version(&self, name: &str, component: &Bytes) -> anyhow::Result<Digest> {
        let path = format!("/v1/workflows/{name}/versions");
        let headers = [(CONTENT_TYPE, "application/wasm")];
        let mut connection = self.connect().await?;
        let version =
            connection.send_for_json(Method::POST, &path, &headers, component.clone(), StatusCode::CREATED).await?;
        let version = version.pointer("/version").and_then(Value::as_str);
        Ok(version.context("the deployed version has no name")?.parse()?)
    }

    /// Deploys a component and says how many steps a run of it has.
    pub(crate) async fn deploy(&self, name: &str, component: &Bytes) -> anyhow::Result<usize> {
        let path = format!("/v1/workflows/{name}/versions");
        let headers = [(CONTENT_TYPE, "application/wasm")];
        let mut connection = self.connect().await?;
        let version =
            connection.send_for_json(Method::POST, &path, &headers, component.clone(), StatusCode::CREATED).await?;
        let nodes = version.pointer("/graph/nodes").and_then(Value::as_array);
        Ok(nodes.context("the deployed version has no graph")?.len())
    }

    /// Bytes of the journal's file.
    pub(crate) fn journal_bytes(&self) -> anyhow::Result<u64> {
        let path = self.data_dir.path().join("journal.redb");
        Ok(std::fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?.len())
    }

    /// Memory that the process holds, in bytes.
    pub(crate) fn rss_bytes(&self) -> anyhow::Result<u64> {
        let pid = self.child.id().context("the server has ended")?;
        let status =
            std::fs::read_to_string(format!("/proc/{pid}/status")).context("cannot read the server's status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        Ok(kib.context("the server's status has no VmRSS")? << 10)
    }

    /// Tells the server to stop and waits until it has.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.end().await
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        let Some(pid) = pid else { bail!("the server has ended by itself") };
        kill_process(pid, Signal::TERM).context("cannot tell the server to stop")?;
        let ended = tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await;
        let status = ended.context("the server does not stop")??;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}

impl Drop for Server {
    /// Kills a server that was not stopped, and waits for it: its folder is removed next.
    fn drop(&mut self) {
        drop(self.child.start_kill()); // fails when it has ended, which is as good
        let until = Instant::now() + KILL_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A folder that is removed when it is dropped.
pub(crate) fn scratch_dir(disk: &Path) -> anyhow::Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(disk);
    dir.with_context(|| format!("cannot make a folder in {}", disk.display()))
}

/// Waits for ^C, or for whoever manages this process.
pub(crate) async fn told_to_stop() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
