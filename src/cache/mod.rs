//! Keys and values of the tokens seen so far, one [`LayerCache`] for each layer.
//!
//! Full layers keep everything, in memory that grows in steps, as floats or packed. Sliding layers
//! keep the window and a slack in memory that never grows. A sequence can go back: full layers are
//! cut, sliding ones drop rows of their slack or take those of a [`snapshot`](Cache::snapshot).

mod full;
mod parts;
mod policy;
mod rows;
mod size;
mod sliding;
mod snapshots;

use mlx_rs::{Array, transforms};

use crate::config::{Config, LayerType};
use crate::error::{Error, Result};

pub(crate) use full::FullCache;
pub(crate) use parts::{Form, Place};
pub use policy::{KvBits, KvPolicy};
pub(crate) use rows::{KeysValues, PackedRows, Rows};
pub use size::KvBytes;
pub(crate) use sliding::SlidingCache;
pub(crate) use snapshots::Snapshot;
use snapshots::Snapshots;

/// Most snapshots that one step takes by itself, the last ones of a long chunk: each takes memory
/// before the budget is applied.
const SNAPSHOTS_PER_STEP: usize = 8;

/// The cache of one sequence.
///
/// A clone shares the arrays' memory until one of the two is written to; neither ever sees what the
/// other adds.
#[derive(Debug, Clone)]
pub struct Cache {
    pub(crate) layers: Vec<LayerCache>,
    policy: KvPolicy,
    window: usize,
    /// Key-value heads and the width of each.
    heads: [usize; 2],
    /// Tokens seen.
    len: usize,
    /// A step is being built: some layers have its keys and values, others not yet.
    half_way: bool,
    snapshots: Snapshots,
    /// Positions at which a snapshot is wanted.
    marks: Vec<usize>,
    /// Positions within the step being built at which one is taken, ascending.
    due: Vec<usize>,
}

/// The cache of one layer.
#[derive(Debug, Clone)]
pub(crate) enum LayerCache {
    Full(FullCache),
    Sliding(SlidingCache),
}

impl Cache {
    /// An empty cache. The policy was validated.
    pub(crate) fn new(config: &Config, policy: &KvPolicy) -> Self {
        let layers = config
            .layer_types
            .iter()
            .map(|layer_type| match layer_type {
                LayerType::FullAttention => LayerCache::Full(FullCache::new(*policy)),
                LayerType::SlidingAttention => {
                    LayerCache::Sliding(SlidingCache::new(config.sliding_window, policy.slack))
                }
            })
            .collect();
        Self {
            layers,
            policy: *policy,
            window: config.sliding_window,
            heads: heads(config),
            len: 0,
            half_way: false,
            snapshots: Snapshots::default(),
            marks: Vec::new(),
            due: Vec::new(),
        }
    }

    /// Tokens seen so far: the position of the next one.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How keys and values are kept.
    pub fn policy(&self) -> &KvPolicy {
        &self.policy
    }

    /// Bytes of all keys and values held: rows allocated ahead and snapshots included.
    pub fn nbytes(&self) -> usize {
        self.arrays().map(Array::nbytes).sum()
    }

    /// Drops everything: the sequence begins anew.
    pub fn clear(&mut self) {
        for layer in &mut self.layers {
            match layer {
                LayerCache::Full(cache) => *cache = FullCache::new(self.policy),
                LayerCache::Sliding(cache) => {
                    *cache = SlidingCache::new(self.window, self.policy.slack);
                }
            }
        }
        self.snapshots = Snapshots::default();
        self.due = Vec::new();
        self.len = 0;
        self.half_way = false;
    }

    /// Takes tokens back, so that `len` are left. Exact up to the policy's slack and for a cache
    /// that the window has not outgrown; the rest is [`Cache::rewind`]'s part.
    ///
    /// # Errors
    /// [`Error::CannotGoBack`] when rows that the next query would see are gone. The cache is then
    /// as it was. [`Error::Mlx`] when MLX fails.
    pub fn trim(&mut self, len: usize) -> Result<()> {
        if !self.can_trim(len) {
            return Err(Error::CannotGoBack { from: self.len, to: len });
        }
        if len == 0 {
            self.clear();
            return Ok(());
        }
        let back = self.len.saturating_sub(len);
        // If anything fails from here on, the layers are at different positions.
        self.half_way = true;
        for layer in &mut self.layers {
            match layer {
                LayerCache::Full(cache) => cache.go_back(len)?,
                LayerCache::Sliding(cache) => cache.drop_last(back)?,
            }
        }
        self.half_way = false;
        self.len = len;
        self.snapshots.forget_after(len);
        Ok(())
    }

