//! Values beside the names of secrets, in whatever text: `password=…`, `token: …`, `"secret": …`, `<password>…<`.

use super::edits::{Edits, Run};
use super::{MASK, Names};

/// A name is looked for this far back from its value.
const NAME_BYTES_MAX: usize = 64;

/// The start of a tag is looked for this far back from its end.
const TAG_BYTES_MAX: usize = 1024;

/// Nested values are looked through this many times the text's length, before all that follows is masked.
const NESTED_WORK_FACTOR: usize = 8;

/// Backslashes before a quote are counted up to here.
const BACKSLASHES_MAX: usize = 7;

/// Words that say something of a secret, and are none.
const SAYINGS: &[&str] = &[
    "available",
    "changed",
    "confirmed",
    "correct",
    "deleted",
    "disabled",
    "empty",
    "enabled",
    "error",
    "expired",
    "failed",
    "false",
    "hidden",
    "include",
    "incorrect",
    "invalid",
    "masked",
    "missing",
    "needed",
    "no",
    "ok",
    "omit",
    "optional",
    "redacted",
    "refreshed",
    "removed",
    "required",
    "reset",
    "revoked",
    "saved",
    "set",
    "short",
    "strong",
    "true",
    "unset",
    "updated",
    "valid",
    "verified",
    "weak",
    "wrong",
    "yes",
];

/// Schemes of HTTP authentication (IANA's registry), and what clients use beside them: the credential follows after a space.
const SCHEMES: &[&str] = &[
    "apikey",
    "aws4-hmac-sha256",
    "basic",
    "bearer",
    "digest",
    "dpop",
    "gnap",
    "hawk",
    "hoba",
    "key",
    "mutual",
    "negotiate",
    "ntlm",
    "oauth",
    "privatetoken",
    "scram-sha-1",
    "scram-sha-256",
    "signature",
    "token",
    "vapid",
];

/// Quotes as they are written in attributes of markup.
const ENTITIES: &[&[u8]] = &[b"&quot;", b"&#34;", b"&#x22;", b"&apos;", b"&#39;", b"&#x27;"];

/// A secret in groups (`DE89 3704 0044`, `4111 XXXX`) has so many, and they are so long.
const GROUPS_MAX: usize = 12;
const GROUP_BYTES_MAX: usize = 32;

/// Whether what could be prose gets the benefit of the doubt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Care {
    /// Sentences about secrets stay.
    Prose,
    /// What follows the name of a secret is one.
    Strict,
}

/// Finds the values of secret names.
pub(super) fn find(bytes: &[u8], names: &Names, care: Care, edits: &mut Edits) {
    let mut finder = Finder {
        bytes,
        care,
        value: Run::default(),
        value_trimmed: 0,
        line: Run::default(),
        plain: Run::default(),
        encoded: Run::default(),
        section_end: None,
        work: bytes.len().saturating_mul(NESTED_WORK_FACTOR) + 4096,
    };
    for at in memchr::memchr3_iter(b'=', b':', b'>', bytes) {
        let value = match bytes[at] {
            b'>' => finder.element(at, names),
            _ => finder.pair(at, names),
        };
        if let Some((start, end)) = value {
            edits.mask_filled(bytes, start, end);
            if end == bytes.len() && finder.work == 0 {
                return;
            }
        }
    }
    for at in memchr::memchr_iter(b'%', bytes) {
        if let Some((start, end)) = finder.encoded_pair(at, names) {
            edits.mask_filled(bytes, start, end);
        }
    }
}

struct Finder<'a> {
    bytes: &'a [u8],
    care: Care,
    value: Run,
    value_trimmed: usize,
    line: Run,
    plain: Run,
    encoded: Run,
    /// Where the next `]]>` stands that was found last.
    section_end: Option<usize>,
    /// How many bytes of nested values may still be looked through.
    work: usize,
}

struct Name<'a> {
    bytes: &'a [u8],
    quoted: bool,
}

