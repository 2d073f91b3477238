//! What batchers counted, from their `/metrics`.

use anyhow::Context;
use serde::Serialize;

use super::fill::Filled;

/// Sums over all batchers of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(crate) struct Counts {
    pub(crate) puts: u64,
    pub(crate) objects: u64,
    pub(crate) object_bytes: u64,
    pub(crate) raw_bytes: u64,
    pub(crate) flushes: u64,
    /// Rows of the index, the same for each flush.
    pub(crate) rows_flush: u64,
    /// By session, once in its life.
    pub(crate) rows_first_sight: u64,
    /// By session, at most once in an interval.
    pub(crate) rows_activity: u64,
    /// Records that were taken in, without those that were given back to the log.
    pub(crate) records: u64,
    pub(crate) records_quarantined: u64,
    pub(crate) records_dropped_deleted: u64,
    pub(crate) records_copies: u64,
    pub(crate) records_buffered: u64,
    /// Sum of the absolute imbalances (B4).
    pub(crate) imbalance: u64,
    pub(crate) gaps: u64,
    pub(crate) failures: u64,
}

impl Counts {
    pub(crate) fn read(texts: &[String]) -> anyhow::Result<Self> {
        let mut samples = Vec::new();
        for text in texts {
            samples.extend(parse(text)?);
        }
        let sum = |name: &str, what: Option<&str>| {
            let matching =
                samples.iter().filter(|sample| sample.name == name && (what.is_none() || sample.what == what));
            matching.map(|sample| sample.value).sum::<f64>() as u64
        };
        let records = |what| sum("batcher_records_total", Some(what));
        let rows = |what| sum("batcher_index_rows_total", Some(what));
        let imbalances = samples.iter().filter(|sample| sample.name == "batcher_conservation_imbalance_records");
        Ok(Self {
            puts: sum("batcher_puts_total", None),
            objects: sum("batcher_flush_size_bytes_count", None),
            object_bytes: sum("batcher_object_bytes_total", None),
            raw_bytes: sum("batcher_raw_bytes_total", None),
            flushes: sum("batcher_flushes_total", None),
            rows_flush: rows("flush"),
            rows_first_sight: rows("first_sight"),
            rows_activity: rows("activity"),
            records: records("in").saturating_sub(records("returned")),
            records_quarantined: records("quarantined"),
            records_dropped_deleted: records("dropped_deleted"),
            records_copies: records("dropped_copies"),
            records_buffered: records("buffered"),
            imbalance: imbalances.map(|sample| sample.value.abs()).sum::<f64>() as u64,
            gaps: sum("batcher_gap_offsets_total", None),
            failures: sum("batcher_failures_total", None),
        })
    }

    /// What is wrong when all of the log is in the index; nothing is what ought to be.
    pub(crate) fn faults(&self, filled: &Filled, log_records: u64) -> Vec<String> {
        let mut faults = Vec::new();
        let mut demand = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let (raw, records) = (self.raw_bytes, self.records);
        let acknowledged = filled.records();
        demand(raw == filled.raw_bytes, format!("{raw} bytes were stored, {} acknowledged", filled.raw_bytes));
        demand(records == log_records, format!("{records} records were taken in, the log holds {log_records}"));
        // A repetition after a lost answer is one more record, which the batcher notes as a copy.
        let surplus = 0..=filled.repetitions;
        demand(
            log_records.checked_sub(acknowledged).is_some_and(|more| surplus.contains(&more)),
            format!("the log holds {log_records} records, {acknowledged} were acknowledged"),
        );
        for (count, what) in [
            (self.imbalance, "records are unaccounted for (B4)"),
            (self.records_quarantined, "records are in quarantine"),
            (self.records_dropped_deleted, "records were dropped as deleted"),
            (self.records_buffered, "records are still buffered"),
            (self.gaps, "offsets were gone from the log"),
        ] {
            demand(count == 0, format!("{count} {what}"));
        }
        faults
    }
}

/// A sample of the text format, as far as it is looked at.
struct Sample<'a> {
    name: &'a str,
    /// The label of that name.
    what: Option<&'a str>,
    value: f64,
}

fn parse(text: &str) -> anyhow::Result<Vec<Sample<'_>>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (metric, value) = line.rsplit_once(' ').with_context(|| format!("read metric: {line}"))?;
            let value = value.parse().with_context(|| format!("read value of metric: {line}"))?;
            let (name, labels) = metric.split_once('{').unwrap_or((metric, ""));
            let what = labels.split_once("what=\"").and_then(|(_, rest)| rest.split_once('"')).map(|(what, _)| what);
            Ok(Sample { name, what, value })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "\
# HELP batcher_puts_total Requests to S3 that wrote.
# TYPE batcher_puts_total counter
batcher_puts_total 3

batcher_raw_bytes_total 1000
batcher_flush_size_bytes_bucket{le=\"1024\"} 1
batcher_flush_size_bytes_count 2
batcher_index_rows_total 0
batcher_index_rows_total{what=\"flush\"} 8
batcher_index_rows_total{what=\"first_sight\"} 5
batcher_records_total{what=\"in\"} 12
batcher_records_total{what=\"returned\"} 2
batcher_conservation_imbalance_records -1
";

    #[test]
    fn counts_of_all_batchers_are_summed_by_name_and_label() {
        let other = "batcher_records_total{what=\"in\"} 5\nbatcher_conservation_imbalance_records 1\n";
        let counts = Counts::read(&[ONE.to_owned(), other.to_owned()]).expect("metrics");
        let expected = Counts {
            puts: 3,
            objects: 2,
            raw_bytes: 1000,
            rows_flush: 8,
            rows_first_sight: 5,
            records: 15,
            // One too few and one too many are two faults, not none.
            imbalance: 2,
            ..Counts::default()
        };
        assert_eq!(counts, expected);
        assert!(Counts::read(&["batcher_puts_total x".to_owned()]).is_err());
        assert!(Counts::read(&["batcher_puts_total".to_owned()]).is_err());
    }

    #[test]
    fn whatever_was_lost_or_set_aside_is_a_fault() {
        let filled = Filled { sessions: 2, batches: 10, raw_bytes: 1000, repetitions: 1, ..Filled::default() };
        let whole = Counts { raw_bytes: 1000, records: 12, ..Counts::default() };
        assert_eq!(whole.faults(&filled, 12), Vec::<String>::new());
        // The answer to one attempt was lost: one record more, noted as a copy.
        assert_eq!(Counts { records: 13, records_copies: 1, ..whole }.faults(&filled, 13), Vec::<String>::new());
        let changes: [fn(&mut Counts); 8] = [
            |counts| counts.raw_bytes -= 1,
            |counts| counts.raw_bytes += 1,
            |counts| counts.records -= 1,
            |counts| counts.imbalance = 1,
            |counts| counts.records_quarantined = 1,
            |counts| counts.records_dropped_deleted = 1,
            |counts| counts.records_buffered = 1,
            |counts| counts.gaps = 1,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut counts = whole;
            change(&mut counts);
            assert_eq!(counts.faults(&filled, 12).len(), 1, "change {number}");
        }
        for log_records in [11, 14] {
            assert_eq!(Counts { records: log_records, ..whole }.faults(&filled, log_records).len(), 1);
        }
    }
}
