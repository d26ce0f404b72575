//! The driver with a real journal on a disk that can be held, and a real sandbox: what happens before events are on disk,
//! and what waits for room.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stepwell::clock;
use stepwell::driver::{Driver, DriverConfig, Outside};
use stepwell::journal::catalog::VersionRecord;
use stepwell::journal::{Journal, RedbJournal, RunFilter};
use stepwell::sandbox::{Sandbox, SandboxConfig};
use stepwell::vault::Vault;
use stepwell_core::{Event, Json, Payload, RunKey, RunStatus, TenantId, WorkflowName};
use stepwell_outbound::{Outbound, OutboundConfig};

use crate::journal::{Disk, Trouble};
use crate::support::{PATIENCE, Server, check_history, eventually, guest};

/// A driver of one's own, with a guest deployed.
pub(crate) struct Host {
    pub(crate) disk: Disk,
    pub(crate) journal: Arc<RedbJournal>,
    sandbox: Arc<Sandbox>,
    outside: Outside,
    pub(crate) driver: Driver,
    pub(crate) tenant: TenantId,
    pub(crate) workflow: WorkflowName,
    code: tempfile::TempDir,
}

const SLOTS: u32 = 8;

const CONFIG: DriverConfig =
    DriverConfig { active_runs_max: 10, active_runs_per_tenant: 10, updates_per_second: 5_000, grace: Duration::ZERO };

impl Host {
    async fn new() -> Self {
        Self::with("probe", "stepwell_probe").await
    }

    /// A host with this guest deployed under this name.
    pub(crate) async fn with(workflow: &str, guest_name: &str) -> Self {
        let disk = Disk::new(vec![], u64::MAX);
        let journal = Arc::new(RedbJournal::open_backend(disk.clone()).unwrap());
        let code = tempfile::tempdir().unwrap();
        let sandbox = Sandbox::new(SandboxConfig {
            slots: SLOTS,
            slots_per_tenant: SLOTS,
            threads: 2,
            code_dir: code.path().to_owned(),
            secret: *journal.secret(),
            compiler: env!("CARGO_BIN_EXE_stepwell").into(),
        });
        let sandbox = Arc::new(sandbox.unwrap());
        let (tenant, workflow): (TenantId, WorkflowName) = ("acme".parse().unwrap(), workflow.parse().unwrap());
        let host = Self::on(disk, journal, sandbox, tenant, workflow, code);
        let component = Bytes::from(guest(guest_name));
        let inspected = host.sandbox.inspect(&host.tenant, component.clone()).await.unwrap();
        let record = VersionRecord {
            version: inspected.version,
            created_at: clock::now(),
            size_bytes: inspected.size_bytes,
            imports: inspected.imports,
            graph: inspected.graph,
            is_of_document: false,
        };
        host.journal.put_version(&host.tenant, &host.workflow, record, component, true).await.unwrap();
        host
    }

    fn on(
        disk: Disk,
        journal: Arc<RedbJournal>,
        sandbox: Arc<Sandbox>,
        tenant: TenantId,
        workflow: WorkflowName,
        code: tempfile::TempDir,
    ) -> Self {
        let vault = Arc::new(Vault::open(code.path(), false).unwrap());
        let outbound = Outbound::new(OutboundConfig::default()).unwrap();
        let outside = Outside { outbound, journal: Arc::clone(&journal), vault };
        let driver = Driver::new(Arc::clone(&journal), Arc::clone(&sandbox), outside.clone(), &CONFIG);
        Self { disk, journal, sandbox, outside, driver, tenant, workflow, code }
    }

    /// The host that comes after this one, on what is left of its disk.
    pub(crate) async fn after_a_power_cut(self, torn: u64) -> Self {
        let Self { disk, journal, sandbox, outside, driver, tenant, workflow, code } = self;
        tokio::time::timeout(PATIENCE, driver.stop()).await.unwrap();
        let disk = Disk::new(disk.survivor(torn), u64::MAX);
        drop((journal, outside, driver));
        let journal = Arc::new(RedbJournal::open_backend(disk.clone()).unwrap());
        let host = Self::on(disk, journal, sandbox, tenant, workflow, code);
        host.driver.recover().await;
        host
    }

