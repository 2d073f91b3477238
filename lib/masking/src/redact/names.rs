//! Names whose values are secret.

/// The longest name that is looked at as a whole, in bytes without separators; of longer ones the end.
const NAME_BYTES_MAX: usize = 128;

/// Names are decoded this often: parameters are nested in parameters.
pub(super) const DECODINGS_MAX: usize = 3;

/// Wherever they stand in a name, its value is a secret.
///
/// From the default deny lists of Sentry (server-side scrubbing: password, secret, passwd, api_key, apikey, auth, credentials,
/// mysql_pwd, privatekey, private_key, token, bearer, stripetoken, card number) and PostHog (network payloads: the same
/// core), and OWASP's Logging Cheat Sheet ("data to exclude": session identifiers, access tokens, passwords, encryption
/// keys, bank account and payment card data). Passwords also by their names in German, French, Spanish, Portuguese,
/// Italian, Dutch and Polish forms. Grouped by first letter, for each place in a name is looked at once.
const fn stems(first: u8) -> &'static [&'static str] {
    match first {
        b'a' => &["accesskey", "accountnumber", "apikey", "apisecret", "authorization", "authkey"],
        b'b' => &["bearer"],
        b'c' => &["cardnumber", "cardno", "clientkey", "contrase", "creditcard", "credential", "csrf"],
        b'e' => &["encryptionkey"],
        b'h' => &["haslo"],
        b'k' => &["kennwort"],
        b'm' => &["masterkey", "motdepasse", "mysqlpwd"],
        b'o' => &["onetimecode"],
        b'p' => &["passcode", "passphrase", "passwd", "password", "passwort", "privatekey"],
        b'r' => &["recoverycode", "routingnumber"],
        b's' => &[
            "secret",
            "securitycode",
            "senha",
            "sessid",
            "sessionid",
            "sessionkey",
            "signature",
            "signingkey",
            "socialsecurity",
            "sshkey",
        ],
        b't' => &["token"],
        b'v' => &["verificationcode", "verifier"],
        b'w' => &["wachtwoord"],
        b'x' => &["xsrf"],
        _ => &[],
    }
}

/// Secret when they are a whole word of a name (`authData`, `user_pin`, `cvv2`), for they are parts of other words.
///
/// From the lists above; `jwt` RFC 7519, `otp` RFC 4226 and 6238, `assertion` RFC 7521, `cvv`, `cvc`, `csc` and `pin` PCI DSS.
const WORDS: &[&str] = &[
    "auth", "cvc", "cvv", "csc", "iban", "jwt", "oauth", "otp", "pass", "pin", "pswd", "pwd", "sid", "sig", "ssn",
    "totp",
];

/// Secret as a whole name only. `connect.sid` and PHP's and Java's session cookies are found by the lists above.
const WHOLE: &[&str] = &[
    "assertion",
    "cookie",
    "cookies",
    "cookie2",
    "documentcookie",
    "magiclink",
    "newpass",
    "oldpass",
    "pw",
    "setcookie",
    "setcookie2",
    "sessioncookie",
    "tan",
    "userpass",
    "xauth",
    "apiauth",
    "ccnum",
    "ccnumber",
];

/// Names that the lists above would take, and whose values are no secrets: counts and kinds of tokens (RFC 6749
/// `token_type`; usage of language models), addresses of endpoints (RFC 8414), and other words.
const HARMLESS: &[&str] = &[
    "accesscontrolallowcredentials",
    "withcredentials",
    "tokenize",
    "tokenized",
    "tokenization",
    "authtype",
    "authmethod",
    "authmode",
    "authprovider",
    "authstatus",
    "authtime",
    "completiontokens",
    "inputtokens",
    "maxtokens",
    "outputtokens",
    "prompttokens",
    "secretary",
    "tokencount",
    "tokenendpoint",
    "tokenexpiry",
    "tokenexpires",
    "tokenexpiresat",
    "tokenexpiresin",
    "tokenizer",
    "tokenlimit",
    "tokensused",
    "tokentype",
    "tokenurl",
    "tokenuri",
    "totaltokens",
    "authorizationendpoint",
    "authurl",
    "authuri",
    "passrate",
    "passcount",
];

