//! A server of one's own, and what it takes to talk to it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The longest that anything here is waited for. Much longer than it takes, so that a slow machine fails no test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A component that `make guests` has built.
pub(crate) fn guest(name: &str) -> Vec<u8> {
    let path = guest_path(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; run `make guests`", path.display()))
}

pub(crate) fn guest_path(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.join(format!("target/guests/wasm32-unknown-unknown/release/{name}.component.wasm"))
}

/// The program under test.
pub(crate) fn stepwell() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stepwell"));
    // Whatever the developer's shell has set is not the tests' business.
    for name in ["STEPWELL_URL", "STEPWELL_API_KEY", "STEPWELL_OPERATOR_KEY", "STEPWELL_DATA_DIR", "STEPWELL_LISTEN"] {
        command.env_remove(name);
    }
    command
}

/// A running server with a data directory of its own. Killed and deleted on drop.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    data: TempDir,
    arguments: Vec<String>,
    http: reqwest::Client,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// A server with tenant `dev`.
    pub(crate) fn start() -> Self {
        Self::start_with(&["--dev"])
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        Self::start_in(TempDir::new().unwrap(), arguments)
    }

    /// The same, on a copy of a data directory in which a graph was compiled before. The first one takes seconds.
    pub(crate) fn start_prepared(arguments: &[&str]) -> Self {
        let data = TempDir::new().unwrap();
        copy_folder(&prepared(), data.path());
        Self::start_in(data, arguments)
    }

    fn start_in(data: TempDir, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let log = Arc::new(Mutex::new(String::new()));
        let (child, url) = spawn(data.path(), "127.0.0.1:0", &arguments, &log);
        drop(rustls::crypto::ring::default_provider().install_default());
        Self { child, url, data, arguments, http: reqwest::Client::new(), log }
    }

    pub(crate) fn data_dir(&self) -> &Path {
        self.data.path()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the server as a power cut would, and starts it again.
    pub(crate) fn crash(&mut self) {
        self.kill();
        self.start_again();
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap(); // SIGKILL
        self.child.wait().unwrap();
    }

    pub(crate) fn start_again(&mut self) {
        self.start_again_at("127.0.0.1:0");
    }

    pub(crate) fn start_again_at(&mut self, address: &str) {
        (self.child, self.url) = spawn(self.data.path(), address, &self.arguments, &self.log);
    }

    /// Asks the server to stop, and waits until it has. Returns its exit code.
    pub(crate) fn stop(&mut self) -> i32 {
        let told = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().unwrap();
        assert!(told.success());
        self.wait_for_exit()
    }

    pub(crate) fn wait_for_exit(&mut self) -> i32 {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(started.elapsed() < PATIENCE, "the server does not stop\n{}", self.log());
            std::thread::yield_now();
        }
    }

    /// What the server has logged.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// A request as tenant `dev`.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_as("dev", method, path)
    }

    pub(crate) fn request_as(&self, key: &str, method: Method, path: &str) -> RequestBuilder {
        self.anonymous(method, path).bearer_auth(key)
    }

    pub(crate) fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).timeout(PATIENCE)
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let response = self.request(Method::GET, path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "GET {path}");
        response.json().await.unwrap()
    }

    /// Deploys a guest for tenant `dev` under a name.
    pub(crate) async fn deploy(&self, name: &str, guest_name: &str) -> String {
        self.deploy_as("dev", name, guest_name).await
    }

    pub(crate) async fn deploy_as(&self, key: &str, name: &str, guest_name: &str) -> String {
        let path = format!("/v1/workflows/{name}/versions");
        let response = self.request_as(key, Method::POST, &path).body(guest(guest_name)).send().await.unwrap();
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["version"].as_str().unwrap().to_owned()
    }

    /// Deploys a graph document for tenant `dev` under a name.
    pub(crate) async fn deploy_graph(&self, name: &str, document: &Value) -> String {
        let response = self.post_graph(name, document).send().await.unwrap();
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["version"].as_str().unwrap().to_owned()
    }

    pub(crate) fn post_graph(&self, name: &str, document: &Value) -> RequestBuilder {
        self.request(Method::POST, &format!("/v1/workflows/{name}/versions")).json(document)
    }

    /// Starts a run and returns its id.
    pub(crate) async fn start_run(&self, workflow: &str, input: Value) -> String {
        let response = self.post_run(workflow, input).send().await.unwrap();
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn post_run(&self, workflow: &str, input: Value) -> RequestBuilder {
        self.request(Method::POST, &format!("/v1/workflows/{workflow}/runs")).json(&json!({ "input": input }))
    }

    /// Starts a run, waits for its end and returns it.
    pub(crate) async fn run(&self, workflow: &str, input: Value) -> Value {
        let id = self.start_run(workflow, input).await;
        self.ended(&id).await
    }

    /// Waits until a run has ended, through crashes of the server, and returns it.
    pub(crate) async fn ended(&self, id: &str) -> Value {
        self.run_when(id, |run| matches!(run["status"].as_str(), Some("completed" | "failed" | "cancelled"))).await
    }

    /// Waits until a run is as wanted.
    pub(crate) async fn run_when(&self, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let path = format!("/v1/runs/{id}");
        eventually(&format!("run {id}"), || async {
            let response = self.request(Method::GET, &path).send().await.ok()?;
            let run: Value = response.json().await.ok()?;
            wanted(&run).then_some(run)
        })
        .await
    }

    /// Waits until a run has an event as wanted.
    pub(crate) async fn event_when(&self, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("an event of run {id}"), || async {
            self.events(id).await.into_iter().find(|event| wanted(event))
        })
        .await
    }

    /// All events of a run.
    pub(crate) async fn events(&self, id: &str) -> Vec<Value> {
        let mut events: Vec<Value> = Vec::new();
        loop {
            let after = events.last().map_or(0, |event| event["seq"].as_u64().unwrap());
            let page = self.get(&format!("/v1/runs/{id}/events?limit=1000&after={after}")).await;
            events.extend(page["data"].as_array().unwrap().iter().cloned());
            if !page["page"]["has_more"].as_bool().unwrap() {
                return events;
            }
        }
    }

    /// A run's events as a stream.
    pub(crate) async fn follow(&self, id: &str, last_event_id: Option<u64>) -> Frames {
        let mut request =
            self.request(Method::GET, &format!("/v1/runs/{id}/events")).header("accept", "text/event-stream");
        if let Some(last) = last_event_id {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Frames { response, unread: Vec::new() }
    }

    /// Runs the command line against this server.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Ran {
        let output = stepwell().args(arguments).env("STEPWELL_URL", &self.url).stdin(Stdio::null()).output().unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        let log = self.log();
        // A panic in the server is a defect whatever the test was about.
        if log.contains("panicked at") && !std::thread::panicking() {
            panic!("the server has panicked:\n{log}");
        }
    }
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A data directory with nothing in it but what a server makes for all graphs. Made by the first test that asks.
fn prepared() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock = fs::File::create(folder.join("prepared.lock")).unwrap();
    lock.lock().unwrap();
    let built = fs::metadata(env!("CARGO_BIN_EXE_stepwell")).unwrap().modified().unwrap();
    let name = format!("prepared-{}", built.duration_since(UNIX_EPOCH).unwrap().as_nanos());
    let ready = folder.join(name);
    if !ready.exists() {
        for old in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
            if old.file_name().unwrap().to_string_lossy().starts_with("prepared-") {
                fs::remove_dir_all(old).unwrap();
            }
        }
        let mut server = Server::start();
        // It is compiled, and then refused, so that nothing of it is left.
        let node = json!({"id": "a", "kind": "component", "workflow": "w", "version": "0".repeat(64), "node": "n"});
        let graph = server.data_dir().join("graph.json");
        fs::write(&graph, json!({"stepwell": 1, "nodes": [node]}).to_string()).unwrap();
        let refused = server.cli(&["deploy", "prepared", graph.to_str().unwrap()]);
        assert!(refused.stderr.contains("unknown_delegate"), "{refused:?}");
        fs::remove_file(graph).unwrap();
        assert_eq!(server.stop(), 0);
        let half = folder.join("prepared-half");
        copy_folder(server.data_dir(), &half);
        fs::rename(half, &ready).unwrap();
    }
    ready
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn spawn(data: &Path, address: &str, arguments: &[String], log: &Arc<Mutex<String>>) -> (Child, String) {
    let mut child = stepwell()
        .args(["serve", "--listen", address, "--data-dir"])
        .arg(data)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stderr.read(&mut buffer) {
            log.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    });
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("stepwell is listening on ").unwrap_or_else(|| panic!("it said {line:?}"));
    let url = url.to_owned();
    (child, url)
}

