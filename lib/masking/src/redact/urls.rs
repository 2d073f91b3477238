//! What becomes of URLs. They are split as browsers do (WHATWG URL): leniently, with any slashes, without failing.

use std::sync::LazyLock;

use memchr::{memchr, memchr2, memmem, memrchr};

use super::edits::{Edits, Scratch, percent_decode};
use super::pairs::{self, Care};
use super::{MASK, Names, names, shapes};

/// Names of parameters whose values stay in URLs of pages, unless a secret's shape is in them: where one is on a page or in
/// a list, how it is shown, in which language, and which campaign led there. No searches (`q`, `query`, `search`, `filter`), no ids.
pub(super) const HARMLESS: &[&str] = &[
    "asc",
    "cols",
    "columns",
    "desc",
    "dir",
    "direction",
    "dpr",
    "end",
    "fit",
    "fm",
    "format",
    "from_page",
    "height",
    "h",
    "lang",
    "language",
    "layout",
    "limit",
    "locale",
    "mode",
    "offset",
    "order",
    "orderby",
    "page",
    "pageindex",
    "pagenumber",
    "pageno",
    "pagesize",
    "perpage",
    "quality",
    "rows",
    "section",
    "size",
    "sort",
    "sortby",
    "sortdir",
    "sortorder",
    "start",
    "step",
    "tab",
    "theme",
    "timezone",
    "tz",
    "utm*",
    "v",
    "ver",
    "version",
    "view",
    "viewmode",
    "w",
    "width",
    "zoom",
];

/// A URL in a URL (`blob:https://…`) is followed so deep.
const NESTING_MAX: usize = 3;

/// A parameter's name that is longer is no name.
const NAME_BYTES_MAX: usize = 64;

/// After an authority that looks cut off by a slash in a password, the `@` is looked for so far.
const PASSWORD_BYTES_MAX: usize = 256;

static AUTHORITY: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("://"));

/// Whose URL it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A page's or a request's.
    Page,
    /// An attribute's, outside any masked element.
    Link,
    /// An attribute's, below a masked element.
    Masked,
}

/// Finds what goes in a URL.
pub(super) fn find(bytes: &[u8], kind: Kind, names: &Names, edits: &mut Edits) {
    Finder { kind, names }.url(bytes, 0, edits);
}

/// Finds user info in the URLs of a text, and the paths of webhooks, which are secrets as a whole.
pub(super) fn find_user_info(bytes: &[u8], edits: &mut Edits) {
    for at in AUTHORITY.find_iter(bytes) {
        let start = at + 3;
        let ends = |byte: &u8| {
            matches!(byte, b'/' | b'?' | b'#' | b'\\' | b'"' | b'\'' | b'`' | b'<' | b'>') || byte.is_ascii_whitespace()
        };
        let end = start + bytes[start..].iter().position(ends).unwrap_or(bytes.len() - start);
        let host = match user_info(bytes, start, end) {
            Some(host) => {
                edits.put(bytes, start, host, "");
                host
            }
            None => start,
        };
        for webhook in ["hooks.slack.com/services/", "discord.com/api/webhooks/", "discordapp.com/api/webhooks/"] {
            if bytes[host..].starts_with(webhook.as_bytes()) {
                let path = host + webhook.len();
                let rest =
                    bytes[path..].iter().position(|byte| *byte != b'/' && ends(byte)).unwrap_or(bytes.len() - path);
                edits.mask_filled(bytes, path, path + rest);
            }
        }
    }
}

/// Where the host begins when user info stands before it. A password with a raw slash in it is seen by what looks like a
/// port and is none.
fn user_info(bytes: &[u8], start: usize, end: usize) -> Option<usize> {
    let authority = &bytes[start..end];
    if let Some(at) = memrchr(b'@', authority) {
        return Some(start + at + 1);
    }
    let port = memrchr(b':', authority)? + 1;
    if authority[port..].iter().all(u8::is_ascii_digit) || authority.starts_with(b"[") {
        return None;
    }
    let rest = bytes[end..]
        .iter()
        .take(PASSWORD_BYTES_MAX)
        .take_while(|byte| byte.is_ascii_graphic() && **byte != b'"')
        .count();
    memrchr(b'@', &bytes[end..end + rest]).map(|at| end + at + 1)
}

struct Finder<'a> {
    kind: Kind,
    names: &'a Names,
}