impl<'a> Finder<'a> {
    /// The secret after a `=` or `:`.
    fn pair(&mut self, at: usize, names: &Names) -> Option<(usize, usize)> {
        let bytes = self.bytes;
        let name = self.name_before(at, names)?;
        let mut value = at + 1;
        while value < bytes.len().min(at + 3) && matches!(bytes[value], b'=' | b'>' | b':') {
            value += 1;
        }
        if bytes[at..value] == *b"::" {
            return None;
        }
        let operator_end = value;
        value += bytes[value..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let spaced = value > operator_end;
        let backslashes = bytes[value..].iter().take(BACKSLASHES_MAX).take_while(|byte| **byte == b'\\').count();
        match bytes.get(value + backslashes)? {
            b'"' | b'\'' | b'`' => return Some(self.quoted(value + backslashes, backslashes)),
            b'{' | b'[' if backslashes == 0 => return self.nested(value),
            b'&' if backslashes == 0 => {
                let quote = ENTITIES.iter().find(|quote| bytes[value..].starts_with(quote))?;
                return Some(self.quoted_by_entity(value + quote.len(), quote));
            }
            _ => {}
        }
        let (end, trimmed) = self.unquoted(value);
        let content = &bytes[value..trimmed.max(value)];
        if content.is_empty() || content == MASK.as_bytes() || is_nothing(content) {
            return None;
        }
        let in_prose = self.care == Care::Prose && bytes[at] == b':' && !name.quoted && is_of_prose(name.bytes);
        if in_prose && names.is_weak(name.bytes) {
            return None;
        }
        let in_prose = in_prose && spaced;
        let is_cookie = super::names::is_listed(name.bytes, &["cookie", "setcookie"]);
        let is_scheme = SCHEMES.iter().any(|scheme| content.eq_ignore_ascii_case(scheme.as_bytes()));
        if is_cookie || is_scheme && bytes.get(end) == Some(&b' ') {
            let line_end = self.line.end(bytes, value, is_of_line);
            let line = &bytes[value..line_end];
            let has_more =
                if is_cookie { memchr::memchr(b'=', content).is_some() } else { line.len() > content.len() + 1 };
            if has_more {
                return Some((value, value + line.trim_ascii_end().len()));
            }
        }
        if is_scheme && super::names::is_listed(name.bytes, &["authorization", "proxyauthorization"]) {
            return None;
        }
        if in_prose && is_prose(content, &bytes[end..]) {
            return None;
        }
        let line_end = self.plain.end(bytes, value, is_plain_line);
        let is_whole_line = matches!(bytes.get(line_end), None | Some(b'\n' | b'\r'));
        if self.care == Care::Strict && line_end > trimmed && is_whole_line {
            return Some((value, value + bytes[value..line_end].trim_ascii_end().len()));
        }
        Some((value, if trimmed == end { with_groups(bytes, value, end) } else { trimmed }))
    }

    /// The secret after a `=` or `:` that is percent-encoded, like all around it.
    fn encoded_pair(&mut self, at: usize, names: &Names) -> Option<(usize, usize)> {
        let bytes = self.bytes;
        if !matches!(bytes.get(at + 1..at + 3)?, b"3D" | b"3d" | b"3A" | b"3a") {
            return None;
        }
        if !names.has_parameter(encoded_name(&bytes[at.saturating_sub(NAME_BYTES_MAX)..at])) {
            return None;
        }
        let quoted = bytes[at + 3..].starts_with(b"%22");
        let start = at + if quoted { 6 } else { 3 };
        let end = self.encoded.end_by(start, |start| {
            let rest = &bytes[start..];
            let ends = |(offset, byte): (usize, &u8)| match byte {
                b'%' => matches!(
                    rest.get(offset + 1..offset + 3),
                    Some(b"26" | b"22" | b"23" | b"0A" | b"0a" | b"0D" | b"0d")
                ),
                b'"' | b'\'' | b'`' | b'<' | b'>' | b'&' | b'#' => true,
                byte => byte.is_ascii_whitespace(),
            };
            start + rest.iter().enumerate().position(ends).unwrap_or(rest.len())
        });
        Some((start, end))
    }

    /// The content of a string whose quotes are written as in markup.
    fn quoted_by_entity(&self, start: usize, quote: &[u8]) -> (usize, usize) {
        let bytes = self.bytes;
        let mut ends = memchr::memmem::find_iter(&bytes[start..], quote);
        let end = ends.find(|end| bytes[start + end - 1] != b'\\');
        (start, end.map_or(bytes.len(), |end| start + end))
    }

    /// The name that ends before `at`, if it is the name of a secret.
    fn name_before(&self, at: usize, names: &Names) -> Option<Name<'a>> {
        let bytes = self.bytes;
        let mut end = at - bytes[..at].iter().rev().take(3).take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let quote = match bytes[..end].last()? {
            b'"' | b'\'' | b'`' => 1,
            b';' => ENTITIES.iter().find(|quote| bytes[..end].ends_with(quote))?.len(),
            _ => 0,
        };
        let quoted = quote > 0;
        if quoted {
            end -= quote;
            end -= bytes[..end].iter().rev().take(BACKSLASHES_MAX).take_while(|byte| **byte == b'\\').count();
        }
        let start_of = |end: usize| {
            end - bytes[..end].iter().rev().take(NAME_BYTES_MAX).take_while(|byte| is_name(**byte)).count()
        };
        let start = start_of(end);
        let name = &bytes[start..end];
        if name.is_empty() {
            return None;
        }
        let is_parameter = start > 0 && matches!(bytes[start - 1], b'?' | b'&');
        if names.has(name) || (is_parameter || memchr::memchr(b'%', name).is_some()) && names.has_parameter(name) {
            return Some(Name { bytes: name, quoted });
        }
        let before = start.checked_sub(1).filter(|before| bytes[*before] == b' ')?;
        let phrase = &bytes[start_of(before)..end];
        names.has_phrase(phrase).then_some(Name { bytes: phrase, quoted })
    }

