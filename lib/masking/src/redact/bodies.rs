//! What becomes of bodies: JSON, forms, multipart, or any text.

use memchr::{memchr, memmem};

use super::edits::{Edits, hex};
use super::pairs::Care;
use super::{MASK, Names, find_in_text, shapes, urls};

/// JSON in strings of JSON is looked at as JSON so deep; deeper it is a text.
pub(super) const NESTING_MAX: usize = 3;

/// Objects and arrays are followed so deep; what lies deeper is searched as text.
const DEPTH_MAX: usize = 256;

/// The longest boundary of multipart bodies (RFC 2046), with its dashes, and some room.
const BOUNDARY_BYTES_MAX: usize = 128;

/// What stands before JSON so that it is no script.
const GUARDS: &[&str] = &[")]}',", ")]}'", "while(1);", "while (1);", "for(;;);", "for (;;);", "&&&START&&&", "{}&&"];

/// Keys whose string names the value beside it, and the keys of that value (forms and headers as lists, HAR).
const NAMING: &[&str] = &["fieldname", "header", "key", "k", "name", "param", "parameter", "field"];
const VALUED: &[&str] = &["content", "val", "value", "v", "values", "stringvalue", "newvalue", "oldvalue"];

/// Finds what goes in a body.
pub(super) fn find(text: &str, names: &Names, nesting: usize, edits: &mut Edits) {
    let bytes = text.as_bytes();
    if let Some(start) = json_start(bytes) {
        let end = Json::new(bytes, start, names, nesting).run(edits);
        if end < bytes.len() {
            edits.within(end, |edits| find_in_text(&bytes[end..], names, Care::Strict, edits));
        }
    } else if is_form(bytes) {
        form(bytes, names, nesting, edits);
    } else if !multipart(text, names, nesting, edits) {
        find_in_text(bytes, names, Care::Strict, edits);
    }
}

/// Where JSON begins, if the text looks like it.
fn json_start(bytes: &[u8]) -> Option<usize> {
    let space = |bytes: &[u8]| bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let mut start = if bytes.starts_with("\u{feff}".as_bytes()) { 3 } else { 0 };
    start += space(&bytes[start..]);
    if let Some(guard) = GUARDS.iter().find(|guard| bytes[start..].starts_with(guard.as_bytes())) {
        start += guard.len();
        start += space(&bytes[start..]);
    }
    matches!(bytes.get(start), Some(b'{' | b'[' | b'"')).then_some(start)
}

fn is_one_of(key: &[u8], keys: &[&str]) -> bool {
    keys.iter().any(|one| key.eq_ignore_ascii_case(one.as_bytes()))
}

/// Whether a string in a body may be JSON of its own.
fn is_nested_json(bytes: &[u8]) -> bool {
    matches!(bytes.trim_ascii(), [b'{', .., b'}'] | [b'[', .., b']'] | [b'"', .., b'"'])
}

/// Finds what goes in a string of a body.
fn find_in_string(text: &str, names: &Names, nesting: usize, edits: &mut Edits) {
    if nesting < NESTING_MAX && is_nested_json(text.as_bytes()) {
        find(text, names, nesting + 1, edits);
    } else {
        find_in_text(text.as_bytes(), names, Care::Prose, edits);
    }
}

/// What the scanner of JSON waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Value,
    /// A value, or the end of an array that has just begun.
    FirstValue,
    Key,
    /// A key, or the end of an object that has just begun.
    FirstKey,
    Colon,
    /// A comma, or the end of what is open.
    Next,
}

/// A scanner of JSON that keeps no tree: a bit for each thing that is open, and whether its members are named.
struct Json<'a> {
    bytes: &'a [u8],
    names: &'a Names,
    nesting: usize,
    at: usize,
    depth: usize,
    is_object: Bits,
    /// Of an object: a member said that `value` is secret. Of an array: the first item did so of the second.
    is_named: Bits,
    /// Of an array: items so far, up to two.
    has_first: Bits,
    has_second: Bits,
    /// Of an object: whether that is an object or array that is being read.
    is_value_open: Bits,
    /// Of an object: where the value stands that a name beside it may yet call secret.
    values: [(usize, usize); DEPTH_MAX],
    /// Where the member or item began that is being read.
    member: usize,
    /// Where the last value began that nothing is around.
    last: usize,
    /// Where a value began that is masked as a whole, and how deep it lies.
    muted: Option<(usize, usize)>,
    /// Whether the key that was read is one of [`VALUED`], or [`NAMING`].
    role: Role,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    None,
    Naming,
    Valued,
}

