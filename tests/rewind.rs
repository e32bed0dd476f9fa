//! Going back: whatever was fed, taken back, copied and fed again, the logits are those of a fresh
//! cache that was given the same tokens.

mod common;

use std::thread;

use common::layouts::{Packing, Shape};
use common::random_model;
use common::rng::Rng;
use gpt_oss_mlx::{Cache, Error, KvBits, KvPolicy, LoadOptions, Model};
use safetensors::Dtype;
use serde_json::json;

const SHAPE: Shape = Shape {
    layers: 4,
    hidden: 32,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    width: 32,
    experts: 3,
    vocab: 61,
};
const WINDOW: usize = 8;
/// Tokens after which a sliding layer's block is full, apart from the slack: window − 1 and the 64
/// between two moves.
const BLOCK: usize = WINDOW - 1 + 64;

/// Largest difference of two logits, relative to their root mean square. Chunks of other sizes add
/// up in another order; where keys and values are packed, that may turn the rounding of a number
/// that lies between two codes, and a step between codes is the larger the fewer bits there are.
/// A cache that is off by one token differs by 0.1 and more.
fn tolerance(policy: &KvPolicy) -> f64 {
    match (policy.key_bits, policy.value_bits) {
        (KvBits::Float, KvBits::Float) => 1e-4,
        (KvBits::Float | KvBits::Eight, KvBits::Float | KvBits::Eight) => 2e-3,
        _ => 2e-2,
    }
}

/// A random model of four layers, alternating, with a small window.
fn model() -> Model {
    model_with(WINDOW)
}

fn model_with(window: usize) -> Model {
    let dir = tempfile::tempdir().unwrap();
    let config = SHAPE.config(json!({"sliding_window": window, "num_experts_per_tok": 2}));
    let specs = SHAPE.mlx(Dtype::F32, |_| Packing::Float);
    random_model::write(dir.path(), &config, &specs, &|_| Packing::Float, 7);
    Model::load(dir.path(), &LoadOptions::default()).unwrap()
}

/// A policy without snapshots but those asked for, and with a change.
fn policy(change: impl FnOnce(&mut KvPolicy)) -> KvPolicy {
    let mut policy = KvPolicy::default();
    policy.snapshot_every = 0;
    with(policy, change)
}

fn with(mut policy: KvPolicy, change: impl FnOnce(&mut KvPolicy)) -> KvPolicy {
    change(&mut policy);
    policy
}

fn float() -> KvPolicy {
    policy(|_| ())
}

fn eight_bits() -> KvPolicy {
    policy(|p| (p.key_bits, p.value_bits) = (KvBits::Eight, KvBits::Eight))
}

/// The first `len` of one random sequence.
fn ids(len: usize) -> Vec<u32> {
    let mut rng = Rng::new(3);
    (0..len).map(|_| rng.below(SHAPE.vocab) as u32).collect()
}

/// Feeds `ids` at once; the logits of each.
fn feed(model: &Model, cache: &mut Cache, ids: &[u32]) -> Vec<Vec<f64>> {
    let logits = model.forward(ids, cache).unwrap();
    logits.eval().unwrap();
    let rows = logits.as_slice::<f32>().chunks(SHAPE.vocab);
    rows.map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
}

/// The largest difference, relative to the root mean square of what is expected.
fn difference(got: &[Vec<f64>], want: &[Vec<f64>]) -> f64 {
    assert_eq!(got.len(), want.len());
    let pairs = || got.iter().flatten().zip(want.iter().flatten());
    assert!(pairs().all(|(got, _)| got.is_finite()));
    let largest = pairs().map(|(got, want)| (got - want).abs()).fold(0.0, f64::max);
    let squares: f64 = pairs().map(|(_, want)| want * want).sum();
    largest / (squares / pairs().count() as f64).sqrt()
}

/// A sequence and its cache.
#[derive(Clone)]
struct Sequence {
    cache: Cache,
    ids: Vec<u32>,
    /// The largest length since it was empty.
    high: usize,
    /// The largest length since the sliding layers hold what they hold: the slack counts from it.
    peak: usize,
}

impl Sequence {
    fn new(model: &Model, policy: &KvPolicy) -> Self {
        Self { cache: model.new_cache_with(policy).unwrap(), ids: Vec::new(), high: 0, peak: 0 }
    }

