//! The S3 server of a stack: `s3s-fs` on a folder, behind one set of credentials.
//!
//! A process of its own, so that it can be killed, paused and restarted like any real store.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::s3_listing::Listing;

/// For requests that are under way when the server is to end.
const DRAIN: Duration = Duration::from_secs(2);
/// After a failed accept (out of file descriptors, say), to let others end first.
const AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(50);

/// Serves `root` until SIGTERM or SIGINT. The credentials come by `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
pub async fn run(root: &Path, listen: SocketAddr) -> anyhow::Result<()> {
    let variable = |name: &str| std::env::var(name).with_context(|| format!("read credentials: set {name}"));
    let auth = SimpleAuth::from_single(variable("AWS_ACCESS_KEY_ID")?, variable("AWS_SECRET_ACCESS_KEY")?);
    let files = FileSystem::new(root)
        .map_err(|error| anyhow::anyhow!("open folder of objects {}: {error:?}", root.display()))?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(auth);
    builder.set_route(Listing::new(root.to_path_buf()));
    let service = builder.build();

    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
    let connections = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("s3-server: accept connection: {error}");
                tokio::time::sleep(AFTER_FAILED_ACCEPT).await;
                continue;
            }
        };
        // Answers are small and awaited; where the option cannot be set the connection is merely slower.
        drop(stream.set_nodelay(true));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            // A client that hangs up in the middle is the client's own affair.
            drop(connection.await);
        });
    }
    drop(tokio::time::timeout(DRAIN, connections.shutdown()).await);
    Ok(())
}
