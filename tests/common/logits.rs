//! Logits of the library, and how far they are from what an oracle says.

use gpt_oss_mlx::{Cache, Model};

/// The logits of `ids`, fed in chunks of the given size: [position][vocab].
pub fn in_chunks(model: &Model, cache: &mut Cache, ids: &[u32], chunk: usize) -> Vec<Vec<f64>> {
    ids.chunks(chunk).flat_map(|ids| of(model, cache, ids)).collect()
}

/// The logits of `ids`, fed at once: [position][vocab].
pub fn of(model: &Model, cache: &mut Cache, ids: &[u32]) -> Vec<Vec<f64>> {
    let array = model.forward(ids, cache).expect("logits");
    array.eval().expect("finite work");
    let width = array.shape()[1] as usize;
    let rows = array.as_slice::<f32>().chunks(width);
    let rows: Vec<Vec<f64>> = rows.map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect();
    assert_eq!(rows.len(), ids.len());
    rows
}

/// Differences of logits, relative to the root mean square of those expected.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    pub largest: f64,
    /// The root of their mean square.
    pub typical: f64,
}

/// How far `got` is from `want`.
pub fn difference(got: &[Vec<f64>], want: &[Vec<f64>]) -> Difference {
    assert_eq!(got.len(), want.len());
    let (mut largest, mut differences, mut squares) = (0f64, 0.0, 0.0);
    for (got, want) in got.iter().zip(want) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!(got.is_finite());
            largest = largest.max((got - want).abs());
            differences += (got - want).powi(2);
            squares += want * want;
        }
    }
    let count = got.iter().map(Vec::len).sum::<usize>() as f64;
    let unit = f64::sqrt(squares / count);
    Difference { largest: largest / unit, typical: f64::sqrt(differences / count) / unit }
}
