//! What is sealed whole: entries of the journal, records, wrapped keys.

use std::collections::BTreeMap;

use schemas::deletion::Cause;
use schemas::journal::Entry;
use schemas::object::{ObjectKind, PREAMBLE_BYTES};
use schemas::record::ENVELOPE_BYTES;
use schemas::{DeletionId, SessionKey};
use uuid::Uuid;

use super::super::cast::{EPOCH, TOPIC, VERSION, foreign, keys, other, own, storage, twin};
use super::super::reader::{self, Keys, Read};
use super::super::samples;
use super::super::tally::{Tally, flips};
use super::{KINDS, flip_all, make_shared, nobody, record, versioned};
use crate::frames::{ChunkKind, seal_alone};
use crate::keyring::{KeyVersion, Owner};
use crate::objects::seal_journal;
use crate::transport::{EpochId, EpochKeys, LogPlace, RecordSealer};
use crate::wrapping::{self, WRAPPED_BYTES, Wrapped};
#[test]
fn c05_a_tampered_entry_of_the_journal_gives_an_error() {
    let keys = keys();
    let entry = |n: u128| Entry {
        object: samples::object_id(n),
        deletion: DeletionId(Uuid::from_u128(n + 1)),
        workspace: own().workspace,
        cause: Cause::ByHand,
        requested_at_ms: 1_790_000_000_000,
        sessions: vec![own().session, twin().session],
        marks: None,
    };
    let (id, second_id) = (samples::object_id(300), samples::object_id(400));
    let object = seal_journal(&storage(&keys), &entry(300)).unwrap();
    let second = seal_journal(&storage(&keys), &entry(400)).unwrap();
    let read = |bytes: &[u8]| reader::journal(&keys, id, bytes);
    let mut tally = Tally::new("Journal object", read(&object).unwrap());
    flip_all(&mut tally, &object, &[("bit flips", 0..object.len())], read);
    for len in 0..object.len() {
        tally.case("the object cut short", len, read(&object[..len]));
    }
    tally.case("bytes behind the end", "", read(&[&object[..], &[0]].concat()));
    tally.case("another entry in the entry's place", "", read(&second));
    tally.case("another entry in the entry's place", "the other way", reader::journal(&keys, second_id, &object));
    // Halves of two entries: the version and the chunk's id of one, the frame of the other.
    for at in 1..object.len() {
        let changed = [&second[..at], &object[at..]].concat();
        // Some beginnings are the same; then nothing was changed.
        if changed != object {
            tally.case("the beginning of another entry", at, read(&changed));
        }
    }
    for kind in KINDS {
        let sealed = seal_alone(&storage(&keys).key, nobody(kind), &entry(300).encode()).unwrap();
        let whole = [ObjectKind::Journal.preamble().to_vec(), versioned(VERSION, sealed)].concat();
        if kind == ChunkKind::Journal {
            read(&whole).unwrap();
        } else {
            tally.case("an entry sealed as another kind", format_args!("{kind:?}"), read(&whole));
        }
    }
    for kind in [ObjectKind::Shared, ObjectKind::Session] {
        let renamed = [&kind.preamble(), &object[PREAMBLE_BYTES..]].concat();
        tally.case("the preamble of another kind of object", format_args!("{kind:?}"), read(&renamed));
    }
    let shared = make_shared(&keys, id, 1_000);
    tally.case("a shared object in the entry's place", "", read(&shared.bytes));
    let region = [&ObjectKind::Journal.preamble(), shared.region()].concat();
    tally.case("a footer in the entry's place", "", read(&region));
    tally.finish(&[]);
}