/// The first two letters of all that is secret, a bit for each pair: most names are none without a further look.
const STARTS: [u32; 32] = {
    const fn add(mut starts: [u32; 32], names: &[&str]) -> [u32; 32] {
        let mut at = 0;
        while at < names.len() {
            let name = names[at].as_bytes();
            starts[(name[0] & 31) as usize] |= 1 << (name[1] & 31);
            at += 1;
        }
        starts
    }
    let mut starts = add(add([0; 32], WORDS), WHOLE);
    let mut first = b'a';
    while first <= b'z' {
        starts = add(starts, stems(first));
        first += 1;
    }
    starts
};

/// Of two words in prose ("API key: …") only these are a name; of one word all that is secret.
const PHRASES: &[&str] = &[
    "accesscode",
    "accesskey",
    "accountnumber",
    "apikey",
    "cardnumber",
    "creditcard",
    "encryptionkey",
    "licensekey",
    "passcode",
    "passphrase",
    "privatekey",
    "recoverycode",
    "secretkey",
    "securitycode",
    "sessionid",
    "signingkey",
    "verificationcode",
];

/// Too common as words of prose for what follows after a colon and a space to be a secret ("Tests pass: 12").
const WEAK: &[&str] =
    &["cookies", "passwords", "secrets", "tokens", "pass", "auth", "sid", "sig", "tan", "verifier", "signature"];

/// Secret as the name of a URL's parameter or of a form's field, beside all others: OAuth (RFC 6749 `code`, `state`; OpenID
/// Connect `nonce`), CAS tickets, SAML messages, signatures of signed URLs, and `key` as API keys are given in URLs.
const PARAMETERS: &[&str] = &[
    "code",
    "hmac",
    "key",
    "nonce",
    "relaystate",
    "samlart",
    "samlrequest",
    "samlresponse",
    "sign",
    "state",
    "ticket",
    "xamzcredential",
    "googleaccessid",
];

/// Headers that tell the address of a person, from PostHog's deny list of headers, RFC 7239 and the CDNs' own names.
const ADDRESSES: &[&str] = &[
    "xforwardedfor",
    "forwarded",
    "xrealip",
    "remoteaddr",
    "trueclientip",
    "cfconnectingip",
    "xclientip",
    "xclusterclientip",
    "fastlyclientip",
    "xoriginalforwardedfor",
    "xappengineuserip",
    "flyclientip",
    "from",
];

/// Headers whose value is one URL (RFC 9110 `Referer`, `Location`, `Content-Location`; RFC 6454 `Origin`; RFC 4918 `Destination`).
const URLS: &[&str] = &[
    "referer",
    "referrer",
    "location",
    "contentlocation",
    "origin",
    "destination",
    "sourcemap",
    "xsourcemap",
    "xoriginalurl",
    "xrewriteurl",
    "xforwardeduri",
    "path",
    "accesscontrolalloworigin",
    "xrequesturl",
];

/// Names whose values are secret: built-in ones, and those that a link adds (`redact_keys`).
#[derive(Clone, Debug, Default)]
pub struct Names {
    added: Vec<Box<[u8]>>,
}

impl Names {
    /// The built-in names, and these.
    pub fn new(added: &[String]) -> Self {
        let compact = |name: &String| {
            let compact = Compact::new(name.as_bytes());
            (!compact.is_empty()).then(|| compact.as_bytes().into())
        };
        Self { added: added.iter().filter_map(compact).collect() }
    }

    /// Whether a header, field, parameter or cookie of this name holds a secret. Case and separators do not matter. An added
    /// name is found when it is the whole name or whole words of it: `ssn` in `user_ssn` and `ssnLast4`, not in `lessno`.
    pub fn is_secret(&self, name: &str) -> bool {
        self.has(name.as_bytes())
    }

    pub(super) fn has(&self, name: &[u8]) -> bool {
        self.holds(&Compact::new(name))
    }

    /// Whether the parameter of a URL or the field of a form that has this name, percent-encoded, holds a secret.
    pub(super) fn has_parameter(&self, name: &[u8]) -> bool {
        if memchr::memchr(b'%', name).is_none() {
            return self.holds_parameter(&Compact::new(name));
        }
        let mut decoded = [0; 3 * NAME_BYTES_MAX];
        let tail = &name[name.len().saturating_sub(decoded.len())..];
        let mut length = tail.len();
        decoded[..length].copy_from_slice(tail);
        for _ in 0..DECODINGS_MAX {
            length = super::edits::percent_decode(&mut decoded[..length], true);
        }
        self.holds_parameter(&Compact::new(&decoded[..length]))
    }

