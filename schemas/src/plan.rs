//! Plans and their retention windows.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p07_the_windows_are_the_promised_ones() {
        assert_eq!(Plan::ALL.map(Plan::retention_days), [7, 30, 90, 365]);
        for plan in Plan::ALL {
            assert_eq!(Plan::parse(plan.as_str()), Some(plan));
            assert_eq!(serde_json::to_value(plan).expect("a word"), plan.as_str());
        }
    }
}
