//! Session objects.

use std::ops::Range;

use schemas::object::{ObjectKind, PREAMBLE_BYTES, TRAILER_BYTES};
use schemas::session_object;

use super::super::cast::{foreign, keys, other, own, twin};
use super::super::reader::{self, FooterAt, Keys, Read};
use super::super::samples::{self, Object};
use super::super::tally::Tally;
use super::{
    BEHIND, FOREIGN_FRAMES, KINDS, OWNERS, Place, TRAILER, flip_all, make_session, make_shared, move_frames,
    places_in_session, places_in_shared, splice_frames, with_region,
};
use crate::Key;
use crate::frames::{ChunkContext, ChunkKind, seal_alone, seal_chunk};
use crate::objects::{frame_at, seal_session_footer, session_opener};
const OBJECTS: [&str; 4] = [
    "another object of the session in the object's place",
    "another session's object, one data key, in the object's place",
    "another workspace's object, one data key, in the object's place",
    "another session's object, its own key, in the object's place",
];
const REGIONS: [&str; 4] = [
    "the footer of another object of the session",
    "the footer of another session's object, one data key",
    "the footer of another workspace's object, one data key",
    "the footer of another session's object, its own key",
];

fn parts_of_session(object: &Object<session_object::Footer>) -> Vec<(&'static str, Range<usize>)> {
    let end = object.footer_at + object.footer_len;
    vec![
        ("bit flips in the preamble", 0..PREAMBLE_BYTES),
        ("bit flips in frames", PREAMBLE_BYTES..object.footer_at),
        ("bit flips in the footer's region", object.footer_at..end),
        ("bit flips in the trailer", end..object.bytes.len()),
    ]
}

#[test]
fn c05_a_tampered_session_object_gives_an_error_or_the_same_content() {
    let keys = keys();
    let id = samples::object_id(200);
    let object = make_session(&keys, id, own(), 1_000);
    let places = places_in_session(&object.footer);
    let read = |bytes: &[u8]| reader::session(&keys, own(), id, bytes, TRAILER);
    let mut tally = Tally::new("Session object, by its trailer", read(&object.bytes).unwrap());
    flip_all(&mut tally, &object.bytes, &parts_of_session(&object), read);
    move_frames(&mut tally, &object.bytes, &places, read);

    for (number, owner) in [own(), twin(), foreign(), other()].into_iter().enumerate() {
        // Twice: under the same id, as if ids were used twice, and under its own.
        for donor_id in [id, samples::object_id(201)] {
            let donor = make_session(&keys, donor_id, owner, 2_000 + number as u32 * 10);
            let is_other = donor_id != id || owner != own();
            let what = format_args!("{owner:?} {donor_id}");
            let kind = |_: &Place, _: &Place| FOREIGN_FRAMES[number];
            let donor_places = places_in_session(&donor.footer);
            splice_frames(&mut tally, kind, (&object.bytes, &places), (&donor.bytes, &donor_places), read);
            let region = with_region(ObjectKind::Session, &object, donor.region());
            tally.case(REGIONS[number], what, read(&region));
            if is_other {
                tally.case(OBJECTS[number], what, read(&donor.bytes));
            }
            // The frames of the donor under a footer for this session, as it should be.
            let footer = session_object::Footer { object: id, key: own(), ..donor.footer.clone() };
            let claimed = with_session_footer(&keys.sessions[&own()], &donor, &footer);
            if owner != own() {
                tally.case(OWNERS[number], what, read(&claimed));
            }
            if owner != own() {
                // The donor as it is, its footer sealed for this session: frames and footer would open.
                let footer = session_object::Footer { object: id, ..donor.footer.clone() };
                let context = ChunkContext { session: own(), kind: ChunkKind::SessionFooter };
                let region = seal_alone(&keys.sessions[&own()], context, &footer.encode()).unwrap();
                let claimed = read(&with_region(ObjectKind::Session, &donor, &region));
                tally.case("a footer of this session that names another", what, claimed);
            }
            let footer = session_object::Footer { chunk: donor.footer.chunk, ..object.footer.clone() };
            let claimed = with_session_footer(&keys.sessions[&own()], &object, &footer);
            tally.case("the chunk said to have another's id", what, read(&claimed));
        }
    }
    let shared = make_shared(&keys, samples::object_id(100), 3_000);
    let kind = |_: &Place, _: &Place| "a frame of a shared object over each frame";
    let shared_places = places_in_shared(&shared.footer);
    splice_frames(&mut tally, kind, (&object.bytes, &places), (&shared.bytes, &shared_places), read);
    tally.case("a shared object in the object's place", "", read(&shared.bytes));
    let region = with_region(ObjectKind::Session, &object, shared.region());
    tally.case("the footer of a shared object", "", read(&region));

    for kept in 1..places.len() {
        let lie = |change: &dyn Fn(&mut Vec<session_object::Frame>)| {
            let mut footer = object.footer.clone();
            change(&mut footer.frames);
            read(&with_session_footer(&keys.sessions[&own()], &object, &footer))
        };
        tally.case("the chunk said to end earlier", kept, lie(&|frames| frames.truncate(kept)));
        tally.case("the chunk said to begin later", kept, lie(&|frames| drop(frames.drain(..kept))));
        tally.case("frames said to stand in another order", kept, lie(&|frames| frames.rotate_left(kept)));
        tally.case("a frame said to stand twice", kept, lie(&|frames| frames.insert(kept, frames[kept].clone())));
    }
    kinds_of_session(&mut tally, &keys, &object, read);
    // Between the last frame and the footer nothing is looked for.
    tally.finish(&[(BEHIND, places.len() + 1)]);
}

