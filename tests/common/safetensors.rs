//! Writes safetensors files, whole ones and damaged ones. Made from the description of the format,
//! not with the crate that the library reads them with.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

/// One tensor of a file to be written: name, type, shape, and its bytes' place in the data.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub start: u64,
    pub end: u64,
}

/// A tensor before its place is known.
pub type Spec = (String, Dtype, Vec<usize>);

/// A [`Spec`] from borrowed parts.
pub fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> Spec {
    (name.to_owned(), dtype, shape.to_vec())
}

/// Puts tensors one behind the other, in the order given.
pub fn place(specs: &[Spec]) -> Vec<Tensor> {
    let mut start = 0;
    let mut placed = Vec::new();
    for (name, dtype, shape) in specs {
        let bits = shape.iter().product::<usize>() * dtype.bitsize();
        assert_eq!(bits % 8, 0, "{name} is no whole number of bytes");
        let end = start + bits as u64 / 8;
        placed.push(Tensor { name: name.clone(), dtype: *dtype, shape: shape.clone(), start, end });
        start = end;
    }
    placed
}

/// The length of a header and the header itself.
pub fn frame(header: &str) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes
}

/// A whole file: `header` as it is, and `data` zeros.
pub fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = frame(header);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// The header that belongs to `tensors`, padded with spaces so that the data starts at a multiple
/// of eight, as writers do.
pub fn header(tensors: &[Tensor]) -> String {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({"format": "test"}));
    for tensor in tensors {
        let entry = json!({
            "dtype": tensor.dtype.to_string(),
            "shape": tensor.shape,
            "data_offsets": [tensor.start, tensor.end],
        });
        entries.insert(tensor.name.clone(), entry);
    }
    let mut text = Value::Object(entries).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    text
}

/// Writes a file whose header is real and whose data is a hole: it takes no room on the disk, so
/// models of any size can be described.
pub fn write_sparse(path: &Path, tensors: &[Tensor]) {
    let head = frame(&header(tensors));
    let mut file = File::create(path).unwrap();
    file.write_all(&head).unwrap();
    file.set_len(head.len() as u64 + tensors.last().map_or(0, |tensor| tensor.end)).unwrap();
}

/// Writes a file tensor by tensor: `fill` is given each tensor's bytes, zeros, to change.
pub fn write_with(path: &Path, tensors: &[Tensor], mut fill: impl FnMut(&Tensor, &mut [u8])) {
    let mut file = File::create(path).unwrap();
    file.write_all(&frame(&header(tensors))).unwrap();
    for tensor in tensors {
        let mut bytes = vec![0; (tensor.end - tensor.start) as usize];
        fill(tensor, &mut bytes);
        file.write_all(&bytes).unwrap();
    }
}

/// Writes `model.safetensors.index.json` with these pairs of tensor and file, and no `metadata`.
pub fn write_index<'a>(dir: &Path, files: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let weight_map: Map<String, Value> =
        files.into_iter().map(|(name, file)| (name.to_owned(), json!(file))).collect();
    let text = json!({ "weight_map": weight_map }).to_string();
    std::fs::write(dir.join("model.safetensors.index.json"), text).unwrap();
}