#[derive(Clone, Copy, Default)]
struct Bits([u64; DEPTH_MAX / 64]);

impl Bits {
    fn get(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    fn set(&mut self, at: usize, value: bool) {
        if let Some(word) = self.0.get_mut(at / 64) {
            *word = *word & !(1 << (at % 64)) | u64::from(value) << (at % 64);
        }
    }
}

impl<'a> Json<'a> {
    fn new(bytes: &'a [u8], at: usize, names: &'a Names, nesting: usize) -> Self {
        let bits = Bits::default();
        Self {
            bytes,
            names,
            nesting,
            at,
            depth: 0,
            is_object: bits,
            is_named: bits,
            has_first: bits,
            has_second: bits,
            is_value_open: bits,
            values: [(0, 0); DEPTH_MAX],
            member: at,
            last: at,
            muted: None,
            role: Role::None,
        }
    }

    /// Looks through one value after the other, and says where what is no JSON begins: the member that breaks off.
    fn run(mut self, edits: &mut Edits) -> usize {
        let mut expect = Expect::Value;
        loop {
            self.at +=
                self.bytes[self.at..].iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
            let Some(&byte) = self.bytes.get(self.at) else { break };
            let is_beside_key = expect == Expect::Value && self.in_object();
            if !is_beside_key && !matches!(expect, Expect::Colon | Expect::Next) {
                self.member = self.at;
            }
            let next = match (expect, byte) {
                (Expect::Value | Expect::FirstValue, _) if byte != b']' || expect == Expect::Value => {
                    self.value(byte, edits)
                }
                (Expect::Key | Expect::FirstKey, b'"') => self.key(edits),
                (Expect::Colon, b':') => {
                    self.at += 1;
                    Some(Expect::Value)
                }
                (Expect::Next, b',') if self.depth > 0 => {
                    self.at += 1;
                    Some(if self.in_object() { Expect::Key } else { Expect::Value })
                }
                (Expect::Next, b'}') if self.in_object() => self.close(edits),
                (Expect::FirstKey, b'}') => self.close(edits),
                (Expect::Next, b']') if self.depth > 0 && !self.in_object() => self.close(edits),
                (Expect::FirstValue, b']') => self.close(edits),
                (Expect::Next, _) if self.depth == 0 => Some(Expect::Value),
                _ => None,
            };
            match next {
                Some(next) => expect = next,
                None => return self.broken(edits),
            }
        }
        if self.depth == 0 && matches!(expect, Expect::Next) { self.bytes.len() } else { self.broken(edits) }
    }

    /// The text ends, or is no JSON any more. What is masked is masked to the end.
    fn broken(self, edits: &mut Edits) -> usize {
        match self.muted {
            Some((start, _)) => {
                edits.mask_filled(self.bytes, start, self.bytes.len());
                self.bytes.len()
            }
            // A string that something other than JSON follows may be the name of a value.
            None if self.depth == 0 && self.bytes[self.last] == b'"' => self.last,
            None => self.member.min(self.at),
        }
    }

    fn in_object(&self) -> bool {
        self.depth > 0 && self.is_object.get(self.depth - 1)
    }