    /// The content of a string that opens at `at`, behind so many backslashes: to its end, the end of the line (of the text,
    /// for a template), or of the text.
    fn quoted(&self, at: usize, backslashes: usize) -> (usize, usize) {
        let (bytes, quote) = (self.bytes, self.bytes[at]);
        let mut before = 0;
        for (offset, &byte) in bytes[at + 1..].iter().enumerate() {
            match byte {
                b'\\' => before = BACKSLASHES_MAX.min(before + 1),
                b'\n' | b'\r' if quote != b'`' => return (at + 1, at + 1 + offset),
                _ if byte == quote && before <= backslashes => return (at + 1, at + 1 + offset - before),
                _ => before = 0,
            }
        }
        (at + 1, bytes.len())
    }

    /// The object or array that begins at `start`, with its brackets. What does not end goes to the end of the text.
    fn nested(&mut self, start: usize) -> Option<(usize, usize)> {
        let bytes = self.bytes;
        let first = bytes[start + 1..].iter().find(|byte| !byte.is_ascii_whitespace());
        if matches!(first, Some(b'}' | b']')) {
            return None;
        }
        let mut depth = 0_usize;
        let mut quote = None;
        let mut escaped = false;
        for (offset, &byte) in bytes[start..].iter().enumerate().take(self.work) {
            match (quote, byte) {
                (Some(_), _) if escaped => escaped = false,
                (Some(_), b'\\') => escaped = true,
                (Some(open), _) if open == byte => quote = None,
                (Some(_), _) => {}
                (None, b'"' | b'\'') => quote = Some(byte),
                (None, b'{' | b'[') => depth += 1,
                (None, b'}' | b']') => depth -= 1,
                (None, _) => {}
            }
            if depth == 0 {
                self.work -= offset;
                return Some((start, start + offset + 1));
            }
        }
        self.work = 0;
        Some((start, bytes.len()))
    }

