//! A cursor over JSON text: pulls what is asked for, checks and passes over the rest, builds nothing.
//!
//! Everything it passes over is checked against the grammar (RFC 8259), so that a text that was walked to its end is JSON. The
//! text is UTF-8 already. Nesting is bounded; nothing here recurses.

use std::borrow::Cow;

use schemas::limits::JSON_DEPTH_MAX;
use thiserror::Error;

/// Why a text is not walked any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum JsonError {
    /// It is no JSON.
    #[error("text is not JSON")]
    Malformed,
    /// Arrays and objects are nested deeper than [`JSON_DEPTH_MAX`].
    #[error("JSON is nested too deeply")]
    TooDeep,
}

/// Bytes of the text from `start` up to `end`. Texts are far smaller than 4 GiB, and what is small is handed around in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Span {
    pub(crate) fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// With the quotes around it.
    pub(crate) fn quoted(self) -> Self {
        Self { start: self.start - 1, end: self.end + 1 }
    }

    fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// A string of the text, without its quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Str {
    pub(crate) span: Span,
    /// Whether it has escapes: then its bytes are not its characters.
    pub(crate) escaped: bool,
}

/// A scalar, or the whole of an array or object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    String(Str),
    Number(Span),
    Bool(Span, bool),
    Null,
    /// An array or object, passed over.
    Nested(Span),
}

impl Value {
    /// A whole number that is not negative. Ids and kinds are such.
    pub(crate) fn as_u64(self, text: &[u8]) -> Option<u64> {
        let Self::Number(span) = self else { return None };
        whole(&text[span.range()])
    }
}

/// The bits of `ONES * b` are those of eight bytes `b`.
const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Marks the high bit of a byte that ends a run of plain characters in a string: a quote, a backslash, a control character. Bytes
/// before the first that is marked are plain; marks behind it may be wrong. (Mycroft's test for a zero byte, 1987, and its like
/// for a byte below a bound.)
#[inline(always)]
fn ends_run(word: u64) -> u64 {
    let quote = word ^ (ONES * 0x22);
    let slash = word ^ (ONES * 0x5c);
    let quote = quote.wrapping_sub(ONES) & !quote;
    let slash = slash.wrapping_sub(ONES) & !slash;
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    (quote | slash | control) & HIGHS
}

fn whole(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    let mut value = 0u64;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

/// Where in the text the walk is.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    source: &'a str,
    text: &'a [u8],
    at: usize,
    depth: u32,
    /// The string that was walked last; after [`Cursor::next_key`], the name that it found.
    ///
    /// Here and not in results: those are small enough for registers without it, and copies of them through memory were half of
    /// the walk's time.
    pub(crate) key: Str,
    /// Whether a line break was passed over, which stands between tokens only.
    pub(crate) broke: bool,
}

type Result<T> = std::result::Result<T, JsonError>;

impl<'a> Cursor<'a> {
    /// At the start of a text.
    pub(crate) fn new(text: &'a str) -> Self {
        // No batch is as large; of one that were nothing would be read.
        let text = if u32::try_from(text.len()).is_ok() { text } else { "" };
        let key = Str { span: Span { start: 0, end: 0 }, escaped: false };
        Self { source: text, text: text.as_bytes(), at: 0, depth: 0, key, broke: false }
    }

