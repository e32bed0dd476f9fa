//! What the integration tests share: oracles in plain Rust and makers of test data.
#![allow(dead_code)]

pub mod affine;
pub mod attention;
pub mod block;
pub mod large_model;
pub mod layouts;
pub mod logits;
pub mod moe;
pub mod mxfp4;
pub mod random_model;
pub mod reference;
pub mod rng;
pub mod safetensors;
pub mod sampling;
pub mod script;
pub mod yarn;
