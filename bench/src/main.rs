//! Prints what Stepwell does on this machine, and the limits it works against.
//!
//! Owns: the order of the measurements and what each figure is called. `make bench` builds everything and starts
//! this; `docs/measurements.md` says how the figures came about that are quoted elsewhere.
//! Does not: judge a figure. A slow machine is no error; a wrong answer is, and ends in exit code 1.
//! Keeps: what is measured is the real program, started as a process of its own, over HTTP, on the disk that the
//! JSON file is on. Everything it wrote is removed at the end, however that comes.
//!
//! Read on: [`server`] (the process that is measured), [`http`] (how it is talked to), [`load`] (clients that start
//! runs), [`streams`] (clients that follow runs), [`subscribers`] (many of them, and many updates), [`graphs`] (graphs that are saved), [`limits`] (sandbox and journal by themselves), [`report`].
//!
//! # One thread
//! All clients together have one thread. On a machine with few cores they compete with the server for them, and
//! with one thread they can never take more than one. They need far less: where a run of ten steps costs the server
//! some 500 µs, its client costs 25.

mod graphs;
mod http;
mod limits;
mod load;
mod report;
mod server;
mod streams;
mod subscribers;
mod waiting;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use serde_json::json;

use self::limits::Workflow;
use self::load::{Ask, Level, Measured};
use self::report::Report;
use self::server::Server;

// Sandbox and journal are also measured inside this process: with the allocator that they have in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Clients at once: one alone, a few, many, and more than a server of this size is meant for.
const CLIENTS: [usize; 4] = [1, 16, 64, 200];
/// Clients with which a new journal is compared with a grown one.
const CLIENTS_COMPARED: usize = 64;
/// Clients that make the journal grow.
const CLIENTS_GROWING: usize = 200;
/// Clients that start runs without waiting for their end.
const CLIENTS_ACCEPTED: usize = 500;
/// Runs that publish at once, as fast as they can.
const FLOODING_RUNS: usize = 200;
/// Measurements of which the median counts. Machines have neighbours.
const COMPARED_TIMES: usize = 3;

/// Prints what Stepwell does on this machine, and the limits it works against.
#[derive(Debug, Parser)]
struct Args {
    /// The server program
    #[arg(long)]
    server: PathBuf,
    /// The component of `bench/guests/noop`: steps in a row that do nothing
    #[arg(long)]
    noop: PathBuf,
    /// The component of `tests/guests/probe`: steps that publish updates
    #[arg(long)]
    probe: PathBuf,
    /// The component of `tests/guests/waits`: a step that waits
    #[arg(long)]
    waits: PathBuf,
    /// Where the figures go; journals are written beside it while it runs
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// Less than a minute instead of a few: shorter measurements, a journal of 5,000 runs instead of 100,000
    #[arg(long)]
    quick: bool,
    /// Only this part of the measurements; figures of the others stay in the file
    #[arg(long, value_enum)]
    only: Option<Part>,
}

/// A part of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Limits,
    Graphs,
    Levels,
    Subscribers,
    Waiting,
    Growth,
}

/// How long things take.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// Load before a measurement, which is not counted.
    warm_up: Duration,
    /// A measurement under load.
    measured: Duration,
    /// A measurement of the sandbox or the journal by itself.
    limit: Duration,
    /// How long runs are started without waiting for their end.
    accepting: Duration,
    /// Runs that are followed, one after the other.
    followed_runs: u32,
    /// Runs in the grown journal.
    grown_runs: u64,
    /// Graphs that are saved one after the other.
    saved_graphs: usize,
    /// Versions on one server.
    versions: usize,
    /// Subscribers to whom nothing happens.
    idle_subscribers: usize,
    /// Subscribers of one run that publishes.
    busy_subscribers: usize,
    /// Runs that wait for a signal.
    waiting_runs: usize,
    /// Runs that were in the middle of something when the host ended.
    interrupted_runs: usize,
}

impl Plan {
    const FULL: Self = Self {
        warm_up: Duration::from_secs(2),
        measured: Duration::from_secs(8),
        limit: Duration::from_secs(3),
        accepting: Duration::from_secs(5),
        followed_runs: 30,
        grown_runs: 100_000,
        saved_graphs: 30,
        versions: 1_000,
        idle_subscribers: 10_000,
        busy_subscribers: 1_000,
        waiting_runs: 1_000_000,
        interrupted_runs: 10_000,
    };
    const QUICK: Self = Self {
        warm_up: Duration::from_millis(500),
        measured: Duration::from_secs(2),
        limit: Duration::from_secs(1),
        accepting: Duration::from_secs(1),
        followed_runs: 8,
        grown_runs: 5_000,
        saved_graphs: 5,
        versions: 20,
        idle_subscribers: 1_000,
        busy_subscribers: 100,
        waiting_runs: 20_000,
        interrupted_runs: 500,
    };