    /// What a run that has completed has put out.
    pub(crate) fn output(&self, key: &RunKey) -> Value {
        match self.journal.read(key, 0, usize::MAX).unwrap().pop().unwrap().event {
            Event::RunCompleted { output: Payload::Inline(json) } => serde_json::from_str(json.as_str()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    async fn start(&self, input: Value) -> RunKey {
        let input = Json::parse(input.to_string()).unwrap();
        let started = self.driver.start(&self.tenant, &self.workflow, None, input, None).await.unwrap();
        RunKey { tenant: self.tenant.clone(), run: started.run }
    }

    fn attempts_under_way(&self) -> u32 {
        let shown = format!("{:?}", self.sandbox);
        let free = shown.split("free_slots: ").nth(1).unwrap().split(',').next().unwrap().trim();
        SLOTS - free.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap()
    }

    fn kinds(&self, key: &RunKey) -> Vec<&'static str> {
        let events = self.journal.read(key, 0, usize::MAX).unwrap();
        events.iter().map(|recorded| recorded.event.kind()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acts_and_nobody_is_told_before_it_is_on_disk() {
    let host = Host::new().await;
    // The first append goes through; then the disk stands still while the first step publishes, again and again, and ends.
    let key = host.start(json!({"busy_ms": 500, "updates": 20})).await;
    eventually("the first step to start", || async { (host.attempts_under_way() == 1).then_some(()) }).await;
    let held = host.disk.hold();
    let tail = host.journal.tail(&key).unwrap();
    let told = tail.state();
    eventually("the first step to end", || async { (host.attempts_under_way() == 0).then_some(()) }).await;
    // Its successors are decided and due. Now its first update gets to disk, and what comes with its end does not.
    let mut told = told;
    while tail.state() == told {
        eventually("the journal to wait for the disk", || async { held.is_awaited().then_some(()) }).await;
        held.let_one_through();
        let moved = || async { (held.is_awaited() || tail.state() != told).then_some(()) };
        eventually("the disk to go on", moved).await;
    }
    told = tail.state();
    eventually("the journal to wait again", || async { held.is_awaited().then_some(()) }).await;
    // Something that must not happen needs time to happen.
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(host.attempts_under_way(), 0, "a step runs on the strength of an event that is not on disk");
        assert_eq!(tail.state(), told, "a subscriber is told of an event that is not on disk");
    }
    let cancelled = host.driver.cancel(&key, None);
    tokio::pin!(cancelled);
    let early = tokio::time::timeout(Duration::from_millis(100), cancelled.as_mut()).await;
    assert!(early.is_err(), "a caller is told of a cancellation that is not on disk");
    drop(held);
    tokio::time::timeout(PATIENCE, cancelled).await.unwrap().unwrap();
    assert_eq!(host.kinds(&key).last(), Some(&"run.cancelled"));
    eventually("all attempts to stop", || async { (host.attempts_under_way() == 0).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_stops_leaves_what_it_cut_off_to_the_next() {
    let host = Host::new().await;
    let key = host.start(json!({"busy_ms": 20_000, "updates": 1_000})).await;
    eventually("an update", || async { host.kinds(&key).contains(&"step.update").then_some(()) }).await;
    tokio::time::timeout(PATIENCE, host.driver.stop()).await.unwrap();
    assert_eq!(host.driver.runs_under_way(), 0);
    let kinds = host.kinds(&key);
    assert!(!kinds.contains(&"step.failed") && !kinds.contains(&"run.cancelled"), "stopping is no event: {kinds:?}");
    assert_eq!(host.journal.unfinished(&key.tenant, None, 10).unwrap(), std::slice::from_ref(&key));

    let next = Driver::new(Arc::clone(&host.journal), Arc::clone(&host.sandbox), host.outside.clone(), &CONFIG);
    assert_eq!(next.recover().await, 1);
    let again = || async {
        let events = host.journal.read(&key, 0, usize::MAX).unwrap();
        let resumed = events.iter().position(|r| matches!(r.event, Event::StepResumed { .. }))?;
        let goes_on = events.iter().skip(resumed).any(|r| matches!(r.event, Event::StepUpdate { attempt: 1, .. }));
        goes_on.then_some(())
    };
    eventually("the attempt to go on", again).await;
    next.cancel(&key, None).await.unwrap();
    next.stop().await;
}

/// An attempt that is cut off in a paused run is taken up again behind the resumption, and only once that is on disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_run_goes_on_when_it_is_on_disk_that_it_does() {
    let host = Host::new().await;
    let key = host.start(json!({"busy_ms": 20_000, "updates": 1_000})).await;
    eventually("an update", || async { host.kinds(&key).contains(&"step.update").then_some(()) }).await;
    host.driver.pause(&key, None).await.unwrap();
    let host = host.after_a_power_cut(0).await;
    let before = host.kinds(&key).len();
    let held = host.disk.hold();
    let resumed = host.driver.resume(&key);
    tokio::pin!(resumed);
    assert!(futures_util::poll!(resumed.as_mut()).is_pending());
    eventually("the journal to wait for the disk", || async { held.is_awaited().then_some(()) }).await;
    // Something that must not happen needs time to happen.
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(host.attempts_under_way(), 0, "a step runs in a run that is paused");
    }
    drop(held);
    tokio::time::timeout(PATIENCE, resumed).await.unwrap().unwrap();
    eventually("the step to go on", || async { (host.attempts_under_way() == 1).then_some(()) }).await;
    assert_eq!(host.kinds(&key)[before..before + 2], ["run.resumed", "step.resumed"]);
    host.driver.cancel(&key, None).await.unwrap();
    host.driver.stop().await;
}

/// A paused run is on no list of those that have something to do, until a step of it fails that has children.
#[tokio::test(flavor = "multi_thread")]
async fn children_of_an_attempt_that_fails_in_a_paused_run_are_cancelled_after_a_crash_too() {
    let host = Host::with("waits", "stepwell_waits").await;
    let child = json!({"start": {"workflow": "waits", "input": [{"signal": {"name": "go"}}]}});
    let key = host.start(json!([child, {"busy_ms": 700}, {"fail": {"attempts": 1, "code": "busy"}}])).await;
    let child = || async {
        let filter = RunFilter { status: Some(RunStatus::Suspended), ..RunFilter::default() };
        let runs = host.journal.runs(&host.tenant, &filter, 10).unwrap();
        runs.runs.into_iter().map(|(run, _)| RunKey { tenant: host.tenant.clone(), run }).find(|run| *run != key)
    };
    let child = eventually("the child to wait", child).await;
    host.driver.pause(&key, None).await.unwrap();
    // The failure gets to disk, and the child's cancellation does not.
    let held = host.disk.hold();
    let has_failed = || host.kinds(&key).contains(&"step.failed");
    loop {
        let moved = || async { (held.is_awaited() || has_failed()).then_some(()) };
        eventually("the journal to wait for the disk", moved).await;
        if has_failed() {
            break;
        }
        held.let_one_through();
    }
    host.disk.trouble(Trouble::GoneAfter(0));
    drop(held);
    tokio::time::timeout(PATIENCE, host.journal.broken()).await.unwrap();
    let host = host.after_a_power_cut(0).await;
    let status = |key: &RunKey| host.journal.summary(key).unwrap().unwrap().status;
    assert!(host.kinds(&key).contains(&"step.failed"));
    eventually("the child to be cancelled", || async { (status(&child) == RunStatus::Cancelled).then_some(()) }).await;
    assert_eq!(status(&key), RunStatus::Paused);
    host.driver.stop().await;
}

/// Whatever happened to a run that waited for room sent it to the end of the line.
#[tokio::test]
async fn a_place_in_the_line_for_room_is_kept() {
    let server = Server::start_with(&["--dev", "--active-runs", "1"]);
    server.deploy("waits", "stepwell_waits").await;
    let first = server.start_run("waits", json!([{"sleep": 50}, {"publish": 1}])).await;
    server.run_when(&first, |run| run["status"] == "suspended").await;
    let busy = server.start_run("waits", json!([{"busy_ms": 2_000}])).await;
    server.run_when(&first, |run| run["status"] == "running").await;
    let last = server.start_run("waits", json!([])).await;
    for n in 0..3 {
        let told = server.request(Method::POST, &format!("/v1/runs/{first}/signals/go")).json(&json!(n)).send().await;
        assert_eq!(told.unwrap().status(), StatusCode::ACCEPTED);
    }
    assert_eq!(server.get(&format!("/v1/runs/{busy}")).await["status"], "running", "too slow for this test");
    let (first, last) = (server.ended(&first).await, server.ended(&last).await);
    assert!(first["ended_at"].as_str() <= last["started_at"].as_str(), "{first} {last}");
}

/// Refused updates once counted as staged: with enough of them the loop took no message any more, for ever.
#[tokio::test]
async fn updates_that_are_refused_leave_nothing_behind() {
    let server = Server::start();
    server.deploy("hostile", "stepwell_hostile").await;
    let run = server.run("hostile", json!({"behaviour": "publish_unknown_topic_large", "n": 40})).await;
    assert_eq!(run["status"], "completed", "{run}");
    assert_eq!(run["output"]["unknown_topic"], 40, "{run}");
}

#[tokio::test]
async fn runs_beyond_the_limit_stay_queued_and_their_streams_start_with_them() {
    let server = Server::start_with(&["--dev", "--active-runs", "1"]);
    server.deploy("probe", "stepwell_probe").await;
    let first = server.start_run("probe", json!({"busy_ms": 400, "updates": 10, "route": "left"})).await;
    let second = server.start_run("probe", json!({"updates": 1})).await;
    let third = server.start_run("probe", json!({"updates": 1})).await;
    for id in [&second, &third] {
        assert_eq!(server.get(&format!("/v1/runs/{id}")).await["status"], "queued");
    }
    let cancel = server.request(Method::POST, &format!("/v1/runs/{third}/cancel")).send().await.unwrap();
    assert_eq!(cancel.status(), StatusCode::OK, "a queued run can be cancelled");
    let frames = server.follow(&second, None).await;
    let (first, frames) = tokio::join!(server.ended(&first), frames.rest());
    let events = server.events(&second).await;
    check_history(&events);
    assert_eq!(frames.iter().map(|frame| frame.data.clone()).collect::<Vec<_>>(), events);
    assert!(events[1]["at"].as_str() >= first["ended_at"].as_str(), "it has waited for its turn");
    assert_eq!(server.events(&third).await.len(), 2);
}

#[tokio::test]
async fn a_run_that_waits_makes_room_for_others() {
    let server = Server::start_with(&["--dev", "--active-runs", "1"]);
    server.deploy("probe", "stepwell_probe").await;
    let waits = json!({"fail_node": "begin", "fail_first": 1, "retry_after_ms": 2_000});
    let waiting = server.start_run("probe", waits).await;
    server.run_when(&waiting, |run| run["status"] == "suspended").await;
    let other = server.run("probe", json!({"updates": 1})).await;
    assert_eq!(other["status"], "completed");
    assert_eq!(server.get(&format!("/v1/runs/{waiting}")).await["status"], "suspended", "the other one is faster");
    assert_eq!(server.ended(&waiting).await["status"], "completed");
}

#[tokio::test]
async fn one_tenants_steps_leave_slots_for_the_others() {
    let server = Server::start_with(&["--dev", "--slots", "4", "--slots-per-tenant", "3"]);
    let data_dir = server.data_dir().display().to_string();
    assert_eq!(server.cli(&["admin", "tenant", "create", "other", "--data-dir", &data_dir]).code, 0);
    let key = server.cli(&["admin", "key", "create", "other", "--data-dir", &data_dir]).stdout.trim().to_owned();
    server.deploy("probe", "stepwell_probe").await;
    server.deploy_as(&key, "noop", "stepwell_noop").await;
    let mut greedy = Vec::new();
    for _ in 0..10 {
        greedy.push(server.start_run("probe", json!({"busy_ms": 25_000, "updates": 1_000})).await);
    }
    let request = server.request_as(&key, Method::POST, "/v1/workflows/noop/runs").header("prefer", "wait=60");
    let run: Value = request.json(&json!({"input": 1})).send().await.unwrap().json().await.unwrap();
    assert_eq!(run["status"], "completed", "{run}");
    for id in greedy {
        assert_eq!(server.get(&format!("/v1/runs/{id}")).await["status"], "running");
    }
}

#[tokio::test]
async fn inputs_that_do_not_fit_into_the_step_are_not_read() {
    let server = Server::start();
    server.deploy("hostile", "stepwell_hostile").await;
    let failure = server.run("hostile", json!({"behaviour": "large_inputs", "pad": "x".repeat(3 << 20)})).await;
    // `hungry` has 2 MiB of memory.
    assert_eq!(failure["failure"]["code"], "input_too_large", "{}", failure["failure"]);
}
