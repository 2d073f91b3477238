//! What a million ended sessions cost an edge.

use engine::standing::Standing;
use schemas::control::Entry;
use schemas::limits::MIB;
use schemas::{SessionId, SessionKey, WorkspaceId};
use uuid::Uuid;

const SESSIONS: usize = 1_000_000;
const WORKSPACES: usize = 100;
const BYTES_MAX: usize = 64 * MIB;
const NOW_MS: u64 = 1_790_000_000_000;

/// Bytes of this process that are in memory. Linux tells.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux tells of a process's memory");
    let pages: usize = statm.split(' ').nth(1).expect("the second field").parse().expect("a number of pages");
    pages * 4096
}

/// Goal: a million ended sessions fit in 64 MB, and are gone when they do not count any more. Method: this test has a process of
/// its own, so that what grows is what it made.
#[test]
fn a_million_ended_sessions_fit_in_64_mb() {
    // Ids as they come: spread by hashing, in no order.
    let key = |number: usize| {
        let bits = (number as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        SessionKey {
            workspace: WorkspaceId(Uuid::from_u128((number % WORKSPACES) as u128)),
            session: SessionId(Uuid::new_v8(bits.to_be_bytes())),
        }
    };
    let now_s = (NOW_MS / 1000).cast_signed();
    let before = resident();
    let mut standing = Standing::default();
    for number in 0..SESSIONS {
        let entry =
            if number % 2 == 0 { Entry::withdrawal(key(number), NOW_MS) } else { Entry::deletion(key(number), NOW_MS) };
        standing.apply(entry, now_s);
    }
    let bytes = resident() - before;
    println!("{SESSIONS} ended sessions: {:.1} MiB", bytes as f64 / MIB as f64);
    assert_eq!(standing.sessions(), SESSIONS);
    assert!(bytes > SESSIONS * 16, "it cannot be less than the ids: {bytes}");
    assert!(bytes <= BYTES_MAX, "{bytes} bytes");
    standing.sweep(i64::MAX, usize::MAX);
    assert_eq!(standing.sessions(), 0);
}
