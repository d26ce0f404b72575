//! `stepwell serve`: puts the parts together, and takes them apart again in order.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use stepwell_outbound::{AddressRange, Egress, Outbound, OutboundConfig, Reach};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{EXIT_FAILED, EXIT_OK, EXIT_USAGE, out};
use crate::access::{self, Access, DEV};
use crate::api::{self, App};
use crate::connections::{
    Connections, Patience, REQUEST_SECONDS_DEFAULT, STALL_SECONDS_DEFAULT, Traffic, answer, raise_limit,
};
use crate::cors::Origins;
use crate::driver::{Driver, DriverConfig, Outside, UPDATES_PER_SECOND_DEFAULT};
use crate::journal::RedbJournal;
use crate::journal::catalog::TenantRecord;
use crate::journal::limits::SetLimits;
use crate::permits::Permits;
use crate::sandbox::{Sandbox, SandboxConfig, compile};
use crate::stream_tokens::StreamTokens;
use crate::triggers::Triggers;
use crate::vault::Vault;
use crate::{clock, maintenance};

/// What a stopping server waits for connections that do not end by themselves.
const CONNECTIONS_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Where to listen
    #[arg(long, env = "STEPWELL_LISTEN", default_value = "127.0.0.1:7878")]
    listen: SocketAddr,
    /// Where everything is kept
    #[arg(long, env = "STEPWELL_DATA_DIR", default_value = "./stepwell-data")]
    data_dir: PathBuf,
    /// For development: makes tenant `dev` with the API key `dev`. On loopback addresses only
    #[arg(long)]
    dev: bool,
    /// Steps that run at once
    #[arg(long, env = "STEPWELL_SLOTS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    slots: u32,
    /// Steps of one tenant that run at once [default: three quarters of all]
    #[arg(long, env = "STEPWELL_SLOTS_PER_TENANT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    slots_per_tenant: Option<u32>,
    /// Runs that have steps under way at once; further ones stay queued [default: four for each slot]
    // More would not run faster: each has a write in the journal's queue, and every start waits behind all of them.
    #[arg(long, env = "STEPWELL_ACTIVE_RUNS")]
    active_runs: Option<usize>,
    /// The same for one tenant [default: three quarters of all]
    #[arg(long, env = "STEPWELL_ACTIVE_RUNS_PER_TENANT")]
    active_runs_per_tenant: Option<usize>,
    /// Updates that one tenant may publish in a second; steps that publish faster wait
    #[arg(long, env = "STEPWELL_UPDATES_PER_SECOND", default_value_t = UPDATES_PER_SECOND_DEFAULT, value_parser = clap::value_parser!(u32).range(1..))]
    updates_per_second: u32,
    /// Seconds that a stopping server waits for steps that are under way
    #[arg(long, env = "STEPWELL_GRACE_SECONDS", default_value_t = 10)]
    grace_seconds: u64,
    /// Seconds after which a client is disconnected that takes nothing of what is sent to it
    #[arg(long, env = "STEPWELL_STALL_SECONDS", default_value_t = STALL_SECONDS_DEFAULT, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    stall_seconds: u64,
    /// Seconds after which a client is disconnected that has connected and sent no request; four times as many between
    /// two requests
    #[arg(long, env = "STEPWELL_REQUEST_SECONDS", default_value_t = REQUEST_SECONDS_DEFAULT, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    request_seconds: u64,
    /// Streams of one tenant at once, pages that wait among them [default: half of all, which is 20,000 where the system
    /// allows enough open files]
    #[arg(long, env = "STEPWELL_STREAMS_PER_TENANT")]
    streams_per_tenant: Option<usize>,
    /// Where requests of steps may go: nothing, public (addresses of the internet), or private (those, and the networks
    /// of one's own) [default: public; with --dev private]
    #[arg(long, env = "STEPWELL_EGRESS", value_enum)]
    egress: Option<EgressArg>,
    /// Addresses that requests of steps may go to in any case, such as 10.1.0.0/16; can be given several times
    #[arg(long, env = "STEPWELL_EGRESS_ALLOW", value_delimiter = ',')]
    egress_allow: Vec<AddressRange>,
    /// What is logged: error, warn, info, debug or trace
    #[arg(long, env = "STEPWELL_LOG", default_value = "info")]
    log: tracing::Level,
    /// Logs as JSON, one object a line
    #[arg(long, env = "STEPWELL_LOG_JSON")]
    log_json: bool,
}

