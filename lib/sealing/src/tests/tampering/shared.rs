//! Shared objects.

use std::ops::Range;

use schemas::object::{ObjectKind, PREAMBLE_BYTES, TRAILER_BYTES};
use schemas::shared_object;
use schemas::shared_object::QuarantineReason;

use super::super::cast::{VERSION, keys, own, storage};
use super::super::reader::{self, FooterAt, Keys, Read};
use super::super::samples::{self, Object};
use super::super::tally::Tally;
use super::{
    FOREIGN_FRAMES, KINDS, OWNERS, Place, TRAILER, flip_all, make_session, make_shared, move_frames, nobody,
    places_in_session, places_in_shared, relation, splice_frames, swapped, versioned, with_region,
};
use crate::TAG_BYTES;
use crate::frames::{ChunkContext, ChunkKind, seal_alone, seal_chunk};
use crate::objects::{chunk_opener, frame_at, seal_shared_footer};
const CHUNK_SWAPS: [&str; 4] = [
    "chunks swapped within a session",
    "chunks swapped between sessions under one data key",
    "chunks swapped between workspaces under one data key",
    "chunks swapped between sessions under their own keys",
];
const EMPTY_FRAME: &str = "bit flips in the frame of a batch without events";
const ODD_RECORD: &str = "bit flips in a record that never opened";

fn parts_of_shared(object: &Object<shared_object::Footer>) -> Vec<(&'static str, Range<usize>)> {
    let footer = &object.footer;
    let mut parts = vec![("bit flips in the preamble", 0..PREAMBLE_BYTES)];
    for place in places_in_shared(footer) {
        let kind = if place.range.len() == TAG_BYTES { EMPTY_FRAME } else { "bit flips in frames" };
        parts.push((kind, place.range));
    }
    for record in &footer.quarantined {
        let kind = if record.reason == QuarantineReason::Key { "bit flips in quarantined records" } else { ODD_RECORD };
        parts.push((kind, record.at as usize..record.at as usize + record.len as usize));
    }
    let end = object.footer_at + object.footer_len;
    parts.push(("bit flips in the footer's region", object.footer_at..end));
    parts.push(("bit flips in the trailer", end..object.bytes.len()));
    parts
}

/// Bytes that no reader relies on, in bits: an empty batch is told by the footer alone, and nobody can say what a record that
/// never opened should be.
fn unnoticed_in_shared() -> Vec<(&'static str, usize)> {
    vec![(EMPTY_FRAME, TAG_BYTES * 8), (ODD_RECORD, b"no record of ours".len() * 8)]
}

