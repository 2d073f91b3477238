//! What looks like a secret, whatever stands beside it.

use std::sync::LazyLock;

use memchr::memmem;

use super::edits::{Edits, Run};

/// The shortest text that holds a secret's shape.
const SHAPE_BYTES_MIN: usize = 10;

/// A credential after `Bearer` that is one plain word is taken for prose ("bearer bonds") when it is shorter than this.
const PLAIN_CREDENTIAL_BYTES_MIN: usize = 20;

/// What a path or a harmless parameter may hold in letters and digits, before it is taken for a token.
const TOKEN_BYTES_MIN: usize = 32;

/// In a token of words joined by dashes (`my-trip-to-rome-in-2024`), a part is a word up to this length, though it mixes
/// letters and digits (`h264`).
const MIXED_WORD_BYTES_MAX: usize = 8;

/// A part of JSON in Base64 that is no JWT is taken for a token from this length on; the shortest header of a JWT.
const JSON_BYTES_MIN: usize = 32;
const JWT_HEADER_BYTES_MIN: usize = 10;

/// Beginnings of API keys, and the fewest letters, digits, `_` and `-` that follow, by first letter. From the issuers' own
/// documentation, as collected by the rules of gitleaks and of GitHub's and GitLab's secret scanning.
const fn key_prefixes(first: u8) -> &'static [(&'static str, usize)] {
    match first {
        b'A' => &[
            ("AKIA", 16),
            ("ASIA", 16),
            ("ABIA", 16),
            ("ACCA", 16),
            ("A3T", 17),
            ("AIza", 30),
            ("ATATT3", 40),
            ("AGE-SECRET-KEY-1", 40),
            ("ABSK", 80),
            ("AKCp", 60),
        ],
        b'B' => &[("BSA", 28)],
        b'E' => &[("EAAM", 60), ("EAAC", 60), ("EAAG", 60), ("EZAK", 50), ("EZTK", 50)],
        b'F' => &[("FLWSECK", 12)],
        b'L' => &[("LTAI", 16)],
        b'N' => &[("NRAK-", 20)],
        b'P' => &[("PMAK-", 24)],
        b'S' => &[("SG.", 20)],
        b'd' => &[
            ("dapi", 32),
            ("dckr_pat_", 20),
            ("dckr_oat_", 20),
            ("doo_v1_", 32),
            ("dop_v1_", 32),
            ("dor_v1_", 32),
            ("duffel_", 40),
            ("dp.", 40),
            ("dt0c01.", 24),
        ],
        b'f' => &[("fio-u-", 40), ("fm1", 60), ("fm2_", 60), ("fo1_", 40)],
        b'g' => &[
            ("ghp_", 20),
            ("gho_", 20),
            ("ghu_", 20),
            ("ghs_", 20),
            ("ghr_", 20),
            ("github_pat_", 20),
            ("glpat-", 16),
            ("gldt-", 16),
            ("glrt-", 16),
            ("glptt-", 16),
            ("glcbt-", 16),
            ("glsoat-", 16),
            ("glft-", 16),
            ("glsa_", 32),
            ("glc_", 32),
            ("gsk_", 32),
            ("gocspx-", 20),
        ],
        b'G' => &[("GOCSPX-", 20), ("GR1348941", 16)],
        b'h' => &[("hf_", 30), ("hvs.", 24), ("hvb.", 24), ("hooks-", 40)],
        b'k' => &[("key-", 32)],
        b'l' => &[("lin_api_", 32), ("lin_oauth_", 32)],
        b'n' => &[("npm_", 30), ("ntn_", 40), ("nvapi-", 40)],
        b'o' => &[("ops_eyJ", 40)],
        b'p' => &[
            ("pat-na1-", 30),
            ("pat-eu1-", 30),
            ("phc_", 40),
            ("phx_", 40),
            ("pplx-", 40),
            ("pscale_", 32),
            ("pul-", 40),
            ("pypi-", 40),
            ("prv_", 30),
        ],
        b'r' => &[("rk_live_", 10), ("rk_test_", 10), ("rk_prod_", 10), ("rubygems_", 40), ("re_", 30), ("rdme_", 60)],
        b's' => &[
            ("sk_live_", 10),
            ("sk_test_", 10),
            ("sk_prod_", 10),
            ("sk-", 20),
            ("sq0atp-", 20),
            ("sq0csp-", 20),
            ("shpat_", 30),
            ("shpca_", 30),
            ("shppa_", 30),
            ("shpss_", 30),
            ("sgp_", 40),
            ("sntrys_", 40),
            ("sntryu_", 40),
            ("sl.", 60),
            ("sbp_", 40),
            ("secret_", 40),
            ("sk_", 40),
        ],
        b't' => &[("tfp_", 40), ("tk-us-", 40)],
        b'w' => &[("whsec_", 20)],
        b'x' => &[
            ("xoxb-", 10),
            ("xoxp-", 10),
            ("xoxa-", 10),
            ("xoxo-", 10),
            ("xoxr-", 10),
            ("xoxs-", 10),
            ("xoxe", 10),
            ("xoxc-", 10),
            ("xoxd-", 10),
            ("xapp-", 10),
            ("xwfp-", 10),
            ("xkeysib-", 40),
        ],
        _ => &[],
    }
}