    fn holds_parameter(&self, compact: &Compact) -> bool {
        compact.is_any(PARAMETERS) || self.holds(compact)
    }

    /// Whether two words of prose are the name of a secret.
    pub(super) fn has_phrase(&self, words: &[u8]) -> bool {
        let compact = Compact::new(words);
        compact.is_any(PHRASES) || self.added.iter().any(|added| compact.as_bytes() == &**added)
    }

    /// Whether a name is secret, but as a word of prose too common to be taken for one.
    pub(super) fn is_weak(&self, name: &[u8]) -> bool {
        let compact = Compact::new(name);
        compact.is_any(WEAK) && !self.added.iter().any(|added| compact.has_words(added))
    }

    fn holds(&self, name: &Compact) -> bool {
        if name.is_empty() {
            return false;
        }
        if self.added.iter().any(|added| name.as_bytes() == &**added || name.has_words(added)) {
            return true;
        }
        let bytes = name.as_bytes();
        if !bytes.windows(2).any(|pair| STARTS[usize::from(pair[0] & 31)] >> (pair[1] & 31) & 1 == 1) {
            return false;
        }
        let has_stem = |at: usize| stems(bytes[at]).iter().any(|stem| bytes[at..].starts_with(stem.as_bytes()));
        let has_word = |at: usize| WORDS.iter().any(|word| name.has_word_at(at, word.as_bytes()));
        let secret =
            (0..bytes.len()).any(|at| has_stem(at) || name.starts_word(at) && has_word(at)) || name.is_any(WHOLE);
        secret && !name.is_any(HARMLESS)
    }
}

/// How the value of a header is looked at.
#[derive(Clone, Copy)]
pub(super) enum HeaderKind {
    Secret,
    Url,
    Text,
}

pub(super) fn header_kind(name: &str, names: &Names) -> HeaderKind {
    let compact = Compact::new(name.as_bytes());
    if names.holds(&compact) || compact.is_any(ADDRESSES) || compact.as_bytes().starts_with(b"proxy") {
        HeaderKind::Secret
    } else if compact.is_any(URLS) {
        HeaderKind::Url
    } else {
        HeaderKind::Text
    }
}

/// Whether a name is one of these, whatever its case and separators; `*` at the end of a listed name stands for any rest.
pub(super) fn is_listed(name: &[u8], list: &[&str]) -> bool {
    let compact = Compact::new(name);
    list.iter().any(|listed| match listed.strip_suffix('*') {
        Some(start) => compact.as_bytes().starts_with(start.as_bytes()),
        None => compact.as_bytes() == listed.as_bytes(),
    })
}

/// A name in lower case and without separators, and where its words began.
struct Compact {
    bytes: [u8; NAME_BYTES_MAX],
    length: usize,
    word_starts: u128,
}

impl Compact {
    fn new(name: &[u8]) -> Self {
        let name = &name[name.len().saturating_sub(NAME_BYTES_MAX)..];
        let mut compact = Self { bytes: [0; NAME_BYTES_MAX], length: 0, word_starts: 0 };
        let mut before = b' ';
        for (at, &byte) in name.iter().enumerate() {
            if byte.is_ascii_alphanumeric() || !byte.is_ascii() {
                let after_word = !before.is_ascii_alphanumeric() && before.is_ascii();
                let next_is_small = name.get(at + 1).is_some_and(u8::is_ascii_lowercase);
                let camel = byte.is_ascii_uppercase() && (!before.is_ascii_uppercase() || next_is_small);
                if after_word || camel {
                    compact.word_starts |= 1 << compact.length;
                }
                compact.bytes[compact.length] = byte.to_ascii_lowercase();
                compact.length += 1;
            }
            before = byte;
        }
        compact
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn is_any(&self, list: &[&str]) -> bool {
        list.iter().any(|listed| self.as_bytes() == listed.as_bytes())
    }

    /// Whether these are whole words of the name. Digits may follow.
    fn has_words(&self, words: &[u8]) -> bool {
        (0..self.length).any(|at| self.starts_word(at) && self.has_word_at(at, words))
    }

    fn starts_word(&self, at: usize) -> bool {
        self.word_starts >> at & 1 == 1
    }

    fn has_word_at(&self, at: usize, word: &[u8]) -> bool {
        let (bytes, end) = (self.as_bytes(), at + word.len());
        bytes[at..].starts_with(word) && (end == bytes.len() || self.starts_word(end) || bytes[end].is_ascii_digit())
    }
}