    /// Feeds tokens and holds their logits against a fresh cache's. Returns the difference.
    fn feed(&mut self, model: &Model, more: &[u32]) -> f64 {
        let got = feed(model, &mut self.cache, more);
        let before = self.ids.len();
        self.ids.extend_from_slice(more);
        self.high = self.high.max(self.ids.len());
        self.peak = self.peak.max(self.ids.len());
        assert_eq!(self.cache.len(), self.ids.len());
        let policy = *self.cache.policy();
        let fresh = feed(model, &mut model.new_cache_with(&policy).unwrap(), &self.ids);
        let off = difference(&got, &fresh[before..]);
        assert!(
            off < tolerance(&policy),
            "{} tokens at {before} are off by {off:.1e}: {policy:?}",
            more.len()
        );
        off
    }

    /// True when the full layers' floats at `to` are gone.
    fn floats_gone(&self, to: usize) -> bool {
        let policy = self.cache.policy();
        policy.is_quantized() && self.high > policy.quantize_from && to < policy.quantize_from
    }

    /// How far back it can go exactly, whatever was done before.
    fn exact_from(&self) -> usize {
        self.peak.saturating_sub(self.cache.policy().slack).min(self.ids.len())
    }

    fn trim(&mut self, to: usize) {
        self.cache.trim(to).unwrap();
        self.went_back(to);
    }

    fn rewind(&mut self, to: usize) -> usize {
        let (len, slack) = (self.cache.len(), self.cache.policy().slack);
        let reachable = self.cache.reachable(to);
        assert!(reachable <= to.min(len));
        if !self.cache.can_trim(reachable) {
            // From a snapshot at some position up to the slack behind.
            self.peak = reachable + slack;
        }
        let reached = self.cache.rewind(to).unwrap();
        assert_eq!(reached, reachable);
        self.went_back(reached);
        reached
    }

    fn went_back(&mut self, to: usize) {
        assert_eq!(self.cache.len(), to);
        assert_eq!(self.cache.is_empty(), to == 0);
        self.ids.truncate(to);
        if to == 0 {
            (self.high, self.peak) = (0, 0);
        }
    }

    /// What must be so at any time.
    fn check(&self, model: &Model) {
        let (cache, policy, len) = (&self.cache, self.cache.policy(), self.cache.len());
        assert!(cache.can_trim(len) && cache.can_trim(0));
        assert_eq!(cache.reachable(len), len);
        assert!(!cache.can_trim(len + 1));
        // Memory: what the policy says, and a budget for snapshots that is kept to.
        let held = policy.bytes(model.config(), self.high, 4);
        let most = held.full + held.sliding + policy.snapshot_bytes as u64;
        assert!(cache.nbytes() as u64 <= most, "{} bytes of {most}", cache.nbytes());
    }
}

fn pick<T: Copy>(rng: &mut Rng, all: &[T]) -> T {
    all[rng.below(all.len())]
}

fn random_policy(rng: &mut Rng) -> KvPolicy {
    let bits = [
        (KvBits::Float, KvBits::Float),
        (KvBits::Eight, KvBits::Eight),
        (KvBits::Four, KvBits::Four),
        (KvBits::Eight, KvBits::Four),
        (KvBits::Float, KvBits::Eight),
        (KvBits::Four, KvBits::Float),
    ];
    policy(|p| {
        (p.key_bits, p.value_bits) = pick(rng, &bits);
        p.group_size = pick(rng, &[32, 64]);
        p.quantize_from = pick(rng, &[0, 0, 40, 100]);
        p.slack = pick(rng, &[0, 1, 5, 32]);
        p.growth_step = pick(rng, &[1, 8, 256]);
        p.snapshot_every = pick(rng, &[0, 7, 64]);
        // None, about three of them, plenty.
        p.snapshot_bytes = pick(rng, &[0, 3 * snapshot_bytes(p.slack), 1 << 30]);
    })
}

/// Bytes of a snapshot of this model: keys and values of two sliding layers.
fn snapshot_bytes(slack: usize) -> usize {
    (WINDOW - 1 + slack) * 2 * 2 * SHAPE.kv_heads * SHAPE.head_dim * 4
}

