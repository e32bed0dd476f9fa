//! How requests and engines end.

use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use gpt_oss_mlx::engine::{Engine, EngineOptions, EngineStream, Shutdown};
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
fn a_token_cancels_a_request_that_is_paused_or_waits() {
    let engine = start(|o| (o.max_running, o.event_buffer) = (1, 2));
    let paused = engine.complete(endless(&[1, 2], 1000)).unwrap();
    until(&engine, |stats| stats.paused == 1);
    let waiting = engine.complete(endless(&[1, 2], 1000)).unwrap();
    waiting.cancel_token().cancel();
    let done = read(waiting);
    assert_eq!((done.reason(), done.usage().completion_tokens), (FinishReason::Cancelled, 0));
    paused.cancel_token().cancel();
    until(&engine, |stats| stats.running == 0);
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
