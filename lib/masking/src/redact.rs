//! What decoded strings become: texts, URLs, style sheets, headers, cookies and bodies, with the secrets in them masked.
//!
//! **Role.** Whoever walks the JSON of an event hands over one decoded string and learns whether it changes, and into what.
//! Secrets are found by *shape* (a JWT, a card number, a private key), by *name* (the value beside `password`), and by
//! *place* (the user info of a URL, every value of a cookie). The mask stands for any secret and tells nothing of it.
//!
//! **Flow.** Finders note `Edits` over the bytes that they look at, each finder on its own: what one finds does not hide
//! anything from another, and more names only mean more edits. Overlapping edits become one mask over all that they cover.
//! Then the outcome is looked at again until nothing more is found (`settle`).
//!
//! **Invariants.**
//! * No outcome changes when it is masked again: it is a text in which a look found nothing, or the mask alone.
//! * No outcome is longer than twice the text and one mask.
//! * Time is linear in the text: a finder looks back and ahead a bounded way, or remembers how far it has looked.
//! * What has nothing to mask is not copied. (Percent-encoded values and escaped JSON strings are decoded to look at them:
//!   on the stack, or when they are longer than 512 bytes, on the heap.)
//!
//! **What it does not see.** A secret without a shape, a name or a place: a password in a sentence ("my password is hunter"),
//! in an image, split over two strings, or beside a name in a language that [`Names`] does not know. Personal data of other
//! kinds (names, addresses, searches) is masked where a place says so, in URLs of pages, and else left to the link's rules.

mod bodies;
mod edits;
mod names;
mod pairs;
mod shapes;
mod sheets;
mod urls;

#[cfg(test)]
mod tests;

use edits::Edits;
pub use names::Names;
use pairs::Care;
use urls::Kind;

/// Stands for any secret, and does not tell its length.
pub const MASK: &str = "***";

/// How often an outcome is looked at again before it is given up as a whole. Almost always the second look finds nothing.
const LOOKS: usize = 4;

/// A text of any kind, without what is secret in it; `None` when nothing has to change.
///
/// Masked are, by shape: JWTs (RFC 7519) and other Base64 of a JSON object, credentials after `Bearer` (RFC 6750) and `Basic`
/// (RFC 7617), card numbers, PEM private keys (RFC 7468), and API keys with a known prefix. By name: the value in
/// `password=…`, `token: …`, `"secret": …`, `<password>…</password>`. By place: user info in URLs, and the path of webhooks.
///
/// Prose about secrets stays: "Forgot password?" has no value, and so has "password: must have 8 characters", for after a
/// colon and a space, a plain word that another plain word follows is the beginning of a sentence, and some words alone
/// ("password: required") are no password. So "password: correct horse" stays too, which is the price; "password: horse",
/// "password: h0rse battery" and "password=horse battery" lose a word each.
pub fn text(text: &str, names: &Names) -> Option<String> {
    settle(text, |text, edits| find_in_text(text.as_bytes(), names, Care::Prose, edits))
}

/// The URL of a page or of a network request, without what may be secret or personal; `None` when nothing has to change.
///
/// Scheme, host, port and path stay. User info is dropped. Of parameters (in the query, after `;` in the path, in a fragment
/// that has any) names stay, and values only when their name is harmless (a list in `urls.rs`: `page`, `sort`, `lang`, `tab`,
/// `utm_…`; no searches, no ids) and nothing in them has a secret's shape. In the path, what has one is masked; a fragment
/// stays when it is a plain anchor or a route.
pub fn page_url(url: &str, names: &Names) -> Option<String> {
    settle(url, |url, edits| urls::find(url.as_bytes(), Kind::Page, names, edits))
}

/// A URL in an attribute outside any masked element, without credentials; `None` when nothing has to change.
///
/// User info, and the values of parameters that have a secret name or a secret's shape; in the path only JWTs and known API
/// keys. All else stays byte for byte, for the page is shown with it.
pub fn link_url(url: &str, names: &Names) -> Option<String> {
    settle(url, |url, edits| urls::find(url.as_bytes(), Kind::Link, names, edits))
}