#[test]
fn going_back_anywhere_gives_what_a_fresh_run_gives() {
    let model = model();
    let mut rng = Rng::new(2024);
    let (mut exact, mut earlier, mut copies) = (0, 0, 0);
    // Of all, by tolerance.
    let mut largest = [0f64; 3];
    for _ in 0..50 {
        let policy = random_policy(&mut rng);
        let mut branches = vec![Sequence::new(&model, &policy)];
        let kind = match tolerance(&policy) {
            ..1e-3 => 0,
            ..1e-2 => 1,
            _ => 2,
        };
        let mut feed = |sequence: &mut Sequence, ids: &[u32]| {
            largest[kind] = largest[kind].max(sequence.feed(&model, ids));
        };
        for _ in 0..20 {
            let (count, at) = (branches.len(), rng.below(branches.len()));
            let sequence = &mut branches[at];
            let len = sequence.ids.len();
            match rng.below(10) {
                0..4 => {
                    let count = 1 + pick(&mut rng, &[0, 2, 8, 20, 70, 80, 90]);
                    let count = if rng.below(2) == 0 { count } else { 1 + rng.below(count) };
                    let more: Vec<u32> =
                        (0..count).map(|_| rng.below(SHAPE.vocab) as u32).collect();
                    feed(sequence, &more);
                }
                4..6 => {
                    let to = len - rng.below(len - sequence.exact_from() + 1);
                    if sequence.floats_gone(to) && to > 0 {
                        assert!(!sequence.cache.can_trim(to));
                        continue;
                    }
                    sequence.trim(to);
                    exact += 1;
                }
                6..8 => {
                    // Anywhere, just beyond the slack, and about what a snapshot reaches.
                    let kept = sequence.cache.reachable(rng.below(len + 1));
                    let to = match rng.below(4) {
                        0 => rng.below(len + 1),
                        1 => sequence.exact_from().saturating_sub(1),
                        _ => kept.saturating_sub(rng.below(policy.slack + 2)),
                    };
                    let within = to >= sequence.exact_from() && !sequence.floats_gone(to);
                    let reached = sequence.rewind(to);
                    assert!(!within || reached == to);
                    assert!(!sequence.floats_gone(reached) || reached == 0);
                    earlier += usize::from(0 < reached && reached < to);
                    copies += usize::from(reached > 0 && len - reached > policy.slack);
                    feed(sequence, &[1, 2]);
                }
                8 => sequence.cache.snapshot().unwrap(),
                _ if count < 3 => {
                    let branch = sequence.clone();
                    branches.push(branch);
                }
                _ => {
                    branches.remove(at);
                }
            }
            branches.iter().for_each(|branch| branch.check(&model));
        }
        for branch in &mut branches {
            feed(branch, &[1, 2, 3]);
            feed(branch, &[4]);
        }
    }
    println!(
        "off by {largest:.5?} at most; {exact} exact, {copies} by a copy, {earlier} to before"
    );
    // Each way of going back was taken.
    assert!(exact > 40 && copies > 20 && earlier > 4);
}

#[test]
fn to_every_length_around_the_window() {
    let model = model();
    for policy in [float(), eight_bits()] {
        for len in [WINDOW - 1, WINDOW, WINDOW + 1] {
            for to in [0, 1, len - 1, len] {
                let mut sequence = Sequence::new(&model, &policy);
                sequence.feed(&model, &ids(len));
                sequence.trim(to);
                sequence.check(&model);
                sequence.feed(&model, &[5, 6]);
            }
        }
        for to in [WINDOW - 1, WINDOW, WINDOW + 1] {
            for len in [30, BLOCK + 32, 3 * BLOCK] {
                let mut sequence = Sequence::new(&model, &policy);
                sequence.feed(&model, &ids(to));
                sequence.cache.snapshot().unwrap();
                sequence.feed(&model, &ids(len)[to..]);
                assert_eq!(sequence.rewind(to), to);
                sequence.feed(&model, &ids(len)[to..]);
                assert_eq!(sequence.rewind(to), to);
                sequence.feed(&model, &[5, 6]);
            }
        }
    }
}

