//! What becomes of CSS: its URLs, and, below masked elements, its strings and comments. Read as in CSS Syntax Level 3.

use memchr::{memchr3, memmem};

use super::Names;
use super::edits::{Edits, hex};
use super::urls::{self, Kind};

/// Functions that take a URL as a string.
const URL_FUNCTIONS: &[&[u8]] = &[b"url", b"src", b"image-set", b"image", b"url-prefix", b"domain", b"document"];

/// Finds what goes in a style sheet or a style attribute.
pub(super) fn find(bytes: &[u8], strict: bool, names: &Names, edits: &mut Edits) {
    let finder = Finder { bytes, strict, names };
    let mut functions: Functions = Functions::default();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'/' if bytes[at..].starts_with(b"/*") => at = finder.comment(at + 2, edits),
            b'"' | b'\'' => {
                let is_import = is_after_import(&bytes[..at]);
                at = finder.string(at, functions.open(), is_import, edits);
            }
            b'(' => {
                let name = name_before(bytes, at);
                at += 1;
                let content = at + bytes[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
                let is_url = name.eq_ignore_ascii_case(b"url")
                    || name.eq_ignore_ascii_case(b"url-prefix")
                    || name.eq_ignore_ascii_case(b"domain");
                if is_url && !matches!(bytes.get(content), Some(b'"' | b'\'')) {
                    at = finder.bare_url(content, edits);
                } else {
                    functions.push(Function::of(name));
                    at = content;
                }
            }
            b')' => {
                functions.pop();
                at += 1;
            }
            b'\\' => at += 2,
            _ => at += memchr_next(&bytes[at..]),
        }
    }
}

/// How far the next byte is that means something, at least one.
fn memchr_next(bytes: &[u8]) -> usize {
    let meaning = |byte: &u8| matches!(byte, b'/' | b'"' | b'\'' | b'(' | b')' | b'\\');
    1 + bytes[1..].iter().position(meaning).unwrap_or(bytes.len() - 1)
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Function {
    #[default]
    Other,
    Url,
    Format,
}

impl Function {
    fn of(name: &[u8]) -> Self {
        let name = name.strip_prefix(b"-webkit-").unwrap_or(name);
        if URL_FUNCTIONS.iter().any(|function| name.eq_ignore_ascii_case(function)) {
            Self::Url
        } else if name.eq_ignore_ascii_case(b"format")
            || name.eq_ignore_ascii_case(b"tech")
            || name.eq_ignore_ascii_case(b"type")
        {
            Self::Format
        } else {
            Self::Other
        }
    }
}

/// The functions that are open: the innermost ones, for deeper nesting is no CSS that says anything.
#[derive(Default)]
struct Functions {
    open: [Function; 8],
    depth: usize,
}

impl Functions {
    fn push(&mut self, function: Function) {
        if let Some(place) = self.open.get_mut(self.depth) {
            *place = function;
        }
        self.depth += 1;
    }

    fn pop(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    fn open(&self) -> Function {
        self.depth.checked_sub(1).and_then(|at| self.open.get(at)).copied().unwrap_or_default()
    }
}

struct Finder<'a> {
    bytes: &'a [u8],
    strict: bool,
    names: &'a Names,
}

impl Finder<'_> {
    fn comment(&self, start: usize, edits: &mut Edits) -> usize {
        let bytes = self.bytes;
        let end = memmem::find(&bytes[start..], b"*/").map(|length| start + length);
        if self.strict {
            edits.mask_filled(bytes, start, end.unwrap_or(bytes.len()));
        }
        end.map_or(bytes.len(), |end| end + 2)
    }

    /// A string that opens at `at`; it ends with its quote, or, badly, with its line.
    fn string(&self, at: usize, function: Function, is_import: bool, edits: &mut Edits) -> usize {
        let (bytes, quote) = (self.bytes, self.bytes[at]);
        let start = at + 1;
        let mut end = start;
        while let Some(length) = bytes.get(end..).and_then(|rest| memchr3(quote, b'\\', b'\n', rest)) {
            end += length;
            if bytes[end] != b'\\' {
                break;
            }
            end += 2;
        }
        let closed = end < bytes.len() && matches!(bytes[end], b'"' | b'\'' | b'\n');
        let end = if closed { end } else { bytes.len() };
        let content = &bytes[start..end];
        if function == Function::Url || is_import {
            self.url(start, end, edits);
        } else if !self.strict {
            if urls::looks_like_url(content) {
                self.url(start, end, edits);
            }
        } else if function != Function::Format || !is_format(content) {
            edits.mask_filled(bytes, start, end);
        }
        (end + 1).min(bytes.len())
    }

    fn bare_url(&self, start: usize, edits: &mut Edits) -> usize {
        let bytes = self.bytes;
        let mut end = start;
        while end < bytes.len() && bytes[end] != b')' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        let end = end.min(bytes.len());
        let length = bytes[start..end].trim_ascii_end().len();
        self.url(start, start + length, edits);
        (end + 1).min(bytes.len())
    }

    /// A URL in a sheet. When it has escapes, it is looked at without them, and what comes of it has none.
    fn url(&self, start: usize, end: usize, edits: &mut Edits) {
        let kind = if self.strict { Kind::Masked } else { Kind::Link };
        let raw = &self.bytes[start..end];
        if memchr::memchr(b'\\', raw).is_none() {
            return edits.within(start, |edits| urls::find(raw, kind, self.names, edits));
        }
        let plain = unescape(raw);
        let mut found = Edits::default();
        urls::find(plain.as_bytes(), kind, self.names, &mut found);
        if let Some(url) = found.apply(&plain) {
            edits.put(self.bytes, start, end, escape(&url));
        }
    }
}

/// The name of the function whose parenthesis this is.
fn name_before(bytes: &[u8], at: usize) -> &[u8] {
    let member = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'-';
    &bytes[at - bytes[..at].iter().rev().take(32).take_while(member).count()..at]
}

fn is_after_import(before: &[u8]) -> bool {
    let spaces = before.iter().rev().take(64).take_while(|byte| byte.is_ascii_whitespace()).count();
    let before = &before[..before.len() - spaces];
    let word = &before[before.len().saturating_sub(7)..];
    word.eq_ignore_ascii_case(b"@import")
}

/// Names of font formats and image types are no content.
fn is_format(content: &[u8]) -> bool {
    content.len() <= 24 && content.iter().all(|byte| byte.is_ascii_lowercase() || b"-/+2".contains(byte))
}

fn unescape(raw: &[u8]) -> String {
    let mut plain = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        if raw[at] != b'\\' {
            plain.push(raw[at]);
            at += 1;
            continue;
        }
        at += 1;
        let digits = raw[at.min(raw.len())..].iter().take(6).map_while(hex);
        let (mut code, mut length) = (0_u32, 0);
        for digit in digits {
            (code, length) = (code * 16 + u32::from(digit), length + 1);
        }
        at += length;
        match raw.get(at) {
            _ if length > 0 => {
                let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                plain.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                at += usize::from(raw.get(at).is_some_and(u8::is_ascii_whitespace));
            }
            Some(b'\n') => at += 1,
            Some(byte) => {
                plain.push(*byte);
                at += 1;
            }
            None => {}
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

fn escape(url: &str) -> String {
    let mut escaped = String::with_capacity(url.len());
    for character in url.chars() {
        match character {
            '"' | '\'' | '(' | ')' | '\\' | ' ' => escaped.extend(['\\', character]),
            '\0'..='\x1f' => escaped.push_str("%20"),
            _ => escaped.push(character),
        }
    }
    escaped
}
