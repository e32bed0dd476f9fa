//! Conversations in files, as JSON in the shape of OpenAI's chat completions API.

use std::fs;
use std::io::Write;
use std::path::Path;

use gpt_oss_mlx::chat::Conversation;
use serde_json::Value;
use tempfile::NamedTempFile;

/// Writes the file whole or not at all.
pub fn save(conversation: &Conversation, path: &Path) -> Result<(), String> {
    let failed =
        |error: &dyn std::fmt::Display| format!("cannot write {}: {error}", path.display());
    if path.is_dir() {
        return Err(failed(&"it is a folder"));
    }
    // In the same folder, so that it can take the other's place.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file =
        NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(|e| failed(&e))?;
    let text = format!("{:#}\n", conversation.to_json());
    file.write_all(text.as_bytes()).map_err(|e| failed(&e))?;
    file.as_file().sync_all().map_err(|e| failed(&e))?;
    file.persist(path).map_err(|e| failed(&e.error))?;
    Ok(())
}

/// Reads a conversation.
pub fn load(path: &Path) -> Result<Conversation, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", path.display());
    let text = fs::read_to_string(path).map_err(|e| failed(&e))?;
    let json: Value = serde_json::from_str(&text).map_err(|e| failed(&e))?;
    Conversation::from_json(&json).map_err(|e| failed(&e))
}