/// Where requests of steps may go.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum EgressArg {
    Nothing,
    Public,
    Private,
}

pub(super) async fn serve(args: ServeArgs) -> anyhow::Result<u8> {
    start_logging(&args);
    if args.dev && !args.listen.ip().is_loopback() {
        out::note("stepwell: --dev accepts the API key `dev`, so it listens on loopback addresses only");
        return Ok(EXIT_USAGE);
    }
    match serve_until_told(args).await {
        Ok(()) => Ok(EXIT_OK),
        Err(error) => {
            out::error(&error);
            Ok(EXIT_FAILED)
        }
    }
}

fn start_logging(args: &ServeArgs) {
    let subscriber = tracing_subscriber::fmt().with_max_level(args.log).with_writer(std::io::stderr).with_target(false);
    if args.log_json {
        subscriber.json().init();
    } else {
        subscriber.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
}

async fn serve_until_told(args: ServeArgs) -> anyhow::Result<()> {
    let data_dir = &args.data_dir;
    // Everybody's data, and the secret that compiled code is signed with: for the owner alone.
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
    made.with_context(|| format!("cannot make {}", data_dir.display()))?;
    let path = data_dir.join("journal.redb");
    let journal = RedbJournal::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let journal = Arc::new(journal);
    let operator_key = access::operator_key(data_dir).context("cannot read or make the operator's key")?;
    let access = Access::open(&journal, &operator_key).context("cannot read the API keys")?;
    if args.dev {
        make_dev_tenant(&journal, &access).await?;
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let sandbox = Sandbox::new(SandboxConfig {
        slots: args.slots,
        slots_per_tenant: args.slots_per_tenant.unwrap_or(args.slots - args.slots / 4),
        threads,
        code_dir: data_dir.join("code"),
        secret: *journal.secret(),
        compiler: compile::this_program(),
    })?;
    let sandbox = Arc::new(sandbox);
    let active_runs = args.active_runs.unwrap_or(args.slots as usize * 4);
    let config = DriverConfig {
        active_runs_max: active_runs,
        active_runs_per_tenant: args.active_runs_per_tenant.unwrap_or(active_runs - active_runs / 4),
        updates_per_second: args.updates_per_second,
        grace: Duration::from_secs(args.grace_seconds),
    };
    let vault =
        Arc::new(Vault::open(data_dir, journal.has_secrets()?).context("cannot read or make the key of the secrets")?);
    let stream_tokens =
        StreamTokens::open(&journal, Arc::clone(&vault)).context("cannot read the keys of stream tokens")?;
    let reach = match (args.egress, args.dev) {
        (Some(EgressArg::Nothing), _) => Reach::Nothing,
        (Some(EgressArg::Public), _) | (None, false) => Reach::Public,
        (Some(EgressArg::Private), _) | (None, true) => Reach::PublicAndPrivate,
    };
    let egress = Egress { reach, allow: args.egress_allow };
    let outbound = Outbound::new(OutboundConfig { egress, ..OutboundConfig::default() })?;
    let outside = Outside { outbound: outbound.clone(), journal: Arc::clone(&journal), vault: Arc::clone(&vault) };
    let driver = Driver::new(Arc::clone(&journal), Arc::clone(&sandbox), outside, &config);

    let triggers = Triggers {
        journal: Arc::clone(&journal),
        driver: driver.clone(),
        sandbox: Arc::clone(&sandbox),
        vault: Arc::clone(&vault),
        outbound,
    };

    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    let patience =
        Patience { stall: Duration::from_secs(args.stall_seconds), request: Duration::from_secs(args.request_seconds) };
    let listener = Connections::new(listener, patience);
    let streams_max = streams_max(raise_limit());
    let stopping = CancellationToken::new();
    let app = App {
        journal: Arc::clone(&journal),
        driver: driver.clone(),
        sandbox,
        access: Arc::new(access),
        origins: Arc::new(Origins::open(&journal).context("cannot read the origins")?),
        stream_tokens: Arc::new(stream_tokens),
        streams: Arc::new(Permits::new(streams_max, args.streams_per_tenant.unwrap_or(streams_max / 2))),
        pages: Arc::new(Permits::new(api::PAGES_MAX, api::PAGES_PER_TENANT)),
        vault,
        triggers: triggers.clone(),
        stopping: stopping.clone(),
    };
    let routes = api::router(app).layer(axum::middleware::from_fn(answer::watch));
    let server = axum::serve(listener, routes.into_make_service_with_connect_info::<Traffic>());
    let server = server.with_graceful_shutdown(stopping.clone().cancelled_owned());
    let mut server = tokio::spawn(server.into_future());
    out::line(format_args!("stepwell is listening on http://{address}"));

    let recovery = tokio::spawn({
        let driver = driver.clone();
        async move {
            let runs = driver.recover().await;
            if runs > 0 {
                tracing::info!(runs, "unfinished runs were taken up");
            }
        }
    });
    let triggering = tokio::spawn(triggers.run(stopping.clone()));
    let sweeping = tokio::spawn(maintenance::run(Arc::clone(&journal), stopping.clone()));

    let mut has_ended = false;
    let failed = tokio::select! {
        told = told_to_stop() => told.err().map(|error| anyhow::Error::from(error).context("cannot wait for signals")),
        () = journal.broken() => Some(anyhow::format_err!("the journal has failed; nothing that was acknowledged is lost")),
        ended = &mut server => {
            has_ended = true;
            Some(anyhow::format_err!("the server has ended: {ended:?}"))
        }
    };
    tracing::info!("stopping");
    tokio::spawn(async {
        if told_to_stop().await.is_ok() {
            tracing::warn!("told again: stopping at once; steps under way run again after the next start");
            std::process::exit(EXIT_FAILED.into());
        }
    });
    // First nobody gets in, then everything under way comes to rest, and the journal is closed last, on drop.
    stopping.cancel();
    recovery.abort();
    driver.stop().await;
    if !has_ended && tokio::time::timeout(CONNECTIONS_GRACE, server).await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
    drop(sweeping.await);
    drop(triggering.await);
    match failed {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Streams that there is room for. Each can be a connection, and what else the process has open, other clients' requests
/// first of all, needs room too.
fn streams_max(files: u64) -> usize {
    let fitting = usize::try_from(files / 4 * 3).unwrap_or(api::STREAMS_MAX);
    if fitting < api::STREAMS_MAX {
        let (streams, wanted) = (fitting, api::STREAMS_MAX / 3 * 4);
        tracing::warn!(files, streams, wanted, "the system allows few open files, so there is room for fewer streams");
    }
    fitting.clamp(1, api::STREAMS_MAX)
}

async fn make_dev_tenant(journal: &RedbJournal, access: &Access) -> anyhow::Result<()> {
    let id: stepwell_core::TenantId = DEV.parse()?;
    let retention_days = api::RETENTION_DAYS_DEFAULT;
    let limits = SetLimits::default();
    let (created_at, artifact_retention_days) = (clock::now(), None);
    let record = TenantRecord { id: id.clone(), created_at, retention_days, artifact_retention_days, limits };
    journal.create_tenant(record).await?;
    access.allow_dev(id);
    Ok(())
}

/// Waits for ^C, or for whoever manages this process.
async fn told_to_stop() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
