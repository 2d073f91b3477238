//! Seals: bytes that our keys did not seal never open, nor do sealed ones that were changed in any way.
#![no_main]

use std::collections::BTreeMap;

use fuzz::{plant, session};
use libfuzzer_sys::fuzz_target;
use schemas::object::ObjectKind;
use schemas::record::{Envelope, Header};
use schemas::{ExportId, ObjectId};
use sealing::frames::{ChunkContext, ChunkId, ChunkKind, FrameAt, Opener, Sealer};
use sealing::keyring::KeyVersion;
use sealing::objects::{PartOf, open_export, seal_export};
use sealing::transport::{EpochId, EpochKeys, LogPlace, RecordSealer};
use sealing::wrapping::{WRAPPED_BYTES, Wrapped, unwrap, wrap};
use sealing::{Key, NotOpened};

fn key() -> Key {
    Key::new([7; 32])
}

/// A key that seals nothing here: libFuzzer sees what is compared, and hands back what another input's run sealed.
fn idle_key() -> Key {
    Key::new([8; 32])
}

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    [0, 1, 100, 200].into_iter().map(|len| vec![1; len])
}

/// Changes `sealed` as the input says: a part of it is overwritten by XOR, or it gets another length. `None` when the input
/// changes nothing.
fn changed(sealed: &[u8], change: &[u8]) -> Option<Vec<u8>> {
    let (&[at, len], mask) = change.split_first_chunk()?;
    let mut changed = sealed.to_vec();
    changed.resize(sealed.len() + usize::from(len) % 4, 0);
    changed.truncate(changed.len() - (usize::from(len / 4) % 4).min(changed.len()));
    for (byte, mask) in changed.iter_mut().skip(usize::from(at)).zip(mask) {
        *byte ^= mask;
    }
    (changed != sealed).then_some(changed)
}

fn frames(data: &[u8]) {
    let context = ChunkContext { session: session(), kind: ChunkKind::Session };
    let first = FrameAt { number: 0, is_last: true };
    let sealer = Sealer::new(&key(), context).expect("the machine has randomness");
    let chunk = sealer.chunk();
    let mut sealed = Vec::new();
    sealer.seal_last(data, &mut sealed).expect("a frame of some bytes is sealed");
    let opener = Opener::new(&key(), context, chunk);
    assert_eq!(opener.open(first, &sealed).as_deref(), Ok(data));
    if let Some(changed) = changed(&sealed, data) {
        assert_eq!(opener.open(first, &changed), Err(NotOpened));
    }
    if let Some(&[number, is_last]) = data.first_chunk() {
        let elsewhere = FrameAt { number: number.into(), is_last: is_last % 2 == 1 };
        assert!(elsewhere == first || opener.open(elsewhere, &sealed).is_err(), "a frame opens at another place");
    }
    let Some((id, frame)) = data.split_first_chunk() else { return };
    let idle = Opener::new(&idle_key(), context, ChunkId::from_bytes(*id));
    assert_eq!(idle.open(first, frame), Err(NotOpened));
}

fn records(data: &[u8]) {
    let place = LogPlace { topic: "t", key: b"k" };
    let header = Header::Declines { workspace: session().workspace, hour_ms: 0, count: 1 };
    let keys = |key| EpochKeys::new(BTreeMap::from([(EpochId(1), key)]));
    let sealer = RecordSealer::new(&key(), EpochId(1)).expect("the machine has randomness");
    let sealed = sealer.seal(&place, &header, data).expect("a record of some bytes is sealed");
    let opened = keys(key()).open(&place, &sealed).expect("what was sealed opens");
    assert_eq!((&opened.header, &opened.bytes[opened.payload_at..]), (&header, data));
    if let Some(changed) = changed(&sealed, data) {
        assert!(keys(key()).open(&place, &changed).is_err());
    }
    assert!(keys(idle_key()).open(&place, data).is_err());
    let Some((salt, bytes)) = data.split_first_chunk() else { return };
    let envelope = Envelope { epoch: 1, salt: *salt, number: 0 }.to_bytes();
    let arbitrary = [envelope.as_slice(), bytes].concat();
    assert_eq!(keys(idle_key()).open(&place, &arbitrary), Err(NotOpened.into()));
}

fn wrapped(data: &[u8]) {
    let wrapped = wrap(KeyVersion(1), &key(), &session(), &key()).expect("the machine has randomness");
    assert!(unwrap(&key(), &session(), &wrapped).is_ok_and(|opened| opened.expose() == key().expose()));
    if let Some(changed) = changed(&wrapped.bytes, data).and_then(|changed| changed.first_chunk().copied())
        && changed != wrapped.bytes
    {
        assert!(unwrap(&key(), &session(), &Wrapped { bytes: changed, ..wrapped }).is_err());
    }
    if let Some(bytes) = data.first_chunk::<WRAPPED_BYTES>() {
        assert!(unwrap(&idle_key(), &session(), &Wrapped { version: KeyVersion(1), bytes: *bytes }).is_err());
    }
}

fn exports(data: &[u8]) {
    let id = session().session.0;
    let of = PartOf { workspace: session().workspace, export: ExportId(id), object: ObjectId(id) };
    assert!(open_export(&idle_key(), &of, data).is_err());
    if data.is_empty() {
        return;
    }
    let sealed = seal_export(&key(), &of, data).expect("a part of some bytes is sealed");
    assert_eq!(open_export(&key(), &of, &sealed).as_deref(), Ok(data));
    if let Some(changed) = changed(&sealed, data) {
        assert!(open_export(&key(), &of, &changed).is_err());
    }
    let arbitrary = [ObjectKind::Export.preamble().as_slice(), data].concat();
    assert!(open_export(&idle_key(), &of, &arbitrary).is_err());
}

fuzz_target!(init: plant(seeds()), |data: &[u8]| {
    frames(data);
    records(data);
    wrapped(data);
    exports(data);
});
