//! What becomes of an element's attributes.

use std::borrow::Cow;

use crate::redact::{self, Names};
use crate::rules::Rules;

/// Everything below an element with this attribute is masked.
pub const MASK_ATTRIBUTE: &str = "data-clairvio-mask";
/// Of an element with this attribute only its box is kept.
pub const BLOCK_ATTRIBUTE: &str = "data-clairvio-block";
/// rrweb sets it on a password's field whose type was changed.
pub(crate) const WAS_PASSWORD: &str = "data-rr-is-password";

/// What an element is, as far as rules go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    Input,
    Textarea,
    Select,
    /// An option, or a group of them.
    Option,
    Style,
    Script,
    Meta,
    Other,
    /// Only a change of its attributes is seen.
    Unseen,
}

impl Tag {
    pub(crate) fn of(name: &str) -> Self {
        const NAMED: [(&str, Tag); 8] = [
            ("input", Tag::Input),
            ("option", Tag::Option),
            ("style", Tag::Style),
            ("script", Tag::Script),
            ("select", Tag::Select),
            ("textarea", Tag::Textarea),
            ("optgroup", Tag::Option),
            ("meta", Tag::Meta),
        ];
        if !matches!(name.len(), 4..=8) {
            return Self::Other;
        }
        NAMED.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map_or(Self::Other, |(_, tag)| *tag)
    }

    fn is_field(self) -> bool {
        matches!(self, Self::Input | Self::Textarea | Self::Select)
    }
}

/// What an attribute is, by its name: what nothing is to be decided of is found out once, at the first look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Mask,
    Block,
    WasPassword,
    Editable,
    Type,
    Autocomplete,
    /// Its name or id, or what stands in a name's place on a `meta`.
    Named,
    Value,
    Label,
    Srcdoc,
    Content,
    Styles,
    Srcset,
    Url,
    Choice,
    /// Its text is shown or read out.
    Shown,
    Other,
}

impl Kind {
    /// By a name in lower case.
    pub(crate) fn of(name: &str) -> Self {
        match name {
            MASK_ATTRIBUTE => Self::Mask,
            BLOCK_ATTRIBUTE => Self::Block,
            WAS_PASSWORD => Self::WasPassword,
            "contenteditable" => Self::Editable,
            "type" => Self::Type,
            "autocomplete" => Self::Autocomplete,
            "name" | "id" | "property" | "itemprop" | "http-equiv" => Self::Named,
            "value" => Self::Value,
            "label" => Self::Label,
            "srcdoc" => Self::Srcdoc,
            "content" => Self::Content,
            "style" | "_csstext" => Self::Styles,
            "srcset" | "imagesrcset" => Self::Srcset,
            "href" | "src" | "action" | "formaction" | "poster" | "cite" | "data" | "background" | "xlink:href"
            | "ping" | "longdesc" | "manifest" | "rr_src" => Self::Url,
            "checked" | "selected" => Self::Choice,
            "placeholder"
            | "title"
            | "alt"
            | "summary"
            | "abbr"
            | "aria-label"
            | "aria-description"
            | "aria-placeholder"
            | "aria-roledescription"
            | "aria-valuetext"
            | "aria-braillelabel"
            | "aria-brailleroledescription"
            | "data-tooltip"
            | "data-title"
            | "data-content" => Self::Shown,
            _ => Self::Other,
        }
    }

    /// Whether what it says of its element has to be heard.
    pub(crate) fn speaks(self) -> bool {
        (self as u8) <= Self::Named as u8
    }
}

/// What an element's attributes say of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Said {
    pub(crate) masked: bool,
    pub(crate) blocked: bool,
    pub(crate) editable: bool,
    /// Its value is secret whatever the rules.
    pub(crate) secret: bool,
    /// Its value is a caption, and not what a person put in.
    button: bool,
    /// Its content is named like a secret.
    named: bool,
}

