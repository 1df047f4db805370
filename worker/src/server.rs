//! One HTTP server: bounds on what a connection may cost before it has asked anything, and an orderly end.
//!
//! ```text
//! free place -> accept -> request head within a limit -> handlers -> ... -> stop: answers finish, idle connections close
//! ```
//!
//! Bounds on a request's body are the handlers' business (see `http::body`): only they can answer in the API's words.

use std::{sync::Arc, time::Duration};

use axum::Router;
use futures_util::FutureExt;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

/// How long accepting rests after an error: most of them say that the process has no file descriptors left, which only
/// the end of a connection mends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time in which the first request of a connection that has just been let in arrives.
const FIRST_REQUEST: Duration = Duration::from_millis(250);

/// Bounds on connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections open at once. More wait in the listener's backlog until one closes.
    pub connections: usize,
    /// Time for the head of a request, counted from the connection's opening or from the end of the answer before: it
    /// also bounds how long a connection may stay idle.
    pub header_time: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { connections: 512, header_time: Duration::from_secs(30) }
    }
}

/// Serves until `stop` resolves, then accepts nothing more and lets the answers under way finish. Dropping the future
/// closes all connections at once.
pub async fn serve(listener: TcpListener, router: Router, limits: ConnectionLimits, stop: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let begin = |stream: TcpStream, place| {
        let connection = graceful.watch(connection(stream, router.clone(), limits.header_time));
        async move {
            // The error of a connection is its client's: it went away, or was cut for its slowness.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(place);
        }
    };
    tokio::pin!(stop);
    loop {
        let place = async { (places.clone().acquire_owned().await, listener.accept().await) };
        let (place, accepted) = tokio::select! {
            () = &mut stop => break,
            accepted = place => accepted,
            // Ended connections are taken out as they end, so that the set holds the open ones alone.
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => drop(connections.spawn(begin(stream, place.ok()))),
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Whom the kernel has let in already is served, as far as there are places: to close the port would reset them.
    while let Ok(place) = places.clone().try_acquire_owned()
        && let Some(Ok((stream, _))) = listener.accept().now_or_never()
    {
        connections.spawn(begin(stream, Some(place)));
    }
    drop(listener);
    // A connection without a request counts as idle, and is closed at once.
    if !connections.is_empty() {
        tokio::time::sleep(FIRST_REQUEST).await;
    }
    graceful.shutdown().await;
}

fn connection(
    stream: TcpStream,
    router: Router,
    header_time: Duration,
) -> http1::Connection<TokioIo<TcpStream>, TowerToHyperService<Router>> {
    // Tokens are small and each is waited for: none may wait for the next.
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(router);
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_time)
        .serve_connection(TokioIo::new(stream), service)
}
