//! Empty: stands in for a dependency of openai-harmony that it does not use.
