//! Serving HTTP/1 with bounds on heads, and the admin interface.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use metrics_exporter_prometheus::PrometheusHandle;
use schemas::limits;
use tokio::net::TcpListener;

use crate::health::Health;
use crate::shutdown::Shutdown;

/// A head that takes longer than this ends the connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves connections until the shutdown begins, then lets those that are busy finish within the grace. Each request
/// goes to `serve`, with the peer's address as an extension.
pub async fn serve<S, B, Fut>(listener: TcpListener, shutdown: &Shutdown, serve: S)
where
    S: Fn(Request<Incoming>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.begun() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Most often: out of descriptors. Going on at once would spin.
                tracing::warn!(%error, "accept connection");
                if !shutdown.sleep(Duration::from_millis(50)).await {
                    break;
                }
                continue;
            }
        };
        // Small answers must not wait for more to come.
        let _ = stream.set_nodelay(true);
        let serve = serve.clone();
        let service = service_fn(move |request| {
            let answer = serve(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            // Without a timer hyper's header timeout is silently off.
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_headers(limits::HEADERS_MAX)
            .max_buf_size(limits::HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let watched = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = watched.await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(shutdown.grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still busy after the grace");
    }
}

/// Serves `/livez`, `/readyz` and `/metrics`.
pub(crate) async fn serve_admin(listener: TcpListener, shutdown: &Shutdown, health: Health, metrics: PrometheusHandle) {
    serve(listener, shutdown, move |request: Request<Incoming>| {
        let (health, metrics) = (health.clone(), metrics.clone());
        async move { admin(request.uri().path(), &health, &metrics) }
    })
    .await;
}

fn admin(path: &str, health: &Health, metrics: &PrometheusHandle) -> Response<Full<Bytes>> {
    let (status, content_type, body) = match path {
        "/livez" => (StatusCode::OK, "text/plain", "alive\n".to_owned()),
        "/readyz" => {
            let (ready, parts) = health.ready();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let body = serde_json::json!({"ready": ready, "parts": parts}).to_string();
            (status, "application/json", body)
        }
        "/metrics" => (StatusCode::OK, "text/plain; version=0.0.4", metrics.render()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "here are /livez, /readyz and /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
