//! Types made from `wit/`. Private to the sandbox: the rest of the host has its own.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "made by a macro")]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "workflow",
    imports: { default: async | trappable },
    exports: { default: async },
});