    pub(crate) fn text(&self) -> &'a [u8] {
        self.text
    }

    /// Where the next token begins, or white space before it.
    pub(crate) fn at(&self) -> u32 {
        self.at as u32
    }

    /// Walks on from elsewhere, at the nesting that there was.
    pub(crate) fn rewind(&mut self, mark: Mark) {
        (self.at, self.depth) = (mark.at as usize, mark.depth);
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark { at: self.at(), depth: self.depth }
    }

    pub(crate) fn bytes(&self, span: Span) -> &'a [u8] {
        &self.text[span.range()]
    }

    /// A string's characters. Half of a surrogate pair becomes U+FFFD.
    pub(crate) fn decode(&self, string: Str) -> Cow<'a, str> {
        // Strings are cut at quotes, which are characters of their own.
        let raw = self.source.get(string.span.range()).unwrap_or_default();
        if string.escaped { Cow::Owned(unescape(raw)) } else { Cow::Borrowed(raw) }
    }

    /// The first byte of the next token.
    #[inline(always)]
    pub(crate) fn peek(&mut self) -> Result<u8> {
        match self.text.get(self.at) {
            Some(byte) if *byte > b' ' => Ok(*byte),
            _ => self.peek_behind_space(),
        }
    }

    #[cold]
    fn peek_behind_space(&mut self) -> Result<u8> {
        loop {
            match self.text.get(self.at) {
                Some(b' ' | b'\t') => {}
                Some(b'\n' | b'\r') => self.broke = true,
                Some(byte) => return Ok(*byte),
                None => return Err(JsonError::Malformed),
            }
            self.at += 1;
        }
    }

    /// Whether nothing but white space follows.
    pub(crate) fn is_at_end(&mut self) -> bool {
        self.peek().is_err()
    }

    #[inline(always)]
    fn take(&mut self, byte: u8) -> Result<()> {
        if self.peek()? == byte {
            self.at += 1;
            Ok(())
        } else {
            Err(JsonError::Malformed)
        }
    }

    fn deeper(&mut self) -> Result<()> {
        self.at += 1;
        self.depth += 1;
        if self.depth as usize > JSON_DEPTH_MAX { Err(JsonError::TooDeep) } else { Ok(()) }
    }

    /// Goes into an object, when there is one.
    #[inline]
    pub(crate) fn enter_object(&mut self) -> Result<bool> {
        let is_object = self.peek()? == b'{';
        if is_object {
            self.deeper()?;
        }
        Ok(is_object)
    }

    /// Goes into an array, when there is one.
    #[inline]
    pub(crate) fn enter_array(&mut self) -> Result<bool> {
        let is_array = self.peek()? == b'[';
        if is_array {
            self.deeper()?;
        }
        Ok(is_array)
    }

    /// Finds the next name of the object that was entered, see [`Cursor::key`]; its value comes next. `false` at the object's end.
    #[inline]
    pub(crate) fn next_key(&mut self, first: &mut bool) -> Result<bool> {
        let has_key = self.has_key(first)?;
        if has_key {
            self.other_key()?;
        }
        Ok(has_key)
    }

    /// Whether another name comes next in the object that was entered: [`Cursor::eat`] it, or take it as [`Cursor::other_key`].
    #[inline(always)]
    pub(crate) fn has_key(&mut self, first: &mut bool) -> Result<bool> {
        Ok(!self.is_over(b'}', first)?)
    }

    /// Passes over a name that is expected, given with its quotes and colon, if it is the next: that costs a comparison.
    #[inline(always)]
    pub(crate) fn eat<const N: usize>(&mut self, name: &[u8; N]) -> bool {
        let is_next = self.text.get(self.at..).and_then(|rest| rest.first_chunk::<N>()) == Some(name);
        if is_next {
            self.at += N;
        }
        is_next
    }

    /// Finds the next name, whatever it is, see [`Cursor::key`].
    #[inline(always)]
    pub(crate) fn other_key(&mut self) -> Result<()> {
        if self.peek()? != b'"' {
            return Err(JsonError::Malformed);
        }
        self.pass_string()?;
        self.take(b':')
    }

    /// Whether an element of the array that was entered comes next; its end, otherwise.
    #[inline]
    pub(crate) fn next_item(&mut self, first: &mut bool) -> Result<bool> {
        Ok(!self.is_over(b']', first)?)
    }

    #[inline(always)]
    fn is_over(&mut self, close: u8, first: &mut bool) -> Result<bool> {
        let byte = self.peek()?;
        if byte == close {
            self.at += 1;
            self.depth -= 1;
            // Where a nested one is over, its outer one goes on.
            *first = false;
            return Ok(true);
        }
        if !std::mem::replace(first, false) {
            self.take(b',')?;
        }
        Ok(false)
    }

    /// A string; the cursor stands at its quote.
    #[inline(always)]
    pub(crate) fn string(&mut self) -> Result<Str> {
        self.pass_string()?;
        Ok(self.key)
    }

    fn pass_string(&mut self) -> Result<()> {
        let start = self.at + 1;
        let (mut at, mut escaped) = (start, false);
        loop {
            while let Some(chunk) = self.text.get(at..at + 8) {
                let word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
                let ends = ends_run(word);
                if ends != 0 {
                    at += (ends.trailing_zeros() / 8) as usize;
                    break;
                }
                at += 8;
            }
            match self.text.get(at) {
                Some(b'"') => {
                    self.at = at + 1;
                    self.key = Str { span: Span { start: start as u32, end: at as u32 }, escaped };
                    return Ok(());
                }
                Some(b'\\') => {
                    escaped = true;
                    at = self.behind_escape(at + 1)?;
                }
                Some(byte) if *byte >= 0x20 => at += 1,
                _ => return Err(JsonError::Malformed),
            }
        }
    }

    #[inline]
    fn behind_escape(&self, at: usize) -> Result<usize> {
        match self.text.get(at) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 1),
            Some(b'u') => match self.text.get(at + 1..at + 5) {
                Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => Ok(at + 5),
                _ => Err(JsonError::Malformed),
            },
            _ => Err(JsonError::Malformed),
        }
    }

    fn digits(&mut self) -> Result<()> {
        let start = self.at;
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(JsonError::Malformed) }
    }

    fn pass_number(&mut self) -> Result<()> {
        if self.text.get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        if self.text.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.text.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.text.get(self.at) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// The next value where it is a whole number that is not negative, as ids and kinds are; `None` for any other, passed over.
    #[inline]
    pub(crate) fn whole_number(&mut self) -> Result<Option<u64>> {
        self.peek()?;
        let mut at = self.at;
        let mut value = 0u64;
        while let Some(digit @ b'0'..=b'9') = self.text.get(at) {
            value = value * 10 + u64::from(digit - b'0');
            at += 1;
            if at - self.at > 18 {
                break;
            }
        }
        let is_plain = at > self.at
            && (self.text[self.at] != b'0' || at - self.at == 1)
            && matches!(self.text.get(at), Some(b',' | b'}' | b']'));
        if is_plain {
            self.at = at;
            return Ok(Some(value));
        }
        Ok(self.value()?.as_u64(self.text))
    }

    fn pass_word(&mut self, word: &[u8]) -> Result<()> {
        if self.text.get(self.at..self.at + word.len()) != Some(word) {
            return Err(JsonError::Malformed);
        }
        self.at += word.len();
        Ok(())
    }

    /// The next value. What is nested is passed over.
    #[inline(always)]
    pub(crate) fn value(&mut self) -> Result<Value> {
        let first = self.peek()?;
        let start = self.at();
        self.pass(first)?;
        let span = Span { start, end: self.at() };
        Ok(match first {
            b'"' => Value::String(self.key),
            b'{' | b'[' => Value::Nested(span),
            b't' => Value::Bool(span, true),
            b'f' => Value::Bool(span, false),
            b'n' => Value::Null,
            _ => Value::Number(span),
        })
    }

    /// Passes over the next value.
    #[inline(always)]
    pub(crate) fn skip(&mut self) -> Result<()> {
        let first = self.peek()?;
        self.pass(first)
    }

    /// Passes over the value that begins with this byte, at which the cursor stands.
    #[inline]
    fn pass(&mut self, first: u8) -> Result<()> {
        match first {
            b'"' => self.pass_string(),
            b'{' | b'[' => self.skip_nested(),
            b't' => self.pass_word(b"true"),
            b'f' => self.pass_word(b"false"),
            b'n' => self.pass_word(b"null"),
            _ => self.pass_number(),
        }
    }

    fn skip_nested(&mut self) -> Result<()> {
        // A bit for each level that was entered here: set where it is an object.
        let mut objects = [0u64; JSON_DEPTH_MAX.div_ceil(64)];
        let (outside, mut first) = (self.depth, true);
        let mut in_object = self.peek()? == b'{';
        self.deeper()?;
        loop {
            let is_over = self.is_over(if in_object { b'}' } else { b']' }, &mut first)?;
            if is_over {
                if self.depth == outside {
                    return Ok(());
                }
                let level = (self.depth - outside - 1) as usize;
                in_object = objects[level / 64] >> (level % 64) & 1 == 1;
                continue;
            }
            if in_object {
                if self.peek()? != b'"' {
                    return Err(JsonError::Malformed);
                }
                self.pass_string()?;
                self.take(b':')?;
            }
            match self.peek()? {
                b'"' => self.pass_string()?,
                open @ (b'{' | b'[') => {
                    let level = (self.depth - outside - 1) as usize;
                    let bit = 1 << (level % 64);
                    if in_object {
                        objects[level / 64] |= bit;
                    } else {
                        objects[level / 64] &= !bit;
                    }
                    self.deeper()?;
                    (in_object, first) = (open == b'{', true);
                }
                other => self.pass(other)?,
            }
        }
    }
}

