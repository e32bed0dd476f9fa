//! Writing a session's file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use mlx_rs::Array;
use safetensors::Dtype as FileDtype;
use serde_json::{Map, Value, json};
use twox_hash::xxhash3_128::Hasher;

use super::replace::replace_file;
use super::{
    CHECKSUM, CHECKSUM_BYTES, FORMAT, IDS, VERSION, activations, file_dtype, hex, key, prefix,
};
use crate::cache::Rows;
use crate::error::{Error, Result, WRITE};
use crate::mlx;
use crate::session::Session;

/// Bytes collected before they are written; longer pieces are written as they are.
const BUFFER: usize = 1 << 20;

impl Session {
    /// Writes the session to a file for [`Session::load`]: its tokens, and of its cache the rows in
    /// use, nothing of what was there before.
    ///
    /// The file is made under another name in the same folder, flushed and then renamed: a crash, a
    /// full disk or Ctrl-C leaves the file that was there before, or none. A link at `path` is
    /// replaced, not followed. On Unix only its owner may read the file: it holds a conversation.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written; whatever a step of the
    /// session has failed with: nothing is written then, and the session is empty.
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        // What failed is not worth what the file may hold already.
        self.settled()?;
        let device = self.device;
        device.run(|| {
            let tensors = tensors(self)?;
            let header = header(self, &tensors)?;
            replace_file(path, |file| write(file, path, &header, &self.ids, &tensors))
        })
    }
}

/// A tensor of rows: its name, and the array that begins with as many rows.
struct RowsTensor<'a> {
    name: String,
    dtype: FileDtype,
    array: &'a Array,
    rows: i32,
}

impl RowsTensor<'_> {
    fn shape(&self) -> Result<Vec<usize>> {
        let &[batch, heads, _, width] = self.array.shape() else { return Err(unfit(self.array)) };
        let size = |n: i32| usize::try_from(n).map_err(|_| unfit(self.array));
        [batch, heads, self.rows, width].into_iter().map(size).collect()
    }
}

fn unfit(array: &Array) -> Error {
    let message = format!("rows of shape {:?} and type {:?}", array.shape(), array.dtype());
    Error::Mlx { op: "save", message }
}

/// All rows. Wider types come first, so that every tensor is aligned.
fn tensors(session: &Session) -> Result<Vec<RowsTensor<'_>>> {
    let mut tensors = Vec::new();
    for (place, held, rows) in session.cache.parts() {
        for (kind, part) in [("keys", &held.keys), ("values", &held.values)] {
            let name = format!("{}.{kind}", prefix(place));
            let parts: &[&str] = match part {
                Rows::Float(_) => &[""],
                Rows::Packed(_) => &[".codes", ".scales", ".biases"],
            };
            for (array, suffix) in part.arrays().zip(parts) {
                let dtype = file_dtype(array.dtype()).ok_or_else(|| unfit(array))?;
                tensors.push(RowsTensor { name: format!("{name}{suffix}"), dtype, array, rows });
            }
        }
    }
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bitsize()));
    Ok(tensors)
}

/// The header's length and the header, padded to a multiple of 8 bytes. The same session gives the
/// same bytes.
fn header(session: &Session, tensors: &[RowsTensor<'_>]) -> Result<Vec<u8>> {
    let model = session.model;
    let metadata = json!({
        key::FORMAT: FORMAT,
        key::VERSION: VERSION,
        key::CONFIG: hex(model.config),
        key::WEIGHTS: hex(model.weights),
        key::ACTIVATIONS: activations(model.dtype),
        key::POLICY: session.cache.policy().to_json(),
        key::TOKENS: session.ids.len().to_string(),
        key::PACKED: session.cache.is_packed().to_string(),
        key::PREFILL_SECONDS: session.prefill_time.as_secs_f64().to_string(),
    });
    let mut entries = Map::from_iter([("__metadata__".to_owned(), metadata)]);
    let mut end = 0;
    let mut add = |name: &str, dtype: FileDtype, shape: &[usize]| {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let dtype = dtype.to_string();
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        entries.insert(name.into(), entry);
    };
    add(IDS, FileDtype::U32, &[session.ids.len()]);
    for tensor in tensors {
        add(&tensor.name, tensor.dtype, &tensor.shape()?);
    }
    add(CHECKSUM, FileDtype::U8, &[CHECKSUM_BYTES]);
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    // A `usize` has 64 bits at most.
    Ok([&(text.len() as u64).to_le_bytes(), text.as_slice()].concat())
}

/// Writes the whole file; `path` is only for errors.
fn write(
    file: &mut File,
    path: &Path,
    header: &[u8],
    ids: &[u32],
    tensors: &[RowsTensor<'_>],
) -> Result<()> {
    let failed = |error| Error::io(WRITE, path)(error);
    let mut out = BufWriter::with_capacity(BUFFER, file);
    let mut hash = Hasher::new();
    let mut put = |bytes: &[u8]| {
        hash.write(bytes);
        out.write_all(bytes).map_err(failed)
    };
    put(header)?;
    let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    put(&ids)?;
    for tensor in tensors {
        // From where the rows lie: a cache can be as large as what is left of the memory.
        for head in mlx::row_bytes(tensor.array, tensor.rows)? {
            put(head)?;
        }
    }
    out.write_all(&hash.finish_128().to_le_bytes()).map_err(failed)?;
    out.flush().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LoadOptions, Model};

    #[test]
    fn a_session_in_which_a_step_failed_is_not_written() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");
        let model = Model::load(dir, &LoadOptions::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session");
        let mut session = Session::new(&model);
        model.generate_in(&mut session, &[1, 2, 3], &Default::default()).unwrap().next();
        session.save(&path).unwrap();
        let saved = std::fs::read(&path).unwrap();
        session.cache.spoil();
        assert!(session.save(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), saved);
        assert!(session.ids().is_empty());
    }
}
