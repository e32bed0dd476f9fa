//! generation_config.json: which tokens end an answer, and how the publisher samples.

use std::io;
use std::path::Path;

use super::MAX_VOCAB_SIZE;
use super::fields::{Fields, boolean, integer, number, one_or_many, token_id};
use super::file::{parse_object, read_text};
use crate::error::{Error, Result};

/// The fields of generation_config.json that this library uses; all of them are optional.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct GenerationConfig {
    /// Tokens that end the answer; the file has one or a list.
    pub eos_token_id: Vec<u32>,
    /// The token that a plain text starts with.
    pub bos_token_id: Option<u32>,
    /// The token that fills up batches.
    pub pad_token_id: Option<u32>,
    /// Divides the logits; 0 or more.
    pub temperature: Option<f32>,
    /// Probability that the tokens to choose from reach together, from 0 to 1.
    pub top_p: Option<f32>,
    /// How many of the likeliest tokens to choose from; 0 for all.
    pub top_k: Option<usize>,
    /// False asks for the likeliest token always.
    pub do_sample: Option<bool>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` in `dir`; `None` where there is no such file.
    ///
    /// # Errors
    /// As [`GenerationConfig::from_json`], and when the file is there but cannot be read: a link
    /// that leads nowhere is an error.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("generation_config.json");
        // Of the link itself, so that a broken one is not taken for an absent file.
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", path)(error)),
            Ok(_) => Self::from_json(&path, &read_text(&path)?).map(Some),
        }
    }

    /// Parses the text of a generation_config.json; `path` is only for errors.
    ///
    /// # Errors
    /// [`Error::Json`] for text that is not a JSON object, [`Error::Config`] for a field of the
    /// wrong type or out of range.
    pub fn from_json(path: &Path, text: &str) -> Result<Self> {
        let object = parse_object(path, text)?;
        let fields = Fields::new(path, &object);
        let token = token_id(MAX_VOCAB_SIZE);
        Ok(Self {
            eos_token_id: fields.optional("eos_token_id", one_or_many(token))?.unwrap_or_default(),
            bos_token_id: fields.optional("bos_token_id", token)?,
            pad_token_id: fields.optional("pad_token_id", token)?,
            temperature: fields.optional("temperature", number("a number from 0", |t| t >= 0.0))?,
            top_p: fields
                .optional("top_p", number("a number from 0 to 1", |p| (0.0..=1.0).contains(&p)))?,
            top_k: fields.optional("top_k", integer(0..=MAX_VOCAB_SIZE))?,
            do_sample: fields.optional("do_sample", boolean)?,
        })
    }

    /// Checks that every token id is below the model's `vocab_size`; `path` is only for errors.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first field with an id that the model does not have.
    pub fn check_vocabulary(&self, path: &Path, vocab_size: usize) -> Result<()> {
        let fields = [
            ("eos_token_id", self.eos_token_id.as_slice()),
            ("bos_token_id", self.bos_token_id.as_slice()),
            ("pad_token_id", self.pad_token_id.as_slice()),
        ];
        for (field, ids) in fields {
            let known = |&id: &u32| usize::try_from(id).is_ok_and(|id| id < vocab_size);
            if let Some(id) = ids.iter().find(|id| !known(id)) {
                let reason = format!("{id} is not below the model's vocab_size ({vocab_size})");
                return Err(Error::Config { path: path.into(), field: field.into(), reason });
            }
        }
        Ok(())
    }
}
