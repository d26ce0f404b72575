//! The command line. Results go to standard output, messages for people to standard error.

mod build;
mod commands;
mod flow;
mod inspect;
mod out;
mod serve;
mod shadow;
mod tenants;
mod triggers;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::sandbox::compile;

/// The command did what it was asked; for `run --follow`, the run completed.
const EXIT_OK: u8 = 0;
/// The run failed or was cancelled; the server ended because of an error.
const EXIT_FAILED: u8 = 1;
/// The command was used wrongly, or the server refused it or could not be reached.
const EXIT_USAGE: u8 = 2;

/// Runs workflows for many tenants, each step in a WebAssembly sandbox of its own.
#[derive(Debug, Parser)]
#[command(name = "stepwell", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the server
    Serve(serve::ServeArgs),
    /// Compiles a Rust crate to a component and prints the component's path
    Build {
        /// The crate's folder
        path: PathBuf,
    },
    /// Compiles a graph document to a component
    Compile {
        /// The graph document
        graph: PathBuf,
        /// Where to write the component
        #[arg(short, long)]
        output: PathBuf,
    },
    /// Shows what a component imports, its graph and its limits
    Inspect {
        /// The component
        component: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Uploads a component or a graph document as the new version of a workflow
    Deploy {
        /// The workflow's name
        name: String,
        /// The component, or the graph document
        component: PathBuf,
        /// Only stores it: new runs get the version that they got before
        #[arg(long)]
        no_promote: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Makes a version the one that new runs of its workflow get
    Promote {
        /// The workflow's name
        name: String,
        /// The version
        version: String,
        #[command(flatten)]
        server: Server,
    },
    /// Has a share of a workflow's runs repeated by another version, and shows what came of it
    Shadow(shadow::ShadowArgs),
    /// Starts a run
    Run {
        /// The workflow's name
        name: String,
        /// The input: JSON, or @FILE to read it from a file (@- for standard input)
        #[arg(long, default_value = "null")]
        input: String,
        /// The version to run, instead of the latest
        #[arg(long)]
        version: Option<String>,
        /// The same key starts the same run, for 24 hours
        #[arg(long)]
        idempotency_key: Option<String>,
        /// Shows events as they become durable; exits with 0 when the run completes, 1 when it fails or is cancelled
        #[arg(long)]
        follow: bool,
        /// As JSON: first {"run_id": …}, then one event a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Lists runs, newest first
    Runs {
        /// Only runs of this workflow
        #[arg(long)]
        workflow: Option<String>,
        /// Only runs with this status
        #[arg(long)]
        status: Option<String>,
        /// Shadows too
        #[arg(long)]
        shadows: bool,
        /// How many
        #[arg(long, default_value_t = 20)]
        limit: usize,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Shows a run with its steps and artifacts
    RunInfo {
        /// The run's id
        id: String,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Shows the events of a run
    Events {
        /// The run's id
        id: String,
        /// Goes on until the run has ended, and exits as `run --follow` does
        #[arg(long)]
        follow: bool,
        /// As JSON, one event a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Cancels a run
    Cancel {
        /// The run's id
        id: String,
        /// For whoever asks later
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Sends a signal to a run
    Signal {
        /// The run's id
        id: String,
        /// One of the workflow's signals
        name: String,
        /// The payload: JSON, or @FILE to read it from a file (@- for standard input)
        #[arg(long, default_value = "null")]
        data: String,
        /// The same key brings the signal once
        #[arg(long)]
        idempotency_key: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Holds a run: what is under way comes to its end, and nothing else begins
    Pause {
        /// The run's id
        id: String,
        /// For whoever asks later
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Lets a paused run go on
    Resume {
        /// The run's id
        id: String,
        #[command(flatten)]
        server: Server,
    },
    /// Starts a new run that repeats another
    Rerun {
        /// The run's id
        id: String,
        /// The node to begin at; results of what does not come after it are taken over
        #[arg(long)]
        from_step: Option<String>,
        /// Another input: JSON, or @FILE to read it from a file (@- for standard input)
        #[arg(long)]
        input: Option<String>,
        /// Another version, or `latest`
        #[arg(long)]
        version: Option<String>,
        /// Shows events as they become durable, and exits as `run --follow` does
        #[arg(long)]
        follow: bool,
        /// As JSON: first {"run_id": …}, then one event a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Shows how many of a workflow's steps execute at once and how fast its runs start, or sets it
    Flow {
        /// The workflow
        name: String,
        /// The settings, in place of those of before: JSON, or @FILE to read it from a file (@- for standard input)
        #[arg(long, conflicts_with = "clear")]
        set: Option<String>,
        /// Lets its runs go without limits
        #[arg(long)]
        clear: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Lists failed runs, grouped by workflow, node and code
    Failures {
        /// Only runs of this workflow
        #[arg(long)]
        workflow: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Lists triggers: what starts runs besides requests
    Triggers {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Sets up and deletes triggers
    #[command(subcommand)]
    Trigger(NamedCommand),
    /// Lists webhooks: who is told when runs end
    Webhooks {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Sets up and deletes webhooks
    #[command(subcommand)]
    Webhook(NamedCommand),
    /// Shows what this tenant uses and what it may use, as JSON
    Usage {
        #[command(flatten)]
        server: Server,
    },
    /// Sends an event to the triggers that wait for it
    Event {
        /// The event's name
        name: String,
        /// The data: JSON, or @FILE to read it from a file (@- for standard input)
        #[arg(long, default_value = "null")]
        data: String,
        /// The same id is the same event, for 24 hours
        #[arg(long)]
        id: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// What the operator of a server does
    Admin {
        #[command(subcommand)]
        command: AdminCommand,
    },
    /// Secrets: keys of providers, and what `http` nodes send as authorization
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Providers of language models, besides openai, anthropic and mock
    #[command(subcommand)]
    Provider(ProviderCommand),
    /// Reads a component from standard input and writes compiled code to standard output
    #[command(name = compile::COMPONENT_SUBCOMMAND, hide = true)]
    CompileComponent,
    /// Reads a graph from standard input and writes a component and compiled code to standard output
    #[command(name = compile::GRAPH_SUBCOMMAND, hide = true)]
    CompileGraph,
}

/// For what is described by a file.
#[derive(Debug, Subcommand)]
enum NamedCommand {
    /// Sets it up, in place of one with the same name
    Put {
        /// Its name
        name: String,
        /// A file with what the API takes, as JSON
        file: PathBuf,
        #[command(flatten)]
        server: Server,
    },
    /// Deletes it
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Debug, Subcommand)]
enum SecretCommand {
    /// Sets a secret to what standard input has, without the line break at its end
    Set {
        /// The secret's name
        name: String,
        /// A host that `http` nodes may send it to, such as api.example.com; can be given several times
        #[arg(long = "host")]
        hosts: Vec<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Lists the names of secrets
    List {
        #[command(flatten)]
        server: Server,
    },
    /// Deletes a secret
    Delete {
        /// The secret's name
        name: String,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Debug, Subcommand)]
enum ProviderCommand {
    /// Sets up a provider
    Set {
        /// What `llm` nodes call it
        name: String,
        /// How it is spoken to: openai or anthropic
        #[arg(long)]
        kind: String,
        /// What comes before /chat/completions (openai) or /v1/messages (anthropic)
        #[arg(long)]
        base_url: Option<String>,
        /// The name of the secret that holds its key
        #[arg(long)]
        secret: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Lists the providers that were set up
    List {
        #[command(flatten)]
        server: Server,
    },
    /// Forgets a provider
    Delete {
        /// The provider's name
        name: String,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// Tenants
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// API keys
    #[command(subcommand)]
    Key(KeyCommand),
}

#[derive(Debug, Subcommand)]
enum TenantCommand {
    /// Creates a tenant
    Create {
        /// a-z, 0-9 and -, at most 40 characters
        id: String,
        /// Days after its end that a run is deleted
        #[arg(long)]
        retention_days: Option<u32>,
        #[command(flatten)]
        server: AdminServer,
    },
    /// Lists all tenants
    List {
        #[command(flatten)]
        server: AdminServer,
    },
    /// Shows what a tenant uses and what it may use, as JSON
    Show {
        /// The tenant
        id: String,
        #[command(flatten)]
        server: AdminServer,
    },
    /// Changes what a tenant may use and how long its runs are kept; `default` sets the default
    Set {
        /// The tenant
        id: String,
        #[command(flatten)]
        settings: TenantSettings,
        #[command(flatten)]
        server: AdminServer,
    },
}

/// What can be set for a tenant: a number, or `default`.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct TenantSettings {
    /// Days after its end that a run is deleted
    #[arg(long, value_parser = setting)]
    retention_days: Option<Setting>,
    /// Days after its end that a run's files and large values are deleted
    #[arg(long, value_parser = setting)]
    artifact_retention_days: Option<Setting>,
    /// Bytes that it may have in the journal
    #[arg(long, value_parser = setting)]
    journal_bytes: Option<Setting>,
    /// Runs that have not ended
    #[arg(long, value_parser = setting)]
    unfinished_runs: Option<Setting>,
    /// Events of one run
    #[arg(long, value_parser = setting)]
    run_events: Option<Setting>,
    /// Bytes of an input or a signal
    #[arg(long, value_parser = setting)]
    input_bytes: Option<Setting>,
    /// Bytes of one file
    #[arg(long, value_parser = setting)]
    artifact_bytes: Option<Setting>,
}

/// A number, or the default.
#[derive(Debug, Clone, Copy)]
struct Setting(Option<u64>);

fn setting(text: &str) -> Result<Setting, String> {
    match text {
        "default" => Ok(Setting(None)),
        number => number.parse().map(|number| Setting(Some(number))).map_err(|_| "a number, or `default`".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Creates an API key for a tenant and prints it, this once
    Create {
        /// The tenant
        tenant: String,
        #[command(flatten)]
        server: AdminServer,
    },
    /// Lists all API keys ever created, without the keys
    List {
        #[command(flatten)]
        server: AdminServer,
    },
    /// Stops accepting an API key
    Revoke {
        /// The key's id: its middle part
        id: String,
        #[command(flatten)]
        server: AdminServer,
    },
}

/// Which server, as a tenant.
#[derive(Debug, Args)]
struct Server {
    /// The server
    #[arg(long, env = "STEPWELL_URL", default_value = "http://127.0.0.1:7878")]
    url: String,
    /// The API key; `dev` is the one of `serve --dev`
    #[arg(long, env = "STEPWELL_API_KEY", default_value = "dev", hide_env_values = true)]
    api_key: String,
}

/// Which server, as its operator.
#[derive(Debug, Args)]
struct AdminServer {
    /// The server
    #[arg(long, env = "STEPWELL_URL", default_value = "http://127.0.0.1:7878")]
    url: String,
    /// The operator's key; without it, the one in the data directory
    #[arg(long, env = "STEPWELL_OPERATOR_KEY", hide_env_values = true)]
    operator_key: Option<String>,
    /// The server's data directory, where its operator's key is
    #[arg(long, env = "STEPWELL_DATA_DIR", default_value = "./stepwell-data")]
    data_dir: PathBuf,
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; clap prints each where it belongs.
            let code = if error.use_stderr() { EXIT_USAGE } else { EXIT_OK };
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    // Without a runtime: these do one thing and have little memory to do it in.
    match cli.command {
        Command::CompileComponent => return compile::component_main(),
        Command::CompileGraph => return compile::graph_main(),
        _ => {}
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            out::error(&error.into());
            return ExitCode::from(EXIT_FAILED);
        }
    };
    match runtime.block_on(dispatch(cli.command)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            out::error(&error);
            ExitCode::from(EXIT_USAGE)
        }
    }
}

async fn dispatch(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Serve(args) => serve::serve(args).await,
        Command::Build { path } => build::build(&path),
        Command::Compile { graph, output } => inspect::compile(&graph, &output).await,
        Command::Inspect { component, json } => inspect::inspect(&component, json).await,
        Command::Deploy { name, component, no_promote, json, server } => {
            commands::deploy(&server, &name, &component, !no_promote, json).await
        }
        Command::Promote { name, version, server } => commands::promote(&server, &name, &version).await,
        Command::Shadow(args) => shadow::shadow(args).await,
        Command::Run { name, input, version, idempotency_key, follow, json, server } => {
            let start = commands::Start { name, input, version, idempotency_key };
            commands::run(&server, start, follow, json).await
        }
        Command::Runs { workflow, status, shadows, limit, json, server } => {
            commands::runs(&server, workflow.as_deref(), status.as_deref(), shadows, limit, json).await
        }
        Command::RunInfo { id, json, server } => commands::run_info(&server, &id, json).await,
        Command::Events { id, follow, json, server } => commands::events(&server, &id, follow, json).await,
        Command::Cancel { id, reason, server } => commands::cancel(&server, &id, reason).await,
        Command::Signal { id, name, data, idempotency_key, server } => {
            commands::signal(&server, &id, &name, &data, idempotency_key.as_deref()).await
        }
        Command::Pause { id, reason, server } => commands::pause(&server, &id, reason).await,
        Command::Resume { id, server } => commands::resume(&server, &id).await,
        Command::Rerun { id, from_step, input, version, follow, json, server } => {
            let rerun = commands::Rerun { from_step, input, version };
            commands::rerun(&server, &id, rerun, follow, json).await
        }
        Command::Flow { name, set, clear, json, server } => {
            let change = match (set, clear) {
                (Some(settings), _) => flow::Change::Set(settings),
                (None, true) => flow::Change::Clear,
                (None, false) => flow::Change::None,
            };
            flow::flow(&server, &name, change, json).await
        }
        Command::Failures { workflow, json, server } => commands::failures(&server, workflow.as_deref(), json).await,
        Command::Triggers { json, server } => triggers::triggers(&server, json).await,
        Command::Trigger(command) => triggers::named(triggers::What::Trigger, command).await,
        Command::Webhooks { json, server } => triggers::webhooks(&server, json).await,
        Command::Webhook(command) => triggers::named(triggers::What::Webhook, command).await,
        Command::Event { name, data, id, server } => triggers::event(&server, &name, &data, id.as_deref()).await,
        Command::Usage { server } => tenants::usage(&server).await,
        Command::Secret(command) => commands::secret(command).await,
        Command::Provider(command) => commands::provider(command).await,
        Command::Admin { command } => commands::admin(command).await,
        Command::CompileComponent | Command::CompileGraph => Ok(EXIT_USAGE), // handled in `main`
    }
}