#[test]
fn to_the_current_length_changes_nothing() {
    let model = model();
    for policy in [float(), eight_bits()] {
        let mut sequence = Sequence::new(&model, &policy);
        for len in [WINDOW, BLOCK + 32, 2 * BLOCK] {
            let fed = sequence.ids.len();
            sequence.feed(&model, &ids(len)[fed..]);
            let bytes = sequence.cache.nbytes();
            sequence.trim(len);
            assert_eq!(sequence.rewind(len), len);
            // More than there is: to what there is.
            assert_eq!(sequence.cache.rewind(len + 10).unwrap(), len);
            assert_eq!(sequence.cache.len(), len);
            assert_eq!(sequence.cache.nbytes(), bytes);
        }
        sequence.feed(&model, &[9]);
    }
}

#[test]
fn back_to_nothing_is_a_fresh_start() {
    let model = model();
    for mut policy in [float(), eight_bits()] {
        policy.snapshot_every = 20;
        let mut sequence = Sequence::new(&model, &policy);
        sequence.feed(&model, &ids(200));
        sequence.trim(0);
        assert_eq!(sequence.cache.nbytes(), 0);
        assert_eq!(sequence.cache.reachable(100), 0);
        sequence.feed(&model, &ids(150));
        assert_eq!(sequence.rewind(0), 0);
        sequence.feed(&model, &[3]);
        sequence.cache.clear();
        sequence.went_back(0);
        sequence.feed(&model, &[4]);
    }
}

#[test]
fn several_times_in_a_row() {
    let model = model();
    for mut policy in [float(), eight_bits()] {
        (policy.slack, policy.snapshot_every) = (5, 30);
        let mut sequence = Sequence::new(&model, &policy);
        sequence.feed(&model, &ids(20));
        for more in [200, 1, 70] {
            while sequence.ids.len() < more + 100 {
                sequence.feed(&model, &ids(17));
            }
            let len = sequence.ids.len();
            // One slack after the other; what a move has kept is the slack and no more.
            for back in [2, 3, 0] {
                sequence.trim(sequence.ids.len() - back);
            }
            assert_eq!(sequence.ids.len(), len - 5);
            for to in [len - 30, len - 31, len - 60, 50, 49] {
                sequence.rewind(to.min(sequence.ids.len()));
                sequence.check(&model);
            }
            sequence.feed(&model, &[1, 2]);
        }
    }
}

#[test]
fn beyond_the_slack_is_an_error_and_changes_nothing() {
    let model = model();
    for policy in [float(), eight_bits()] {
        for slack in [0, 1, 5, 32] {
            let policy = with(policy, |p| p.slack = slack);
            let mut sequence = Sequence::new(&model, &policy);
            // The chunk is longer than the block, so that no more than the slack is left.
            let len = 2 * BLOCK + 50;
            sequence.feed(&model, &ids(len));
            let bytes = sequence.cache.nbytes();
            let refused = [len + 1, usize::MAX, len - slack - 1, WINDOW, 1];
            for to in refused {
                assert!(!sequence.cache.can_trim(to));
                let error = sequence.cache.trim(to).unwrap_err();
                assert!(
                    matches!(error, Error::CannotGoBack { from, to: t } if (from, t) == (len, to)),
                    "{error}"
                );
                assert!(!error.to_string().is_empty());
                assert_eq!((sequence.cache.len(), sequence.cache.nbytes()), (len, bytes));
            }
            sequence.feed(&model, &[7]);
            sequence.trim(len + 1 - slack);
            sequence.feed(&model, &[8]);
        }
    }
}

#[test]
fn below_the_switch_the_floats_are_gone() {
    let model = model();
    const SWITCH: usize = 50;
    for bits in [KvBits::Eight, KvBits::Four] {
        let policy = policy(|p| {
            (p.key_bits, p.quantize_from, p.slack) = (bits, SWITCH, 32);
        });
        let mut sequence = Sequence::new(&model, &policy);
        // Up to the switch nothing is packed.
        sequence.feed(&model, &ids(SWITCH));
        sequence.trim(SWITCH - 10);
        sequence.feed(&model, &ids(10));
        sequence.cache.snapshot().unwrap();

        sequence.feed(&model, &ids(10));
        for to in [SWITCH + 9, SWITCH + 1, SWITCH] {
            sequence.trim(to);
            sequence.clone().feed(&model, &[5, 6, 7]);
        }
        for to in [SWITCH - 1, 20, 1] {
            assert!(!sequence.cache.can_trim(to));
            assert!(matches!(sequence.cache.trim(to), Err(Error::CannotGoBack { .. })));
            assert_eq!(sequence.cache.reachable(to), 0);
        }
        sequence.feed(&model, &ids(200));
        // The snapshot at the switch is still good, the one before it would not be.
        assert_eq!(sequence.clone().rewind(SWITCH + 3), SWITCH);
        let mut back = sequence.clone();
        assert_eq!(back.rewind(SWITCH), SWITCH);
        back.feed(&model, &ids(30));
        assert_eq!(sequence.rewind(SWITCH - 1), 0);
        sequence.feed(&model, &ids(60));
    }
}