/// A place to come back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    at: u32,
    depth: u32,
}

impl Mark {
    /// The same nesting, elsewhere.
    pub(crate) fn moved_to(self, at: u32) -> Self {
        Self { at, ..self }
    }
}

fn unescape(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let kind = rest.bytes().next().unwrap_or_default();
        rest = rest.get(1..).unwrap_or_default();
        match kind {
            b'b' => text.push('\u{8}'),
            b'f' => text.push('\u{c}'),
            b'n' => text.push('\n'),
            b'r' => text.push('\r'),
            b't' => text.push('\t'),
            b'u' => {
                let unit = hex4(rest);
                rest = rest.get(4..).unwrap_or_default();
                let low = rest.strip_prefix("\\u").map(hex4).filter(|low| (0xdc00..0xe000).contains(low));
                let character = match (unit, low) {
                    (0xd800..0xdc00, Some(low)) => {
                        rest = rest.get(6..).unwrap_or_default();
                        char::from_u32(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00))
                    }
                    _ => char::from_u32(unit),
                };
                text.push(character.unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            other => text.push(char::from(other)),
        }
    }
    text.push_str(rest);
    text
}

fn hex4(text: &str) -> u32 {
    text.get(..4).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0xfffd)
}

/// Writes a string with its quotes.
pub(crate) fn write_string(to: &mut Vec<u8>, text: &str) {
    to.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => to.extend_from_slice(b"\\\""),
            b'\\' => to.extend_from_slice(b"\\\\"),
            b'\n' => to.extend_from_slice(b"\\n"),
            b'\r' => to.extend_from_slice(b"\\r"),
            b'\t' => to.extend_from_slice(b"\\t"),
            0..0x20 => to.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => to.push(byte),
        }
    }
    to.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    fn walks(text: &str) -> bool {
        let mut cursor = Cursor::new(text);
        cursor.skip().is_ok() && cursor.is_at_end()
    }

    fn is_json(text: &str) -> bool {
        serde_json::from_str::<IgnoredAny>(text).is_ok()
    }

    #[test]
    fn what_is_json_is_walked_and_nothing_else() {
        for text in [
            "{}",
            "[]",
            "[1,2.5,-3e+7,0,-0.0E1]",
            r#"{"a":{"b":[{},[],""]},"c":null}"#,
            " [ true , false ] ",
            "7",
            r#""\u00e9\ud83d\ude00\ud800 \"\\\/\b\f\n\r\t""#,
            "[\n1\r\n]",
            "\"ends at eight\"",
            "\"1234567\"",
            "\"12345678\"",
            "",
            "{",
            "[1,]",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "[1 2]",
            "01",
            "-",
            "1.",
            "1e",
            ".5",
            "+1",
            "tru",
            "nulll",
            "\"\u{1}\"",
            "\"\n\"",
            r#""\x""#,
            r#""\u12g4""#,
            "\"",
            "\"abcdefghijk",
            "[[[[",
            "]",
            "}",
            "[}",
            "{]",
            "[1]]",
            "\u{a0}1",
        ] {
            assert_eq!(walks(text), is_json(text), "{text:?}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(walks(&nested(JSON_DEPTH_MAX)));
        assert_eq!(Cursor::new(&nested(JSON_DEPTH_MAX + 1)).skip(), Err(JsonError::TooDeep));
        let objects = format!("{}1{}", "{\"a\":[".repeat(JSON_DEPTH_MAX / 2), "]}".repeat(JSON_DEPTH_MAX / 2));
        assert!(walks(&objects));
    }

    proptest! {
        #[test]
        fn any_text_is_walked_as_serde_json_walks_it(text in r#"([\[\]{}:,"\\ \n]|[0-9eE+.\-]|true|null|\\u[0-9a-f]{0,4}|[a-z]{0,9}|\PC){0,24}"#) {
            prop_assert_eq!(walks(&text), is_json(&text));
        }

        #[test]
        fn strings_decode_as_serde_json_decodes_them_and_are_written_as_they_are_read(text: String) {
            let json = serde_json::to_string(&text).unwrap();
            let mut cursor = Cursor::new(&json);
            cursor.peek().unwrap();
            let string = cursor.string().unwrap();
            prop_assert_eq!(cursor.decode(string), text.as_str());
            let mut written = Vec::new();
            write_string(&mut written, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&written).unwrap(), text);
        }
    }
}