impl Finder<'_> {
    fn url(&self, bytes: &[u8], depth: usize, edits: &mut Edits) {
        let start = bytes.iter().take_while(|byte| **byte <= b' ').count();
        let rest = scheme_end(bytes, start).unwrap_or(start);
        let mut room = [0; 24];
        let scheme = lower_scheme(&bytes[start..rest], &mut room);
        match scheme {
            b"javascript:" | b"vbscript:" => return self.script(bytes, rest, edits),
            b"data:" => return self.data(bytes, rest, edits),
            b"mailto:" | b"tel:" | b"sms:" | b"smsto:" | b"callto:" | b"facetime:" | b"sip:" | b"sips:" | b"xmpp:"
            | b"im:" => {
                return self.opaque(bytes, rest, edits);
            }
            b"blob:" | b"filesystem:" | b"view-source:" if depth < NESTING_MAX => {
                return edits.within(rest, |edits| self.url(&bytes[rest..], depth + 1, edits));
            }
            _ => {}
        }
        let special = matches!(scheme, b"http:" | b"https:" | b"ws:" | b"wss:" | b"ftp:");
        let slashes =
            bytes[rest..].iter().take_while(|byte| matches!(byte, b'/' | b'\\' | b'\t' | b'\n' | b'\r')).count();
        let mut path = rest;
        if special || slashes >= 2 {
            let authority = rest + slashes;
            let ends = |byte: &u8| matches!(byte, b'/' | b'\\' | b'?' | b'#');
            path = authority + bytes[authority..].iter().position(ends).unwrap_or(bytes.len() - authority);
            if let Some(host) = user_info(bytes, authority, path) {
                edits.put(bytes, authority, host, "");
                path = path.max(host);
            }
        }
        let query = path + memchr2(b'?', b'#', &bytes[path..]).unwrap_or(bytes.len() - path);
        let fragment = query + memchr(b'#', &bytes[query..]).unwrap_or(bytes.len() - query);
        self.path(bytes, path, query, edits);
        if query < fragment {
            self.parameters(bytes, query + 1, fragment, edits);
        }
        if fragment < bytes.len() {
            self.fragment(bytes, fragment + 1, edits);
        }
    }

    fn script(&self, bytes: &[u8], from: usize, edits: &mut Edits) {
        let script = bytes[from..].trim_ascii();
        let script = script.strip_suffix(b";").unwrap_or(script);
        match self.kind {
            _ if matches!(script, b"" | b"void(0)" | b"void 0" | b"undefined" | b"false" | b"//") => {}
            Kind::Link => {
                edits.within(from, |edits| super::find_in_text(&bytes[from..], self.names, Care::Prose, edits))
            }
            Kind::Page | Kind::Masked => edits.mask_filled(bytes, from, bytes.len()),
        }
    }

    /// `data:` URLs (RFC 2397). Images and fonts stay as they are, but images below masked elements, which are content.
    fn data(&self, bytes: &[u8], from: usize, edits: &mut Edits) {
        let comma = memchr(b',', &bytes[from..]);
        let mut room = [0; 24];
        let kind = lower_scheme(&bytes[from..bytes.len().min(from + 24)], &mut room);
        let is_font = [&b"font/"[..], b"application/font", b"application/x-font", b"application/vnd.ms-fon"]
            .iter()
            .any(|font| kind.starts_with(font));
        let is_image = kind.starts_with(b"image/");
        let content = comma.map_or(from, |comma| from + comma + 1);
        match self.kind {
            _ if is_font && comma.is_some() => {}
            Kind::Page | Kind::Link if is_image && comma.is_some() => {}
            Kind::Link if bytes[from..content].ends_with(b";base64,") => {}
            Kind::Link => {
                edits.within(content, |edits| super::find_in_text(&bytes[content..], self.names, Care::Prose, edits))
            }
            Kind::Page | Kind::Masked => edits.mask_filled(bytes, content, bytes.len()),
        }
    }

    /// Addresses and numbers of people.
    fn opaque(&self, bytes: &[u8], from: usize, edits: &mut Edits) {
        let query = from + memchr2(b'?', b'#', &bytes[from..]).unwrap_or(bytes.len() - from);
        if self.kind != Kind::Link {
            edits.mask_filled(bytes, from, query);
        }
        if query < bytes.len() {
            self.parameters(bytes, query + 1, bytes.len(), edits);
        }
    }

    fn path(&self, bytes: &[u8], start: usize, end: usize, edits: &mut Edits) {
        let path = &bytes[start..end];
        edits.within(start, |edits| {
            if self.kind == Kind::Link {
                shapes::find_credentials(path, edits);
            } else {
                shapes::find(path, edits);
                shapes::find_personal(path, edits);
            }
        });
        let mut from = start;
        let mut separator = b'/';
        let mut masked = false;
        while from <= end {
            let ends = |byte: &u8| matches!(byte, b'/' | b'\\' | b';');
            let to = from + bytes[from..end].iter().position(ends).unwrap_or(end - from);
            if separator == b';' {
                masked = self.parameter(bytes, from, to, masked, edits);
            } else {
                masked = self.segment(bytes, from, to, edits);
            }
            separator = *bytes.get(to).unwrap_or(&b'/');
            masked &= separator == b';';
            from = to + 1;
        }
    }

    /// A segment of a path: `name=value` by name, what is encoded by what it is decoded.
    fn segment(&self, bytes: &[u8], start: usize, end: usize, edits: &mut Edits) -> bool {
        let segment = &bytes[start..end];
        let named = memchr(b'=', segment).filter(|equals| self.names.has_parameter(&segment[..*equals]));
        if let Some(equals) = named {
            edits.mask_filled(bytes, start + equals + 1, end);
        }
        let hidden = memchr(b'%', segment).is_some()
            && decoded(segment, false, |decoded| {
                let mut found = Edits::default();
                if self.kind == Kind::Link {
                    shapes::find_credentials(decoded, &mut found);
                } else {
                    shapes::find(decoded, &mut found);
                    shapes::find_personal(decoded, &mut found);
                }
                !found.is_empty()
            });
        if hidden {
            edits.mask(bytes, start, end);
        }
        hidden || named.is_some()
    }

    /// Parameters between `&`, `;` and further `?`.
    fn parameters(&self, bytes: &[u8], start: usize, end: usize, edits: &mut Edits) {
        let mut from = start;
        let mut masked = false;
        while from <= end {
            let ends = |byte: &u8| matches!(byte, b'&' | b';' | b'?');
            let to = from + bytes[from..end].iter().position(ends).unwrap_or(end - from);
            masked = self.parameter(bytes, from, to, masked, edits);
            masked &= bytes.get(to) != Some(&b'&');
            from = to + 1;
        }
    }

    /// One parameter; `goes_on` when what has no name may belong to the secret before it. Says whether its value is masked.
    fn parameter(&self, bytes: &[u8], start: usize, end: usize, goes_on: bool, edits: &mut Edits) -> bool {
        let parameter = &bytes[start..end];
        let equals = memchr(b'=', parameter);
        let name = &parameter[..equals.unwrap_or(parameter.len())];
        let value = start + equals.map_or(0, |equals| equals + 1);
        if equals.is_none() && goes_on {
            edits.mask_filled(bytes, start, end);
            return true;
        }
        if equals.is_some() && !self.keeps_name(name) {
            edits.mask(bytes, start, end);
            return true;
        }
        let is_secret = self.names.has_parameter(name) && equals.is_some();
        match self.kind {
            _ if is_secret => edits.mask_filled(bytes, value, end),
            Kind::Page if is_harmless(name, self.names) => return self.search(bytes, value, end, edits),
            Kind::Page | Kind::Masked => edits.mask_filled(bytes, value, end),
            Kind::Link => return self.search(bytes, value, end, edits),
        }
        true
    }

    /// Whether the name of a parameter is one, and not a value of its own.
    fn keeps_name(&self, name: &[u8]) -> bool {
        let mut found = Edits::default();
        shapes::find(name, &mut found);
        if self.kind != Kind::Link {
            shapes::find_personal(name, &mut found);
            return found.is_empty() && name.len() <= NAME_BYTES_MAX && memchr2(b'@', b'/', name).is_none();
        }
        found.is_empty()
    }

    /// A value that stays unless something secret is in it. Says whether something is.
    fn search(&self, bytes: &[u8], start: usize, end: usize, edits: &mut Edits) -> bool {
        let value = &bytes[start..end];
        let look = |value: &[u8], edits: &mut Edits| {
            super::find_in_text(value, self.names, Care::Strict, edits);
            if self.kind != Kind::Link {
                shapes::find_personal(value, edits);
            }
        };
        let hidden = decoded(value, true, |decoded| {
            let mut found = Edits::default();
            look(decoded, &mut found);
            !found.is_empty()
        });
        if hidden {
            edits.mask(bytes, start, end);
            return true;
        }
        let mut found = Edits::default();
        look(value, &mut found);
        if !found.is_empty() {
            edits.within(start, |edits| look(value, edits));
        }
        !found.is_empty()
    }

    fn fragment(&self, bytes: &[u8], start: usize, edits: &mut Edits) {
        let end = bytes.len();
        let fragment = &bytes[start..];
        let route = fragment.starts_with(b"/") || fragment.starts_with(b"!/");
        let query = memchr(b'?', fragment).map(|at| start + at);
        match self.kind {
            Kind::Masked => edits.mask_filled(bytes, start, end),
            Kind::Page | Kind::Link if route => {
                let path_end = query.unwrap_or(end);
                self.path(bytes, start, path_end, edits);
                if path_end < end {
                    self.parameters(bytes, path_end + 1, end, edits);
                }
            }
            Kind::Page | Kind::Link if memchr(b'=', fragment).is_some() => {
                let start = query
                    .filter(|query| memchr(b'=', &bytes[start..*query]).is_none())
                    .map_or(start, |query| query + 1);
                self.parameters(bytes, start, end, edits);
            }
            Kind::Page if !is_anchor(fragment) => edits.mask_filled(bytes, start, end),
            Kind::Page | Kind::Link => _ = self.search(bytes, start, end, edits),
        }
    }
}