#[test]
fn chunks_that_straddle_the_window_the_block_and_the_slack() {
    let model = model();
    for base in [float(), eight_bits()] {
        for slack in [0, 5] {
            let policy = with(base, |p| p.slack = slack);
            let block = BLOCK + slack;
            for first in [WINDOW - 1, block - 1, block, block + 1] {
                for second in [1, slack + 2, WINDOW, WINDOW + 1, block] {
                    let mut sequence = Sequence::new(&model, &policy);
                    sequence.feed(&model, &ids(first));
                    sequence.cache.snapshot().unwrap();
                    sequence.feed(&model, &ids(second));
                    // As far as is exact, then through the copy.
                    sequence.trim(first + second - slack.min(second));
                    sequence.clone().feed(&model, &[5]);
                    assert_eq!(sequence.rewind(first), first);
                    sequence.feed(&model, &[6, 7]);
                }
            }
        }
    }
}

#[test]
fn a_window_of_one_or_two_tokens() {
    for window in [1, 2] {
        let model = model_with(window);
        for slack in [0, 1, 5] {
            let mut sequence = Sequence::new(&model, &policy(|p| p.slack = slack));
            for count in [1, 63, 1, 1, 5, 80, 1, 70, 1] {
                sequence.feed(&model, &ids(count));
                sequence.cache.snapshot().unwrap();
            }
            let len = sequence.ids.len();
            sequence.trim(len - slack);
            sequence.clone().feed(&model, &[5]);
            sequence.rewind(len - 60);
            sequence.feed(&model, &[5, 6]);
        }
    }
}

#[test]
fn snapshots_behind_the_position_are_not_used_for_other_tokens() {
    let model = model();
    for policy in [float(), eight_bits()] {
        let policy = with(policy, |p| p.slack = 5);
        let mut sequence = Sequence::new(&model, &policy);
        for _ in 0..4 {
            sequence.feed(&model, &ids(50));
            sequence.cache.snapshot().unwrap();
        }
        // Exactly, and by a copy; then other tokens over the positions of the later snapshots.
        for to in [198, 100] {
            assert_eq!(sequence.rewind(to), to);
            let other: Vec<u32> = ids(300 - to).iter().map(|id| 60 - id).collect();
            sequence.feed(&model, &other);
            let newest = if to == 198 { 150 } else { 100 };
            for (to, reached) in [(200, newest), (199, newest), (149, newest.min(149))] {
                let mut back = sequence.clone();
                assert_eq!(back.rewind(to), reached);
                back.feed(&model, &[5, 6]);
            }
        }
    }
}

#[test]
fn snapshots_keep_to_their_budget_and_stay_spread() {
    let model = model();
    const KEPT: usize = 6;
    let policy = policy(|p| {
        (p.slack, p.snapshot_every) = (0, 10);
        p.snapshot_bytes = KEPT * snapshot_bytes(0);
    });
    let without = with(policy, |p| p.snapshot_bytes = 0);
    let mut cache = model.new_cache_with(&policy).unwrap();
    let mut bare = model.new_cache_with(&without).unwrap();
    for id in ids(600) {
        for cache in [&mut cache, &mut bare] {
            model.forward(&[id], cache).unwrap().eval().unwrap();
        }
        // Rows and nothing else, and never more than the budget.
        let taken = (cache.len() / 10).min(KEPT);
        assert_eq!(cache.nbytes() - bare.nbytes(), taken * snapshot_bytes(0));
        // From everywhere the way back to what was kept is no longer than twice the even share.
        let far = (0..=cache.len()).map(|to| to - cache.reachable(to)).max().unwrap();
        assert!(far <= 10 + 2 * cache.len() / KEPT, "{far} at {}", cache.len());
        // The newest is always there.
        let newest = cache.len() - cache.len() % 10;
        assert_eq!(cache.reachable(newest), newest);
    }
    assert_eq!(bare.reachable(500), 0);
}

