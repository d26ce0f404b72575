//! What starts and signals runs without a request for it, and who is told when they end.
//!
//! Owns: the way from a time ([`cron`], [`schedule`]), a signed request ([`signature`]) or an event to a run, and from the end of
//! a run to whoever wants to know ([`outbound`]); and from there to the run that shadows it ([`shadows`]).
//! Does not: know HTTP as a server, or evaluate anything itself; expressions are the sandbox's.
//! Keeps: what a time starts is created in the write that moves the trigger's mark past it. Whatever else a trigger starts is
//! started under an idempotency key that is made of the trigger and what set it off, and only then is it written down that it
//! was. So a crash at any point starts it once: the second start finds the first. A tenant cannot choose such a key: it begins
//! with a byte that no header may contain.

mod cron;
pub mod outbound;
pub mod schedule;
mod shadows;
pub mod signature;
mod work;

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use stepwell_core::{Digest, Json, Refusal, RunId, RunKey, TenantId};
use stepwell_outbound::{Outbound, Secret};
use tokio_util::sync::CancellationToken;

use crate::driver::{ControlError, Driver, StartError};
use crate::journal::triggers::{SignalAction, TakenTime, TriggerOn, TriggerRecord};
use crate::journal::{IdempotencyKey, Journal, JournalError, RedbJournal, RunFilter};
use crate::sandbox::{CheckInputError, EvaluateError, Sandbox};
use crate::vault::Vault;

/// Runs that one event signals at most.
pub const SIGNALLED_RUNS_MAX: usize = 100;
/// Pages of runs that are looked through for a correlation.
const CORRELATED_PAGES_MAX: usize = 10;
/// What the idempotency keys of triggers begin with.
const OWN_KEY: char = '\u{1}';

/// Everything that triggers need.
#[derive(Clone)]
pub struct Triggers {
    /// Where they are.
    pub journal: Arc<RedbJournal>,
    /// What starts runs.
    pub driver: Driver,
    /// What evaluates expressions.
    pub sandbox: Arc<Sandbox>,
    /// What opens secrets.
    pub vault: Arc<Vault>,
    /// The way out.
    pub outbound: Outbound,
}

impl std::fmt::Debug for Triggers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Triggers")
    }
}

/// What set a trigger off.
#[derive(Debug, Clone)]
pub struct Occurrence {
    /// What the trigger's expressions see.
    pub value: Json,
    /// The input when the trigger has no expression for it.
    pub default_input: Json,
    /// Names it among everything that sets this trigger off.
    pub id: String,
    /// Where the trigger's mark moves with the start of the run, when it was a time.
    pub time: Option<TakenTime>,
}

/// What a trigger did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acted {
    /// Its filter did not hold.
    Filtered,
    /// It started a run, or had started it before.
    Started {
        /// The run.
        run: RunId,
        /// Whether it had started it before.
        replayed: bool,
    },
    /// It signalled runs, or had done so before.
    Signalled {
        /// The runs.
        runs: Vec<RunId>,
        /// Whether all of them had been signalled before.
        replayed: bool,
    },
}

/// Why a trigger did nothing.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// One of its expressions has no usable value.
    #[error("`{field}`: {source}")]
    Expression {
        /// Which.
        field: &'static str,
        /// Why.
        source: EvaluateError,
    },
    /// One of its expressions has a value of another kind.
    #[error("`{field}` is not {wanted}")]
    Value {
        /// Which.
        field: &'static str,
        /// What it must be.
        wanted: &'static str,
    },
    /// The run was not started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The run was not signalled.
    #[error(transparent)]
    Signal(#[from] ControlError),
}

impl From<JournalError> for ActError {
    fn from(error: JournalError) -> Self {
        Self::Start(error.into())
    }
}

