//! The median of repeated measurements, and how far they lie apart.

use std::fmt;

use serde::Serialize;

/// What rounds of the same measurement gave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// None when nothing was measured. Of an even number of rounds the higher of the two in the middle.
    pub(crate) fn of(rounds: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut rounds: Vec<f64> = rounds.into_iter().collect();
        rounds.sort_by(f64::total_cmp);
        Some(Self { median: *rounds.get(rounds.len() / 2)?, min: *rounds.first()?, max: *rounds.last()? })
    }
}

impl fmt::Display for Spread {
    /// `median (min to max)`, with the digits that `{:.n}` asks for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(1);
        let text = format!("{:.digits$} ({:.digits$} to {:.digits$})", self.median, self.min, self.max);
        // As `pad` would, whose precision cuts.
        write!(f, "{text:>width$}", width = f.width().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_in_order_of_size_whatever_the_order_of_rounds() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([7.0]), Some(Spread { median: 7.0, min: 7.0, max: 7.0 }));
        assert_eq!(Spread::of([10.0, 9.0, 100.0]), Some(Spread { median: 10.0, min: 9.0, max: 100.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 2.0]), Some(Spread { median: 3.0, min: 1.0, max: 4.0 }));
        assert_eq!(format!("{:>18.1}", Spread { median: 2.0, min: 1.0, max: 3.04 }), "  2.0 (1.0 to 3.0)");
    }
}
