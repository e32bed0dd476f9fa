//! How requests and engines end.

use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use gpt_oss_mlx::chat::events::{ChatEvent, EndReason};
use gpt_oss_mlx::engine::{
    CompletionRequest, Engine, EngineEvent, EngineOptions, EngineStream, Shutdown,
};
use gpt_oss_mlx::{Error, FinishReason};

use super::limits::{begun, until};
use super::{chat, dir, endless, read, start};

#[test]
fn handles_and_streams_go_anywhere() {
    fn check<T: Send + 'static>() {}
    fn shared<T: Clone + Sync>() {}
    check::<Engine>();
    shared::<Engine>();
    check::<EngineStream>();
}

#[test]
fn dropping_a_stream_cancels_its_request() {
    let engine = start(|_| ());
    let mut stream = engine.complete(endless(&[1, 2], 100_000)).unwrap();
    begun(&mut stream);
    drop(stream);
    let stats = until(&engine, |stats| stats.cancelled == 1);
    assert_eq!((stats.running, stats.reserved_bytes), (0, 0), "{stats:?}");
    // One that waits, and one that nobody has looked at.
    let engine = start(|o| o.max_running = 1);
    let mut running = engine.complete(endless(&[1, 2], 100_000)).unwrap();
    begun(&mut running);
    drop(engine.complete(endless(&[1, 2], 100)).unwrap());
    until(&engine, |stats| stats.waiting == 0 && stats.running == 1);
    running.cancel();
    let done = read(running);
    assert_eq!(done.reason(), FinishReason::Cancelled);
    assert!(done.usage().completion_tokens > 0);
}

#[test]
fn a_stream_that_is_dropped_takes_no_request_with_the_same_options_along() {
    let engine = start(|_| ());
    let request = endless(&[1, 2], 200);
    let mut dropped = engine.complete(request.clone()).unwrap();
    let cancelled = engine.complete(request.clone()).unwrap();
    let other = engine.complete(request.clone()).unwrap();
    begun(&mut dropped);
    drop(dropped);
    cancelled.cancel();
    until(&engine, |stats| stats.cancelled == 2);
    assert_eq!(read(other).reason(), FinishReason::Length);
    // The token of the options is for all that were given it.
    request.options.generate.cancel.cancel();
    assert_eq!(read(engine.complete(request).unwrap()).reason(), FinishReason::Cancelled);
}

#[test]
fn a_token_cancels_a_request_that_is_paused_or_waits() {
    let engine = start(|o| (o.max_running, o.max_waiting, o.event_buffer) = (1, 1, 2));
    let paused = engine.complete(endless(&[1, 2], 1000)).unwrap();
    until(&engine, |stats| stats.paused == 1);
    let _beside = engine.complete(endless(&[1, 2], 1000)).unwrap();
    until(&engine, |stats| stats.paused == 2);
    let mut waiting = engine.complete(endless(&[1, 2], 1000)).unwrap();
    assert!(matches!(waiting.blocking_next(), Some(Ok(EngineEvent::Queued { .. }))));
    waiting.cancel_token().cancel();
    let done = read(waiting);
    assert_eq!((done.reason(), done.usage().completion_tokens), (FinishReason::Cancelled, 0));
    paused.cancel_token().cancel();
    until(&engine, |stats| stats.running == 1);
    assert_eq!(read(paused).reason(), FinishReason::Cancelled);
}

#[test]
fn a_request_that_is_not_done_in_time_ends() {
    let engine = start(|o| o.max_running = 1);
    let limit = Duration::from_millis(300);
    let mut late = endless(&[1, 2], 100_000);
    late.timeout = Some(limit);
    let running = engine.complete(late.clone()).unwrap();
    let waiting = engine.complete(late).unwrap();
    let mut patient = endless(&[1, 2], 3);
    patient.timeout = Some(Duration::from_secs(3600));
    let patient = engine.complete(patient).unwrap();
    let started = Instant::now();
    // Most of it was given out.
    let done = read(running);
    assert!(!done.text().is_empty());
    let error = done.error();
    assert!(matches!(error, Error::TimedOut { limit: named } if named == limit), "{error}");
    let error = read(waiting).error();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(read(patient).reason(), FinishReason::Length);
    assert_eq!(until(&engine, |stats| stats.running == 0).timed_out, 2);
}