/// How `{"` begins in Base64, and how a block of PEM begins.
static JSON_TOKEN: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("eyJ"));
static PEM: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("-----BEGIN "));

/// Finds all shapes of secrets that are masked in any text.
pub(super) fn find(bytes: &[u8], edits: &mut Edits) {
    if bytes.len() < SHAPE_BYTES_MIN {
        return;
    }
    find_credentials(bytes, edits);
    private_keys(bytes, edits);
    words(bytes, true, edits);
}

/// Finds what is a credential wherever it stands, also in a URL that shall stay as it is: JWTs and API keys.
pub(super) fn find_credentials(bytes: &[u8], edits: &mut Edits) {
    if bytes.len() < SHAPE_BYTES_MIN {
        return;
    }
    json_tokens(bytes, edits);
    words(bytes, false, edits);
}

/// JWTs, JWEs, and other Base64 of JSON: `eyJ` is how `{"` begins in it.
fn json_tokens(bytes: &[u8], edits: &mut Edits) {
    let mut masked = 0;
    let mut part = Run::default();
    for start in JSON_TOKEN.find_iter(bytes) {
        if start < masked {
            continue;
        }
        let end = part.end(bytes, start, is_token);
        let header = end - start;
        let dotted = header >= JWT_HEADER_BYTES_MIN
            && bytes.get(end) == Some(&b'.')
            && bytes.get(end + 1).is_some_and(|byte| *byte == b'.' || is_token(*byte));
        // In the middle of other Base64 these letters are chance; behind a percent-encoded character they are not.
        let begins = start == 0 || !is_token(bytes[start - 1]) || (start >= 3 && bytes[start - 3] == b'%');
        if dotted || (begins && header >= JSON_BYTES_MIN) {
            let length = bytes[start..]
                .iter()
                .position(|byte| !is_dotted(*byte) && (dotted || *byte != b'/'))
                .unwrap_or(bytes.len() - start);
            let dots = bytes[start..start + length].iter().rev().take_while(|byte| **byte == b'.').count();
            masked = start + length;
            edits.mask(bytes, start, masked - dots);
        }
    }
}

/// Blocks of PEM (RFC 7468) whose label says private key, also cut off and with escaped line breaks.
fn private_keys(bytes: &[u8], edits: &mut Edits) {
    let mut masked = 0;
    for start in PEM.find_iter(bytes) {
        let label = &bytes[start + 11..bytes.len().min(start + 11 + 64)];
        let Some(label_end) = memmem::find(label, b"-----") else { continue };
        if start < masked || memmem::find(&label[..label_end], b"PRIVATE KEY").is_none() {
            continue;
        }
        let body = start + 11 + label_end;
        let Some(end) = memmem::find(&bytes[body..], b"-----END") else {
            return edits.mask(bytes, start, bytes.len());
        };
        let footer = body + end + 8;
        let rest = &bytes[footer..bytes.len().min(footer + 64)];
        masked = footer + memmem::find(rest, b"-----").map_or(0, |at| at + 5);
        edits.mask(bytes, start, masked);
    }
}

/// What begins with a word of letters and digits: API keys, and, when `all`, credentials of schemes and card numbers.
fn words(bytes: &[u8], all: bool, edits: &mut Edits) {
    let mut tail = Run::default();
    let mut credential = Run::default();
    let mut at = 0;
    while at < bytes.len() {
        if !bytes[at].is_ascii_alphanumeric() {
            at += 1;
            continue;
        }
        let mut start = at;
        while at < bytes.len() && bytes[at].is_ascii_alphanumeric() {
            at += 1;
        }
        let encoded = start > 0 && bytes[start - 1] == b'%' && at > start + 2;
        if encoded && bytes[start..start + 2].iter().all(u8::is_ascii_hexdigit) {
            start += 2;
        }
        match bytes[start] {
            b'0'..=b'9' if all => {
                if let Some(end) = card(bytes, start, at) {
                    edits.mask(bytes, start, end);
                }
            }
            b'B' | b'b' if all && is_scheme(&bytes[start..at]) => {
                let from = skip_encoded_spaces(bytes, at);
                let end = credential.end(bytes, from, is_credential);
                let is_parameter = bytes.get(end) == Some(&b'"') && end > from && bytes[end - 1] == b'=';
                if from > at && !is_parameter && looks_random(&bytes[from..end]) {
                    edits.mask(bytes, from, end);
                }
            }
            first => {
                let second = bytes.get(start + 1);
                for (prefix, least) in key_prefixes(first) {
                    if prefix.as_bytes().get(1) == second && bytes[start..].starts_with(prefix.as_bytes()) {
                        let from = start + prefix.len();
                        let end = if from < bytes.len() { tail.end(bytes, from, is_token) } else { from };
                        let sample = &bytes[from..end.min(from + 64)];
                        if end - from >= *least && is_mixed(sample) {
                            let more = bytes[end..].iter().take(256).take_while(|byte| is_dotted(**byte)).count();
                            let dots = bytes[end..end + more].iter().rev().take_while(|byte| **byte == b'.').count();
                            edits.mask(bytes, start, end + more - dots);
                        }
                    }
                }
            }
        }
    }
}

