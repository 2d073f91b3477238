//! A pool of threads for work that costs CPU, fed through a bounded channel, so that the async threads only wait.

use std::num::NonZeroUsize;
use std::sync::Arc;

use crossbeam_channel::{Sender, bounded};
use tokio::sync::{Semaphore, oneshot};

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Its threads end when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Pool {
    jobs: Sender<Job>,
    places: Arc<Semaphore>,
}

/// The work did not end: it panicked. The panic was logged by the thread that had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("work on the pool panicked")]
pub struct Panicked;

impl Pool {
    /// A pool of `threads`, or one per core, with room for four waiting jobs per thread.
    pub fn new(name: &str, threads: Option<NonZeroUsize>) -> std::io::Result<Self> {
        let threads = threads
            .map_or_else(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get), NonZeroUsize::get);
        let queue = threads * 4;
        let (jobs, queued) = bounded::<Job>(queue);
        for number in 0..threads {
            let queued = queued.clone();
            std::thread::Builder::new().name(format!("{name}-{number}")).spawn(move || {
                for job in queued {
                    // A job that panics must not take its thread along; its caller sees the closed answer.
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                }
            })?;
        }
        Ok(Self { jobs, places: Arc::new(Semaphore::new(queue)) })
    }

    /// Runs `work` on the pool. Waits for a place first: the channel never blocks an async thread.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Panicked> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| Panicked)?;
        let (answer, answered) = oneshot::channel();
        let job = Box::new(move || {
            // The place is free again once the job left the channel.
            drop(place);
            // A caller that has gone away does not want the answer.
            let _ = answer.send(work());
        });
        self.jobs.send(job).map_err(|_| Panicked)?;
        answered.await.map_err(|_| Panicked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_runs_elsewhere_and_a_panic_is_an_error() {
        let pool = Pool::new("test", NonZeroUsize::new(1)).unwrap();
        let here = std::thread::current().id();
        assert_ne!(pool.run(move || std::thread::current().id()).await, Ok(here));
        let quiet = pool.run(|| std::panic::resume_unwind(Box::new("gone"))).await;
        assert_eq!(quiet.map(|()| 0), Err(Panicked));
        assert_eq!(pool.run(|| 7).await, Ok(7));
    }
}