#[test]
fn a_snapshot_larger_than_the_budget_is_not_made() {
    let model = model();
    let policy = policy(|p| (p.snapshot_every, p.snapshot_bytes) = (1, snapshot_bytes(32) - 1));
    let mut sequence = Sequence::new(&model, &policy);
    sequence.feed(&model, &ids(150));
    let mut bare = Sequence::new(&model, &with(policy, |p| p.snapshot_bytes = 0));
    bare.feed(&model, &ids(150));
    assert_eq!(sequence.cache.nbytes(), bare.cache.nbytes());
    assert_eq!(sequence.rewind(60), 0);
    sequence.feed(&model, &ids(20));
}

#[test]
fn two_clones_never_see_each_others_tokens() {
    let model = model();
    for bits in [KvBits::Float, KvBits::Eight, KvBits::Four] {
        for growth_step in [1, 256] {
            let policy = policy(|p| {
                (p.key_bits, p.value_bits, p.growth_step) = (bits, bits, growth_step);
            });
            // Before the first token, below the window, with room in the block, with a full one.
            for len in [0, 40, BLOCK + 32, 130] {
                let mut one = Sequence::new(&model, &policy);
                if len > 0 {
                    one.feed(&model, &ids(len));
                }
                let mut other = one.clone();
                for i in 0..4u32 {
                    one.feed(&model, &[i]);
                    other.feed(&model, &[60 - i, 30 - i]);
                }
                let mut third = other.clone();
                third.trim(len + 3);
                third.feed(&model, &[17, 18]);
                other.feed(&model, &[19]);
                one.trim(len + 2);
                one.feed(&model, &[20]);
            }
        }
    }
}

#[test]
fn a_cache_goes_from_thread_to_thread_at_any_length() {
    let mut model = model();
    for policy in [float(), with(eight_bits(), |p| p.slack = 0)] {
        let mut sequence = Sequence::new(&model, &policy);
        let steps = [1, 70, 1, 32, 1, 1, 90, 1, 63, 1, 1, 1, 200, 1, 1];
        for (n, count) in steps.into_iter().enumerate() {
            let step = move || {
                sequence.feed(&model, &ids(count));
                if n % 3 == 0 {
                    sequence.cache.snapshot().unwrap();
                }
                if n % 4 == 3 {
                    let len = sequence.ids.len();
                    sequence.rewind(len / 2);
                }
                (model, sequence)
            };
            (model, sequence) = thread::spawn(step).join().expect("the thread ends well");
        }
        let len = sequence.ids.len();
        sequence.rewind(len - 150);
        sequence.feed(&model, &[1]);
    }
}

#[test]
fn a_cache_of_a_model_of_another_shape_is_refused() {
    let mine = model();
    let shapes = [
        (Shape { layers: 2, ..SHAPE }, WINDOW),
        (Shape { kv_heads: 1, ..SHAPE }, WINDOW),
        (Shape { head_dim: 32, ..SHAPE }, WINDOW),
        (SHAPE, WINDOW + 1),
    ];
    for (shape, window) in shapes {
        let dir = tempfile::tempdir().unwrap();
        let config = shape.config(json!({"sliding_window": window, "num_experts_per_tok": 2}));
        let specs = shape.mlx(Dtype::F32, |_| Packing::Float);
        random_model::write(dir.path(), &config, &specs, &|_| Packing::Float, 7);
        let other = Model::load(dir.path(), &LoadOptions::default()).unwrap();
        let mut cache = mine.new_cache();
        feed(&mine, &mut cache, &[1, 2]);
        let error = other.forward(&[3], &mut cache).unwrap_err();
        assert!(matches!(error, Error::Argument { name: "cache", .. }), "{error}");
        // It was not touched.
        assert_eq!(cache.len(), 2);
        feed(&mine, &mut cache, &[3]);
    }
}