impl Said {
    /// Takes in an attribute.
    pub(crate) fn hear(&mut self, tag: Tag, kind: Kind, name: &str, value: &str, names: &Names) {
        match kind {
            Kind::Mask => self.masked = true,
            Kind::Block => self.blocked = true,
            Kind::Editable => self.editable = !value.trim().eq_ignore_ascii_case("false"),
            Kind::WasPassword => self.secret = true,
            Kind::Type => {
                let is = |kinds: &[&str]| kinds.iter().any(|kind| kind.eq_ignore_ascii_case(value.trim()));
                self.secret |= is(&["password", "hidden"]);
                self.button = is(&["button", "submit", "reset", "image"]);
            }
            Kind::Autocomplete => self.secret |= is_sensitive(value),
            Kind::Named if tag.is_field() || tag == Tag::Unseen => {
                self.secret |= matches!(name, "name" | "id") && names.is_secret(value)
            }
            Kind::Named if tag == Tag::Meta => self.named |= name != "id" && names.is_secret(value),
            _ => {}
        }
    }
}

/// Whether an autofill field holds a password, a one-time code or something of a payment card (HTML, "Autofill detail tokens").
fn is_sensitive(autocomplete: &str) -> bool {
    autocomplete.split_ascii_whitespace().any(|token| {
        let token = token.to_ascii_lowercase();
        matches!(token.as_str(), "current-password" | "new-password" | "one-time-code") || token.starts_with("cc-")
    })
}

/// What becomes of an attribute.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Keep,
    Mask,
    /// Masked if its element turns out to have been a password's field.
    MaskIfSecret,
    /// Its styles are kept without their texts.
    Styles,
    /// Not set: a choice that was made.
    Unset,
    Become(String),
}

/// What a verdict depends on, beside the attribute.
#[derive(Clone, Copy)]
pub(crate) struct Case<'r> {
    pub(crate) rules: &'r Rules,
    pub(crate) tag: Tag,
    pub(crate) said: Said,
    /// Whether the element is a masked one, or below one.
    pub(crate) masked: bool,
    /// Whether it may have been a password's field before.
    pub(crate) was_secret: Option<bool>,
}

/// Attributes that show nothing of what a page tells a person: they lay it out, or say what an element is. Of all others nothing
/// is kept below a masked element, for a page can show what it likes by any of them.
const LAYOUT: &[&str] = &[
    "align",
    "aria-hidden",
    "autocomplete",
    "border",
    "cellpadding",
    "cellspacing",
    "charset",
    "class",
    "clip-path",
    "clip-rule",
    "cols",
    "colspan",
    "contenteditable",
    "crossorigin",
    "cx",
    "cy",
    "d",
    "dir",
    "disabled",
    "display",
    "draggable",
    "dx",
    "dy",
    "fill",
    "fill-opacity",
    "fill-rule",
    "focusable",
    "font-family",
    "font-size",
    "font-weight",
    "for",
    "frameborder",
    "gradienttransform",
    "gradientunits",
    "height",
    "hidden",
    "hreflang",
    "id",
    "inert",
    "lang",
    "loading",
    "marker-end",
    "mask",
    "media",
    "method",
    "multiple",
    "name",
    "offset",
    "opacity",
    "open",
    "part",
    "pathlength",
    "points",
    "preserveaspectratio",
    "r",
    "readonly",
    "rel",
    "required",
    "role",
    "rows",
    "rowspan",
    "rr_height",
    "rr_mediacurrenttime",
    "rr_medialoop",
    "rr_mediamuted",
    "rr_mediaplaybackrate",
    "rr_mediastate",
    "rr_mediavolume",
    "rr_open_mode",
    "rr_scrollleft",
    "rr_scrolltop",
    "rr_width",
    "rx",
    "ry",
    "scope",
    "scrolling",
    "size",
    "sizes",
    "slot",
    "span",
    "spellcheck",
    "stop-color",
    "stop-opacity",
    "stroke",
    "stroke-dasharray",
    "stroke-linecap",
    "stroke-linejoin",
    "stroke-width",
    "tabindex",
    "target",
    "text-anchor",
    "transform",
    "type",
    "valign",
    "version",
    "viewbox",
    "width",
    "wrap",
    "x",
    "x1",
    "x2",
    "xmlns",
    "xmlns:xlink",
    "y",
    "y1",
    "y2",
];

