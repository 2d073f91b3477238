//! Reading a session in every manner that there is, and telling an answer that is whole from one that was cut.

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use schemas::SessionId;
use schemas::codes::{PROBLEM_CONTENT_TYPE, Problem};
use serde_json::value::RawValue;
use virtual_sdk::EventsFormat;

use crate::harness::System;

pub(crate) const FORMATS: [EventsFormat; 2] = [EventsFormat::Lines, EventsFormat::Array];
pub(crate) const ENCODINGS: [&str; 3] = ["identity", "gzip", "zstd"];

const TIMEOUT: Duration = Duration::from_secs(60);

/// How a session is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) format: EventsFormat,
    pub(crate) encoding: &'static str,
    /// Bounds of the events' timestamps, both within.
    pub(crate) from: Option<i64>,
    pub(crate) to: Option<i64>,
}

impl Manner {
    /// All of it, as lines.
    pub(crate) const WHOLE: Manner = Manner { format: EventsFormat::Lines, encoding: "identity", from: None, to: None };

    /// A range of it, as lines.
    pub(crate) fn between(from: Option<i64>, to: Option<i64>) -> Manner {
        Manner { from, to, ..Self::WHOLE }
    }

    /// Whether an event with this timestamp is asked for.
    pub(crate) fn covers(&self, timestamp: i64) -> bool {
        self.from.is_none_or(|from| from <= timestamp) && self.to.is_none_or(|to| timestamp <= to)
    }
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It ended as an answer does. The events, each as it came.
    Whole(Vec<Vec<u8>>),
    /// A problem in place of events.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The problem's code.
        code: String,
    },
    /// The connection ended within the answer. What had come of its body, as it came.
    Cut(Vec<u8>),
}

impl Answer {
    /// The events of an answer that has to be whole.
    pub(crate) fn whole(self) -> Result<Vec<Vec<u8>>> {
        match self {
            Answer::Whole(events) => Ok(events),
            Answer::Refused { status, code } => bail!("the reading was refused with {status} {code}"),
            Answer::Cut(body) => bail!("the reading was cut after {} bytes", body.len()),
        }
    }
}

/// Reads at the first control plane.
pub(crate) struct Reader {
    client: reqwest::Client,
    url: String,
    key: String,
}

impl Reader {
    pub(crate) fn new(system: &System<'_>) -> Result<Self> {
        let endpoints = system.deployment.endpoints();
        let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build().context("make http client")?;
        Ok(Self { client, url: endpoints.api_url, key: endpoints.api_key })
    }

    pub(crate) async fn read(&self, session: SessionId, manner: &Manner) -> Result<Answer> {
        let accept = match manner.format {
            EventsFormat::Lines => "application/x-ndjson",
            EventsFormat::Array => "application/json",
        };
        let mut request = self
            .client
            .get(format!("{}/v1/sessions/{session}/events", self.url))
            .bearer_auth(&self.key)
            .header("accept", accept)
            .header("accept-encoding", manner.encoding);
        for (name, bound) in [("from", manner.from), ("to", manner.to)] {
            if let Some(bound) = bound {
                request = request.query(&[(name, bound)]);
            }
        }
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() || error.is_timeout() => return Err(error).context("ask for events"),
            // It ended before its head was sent.
            Err(_) => return Ok(Answer::Cut(Vec::new())),
        };
        let status = response.status();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (content_type, encoding) = (header("content-type"), header("content-encoding"));
        if !status.is_success() {
            ensure!(content_type.as_deref() == Some(PROBLEM_CONTENT_TYPE), "{status} comes as {content_type:?}");
            let problem = response.bytes().await.context("read problem")?;
            let problem: Problem = serde_json::from_slice(&problem).context("a refusal is a problem")?;
            ensure!(problem.status == status.as_u16(), "a problem of {} comes with {status}", problem.status);
            return Ok(Answer::Refused { status: problem.status, code: problem.code });
        }
        let encoding = encoding.unwrap_or_else(|| "identity".into());
        ensure!(encoding == manner.encoding, "asked for {}, got {encoding}", manner.encoding);
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) => break,
                Err(error) if error.is_timeout() => return Err(error).context("read events"),
                Err(_) => return Ok(Answer::Cut(body)),
            }
        }
        Ok(Answer::Whole(events_in(&decode(&encoding, body)?, manner.format)?))
    }
}

fn decode(encoding: &str, body: Vec<u8>) -> Result<Vec<u8>> {
    let mut decoded = Vec::new();
    match encoding {
        "gzip" => {
            flate2::read::MultiGzDecoder::new(body.as_slice()).read_to_end(&mut decoded).context("decode gzip")?;
        }
        "zstd" => decoded = zstd::decode_all(body.as_slice()).context("decode zstd")?,
        _ => decoded = body,
    }
    Ok(decoded)
}

fn events_in(body: &[u8], format: EventsFormat) -> Result<Vec<Vec<u8>>> {
    match format {
        EventsFormat::Lines => {
            ensure!(body.is_empty() || body.ends_with(b"\n"), "the last line is not whole");
            Ok(body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect())
        }
        EventsFormat::Array => {
            let events: Vec<&RawValue> = serde_json::from_slice(body).context("read array")?;
            Ok(events.iter().map(|event| event.get().as_bytes().to_vec()).collect())
        }
    }
}
