//! What operators read: tables, times, progress, errors.

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How often something is said of work that takes long.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// Writes to standard output. Whoever does not want the rest has closed it: that is no error.
pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Rows with their cells below each other, each line behind `indent`.
pub(crate) fn table(indent: &str, rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = indent.to_owned();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A row of a [`table`].
pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// One thing or several, with their number.
pub(crate) fn counted(number: u64, one: &str, several: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {several}") }
}

/// A moment, to the second.
pub(crate) fn moment(at: OffsetDateTime) -> String {
    let second = at.to_offset(time::UtcOffset::UTC).replace_nanosecond(0).unwrap_or(at);
    // A year beyond 9999 has no such text.
    second.format(&Rfc3339).unwrap_or_else(|_| second.unix_timestamp().to_string())
}

/// Milliseconds since the epoch as a moment; as a number where a client's clock was out of its mind.
pub(crate) fn moment_ms(ms: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
    at.ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| ms.to_string())
}

/// Says how far something is, to people and not too often.
pub(crate) struct Progress {
    told_at: Instant,
    is_wanted: bool,
}

impl Progress {
    pub(crate) fn begin() -> Self {
        Self { told_at: Instant::now(), is_wanted: std::io::stderr().is_terminal() }
    }

    pub(crate) fn tell(&mut self, text: impl FnOnce() -> String) {
        if self.is_wanted && self.told_at.elapsed() >= PROGRESS_INTERVAL {
            eprintln!("clairvio: {}", text());
            self.told_at = Instant::now();
        }
    }
}

/// An error with its causes on one line, and all their hints below it.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let (mut causes, mut hints) = (Vec::new(), String::new());
    for cause in error.chain() {
        let text = cause.to_string();
        let mut parts = text.split("\n  hint: ");
        causes.extend(parts.next().map(str::to_owned));
        parts.for_each(|hint| hints.push_str(&format!("\n  hint: {hint}")));
    }
    causes.join(": ") + &hints
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn tables_stand_in_columns_without_trailing_spaces() {
        let rows = [row(["a", "b"]), row(["long", ""]), row(["é", "c"])];
        assert_eq!(table("  ", &rows), "  a     b\n  long\n  é     c\n");
    }

    #[test]
    fn hints_come_behind_all_causes() {
        let error = Err::<(), _>(anyhow::anyhow!("it is gone\n  hint: make one"));
        let error = error.context("read file\n  hint: look there").unwrap_err();
        assert_eq!(explain(&error), "read file: it is gone\n  hint: look there\n  hint: make one");
    }

    #[test]
    fn moments_are_in_utc_and_to_the_second() {
        let at = OffsetDateTime::UNIX_EPOCH + std::time::Duration::from_millis(1_500);
        assert_eq!(moment(at), "1970-01-01T00:00:01Z");
        assert_eq!(moment_ms(1_500), "1970-01-01T00:00:01.5Z");
        assert_eq!(moment_ms(i64::MAX), i64::MAX.to_string());
    }
}
