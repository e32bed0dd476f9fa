//! Reading a session's file: everything is checked before anything is used.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use memmap2::Mmap;
use mlx_rs::{Array, Dtype, transforms};
use safetensors::Dtype as FileDtype;
use twox_hash::xxhash3_128::Hasher;

use super::{
    CHECKSUM, CHECKSUM_BYTES, FORMAT, IDS, VERSION, activations, file_dtype, hex, key, prefix,
    snapshot_position,
};
use crate::cache::{Cache, Form, KeysValues, KvPolicy, PackedRows, Place, Rows};
use crate::checkpoint::{TensorInfo, parse_header, parse_metadata, printable};
use crate::config::QuantizationParams;
use crate::error::{Error, Result};
use crate::mlx;
use crate::model::Model;
use crate::session::Session;

impl Session {
    /// Reads a session that [`Session::save`] has written, for the same model and the policy that
    /// the model was loaded with. It goes on as the saved one would have.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be opened; [`Error::CacheFile`] when it is damaged, is of
    /// another format, version, model, activations' type or policy, or holds what no session does.
    /// The reason says which.
    pub fn load(model: &Model, path: impl AsRef<Path>) -> Result<Self> {
        Self::read(model, model.kv_policy(), path.as_ref())
    }

    /// [`Session::load`] of a session with another policy.
    ///
    /// # Errors
    /// As [`Session::load`], and [`Error::Argument`] when this model cannot honour the policy.
    pub fn load_with_policy(
        model: &Model,
        policy: &KvPolicy,
        path: impl AsRef<Path>,
    ) -> Result<Self> {
        policy.validate(model.config())?;
        Self::read(model, policy, path.as_ref())
    }

    fn read(model: &Model, policy: &KvPolicy, path: &Path) -> Result<Self> {
        model.device().run(|| {
            SessionFile::open(path)
                .and_then(|file| file.session(model, policy))
                .map_err(|error| of_cache_file(path, error))
        })
    }
}

/// What is wrong with a safetensors file, said of a cache.
fn of_cache_file(file: &Path, error: Error) -> Error {
    match error {
        Error::Checkpoint { path, reason } if path == file => Error::CacheFile { path, reason },
        error => error,
    }
}

/// An opened file of a known version whose bytes are those that were written.
struct SessionFile<'a> {
    path: &'a Path,
    map: Mmap,
    metadata: BTreeMap<String, String>,
    /// Those not read yet.
    tensors: BTreeMap<String, TensorInfo>,
}