    const fn level(&self, clients: usize) -> Level {
        Level { clients, warm_up: self.warm_up, measured: self.measured }
    }
}

/// What everything here needs to know.
struct Bench {
    args: Args,
    plan: Plan,
    noop: Bytes,
    probe: Bytes,
    waits: Bytes,
    /// Where journals are written.
    disk: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report::failed(&error.into()),
    };
    let result = runtime.block_on(async {
        // Told to stop, it drops what it does, and with it the server and the folders.
        tokio::select! {
            result = bench(args) => result,
            told = server::told_to_stop() => told.and_then(|()| anyhow::bail!("stopped before the end")),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report::failed(&error),
    }
}

async fn bench(args: Args) -> anyhow::Result<()> {
    let plan = if args.quick { Plan::QUICK } else { Plan::FULL };
    ensure!(args.server.is_file(), "there is no {}; `make bench` builds it", args.server.display());
    let noop = read(&args.noop)?;
    let probe = read(&args.probe)?;
    let waits = read(&args.waits)?;
    let disk = args.json.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let disk = disk.to_path_buf();
    std::fs::create_dir_all(&disk).with_context(|| format!("cannot make {}", disk.display()))?;

    let mut report = Report::begin(args.quick);
    let bench = Bench { args, plan, noop, probe, waits, disk };
    for part in [Part::Limits, Part::Graphs, Part::Levels, Part::Subscribers, Part::Waiting, Part::Growth] {
        if bench.args.only.is_some_and(|only| only != part) {
            continue;
        }
        match part {
            Part::Limits => bench.limits(&mut report).await?,
            Part::Graphs => bench.graphs(&mut report).await?,
            Part::Levels => bench.levels(&mut report).await?,
            Part::Subscribers => bench.subscribers(&mut report).await?,
            Part::Waiting => bench.waiting(&mut report).await?,
            Part::Growth => bench.growth(&mut report).await?,
        }
    }
    report.finish(&bench.args.json)
}

fn read(path: &Path) -> anyhow::Result<Bytes> {
    let bytes =
        std::fs::read(path).with_context(|| format!("cannot read {}; `make bench` builds it", path.display()))?;
    Ok(bytes.into())
}

impl Bench {
    async fn server(&self) -> anyhow::Result<Server> {
        Server::start(&self.args.server, &self.disk).await
    }

    /// What nothing that is built on this sandbox and this disk can surpass.
    async fn limits(&self, report: &mut Report) -> anyhow::Result<()> {
        report.part("The limits: sandbox and journal by themselves, in this process");
        let figures =
            limits::steps(&self.args.server, &self.disk, &Workflow::Component(self.noop.clone()), self.plan.limit)
                .await?;
        report.row("limit_step_us", figures.step_us, "µs", "one sandboxed step that does nothing, one after the other");
        report.row("limit_steps_per_s", figures.per_second, "/s", "the same with 64 in flight, on all cores");

        let transform = json!({ "stepwell": 1, "nodes": [
            { "id": "t", "kind": "transform", "output": { "n": "${ .input.n + 1 }", "text": "n is ${ .input.n }" } },
        ] });
        let transform = Workflow::Graph(Bytes::from(transform.to_string()));
        let figures = limits::steps(&self.args.server, &self.disk, &transform, self.plan.limit).await?;
        report.row(
            "limit_transform_step_us",
            figures.step_us,
            "µs",
            "one transform of a graph with two expressions, the same way",
        );
        report.row("limit_transform_steps_per_s", figures.per_second, "/s", "the same with 64 in flight, on all cores");

        let figures = limits::commits(&self.disk, self.plan.limit).await?;
        report.row("limit_commit_us", figures.mean_us, "µs", "one durable append (an fsync) after the other, mean");
        report.row("limit_commit_p50_us", figures.p50_us, "µs", "the same, median");
        report.row("limit_commits_100_per_s", figures.per_second, "/s", "durable appends of 100 runs at once");
        Ok(())
    }

    /// From saving a graph until it can run, and what many versions cost.
    async fn graphs(&self, report: &mut Report) -> anyhow::Result<()> {
        let Plan { saved_graphs, versions, .. } = self.plan;
        report.part("Graphs of 20 nodes: from saving one until it can run");
        let server = self.server().await?;
        let mut figures = graphs::saving(&server, saved_graphs).await?;
        report.row("graph_save_cold_ms", figures.cold_ms, "ms", "the first one of a new data directory");
        report.row("graph_save_warm_ms", median(&mut figures.warm_ms)?, "ms", "further ones, median");
        let worst = figures.warm_ms.last().copied().unwrap_or_default();
        report.row("graph_save_warm_max_ms", worst, "ms", "the slowest of them");
        let before = server.rss_bytes()?;
        graphs::many_versions(&server, versions).await?;
        let (after, note) = (
            server.rss_bytes()?,
            format!("{} of them after {saved_graphs} versions", report::thousands(before as f64)),
        );
        if self.args.quick {
            report.row_shown(
                "server_rss_bytes_1000_versions",
                after as f64,
                "B",
                &format!("quick: {versions} versions, not kept; {note}"),
            );
        } else {
            report.row("server_rss_bytes_1000_versions", after as f64, "B", &note);
        }
        server.stop().await
    }

    /// Everything that one server on a new journal is asked for.
    async fn levels(&self, report: &mut Report) -> anyhow::Result<()> {
        let server = self.server().await?;
        let steps = server.deploy("noop", &self.noop).await?;
        report.part(&format!("Durable steps: each client starts a run of {steps} steps, waits for its end, goes on"));
        for clients in CLIENTS {
            let what = if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients at once") };
            let measured = load::measure(&server, self.plan.level(clients), Ask::WholeRun).await?;
            report.failures(&what, &measured.failures);
            report.row(&format!("steps_per_s_{clients}"), measured.per_second()? * steps as f64, "/s", &what);
            report.latencies(&format!("run_{{}}_ms_{clients}"), &measured.latencies_ms, "POST to the answer: the run");
        }

        report.part("Updates: one subscriber, from the host's ordering of an update to the subscriber having it");
        server.deploy("probe", &self.probe).await?;
        let followed = streams::follow(&server, self.plan.followed_runs).await?;
        report.failures("following runs", &followed.failures);
        let updates = report::thousands(followed.latencies_ms.len() as f64);
        let note =
            format!("{updates} updates of {} runs, one at a time; guests compute meanwhile", self.plan.followed_runs);
        report.latencies("publish_to_sse_{}_ms", &followed.latencies_ms, &note);

        report.part(&format!("Acceptance: {CLIENTS_ACCEPTED} clients start runs and wait for none of them"));
        let level = Level { clients: CLIENTS_ACCEPTED, warm_up: Duration::ZERO, measured: self.plan.accepting };
        let accepted = load::measure(&server, level, Ask::Acceptance).await?;
        report.failures("accepting runs", &accepted.failures);
        let rate = report::thousands(accepted.per_second()?);
        let note = format!("POST to 202, the run is on disk; {rate} accepted/s");
        report.latencies(&format!("accept_{{}}_ms_{CLIENTS_ACCEPTED}"), &accepted.latencies_ms, &note);
        report.failures("runs in the backlog", &load::drain(&server).await?);
        server.stop().await
    }

    /// Many updates, and many who follow them.
    async fn subscribers(&self, report: &mut Report) -> anyhow::Result<()> {
        let Plan { idle_subscribers, busy_subscribers, .. } = self.plan;
        let server = self.server().await?;
        subscribers::prepare(&server, &self.probe).await?;
        report.part("Updates on disk: runs that publish as fast as they are let, without the limit of a tenant");
        let one = subscribers::flood_one(&server).await?;
        report.row("updates_per_s_1_run", one, "/s", "one run, until its subscriber has them all");
        let many = subscribers::flood_many(&server, FLOODING_RUNS, subscribers::ENTRIES_AFTER_ONE).await?;
        report.row("updates_per_s_200_runs", many, "/s", "200 runs at once, until all have ended");

        report.part("Subscribers: from the host's ordering of an update to a subscriber having it");
        let followed = subscribers::follow(&server, subscribers::PUBLISHING_RUNS, 1).await?;
        report.failures("following runs", &followed.failures);
        let rate = report::thousands(followed.updates_per_s);
        let note = format!("{rate} updates/s, the words of models, each run with a subscriber");
        report.latencies("publish_to_sse_{}_ms_1000_per_s", &followed.latencies_ms, &note);
        let followed = subscribers::follow(&server, 1, busy_subscribers).await?;
        report.failures("following one run", &followed.failures);
        let note = format!("{busy_subscribers} subscribers of one run with {:.0} updates/s", followed.updates_per_s);
        report.row("deliveries_per_s_1000_subscribers", followed.deliveries_per_s, "/s", &note);
        report.latencies("publish_to_sse_{}_ms_1000_subscribers", &followed.latencies_ms, "the same");
        report.row("subscriber_busy_bytes", followed.bytes_each, "B", "memory of the server for each of them");
        let idle = subscribers::idle(&server, idle_subscribers).await?;
        let note = format!("the same for each of {idle_subscribers} to whom nothing happens");
        report.row("subscriber_idle_bytes", idle, "B", &note);
        server.stop().await
    }

    /// Runs that wait, and hosts that come back.
    async fn waiting(&self, report: &mut Report) -> anyhow::Result<()> {
        let Plan { waiting_runs, interrupted_runs, .. } = self.plan;
        let (program, disk) = (&self.args.server, &self.disk);
        let shown = report::thousands(waiting_runs as f64);
        report.part(&format!("{shown} runs that wait for a signal, and a server that is started on them"));
        let waiting = waiting::many(program, disk, &self.waits, waiting_runs).await?;
        report.row("suspended_start_ms", waiting.start_ms, "ms", "from its start until it accepts requests");
        report.row("suspended_rss_bytes", waiting.bytes_each, "B", "memory of the server for each of them");
        report.row("suspended_disk_bytes", waiting.disk_bytes_each, "B", "disk for each of them");
        let note = "one of them, read from disk: from its signal to its end";
        report.latencies("suspended_wake_{}_ms", &waiting.woken_ms, note);

        report.part("Hosts that come back, and people who intervene");
        let seconds = waiting::recovery(program, disk, &self.waits, interrupted_runs).await?;
        let shown = report::thousands(interrupted_runs as f64);
        let note = format!("{shown} runs in the middle of an attempt: from the start until all have ended");
        report.row("recovery_s_10k", seconds, "s", &note);
        let (cancelled, resumed) = waiting::control(program, disk, &self.waits).await?;
        report.latencies("cancel_{}_ms", &cancelled, "a run that computes: from the request to the answer, on disk");
        let note = format!("a step with {} recorded calls: from its signal to its end", waiting::CALLS);
        report.latencies("resume_1000_calls_{}_ms", &resumed, &note);
        Ok(())
    }

    /// Whether a journal with many runs is slower than a new one.
    ///
    /// The journal is made to grow first. Then a new server and the grown one are measured in turns, so that a slow
    /// minute of the machine hits both. The one that is not measured is idle or does not exist.
    async fn growth(&self, report: &mut Report) -> anyhow::Result<()> {
        let Plan { grown_runs, .. } = self.plan;
        let quick = self.args.quick;
        report.part("Growth: the same load on a new journal and on one with many runs");
        let grown = self.server().await?;
        let steps = grown.deploy("noop", &self.noop).await?;
        report.failures("growing the journal", &load::drive(&grown, CLIENTS_GROWING, grown_runs).await?);
        let journal_bytes = grown.journal_bytes()?;

        let level = self.plan.level(CLIENTS_COMPARED);
        let (mut fresh, mut after) = (Vec::new(), Vec::new());
        for turn in 1..=COMPARED_TIMES {
            report::progress(&format!("new and grown journal in turns: {turn} of {COMPARED_TIMES}"));
            let new = self.server().await?;
            new.deploy("noop", &self.noop).await?;
            let mut one = async |server: &Server, rates: &mut Vec<f64>| {
                let measured: Measured = load::measure(server, level, Ask::WholeRun).await?;
                report.failures("comparing journals", &measured.failures);
                rates.push(measured.per_second()? * steps as f64);
                anyhow::Ok(())
            };
            one(&new, &mut fresh).await?;
            new.stop().await?;
            one(&grown, &mut after).await?;
        }
        let (fresh, after) = (median(&mut fresh)?, median(&mut after)?);
        report.row("steps_per_s_64_fresh", fresh, "/s", "a new journal; median of 3");
        let runs = report::thousands(grown_runs as f64);
        let mut row = |name: &str, value: f64, unit: &str, note: &str| {
            if quick {
                // A small journal says nothing about a large one: it is shown under the same name, and not kept.
                report.row_shown(name, value, unit, &format!("quick: {runs} runs, not kept; {note}"));
            } else {
                report.row(name, value, unit, note);
            }
        };
        row("steps_per_s_64_after_100k_runs", after, "/s", "a grown journal; median of 3");
        row("after_100k_runs_percent", after / fresh * 100.0, "%", "the second of the first; 100 is no difference");
        row("journal_bytes_100k_runs", journal_bytes as f64, "B", "the journal's file");
        row("server_rss_bytes_100k_runs", grown.rss_bytes()? as f64, "B", "memory of the server after all this");
        grown.stop().await
    }
}

fn median(values: &mut [f64]) -> anyhow::Result<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("there is no measurement")
}
