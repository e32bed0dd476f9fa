//! Queues, slow readers, and what does not fit.

use std::time::{Duration, Instant};

use gpt_oss_mlx::engine::{Engine, EngineEvent, EngineStats, EngineStream};
use gpt_oss_mlx::{Error, FinishReason};

use super::{chat, endless, read, start};

/// Waits until the engine is as wanted.
pub(super) fn until(engine: &Engine, wanted: impl Fn(&EngineStats) -> bool) -> EngineStats {
    let started = Instant::now();
    loop {
        let stats = engine.stats();
        if wanted(&stats) {
            return stats;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{stats:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for the first token of a stream.
pub(super) fn begun(stream: &mut EngineStream) {
    while !matches!(stream.blocking_next(), Some(Ok(EngineEvent::Text(_) | EngineEvent::Chat(_)))) {
    }
}

#[test]
fn a_slow_reader_holds_up_nobody_and_misses_nothing() {
    let engine = start(|o| o.event_buffer = 4);
    let wanted = read(engine.complete(endless(&[7, 8, 9], 300)).unwrap()).text();
    let slow = engine.complete(endless(&[7, 8, 9], 300)).unwrap();
    let paused = until(&engine, |stats| stats.paused == 1);
    for _ in 0..3 {
        let done = read(engine.complete(endless(&[1, 2, 3], 100)).unwrap());
        assert_eq!(done.reason(), FinishReason::Length);
    }
    // It has not gone on: a few events are all that is held for it.
    let stats = until(&engine, |stats| stats.paused == 1 && stats.running == 1);
    let tokens = stats.generated_tokens - paused.generated_tokens;
    assert_eq!(tokens, 300, "those of the others");
    let done = read(slow);
    assert_eq!((done.text(), done.reason()), (wanted, FinishReason::Length));
}

#[test]
fn readers_that_never_read_hold_up_nobody() {
    let engine = start(|o| (o.max_running, o.event_buffer) = (2, 3));
    let wanted = read(engine.complete(endless(&[7, 8, 9], 30)).unwrap()).text();
    let ask = || engine.complete(endless(&[7, 8, 9], 30)).unwrap();
    let silent: Vec<_> = (0..4).map(|_| ask()).collect();
    until(&engine, |stats| stats.paused == 4);
    assert_eq!(read(ask()).reason(), FinishReason::Length);
    // They have lost nothing, and when all go on at once two at a time are computed.
    let before = engine.stats().steps;
    let readers: Vec<_> =
        silent.into_iter().map(|stream| std::thread::spawn(|| read(stream))).collect();
    for reader in readers {
        let done = reader.join().unwrap();
        assert_eq!((done.text(), done.reason()), (wanted.clone(), FinishReason::Length));
    }
    let stats = until(&engine, |stats| stats.running == 0);
    assert!(stats.steps - before >= 4 * 25 / 2, "{before} before, {stats:?}");
}

#[test]
fn those_that_pause_are_bounded_too() {
    let engine = start(|o| (o.max_running, o.max_waiting, o.event_buffer) = (1, 2, 2));
    let mut silent = Vec::new();
    for running in 1..=3 {
        silent.push(engine.complete(endless(&[1, 2], 100)).unwrap());
        until(&engine, |stats| stats.paused == running);
    }
    let waiting = engine.complete(endless(&[1, 2], 2)).unwrap();
    let stats = until(&engine, |stats| stats.waiting == 1 && stats.paused == 3);
    assert_eq!(stats.running, 3);
    silent.pop();
    assert_eq!(read(waiting).reason(), FinishReason::Length);
}

#[test]
fn short_prompts_do_not_keep_a_long_one_waiting() {
    let engine = start(|o| (o.max_running, o.max_waiting, o.prefill_chunk) = (3, 300, 16));
    let long: Vec<u32> = (0..16 * 20).collect();
    let long = engine.complete(endless(&long, 1)).unwrap();
    let short: Vec<_> = (0..250).map(|_| engine.complete(endless(&[3], 1)).unwrap()).collect();
    assert_eq!(read(long).reason(), FinishReason::Length);
    let left = engine.stats().waiting;
    assert!(left > 100, "{left} of {} are left", short.len());
    // Nor does a long one keep them.
    let long: Vec<u32> = (0..16 * 60).collect();
    drop(short);
    until(&engine, |stats| stats.running == 0);
    let long = engine.complete(endless(&long, 1)).unwrap();
    until(&engine, |stats| stats.prefilling == 1);
    assert_eq!(read(engine.complete(endless(&[3], 1)).unwrap()).reason(), FinishReason::Length);
    assert_eq!(until(&engine, |stats| stats.running == 1).prefilling, 1);
    drop(long);
}

#[test]
fn short_prompts_go_together() {
    let engine = start(|o| o.max_running = 10);
    let prompt: Vec<u32> = (0..1000).collect();
    let mut first = engine.complete(endless(&prompt, 1)).unwrap();
    while !matches!(first.blocking_next(), Some(Ok(EngineEvent::Prefill { .. }))) {}
    // All are there when its second chunk is computed.
    let short: Vec<_> = (0..8).map(|i| engine.complete(endless(&[i; 20], 10)).unwrap()).collect();
    for stream in short {
        assert_eq!(read(stream).usage().completion_tokens, 10);
    }
    let stats = until(&engine, |stats| stats.at_length == 9);
    assert!(stats.steps < 14, "{stats:?}");
}

#[test]
fn a_full_queue_refuses_at_once() {
    let engine = start(|o| (o.max_running, o.max_waiting) = (1, 2));
    let mut running = engine.complete(endless(&[1, 2], 5000)).unwrap();
    begun(&mut running);
    let waiting: Vec<_> = (0..2).map(|_| engine.complete(endless(&[3], 2)).unwrap()).collect();
    let refused = engine.complete(endless(&[3], 2)).unwrap_err();
    assert!(matches!(refused, Error::QueueFull { limit: 2 }), "{refused}");
    assert!(matches!(engine.chat(chat("Hi", |_| ())), Err(Error::QueueFull { .. })));
    drop(running);
    for stream in waiting {
        assert_eq!(read(stream).reason(), FinishReason::Length);
    }
    assert_eq!(read(engine.complete(endless(&[3], 2)).unwrap()).reason(), FinishReason::Length);
}

#[test]
fn what_does_not_fit_now_waits_and_what_never_fits_is_refused() {
    let free = start(|_| ());
    let mut running = free.complete(endless(&[1], 599)).unwrap();
    begun(&mut running);
    let bytes = until(&free, |stats| stats.running == 1).reserved_bytes;
    drop(running);
    let engine = start(|o| o.cache_bytes = Some(bytes * 3 / 2));
    let error = read(engine.complete(endless(&[1], 5000)).unwrap()).error();
    assert!(matches!(error, Error::Argument { name: "max_tokens", .. }), "{error}");
    let mut first = engine.complete(endless(&[1], 599)).unwrap();
    begun(&mut first);
    let second = engine.complete(endless(&[2], 599)).unwrap();
    let stats = until(&engine, |stats| (stats.running, stats.waiting) == (1, 1));
    assert_eq!(stats.reserved_bytes, bytes);
    assert_eq!(read(first).reason(), FinishReason::Length);
    assert_eq!(read(second).reason(), FinishReason::Length);
    let all =
        |stats: &EngineStats| stats.reserved_bytes + u64::try_from(stats.prefixes.bytes).unwrap();
    let stats = until(&engine, |stats| stats.running == 0);
    assert!(stats.prefixes.entries > 0 && all(&stats) <= bytes * 3 / 2, "{stats:?}");
    // What was kept gives way to a request.
    let mut third = engine.complete(endless(&[3], 599)).unwrap();
    begun(&mut third);
    let stats = until(&engine, |stats| stats.running == 1);
    assert!(all(&stats) <= bytes * 3 / 2, "{stats:?}");
}

#[test]
fn a_bad_request_fails_alone() {
    let engine = start(|_| ());
    let mut good = engine.complete(endless(&[1, 2], 400)).unwrap();
    begun(&mut good);
    let context = engine.model().context_limit;
    let vocabulary = u32::try_from(engine.model().vocab_size).unwrap();
    let error = |request| read(engine.complete(request).unwrap()).error();
    assert!(matches!(error(endless(&[], 1)), Error::Argument { name: "prompt", .. }));
    assert!(matches!(error(endless(&[vocabulary], 1)), Error::Argument { name: "prompt", .. }));
    assert!(matches!(error(endless(&vec![1; context], 1)), Error::ContextFull { .. }));
    let chat = |change: fn(&mut gpt_oss_mlx::ChatOptions)| {
        read(engine.chat(chat("Explain Macros.", change)).unwrap()).error()
    };
    let wrong = chat(|o| o.stop = vec![String::new()]);
    assert!(matches!(wrong, Error::Argument { name: "stop", .. }), "{wrong}");
    let wrong = chat(|o| o.generate.sampling.top_p = 2.0);
    assert!(matches!(wrong, Error::Argument { name: "top_p", .. }), "{wrong}");
    let banned = chat(|o| {
        o.generate.sampling.logit_bias = (0..2048).map(|id| (id, f32::NEG_INFINITY)).collect();
    });
    assert!(matches!(banned, Error::AllBanned { .. }), "{banned}");
    assert_eq!(read(good).reason(), FinishReason::Length);
    assert!(until(&engine, |stats| stats.failed == 6).stopped == 0);
    // Also by an engine that has nothing else to do.
    assert!(matches!(error(endless(&[vocabulary], 1)), Error::Argument { name: "prompt", .. }));
    assert!(matches!(error(endless(&[], 1)), Error::Argument { name: "prompt", .. }));
    until(&engine, |stats| stats.failed == 8);
}

#[test]
fn nothing_is_kept_of_a_request_that_failed() {
    let engine = start(|_| ());
    let mut request = endless(&[1, 2, 3], 5);
    request.options.generate.sampling.logit_bias =
        (0..2048).map(|id| (id, f32::NEG_INFINITY)).collect();
    assert!(matches!(read(engine.complete(request).unwrap()).error(), Error::AllBanned { .. }));
    let stats = until(&engine, |stats| stats.failed == 1);
    assert_eq!((stats.prefixes.entries, stats.reserved_bytes), (0, 0), "{stats:?}");
    let next = read(engine.complete(endless(&[1, 2, 3], 5)).unwrap()).usage();
    assert_eq!(next.cached_tokens, 0);
    assert_eq!(until(&engine, |stats| stats.at_length == 1).prefixes.entries, 1);
}

#[test]
fn no_tokens_and_more_than_there_can_be_are_lengths_too() {
    let engine = start(|o| o.load.max_context = Some(50));
    let none = read(engine.complete(endless(&[1, 2], 0)).unwrap());
    assert_eq!((none.reason(), none.text()), (FinishReason::Length, String::new()));
    assert_eq!(none.usage().completion_tokens, 0);
    let all = read(engine.complete(endless(&[1, 2], usize::MAX)).unwrap());
    assert_eq!((all.reason(), all.usage().completion_tokens), (FinishReason::Length, 48));
    let stats = until(&engine, |stats| stats.at_length == 2);
    assert_eq!((stats.reserved_bytes, stats.generated_tokens), (0, 48), "{stats:?}");
}

#[test]
fn the_time_in_which_others_had_their_turn_is_time_in_the_queue() {
    let engine = start(|_| ());
    let prompt: Vec<u32> = (0..1600).map(|i| i % 1000).collect();
    let mut first = engine.complete(endless(&prompt, 1)).unwrap();
    while !matches!(first.blocking_next(), Some(Ok(EngineEvent::Prefill { .. }))) {}
    // Both are let in after its second chunk, and have their turns after its third.
    let before = engine.complete(endless(&prompt[1..500], 1)).unwrap();
    let behind = engine.complete(endless(&[5], 1)).unwrap();
    let (before, behind) = (read(before).usage(), read(behind).usage());
    assert!(behind.queued > before.prefill, "{behind:?} after {before:?}");
    assert!(behind.time_to_first_token >= behind.queued + behind.prefill, "{behind:?}");
}

#[test]
fn a_long_prompt_holds_up_the_others_for_a_chunk_at_a_time() {
    let engine = start(|o| o.prefill_chunk = 64);
    let mut running = engine.complete(endless(&[1, 2], 3000)).unwrap();
    begun(&mut running);
    let before = engine.stats().steps;
    let long: Vec<u32> = (0..1500).map(|i| i % 1000).collect();
    let mut long = engine.complete(endless(&long, 1)).unwrap();
    let mut chunks = 0;
    loop {
        match long.blocking_next().unwrap().unwrap() {
            EngineEvent::Prefill { .. } => chunks += 1,
            EngineEvent::Text(_) => break,
            EngineEvent::Finished { .. } => break,
            _ => {}
        }
        // Else the running request would pause for us.
        while engine.stats().paused > 0 {
            let _ = running.blocking_next();
        }
    }
    let stats = until(&engine, |stats| stats.running == 1 || stats.at_length == 2);
    assert_eq!(chunks, 1500usize.div_ceil(64));
    // A step between any two chunks, but where the reader was slow.
    assert!(stats.steps - before >= chunks as u64 / 2, "{stats:?}, {before} before");
}
