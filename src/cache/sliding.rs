//! The cache of a layer that sees a window.
//!
//! Rows lie in order in a block somewhat longer than the window. When the block is full, the rows
//! still needed move to its front. Compared with a ring written round and round, the visible rows
//! are always one contiguous view, so that decoding needs no mask; it costs one move of a few
//! hundred rows every `STEP` tokens.

use mlx_rs::Array;

use super::rows::{KeysValues, too_long};
use crate::error::{Error, Result};

/// Tokens between two moves.
const STEP: usize = 64;

/// Rows that a move keeps: those that the next query sees before its own, and the slack, so that
/// the window of a position up to as many tokens back is still whole.
pub(super) fn kept(window: usize, slack: usize) -> usize {
    window.saturating_sub(1).saturating_add(slack)
}

/// Rows that the memory holds.
pub(super) fn capacity(window: usize, slack: usize) -> usize {
    kept(window, slack).saturating_add(STEP)
}

/// Keys and values of the last tokens, in memory that does not grow.
#[derive(Debug, Clone)]
pub(crate) struct SlidingCache {
    window: usize,
    slack: usize,
    rows: Option<KeysValues>,
    /// Rows in use, from the front.
    len: i32,
    /// After how many of the next step's tokens to take a snapshot, ascending.
    due: Vec<i32>,
    /// The snapshots of the last step, in the order of `due`.
    taken: Vec<KeysValues>,
}

impl SlidingCache {
    pub(crate) fn new(window: usize, slack: usize) -> Self {
        Self { window, slack, rows: None, len: 0, due: Vec::new(), taken: Vec::new() }
    }

    /// Returns up to window − 1 earlier rows and then the new ones.
    pub(crate) fn update(&mut self, new: KeysValues) -> Result<KeysValues> {
        let count = new.count()?;
        let capacity = int(capacity(self.window, self.slack))?;
        let visible_before = self.len.min(int(self.before())?);
        // Taken out, so that no second handle keeps MLX from writing in place.
        let rows = match self.rows.take() {
            None => new.zeros(capacity)?,
            Some(rows) => rows,
        };
        if self.len.checked_add(count).is_some_and(|end| end <= capacity) {
            let rows = rows.write(&new, self.len)?;
            self.take_due(&rows, self.len)?;
            self.len += count;
            let view = rows.view(self.len - count - visible_before, self.len)?;
            self.rows = Some(rows);
            return Ok(view);
        }

        // The block is full, or the tokens are more than it holds: join what is still needed with
        // the new rows, and put the end of that into the block.
        let kept = int(kept(self.window, self.slack))?;
        let old = rows.view(self.len - self.len.min(kept), self.len)?;
        let all = old.followed_by(&new)?;
        let total = all.count()?;
        self.take_due(&all, total - count)?;
        self.len = total.min(kept);
        let rows = rows.write(&all.view(total - self.len, total)?, 0)?;
        let start = total - count - visible_before;
        if start < 0 {
            return Err(Error::Mlx { op: "cache", message: format!("{start} visible rows") });
        }
        // Nothing else in this step reads the block: left lazy, it could be computed by this
        // thread only.
        let seen = all.view(start, total)?.after(&rows)?;
        self.rows = Some(rows);
        Ok(seen)
    }

    /// Asks for a snapshot after each of these numbers of the next step's tokens, ascending.
    pub(super) fn expect(&mut self, due: &[i32]) {
        self.due = due.to_vec();
        self.taken = Vec::new();
    }

    /// The snapshots that were asked for, once the step is built.
    pub(super) fn taken(&mut self) -> impl Iterator<Item = KeysValues> {
        std::mem::take(&mut self.taken).into_iter()
    }

    /// Copies what is due from `rows`, of which `before` were there before the step.
    fn take_due(&mut self, rows: &KeysValues, before: i32) -> Result<()> {
        let kept = int(kept(self.window, self.slack))?;
        for tokens in std::mem::take(&mut self.due) {
            let end = before.checked_add(tokens).ok_or_else(too_long)?;
            self.taken.push(rows.view(end - end.min(kept), end)?.copied()?);
        }
        Ok(())
    }

    /// Tokens that a query sees before its own.
    fn before(&self) -> usize {
        self.window.saturating_sub(1)
    }

    /// True when, of a sequence of `from` tokens, all rows are there that the query at position
    /// `to` sees.
    pub(super) fn can_go_back(&self, from: usize, to: usize) -> bool {
        covers(self.len, from, to, self.window)
    }

    /// Drops the last `tokens` rows; the caller has asked [`SlidingCache::can_go_back`].
    pub(super) fn drop_last(&mut self, tokens: usize) -> Result<()> {
        self.len = self.len.checked_sub(int(tokens)?).ok_or_else(too_long)?;
        Ok(())
    }

    /// Rows that a snapshot would have: as many as a move keeps.
    fn snapshot_rows(&self) -> i32 {
        int(kept(self.window, self.slack)).map_or(self.len, |kept| self.len.min(kept))
    }

    /// Bytes that a snapshot would take.
    pub(super) fn snapshot_nbytes(&self) -> usize {
        let Some(rows) = &self.rows else { return 0 };
        let held = rows.arrays().map(Array::nbytes).sum::<usize>();
        let row = held.checked_div(rows.count().map_or(0, size)).unwrap_or(0);
        row.saturating_mul(size(self.snapshot_rows()))
    }

    /// A copy of the last rows, as many as a move keeps.
    pub(super) fn snapshot(&self) -> Result<Option<KeysValues>> {
        let Some(rows) = &self.rows else { return Ok(None) };
        let count = self.snapshot_rows();
        Ok(Some(rows.view(self.len - count, self.len)?.copied()?))
    }

    /// Holds exactly the rows of a snapshot from now on.
    pub(super) fn restore(&mut self, snapshot: Option<&KeysValues>) -> Result<()> {
        let Some(snapshot) = snapshot else {
            *self = Self::new(self.window, self.slack);
            return Ok(());
        };
        let capacity = int(capacity(self.window, self.slack))?;
        let count = snapshot.count()?;
        if count > capacity {
            return Err(Error::Mlx { op: "cache", message: format!("snapshot of {count} rows") });
        }
        self.rows = Some(snapshot.zeros(capacity)?.write(snapshot, 0)?);
        self.len = count;
        Ok(())
    }

    /// Rows in use.
    pub(super) fn len(&self) -> i32 {
        self.len
    }

    pub(super) fn held(&self) -> Option<&KeysValues> {
        self.rows.as_ref()
    }
}

/// True when the last `rows` rows of a sequence of `from` tokens hold all that the query at
/// position `to` sees in a window.
pub(super) fn covers(rows: i32, from: usize, to: usize, window: usize) -> bool {
    let left = from.checked_sub(to).and_then(|back| size(rows).checked_sub(back));
    left.is_some_and(|left| left >= to.min(window.saturating_sub(1)))
}

fn int(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| too_long())
}

fn size(n: i32) -> usize {
    usize::try_from(n).unwrap_or(0)
}