impl<'a> SessionFile<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let map = mlx::map_file(path)?;
        let tensors = parse_header(path, &map, map.len())?;
        let metadata = parse_metadata(path, &map)
            .map_err(|_| wrong(path, "is not a saved session: it has no metadata"))?;
        let last = tensors.last().cloned();
        let mut file = Self { path, map, metadata, tensors: tensors.into_iter().collect() };
        file.check_version()?;
        file.check_sum(last)?;
        Ok(file)
    }

    /// Asked first: the rest of another version may be anything.
    fn check_version(&self) -> Result<()> {
        if self.metadata.get(key::FORMAT).is_none_or(|format| format != FORMAT) {
            return Err(self.wrong("is not a saved session, but some other safetensors file"));
        }
        match self.text(key::VERSION)? {
            VERSION => Ok(()),
            other => {
                let other = printable(other);
                Err(self.wrong(format!("is of version {other}; this program reads {VERSION}")))
            }
        }
    }

    fn check_sum(&mut self, last: Option<(String, TensorInfo)>) -> Result<()> {
        self.tensors.remove(CHECKSUM);
        let is_checksum =
            |(name, info): &(String, TensorInfo)| name == CHECKSUM && info.nbytes == CHECKSUM_BYTES;
        let Some((written, sum)) = self.map.split_last_chunk::<CHECKSUM_BYTES>() else {
            return Err(self.wrong("is cut off"));
        };
        if !last.as_ref().is_some_and(is_checksum) {
            return Err(self.wrong("does not end with its checksum"));
        }
        if Hasher::oneshot(written) != u128::from_le_bytes(*sum) {
            return Err(self.wrong("is damaged: its bytes do not have the checksum that it names"));
        }
        Ok(())
    }

    fn session(mut self, model: &Model, policy: &KvPolicy) -> Result<Session> {
        self.check_model(model)?;
        self.check_policy(policy)?;
        let ids = self.ids(model)?;
        let packed = match self.text(key::PACKED)? {
            "true" => true,
            "false" => false,
            _ => return Err(self.wrong("does not say whether its rows are packed")),
        };
        if !policy.can_be_packed(packed, ids.len()) {
            let state = if packed { "are" } else { "are not" };
            return Err(self.wrong(format!(
                "says that the rows of {} tokens {state} packed, which its policy does not do",
                ids.len()
            )));
        }
        let prefill_time = self.prefill_time()?;
        let positions = self.positions(ids.len(), policy)?;
        let config = model.config();
        let dtype = model.fingerprint().dtype;
        let shape = [config.num_key_value_heads, config.head_dim];
        let cache =
            Cache::from_parts(config, policy, (ids.len(), packed), positions, |place, form| {
                self.rows(place, &form, shape, dtype)
            })?;
        if let Some(name) = self.tensors.keys().next() {
            return Err(self.wrong(format!("holds tensor {name}, which no session has")));
        }
        // What is left lazy could be computed by this thread only.
        transforms::eval(cache.arrays())?;
        let mut session = Session::of(model, cache, ids);
        session.prefill_time = prefill_time;
        Ok(session)
    }

    fn check_model(&self, model: &Model) -> Result<()> {
        let this = model.fingerprint();
        if self.text(key::CONFIG)? != hex(this.config) {
            return Err(self.wrong("was made by another model: its config.json differs"));
        }
        if self.text(key::WEIGHTS)? != hex(this.weights) {
            return Err(self.wrong("was made by another model: its weights differ"));
        }
        let (there, here) = (self.text(key::ACTIVATIONS)?, activations(this.dtype));
        if there != here {
            return Err(self.wrong(format!(
                "was made with activations in {}, on another device; here they are in {here}",
                printable(there)
            )));
        }
        Ok(())
    }

    fn check_policy(&self, policy: &KvPolicy) -> Result<()> {
        let (there, here) = (self.text(key::POLICY)?, policy.to_json());
        match there == here {
            true => Ok(()),
            false => Err(self.wrong(format!(
                "was made with the kv policy {}; this one is {here}",
                printable(there)
            ))),
        }
    }

    /// The tokens, each inside the vocabulary.
    fn ids(&mut self, model: &Model) -> Result<Vec<u32>> {
        let info = self.take(IDS)?;
        let count = info.shape.iter().product::<usize>();
        if info.dtype != FileDtype::U32 || info.shape.len() != 1 {
            return Err(self.wrong(format!("its ids are {} {:?}", info.dtype, info.shape)));
        }
        if self.text(key::TOKENS)? != count.to_string() {
            let tokens = printable(self.text(key::TOKENS)?);
            return Err(self.wrong(format!("should have {tokens} tokens, but has {count}")));
        }
        let limit = model.context_limit();
        if count > limit {
            return Err(
                self.wrong(format!("has {count} tokens, more than the model's context of {limit}"))
            );
        }
        let (ids, _) = self.bytes(&info)?.as_chunks();
        let ids: Vec<u32> = ids.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let vocab_size = model.config().vocab_size;
        match ids.iter().find(|&&id| usize::try_from(id).is_ok_and(|id| id >= vocab_size)) {
            None => Ok(ids),
            Some(id) => Err(self.wrong(format!(
                "holds the id {id}, which is outside the vocabulary of {vocab_size}"
            ))),
        }
    }

    fn prefill_time(&self) -> Result<Duration> {
        let text = self.text(key::PREFILL_SECONDS)?;
        let seconds =
            text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        seconds.ok_or_else(|| {
            self.wrong(format!("its prefill_seconds are no time: {}", printable(text)))
        })
    }

    /// The snapshots' positions, ascending.
    fn positions(&self, len: usize, policy: &KvPolicy) -> Result<BTreeSet<usize>> {
        let mut bytes = 0usize;
        let mut positions = BTreeSet::new();
        for (name, info) in &self.tensors {
            if let Some(position) = snapshot_position(name) {
                if position == 0 || position > len {
                    return Err(self
                        .wrong(format!("has a snapshot at position {position} of {len} tokens")));
                }
                bytes = bytes.saturating_add(info.nbytes);
                positions.insert(position);
            }
        }
        match bytes <= policy.snapshot_bytes {
            true => Ok(positions),
            false => Err(self.wrong("has more snapshots than its policy allows")),
        }
    }

    /// Keys and values at a place, for heads of this number and width.
    fn rows(
        &mut self,
        place: Place,
        form: &Form,
        shape: [usize; 2],
        dtype: Dtype,
    ) -> Result<KeysValues> {
        let prefix = prefix(place);
        let keys = self.part(&format!("{prefix}.keys"), form.keys, shape, dtype)?;
        let values = self.part(&format!("{prefix}.values"), form.values, shape, dtype)?;
        let rows = KeysValues { keys, values };
        let counts = rows.arrays().map(|array| array.shape().get(2).copied().unwrap_or(0));
        let counts: BTreeSet<usize> = counts.filter_map(|n| usize::try_from(n).ok()).collect();
        match counts.iter().all(|count| form.rows.contains(count)) && counts.len() == 1 {
            true => Ok(rows),
            false => Err(self.wrong(format!(
                "has {counts:?} rows in {prefix}, where a session has {:?}",
                form.rows
            ))),
        }
    }

    fn part(
        &mut self,
        name: &str,
        packing: Option<QuantizationParams>,
        [heads, width]: [usize; 2],
        dtype: Dtype,
    ) -> Result<Rows> {
        let Some(params) = packing else {
            return Ok(Rows::Float(self.array(name, heads, width, dtype)?));
        };
        // The policy was validated: both divide without a rest.
        let words = width * params.bits / 32;
        let groups = width / params.group_size.max(1);
        Ok(Rows::Packed(PackedRows {
            codes: self.array(&format!("{name}.codes"), heads, words, Dtype::Uint32)?,
            scales: self.array(&format!("{name}.scales"), heads, groups, dtype)?,
            biases: self.array(&format!("{name}.biases"), heads, groups, dtype)?,
            params,
        }))
    }

    /// A tensor [1, heads, any, width].
    fn array(&mut self, name: &str, heads: usize, width: usize, dtype: Dtype) -> Result<Array> {
        let info = self.take(name)?;
        let fits = matches!(info.shape[..], [1, h, _, w] if h == heads && w == width);
        if !fits || Some(info.dtype) != file_dtype(dtype) {
            return Err(self.wrong(format!(
                "its tensor {name} is {} {:?}, not {} [1, {heads}, rows, {width}]",
                info.dtype,
                info.shape,
                activations(dtype)
            )));
        }
        let too_long = |_| self.wrong(format!("its tensor {name} has too many rows"));
        let shape: Vec<i32> = info
            .shape
            .iter()
            .map(|&n| i32::try_from(n).map_err(too_long))
            .collect::<Result<_>>()?;
        mlx::array_from_parts(&shape, dtype, &[self.bytes(&info)?])
    }

    fn take(&mut self, name: &str) -> Result<TensorInfo> {
        self.tensors.remove(name).ok_or_else(|| self.wrong(format!("lacks the tensor {name}")))
    }

    fn bytes(&self, info: &TensorInfo) -> Result<&[u8]> {
        self.map.get(info.range()).ok_or_else(|| self.wrong("is cut off"))
    }

    fn text(&self, key: &str) -> Result<&str> {
        let text = self.metadata.get(key).map(String::as_str);
        text.ok_or_else(|| self.wrong(format!("its metadata lacks {key}")))
    }

    fn wrong(&self, reason: impl Into<String>) -> Error {
        wrong(self.path, reason)
    }
}

fn wrong(path: &Path, reason: impl Into<String>) -> Error {
    Error::CacheFile { path: path.into(), reason: reason.into() }
}
