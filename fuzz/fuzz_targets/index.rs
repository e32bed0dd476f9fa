//! `model.safetensors.index.json`: whatever it says, no file name leads out of the folder.

#![no_main]
#![allow(dead_code)]

#[path = "../../src/checkpoint/header.rs"]
mod checkpoint;
#[path = "../../src/error.rs"]
mod error;

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;

use checkpoint::parse_index;

fuzz_target!(|text: &[u8]| {
    let Ok(files) = parse_index(Path::new("fuzz"), text) else { return };
    assert!(!files.is_empty());
    for file in files.values() {
        let components: Vec<Component> = Path::new(file).components().collect();
        assert!(matches!(components[..], [Component::Normal(name)] if name == file.as_str()));
        assert!(!file.contains(['/', '\\', '\0']) && file.ends_with(".safetensors"));
    }
});
