//! What the generation loop drives: a model and the session that it writes to.

use mlx_rs::{Array, ops, transforms};

use super::Session;
use crate::cache::KvPolicy;
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Generation, TokenSource};
use crate::mlx::{self, Device};
use crate::model::Model;

/// A model with the session of one sequence: what the generation loop drives.
#[derive(Debug)]
pub struct Decoder<'a> {
    model: &'a Model,
    session: Held<'a>,
}

#[derive(Debug)]
enum Held<'a> {
    Own(Box<Session>),
    Lent(Lent<'a>),
}

#[derive(Debug)]
struct Lent<'a>(&'a mut Session);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        // What is left lazy could be computed by this thread only.
        self.0.settle();
    }
}

impl Model {
    /// Starts generating after `prompt` with a cache of its own. See [`Generation`].
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty prompt, an id outside the vocabulary or an option out of
    /// range, [`Error::ContextFull`] when the prompt leaves no room for a token.
    pub fn generate(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Generation<Decoder<'_>>> {
        // Nobody comes back to a sequence that ends with its generation.
        let policy = KvPolicy { snapshot_bytes: 0, ..*self.kv_policy() };
        let session = Box::new(Session::with_policy(self, &policy)?);
        let decoder = Decoder { model: self, session: Held::Own(session) };
        Generation::new(decoder, prompt, options)
    }

    /// Starts generating after `prompt`, the whole conversation so far, in a session: what the
    /// session's cache holds of it is not computed again.
    ///
    /// # Errors
    /// As [`Model::generate`], and [`Error::Argument`] for a session of another model.
    pub fn generate_in<'a>(
        &'a self,
        session: &'a mut Session,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Generation<Decoder<'a>>> {
        if session.model != self.fingerprint() {
            return Err(Error::argument("session", "it belongs to another model"));
        }
        let decoder = Decoder { model: self, session: Held::Lent(Lent(session)) };
        Generation::new(decoder, prompt, options)
    }

    /// This model with an empty cache, for a loop of one's own.
    pub fn decoder(&self) -> Decoder<'_> {
        Decoder { model: self, session: Held::Own(Box::new(Session::new(self))) }
    }
}

impl<'a> Decoder<'a> {
    /// A model with a session of its own to go on with.
    pub(crate) fn of(model: &'a Model, session: Session) -> Self {
        Self { model, session: Held::Own(Box::new(session)) }
    }

    /// Whether the sequence can take another token.
    pub(crate) fn check_step(&self) -> Result<()> {
        self.model.check_row(&self.session().cache)
    }

    /// [`TokenSource::step`] of several sequences of one model: their tokens u32 [1] in, the logits
    /// after each [vocabulary] out, lazily.
    pub(crate) fn step_many(rows: &mut [(&mut Self, Array)]) -> Result<Vec<Array>> {
        let Some(model) = rows.first().map(|(decoder, _)| decoder.model) else {
            return Ok(Vec::new());
        };
        if let [(decoder, token)] = rows {
            return Ok(vec![decoder.step(token)?]);
        }
        let tokens: Vec<&Array> = rows.iter().map(|(_, token)| token).collect();
        let tokens = ops::concatenate(&tokens, 0)?;
        let mut caches: Vec<_> =
            rows.iter_mut().map(|(decoder, _)| &mut decoder.session_mut().cache).collect();
        let logits = model.step_batch(&tokens, &mut caches)?;
        let mut rest = ops::split_equal(&logits, i32::try_from(rows.len()).unwrap_or(i32::MAX), 0)?;
        rest.truncate(rows.len());
        for (decoder, token) in rows {
            let session = decoder.session_mut();
            session.read_last()?;
            session.last = Some(token.clone());
        }
        rest.into_iter().map(|row| Ok(row.reshape(&[-1])?)).collect()
    }

    /// What the sequence has come to, to go on with later. Waits for what is being computed. None
    /// when the session was lent: its owner has it.
    pub(crate) fn into_session(self) -> Option<Session> {
        match self.session {
            Held::Own(mut session) => {
                session.settle();
                Some(*session)
            }
            Held::Lent(_) => None,
        }
    }

    /// The sequence and its cache.
    pub fn session(&self) -> &Session {
        match &self.session {
            Held::Own(session) => session,
            Held::Lent(Lent(session)) => session,
        }
    }

    fn session_mut(&mut self) -> &mut Session {
        match &mut self.session {
            Held::Own(session) => session,
            Held::Lent(Lent(session)) => session,
        }
    }

    /// Logits [vocabulary] after the last of `tokens` [1, length].
    fn logits_of(&mut self, tokens: &Array) -> Result<Array> {
        let model = self.model;
        let cache = &mut self.session_mut().cache;
        let hidden = model.hidden(tokens, cache)?;
        let &[_, length, width] = hidden.shape() else {
            return Err(Error::Mlx { op: "logits", message: "shape".into() });
        };
        let last = match length {
            1 => hidden,
            _ => mlx::slice(&hidden, &[0, length - 1, 0], &[1, length, width])?,
        };
        Ok(model.head(&last)?.reshape(&[-1])?)
    }
}

impl TokenSource for Decoder<'_> {
    fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    fn context_limit(&self) -> usize {
        self.model.context_limit()
    }

    fn position(&self) -> usize {
        self.session().cache.len()
    }

    fn stop_ids(&self) -> &[u32] {
        self.model.stop_ids()
    }

    fn device(&self) -> Device {
        self.model.device()
    }

    fn begin(&mut self, prompt: &[u32]) -> Result<usize> {
        self.session_mut().reuse(prompt)
    }

    fn prefill(&mut self, tokens: &[u32]) -> Result<()> {
        let model = self.model;
        let session = self.session_mut();
        let array = model.checked(tokens)?;
        model.device().run(|| {
            session.read_last()?;
            model.hidden(&array, &mut session.cache)?;
            session.ids.extend_from_slice(tokens);
            // Only what the cache holds is computed; the last layer's output is not.
            if let Err(error) = transforms::eval(session.cache.arrays()) {
                session.cache.spoil();
                return Err(error.into());
            }
            mlx::clear_cache()
        })
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Array> {
        let array = self.model.checked(tokens)?;
        let device = self.model.device();
        device.run(|| {
            let logits = self.logits_of(&array)?;
            let session = self.session_mut();
            session.read_last()?;
            session.ids.extend_from_slice(tokens);
            Ok(logits)
        })
    }

    fn step(&mut self, token: &Array) -> Result<Array> {
        let device = self.model.device();
        device.run(|| {
            let logits = self.logits_of(&token.reshape(&[1, 1])?)?;
            let session = self.session_mut();
            // Read by the caller before it asked for this step: no waiting here.
            session.read_last()?;
            session.last = Some(token.clone());
            Ok(logits)
        })
    }
}
