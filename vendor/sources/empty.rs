//! Nothing: this package only pins sources.
