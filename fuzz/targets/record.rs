//! Records of the log: a header that decodes is one that could have been written.
#![no_main]

use fuzz::{consent, facts, plant, session};
use libfuzzer_sys::fuzz_target;
use schemas::StreamSeq;
use schemas::record::{Header, Masking, decode, encode};

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    let place = StreamSeq::new(77, 12).expect("a stream of 31 bits");
    [
        Header::Acceptance { key: session(), consent: consent() },
        Header::Batch {
            key: session(),
            consent: consent(),
            place,
            end: true,
            masking: Some(Masking::default()),
            facts: facts(),
        },
        Header::Declines { workspace: session().workspace, hour_ms: 1_790_000_000_000, count: 3 },
    ]
    .into_iter()
    .map(|header| [encode(&header).as_slice(), b"payload"].concat())
}

/// Whether nothing stands in the facts of what masking appended to them: then those of earlier releases say the same.
fn is_of_second_release(header: &Header) -> bool {
    let Header::Batch { facts, .. } = header else { return false };
    (facts.stored_hash, facts.masked, facts.dropped) == (None, 0, 0)
}

fuzz_target!(init: plant(seeds()), |data: &[u8]| {
    let Ok((header, payload_at)) = decode(data) else { return };
    let payload = &data[payload_at..];
    let written = [encode(&header).as_slice(), payload].concat();
    // A number may come with more bytes than it needs, and facts may end where the first or the second release ended them; nothing
    // else has two forms.
    let is_other_form = written.len() < data.len() || is_of_second_release(&header);
    assert!(written == data || is_other_form, "other bytes say the same");
    let (again, again_at) = decode(&written).expect("what was written decodes");
    assert_eq!((&again, &written[again_at..]), (&header, payload));
    assert!(decode(&data[..payload_at - 1]).is_err(), "a header that was cut short decodes");
});
