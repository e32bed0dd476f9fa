//! From a checkpoint's tensors to the model's parameters: [`plan`] decides and accounts, `load`
//! reads, casts and fuses.

mod load;
pub mod plan;

pub(crate) use load::Loader;
