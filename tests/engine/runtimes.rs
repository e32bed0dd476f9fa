//! The same engine inside async runtimes and without one.

use std::future::poll_fn;
use std::pin::Pin;

use futures_core::Stream;
use gpt_oss_mlx::FinishReason;
use gpt_oss_mlx::engine::{Engine, EngineEvent, EngineOptions, Shutdown};
use tokio::runtime::Builder;

use super::{chat, dir, endless, read};

/// What an app does: starts an engine, asks it twice at once, and ends it.
async fn app() {
    let engine = Engine::start(EngineOptions::new(dir())).await.unwrap();
    let mut first = engine.chat(chat("Explain Dangling References.", |_| ())).unwrap();
    let other = engine.clone();
    let second = tokio::spawn(async move {
        let mut stream = other.complete(endless(&[1, 2], 30)).unwrap();
        let mut last = None;
        // As combinators read it.
        while let Some(event) = poll_fn(|context| Pin::new(&mut stream).poll_next(context)).await {
            last = Some(event.unwrap());
        }
        last
    });
    let mut events = Vec::new();
    while let Some(event) = first.next().await {
        events.push(event.unwrap());
    }
    assert!(matches!(
        events.last(),
        Some(EngineEvent::Finished { reason: FinishReason::Stop, .. })
    ));
    let last = second.await.unwrap();
    assert!(matches!(last, Some(EngineEvent::Finished { reason: FinishReason::Length, .. })));
    // A call that blocks is a poor guest here, but no crash.
    assert_eq!(read(engine.complete(endless(&[1, 2], 3)).unwrap()).reason(), FinishReason::Length);
    engine.shutdown(Shutdown::Cancel).await;
}

#[test]
fn an_engine_works_in_a_runtime_of_several_threads() {
    Builder::new_multi_thread().worker_threads(2).build().unwrap().block_on(app());
}

#[test]
fn an_engine_works_in_a_runtime_of_one_thread() {
    Builder::new_current_thread().build().unwrap().block_on(app());
}

#[test]
fn an_engine_outlives_the_runtime_that_started_it() {
    let runtime = Builder::new_current_thread().build().unwrap();
    let engine = runtime.block_on(Engine::start(EngineOptions::new(dir()))).unwrap();
    let stream = engine.complete(endless(&[1, 2], 20)).unwrap();
    drop(runtime);
    assert_eq!(read(stream).reason(), FinishReason::Length);
}