impl ActError {
    /// A stable identifier.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Expression { source: EvaluateError::Failed(failure), .. } => &failure.code,
            Self::Expression { .. } => "unavailable",
            Self::Value { .. } => "invalid_value",
            Self::Start(error) => match error {
                StartError::UnknownWorkflow(_) => "unknown_workflow",
                StartError::UnknownVersion(_) => "unknown_version",
                StartError::InvalidInput(_) => "invalid_input",
                StartError::CheckInput(CheckInputError::Guest(_)) => "input_not_checked",
                StartError::Journal(JournalError::IdempotencyMismatch) => "idempotency_mismatch",
                StartError::InputTooLarge { .. } => "too_large",
                StartError::Journal(JournalError::Full { .. }) => "journal_full",
                StartError::Journal(JournalError::TooManyRuns { .. }) => "too_many_runs",
                StartError::Journal(JournalError::TimeTaken) => "time_taken",
                StartError::Journal(JournalError::RateLimited { .. }) => "rate_limited",
                StartError::Flow { source: EvaluateError::Failed(_), .. } | StartError::FlowValue { .. } => {
                    "flow_control_failed"
                }
                StartError::Flow { .. } | StartError::Stopping | StartError::Journal(_) | StartError::CheckInput(_) => {
                    "unavailable"
                }
                StartError::Graph(_) => "internal",
            },
            Self::Signal(error) => match error {
                ControlError::UnknownRun => "unknown_run",
                ControlError::Refused(Refusal::Ended(_)) => "run_ended",
                ControlError::Refused(Refusal::UnknownSignal) => "unknown_signal",
                ControlError::Refused(Refusal::TooManySignals) => "too_many_signals",
                ControlError::Refused(_) => "refused",
                ControlError::InvalidSignal(_) => "invalid_signal",
                ControlError::SignalTooLarge { .. } => "too_large",
                ControlError::Journal(JournalError::Full { .. }) => "journal_full",
                ControlError::CheckSignal(CheckInputError::Guest(_)) => "signal_not_checked",
                ControlError::CheckSignal(_) | ControlError::Unavailable | ControlError::Journal(_) => "unavailable",
            },
        }
    }

    /// Whether the tenant has as much as it may. It may have room again, but that is not a matter of moments.
    #[must_use]
    pub fn is_of_limits(&self) -> bool {
        matches!(self.code(), "journal_full" | "too_many_runs")
    }

    /// Whether the same could succeed a moment later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        self.code() == "unavailable"
    }
}

impl Triggers {
    /// Fires what is due, delivers what is owed and starts and compares shadows, until the host stops.
    pub async fn run(self, stopping: CancellationToken) {
        let (firing, delivering) = (cron::Firing(self.clone()), outbound::Delivering(self.clone()));
        let shadowing = shadows::Shadowing(self);
        tokio::join!(
            work::drive(firing, &stopping),
            work::drive(delivering, &stopping),
            work::drive(shadowing, &stopping),
        );
    }

    /// Does what a trigger is for. The same occurrence does it once.
    pub async fn act(
        &self,
        tenant: &TenantId,
        trigger: &TriggerRecord,
        occurrence: &Occurrence,
    ) -> Result<Acted, ActError> {
        let action = &trigger.action;
        if let Some(filter) = &action.filter
            && !self.holds(tenant, filter, &occurrence.value).await?
        {
            return Ok(Acted::Filtered);
        }
        let input = match &action.input {
            None => occurrence.default_input.clone(),
            Some(raw) if matches!(trigger.on, TriggerOn::Cron { .. }) => {
                Json::parse(raw.get().to_owned()).map_err(|_| ActError::Value { field: "input", wanted: "JSON" })?
            }
            Some(raw) => {
                let expression: String = serde_json::from_str(raw.get())
                    .map_err(|_| ActError::Value { field: "input", wanted: "an expression" })?;
                self.value(tenant, "input", &expression, &occurrence.value).await?
            }
        };
        let key = format!("{OWN_KEY}trigger {} {}", trigger.name, occurrence.id);
        if let Some(signal) = &action.signal {
            return self.signal(tenant, trigger, signal, occurrence, input, &key).await;
        }
        let Some(workflow) = &action.workflow else {
            return Err(ActError::Value { field: "workflow", wanted: "given" });
        };
        // What set the trigger off is all that must be the same: the trigger may have been edited since the crash.
        let fingerprint = Digest::from_bytes(Sha256::digest(key.as_bytes()).into());
        let idempotency = IdempotencyKey { key, fingerprint, time: occurrence.time.clone() };
        let started = self.driver.start(tenant, workflow, action.version, input, Some(idempotency)).await?;
        Ok(Acted::Started { run: started.run, replayed: started.replayed })
    }

