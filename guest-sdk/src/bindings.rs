//! The code that wit-bindgen writes from `wit/`, and nothing else.
//!
//! Public only because the exports are made in the guest's own crate; the rest of this crate wraps it.

#![allow(
    missing_docs,
    unsafe_code,
    unreachable_pub,
    clippy::all,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "generated code"
)]

wit_bindgen::generate!({
    path: "../wit",
    world: "workflow",
    pub_export_macro: true,
    default_bindings_module: "stepwell_guest::bindings",
    additional_derives: [PartialEq],
});
