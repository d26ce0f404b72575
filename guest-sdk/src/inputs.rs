//! What a step is handed, before it has a type.
//!
//! Owns reading inputs and the two ways in which that fails. It does not know the graph: which names there
//! are was settled when the workflow was uploaded.

use serde::de::DeserializeOwned;

use crate::Failure;

/// A step's inputs: names of the node's `needs`, each with a JSON text. Those of skipped steps are left out.
#[derive(Clone, Debug, Default)]
pub struct Inputs(Vec<(String, String)>);

impl Inputs {
    /// Takes and reads the input that a parameter names.
    ///
    /// # Errors
    ///
    /// Permanent: `missing_input` when the step it comes from was skipped, `invalid_input` when it is not a `T`.
    pub fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, Failure> {
        match self.take(name) {
            Some(text) => read(name, &text),
            None => Err(Failure::permanent(
                "missing_input",
                format!("`{name}` was skipped and has no output; take it as an `Option`"),
            )),
        }
    }

    /// Like [`Inputs::required`], with `None` for the output of a skipped step, and for `null`.
    ///
    /// # Errors
    ///
    /// Permanent, `invalid_input`, when the input is neither `null` nor a `T`.
    pub fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Failure> {
        self.take(name).map_or(Ok(None), |text| read(name, &text))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let (_, text) = self.0.iter_mut().find(|(candidate, _)| candidate == name)?;
        Some(std::mem::take(text))
    }
}

impl From<Vec<(String, String)>> for Inputs {
    fn from(inputs: Vec<(String, String)>) -> Self {
        Self(inputs)
    }
}

fn read<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(|error| Failure::permanent("invalid_input", format!("`{name}`: {error}")))
}
