//! Runs that a step starts.

use std::fmt::{self, Display};

use serde::Serialize;

/// A run to start, for [`Ctx::start_child`](crate::Ctx::start_child).
#[derive(Clone, Debug)]
pub struct Child {
    pub(crate) workflow: String,
    pub(crate) version: Option<String>,
    pub(crate) input: Result<String, String>,
    pub(crate) detached: bool,
}

impl Child {
    /// A run of the latest version of a workflow of the same tenant, with `null` for its input.
    pub fn of(workflow: impl Into<String>) -> Self {
        Self { workflow: workflow.into(), version: None, input: Ok("null".to_owned()), detached: false }
    }

    /// With this input, written as JSON. What cannot be written is told when the run is started.
    #[must_use]
    pub fn input(mut self, input: &(impl Serialize + ?Sized)) -> Self {
        self.input = serde_json::to_string(input).map_err(|error| error.to_string());
        self
    }

    /// Of this version: the SHA-256 of the component, in lower-case hex.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// The run goes on when the attempt that started it fails, or when its parent ends. Any other is cancelled then.
    #[must_use]
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }
}

/// A run that was started.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChildRun(pub(crate) String);

impl ChildRun {
    /// The run with this id, such as one that an earlier step has started and put out. Waiting for a run that is no child
    /// of this one is [`ChildError::NotAChild`](crate::ChildError::NotAChild).
    pub fn from_id(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The run's id.
    pub fn id(&self) -> &str {
        &self.0
    }
}

impl Display for ChildRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