    /// True when [`Cache::trim`] to this length succeeds.
    pub fn can_trim(&self, len: usize) -> bool {
        let layers = || {
            self.layers.iter().all(|layer| match layer {
                LayerCache::Full(cache) => cache.can_go_back(len),
                LayerCache::Sliding(cache) => cache.can_go_back(self.len, len),
            })
        };
        len <= self.len && (len == 0 || (!self.half_way && layers()))
    }

    /// The largest length, `len` at most, to which [`Cache::rewind`] can go back.
    pub fn reachable(&self, len: usize) -> usize {
        let len = len.min(self.len);
        if self.can_trim(len) {
            return len;
        }
        if self.half_way {
            return 0;
        }
        let through = |snapshot: &Snapshot| {
            let to = len.min(snapshot.position);
            (self.full_layers_reach(to) && snapshot.covers(to, self.window)).then_some(to)
        };
        self.snapshots.iter().filter_map(through).max().unwrap_or(0)
    }

    fn full_layers_reach(&self, len: usize) -> bool {
        self.layers.iter().all(|layer| match layer {
            LayerCache::Full(cache) => cache.can_go_back(len),
            LayerCache::Sliding(_) => true,
        })
    }

    /// Goes back to `len` tokens or, where the sliding layers have forgotten what was seen there, to
    /// the nearest position before it of which a snapshot was kept. Returns the length reached; the
    /// tokens from there on have to be fed again. What is computed from then on is what a fresh
    /// cache would give.
    ///
    /// # Errors
    /// [`Error::Mlx`] when MLX fails.
    pub fn rewind(&mut self, len: usize) -> Result<usize> {
        let to = self.reachable(len);
        if self.can_trim(to) {
            self.trim(to)?;
            return Ok(to);
        }
        let window = self.window;
        let snapshot =
            self.snapshots.iter().rev().find(|s| s.position >= to && s.covers(to, window));
        let Some(snapshot) = snapshot.cloned() else {
            self.clear();
            return Ok(0);
        };
        // As in `trim`.
        self.half_way = true;
        let mut saved = snapshot.layers.iter();
        for layer in &mut self.layers {
            match layer {
                LayerCache::Full(cache) => cache.go_back(to)?,
                LayerCache::Sliding(cache) => {
                    cache.restore(saved.next())?;
                    cache.drop_last(snapshot.position.saturating_sub(to))?;
                }
            }
        }
        // What is left lazy could be computed by this thread only.
        transforms::async_eval(self.arrays())?;
        self.half_way = false;
        self.len = to;
        self.snapshots.forget_after(to);
        // The way back to here must not be lost with the next tokens.
        self.snapshot()?;
        Ok(to)
    }

    /// Keeps a copy of the sliding layers at the current position, so that [`Cache::rewind`] can
    /// come back here, and to up to `slack` tokens before, however much follows. Bounded by the
    /// policy's `snapshot_bytes`: older ones are thinned out.
    ///
    /// # Errors
    /// [`Error::Mlx`] when MLX fails; the cache is then to be cleared.
    pub fn snapshot(&mut self) -> Result<()> {
        let taken = self.take_snapshot();
        if taken.is_err() {
            self.spoil();
        }
        taken
    }

    fn take_snapshot(&mut self) -> Result<()> {
        let budget = self.policy.snapshot_bytes;
        if self.half_way || self.is_empty() || self.snapshots.newest() == self.len {
            return Ok(());
        }
        // One that does not fit would be made for nothing, at every step.
        if !(1..=budget).contains(&self.snapshot_nbytes()) {
            return Ok(());
        }
        let mut layers = Vec::new();
        for layer in &self.layers {
            if let LayerCache::Sliding(cache) = layer {
                layers.extend(cache.snapshot()?);
            }
        }
        let snapshot = Snapshot { position: self.len, layers };
        // Else it would hold on to all the steps before it until it is needed.
        transforms::async_eval(snapshot.arrays())?;
        self.snapshots.push(snapshot, budget);
        Ok(())
    }

    /// Bytes that a snapshot would take.
    fn snapshot_nbytes(&self) -> usize {
        let sliding = |layer: &LayerCache| match layer {
            LayerCache::Full(_) => 0,
            LayerCache::Sliding(cache) => cache.snapshot_nbytes(),
        };
        self.layers.iter().map(sliding).sum()
    }

    /// True when it was made for a model of this shape.
    pub(crate) fn fits(&self, config: &Config) -> bool {
        let kind = |layer: &LayerCache| match layer {
            LayerCache::Full(_) => LayerType::FullAttention,
            LayerCache::Sliding(_) => LayerType::SlidingAttention,
        };
        self.window == config.sliding_window
            && self.heads == heads(config)
            && self.layers.iter().map(kind).eq(config.layer_types.iter().copied())
    }