#[test]
fn c05_a_tampered_record_gives_an_error() {
    let keys = keys();
    let key = keys.epochs.get(EPOCH).unwrap();
    let (sealer, second_sealer) = (RecordSealer::new(key, EPOCH).unwrap(), RecordSealer::new(key, EPOCH).unwrap());
    let (own_key, twin_key) = (own().session.as_bytes().to_vec(), twin().session.as_bytes().to_vec());
    let value = record(&sealer, own(), 1_000);
    let read = |value: &[u8]| reader::record(&keys, &own_key, value);
    let mut tally = Tally::new("Record", read(&value).unwrap());
    let parts = [
        ("bit flips in the envelope", 0..ENVELOPE_BYTES),
        ("bit flips in the sealed part", ENVELOPE_BYTES..value.len()),
    ];
    flip_all(&mut tally, &value, &parts, read);
    for len in 0..value.len() {
        tally.case("the record cut short", len, read(&value[..len]));
    }
    tally.case("bytes behind the end", "", read(&[&value[..], &[0]].concat()));

    let other_records = [
        ("of the process", record(&sealer, own(), 1_001)),
        ("of another process", record(&second_sealer, own(), 1_000)),
        ("of another session", record(&sealer, twin(), 1_000)),
    ];
    for (what, other) in &other_records {
        assert_eq!(other.len(), value.len());
        for at in 1..value.len() {
            // Some beginnings are the same, and then nothing was changed; some ends are, and then it is the other record, whole.
            let changed = [&other[..at], &value[at..]].concat();
            if changed != value && changed != *other {
                tally.case("the beginning of another record", format_args!("{what}, {at}"), read(&changed));
            }
        }
    }
    let of_twin = &other_records[2].1;
    tally.case("under another record's key", "", read(of_twin));
    tally.case("under another record's key", "the other way", reader::record(&keys, &twin_key, &value));
    for place in [LogPlace { topic: "control", key: &own_key }, LogPlace { topic: "session-event", key: &own_key }] {
        let elsewhere = Keys { topic: place.topic.to_owned(), ..keys.clone() };
        tally.case("in another topic", place.topic, reader::record(&elsewhere, place.key, &value));
    }
    // The same bytes bound in, divided otherwise between topic and key.
    for moved in 1..own_key.len() {
        let topic: String = own_key[moved..].iter().map(|byte| char::from(*byte)).chain(TOPIC.chars()).collect();
        let elsewhere = Keys { topic, ..keys.clone() };
        tally.case("topic and key divided otherwise", moved, reader::record(&elsewhere, &own_key[..moved], &value));
    }
    for epoch in [EpochId(1), EpochId(2)] {
        let mut changed = value.clone();
        changed[5..9].copy_from_slice(&epoch.0.to_le_bytes());
        tally.case("said to be of another epoch", epoch, read(&changed));
        let renamed = EpochKeys::new([(epoch, keys.epochs.get(EPOCH).unwrap().clone())].into());
        let renamed = Keys { epochs: renamed, ..keys.clone() };
        tally.case("said to be of another epoch", "with its key", reader::record(&renamed, &own_key, &changed));
    }
    tally.finish(&[]);
}

#[test]
fn c05_a_tampered_wrapped_key_gives_an_error() {
    let keys = keys();
    let key = |session: SessionKey, version| keys.roots.derive(Owner::Workspace(session.workspace), version).unwrap();
    let wrap = |session: SessionKey| {
        wrapping::wrap(VERSION, &key(session, VERSION), &session, &keys.sessions[&session]).unwrap()
    };
    let wrapped = wrap(own());
    let unwrap = |session: SessionKey, wrapped: Wrapped| -> Read<[u8; 32]> {
        Ok(*wrapping::unwrap(&key(session, wrapped.version), &session, &wrapped)?.expose())
    };
    let mut tally = Tally::new("Wrapped key", unwrap(own(), wrapped).unwrap());
    for (bit, changed) in flips(&wrapped.bytes) {
        let bytes: [u8; WRAPPED_BYTES] = changed.try_into().unwrap();
        tally.case("bit flips", bit, unwrap(own(), Wrapped { bytes, ..wrapped }));
    }
    let owners: BTreeMap<&'static str, SessionKey> = [
        ("another session's, one data key", twin()),
        ("another workspace's, one data key", foreign()),
        ("another session's, its own data key", other()),
    ]
    .into();
    for (kind, owner) in owners {
        tally.case(kind, "", unwrap(own(), wrap(owner)));
        tally.case(kind, "the other way", unwrap(owner, wrapped));
        // Under the owner's own workspace key, so that only the session tells them apart.
        let same_key = wrapping::unwrap(&key(own(), VERSION), &owner, &wrapped);
        tally.case(kind, "under one workspace key", same_key.map(|key| *key.expose()).map_err(Into::into));
    }
    for version in [KeyVersion(1), KeyVersion(2)] {
        tally.case("another version", version, unwrap(own(), Wrapped { version, ..wrapped }));
        let renamed = Wrapped { version, ..wrapped };
        let opened = wrapping::unwrap(&key(own(), VERSION), &own(), &renamed);
        tally.case("another version", "with its key", opened.map(|key| *key.expose()).map_err(Into::into));
    }
    tally.finish(&[]);
}