/// A URL in an attribute below a masked element; `None` when nothing has to change.
///
/// Scheme, host and path stay, the path searched by shape. All values of parameters and the fragment are masked, and so is
/// the content of a `data:` URL unless it is a font: it is an element's content like its text.
pub fn masked_url(url: &str) -> Option<String> {
    let names = Names::default();
    settle(url, |url, edits| urls::find(url.as_bytes(), Kind::Masked, &names, edits))
}

/// CSS that stays; `None` when nothing has to change.
///
/// URLs in it become what [`link_url`] makes of them. When `strict`, they become what [`masked_url`] makes of them, and
/// every other quoted string and every comment is masked (but for the names of font formats in `format()`).
pub fn css(text: &str, strict: bool, names: &Names) -> Option<String> {
    settle(text, |text, edits| sheets::find(text.as_bytes(), strict, names, edits))
}

/// The value of a header; `None` when nothing has to change.
///
/// The whole value is masked for secret names, for `Proxy-…`, and for headers that hold the address of a person; URLs become
/// what [`page_url`] makes of them, and all else what [`text`] makes of it.
pub fn header(name: &str, value: &str, names: &Names) -> Option<String> {
    let kind = names::header_kind(name, names);
    settle(value, |value, edits| match kind {
        names::HeaderKind::Secret => edits.mask_filled(value.as_bytes(), 0, value.len()),
        names::HeaderKind::Url => urls::find(value.as_bytes(), Kind::Page, names, edits),
        names::HeaderKind::Text => find_in_text(value.as_bytes(), names, Care::Prose, edits),
    })
}

/// A cookie string (`a=1; b=2`, RFC 6265): names stay, all values are masked; `None` when there is none.
pub fn cookies(value: &str) -> Option<String> {
    settle(value, |value, edits| {
        let bytes = value.as_bytes();
        let mut start = 0;
        for end in memchr::memchr_iter(b';', bytes).chain([bytes.len()]) {
            let filled = start + bytes[start..end].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            let name = memchr::memchr(b'=', &bytes[filled..end]).map_or(filled, |at| filled + at + 1);
            edits.mask_filled(bytes, name, end);
            start = end + 1;
        }
    })
}

/// The body of a request or a response; `None` when nothing has to change.
///
/// JSON (also after a guard such as `)]}'`, also several values, also cut off): values of secret names are masked whatever
/// their type, but for `null` and `""`, which hold nothing; so is `value` beside a `name` that is secret. Other strings
/// become what [`text`] makes of them; JSON in a string is looked at as JSON, down to 3 strings.
/// Form-urlencoded and multipart bodies are masked by name, then by what their values hold. All else is searched as text, where
/// the benefit of the doubt that prose has in [`text`] is not given: after a secret name, a plain line is a value to its end.
pub fn body(text: &str, names: &Names) -> Option<String> {
    settle(text, |text, edits| bodies::find(text, names, 0, edits))
}

/// All that is looked for in any text.
fn find_in_text(bytes: &[u8], names: &Names, care: Care, edits: &mut Edits) {
    shapes::find(bytes, edits);
    pairs::find(bytes, names, care, edits);
    urls::find_user_info(bytes, edits);
}

/// Looks until nothing more is found. What does not come to rest, or would grow beyond its bound, is masked as a whole:
/// so whatever comes out stays as it is when it is masked again.
fn settle(text: &str, find: impl Fn(&str, &mut Edits)) -> Option<String> {
    let look = |text: &str| {
        let mut edits = Edits::default();
        find(text, &mut edits);
        edits.apply(text)
    };
    let mut outcome = look(text)?;
    for _ in 0..LOOKS {
        if outcome.len() > 2 * text.len() + MASK.len() {
            break;
        }
        match look(&outcome) {
            Some(next) => outcome = next,
            None => return Some(outcome),
        }
    }
    Some(MASK.to_owned())
}