#[test]
fn shutting_down_cancels_or_finishes() {
    for (how, reason) in [
        (Shutdown::Cancel, FinishReason::Cancelled),
        (Shutdown::Finish { within: Duration::from_secs(60) }, FinishReason::Length),
        (Shutdown::Finish { within: Duration::from_millis(1) }, FinishReason::Cancelled),
    ] {
        let engine = start(|o| (o.max_running, o.event_buffer) = (1, 10_000));
        let mut running = engine.complete(endless(&[1, 2], 700)).unwrap();
        begun(&mut running);
        let waiting = engine.complete(endless(&[1, 2], 5)).unwrap();
        until(&engine, |stats| stats.waiting == 1);
        engine.shutdown_blocking(how);
        assert_eq!(read(running).reason(), reason, "{how:?}");
        assert_eq!(read(waiting).reason(), reason, "{how:?}");
        let error = engine.complete(endless(&[1], 1)).unwrap_err();
        assert!(matches!(error, Error::EngineStopped { .. }), "{error}");
        engine.clone().shutdown_blocking(Shutdown::Cancel);
    }
}

#[test]
fn no_end_is_lost_on_a_reader_that_is_slow_at_the_shutdown() {
    let engine = start(|o| o.event_buffer = 1);
    let stream = engine.complete(endless(&[1, 2], 100)).unwrap();
    until(&engine, |stats| stats.paused == 1);
    engine.shutdown_blocking(Shutdown::Cancel);
    assert_eq!(read(stream).reason(), FinishReason::Cancelled);
}

#[test]
fn a_shutdown_may_take_any_time_and_a_later_one_may_shorten_it() {
    let engine = start(|_| ());
    let stream = engine.complete(endless(&[1, 2], 40)).unwrap();
    engine.shutdown_blocking(Shutdown::Finish { within: Duration::MAX });
    assert_eq!(read(stream).reason(), FinishReason::Length);

    let engine = start(|o| o.event_buffer = 2);
    let stream = engine.complete(endless(&[1, 2], 40)).unwrap();
    let threads: Vec<_> = [Duration::MAX, Duration::from_secs(3600), Duration::ZERO]
        .map(|within| {
            let engine = engine.clone();
            std::thread::spawn(move || engine.shutdown_blocking(Shutdown::Finish { within }))
        })
        .into();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(read(stream).reason(), FinishReason::Cancelled);
}

/// So long that others come while it is made into tokens.
fn long_text() -> CompletionRequest {
    let mut request = endless(&[], 1);
    request.prompt = "A word is not a token. ".repeat(20_000).into();
    request
}

#[test]
fn what_is_over_before_it_is_prepared_is_not_prepared() {
    let engine = start(|_| ());
    let first = engine.complete(long_text()).unwrap();
    let cancelled = engine.chat(chat("Explain Macros.", |_| ())).unwrap();
    cancelled.cancel();
    let mut late = chat("Explain Macros.", |_| ());
    late.timeout = Some(Duration::ZERO);
    let late = engine.chat(late).unwrap();
    drop(engine.complete(long_text()).unwrap());

    let cancelled = read(cancelled);
    assert_eq!(cancelled.reason(), FinishReason::Cancelled);
    let end = ChatEvent::TurnEnd { reason: EndReason::Cancelled };
    assert_eq!(cancelled.events, [EngineEvent::Chat(end)]);
    let late = read(late);
    assert!(late.events.is_empty(), "{late:?}");
    assert!(matches!(late.error(), Error::TimedOut { .. }));
    assert!(matches!(read(first).error(), Error::ContextFull { .. }));
    // Each is counted, although the engine has never had anything to compute.
    let stats = until(&engine, |stats| stats.cancelled == 2 && stats.failed == 1);
    assert_eq!((stats.timed_out, stats.waiting, stats.prompt_tokens), (1, 0, 0), "{stats:?}");
}