fn is_harmless(name: &[u8], added: &Names) -> bool {
    !added.has(name) && names::is_listed(name, HARMLESS)
}

/// Whether a fragment is the plain name of a place in a page: letters in any language, digits, and what joins them.
fn is_anchor(fragment: &[u8]) -> bool {
    fragment.iter().all(|byte| byte.is_ascii_alphanumeric() || !byte.is_ascii() || b"-_.:~%!*()".contains(byte))
}

/// Whether any decoding of an encoded value passes a test; what is not encoded is not tested.
fn decoded(value: &[u8], plus: bool, mut test: impl FnMut(&[u8]) -> bool) -> bool {
    if memchr(b'%', value).is_none() && !(plus && memchr(b'+', value).is_some()) {
        return false;
    }
    let mut scratch = Scratch::new();
    let room = scratch.room(value.len());
    room.copy_from_slice(value);
    let mut length = room.len();
    for _ in 0..names::DECODINGS_MAX {
        length = percent_decode(&mut room[..length], plus);
        let decoded = &room[..length];
        if decoded != MASK.as_bytes() && test(decoded) {
            return true;
        }
        if memchr(b'%', decoded).is_none() {
            break;
        }
    }
    false
}

/// Where the scheme of a URL ends, its colon included; browsers drop tabs and line breaks in it.
fn scheme_end(bytes: &[u8], start: usize) -> Option<usize> {
    let member = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'\t' | b'\n' | b'\r');
    let length = bytes[start..].iter().take(64).position(|byte| !member(byte))?;
    (bytes[start + length] == b':' && bytes[start].is_ascii_alphabetic()).then_some(start + length + 1)
}

/// A scheme in lower case, without what browsers drop.
fn lower_scheme<'a>(scheme: &[u8], room: &'a mut [u8; 24]) -> &'a [u8] {
    let mut length = 0;
    for byte in scheme.iter().filter(|byte| !byte.is_ascii_control()).take(room.len()) {
        room[length] = byte.to_ascii_lowercase();
        length += 1;
    }
    &room[..length]
}

/// Whether any string of a style sheet is taken for a URL.
pub(super) fn looks_like_url(value: &[u8]) -> bool {
    AUTHORITY.find(value).is_some()
}

/// Whether the field of a form is secret: by its name, or by what its value is, as it stands or decoded.
pub(super) fn is_secret_field(name: &[u8], value: &[u8], names: &Names, test: impl Fn(&[u8]) -> bool) -> bool {
    if names.has_parameter(name) {
        return true;
    }
    let look = |value: &[u8]| {
        let mut found = Edits::default();
        shapes::find(value, &mut found);
        pairs::find(value, names, Care::Strict, &mut found);
        find_user_info(value, &mut found);
        !found.is_empty() || test(value)
    };
    look(value) || decoded(value, true, look)
}