    async fn signal(
        &self,
        tenant: &TenantId,
        trigger: &TriggerRecord,
        signal: &SignalAction,
        occurrence: &Occurrence,
        payload: Json,
        key: &str,
    ) -> Result<Acted, ActError> {
        let text = async |field, expression: &str| {
            let value = self.value(tenant, field, expression, &occurrence.value).await?;
            serde_json::from_str::<String>(value.as_str()).map_err(|_| ActError::Value { field, wanted: "a string" })
        };
        let runs = match (&signal.run, &signal.correlation) {
            (Some(run), _) => {
                let run = text("signal.run", run).await?;
                vec![run.parse().map_err(|_| ActError::Value { field: "signal.run", wanted: "the id of a run" })?]
            }
            (None, Some(correlation)) => {
                let correlation = text("signal.correlation", correlation).await?;
                self.correlated(tenant, trigger, correlation).map_err(StartError::Journal)?
            }
            (None, None) => Vec::new(),
        };
        if runs.is_empty() {
            return Err(ControlError::UnknownRun.into());
        }
        let (mut told, mut replayed, mut refused) = (Vec::new(), true, None);
        for run in runs {
            let key_of_run = RunKey { tenant: tenant.clone(), run };
            match self.driver.signal(&key_of_run, signal.name.clone(), payload.clone(), Some(key)).await {
                Ok(signalled) => {
                    told.push(run);
                    replayed &= signalled.replayed;
                }
                // The key is this occurrence's own. What it says now was made by other settings, and the run was told.
                Err(ControlError::Refused(Refusal::SignalMismatch)) => told.push(run),
                Err(error) => match ActError::from(error) {
                    error if error.may_pass() => return Err(error),
                    // Another run with this correlation may be of a workflow without such a signal, or end just now.
                    error => refused = Some(error),
                },
            }
        }
        match refused {
            Some(error) if told.is_empty() => Err(error),
            _ => Ok(Acted::Signalled { runs: told, replayed }),
        }
    }

    /// Runs that have not ended and were started with this.
    fn correlated(
        &self,
        tenant: &TenantId,
        trigger: &TriggerRecord,
        correlation: String,
    ) -> Result<Vec<RunId>, JournalError> {
        let workflow = trigger.action.workflow.clone();
        let mut filter = RunFilter { workflow, correlation: Some(correlation), ..RunFilter::default() };
        let mut runs = Vec::new();
        for _ in 0..CORRELATED_PAGES_MAX {
            let page = self.journal.runs(tenant, &filter, SIGNALLED_RUNS_MAX)?;
            runs.extend(page.runs.into_iter().filter(|(_, run)| !run.status.is_terminal()).map(|(run, _)| run));
            filter.before = page.next;
            if page.next.is_none() || runs.len() >= SIGNALLED_RUNS_MAX {
                break;
            }
        }
        runs.truncate(SIGNALLED_RUNS_MAX);
        Ok(runs)
    }

    /// Whether a filter holds: its value is neither `false` nor `null`, and it has one.
    async fn holds(&self, tenant: &TenantId, filter: &str, value: &Json) -> Result<bool, ActError> {
        match self.sandbox.evaluate(tenant, filter, value).await {
            Ok(value) => Ok(!matches!(value.as_str(), "false" | "null")),
            // `select(…)` is how many write a filter.
            Err(EvaluateError::Failed(failure)) if failure.code == "no_value" => Ok(false),
            Err(source) => Err(ActError::Expression { field: "filter", source }),
        }
    }

    async fn value(
        &self,
        tenant: &TenantId,
        field: &'static str,
        expression: &str,
        value: &Json,
    ) -> Result<Json, ActError> {
        let value = self.sandbox.evaluate(tenant, expression, value).await;
        value.map_err(|source| ActError::Expression { field, source })
    }

    /// A tenant's secret, to sign or to check a signature with. `None` when there is none that can be opened.
    pub fn secret(&self, tenant: &TenantId, name: &str) -> Result<Option<Secret>, JournalError> {
        let record = self.journal.secret_record(tenant, name)?;
        Ok(record.and_then(|record| match self.vault.unseal(tenant, name, &record.sealed) {
            Ok(secret) => Some(secret),
            Err(error) => {
                tracing::error!(%tenant, secret = name, %error, "a secret could not be opened");
                None
            }
        }))
    }
}
