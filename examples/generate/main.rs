//! Generates text: `cargo run --release --example generate -- --help`.

mod args;
#[path = "../common/failure.rs"]
mod failure;
mod memory;
#[path = "../common/model.rs"]
mod model;
mod output;
mod prompt_cache;
#[cfg(feature = "constrain")]
mod schema;
mod turn;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use gpt_oss_mlx::chat::harmony::HarmonyParser;
use gpt_oss_mlx::{CancelToken, CompletionOptions, FinishReason, Model, Session, TextModel};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use args::{Args, Prompt};
use failure::{Failure, explain_answer, is_closed_pipe};
use output::{Kv, Report};
use prompt_cache::Stored;
use turn::Turn;

fn main() -> ExitCode {
    match app(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has had enough: nothing to report, and nobody to report it to.
        Err(failure) if is_closed_pipe(failure.as_ref()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::print_failure(&explain_answer(failure.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn app(args: &Args) -> Result<(), Failure> {
    if args.memory {
        let folder = model::folder(&args.model)?;
        let estimate = Model::estimate_memory(&folder, &args.load_options())?;
        return Ok(memory::print(args, &estimate)?);
    }
    #[cfg_attr(not(feature = "constrain"), expect(unused_mut))]
    let (mut prompt, mut options) = args.prompt_and_options()?;
    #[cfg(feature = "constrain")]
    let schema = args.schema.as_deref().map(schema::read).transpose()?;
    let loaded = end_on_ctrl_c(options.generate.cancel.clone())?;
    let folder = model::folder(&args.model)?;
    #[cfg(feature = "constrain")]
    schema::apply(args, schema, &folder, &mut prompt, &mut options)?;

    let bar = progress_bar("loading", "{bytes}/{total_bytes}");
    let model = TextModel::load_with_progress(&folder, &args.load_options(), |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    loaded.store(true, Ordering::Relaxed);
    if let Some(estimate) = model.model().memory_estimate().filter(|estimate| !estimate.fits()) {
        output::print_warning(&format!("too little memory: {estimate}"));
    }

    let (prompt_ids, parser) = match prompt {
        Prompt::Ids(ids) => (ids, None),
        Prompt::Raw(text) => (model.raw_prompt(&text)?, None),
        Prompt::Chat(conversation) => {
            (model.chat_prompt(&conversation)?, HarmonyParser::new(model.tokenizer()))
        }
    };
    let parser = parser.map(|parser| parser.with_stop(options.stop.clone())).transpose()?;
    let turn = parser.map(|parser| Turn::new(parser, args));
    let (mut session, cached) = prompt_cache::open(model.model(), args.prompt_cache.as_deref())?;
    let answered = answer(args, &model, &mut session, &prompt_ids, &options, turn, cached);
    if let Some(path) = &args.prompt_cache {
        // Also when nobody reads the answer any more: it has been computed.
        let saved = session.save(path);
        answered?;
        return Ok(saved?);
    }
    answered
}

/// Generates and prints.
fn answer(
    args: &Args,
    model: &TextModel,
    session: &mut Session,
    prompt: &[u32],
    options: &CompletionOptions,
    mut turn: Option<Turn>,
    cached: Option<Stored>,
) -> Result<(), Failure> {
    let mut completion = model.complete_in(session, prompt, options)?;
    let bar = progress_bar("reading the prompt", "{pos}/{len} tokens");
    completion.prefill(|done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();

    let mut report = Report::new(args, prompt, model.model().load_time());
    let mut stdout = io::stdout().lock();
    for piece in &mut completion {
        let piece = piece?;
        report.add(&piece);
        if let (Some(turn), Some(token)) = (&mut turn, &piece.token) {
            turn.push(token.id)?;
        }
        if !args.json {
            stdout.write_all(piece.text.as_bytes())?;
            stdout.flush()?;
        }
    }
    // A generation without an error always ends with a reason.
    let finish_reason = completion.finish_reason().unwrap_or(FinishReason::Cancelled);
    let timings = completion.timings();
    drop(completion);
    let saved = cached.map(|cached| cached.used(session, &timings));
    let kv = Kv::new(model.model(), session, &timings, saved);
    let turn = turn.map(|turn| turn.finish(finish_reason));
    report.finish(finish_reason, turn, timings, kv, &mut stdout)?;
    Ok(())
}

/// The first Ctrl-C ends the generation with what there is; before it began, or a second time, it
/// ends the program. The flag returned says that loading is over.
fn end_on_ctrl_c(cancel: CancelToken) -> Result<Arc<AtomicBool>, Failure> {
    /// What a shell reports for a program that Ctrl-C ended.
    const INTERRUPTED: i32 = 130;
    let loaded = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&loaded);
    ctrlc::set_handler(move || {
        if !flag.load(Ordering::Relaxed) || cancel.is_cancelled() {
            std::process::exit(INTERRUPTED);
        }
        cancel.cancel();
    })?;
    Ok(loaded)
}

/// A bar on stderr where that is a terminal, else nothing.
fn progress_bar(what: &'static str, count: &str) -> ProgressBar {
    let target = match io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr_with_hz(10),
        false => ProgressDrawTarget::hidden(),
    };
    let template = format!("{{msg}} [{{bar:30}}] {count}");
    let style =
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(None, target).with_style(style).with_message(what)
}
