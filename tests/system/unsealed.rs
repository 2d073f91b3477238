//! All that the system has stored, and what is in it once every seal is opened: with the deployment's own keys, as its services
//! have them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use schemas::object::{ObjectKind, PREAMBLE_BYTES, TRAILER_BYTES};
use schemas::paths::ObjectKey;
use schemas::record::Envelope;
use schemas::{SessionKey, codec};
use sealing::objects::{chunk_opener, frame_at, journal_version, open_journal, session_opener};
use sealing::transport::{EpochKeys, LogPlace};
use service_kit::keys::transport::TransportKeys;
use storage::footers::Footer;

use crate::harness::System;

const KAFKA_TIMEOUT: Duration = Duration::from_secs(20);

/// A chunk under a key of its own, as an object names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChunkUse {
    pub(crate) kind: &'static str,
    /// Whose key the chunk's own is derived from: a session's, or the storage's.
    pub(crate) session: Option<SessionKey>,
    pub(crate) id: [u8; 16],
}

/// An object of the bucket.
pub(crate) struct Object {
    pub(crate) key: ObjectKey,
    pub(crate) body: Bytes,
    /// The same object as it would lie without seals: frames, records and footer in clear.
    pub(crate) clear: Vec<u8>,
    /// Every chunk in it, its footer's included.
    pub(crate) chunks: Vec<ChunkUse>,
}

/// Every object of the deployment. One that is removed in this moment is not there; of one whose session's key is gone only
/// the sealed bytes are.
pub(crate) async fn objects(system: &System<'_>) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for key in system.objects.list("").await? {
        let key = key.map_err(|name| anyhow::anyhow!("{name} is none of our objects"))?;
        let Ok(body) = system.objects.get(&key).await else { continue };
        objects.push(open(system, key, body).await.with_context(|| format!("open {key}"))?);
    }
    Ok(objects)
}

async fn open(system: &System<'_>, key: ObjectKey, body: Bytes) -> Result<Object> {
    let mut object = Object { key, clear: Vec::new(), chunks: Vec::new(), body };
    if let ObjectKey::Journal { id } = key {
        let version = journal_version(&object.body)?;
        let entry = open_journal(&system.keys.storage_of(version).await?, id, &object.body)?;
        object.clear = [&ObjectKind::Journal.preamble()[..], &entry.encode()].concat();
        let id = object.body[PREAMBLE_BYTES + 4..].first_chunk().copied().unwrap_or_default();
        object.chunks.push(ChunkUse { kind: "entry of the journal", session: None, id });
        return Ok(object);
    }
    let Some(footer) = system.footer(key, &object.body).await? else { return Ok(object) };
    let kind = ObjectKind::of(&object.body)?;
    let trailer: &[u8; TRAILER_BYTES] = object.body.last_chunk().context("an object has a trailer")?;
    let (footer_at, _) = kind.footer_place(object.body.len() as u64, trailer)?;
    let region = &object.body[footer_at as usize..];
    object.clear.extend_from_slice(&kind.preamble());
    match &footer {
        Footer::Session(footer) => {
            let data_key = system.keys.key(&footer.key).await?;
            let opener = session_opener(&data_key, footer);
            for (number, frame) in footer.frames.iter().enumerate() {
                let sealed = &object.body[frame.at as usize..][..frame.len as usize];
                object.clear.extend_from_slice(&opener.open(frame_at(number, footer.frames.len()), sealed)?);
            }
            let (id, session) = (region.first_chunk().copied().unwrap_or_default(), Some(footer.key));
            object.chunks.push(ChunkUse { kind: "footer of session object", session, id });
            object.chunks.push(ChunkUse { kind: "session object", session, id: footer.chunk });
            object.clear.extend_from_slice(&footer.encode());
        }
        Footer::Shared(footer) => {
            for chunk in &footer.chunks {
                object.chunks.push(ChunkUse { kind: "shared object", session: Some(chunk.key), id: chunk.id });
                let Ok(data_key) = system.keys.key(&chunk.key).await else { continue };
                let (opener, mut at) = (chunk_opener(&data_key, chunk), chunk.at as usize);
                for (number, batch) in chunk.batches.iter().enumerate() {
                    let sealed = &object.body[at..at + batch.len as usize];
                    at += sealed.len();
                    let frame = opener.open(frame_at(number, chunk.batches.len()), sealed)?;
                    ensure!(
                        codec::frame_holds(&frame, batch.facts.raw_bytes as usize)
                            || (batch.is_copy() && frame.is_empty()),
                        "a frame is not what it should be"
                    );
                    object.clear.extend_from_slice(&frame);
                }
            }
            let id = region[4..].first_chunk().copied().unwrap_or_default();
            object.chunks.push(ChunkUse { kind: "footer of shared object", session: None, id });
            object.clear.extend_from_slice(&footer.encode());
        }
    }
    Ok(object)
}

/// A record of the topic.
pub(crate) struct Record {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) envelope: Envelope,
    /// Header and payload in clear.
    pub(crate) clear: Vec<u8>,
}

/// All records of the deployment's topic.
pub(crate) async fn records(system: &System<'_>) -> Result<Vec<Record>> {
    records_with(system, &system.deployment.keys.join(service_kit::keys::TRANSPORT_FILE)).await
}

/// The same, opened with the transport keys of this file.
pub(crate) async fn records_with(system: &System<'_>, transport: &Path) -> Result<Vec<Record>> {
    let file: TransportKeys = service_kit::keys::read(transport)?;
    let (brokers, topic) = (system.deployment.endpoints().kafka_brokers, system.deployment.topic.clone());
    tokio::task::spawn_blocking(move || consume(&brokers, &topic, file.keys())).await?
}

fn consume(brokers: &str, topic: &str, keys: &EpochKeys) -> Result<Vec<Record>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reader-of-all")
        .set("enable.auto.commit", "false")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), KAFKA_TIMEOUT)?;
    let (mut list, mut left) = (TopicPartitionList::new(), BTreeMap::new());
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        let (low, high) = consumer.fetch_watermarks(topic, partition.id(), KAFKA_TIMEOUT)?;
        list.add_partition_offset(topic, partition.id(), Offset::Offset(low))?;
        if high > low {
            left.insert(partition.id(), high);
        }
    }
    consumer.assign(&list)?;
    let mut records = Vec::new();
    while !left.is_empty() {
        let Some(message) = consumer.poll(KAFKA_TIMEOUT) else { bail!("the topic ends before its watermark") };
        let message = message?;
        let (key, value) = (message.key().unwrap_or_default(), message.payload().unwrap_or_default());
        let (envelope, _) = Envelope::read(value)?;
        let clear = keys.open(&LogPlace { topic, key }, value).context("open record")?.bytes;
        records.push(Record { key: key.to_vec(), value: value.to_vec(), envelope, clear });
        if left.get(&message.partition()).is_some_and(|high| message.offset() + 1 >= *high) {
            left.remove(&message.partition());
        }
    }
    Ok(records)
}