    /// Where a value without quotes ends, and where without the punctuation that closes a sentence or a bracket.
    fn unquoted(&mut self, start: usize) -> (usize, usize) {
        let bytes = self.bytes;
        let known = self.value.knows(start);
        let end = self.value.end_by(start, |at| {
            let rest = &bytes[at..];
            let length = rest.iter().enumerate().position(|(offset, byte)| match byte {
                b' ' | b'\t' | b'\n' | b'\r' | b'"' | b'\'' | b'`' | b'<' | b'&' => true,
                b'\\' => matches!(rest.get(offset + 1), Some(b'"' | b'\'' | b'n' | b'r' | b't' | b'\\')),
                b',' | b';' => ends_value(&rest[offset + 1..]),
                _ => false,
            });
            at + length.unwrap_or(rest.len())
        });
        if !known {
            let closing =
                |byte: &&u8| matches!(byte, b')' | b']' | b'}' | b'.' | b',' | b';' | b'!' | b'?' | b'>' | b':');
            self.value_trimmed = end - bytes[start..end].iter().rev().take_while(closing).count();
        }
        (end, self.value_trimmed)
    }

    /// What a tag that ends at `at` tells: the value of a field with a secret name (`<input name="password" value="…">`,
    /// `<meta name="csrf-token" content="…">`), or, without children, the content of an element with one.
    fn element(&mut self, at: usize, names: &Names) -> Option<(usize, usize)> {
        let bytes = self.bytes;
        let from = at.saturating_sub(TAG_BYTES_MAX);
        let open = from + memchr::memrchr2(b'<', b'>', &bytes[from..at]).filter(|open| bytes[from + open] == b'<')?;
        let tag = &bytes[open + 1..at];
        let name = &tag[..tag.iter().position(|byte| !is_name(*byte) && *byte != b':').unwrap_or(tag.len())];
        if let Some((start, end)) = field_value(&tag[name.len()..], names) {
            let attributes = open + 1 + name.len();
            return Some((attributes + start, attributes + end));
        }
        if name.is_empty() || tag.ends_with(b"/") || !names.has(name) || names.is_weak(name) {
            return None;
        }
        let start = at + 1;
        if bytes[start..].starts_with(b"<![CDATA[") {
            let content = start + 9;
            let end = match self.section_end {
                Some(end) if end >= content => end,
                _ => content + memchr::memmem::find(&bytes[content..], b"]]>").unwrap_or(bytes.len() - content),
            };
            self.section_end = Some(end);
            return Some((content, end));
        }
        // Cut off, or closed: a placeholder (`<token>`) is neither.
        let Some(length) = memchr::memchr(b'<', &bytes[start..]) else {
            return (self.care == Care::Strict).then_some((start, bytes.len()));
        };
        (bytes.get(start + length + 1) == Some(&b'/')).then_some((start, start + length))
    }
}

/// Where the value stands among these attributes, if they say that it is a secret.
fn field_value(attributes: &[u8], names: &Names) -> Option<(usize, usize)> {
    let mut is_secret = false;
    let mut value = None;
    let mut from = 0;
    while let Some(length) = attributes.get(from..).and_then(|rest| memchr::memchr(b'=', rest)) {
        let equals = from + length;
        let name = &attributes[from..equals];
        let name = &name[name.iter().rposition(u8::is_ascii_whitespace).map_or(0, |at| at + 1)..];
        let quote = attributes.get(equals + 1).filter(|byte| matches!(byte, b'"' | b'\''));
        let start = equals + 1 + usize::from(quote.is_some());
        let ends = |byte: &u8| quote.map_or(byte.is_ascii_whitespace(), |quote| byte == quote);
        let rest = attributes.get(start..).unwrap_or_default();
        let end = start + rest.iter().position(ends).unwrap_or(rest.len());
        let content = attributes.get(start..end).unwrap_or_default();
        if name.eq_ignore_ascii_case(b"value") || name.eq_ignore_ascii_case(b"content") {
            value = value.or(Some((start, end)));
        } else if name.eq_ignore_ascii_case(b"type") {
            is_secret |= content.eq_ignore_ascii_case(b"password");
        } else if name.eq_ignore_ascii_case(b"name") || name.eq_ignore_ascii_case(b"id") {
            is_secret |= names.has(content);
        }
        from = end + usize::from(quote.is_some());
    }
    value.filter(|_| is_secret)
}

/// Whether a comma or semicolon before this ends a value: what follows is no more of it, but a space, an end, or a name.
fn ends_value(rest: &[u8]) -> bool {
    let name = rest.iter().take(NAME_BYTES_MAX).take_while(|byte| is_name(**byte)).count();
    match rest.get(name) {
        None => name == 0,
        Some(byte) if name == 0 => {
            byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'' | b'`' | b'\\' | b'<' | b'{' | b'[' | b'}')
        }
        Some(byte) => matches!(byte, b'=' | b':'),
    }
}