    fn value(&mut self, byte: u8, edits: &mut Edits) -> Option<Expect> {
        if self.depth > 0 && !self.in_object() {
            self.item();
        }
        let start = self.at;
        if self.depth == 0 && matches!(byte, b'"' | b'{' | b'[') {
            self.last = start;
        }
        match byte {
            b'{' | b'[' => {
                if self.depth == DEPTH_MAX {
                    return None;
                }
                self.is_object.set(self.depth, byte == b'{');
                for bits in [&mut self.is_named, &mut self.has_first, &mut self.has_second, &mut self.is_value_open] {
                    bits.set(self.depth, false);
                }
                self.values[self.depth] = (0, 0);
                self.depth += 1;
                self.at += 1;
                if self.role == Role::Valued && self.muted.is_none() {
                    self.values[self.depth - 2] = (start, start);
                    self.is_value_open.set(self.depth - 2, true);
                }
                self.role = Role::None;
                return Some(if byte == b'{' { Expect::FirstKey } else { Expect::FirstValue });
            }
            b'"' => {
                let end = self.string_end()?;
                let content = start + 1..end - 1;
                if self.muted.is_none() {
                    if self.role == Role::Naming || self.is_first_item() {
                        self.name(content.clone(), edits);
                    }
                    self.string(content, edits);
                }
            }
            _ => {
                let token = self.bytes[start..]
                    .iter()
                    .take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
                    .count();
                let token = &self.bytes[start..start + token];
                if !matches!(token, b"true" | b"false" | b"null") && !is_number(token) {
                    return None;
                }
                self.at += token.len();
                if self.muted.is_none() && token.len() >= 13 {
                    let mut found = Edits::default();
                    shapes::find(token, &mut found);
                    if !found.is_empty() {
                        edits.put(self.bytes, start, self.at, format!("\"{MASK}\""));
                    }
                }
            }
        }
        self.ended(start, edits);
        Some(Expect::Next)
    }

    /// Counts an item of an array, and mutes the second one that the first one named.
    fn item(&mut self) {
        let top = self.depth - 1;
        self.role = Role::None;
        if self.has_first.get(top) && !self.has_second.get(top) && self.is_named.get(top) && self.muted.is_none() {
            self.muted = Some((self.at, self.depth));
        }
        self.has_second.set(top, self.has_first.get(top));
        self.has_first.set(top, true);
    }

    /// Whether this is the first item of an array in an array: entries of a form or of headers are pairs.
    fn is_first_item(&self) -> bool {
        let Some(top) = self.depth.checked_sub(1) else { return false };
        let in_entries = top > 0 && !self.is_object.get(top) && !self.is_object.get(top - 1);
        in_entries && self.has_first.get(top) && !self.has_second.get(top)
    }

    /// A string that may be the name of the value beside it.
    fn name(&mut self, content: std::ops::Range<usize>, edits: &mut Edits) {
        let top = self.depth - 1;
        let is_secret = content.len() <= 64 && self.names.has(&self.bytes[content]);
        if is_secret {
            self.is_named.set(top, true);
            let (start, end) = self.values[top];
            if start < end {
                edits.put(self.bytes, start, end, format!("\"{MASK}\""));
            }
        }
    }

    /// What ended at the current place, and began at `start`: a whole value.
    fn ended(&mut self, start: usize, edits: &mut Edits) {
        if let Some((muted, depth)) = self.muted
            && depth == self.depth
        {
            if !matches!(&self.bytes[muted..self.at], b"null" | b"\"\"" | b"{}" | b"[]") {
                edits.put(self.bytes, muted, self.at, format!("\"{MASK}\""));
            }
            self.muted = None;
        }
        if self.in_object() {
            let top = self.depth - 1;
            if self.role == Role::Valued {
                self.values[top] = (start, self.at);
            } else if self.is_value_open.get(top) {
                self.values[top].1 = self.at;
                self.is_value_open.set(top, false);
            }
        }
        self.role = Role::None;
    }

    fn close(&mut self, edits: &mut Edits) -> Option<Expect> {
        self.at += 1;
        self.depth -= 1;
        self.ended(self.at, edits);
        Some(Expect::Next)
    }

