//! A server for clients of OpenAI's API: `cargo run --release --example serve -- --help`.

mod app;
mod args;
mod auth;
mod body;
mod chat;
mod completions;
mod errors;
#[path = "../common/failure.rs"]
mod failure;
mod fields;
mod generate;
mod http;
mod ids;
mod logprobs;
mod metrics;
#[path = "../common/model.rs"]
mod model;
mod models;
mod page;
mod responses;
mod running;
mod sse;
mod state;
mod tools;
mod usage;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use gpt_oss_mlx::engine::{Engine, Shutdown};
use tokio::net::TcpListener;
use tracing::{info, warn};

use args::Args;
use failure::{Failure, explain};
use state::Server;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_max_level(args.log)
        .with_target(false)
        .with_writer(io::stderr)
        .init();
    match run(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "{}", explain(failure.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<(), Failure> {
    let settings = args.settings()?;
    // Before the load: an address that is taken should not cost one.
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| format!("cannot listen at {address}: {error}"))?;
    let address = listener.local_addr()?;
    let name = args.model.clone();
    let folder = tokio::task::spawn_blocking(move || model::folder(&name)).await??;
    let engine = Engine::start(args.engine_options(folder)).await?;
    let model = engine.model();
    let (context, seconds) = (model.context_limit, model.load_time.as_secs_f64());
    info!(model = settings.model, context, seconds, "loaded");
    if !args.host.is_loopback() && settings.api_key.is_none() {
        warn!("others can reach this address, and there is no API key");
    }

    let server = Arc::new(Server::new(engine, settings));
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "http://{address}/").and_then(|()| stdout.flush());
    drop(stdout);

    let stop = async {
        signal().await;
        let grace = args.grace();
        info!(?grace, "stopping; again to stop at once");
        server.stop();
        // The port stays open meanwhile, for answers that say so.
        tokio::select! {
            () = server.engine.shutdown(Shutdown::Finish { within: grace }) => {}
            () = signal() => server.engine.shutdown(Shutdown::Cancel).await,
        }
    };
    let app = app::app(Arc::clone(&server));
    http::serve(listener, app, server.settings.read_timeout, stop).await;
    info!("stopped");
    Ok(())
}

/// Waits for SIGTERM or Ctrl-C.
async fn signal() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        // Where signals cannot be had, Ctrl-C ends the process as it does any other.
        let Ok(mut terminate) = signal(SignalKind::terminate()) else { return pending().await };
        tokio::select! {
            Ok(()) = interrupt => {}
            Some(()) = terminate.recv() => {}
            else => pending().await,
        }
    }
    #[cfg(not(unix))]
    if interrupt.await.is_err() {
        pending().await
    }
}

async fn pending() {
    std::future::pending().await
}
