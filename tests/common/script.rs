//! A model that says what it is told, in the bundled tokenizer's vocabulary.

use gpt_oss_mlx::{CancelToken, Device, Error, Result, TokenSource, Tokenizer};
use mlx_rs::Array;

const VOCAB: usize = 2048;

/// Says one token after another; when there are no more, it fails.
#[derive(Debug)]
pub struct Script {
    ids: Vec<u32>,
    stop: Vec<u32>,
    position: usize,
    said: usize,
    /// Cancels when it is asked for the token of this number.
    cancel: Option<(usize, CancelToken)>,
}

impl Script {
    pub fn new(tokenizer: &Tokenizer, ids: &[u32], cancel: Option<(usize, CancelToken)>) -> Self {
        let stop = ["<|return|>", "<|call|>"].map(|name| tokenizer.token_id(name).unwrap());
        Self { ids: ids.to_vec(), stop: stop.into(), position: 0, said: 0, cancel }
    }

    fn next(&mut self) -> Result<Array> {
        self.position += 1;
        if let Some((at, cancel)) = &self.cancel
            && *at == self.said
        {
            cancel.cancel();
        }
        let id = self.ids.get(self.said).ok_or(Error::ContextFull { tokens: 0, limit: 0 })?;
        self.said += 1;
        let mut logits = vec![0f32; VOCAB];
        logits[*id as usize] = 9.0;
        Ok(Array::from_slice(&logits, &[VOCAB as i32]))
    }
}

impl TokenSource for Script {
    fn vocab_size(&self) -> usize {
        VOCAB
    }
    fn context_limit(&self) -> usize {
        100_000
    }
    fn position(&self) -> usize {
        self.position
    }
    fn stop_ids(&self) -> &[u32] {
        &self.stop
    }
    fn device(&self) -> Device {
        Device::Cpu
    }
    fn begin(&mut self, _: &[u32]) -> Result<usize> {
        Ok(0)
    }
    fn prefill(&mut self, _: &[u32]) -> Result<()> {
        Ok(())
    }
    fn logits(&mut self, _: &[u32]) -> Result<Array> {
        self.next()
    }
    fn step(&mut self, _: &Array) -> Result<Array> {
        self.next()
    }
}