/// Waits for a value.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "{what}: waited too long");
        // Not a wait for time to pass: leaves the processor to whom we are waiting for.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A refusal: its status and its code. Checks the form that all refusals share.
pub(crate) async fn problem(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json", "HTTP {status}");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["status"], status);
    assert!(body["source"] == "platform" && !body["detail"].as_str().unwrap().is_empty(), "{body}");
    (status, body["code"].as_str().unwrap().to_owned())
}

/// One frame of a stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Frame {
    pub(crate) id: u64,
    pub(crate) event: String,
    pub(crate) data: Value,
}

/// A stream as it comes in.
pub(crate) struct Frames {
    response: Response,
    unread: Vec<u8>,
}

impl Frames {
    pub(crate) fn of(response: Response) -> Self {
        Self { response, unread: Vec::new() }
    }

    /// The next frame with an event; `None` when the server has closed the stream or the connection is gone.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            while let Some(end) = self.unread.windows(2).position(|pair| pair == b"\n\n") {
                let frame: Vec<u8> = self.unread.drain(..end + 2).collect();
                let text = String::from_utf8(frame).unwrap();
                let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                if let Some(data) = field("data:") {
                    let data = serde_json::from_str(data).unwrap();
                    return Some(Frame { id: field("id:")?.parse().ok()?, event: field("event:")?.to_owned(), data });
                }
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("the stream is silent");
            self.unread.extend_from_slice(&chunk.ok()??);
        }
    }

    /// All frames until the server closes the stream.
    pub(crate) async fn rest(mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }
}

