//! Configuration: environment variables in, validated values out, all errors at once.
//!
//! A knob is defined once, with its unit and default; `--print-config` and the reference page come from the same
//! definition. One file per subsystem lies below this one.

pub mod ages;
pub mod kafka;
pub mod keys;
pub mod listen;
pub mod postgres;
pub mod s3;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Knob {
    /// The environment variable.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub doc: &'static str,
    /// The unit or form of its value.
    pub unit: &'static str,
    /// The value when the variable is absent; `None` when it must be given.
    pub default: Option<&'static str>,
    /// Whether its value must not be shown.
    pub secret: bool,
}

/// A knob with its value, for showing.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The knob.
    pub knob: Knob,
    /// The raw value; the default where none was given.
    pub value: Option<String>,
}

/// Reads knobs and collects what is wrong with them.
pub struct Env<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    settings: Vec<Setting>,
    errors: Vec<String>,
}

impl<'a> Env<'a> {
    /// Reads from this lookup; a process uses [`std::env::var`].
    pub fn new(lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { lookup, settings: Vec::new(), errors: Vec::new() }
    }

    /// The knobs read so far.
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// All that was wrong.
    pub fn errors(&self) -> &[String] {
        &self.errors
    }

    /// Notes what is wrong beyond a single value.
    pub fn error(&mut self, error: String) {
        self.errors.push(error);
    }

    fn raw(&mut self, knob: &Knob) -> Option<String> {
        let given = (self.lookup)(knob.name).filter(|value| !value.is_empty());
        let value = given.or_else(|| knob.default.map(str::to_owned));
        self.settings.push(Setting { knob: *knob, value: value.clone() });
        value
    }

    /// A value that `parse` accepts. When it does not, the error is kept and `fallback` stands in: a configuration
    /// with errors is never used.
    pub fn parsed<T>(&mut self, knob: &Knob, fallback: T, parse: impl FnOnce(&str) -> Option<T>) -> T {
        let Some(raw) = self.raw(knob) else {
            self.errors.push(format!("{} is not set; give {}: {}", knob.name, knob.unit, knob.doc));
            return fallback;
        };
        parse(&raw).unwrap_or_else(|| {
            // The value of a secret is not for the terminal.
            let shown = if knob.secret { "the value" } else { raw.as_str() };
            self.errors.push(format!("{}: {shown} is not {}", knob.name, knob.unit));
            fallback
        })
    }

    /// Text that is not empty.
    pub fn text(&mut self, knob: &Knob) -> String {
        self.parsed(knob, String::new(), |raw| Some(raw.to_owned()))
    }

    /// Text that may be absent.
    pub fn optional_text(&mut self, knob: &Knob) -> Option<String> {
        self.raw(knob)
    }

    /// A path.
    pub fn path(&mut self, knob: &Knob) -> PathBuf {
        self.parsed(knob, PathBuf::new(), |raw| Some(PathBuf::from(raw)))
    }

    /// A whole number of at least `min`.
    pub fn number(&mut self, knob: &Knob, min: u64) -> u64 {
        self.parsed(knob, min, |raw| raw.parse().ok().filter(|number| *number >= min))
    }

    /// Milliseconds, at least one.
    pub fn millis(&mut self, knob: &Knob) -> Duration {
        Duration::from_millis(self.number(knob, 1))
    }

    /// An address to listen on.
    pub fn address(&mut self, knob: &Knob) -> SocketAddr {
        self.parsed(knob, SocketAddr::from(([127, 0, 0, 1], 0)), |raw| raw.parse().ok())
    }
}

/// The settings as lines that a shell can source, each below its sentence.
pub fn print(settings: &[Setting]) -> String {
    let mut out = String::new();
    for Setting { knob, value } in settings {
        let value = match value {
            Some(_) if knob.secret => "<secret>",
            Some(value) => value,
            None => "",
        };
        let _ = writeln!(out, "# {} ({})\n{}={value}", knob.doc, knob.unit, knob.name);
    }
    out
}

/// One service's table of the reference page.
pub fn reference(service: &str, settings: &[Setting]) -> String {
    let mut out = format!("## {service}\n\n| variable | value | default | what it does |\n| --- | --- | --- | --- |\n");
    for Setting { knob, .. } in settings {
        let default = match knob.default {
            Some(default) => format!("`{default}`"),
            None => "".to_owned(),
        };
        let _ = writeln!(out, "| `{}` | {} | {default} | {} |", knob.name, knob.unit, knob.doc);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: Knob = Knob { name: "COUNT", doc: "how many", unit: "a number", default: Some("3"), secret: false };
    const KEY: Knob = Knob { name: "KEY", doc: "the key", unit: "a number", default: None, secret: true };

    #[test]
    fn all_errors_come_at_once_and_no_secret_is_shown() {
        let lookup = |name: &str| (name == "COUNT").then(|| "-1".to_owned());
        let mut env = Env::new(&lookup);
        env.number(&COUNT, 0);
        env.number(&KEY, 0);
        assert_eq!(env.errors().len(), 2);
        let lookup = |_: &str| Some("hunter2".to_owned());
        let mut env = Env::new(&lookup);
        env.number(&KEY, 0);
        assert!(!env.errors()[0].contains("hunter2"));
        assert!(!print(env.settings()).contains("hunter2"));
    }

    #[test]
    fn defaults_stand_in_for_what_is_absent_or_empty() {
        for given in [None, Some(String::new())] {
            let lookup = |_: &str| given.clone();
            let mut env = Env::new(&lookup);
            assert_eq!(env.number(&COUNT, 0), 3);
            assert!(env.errors().is_empty());
        }
    }
}
