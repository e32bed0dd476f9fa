//! Running other programs.

use std::io::ErrorKind;
use std::process::{Command, Stdio};

/// Runs `command` to its end. What it says goes to this build's log as well,
/// and into the error when it fails.
pub fn output(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let result = command.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("{program}: not found"),
        _ => format!("{program}: {error}"),
    })?;
    let text = String::from_utf8_lossy(&result.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&result.stderr);
    if result.status.success() {
        return Ok(text);
    }
    let said = [text.trim_end(), complaints.trim_end()].join("\n");
    Err(format!("{program}: {}\n{}", result.status, said.trim()))
}

/// The two leading numbers of a version such as `3.31.10`.
pub fn two_numbers(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}