/// What clients must be able to rely on, for a run that has ended: numbers without gaps, one terminal event at the
/// end, each step completed at most once, and no update twice once rolled back attempts are folded away. Returns the
/// updates that count.
pub(crate) fn check_history(events: &[Value]) -> Vec<Value> {
    let step = |event: &Value| format!("{}{}", event["node"], event["items"]);
    let mut updates: Vec<Value> = Vec::new();
    let mut completed = std::collections::HashSet::new();
    let mut suspended = false;
    for (event, seq) in events.iter().zip(1u64..) {
        let kind = event["kind"].as_str().unwrap();
        assert_eq!(event["seq"], seq, "{event}");
        let may_follow = ["run.resumed", "run.cancelled", "run.paused", "run.failed", "signal.received"];
        assert!(!suspended || may_follow.contains(&kind), "moves while suspended: {event}");
        suspended = kind == "run.suspended" || suspended && kind == "signal.received";
        match kind {
            "step.update" => updates.push(event.clone()),
            "step.rolled_back" => {
                let range = event["first_seq"].as_u64().unwrap()..=event["last_seq"].as_u64().unwrap();
                updates.retain(|u| step(u) != step(event) || !range.contains(&u["seq"].as_u64().unwrap()));
            }
            "step.completed" | "step.taken_over" => assert!(completed.insert(step(event)), "completed twice: {event}"),
            _ => {}
        }
        let terminal = matches!(kind, "run.completed" | "run.failed" | "run.cancelled");
        assert_eq!(terminal, seq == events.len() as u64, "{event}");
    }
    let mut seen = std::collections::HashSet::new();
    for update in &updates {
        let said = format!("{} {} {}", step(update), update["topic"], update["payload"]);
        assert!(seen.insert(said.clone()), "twice: {said}");
    }
    updates
}
