//! A chat in the terminal: `cargo run --release --example chat -- --help`.

mod args;
mod commands;
mod dialogue;
#[path = "../common/failure.rs"]
mod failure;
mod file;
mod input;
mod interrupt;
#[path = "../common/model.rs"]
mod model;
mod screen;
mod tools;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use gpt_oss_mlx::TextModel;
use gpt_oss_mlx::chat::{Message, ReasoningEffort, Role};

use args::Args;
use commands::{Command, HELP, Line};
use dialogue::Dialogue;
use failure::{Failure, explain_answer, is_closed_pipe};
use input::{Entry, Input};
use interrupt::Interrupt;
use screen::Screen;

fn main() -> ExitCode {
    match app(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has had enough: nothing to report, and nobody to report it to.
        Err(failure) if is_closed_pipe(failure.as_ref()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Unlike `eprintln!` this does not panic when nobody reads there.
            let _ = writeln!(io::stderr(), "{}", explain_answer(failure.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn app(args: &Args) -> Result<(), Failure> {
    let options = args.chat_options()?;
    let mut input = Input::new()?;
    let interrupt = Interrupt::install()?;
    let folder = model::folder(&args.model)?;
    let mut screen = Screen::new();
    let model = TextModel::load_with_progress(&folder, &args.load_options(), |done, total| {
        screen.status(&format!("loading {}%", 100 * done / total.max(1)));
    })?;
    screen.end_line()?;
    interrupt.idle(input.is_terminal());

    let mut dialogue = Dialogue::new(&model, options);
    dialogue.show_analysis = args.show_analysis;
    dialogue.conversation.messages.extend(args.system.clone().map(Message::System));
    dialogue.conversation.reasoning_effort = args.effort;
    // One day for the whole chat: it is at the start of the prompt, and the cache behind it.
    dialogue.conversation.date = Some(jiff::Zoned::now().date().to_string());
    if input.is_terminal() {
        screen.say("/help lists the commands; Ctrl-D leaves")?;
    }
    // Ctrl-C was pressed, and nothing entered since.
    let mut interrupted = false;
    loop {
        let line = match input.next()? {
            Entry::Line(line) => line,
            Entry::NotText => {
                screen.say("error: the line is not UTF-8")?;
                continue;
            }
            Entry::Interrupted if !interrupted => {
                interrupted = true;
                screen.say("Ctrl-C again leaves")?;
                continue;
            }
            Entry::Interrupted | Entry::End => return Ok(()),
        };
        let done = match Line::parse(&line) {
            Ok(Line::Empty) => continue,
            Ok(Line::Message(text)) => dialogue.say(text, &mut screen, &interrupt),
            Ok(Line::Command(Command::Quit)) => return Ok(()),
            Ok(Line::Command(command)) => obey(command, &mut dialogue, &mut screen, &interrupt),
            Err(wrong) => Err(wrong.into()),
        };
        interrupt.idle(input.is_terminal());
        interrupted = match done {
            Ok(interrupted) => interrupted,
            // Nothing can be shown any more.
            Err(failure) if failure.is::<io::Error>() => return Err(failure),
            Err(failure) => {
                screen.say(&explain_answer(failure.as_ref()))?;
                false
            }
        };
        if interrupted {
            screen.say("(stopped)")?;
        }
    }
}

/// Does what a command says. True when Ctrl-C ended an answer.
fn obey(
    command: Command,
    dialogue: &mut Dialogue,
    screen: &mut Screen,
    interrupt: &Interrupt,
) -> Result<bool, Failure> {
    let conversation = &mut dialogue.conversation;
    match command {
        Command::Reset => {
            let instructions =
                |message: &Message| matches!(message.role(), Role::System | Role::Developer);
            conversation.messages.retain(instructions);
            screen.say("(a new conversation)")?;
        }
        Command::Regenerate => match dialogue.regenerate(screen, interrupt)? {
            Some(interrupted) => return Ok(interrupted),
            None => return Err("nothing was asked yet".into()),
        },
        Command::System(text) => {
            conversation.messages.retain(|message| message.role() != Role::System);
            screen.say(if text.is_some() { "(instructions set)" } else { "(no instructions)" })?;
            conversation.messages.splice(..0, text.map(Message::System));
        }
        Command::Effort(effort) => {
            conversation.reasoning_effort = effort;
            let name = effort.map_or("the model's default", ReasoningEffort::as_str);
            screen.say(&format!("(effort: {name})"))?;
        }
        Command::Tools(change) => {
            match change {
                Some(true) => conversation.tools = tools::demo().into(),
                Some(false) => conversation.tools.clear(),
                None => {}
            }
            let names: Vec<&str> =
                conversation.tools.iter().map(|tool| tool.name.as_str()).collect();
            let names = if names.is_empty() { "none".into() } else { names.join(", ") };
            screen.say(&format!("(tools: {names})"))?;
        }
        Command::Analysis => {
            dialogue.show_analysis = !dialogue.show_analysis;
            let state = if dialogue.show_analysis { "shown" } else { "hidden" };
            screen.say(&format!("(analysis: {state})"))?;
        }
        Command::Save(path) => {
            file::save(conversation, &path)?;
            screen.say(&format!("(saved in {})", path.display()))?;
        }
        Command::Load(path) => {
            let date = conversation.date.clone();
            *conversation = file::load(&path)?;
            conversation.date = conversation.date.take().or(date);
            let messages = conversation.messages.len();
            screen.say(&format!("({messages} messages from {})", path.display()))?;
        }
        Command::Stats => screen.say(&dialogue.stats())?,
        Command::Help | Command::Quit => screen.say(HELP)?,
    }
    Ok(false)
}
