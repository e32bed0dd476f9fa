//! Grouped-query attention with sinks and a sliding window, by the definition.

/// The sizes and constants of one attention call.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` consecutive query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// A query at position p sees the keys at p - window + 1 ..= p; `None` for all up to p.
    pub window: Option<usize>,
    /// What scores are multiplied by.
    pub scale: f64,
}

impl Attention {
    /// `queries[i]` (heads · head_dim) is at position `first + i`, `keys[j]` and `values[j]`
    /// (kv_heads · head_dim) at position j. A sink is one more score in its head's softmax, with
    /// no value. Returns one row (heads · head_dim) per query.
    pub fn forward(
        &self,
        queries: &[Vec<f64>],
        keys: &[Vec<f64>],
        values: &[Vec<f64>],
        sinks: &[f32],
        first: usize,
    ) -> Vec<Vec<f64>> {
        assert_eq!(sinks.len(), self.heads, "one sink per query head");
        let mut rows = Vec::with_capacity(queries.len());
        for (i, query) in queries.iter().enumerate() {
            let position = first + i;
            let start = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
            let mut row = Vec::with_capacity(query.len());
            for (head, &sink) in sinks.iter().enumerate() {
                let q = self.head(query, head);
                let group = head / (self.heads / self.kv_heads);
                let scores: Vec<f64> = (start..=position)
                    .map(|j| dot(q, self.head(&keys[j], group)) * self.scale)
                    .collect();
                let weights = softmax_with_sink(&scores, f64::from(sink));
                for d in 0..self.head_dim {
                    let value = |j: usize| self.head(&values[j], group)[d];
                    row.push(
                        (start..=position).zip(&weights).map(|(j, w)| w * value(j)).sum::<f64>(),
                    );
                }
            }
            rows.push(row);
        }
        rows
    }

    fn head<'a>(&self, row: &'a [f64], head: usize) -> &'a [f64] {
        &row[head * self.head_dim..(head + 1) * self.head_dim]
    }
}

/// exp(score) / (exp(sink) + Σ exp(score)); a sink of -∞ gives the plain softmax.
pub fn softmax_with_sink(scores: &[f64], sink: f64) -> Vec<f64> {
    let max = scores.iter().fold(sink, |m, &s| m.max(s));
    let exps: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let total = exps.iter().sum::<f64>() + (sink - max).exp();
    exps.iter().map(|e| e / total).collect()
}

/// Inner product.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "vectors of one length");
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