/// Whether a name is written as the words of a sentence are: `API key`, not `api_key` or `apiKey`.
fn is_of_prose(name: &[u8]) -> bool {
    let words = name.split(|byte| *byte == b' ');
    words.into_iter().all(|word| is_plain(word) || word.len() <= 3 && word.iter().all(u8::is_ascii_uppercase))
}

/// Whether this is a word of letters, with none but the first in upper case.
fn is_plain(word: &[u8]) -> bool {
    let letters = word.iter().all(|byte| byte.is_ascii_alphabetic() || !byte.is_ascii());
    !word.is_empty() && letters && !word[1..].iter().any(u8::is_ascii_uppercase)
}

/// Whether a word after a colon and a space begins a sentence, with what follows it, or says something of a secret.
fn is_prose(word: &[u8], rest: &[u8]) -> bool {
    let small_number = word.len() <= 2 && word.iter().all(u8::is_ascii_digit);
    if SAYINGS.iter().any(|saying| word.eq_ignore_ascii_case(saying.as_bytes())) {
        return true;
    }
    let next = rest.strip_prefix(b" ").unwrap_or_default();
    let next = &next
        [..next.iter().take(NAME_BYTES_MAX).take_while(|byte| byte.is_ascii_alphabetic() || !byte.is_ascii()).count()];
    (is_plain(word) || small_number) && is_plain(next)
}

/// The percent-encoded name at the end of this: what follows the last sign that is no part of names, as brackets are.
fn encoded_name(before: &[u8]) -> &[u8] {
    let before = before.strip_suffix(b"%22").unwrap_or(before);
    let is_part =
        |escape: &[u8]| matches!(escape, b"5B" | b"5D" | b"5b" | b"5d" | b"2E" | b"2e" | b"2D" | b"2d" | b"5F" | b"5f");
    let start = (0..before.len()).rev().find_map(|at| match before[at] {
        b'%' if before.get(at + 1..at + 3).is_none_or(|escape| !is_part(escape)) => Some(before.len().min(at + 3)),
        byte if !is_name(byte) => Some(at + 1),
        _ => None,
    });
    &before[start.unwrap_or(0)..]
}

/// Where a value ends with the groups of digits and capital letters that follow it.
fn with_groups(bytes: &[u8], start: usize, end: usize) -> usize {
    let has_digit = |group: &[u8]| group.iter().any(|byte| byte.is_ascii_digit() || matches!(byte, b'X' | b'*'));
    let is_of_group = |byte: &&u8| byte.is_ascii_digit() || byte.is_ascii_uppercase() || **byte == b'*';
    let mut end = end;
    if end - start > GROUP_BYTES_MAX || !has_digit(&bytes[start..end]) {
        return end;
    }
    for _ in 0..GROUPS_MAX {
        let Some(rest) = bytes[end..].strip_prefix(b" ") else { break };
        let group = &rest[..rest.iter().take(GROUP_BYTES_MAX).take_while(is_of_group).count()];
        let goes_on =
            rest.get(group.len()).is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'='));
        if group.len() < 2 || !has_digit(group) || goes_on {
            break;
        }
        end += 1 + group.len();
    }
    end
}

fn is_plain_line(byte: u8) -> bool {
    !matches!(byte, b'\n' | b'\r' | b'&' | b'=' | b':' | b'{' | b'}' | b'<' | b'>' | b'"')
}

fn is_nothing(content: &[u8]) -> bool {
    [&b"null"[..], b"undefined", b"none", b"nil", b"nan"].iter().any(|nothing| content.eq_ignore_ascii_case(nothing))
}

fn is_of_line(byte: u8) -> bool {
    !matches!(byte, b'\n' | b'\r' | b'"' | b'\'' | b'`' | b'<' | b'\\')
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || !byte.is_ascii() || matches!(byte, b'_' | b'-' | b'.' | b'[' | b']' | b'$' | b'%')
}
