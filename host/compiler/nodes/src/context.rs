//! What the expressions of a step are evaluated on.
//!
//! `.input` and `.nodes.<id>` are what the step was handed, `.item` and `.index` belong to the innermost `map` or `loop`
//! that the node stands in, `.failures` is there for the join of a `map`, and `.run` says which step it is. A node that
//! was skipped is not handed over and not there, so it reads as `null`.

use jaq_json::{Map, Val};

use crate::bindings::stepwell::workflow::types::{Failure, StepContext};
use crate::failure::permanent;
use crate::json;
use crate::program::{Node, Program, Work};

/// The need that stands for the run's input.
const INPUT: &str = "input";
/// What the join of a `map` is handed besides its needs.
const FAILURES: &str = "failures";

/// The parts of a context. [`Context::value`] puts them together.
#[derive(Clone)]
pub(crate) struct Context {
    run: Val,
    input: Option<Val>,
    nodes: Map,
    item: Option<Val>,
    index: Option<u32>,
    failures: Option<Val>,
}

impl Context {
    /// The context of a step.
    pub(crate) fn new(
        program: &Program,
        node: &Node,
        step: &StepContext,
        inputs: &[(String, String)],
    ) -> Result<Self, Failure> {
        let collects = matches!(&node.work, Work::Join(join) if program.looping(&join.of).is_none());
        // A node may be called `failures` too. Then its output comes first, as needs do.
        let failures_at = if collects { inputs.iter().rposition(|(name, _)| name == FAILURES) } else { None };
        let scope = node.plan.scopes.last();

        let mut context = Self {
            run: run(step),
            input: None,
            nodes: Map::default(),
            item: None,
            // One number for each scope, outermost first.
            index: node.plan.scopes.len().checked_sub(1).and_then(|last| step.items.get(last).copied()),
            failures: None,
        };
        for (at, (name, text)) in inputs.iter().enumerate() {
            let value = json::read(text).map_err(|error| {
                permanent("invalid_input", format!("what is handed over as `{name}` is not JSON: {error}"))
            })?;
            if Some(at) == failures_at {
                context.failures = Some(value);
            } else if name == INPUT {
                context.input = Some(value);
            } else {
                if Some(name) == scope {
                    context.item = Some(value.clone());
                }
                context.nodes.insert(Val::from(name.clone()), value);
            }
        }
        Ok(context)
    }

    /// What `.nodes.<id>` is.
    pub(crate) fn of_node(&self, id: &str) -> Val {
        self.nodes.get(&Val::from(id.to_owned())).cloned().unwrap_or_default()
    }

    /// What `.item` is, and `.index`.
    pub(crate) fn item(&self) -> (Option<&Val>, Option<u32>) {
        (self.item.as_ref(), self.index)
    }

    /// The context in which a loop asks whether it goes on, for a state that may be that of another iteration.
    pub(crate) fn with_state(&self, looping: &str, state: &Val, index: u32) -> Self {
        let mut context = Self { item: Some(state.clone()), index: Some(index), ..self.clone() };
        context.nodes.insert(Val::from(looping.to_owned()), state.clone());
        context
    }

    /// The object that expressions see.
    pub(crate) fn value(self) -> Val {
        let optional = [
            ("input", self.input),
            ("item", self.item),
            ("index", self.index.map(number)),
            ("failures", self.failures),
        ];
        let optional = optional.into_iter().filter_map(|(name, value)| Some((name, value?)));
        json::object([("run", self.run), ("nodes", Val::obj(self.nodes))].into_iter().chain(optional))
    }
}

fn run(step: &StepContext) -> Val {
    json::object([
        ("id", Val::from(step.run_id.clone())),
        ("workflow", Val::from(step.workflow.clone())),
        ("version", Val::from(step.version.clone())),
        ("node", Val::from(step.node.clone())),
        ("attempt", number(step.attempt)),
        ("items", step.items.iter().copied().map(number).collect()),
    ])
}

fn number(number: u32) -> Val {
    // Machine integers of the sandbox have 32 bits with a sign, and neither attempts nor items are that many.
    Val::from(usize::try_from(number).unwrap_or(usize::MAX))
}
