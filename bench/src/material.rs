//! What is sent: recordings, and their bodies, compressed once.

use std::sync::Arc;

use anyhow::{Context, ensure};
use virtual_sdk::recordings::Counts;
use virtual_sdk::{Body, Encoding, Form, Recording, Session, ledger, recordings};

use crate::options::{Encodings, Options};

/// Recordings and their bodies.
pub(crate) struct Material {
    pub(crate) recordings: Vec<Arc<Recording>>,
    /// By recording and batch; empty when every session's bodies are its own.
    bodies: Vec<Vec<Body>>,
    encodings: Encodings,
}

impl Material {
    pub(crate) fn prepare(options: &Options) -> anyhow::Result<Self> {
        let recordings: Vec<Arc<Recording>> = recordings::load()?.into_iter().map(Arc::new).collect();
        let mut material = Self { recordings, bodies: Vec::new(), encodings: options.encoding };
        if !options.unique {
            for (index, recording) in material.recordings.iter().enumerate() {
                let encode = |(place, batch)| {
                    let (form, encoding) = material.dress(index, place);
                    Body::of_batch(batch, form, encoding)
                };
                let bodies: Result<Vec<Body>, _> = recording.batches().iter().enumerate().map(encode).collect();
                material.bodies.push(bodies.context("encode batches")?);
            }
        }
        Ok(material)
    }

    /// The body of a batch in this session, and the bytes of its events as JSON.
    pub(crate) fn body(&self, session: &Session, recording: usize, place: usize) -> anyhow::Result<(Body, u64)> {
        let batch = &self.recordings[recording].batches()[place];
        if let Some(bodies) = self.bodies.get(recording) {
            return Ok((bodies[place].clone(), batch.raw_bytes()));
        }
        let mark = ledger::mark(session.id, batch.stream, batch.seq, batch);
        let (form, encoding) = self.dress(recording, place);
        let body = Body::of_marked_batch(batch, &mark, form, encoding).context("encode batch")?;
        Ok((body, batch.raw_bytes() + mark.len() as u64 + 1))
    }

    /// How often a session has to begin.
    pub(crate) fn sessions_per_second(&self, options: &Options) -> anyhow::Result<f64> {
        let total = self.totals();
        let sessions = self.recordings.len() as f64;
        let marks = if options.unique { total.batches } else { 0 };
        let rate = if let Some(rate) = options.sessions_per_second {
            rate
        } else if let Some(sdks) = options.sdks {
            // Little's law: as many are under way as begin during the time that one takes.
            sdks / (self.mean_seconds() / options.speedup)
        } else {
            options.events_per_second / ((total.events + marks) as f64 / sessions)
        };
        ensure!(rate.is_finite() && rate > 0.0, "compute rate of sessions: the recordings are empty");
        Ok(rate)
    }

    fn mean_seconds(&self) -> f64 {
        let total: u64 = self.recordings.iter().map(|recording| recording.counts().duration_ms).sum();
        total as f64 / 1e3 / self.recordings.len() as f64
    }

    /// Sums over all recordings.
    pub(crate) fn totals(&self) -> Counts {
        let mut total = Counts::default();
        for counts in self.recordings.iter().map(|recording| recording.counts()) {
            total.streams += counts.streams;
            total.batches += counts.batches;
            total.events += counts.events;
            total.raw_bytes += counts.raw_bytes;
            total.duration_ms += counts.duration_ms;
        }
        total
    }

    fn dress(&self, recording: usize, place: usize) -> (Form, Encoding) {
        let encoding = match self.encodings {
            Encodings::Mixed => Encoding::ALL[(recording + place) % Encoding::ALL.len()],
            Encodings::Identity => Encoding::Identity,
            Encodings::Gzip => Encoding::Gzip,
            Encodings::Zstd => Encoding::Zstd,
        };
        let form = if place.is_multiple_of(2) { Form::Array } else { Form::Lines };
        (form, encoding)
    }
}
