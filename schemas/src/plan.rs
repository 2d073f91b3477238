//! Plans: their retention windows, and what edges hold a workspace to.

use serde::{Deserialize, Serialize};

/// What a workspace pays for. The retention windows are promises (P7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plan {
    /// 7 days.
    Free,
    /// 30 days.
    Starter,
    /// 90 days.
    Growth,
    /// 365 days.
    Scale,
}

impl Plan {
    /// Every plan.
    pub const ALL: [Self; 4] = [Self::Free, Self::Starter, Self::Growth, Self::Scale];

    /// Days that a session is kept.
    pub fn retention_days(self) -> u32 {
        match self {
            Self::Free => 7,
            Self::Starter => 30,
            Self::Growth => 90,
            Self::Scale => 365,
        }
    }

    /// What edges hold a workspace of this plan to.
    pub fn limits(self) -> Limits {
        let of = |session: [u64; 3], workspace: [u64; 3]| Limits {
            session_events_per_s: session[0],
            session_bytes_per_s: session[1],
            session_s: session[2],
            events_per_s: workspace[0],
            bytes_per_s: workspace[1],
            sessions_per_day: workspace[2],
        };
        const MB: u64 = 1_000_000;
        match self {
            Self::Free => of([500, MB, 3600], [1_000, 2 * MB, 100]),
            Self::Starter => of([1_000, 2 * MB, 2 * 3600], [5_000, 10 * MB, 1_000]),
            Self::Growth => of([2_000, 4 * MB, 4 * 3600], [50_000, 100 * MB, 20_000]),
            Self::Scale => of([2_000, 4 * MB, 8 * 3600], [500_000, 1_000 * MB, 1_000_000]),
        }
    }

    /// The word in the index and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Starter => "starter",
            Self::Growth => "growth",
            Self::Scale => "scale",
        }
    }

    /// The plan of this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plan| plan.as_str() == word)
    }
}

/// What edges hold a workspace and its sessions to. Bytes are those of events after decoding. Rates are means: what was saved
/// up in some seconds of silence may be spent at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Events of one session, a second.
    pub session_events_per_s: u64,
    /// Bytes of one session, a second.
    pub session_bytes_per_s: u64,
    /// How long a session may last from its consent on, seconds.
    pub session_s: u64,
    /// Events of the workspace, a second, over all edges.
    pub events_per_s: u64,
    /// Bytes of the workspace, a second, over all edges.
    pub bytes_per_s: u64,
    /// Sessions of the workspace that begin in one day, UTC.
    pub sessions_per_day: u64,
}

impl Limits {
    /// As they stand in a token: the fields in their order.
    pub fn to_array(self) -> [u64; 6] {
        let Self { session_events_per_s, session_bytes_per_s, session_s, events_per_s, bytes_per_s, sessions_per_day } =
            self;
        [session_events_per_s, session_bytes_per_s, session_s, events_per_s, bytes_per_s, sessions_per_day]
    }

    /// The limits that stand in a token so.
    pub fn from_array(fields: [u64; 6]) -> Self {
        let [session_events_per_s, session_bytes_per_s, session_s, events_per_s, bytes_per_s, sessions_per_day] =
            fields;
        Self { session_events_per_s, session_bytes_per_s, session_s, events_per_s, bytes_per_s, sessions_per_day }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_plan_allows_no_less_of_anything() {
        for pair in Plan::ALL.windows(2) {
            let [less, more] = [pair[0].limits().to_array(), pair[1].limits().to_array()];
            assert!(less.iter().zip(more).all(|(less, more)| *less <= more), "{pair:?}");
        }
        for plan in Plan::ALL {
            assert_eq!(Limits::from_array(plan.limits().to_array()), plan.limits());
            assert!(plan.limits().session_s <= crate::limits::SESSION_S_MAX, "{plan:?}");
        }
    }

    #[test]
    fn p07_the_windows_are_the_promised_ones() {
        assert_eq!(Plan::ALL.map(Plan::retention_days), [7, 30, 90, 365]);
        for plan in Plan::ALL {
            assert_eq!(Plan::parse(plan.as_str()), Some(plan));
            assert_eq!(serde_json::to_value(plan).expect("a word"), plan.as_str());
        }
    }
}