/// What becomes of an attribute with a text as its value; its name is in lower case.
pub(crate) fn judge(case: &Case<'_>, kind: Kind, name: &str, value: &str) -> Verdict {
    let Case { rules, tag, said, masked, .. } = *case;
    // What says what is secret stays: it tells nothing of a person, and whoever comes later has to see it.
    if rules.attributes.iter().any(|masked| masked == name) && !is_deciding(kind) {
        return Verdict::Mask;
    }
    if masked {
        return judge_masked(kind, name, value, &rules.names);
    }
    let turned = |into: Option<String>| into.map_or(Verdict::Keep, Verdict::Become);
    match kind {
        Kind::Value => judge_value(case),
        Kind::Label if tag == Tag::Option && rules.all_inputs => Verdict::Mask,
        // A document of its own, of which nothing is known.
        Kind::Srcdoc => Verdict::Mask,
        Kind::Content if tag == Tag::Meta && said.named => Verdict::Mask,
        Kind::Shown | Kind::Label if rules.all_text => Verdict::Mask,
        Kind::Styles if may_have_query(value) => turned(redact::css(value, false, &rules.names)),
        Kind::Srcset => turned(redact::text(value, &rules.names)),
        Kind::Url => turned(redact::link_url(value, &rules.names)),
        _ => Verdict::Keep,
    }
}

fn is_deciding(kind: Kind) -> bool {
    kind.speaks() && kind != Kind::Named
}

/// Whether a kind of attribute is never touched on an element that is not masked, whatever its text.
pub(crate) fn is_always_kept(case: &Case<'_>, kind: Kind) -> bool {
    kind == Kind::Other && !case.masked && case.rules.attributes.is_empty()
}

/// Whether styles may have a URL with more than a path: all others need no second look.
pub(crate) fn may_have_query(styles: &str) -> bool {
    let styles = styles.as_bytes();
    memchr::memchr2(b'?', b'@', styles).is_some() && memchr::memmem::find(styles, b"://").is_some()
        || memchr::memchr(b'?', styles).is_some() && memchr::memmem::find(styles, b"url(").is_some()
}

fn judge_value(case: &Case<'_>) -> Verdict {
    let Case { rules, tag, said, was_secret, .. } = *case;
    match tag {
        _ if said.secret => Verdict::Mask,
        Tag::Input if said.button => {
            if rules.all_text {
                Verdict::Mask
            } else {
                Verdict::Keep
            }
        }
        Tag::Input | Tag::Textarea | Tag::Select | Tag::Option | Tag::Unseen if rules.all_inputs => Verdict::Mask,
        // What is chosen is a text of the page.
        Tag::Select | Tag::Option if rules.all_text => Verdict::Mask,
        Tag::Input | Tag::Textarea | Tag::Select | Tag::Unseen => match was_secret {
            Some(true) => Verdict::Mask,
            Some(false) => Verdict::Keep,
            None => Verdict::MaskIfSecret,
        },
        _ if rules.all_text => Verdict::Mask,
        _ => Verdict::Keep,
    }
}

fn judge_masked(kind: Kind, name: &str, value: &str, names: &Names) -> Verdict {
    let turned = |into: Option<String>| into.map_or(Verdict::Keep, Verdict::Become);
    match kind {
        Kind::Styles => turned(redact::css(value, true, names)),
        Kind::Mask | Kind::Block | Kind::WasPassword if value == "true" => Verdict::Keep,
        Kind::Url => turned(redact::masked_url(value)),
        _ if LAYOUT.binary_search(&name).is_ok() => Verdict::Keep,
        _ => Verdict::Mask,
    }
}

/// What becomes of an attribute whose value is no text and no number: rrweb has them for choices and, in changes, for styles.
pub(crate) fn judge_other(case: &Case<'_>, kind: Kind, name: &str, is_true: bool, is_nested: bool) -> Verdict {
    let Case { rules, tag, masked, .. } = *case;
    let is_named = rules.attributes.iter().any(|masked| masked == name);
    match kind {
        Kind::Styles if is_nested && !is_named => Verdict::Styles,
        // rrweb writes no other: what a player makes a text of may be anything.
        _ if is_nested => Verdict::Mask,
        Kind::Choice if is_true && (masked || is_named) => Verdict::Unset,
        Kind::Choice if is_true && name == "selected" && tag == Tag::Option && rules.all_inputs => Verdict::Unset,
        _ => Verdict::Keep,
    }
}

/// A name in lower case.
pub(crate) fn lower(name: Cow<'_, str>) -> Cow<'_, str> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) { Cow::Owned(name.to_ascii_lowercase()) } else { name }
}
