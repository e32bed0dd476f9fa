//! Connections: how they are accepted, served and closed.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::debug;

/// Most connections at once; further ones wait to be accepted.
const CONNECTIONS: usize = 1024;
/// After a failed accept, such as for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// For what was computed to be sent, once nothing more is.
const LAST_BYTES: Duration = Duration::from_secs(5);

/// Serves connections until `stop` is done, then waits for those that are answering. A client that
/// takes longer than `read_timeout` for the head of a request, or between requests, is hung up on.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    read_timeout: Duration,
    stop: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accept = async {
            // It is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut stop => break,
            accepted = accept => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!(%error, "accept");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Tokens are small, and each should leave at once.
        stream.set_nodelay(true).ok();
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(read_timeout)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app.clone()));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // What a client does wrong is no fault of the server.
            if let Err(error) = connection.await {
                debug!(%error, "connection");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(LAST_BYTES, graceful.shutdown()).await.is_err() {
        debug!("some connections were still open");
    }
}