    /// Asks for a [snapshot](Cache::snapshot) at each of these positions when the sequence comes
    /// there, be it in the middle of a step. Takes the place of what was asked for before.
    pub fn mark(&mut self, positions: impl IntoIterator<Item = usize>) {
        self.marks = positions.into_iter().collect();
    }

    /// Where within the next `tokens` to take a snapshot: at marks, and every so many tokens.
    fn due(&self, tokens: usize) -> Vec<usize> {
        let policy = &self.policy;
        if policy.snapshot_bytes == 0 {
            return Vec::new();
        }
        let within = self.len.saturating_add(1)..=self.len.saturating_add(tokens);
        let mut due: Vec<usize> =
            self.marks.iter().copied().filter(|mark| within.contains(mark)).collect();
        if let Some(last) = within.end().checked_div(policy.snapshot_every) {
            let regular = (0..=last).rev().take(SNAPSHOTS_PER_STEP);
            let positions = regular.map(|i| i.saturating_mul(policy.snapshot_every));
            due.extend(positions.filter(|position| within.contains(position)));
        }
        due.sort_unstable();
        due.dedup();
        due
    }

    /// Whether a step of a model of this shape can begin.
    ///
    /// # Errors
    /// [`Error::Argument`] when the cache is of another model, or a step failed half-way: its
    /// layers then hold different tokens, and going on would give wrong answers.
    pub(crate) fn check(&self, config: &Config) -> Result<()> {
        if !self.fits(config) {
            return Err(Error::argument("cache", "it belongs to another model"));
        }
        if self.half_way {
            return Err(Error::argument("cache", "a step failed half-way; clear it or start anew"));
        }
        Ok(())
    }

    /// Begins a step of a model of this shape.
    ///
    /// # Errors
    /// As [`Cache::check`].
    pub(crate) fn begin(&mut self, config: &Config, tokens: usize) -> Result<()> {
        self.check(config)?;
        self.half_way = true;
        self.due = self.due(tokens);
        if !self.due.is_empty() {
            let offset = |at: &usize| i32::try_from(at.saturating_sub(self.len)).ok();
            let offsets: Vec<i32> = self.due.iter().filter_map(offset).collect();
            for layer in &mut self.layers {
                if let LayerCache::Sliding(cache) = layer {
                    cache.expect(&offsets);
                }
            }
        }
        Ok(())
    }

    /// Ends a step: all layers have taken its tokens in.
    pub(crate) fn advance(&mut self, tokens: usize) -> Result<()> {
        let due = std::mem::take(&mut self.due);
        let mut snapshots: Vec<Snapshot> =
            due.iter().map(|&position| Snapshot { position, layers: Vec::new() }).collect();
        if !snapshots.is_empty() {
            for layer in &mut self.layers {
                if let LayerCache::Sliding(cache) = layer {
                    for (snapshot, rows) in snapshots.iter_mut().zip(cache.taken()) {
                        snapshot.layers.push(rows);
                    }
                }
            }
            // Else they would hold on to all the steps before them until they are needed.
            transforms::async_eval(snapshots.iter().flat_map(Snapshot::arrays))?;
        }
        for snapshot in snapshots {
            self.snapshots.push(snapshot, self.policy.snapshot_bytes);
        }
        self.len = self.len.saturating_add(tokens);
        self.half_way = false;
        Ok(())
    }

    /// Marks the cache as one whose contents cannot be trusted: a computation failed.
    pub(crate) fn spoil(&mut self) {
        self.half_way = true;
    }

    /// How many of the next `tokens` a step may take at once: the first query that sees quantized
    /// keys begins a step of its own, so that the result does not depend on how a prompt is cut.
    pub(crate) fn undivided(&self, tokens: usize) -> usize {
        match self.policy.quantize_from.checked_sub(self.len) {
            Some(before) if self.policy.is_quantized() && before > 0 => tokens.min(before),
            _ => tokens,
        }
    }

    /// All arrays held; evaluating them ends the graph that made them.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let layers = self.layers.iter().filter_map(LayerCache::held);
        layers.flat_map(KeysValues::arrays).chain(self.snapshots.arrays())
    }
}

fn heads(config: &Config) -> [usize; 2] {
    [config.num_key_value_heads, config.head_dim]
}

impl LayerCache {
    /// The memory for keys and values; None before the first token.
    pub(crate) fn held(&self) -> Option<&KeysValues> {
        match self {
            Self::Full(cache) => cache.held(),
            Self::Sliding(cache) => cache.held(),
        }
    }

    /// Appends the keys and values of new tokens and returns those that the new tokens' queries may
    /// see, oldest first, the new ones last.
    pub(crate) fn update(&mut self, keys: Array, values: Array) -> Result<KeysValues> {
        let new = KeysValues::float(keys, values);
        match self {
            Self::Full(cache) => cache.update(new),
            Self::Sliding(cache) => cache.update(new),
        }
    }
}
