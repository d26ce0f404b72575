//! `map`: hands over the array for whose elements the nodes up to the join run.

use jaq_json::Val;
use stepwell_document as document;
use stepwell_document::{ITEMS_MAX, OnFailure};

use crate::bindings::stepwell::workflow::types::{Failure, Outcome};
use crate::json;
use crate::step::Step;
use crate::template::{Template, Templates};

pub(crate) struct Map {
    items: Template,
    pub(crate) concurrency: Option<u32>,
    pub(crate) on_failure: OnFailure,
}

impl Map {
    pub(crate) fn compile(node: &document::Map, templates: &mut Templates) -> Self {
        Self {
            items: templates.value("items", &node.items),
            concurrency: node.concurrency,
            on_failure: node.on_failure,
        }
    }

    pub(crate) fn run(&self, step: &Step) -> Result<Outcome, Failure> {
        let items = step.value("items", &self.items)?;
        let Val::Arr(array) = &items else {
            return Err(step.fail("items", "not_an_array", &format!("must be an array and is {}", json::kind(&items))));
        };
        if u32::try_from(array.len()).is_ok_and(|count| count <= ITEMS_MAX) {
            Ok(Outcome::FanOut(step.json("items", &items)?))
        } else {
            let message = format!("has {} elements; {ITEMS_MAX} is the most", array.len());
            Err(step.fail("items", "too_many_items", &message))
        }
    }
}
