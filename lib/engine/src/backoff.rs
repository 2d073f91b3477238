//! Waits after failures.

/// The wait after so many failures, in milliseconds: it doubles from the least to the longest.
pub(crate) fn wait_ms(least_ms: u64, longest_ms: u64, failures: u32) -> u64 {
    least_ms.saturating_mul(1 << failures.min(16)).min(longest_ms)
}

/// SplitMix64's finalizer (Steele, Lea, Flood, 2014) over what tells one wait from another.
pub(crate) fn spread(seed: u64, what: u32, failures: u32) -> u64 {
    let mut z = seed ^ (u64::from(what) << 32) ^ u64::from(failures);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