fn kinds_of_session(
    tally: &mut Tally<reader::Session>,
    keys: &Keys,
    object: &Object<session_object::Footer>,
    read: impl Fn(&[u8]) -> Read<reader::Session>,
) {
    let (data_key, footer) = (&keys.sessions[&own()], &object.footer);
    let opener = session_opener(data_key, footer);
    let places = places_in_session(footer);
    let opened = places.iter().enumerate().map(|(number, place)| {
        opener.open(frame_at(number, places.len()), &object.bytes[place.range.clone()]).unwrap()
    });
    let opened: Vec<Vec<u8>> = opened.collect();
    for kind in KINDS {
        let context = ChunkContext { session: own(), kind };
        let region = seal_alone(data_key, context, &footer.encode()).unwrap();
        let resealed = read(&with_region(ObjectKind::Session, object, &region));
        if kind == ChunkKind::SessionFooter {
            resealed.unwrap();
        } else {
            tally.case("a footer sealed as another kind", format_args!("{kind:?}"), resealed);
        }
        let mut body = ObjectKind::Session.preamble().to_vec();
        let (chunk, _) = seal_chunk(data_key, context, opened.iter().map(Vec::as_slice), &mut body).unwrap();
        let footer = session_object::Footer { chunk: *chunk.as_bytes(), ..footer.clone() };
        let region = seal_session_footer(data_key, &footer).unwrap();
        let resealed = read(&samples::finish(ObjectKind::Session, body, &region, ()).bytes);
        if kind == ChunkKind::Session {
            resealed.unwrap();
        } else {
            tally.case("a chunk sealed as another kind", format_args!("{kind:?}"), resealed);
        }
    }
}

#[test]
fn c05_a_tampered_session_object_that_its_row_describes_gives_an_error_or_the_same_content() {
    let keys = keys();
    let id = samples::object_id(200);
    let object = make_session(&keys, id, own(), 1_000);
    let at = FooterAt::Row(object.footer_at, object.footer_len);
    let read = |bytes: &[u8]| reader::session(&keys, own(), id, bytes, at);
    let mut tally = Tally::new("Session object, by its row", read(&object.bytes).unwrap());
    flip_all(&mut tally, &object.bytes, &parts_of_session(&object), read);
    move_frames(&mut tally, &object.bytes, &places_in_session(&object.footer), read);
    tally.finish(&[
        ("bit flips in the preamble", PREAMBLE_BYTES * 8),
        ("bit flips in the trailer", TRAILER_BYTES * 8),
        ("the object cut short", TRAILER_BYTES),
    ]);
}

fn with_session_footer(
    data_key: &Key,
    object: &Object<session_object::Footer>,
    footer: &session_object::Footer,
) -> Vec<u8> {
    let region = seal_session_footer(data_key, footer).unwrap();
    samples::finish(ObjectKind::Session, object.bytes[..object.footer_at].to_vec(), &region, ()).bytes
}
