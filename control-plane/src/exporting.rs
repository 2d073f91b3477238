//! Makes archives of exports that were asked for, a slice of each in turn, so that a big one does not hold up the others.
//!
//! Any control plane does: who makes one has a lease, and what stands of it stands for whoever goes on. A session is included before
//! any byte of it is written, see [`storage::index::exports`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::SessionKey;
use schemas::limits::MIB;
use service_kit::retry::Reasons;
use service_kit::shutdown::Shutdown;
use service_kit::telemetry::chain;
use storage::exports::{ExportError, Kept, Maker, Written};
use storage::index::exports::Building;
use storage::reading::{Opened, ReadError};
use storage::session_keys::KeyError;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::driver::State;
use crate::metrics;
use crate::routes::about;

/// How often exports are looked for that another control plane was asked for, or left.
const INTERVAL: Duration = Duration::from_secs(2);
/// Sessions that are included by one transaction.
const INCLUDED_AT_ONCE: i64 = 50;
/// So much of an archive is made anew at most after its maker died,
const CHECKPOINT_BYTES: u64 = 32 * MIB as u64;
/// and what took so long.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);
/// An export is left for others after this.
const SLICE: Duration = Duration::from_secs(30);

/// What came of a slice.
enum Slice {
    /// The archive is whole.
    Whole,
    /// There is more.
    GoesOn,
}

/// Makes archives until the shutdown, so many at once. Whoever makes one has it for `lease`, and for longer with each part; after a
/// failure it waits for as long, and others go first.
pub(crate) fn start(state: &State, at_once: usize, lease: Duration, shutdown: &Shutdown) -> JoinSet<()> {
    let mut makers = JoinSet::new();
    for _ in 0..at_once {
        let maker = Making { state: state.clone(), owner: Uuid::now_v7(), lease, shutdown: shutdown.clone() };
        makers.spawn(maker.run(Arc::clone(&state.exports_asked)));
    }
    makers
}

struct Making {
    state: State,
    owner: Uuid,
    lease: Duration,
    shutdown: Shutdown,
}

impl Making {
    async fn run(self, asked: Arc<Notify>) {
        let mut reasons = Reasons::default();
        while !self.shutdown.has_begun() {
            match self.state.index.take_export(self.owner, self.lease).await {
                Ok(Some(building)) => {
                    reasons.clear();
                    self.make(building).await;
                    continue;
                }
                Ok(None) => reasons.clear(),
                Err(error) => reasons.warn(format!("look for exports: {}", chain(&error))),
            }
            tokio::select! {
                () = asked.notified() => {}
                goes_on = self.shutdown.sleep(INTERVAL) => if !goes_on { return },
            }
        }
    }

    async fn make(&self, building: Building) {
        let (workspace, id) = (building.workspace, building.id);
        let outcome = match self.slice(building).await {
            Ok(Slice::Whole) => "whole",
            Ok(Slice::GoesOn) => {
                if let Err(error) = self.state.index.leave_export(self.owner, id).await {
                    // Its lease runs out.
                    tracing::debug!(export = %id, error = %chain(&error), "leave export");
                }
                "goes_on"
            }
            // One of its sessions may be deleted while it is written.
            Err(ExportError::Over | ExportError::Read(ReadError::Deleted | ReadError::Key(KeyError::Shredded(_)))) => {
                "over"
            }
            Err(ExportError::Shredded) => {
                if let Err(error) = self.state.index.end_export(workspace, id).await {
                    tracing::warn!(export = %id, error = %chain(&error), "end export whose key was destroyed; trying again");
                }
                "over"
            }
            Err(error) => {
                tracing::warn!(export = %id, error = %chain(&error), "make archive; what stands of it stays, and it is gone on with");
                "failed"
            }
        };
        ::metrics::counter!(metrics::EXPORTS, "outcome" => outcome).increment(1);
    }

    /// Writes a session, as far as it can be read.
    async fn write(&self, maker: &mut Maker<Kept>, key: &SessionKey) -> Result<Written, ExportError> {
        let state = &self.state;
        match state.reader.open(key, state.silence).await {
            Ok(Opened::Session(session)) => {
                let described = about(state, &session).await.map_err(|_| ExportError::Unavailable)?;
                maker.session(&state.reader, &session, described).await
            }
            // One that was deleted since has ended the export with it.
            Ok(Opened::Never | Opened::Deleted) => Err(ExportError::Over),
            Err(error) if error.is_damage() => {
                tracing::error!(session = %key.session, error = %chain(&error), "a session cannot be read; its export has nothing of it");
                maker.damaged(key.session).await
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn slice(&self, building: Building) -> Result<Slice, ExportError> {
        let Self { state, owner, lease, shutdown } = self;
        if !building.is_counted {
            state.index.count_exported(&building).await?;
        }
        let (begun, mut checked) = (Instant::now(), Instant::now());
        let mut after = building.after;
        let kept = Kept::new(
            state.index.clone(),
            state.objects.clone(),
            state.keys.clone(),
            state.pool.clone(),
            (*owner, *lease),
            building.clone(),
        );
        let mut maker = Maker::new(state.pool.clone(), kept);
        loop {
            let included = state.index.include_in_export(*owner, *lease, &building, after, INCLUDED_AT_ONCE).await?;
            let included = included.ok_or(ExportError::Over)?;
            if included.is_empty() {
                if maker.has_unkept() {
                    maker.checkpoint().await?;
                }
                maker.end().await?;
                return Ok(Slice::Whole);
            }
            for key in included {
                let written = self.write(&mut maker, &key).await?;
                maker.note(written);
                after = Some(written.session);
                let is_over = begun.elapsed() > SLICE || shutdown.has_begun();
                let is_much = maker.unkept_bytes() >= CHECKPOINT_BYTES || checked.elapsed() >= CHECKPOINT_INTERVAL;
                if is_over || is_much {
                    maker.checkpoint().await?;
                    checked = Instant::now();
                }
                if is_over {
                    return Ok(Slice::GoesOn);
                }
            }
        }
    }
}
