//! The code that wit-bindgen writes from `wit/`, and nothing else.

#![allow(unsafe_code, unreachable_pub, dead_code, clippy::all, clippy::indexing_slicing, clippy::unwrap_used)]

wit_bindgen::generate!({
    path: "../../../wit",
    world: "workflow",
    default_bindings_module: "crate::bindings",
    additional_derives: [PartialEq],
});
