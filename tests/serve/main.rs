//! The example `serve`: its wire formats by themselves, then the program over sockets with the
//! bundled model. `cargo test` builds it beside the tests.

// The example's modules but those of its command line.
#[path = "../../examples/serve"]
#[allow(dead_code)]
mod serve {
    pub mod app;
    pub mod auth;
    pub mod body;
    pub mod chat;
    pub mod completions;
    pub mod errors;
    pub mod fields;
    pub mod generate;
    pub mod ids;
    pub mod logprobs;
    pub mod metrics;
    pub mod models;
    pub mod page;
    pub mod responses;
    pub mod running;
    pub mod sse;
    pub mod state;
    pub mod tools;
    pub mod usage;
}
// The example's modules name each other from its root.
#[allow(unused_imports)]
use serve::*;

mod answers;
mod client;
mod ends;
#[path = "../common/program.rs"]
#[allow(dead_code)]
mod example;
mod refused;
mod unkind;
mod wire;
