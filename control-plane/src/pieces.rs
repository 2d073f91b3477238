//! The pieces of a reading on their way from who reads to who answers: a few of them, and how the reading ended beside them, so that
//! this is told whether or not anybody takes pieces.

use std::fmt::Display;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use schemas::ErrorCode;
use service_kit::telemetry::chain;
use storage::reading::ReadError;
use storage::session_keys::KeyError;
use tokio::sync::{mpsc, oneshot};

/// Pieces that wait for a slow reader; with what a walk holds this bounds its memory.
const WAITING_MAX: usize = 4;

/// Both ends.
pub(crate) fn pieces() -> (Giving, Given) {
    let ((give, given), (tell, told)) = (mpsc::channel(WAITING_MAX), oneshot::channel());
    (Giving { give, tell }, Given { given, told, ended: None })
}

/// The end of who reads. Dropped before its time, the reading counts as broken off.
#[derive(Debug)]
pub(crate) struct Giving {
    give: mpsc::Sender<Bytes>,
    tell: oneshot::Sender<Result<(), ReadError>>,
}

impl Giving {
    /// Waits until there is room for a piece. A reader that hung up wants nothing more.
    pub(crate) async fn give(&self, piece: Bytes) -> Result<(), ReadError> {
        self.give.send(piece).await.map_err(|_| ReadError::HungUp)
    }

    /// Waits until all that was given is taken.
    pub(crate) async fn drained(&self) -> Result<(), ReadError> {
        self.give.reserve_many(WAITING_MAX).await.map(drop).map_err(|_| ReadError::HungUp)
    }

    /// How the reading ended.
    pub(crate) fn end(self, outcome: Result<(), ReadError>) {
        // Nobody hears it who hung up.
        drop(self.tell.send(outcome));
    }
}

/// The end of who answers: the pieces, then the error that the reading ended with, if any. Of a session that was deleted, which
/// nobody may read any more, the error comes before pieces that wait.
#[derive(Debug)]
pub(crate) struct Given {
    given: mpsc::Receiver<Bytes>,
    told: oneshot::Receiver<Result<(), ReadError>>,
    ended: Option<Result<(), ReadError>>,
}

impl Given {
    /// The pieces of an answer, once there is one. What fails before is refused as it should be; what fails behind it, when the answer's head
    /// is gone, resets the connection, and never looks whole.
    pub(crate) async fn begun(mut self) -> Result<impl Stream<Item = std::io::Result<Bytes>>, ReadError> {
        let first = self.next().await.transpose()?;
        let rest = self.map_err(|_| std::io::Error::other("reading ended early"));
        Ok(futures::stream::iter(first.map(Ok)).chain(rest))
    }
}

/// Says why an answer was cut off that had begun.
pub(crate) fn tell_cut(what: &'static str, id: impl Display, error: &ReadError) {
    match error {
        ReadError::Deleted | ReadError::HungUp | ReadError::Key(KeyError::Shredded(_)) => {}
        error if error.is_damage() => {
            let code = ErrorCode::ObjectCorrupt.as_str();
            tracing::error!(what, %id, code, error = %chain(error), "the answer was cut off");
        }
        ReadError::Pool(_) | ReadError::Key(KeyError::Missing(_) | KeyError::NotUnwrapped(_)) => {
            tracing::error!(what, %id, error = %chain(error), "the answer was cut off");
        }
        error => tracing::warn!(what, %id, error = %chain(error), "the answer was cut off"),
    }
}

impl Stream for Given {
    type Item = Result<Bytes, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended.is_none()
            && let Poll::Ready(told) = Pin::new(&mut self.told).poll(context)
        {
            self.ended = Some(told.unwrap_or(Err(ReadError::HungUp)));
        }
        if matches!(self.ended, Some(Err(ReadError::Deleted | ReadError::Key(KeyError::Shredded(_))))) {
            self.given.close();
            while self.given.try_recv().is_ok() {}
        }
        match (self.given.poll_recv(context), self.ended.take()) {
            (Poll::Ready(Some(piece)), ended) => {
                self.ended = ended;
                Poll::Ready(Some(Ok(piece)))
            }
            (Poll::Ready(None), Some(ended)) => {
                self.ended = Some(Ok(()));
                Poll::Ready(ended.err().map(Err))
            }
            // The last piece was taken, and how it ended is told next.
            (Poll::Ready(None), None) => Pin::new(&mut self.told).poll(context).map(|told| {
                let ended = told.unwrap_or(Err(ReadError::HungUp));
                self.ended = Some(Ok(()));
                ended.err().map(Err)
            }),
            (Poll::Pending, ended) => {
                self.ended = ended;
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn pieces_come_in_order_and_then_how_it_ended() {
        let (giving, given) = pieces();
        for piece in ["a", "b"] {
            giving.give(piece.into()).await.unwrap();
        }
        giving.end(Ok(()));
        let read: Vec<Bytes> = given.map(|piece| piece.unwrap()).collect().await;
        assert_eq!(read, ["a", "b"]);

        let (giving, mut given) = pieces();
        giving.give("a".into()).await.unwrap();
        giving.end(Err(ReadError::HungUp));
        assert_eq!(given.next().await.unwrap().unwrap(), "a");
        assert!(matches!(given.next().await, Some(Err(ReadError::HungUp))));
        assert!(given.next().await.is_none());
    }

    #[tokio::test]
    async fn nothing_that_waits_is_given_of_a_session_that_was_deleted() {
        let (giving, mut given) = pieces();
        for _ in 0..WAITING_MAX {
            giving.give("a".into()).await.unwrap();
        }
        // Nobody takes anything, and it is told all the same.
        giving.end(Err(ReadError::Deleted));
        assert!(matches!(given.next().await, Some(Err(ReadError::Deleted))));
        assert!(given.next().await.is_none());
    }

    #[tokio::test]
    async fn a_reading_is_over_once_all_is_taken() {
        let (giving, mut given) = pieces();
        giving.give("a".into()).await.unwrap();
        let mut drained = std::pin::pin!(giving.drained());
        assert!(futures::poll!(&mut drained).is_pending());
        assert_eq!(given.next().await.unwrap().unwrap(), "a");
        drained.await.unwrap();
        drop(given);
        assert!(matches!(giving.drained().await, Err(ReadError::HungUp)));
    }

    #[tokio::test]
    async fn a_reading_that_breaks_off_is_not_taken_for_whole() {
        let (giving, mut given) = pieces();
        giving.give("a".into()).await.unwrap();
        drop(giving);
        assert_eq!(given.next().await.unwrap().unwrap(), "a");
        assert!(given.next().await.is_some_and(|piece| piece.is_err()));
    }
}
