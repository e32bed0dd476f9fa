//! Copies of the sliding layers at earlier positions. Full layers keep everything and are cut;
//! sliding ones have forgotten, and go back by a copy.

use mlx_rs::Array;

use super::rows::KeysValues;
use super::sliding;

/// The sliding layers after `position` tokens.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) position: usize,
    /// In the order of the sliding layers.
    pub(crate) layers: Vec<KeysValues>,
}

impl Snapshot {
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flat_map(KeysValues::arrays)
    }

    fn nbytes(&self) -> usize {
        self.arrays().map(Array::nbytes).sum()
    }

    /// True when it holds what the query at position `to`, at or before its own, sees.
    pub(super) fn covers(&self, to: usize, window: usize) -> bool {
        self.layers.iter().all(|rows| {
            rows.count().is_ok_and(|count| sliding::covers(count, self.position, to, window))
        })
    }
}

/// Snapshots by position, within a byte budget.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshots {
    list: Vec<Snapshot>,
}

impl Snapshots {
    /// Adds one behind all others, and drops what exceeds the budget: first where the others lie
    /// closest together, so that what is left is spread over the sequence.
    pub(super) fn push(&mut self, snapshot: Snapshot, budget: usize) {
        self.forget_after(snapshot.position.saturating_sub(1));
        self.list.push(snapshot);
        while self.nbytes() > budget && !self.list.is_empty() {
            self.list.remove(self.most_dispensable());
        }
    }

    /// The one whose neighbours are closest together; the newest only when it is alone.
    fn most_dispensable(&self) -> usize {
        let mut before = 0;
        let mut least = (usize::MAX, 0);
        for (i, pair) in self.list.windows(2).enumerate() {
            let [this, next] = pair else { continue };
            least = least.min((next.position.saturating_sub(before), i));
            before = this.position;
        }
        least.1
    }

    /// Drops those of positions behind `position`.
    pub(super) fn forget_after(&mut self, position: usize) {
        self.list.retain(|snapshot| snapshot.position <= position);
    }

    /// Position of the newest; 0 when there is none.
    pub(super) fn newest(&self) -> usize {
        self.list.last().map_or(0, |snapshot| snapshot.position)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Snapshot> {
        self.list.iter()
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.list.iter().flat_map(Snapshot::arrays)
    }

    pub(super) fn nbytes(&self) -> usize {
        self.list.iter().map(Snapshot::nbytes).sum()
    }
}
