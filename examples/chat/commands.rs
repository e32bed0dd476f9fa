//! What a line says: a message or a command.

use std::path::PathBuf;

use gpt_oss_mlx::chat::ReasoningEffort;

/// What `/help` prints.
pub const HELP: &str = "\
/reset             forget what was said; instructions, effort and tools stay
/regenerate        answer the last message again
/system [TEXT]     set the instructions, or without a text take them away
/effort [LEVEL]    how much to reason: low, medium or high; without a level, the model's default
/tools [demo|off]  offer the model two tools, or none; without a word, list them
/analysis          show the reasoning, or hide it again
/save FILE         write the conversation as JSON
/load FILE         go on with a conversation from a file
/stats             figures of the last answer and of the cache
/help              this list
/quit              leave, as Ctrl-D does
A line that begins with // is a message that begins with /. Ctrl-C stops an answer.";

/// What a line says.
#[derive(Debug, PartialEq)]
pub enum Line {
    /// Nothing.
    Empty,
    /// A message for the model.
    Message(String),
    /// Something for the program.
    Command(Command),
}

/// Something for the program to do.
#[derive(Debug, PartialEq)]
pub enum Command {
    Reset,
    Regenerate,
    System(Option<String>),
    Effort(Option<ReasoningEffort>),
    Tools(Option<bool>),
    Analysis,
    Save(PathBuf),
    Load(PathBuf),
    Stats,
    Help,
    Quit,
}

impl Line {
    /// Reads a line; what is wrong with it when it is none.
    pub fn parse(line: &str) -> Result<Self, String> {
        let line = line.trim();
        let Some(command) = line.strip_prefix('/') else {
            return Ok(match line {
                "" => Self::Empty,
                text => Self::Message(text.to_owned()),
            });
        };
        if command.starts_with('/') {
            return Ok(Self::Message(command.to_owned()));
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = Some(rest.trim()).filter(|rest| !rest.is_empty());
        let alone = |command| match rest {
            None => Ok(command),
            Some(_) => Err(format!("/{name} takes nothing")),
        };
        let file = || rest.map(path).ok_or_else(|| format!("/{name} needs the name of a file"));
        Ok(Self::Command(match name {
            "reset" => alone(Command::Reset)?,
            "regenerate" => alone(Command::Regenerate)?,
            "system" => Command::System(rest.map(str::to_owned)),
            "effort" => Command::Effort(match rest {
                None => None,
                Some(level) => Some(
                    level.parse().map_err(|_| format!("`{level}` is not low, medium or high"))?,
                ),
            }),
            "tools" => Command::Tools(match rest {
                None => None,
                Some("demo") => Some(true),
                Some("off") => Some(false),
                Some(other) => return Err(format!("`{other}` is not demo or off")),
            }),
            "analysis" => alone(Command::Analysis)?,
            "save" => Command::Save(file()?),
            "load" => Command::Load(file()?),
            "stats" => alone(Command::Stats)?,
            "help" => alone(Command::Help)?,
            "quit" | "exit" => alone(Command::Quit)?,
            _ => return Err(format!("there is no command /{name}; /help lists them")),
        }))
    }
}

/// A path as a shell would take it, as far as a leading `~/`.
fn path(text: &str) -> PathBuf {
    match (text.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => text.into(),
    }
}
