//! How a token is chosen, step by step and by the definitions, in f64.

use super::attention::softmax_with_sink;

/// The filters, in the order in which they apply.
#[derive(Clone, Debug)]
pub struct Filters {
    /// Nucleus; 1 for off.
    pub top_p: f32,
    /// Share of the greatest probability; 0 for off.
    pub min_p: f32,
    /// Tokens that min_p leaves in any case.
    pub min_tokens_to_keep: usize,
    /// XTC's threshold, where its coin fell that way, and the tokens that it never removes.
    pub xtc: Option<(f32, Vec<u32>)>,
    /// 0 for off.
    pub top_k: usize,
}

impl Default for Filters {
    fn default() -> Self {
        Self { top_p: 1.0, min_p: 0.0, min_tokens_to_keep: 1, xtc: None, top_k: 0 }
    }
}

/// Token ids from the greatest logit to the least, the lower id first among equals.
pub fn ranking(logits: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).expect("no NaN").then(a.cmp(&b)));
    order
}

/// exp(logit) / Σ exp(logit).
pub fn softmax(logits: &[f64]) -> Vec<f64> {
    softmax_with_sink(logits, f64::NEG_INFINITY)
}

/// The logits with the removed tokens at -∞.
pub fn filter(logits: &[f64], filters: &Filters) -> Vec<f64> {
    let mut logits = logits.to_vec();
    if filters.top_p < 1.0 {
        let probabilities = softmax(&logits);
        let mut above = 0.0;
        for (rank, id) in ranking(&logits).into_iter().enumerate() {
            if rank > 0 && above >= f64::from(filters.top_p) {
                logits[id] = f64::NEG_INFINITY;
            }
            above += probabilities[id];
        }
    }
    if filters.min_p > 0.0 {
        let order = ranking(&logits);
        let least = logits[order[0]] + f64::from(filters.min_p).ln();
        for &id in order.iter().skip(filters.min_tokens_to_keep) {
            if logits[id] < least {
                logits[id] = f64::NEG_INFINITY;
            }
        }
    }
    if let Some((threshold, kept)) = &filters.xtc {
        let probabilities = softmax(&logits);
        let viable = |p: f64| p > f64::from(*threshold);
        let least = probabilities.iter().copied().filter(|&p| viable(p)).fold(f64::MAX, f64::min);
        for (id, &p) in probabilities.iter().enumerate() {
            if viable(p) && p > least && !kept.contains(&(id as u32)) {
                logits[id] = f64::NEG_INFINITY;
            }
        }
    }
    if filters.top_k > 0 {
        for id in ranking(&logits).into_iter().skip(filters.top_k) {
            logits[id] = f64::NEG_INFINITY;
        }
    }
    logits
}

/// What each token's chance is after the filters, at this temperature.
pub fn chances(logits: &[f64], filters: &Filters, temperature: f32) -> Vec<f64> {
    let scaled: Vec<f64> =
        filter(logits, filters).iter().map(|l| l / f64::from(temperature)).collect();
    softmax(&scaled)
}

/// The three penalties over the last `context` tokens of `history` (0 for all of it).
#[derive(Clone, Debug)]
pub struct Penalties {
    /// Divides positive logits of seen tokens and multiplies the others; 1 for off.
    pub repetition: f32,
    /// Taken once from every seen token.
    pub presence: f32,
    /// Taken from a token as often as it was seen.
    pub frequency: f32,
    /// How far back to look.
    pub context: usize,
}

/// The logits after the penalties.
pub fn penalize(logits: &[f64], history: &[u32], penalties: &Penalties) -> Vec<f64> {
    let reach = if penalties.context == 0 { history.len() } else { penalties.context };
    let recent = &history[history.len().saturating_sub(reach)..];
    let punish = |(id, &logit): (usize, &f64)| {
        let seen = recent.iter().filter(|&&token| token as usize == id).count() as f64;
        if seen == 0.0 {
            return logit;
        }
        let repetition = f64::from(penalties.repetition);
        let logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
        logit - f64::from(penalties.presence) - f64::from(penalties.frequency) * seen
    };
    logits.iter().enumerate().map(punish).collect()
}
