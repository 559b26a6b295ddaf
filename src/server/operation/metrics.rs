//! `GET /metrics` for Prometheus and `GET /health`, on an address of their own.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::exposition::CONTENT_TYPE;
use crate::server::monitor::Monitor;
use crate::server::{Backoff, http, stopped};

/// Connections at a time: some collectors and a health check.
const CONNECTIONS: usize = 16;

/// Those of a server.
pub(in crate::server) fn router(monitor: Arc<Monitor>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .with_state(monitor)
}

/// Serves them on `listener` until `stop` becomes true or its sender is gone.
pub(crate) async fn serve(listener: TcpListener, router: Router, mut stop: watch::Receiver<bool>) {
    let router = router.layer(middleware::from_fn(check_host));
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let mut backoff = Backoff::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(backoff.next()).await;
            continue;
        };
        backoff.reset();
        let Ok(permit) = free.clone().try_acquire_owned() else {
            continue;
        };
        let (router, stop) = (router.clone(), stop.clone());
        tokio::spawn(async move {
            http::connection(stream, router, stop).await;
            drop(permit);
        });
    }
}

async fn metrics(State(monitor): State<Arc<Monitor>>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, CONTENT_TYPE)],
        monitor.status().exposition(),
    )
}

async fn health(State(monitor): State<Arc<Monitor>>) -> (StatusCode, String) {
    match monitor.stuck().as_slice() {
        // Its own clients are served on: a balancer that took it away would make it worse.
        [] => match monitor.store_problem() {
            None => (StatusCode::OK, "ok\n".to_owned()),
            Some(problem) => (StatusCode::OK, format!("ok, but the store: {problem}\n")),
        },
        stuck => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("stuck: {}\n", stuck.join(", ")),
        ),
    }
}

/// A page in a browser can make any name mean this address; it can't make a request say another
/// name than its own.
async fn check_host(request: Request, next: Next) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    if host.is_none_or(is_address) {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "ask by address, not by name\n").into_response()
    }
}

/// Whether this is an IP address or `localhost`, with or without a port.
fn is_address(host: &str) -> bool {
    let without_port = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    without_port == "localhost" || without_port.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_somebody_else_made_is_told_from_an_address() {
        for good in [
            "127.0.0.1:9469",
            "127.0.0.1",
            "[::1]:9469",
            "[::1]",
            "localhost:9469",
        ] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "evil.example:9469",
            "localhost.evil.example",
            "",
            "127.0.0.1.evil.example",
            "[evil]",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
