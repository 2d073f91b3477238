//! What was tried, and what came of it: the rule that tampered bytes give an error or the same content, and its count.

use std::fmt::{Debug, Display};

use super::reader::Read;

/// Cases of one object, by kind of tampering.
pub(super) struct Tally<T> {
    of: &'static str,
    whole: T,
    rows: Vec<Row>,
}

struct Row {
    kind: &'static str,
    cases: usize,
    identical: usize,
}

impl<T: PartialEq + Debug> Tally<T> {
    /// Counts what is done to an object that holds this.
    pub(super) fn new(of: &'static str, whole: T) -> Self {
        Self { of, whole, rows: Vec::new() }
    }

    /// One case. `what` says which, should it fail.
    pub(super) fn case(&mut self, kind: &'static str, what: impl Display, read: Read<T>) {
        if !self.rows.iter().any(|row| row.kind == kind) {
            self.rows.push(Row { kind, cases: 0, identical: 0 });
        }
        let row = self.rows.iter_mut().find(|row| row.kind == kind).unwrap();
        row.cases += 1;
        if let Ok(content) = read {
            assert_eq!(content, self.whole, "{}: {kind}, {what}: other content was read", self.of);
            row.identical += 1;
        }
    }

    /// Prints the table. All was found, but for what `unnoticed` lists: kinds, and how many of their cases changed only what
    /// no reader relies on.
    pub(super) fn finish(self, unnoticed: &[(&str, usize)]) {
        let mut table = format!("| {} | cases | error | same content |\n| --- | ---: | ---: | ---: |\n", self.of);
        for Row { kind, cases, identical } in &self.rows {
            table.push_str(&format!("| {kind} | {cases} | {} | {identical} |\n", cases - identical));
        }
        println!("{table}");
        for row in &self.rows {
            let expected = unnoticed.iter().find(|(kind, _)| *kind == row.kind).map_or(0, |(_, count)| *count);
            assert_eq!(row.identical, expected, "{}: {}: cases that were not found", self.of, row.kind);
        }
    }
}

/// Every flip of one bit.
pub(super) fn flips(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len() * 8).map(|bit| {
        let mut changed = bytes.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        (bit, changed)
    })
}
