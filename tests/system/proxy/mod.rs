//! Proxies that stand between a service and a part of the stack, and do to their talk what networks and overloaded servers do.
//!
//! Each counts what it did, so that a test can tell a fault that was survived from one that never came.

pub(crate) mod postgres;
pub(crate) mod s3;

use std::future::Future;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Accepts connections on a port of its own until it is dropped, and ends those that it accepted then.
struct Listener {
    address: String,
    task: JoinHandle<()>,
}

impl Listener {
    async fn start<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Result<Listener>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        // Of devstack's choice: a port of the system's choice could be some client's own by the time a server wants it back.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, devstack::free_port()?)).await.context("listen")?;
        let address = listener.local_addr().context("ask for own address")?.to_string();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        // One that failed was the client's; it connects again.
                        let Ok((client, _)) = accepted else { continue };
                        // Messages are small and waited for; without the option they are merely slower.
                        drop(client.set_nodelay(true));
                        connections.spawn(serve(client));
                    }
                    // Either side hanging up is what this is about; what the test counts are the faults.
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Listener { address, task })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}