fn is_scheme(word: &[u8]) -> bool {
    word.eq_ignore_ascii_case(b"bearer") || word.eq_ignore_ascii_case(b"basic")
}

fn skip_encoded_spaces(bytes: &[u8], mut at: usize) -> usize {
    loop {
        match bytes.get(at) {
            Some(b' ' | b'\t' | b'+') => at += 1,
            Some(b'%') if bytes[at..].starts_with(b"%20") => at += 3,
            _ => return at,
        }
    }
}

/// Whether a credential is no plain word: it has a digit, a sign that words do not have, a capital letter within, or is long.
fn looks_random(credential: &[u8]) -> bool {
    let odd =
        |byte: &u8| byte.is_ascii_digit() || byte.is_ascii_uppercase() || matches!(byte, b'_' | b'~' | b'=' | b'%');
    credential.len() >= PLAIN_CREDENTIAL_BYTES_MIN
        || credential.len() >= 4 && (credential[0].is_ascii_digit() || credential[1..].iter().any(odd))
}

/// Where the card number that begins with the digits in `start..word_end` ends. Card numbers are those of ISO/IEC 7812: 13 to
/// 19 digits, the last one Luhn's check digit, of a known issuer. Between digits one space or dash may stand: in a group of
/// digits that is a card number as a whole, anywhere; in a longer one, where cards have them.
fn card(bytes: &[u8], start: usize, word_end: usize) -> Option<usize> {
    let mut digits = [0; 19];
    let (mut count, mut at, mut end) = (0, start, word_end);
    let mut found = None;
    let mut grouped = true;
    let mut separator = None;
    let before = start.checked_sub(1).map(|at| bytes[at]);
    let before_that = start.checked_sub(2).map(|at| bytes[at]);
    let follows_digit = before_that.is_some_and(|byte| byte.is_ascii_digit());
    if before == Some(b'.') && follows_digit {
        return None;
    }
    let whole_from_here = !(matches!(before, Some(b' ' | b'-')) && follows_digit);
    loop {
        let group = end - at;
        if group > digits.len() - count || !bytes[at..end].iter().all(u8::is_ascii_digit) {
            break;
        }
        for (digit, byte) in digits[count..].iter_mut().zip(&bytes[at..end]) {
            *digit = byte - b'0';
        }
        let first = count == 0;
        count += group;
        let goes_on = matches!(bytes.get(end), Some(b' ' | b'-'))
            && separator.is_none_or(|separator| separator == bytes[end])
            && bytes.get(end + 1).is_some_and(u8::is_ascii_digit);
        let laid_out = grouped && (!first || count >= 13);
        if count >= 13 && (laid_out || whole_from_here && !goes_on) && is_card_number(&digits[..count]) {
            found = Some(end);
        }
        grouped &= if first { matches!(group, 4 | 6) } else { group >= 3 };
        if !goes_on {
            break;
        }
        separator = Some(bytes[end]);
        at = end + 1;
        end = at + bytes[at..].iter().take(20).take_while(|byte| byte.is_ascii_alphanumeric()).count();
    }
    found.filter(|_| !is_in_uuid(bytes, start))
}

fn is_card_number(digits: &[u8]) -> bool {
    has_issuer(digits) && passes_luhn(digits)
}

/// Whether a scheme of cards issues numbers that begin so and are so long: the ranges of Visa, Mastercard, American Express,
/// Diners Club, Discover, JCB, UnionPay, Maestro, Mir, RuPay and Verve.
fn has_issuer(digits: &[u8]) -> bool {
    let start = |length: usize| digits[..length].iter().fold(0_u32, |number, digit| number * 10 + u32::from(*digit));
    let count = digits.len();
    match start(2) {
        40..=49 => matches!(count, 13 | 16 | 19),
        51..=55 => count == 16,
        34 | 37 => count == 15,
        35 => count >= 16 && matches!(start(4), 3528..=3589),
        30 => count >= 14 && matches!(start(3), 300..=305 | 309),
        36 | 38 | 39 => count >= 14,
        22..=27 => count == 16 && matches!(start(4), 2221..=2720) || count >= 16 && matches!(start(4), 2200..=2204),
        81 | 82 => count >= 16,
        50 | 56..=69 => true,
        _ => false,
    }
}

