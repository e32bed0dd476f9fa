//! Many conversations' caches, found by the tokens that they begin with.

use super::Session;
use crate::model::Model;

/// Keeps sessions for prompts that begin alike: further turns of a conversation, or other
/// conversations under the same instructions.
///
/// What is handed out is a branch: it shares memory with what is kept until one of the two is
/// written to, and neither ever sees what the other adds. Lookup goes through all entries, of which
/// a byte budget allows tens or hundreds.
#[derive(Debug)]
pub struct PrefixStore {
    budget: usize,
    /// Least recently used first.
    entries: Vec<Entry>,
    hits: u64,
    misses: u64,
    reused_tokens: u64,
}

#[derive(Debug)]
struct Entry {
    session: Session,
    bytes: usize,
}

/// What a [`PrefixStore`] holds and how it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PrefixStats {
    /// Sessions held.
    pub entries: usize,
    /// Bytes of their caches and tokens. Memory that several share is counted for each.
    pub bytes: usize,
    /// Lookups that found a prefix.
    pub hits: u64,
    /// Lookups that found none.
    pub misses: u64,
    /// Prompt tokens that did not have to be computed, over all hits.
    pub reused_tokens: u64,
}

impl PrefixStore {
    /// An empty store that keeps at most `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self { budget, entries: Vec::new(), hits: 0, misses: 0, reused_tokens: 0 }
    }

    /// A session from which the rest of `prompt` is cheapest to compute: a branch of the entry that
    /// can go back to the longest common prefix, or an empty session. To be given to
    /// [`Model::generate_in`] with the whole prompt.
    pub fn session_for(&mut self, model: &Model, prompt: &[u32]) -> Session {
        let usable = |entry: &Entry| entry.session.is_of(model);
        let reusable = |(at, entry): (usize, &Entry)| match usable(entry) {
            true => (entry.session.reusable(prompt), at),
            false => (0, at),
        };
        let best = self.entries.iter().enumerate().map(reusable).max();
        let Some((tokens, at)) = best.filter(|(tokens, _)| *tokens > 0) else {
            self.misses = self.misses.saturating_add(1);
            return Session::new(model);
        };
        self.hits = self.hits.saturating_add(1);
        self.reused_tokens =
            self.reused_tokens.saturating_add(u64::try_from(tokens).unwrap_or(u64::MAX));
        let entry = self.entries.remove(at);
        let branch = entry.session.clone();
        self.entries.push(entry);
        branch
    }

    /// Keeps a branch of a session. An entry whose prompt it continues goes: the same conversation
    /// one turn earlier, whose answer chat templates rewrite. If an entry holds all of the session,
    /// that one stays instead. What exceeds the budget goes, least recently used first. Returns
    /// whether the tokens are held now: not when there are none or they alone exceed the budget.
    pub fn keep(&mut self, session: &Session) -> bool {
        let bytes = session.nbytes();
        if session.ids().is_empty() || bytes > self.budget {
            return false;
        }
        let alike = |kept: &Session| {
            kept.model == session.model && kept.cache.policy() == session.cache.policy()
        };
        let holds = |kept: &Entry| alike(&kept.session) && kept.session.covers(session.ids());
        if let Some(at) = self.entries.iter().position(holds) {
            let entry = self.entries.remove(at);
            self.entries.push(entry);
            return true;
        }
        let goes = |kept: &Session| alike(kept) && session.covers(kept.prompt());
        self.entries.retain(|kept| !goes(&kept.session));
        self.entries.push(Entry { session: session.clone(), bytes });
        self.shrink_to(self.budget);
        true
    }

    /// Forgets sessions, least recently used first, until at most so many bytes are held.
    pub fn shrink_to(&mut self, bytes: usize) {
        let mut total: usize = self.entries.iter().map(|entry| entry.bytes).sum();
        self.entries.retain(|entry| {
            let goes = total > bytes;
            if goes {
                total = total.saturating_sub(entry.bytes);
            }
            !goes
        });
    }

    /// What is held, and how lookups went.
    pub fn stats(&self) -> PrefixStats {
        PrefixStats {
            entries: self.entries.len(),
            bytes: self.entries.iter().map(|entry| entry.bytes).sum(),
            hits: self.hits,
            misses: self.misses,
            reused_tokens: self.reused_tokens,
        }
    }

    /// Forgets all sessions; the counts stay.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}
