//! Declarations of mlx-c 0.7.0, and the build that links it.
#![allow(non_upper_case_globals, non_camel_case_types, non_snake_case, missing_docs, clippy::all)]

include!("bindings.rs");

mod platform;
