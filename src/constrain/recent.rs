//! The constraints that were compiled last.

use std::sync::{Mutex, PoisonError};

use super::{Constraint, ConstraintSpec};
use crate::error::Result;

/// How many are kept: those of a conversation whose first turn has to call a tool, and of another.
const KEPT: usize = 4;

/// The constraints that were compiled last, the newest first. Compiling takes longer than a token,
/// and the turns of a conversation ask for the same again.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<Vec<(ConstraintSpec, Constraint)>>);

impl Recent {
    /// The constraint by `spec`, compiled when it is not among those kept.
    pub(crate) fn get(
        &self,
        spec: &ConstraintSpec,
        compile: impl FnOnce() -> Result<Option<Constraint>>,
    ) -> Result<Option<Constraint>> {
        // What a panic elsewhere left is a list all the same.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (spec, constraint) = match kept.iter().position(|(known, _)| known == spec) {
            Some(at) => kept.remove(at),
            None => match compile()? {
                Some(constraint) => (spec.clone(), constraint),
                None => return Ok(None),
            },
        };
        kept.insert(0, (spec, constraint.clone()));
        kept.truncate(KEPT);
        Ok(Some(constraint))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::super::{ResponseFormat, Vocabulary};
    use super::*;
    use crate::error::Error;
    use crate::tokenizer::Tokenizer;

    #[test]
    fn what_was_compiled_lately_is_not_compiled_again() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");
        let vocabulary = Vocabulary::new(&Tokenizer::from_dir(Path::new(dir)).unwrap()).unwrap();
        let recent = Recent::default();
        let get = |regex: &str| {
            let response_format = Some(ResponseFormat::Regex(regex.into()));
            let spec = ConstraintSpec { response_format, ..ConstraintSpec::default() };
            recent.get(&spec, || vocabulary.compile(&spec))
        };
        let first = get("a").unwrap().unwrap();
        let same = |regex| Arc::ptr_eq(&get(regex).unwrap().unwrap().parser, &first.parser);
        assert!(same("a") && !same("b") && same("a"));
        // A use makes it the newest again.
        for regex in ["b", "c", "d", "a", "e", "f", "g"] {
            get(regex).unwrap();
        }
        assert!(same("a"));
        for regex in ["b", "c", "d", "e"] {
            get(regex).unwrap();
        }
        assert!(!same("a"));
        assert_eq!(recent.0.lock().unwrap().len(), KEPT);
        // An error is one each time, and takes no place.
        for _ in 0..2 {
            assert!(matches!(get("("), Err(Error::Grammar { .. })));
        }
        assert_eq!(recent.0.lock().unwrap().len(), KEPT);
    }
}