#[test]
fn c05_a_tampered_shared_object_gives_an_error_or_the_same_content() {
    let keys = keys();
    let (id, second_id) = (samples::object_id(100), samples::object_id(101));
    let (object, second) = (make_shared(&keys, id, 1_000), make_shared(&keys, second_id, 2_000));
    let (places, second_places) = (places_in_shared(&object.footer), places_in_shared(&second.footer));
    let read = |bytes: &[u8]| reader::shared(&keys, id, bytes, TRAILER);
    let whole = read(&object.bytes).unwrap();
    assert!(whole.records[..2].iter().all(Option::is_some) && whole.records[2].is_none());
    let of_events = |place: &&Place| place.range.len() > TAG_BYTES;
    let len = places[0].range.len();
    assert!(places.iter().filter(of_events).all(|place| place.range.len() == len), "any frame fits into any place");

    let mut tally = Tally::new("Shared object, by its trailer", whole);
    flip_all(&mut tally, &object.bytes, &parts_of_shared(&object), read);
    move_frames(&mut tally, &object.bytes, &places, read);
    let chunk_range = |chunk: &shared_object::Chunk| chunk.at as usize..(chunk.at + chunk.len()) as usize;
    let chunks = &object.footer.chunks;
    for (number, one) in chunks.iter().enumerate() {
        for two in &chunks[number + 1..] {
            let changed = swapped(&object.bytes, &chunk_range(one), &chunk_range(two));
            tally.case(CHUNK_SWAPS[relation(&one.key, &two.key)], number, read(&changed));
        }
    }
    let [one, two, _] = &object.footer.quarantined[..] else { panic!("three quarantined records") };
    let range = |at: u64, len: u32| at as usize..at as usize + len as usize;
    let changed = swapped(&object.bytes, &range(one.at, one.len), &range(two.at, two.len));
    tally.case("quarantined records swapped", "", read(&changed));

    // Between objects of the same sessions and streams.
    let same = |one: &Place, two: &Place| FOREIGN_FRAMES[relation(&one.owner, &two.owner)];
    let (frames, donors) =
        ((object.bytes.as_slice(), places.as_slice()), (second.bytes.as_slice(), &second_places[..]));
    // The empty frame's place takes any 16 bytes.
    splice_frames(&mut tally, same, (frames.0, &places[..places.len() - 1]), donors, read);
    let of_session = make_session(&keys, second_id, own(), 3_000);
    let session_places = places_in_session(&of_session.footer);
    let kind = |_: &Place, _: &Place| "a frame of a session object over each frame";
    splice_frames(&mut tally, kind, frames, (&of_session.bytes, &session_places), read);
    tally.case("another object in the object's place", "", read(&second.bytes));
    tally.case("another object in the object's place", "a session object", read(&of_session.bytes));
    let foreign_region = with_region(ObjectKind::Shared, &object, second.region());
    tally.case("another object's footer", "", read(&foreign_region));
    tally.case("another object's footer", "body", read(&with_region(ObjectKind::Shared, &second, object.region())));
    let region = with_region(ObjectKind::Shared, &object, of_session.region());
    tally.case("another object's footer", "of a session object", read(&region));

    footers_that_lie(&mut tally, &keys, &object, read);
    kinds_of_shared(&mut tally, &keys, &object, read);
    tally.finish(&unnoticed_in_shared());
}

/// Footers that are sealed as they should be, and say what is not so: the frames do not open.
fn footers_that_lie(
    tally: &mut Tally<reader::Shared>,
    keys: &Keys,
    object: &Object<shared_object::Footer>,
    read: impl Fn(&[u8]) -> Read<reader::Shared>,
) {
    let footer = &object.footer;
    let lie = |change: &dyn Fn(&mut Vec<shared_object::Chunk>)| {
        let mut changed = footer.clone();
        change(&mut changed.chunks);
        read(&with_footer(keys, object, &changed))
    };
    for (number, chunk) in footer.chunks.iter().enumerate() {
        for owner in keys.sessions.keys().filter(|owner| **owner != chunk.key) {
            let read = lie(&|chunks| chunks[number].key = *owner);
            tally.case(OWNERS[relation(&chunk.key, owner)], format_args!("{number} {owner:?}"), read);
        }
        for (second, from) in footer.chunks.iter().enumerate().filter(|(second, _)| *second != number) {
            let read = lie(&|chunks| chunks[number].id = from.id);
            tally.case("a chunk said to have another's id", format_args!("{number} {second}"), read);
        }
        let count = chunk.batches.len();
        for kept in 1..count {
            let read = lie(&|chunks| chunks[number].batches.truncate(kept));
            tally.case("a chunk said to end earlier", format_args!("{number} {kept}"), read);
            if chunk.batches[kept..].iter().all(|batch| batch.facts.events == 0) {
                continue;
            }
            let read = lie(&|chunks| {
                let dropped: u64 = chunks[number].batches.drain(..kept).map(|batch| u64::from(batch.len)).sum();
                chunks[number].at += dropped;
            });
            tally.case("a chunk said to begin later", format_args!("{number} {kept}"), read);
        }
        if let Some(next) = footer.chunks.get(number + 1) {
            let read = lie(&|chunks| chunks[number].batches.push(next.batches[0].clone()));
            tally.case("a chunk said to go on in the next", number, read);
        }
    }
}