    fn key(&mut self, edits: &mut Edits) -> Option<Expect> {
        let start = self.at;
        let end = self.string_end()?;
        let content = start + 1..end - 1;
        let raw = &self.bytes[content.clone()];
        self.role = Role::None;
        if self.muted.is_some() {
            return Some(Expect::Colon);
        }
        let plain;
        let key = if memchr(b'\\', raw).is_some() {
            plain = unescape(raw);
            plain.as_bytes()
        } else {
            raw
        };
        if is_one_of(key, NAMING) {
            self.role = Role::Naming;
        } else if is_one_of(key, VALUED) {
            self.role = Role::Valued;
        }
        if self.names.has(key) || self.role == Role::Valued && self.is_named.get(self.depth - 1) {
            let after = self.at + self.bytes[self.at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            let value = after + 1;
            let space = self
                .bytes
                .get(value..)
                .unwrap_or_default()
                .iter()
                .take_while(|byte| byte.is_ascii_whitespace())
                .count();
            if self.bytes.get(after) == Some(&b':') {
                self.muted = Some((value + space, self.depth));
            }
        }
        self.string(content, edits);
        Some(Expect::Colon)
    }

    /// Where the string that begins here ends, its quotes included; moves there.
    fn string_end(&mut self) -> Option<usize> {
        let mut end = self.at + 1;
        loop {
            end += memchr::memchr2(b'"', b'\\', self.bytes.get(end..)?)?;
            if self.bytes[end] == b'"' {
                break;
            }
            end += 2;
        }
        self.at = end + 1;
        Some(self.at)
    }

    /// The content of a string, its quotes not included.
    fn string(&self, content: std::ops::Range<usize>, edits: &mut Edits) {
        let raw = &self.bytes[content.clone()];
        if memchr(b'\\', raw).is_none() {
            if let Ok(text) = std::str::from_utf8(raw) {
                edits.within(content.start, |edits| find_in_string(text, self.names, self.nesting, edits));
            }
            return;
        }
        let plain = unescape(raw);
        let mut found = Edits::default();
        find_in_string(&plain, self.names, self.nesting, &mut found);
        if let Some(outcome) = found.apply(&plain) {
            edits.put(self.bytes, content.start, content.end, escape(&outcome));
        }
    }
}

fn is_number(token: &[u8]) -> bool {
    token.iter().any(u8::is_ascii_digit) && token.iter().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(byte))
}

/// The text of a JSON string (RFC 8259). What is no character of its own (half a surrogate pair) is replaced.
fn unescape(raw: &[u8]) -> String {
    let mut plain = Vec::with_capacity(raw.len());
    let mut at = 0;
    while let Some(length) = memchr(b'\\', &raw[at..]) {
        plain.extend_from_slice(&raw[at..at + length]);
        at += length + 2;
        let character = match raw.get(at - 1) {
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'b') => '\x08',
            Some(b'f') => '\x0c',
            Some(b'u') => {
                let (character, length) = unicode(&raw[at..]);
                at += length;
                character
            }
            Some(byte) if byte.is_ascii() => char::from(*byte),
            Some(_) => {
                at -= 1;
                continue;
            }
            None => break,
        };
        plain.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    }
    plain.extend_from_slice(raw.get(at..).unwrap_or_default());
    String::from_utf8_lossy(&plain).into_owned()
}

/// The character of the digits after `\u`, and how many bytes they are.
fn unicode(digits: &[u8]) -> (char, usize) {
    let unit = |digits: &[u8]| -> Option<u32> {
        digits.get(..4)?.iter().try_fold(0, |unit, digit| Some(unit * 16 + u32::from(hex(digit)?)))
    };
    let Some(high) = unit(digits) else { return (char::REPLACEMENT_CHARACTER, 0) };
    if let Some(character) = char::from_u32(high) {
        return (character, 4);
    }
    let low = digits.get(4..).and_then(|rest| rest.strip_prefix(b"\\u")).and_then(unit);
    match low {
        Some(low @ 0xdc00..=0xdfff) if high < 0xdc00 => {
            let code = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
            (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 10)
        }
        _ => (char::REPLACEMENT_CHARACTER, 4),
    }
}