#[test]
fn shutting_down_does_not_wait_for_requests_to_be_prepared() {
    let engine = start(|_| ());
    let streams: Vec<_> = (0..40).map(|_| engine.complete(long_text()).unwrap()).collect();
    engine.shutdown_blocking(Shutdown::Cancel);
    let done: Vec<_> = streams.into_iter().map(read).collect();
    let cancelled = |done: &&super::Done| done.end.is_ok() && done.events.is_empty();
    assert!(done.iter().filter(cancelled).count() > 30, "{done:?}");
}

#[test]
fn a_task_may_block_its_thread() {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let task = async move {
            let engine = start(|_| ());
            // More events than a task is given before it has to yield.
            let done = read(engine.complete(endless(&[1, 2], 400)).unwrap());
            let engine2 = start(|_| ());
            engine.shutdown_blocking(Shutdown::Cancel);
            engine2.shutdown_blocking(Shutdown::Cancel);
            done.reason()
        };
        let reason = runtime.block_on(async { runtime.spawn(task).await.unwrap() });
        sender.send(reason).unwrap();
    });
    let reason = receiver.recv_timeout(Duration::from_secs(100)).expect("it hangs");
    assert_eq!(reason, FinishReason::Length);
}

/// MLX's static variables are destroyed at the end of a process, and its threads are not stopped.
#[test]
fn a_process_may_end_while_engines_compute() {
    const CHILD: &str = "GPT_OSS_MLX_TEST_EXIT";
    if std::env::var_os(CHILD).is_some() {
        let engines: Vec<_> = (0..3).map(|_| start(|_| ())).collect();
        let ask = |engine: &Engine| engine.complete(endless(&[1, 2], 1000)).unwrap();
        let mut streams: Vec<_> = engines.iter().flat_map(|e| [ask(e), ask(e)]).collect();
        streams.iter_mut().for_each(begun);
        let _loading = Engine::start(EngineOptions::new(dir()));
        std::process::exit(7);
    }
    for _ in 0..4 {
        let name = "ends::a_process_may_end_while_engines_compute";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert_eq!(child.status.code(), Some(7), "{:?}", child.status);
    }
}

#[test]
fn an_engine_without_handles_serves_its_streams_to_the_end() {
    let engine = start(|_| ());
    let stream = engine.complete(endless(&[1, 2], 50)).unwrap();
    drop(engine);
    assert_eq!(read(stream).reason(), FinishReason::Length);
}

#[test]
fn what_prevents_a_start_is_its_error() {
    let missing = Engine::start(EngineOptions::new(dir().join("missing"))).wait().unwrap_err();
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
    for change in [
        (|o| o.max_running = 0) as fn(&mut EngineOptions),
        |o| o.max_waiting = 0,
        |o| o.event_buffer = 0,
        |o| o.prefill_chunk = 0,
        |o| o.load.max_context = Some(0),
    ] {
        let mut options = EngineOptions::new(dir());
        change(&mut options);
        let error = Engine::start(options).wait().unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
    }
    // One that nobody waits for ends by itself.
    drop(Engine::start(EngineOptions::new(dir())));
}

#[test]
fn progress_of_loading_is_told() {
    let mut starting = Engine::start(EngineOptions::new(dir()));
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut context = Context::from_waker(Waker::noop());
        let mut last = None;
        loop {
            let polled = pin!(starting.progress()).as_mut().poll(&mut context);
            match polled {
                Poll::Ready(Some(progress)) => last = Some(progress),
                Poll::Ready(None) => break,
                Poll::Pending => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        sender.send((last, starting.wait().is_ok())).unwrap();
    });
    let (last, started) = receiver.recv_timeout(Duration::from_secs(60)).unwrap();
    let last = last.unwrap();
    assert!(started && last.done == last.total && last.total > 0, "{last:?}");
}

#[test]
fn many_threads_may_ask_at_once() {
    let engine = start(|o| o.max_running = 4);
    let threads: Vec<_> = (0..6)
        .map(|i| {
            let engine = engine.clone();
            std::thread::spawn(move || {
                let request = chat("Explain Dangling References.", |o| {
                    o.generate.max_tokens = 10 + i;
                });
                read(engine.chat(request).unwrap()).usage().completion_tokens
            })
        })
        .collect();
    for (i, thread) in threads.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap(), 10 + i);
    }
}