/// The same plain text, sealed under the same key and for the same session as something else.
fn kinds_of_shared(
    tally: &mut Tally<reader::Shared>,
    keys: &Keys,
    object: &Object<shared_object::Footer>,
    read: impl Fn(&[u8]) -> Read<reader::Shared>,
) {
    let storage = storage(keys);
    for kind in KINDS {
        let region = versioned(VERSION, seal_alone(&storage.key, nobody(kind), &object.footer.encode()).unwrap());
        let resealed = read(&with_region(ObjectKind::Shared, object, &region));
        if kind == ChunkKind::SharedFooter {
            resealed.unwrap();
        } else {
            tally.case("a footer sealed as another kind", format_args!("{kind:?}"), resealed);
        }
        for (number, chunk) in object.footer.chunks.iter().enumerate() {
            let (data_key, opener) = (&keys.sessions[&chunk.key], chunk_opener(&keys.sessions[&chunk.key], chunk));
            let places = places_in_shared(&object.footer);
            let places: Vec<&Place> = places.iter().filter(|place| place.chunk == number).collect();
            let opened = places.iter().enumerate().map(|(frame, place)| {
                opener.open(frame_at(frame, places.len()), &object.bytes[place.range.clone()]).unwrap()
            });
            let opened: Vec<Vec<u8>> = opened.collect();
            let (mut sealed, mut footer) = (Vec::new(), object.footer.clone());
            let context = ChunkContext { session: chunk.key, kind };
            let (id, _) = seal_chunk(data_key, context, opened.iter().map(Vec::as_slice), &mut sealed).unwrap();
            footer.chunks[number].id = *id.as_bytes();
            let mut body = object.bytes[..object.footer_at].to_vec();
            let at = chunk.at as usize;
            body[at..at + sealed.len()].copy_from_slice(&sealed);
            let region = seal_shared_footer(&storage, &footer).unwrap();
            let resealed = read(&samples::finish(ObjectKind::Shared, body, &region, ()).bytes);
            if kind == ChunkKind::Shared {
                resealed.unwrap();
            } else {
                tally.case("a chunk sealed as another kind", format_args!("{number} {kind:?}"), resealed);
            }
        }
    }
}

/// Readers that know the footer's place from the index do not look at preamble and trailer.
#[test]
fn c05_a_tampered_shared_object_that_its_row_describes_gives_an_error_or_the_same_content() {
    let keys = keys();
    let id = samples::object_id(100);
    let object = make_shared(&keys, id, 1_000);
    let at = FooterAt::Row(object.footer_at, object.footer_len);
    let read = |bytes: &[u8]| reader::shared(&keys, id, bytes, at);
    let mut tally = Tally::new("Shared object, by its row", read(&object.bytes).unwrap());
    flip_all(&mut tally, &object.bytes, &parts_of_shared(&object), read);
    move_frames(&mut tally, &object.bytes, &places_in_shared(&object.footer), read);
    let mut unnoticed = unnoticed_in_shared();
    unnoticed.push(("bit flips in the preamble", PREAMBLE_BYTES * 8));
    unnoticed.push(("bit flips in the trailer", TRAILER_BYTES * 8));
    unnoticed.push(("the object cut short", TRAILER_BYTES));
    tally.finish(&unnoticed);
}

/// A shared object with another footer, sealed as it should be: what a writer's error, or a thief of the storage key, can say.
fn with_footer(keys: &Keys, object: &Object<shared_object::Footer>, footer: &shared_object::Footer) -> Vec<u8> {
    let region = seal_shared_footer(&storage(keys), footer).unwrap();
    samples::finish(ObjectKind::Shared, object.bytes[..object.footer_at].to_vec(), &region, ()).bytes
}