/// A text as the content of a JSON string.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '"' | '\\' => escaped.extend(['\\', character]),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            '\0'..='\x1f' => escaped.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// Whether a body is form-urlencoded: no spaces and none of the signs that would be encoded, and a first name.
fn is_form(bytes: &[u8]) -> bool {
    let equals = memchr(b'=', bytes);
    let body = bytes.trim_ascii_end();
    let plain = |byte: &u8| {
        byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'{' | b'}' | b'\\' | b'`' | b'^' | b'|')
    };
    equals.is_some_and(|equals| {
        equals > 0
            && bytes[..equals].iter().all(|byte| !matches!(byte, b'&' | b'/' | b':' | b'?' | b';'))
            && body.iter().all(plain)
    })
}

fn form(bytes: &[u8], names: &Names, nesting: usize, edits: &mut Edits) {
    let end = bytes.trim_ascii_end().len();
    let mut start = 0;
    let mut goes_on = false;
    while start <= end {
        let length = bytes[start..end].iter().position(|byte| matches!(byte, b'&' | b';')).unwrap_or(end - start);
        let field = &bytes[start..start + length];
        let equals = memchr(b'=', field);
        let name = &field[..equals.unwrap_or(0)];
        let value = start + equals.map_or(0, |equals| equals + 1);
        let is_json = |value: &[u8]| {
            let mut found = Edits::default();
            if let Some(text) = std::str::from_utf8(value).ok().filter(|text| is_nested_json(text.as_bytes())) {
                find_in_string(text, names, nesting, &mut found);
            }
            !found.is_empty()
        };
        let is_secret = if equals.is_none() && goes_on {
            true
        } else {
            urls::is_secret_field(name, &bytes[value..start + length], names, is_json)
        };
        if is_secret {
            edits.mask_filled(bytes, value, start + length);
        }
        goes_on = is_secret && bytes.get(start + length) == Some(&b';');
        start += length + 1;
    }
}

/// A multipart body (RFC 7578): parts with a secret name are masked, others are bodies of their own. `false` when it is none.
fn multipart(text: &str, names: &Names, nesting: usize, edits: &mut Edits) -> bool {
    let bytes = text.as_bytes();
    let lead = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let line = memchr(b'\n', &bytes[lead..]).unwrap_or(0);
    let boundary = bytes[lead..lead + line].trim_ascii_end();
    if nesting > 0
        || !boundary.starts_with(b"--")
        || boundary.len() < 4
        || boundary.len() > BOUNDARY_BYTES_MAX
        || boundary.starts_with(b"-----BEGIN")
    {
        return false;
    }
    let mut start = lead + boundary.len();
    let finder = memmem::Finder::new(boundary);
    while start < bytes.len() {
        let end = finder.find(&bytes[start..]).map_or(bytes.len(), |length| start + length);
        part(text, start, end, names, nesting, edits);
        start = end + boundary.len();
    }
    true
}

fn part(text: &str, start: usize, end: usize, names: &Names, nesting: usize, edits: &mut Edits) {
    let bytes = text.as_bytes();
    let part = &bytes[start..end];
    let blank =
        memmem::find(part, b"\r\n\r\n").map(|at| at + 4).or_else(|| memmem::find(part, b"\n\n").map(|at| at + 2));
    let head_end = start + blank.unwrap_or(part.len());
    let head = &bytes[start..head_end];
    edits.within(start, |edits| find_in_text(head, names, Care::Prose, edits));
    let content_end =
        end - bytes[head_end..end].iter().rev().take(2).take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let is_secret = memmem::find_iter(head, b"name=")
        .filter(|at| *at == 0 || matches!(head[at - 1], b' ' | b';' | b'\t'))
        .any(|at| {
            let name = &head[at + 5..];
            let name = name.strip_prefix(b"\"").unwrap_or(name);
            let length = name.iter().take(256).take_while(|byte| !matches!(byte, b'"' | b'\r' | b'\n' | b';')).count();
            names.has_parameter(&name[..length])
        });
    if is_secret {
        edits.mask_filled(bytes, head_end, content_end);
    } else if let Some(content) = text.get(head_end..content_end) {
        edits.within(head_end, |edits| find(content, names, nesting + 1, edits));
    }
}