fn passes_luhn(digits: &[u8]) -> bool {
    let value = |(place, digit): (usize, &u8)| match (place % 2, digit * 2) {
        (0, _) => *digit,
        (_, doubled @ 0..=9) => doubled,
        (_, doubled) => doubled - 9,
    };
    digits.iter().rev().enumerate().map(value).map(u32::from).sum::<u32>().is_multiple_of(10)
}

/// Whether this place lies in a UUID (RFC 9562).
fn is_in_uuid(bytes: &[u8], at: usize) -> bool {
    let member = |byte: &&u8| byte.is_ascii_hexdigit() || **byte == b'-';
    let start = at - bytes[..at].iter().rev().take(36).take_while(member).count();
    let end = at + bytes[at..].iter().take(37).take_while(member).count();
    is_uuid(&bytes[start..end])
}

fn is_uuid(token: &[u8]) -> bool {
    token.len() == 36
        && token.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// Finds what is masked beside that in paths, anchors, and harmless parameters: long tokens and e-mail addresses.
pub(super) fn find_personal(bytes: &[u8], edits: &mut Edits) {
    let mut at = 0;
    while at + TOKEN_BYTES_MIN <= bytes.len() {
        let end = at + bytes[at..].iter().position(|byte| !is_base64(*byte)).unwrap_or(bytes.len() - at);
        if is_long_token(&bytes[at..end]) {
            edits.mask(bytes, at, end);
        }
        at = end + 1;
    }
    let mut masked = 0;
    for at in memchr::memchr_iter(b'@', bytes) {
        if let Some((start, end)) = address(bytes, at, masked) {
            edits.mask(bytes, start, end);
            masked = end;
        }
    }
}

/// Whether this is a token of at least [`TOKEN_BYTES_MIN`], not a UUID, and not words joined by dashes.
fn is_long_token(token: &[u8]) -> bool {
    let is_word = |part: &[u8]| part.len() <= MIXED_WORD_BYTES_MAX || !is_mixed(part);
    token.len() >= TOKEN_BYTES_MIN
        && is_mixed(token)
        && !is_uuid(token)
        && !token.split(|byte| matches!(byte, b'-' | b'_' | b'+' | b'~')).all(is_word)
}

fn is_mixed(token: &[u8]) -> bool {
    token.iter().any(u8::is_ascii_digit) && token.iter().any(u8::is_ascii_alphabetic)
}

/// The e-mail address (RFC 5321) around an `@`. Names of files after a version (`vue@3.2.js`) are none.
fn address(bytes: &[u8], at: usize, from: usize) -> Option<(usize, usize)> {
    const ENDINGS_OF_FILES: &[&[u8]] = &[
        b"js", b"mjs", b"cjs", b"css", b"map", b"ts", b"json", b"html", b"png", b"svg", b"jpg", b"jpeg", b"gif",
        b"webp",
    ];
    let local = |byte: &&u8| {
        byte.is_ascii_alphanumeric() || !byte.is_ascii() || matches!(byte, b'.' | b'_' | b'%' | b'+' | b'-' | b'\'')
    };
    let domain = |byte: &&u8| byte.is_ascii_alphanumeric() || !byte.is_ascii() || matches!(byte, b'.' | b'-');
    let start = at - bytes[from..at].iter().rev().take(64).take_while(local).count();
    let length = bytes[at + 1..].iter().take(254).take_while(domain).count();
    let host = &bytes[at + 1..at + 1 + length];
    let host = &host[..host.len() - host.iter().rev().take_while(|byte| matches!(byte, b'.' | b'-')).count()];
    let dot = memchr::memrchr(b'.', host)?;
    let last = &host[dot + 1..];
    let named = last.len() >= 2 && last.iter().all(|byte| byte.is_ascii_alphabetic() || !byte.is_ascii());
    let is_file = ENDINGS_OF_FILES.iter().any(|ending| last.eq_ignore_ascii_case(ending));
    (start < at && dot > 0 && named && !is_file).then_some((start, at + 1 + host.len()))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn is_base64(byte: u8) -> bool {
    is_token(byte) || matches!(byte, b'+' | b'=' | b'~')
}

fn is_dotted(byte: u8) -> bool {
    is_base64(byte) || byte == b'.'
}

fn is_credential(byte: u8) -> bool {
    is_dotted(byte) || matches!(byte, b'/' | b'%')
}
