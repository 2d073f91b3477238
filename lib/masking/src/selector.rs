//! CSS selectors over the elements that are known.
//!
//! The grammar is the `selectors` crate's, which browsers use too. It matches against a whole document; here there is a stream of
//! events, in which siblings that follow, ancestors of a node that was added later, and what only a browser knows (`:checked`,
//! `:has()`) are not to be seen. So a match has three answers, and what may match is masked.

use std::fmt;

use cssparser::{ParseError, Parser as CssParser, ToCss, serialize_identifier};
use precomputed_hash::PrecomputedHash;
use selectors::attr::{AttrSelectorOperator, CaseSensitivity, ParsedAttrSelectorOperation, ParsedCaseSensitivity};
use selectors::parser::{
    Combinator, Component, NonTSPseudoClass, ParseRelative, PseudoElement, Selector as Parsed, SelectorImpl,
    SelectorList, SelectorParseErrorKind,
};
use thiserror::Error;

/// A text that is no selector that a browser's `matches` takes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a CSS selector of elements")]
pub struct SelectorError;

/// Steps that the match of one selector against one element may take, each for an element or 32 bytes of an attribute. Beyond
/// it the element may match.
const STEPS_MAX: u32 = 512;

/// Whether an element matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Truth {
    No,
    Unknown,
    Yes,
}

impl Truth {
    fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Unknown => Self::Unknown,
            Self::Yes => Self::No,
        }
    }
}

/// What is seen of an element.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// In lower case; none where only a change of attributes is seen.
    pub(crate) tag: Option<String>,
    /// Names in lower case; no value where an attribute was removed.
    pub(crate) attributes: Vec<(String, Option<String>)>,
}

/// What follows the origin of a URL of the web.
fn path_of(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    Some(&rest[rest.find('/')?..])
}

impl Seen {
    /// Whether a value that is new was masked before: nobody knows what it was.
    fn is_masked(&self, value: &str) -> bool {
        self.tag.is_none() && value.contains(crate::MASK)
    }

    /// The value of an attribute, or why there is none.
    fn value(&self, name: &str) -> Result<&str, Truth> {
        match self.attributes.iter().find(|(known, _)| known == name) {
            Some((_, Some(value))) => Ok(value),
            Some((_, None)) => Err(Truth::No),
            None if self.tag.is_some() => Err(Truth::No),
            None => Err(Truth::Unknown),
        }
    }
}

#[derive(Clone)]
enum Simple {
    Any,
    Tag(String),
    Id(String),
    Class(String),
    Exists(String),
    Attribute { name: String, operator: AttrSelectorOperator, value: String, case: ParsedCaseSensitivity },
    Not(Vec<Selector>),
    Is(Vec<Selector>),
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Parent,
    Ancestor,
    Sibling,
}

/// A selector, its rightmost compound first.
#[derive(Clone)]
struct Selector {
    compounds: Vec<Vec<Simple>>,
    /// How each compound's element is reached from that of the one before: one less than there are compounds.
    steps: Vec<Step>,
}

/// Selectors of which one has to match.
#[derive(Clone, Default)]
pub(crate) struct Selectors(Vec<Selector>);

impl Selectors {
    /// Selectors in CSS's own form; each may be a list.
    pub(crate) fn parse<'t>(texts: impl IntoIterator<Item = &'t str>) -> Result<Self, SelectorError> {
        let mut selectors = Vec::new();
        for text in texts {
            let mut input = CssParser::new(text);
            let parsed = SelectorList::parse(&Grammar, &mut input, ParseRelative::No).map_err(|_| SelectorError)?;
            selectors.extend(parsed.slice().iter().map(Selector::of));
        }
        Ok(Self(selectors))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the last element of `path` matches; the others are its ancestors, outermost first, all of them where it is rooted.
    ///
    /// `steps` are those that the batch may take yet: none left, and it may match.
    pub(crate) fn may_match(&self, path: &[Seen], is_rooted: bool, steps: &mut u64) -> bool {
        self.0.iter().any(|selector| within(steps, |steps| selector.matches(path, is_rooted, steps)) != Truth::No)
    }

    /// Whether an element that did not match, or what is below it, may match once these attributes have changed.
    pub(crate) fn may_match_since(&self, changed: &Seen, steps: &mut u64) -> bool {
        let changed_name = |name: &str| changed.attributes.iter().any(|(known, _)| known == name);
        self.0.iter().flat_map(|selector| &selector.compounds).any(|compound| {
            compound.iter().any(|simple| simple.looks_at(&changed_name))
                && within(steps, |steps| all(compound, changed, steps)) != Truth::No
        })
    }
}

/// Takes no more steps than one match may, and no more than are left.
fn within(left: &mut u64, matches: impl FnOnce(&mut u32) -> Truth) -> Truth {
    let allowed = STEPS_MAX.min(u32::try_from(*left).unwrap_or(STEPS_MAX));
    if allowed == 0 {
        return Truth::Unknown;
    }
    let mut steps = allowed;
    let truth = matches(&mut steps);
    *left -= u64::from(allowed - steps);
    truth
}

/// Takes the steps for looking at so many bytes; `false` when that many are not left.
fn charge(steps: &mut u32, bytes: usize) -> bool {
    let cost = 1 + u32::try_from(bytes / 32).unwrap_or(u32::MAX - 1);
    let is_left = cost <= *steps;
    *steps = steps.saturating_sub(cost);
    is_left
}

impl Selector {
    fn of(parsed: &Parsed<Impl>) -> Self {
        let mut selector = Self { compounds: vec![Vec::new()], steps: Vec::new() };
        for component in parsed.iter_raw_match_order() {
            if let Component::Combinator(combinator) = component {
                selector.steps.push(match combinator {
                    Combinator::Child => Step::Parent,
                    Combinator::Descendant => Step::Ancestor,
                    _ => Step::Sibling,
                });
                selector.compounds.push(Vec::new());
            } else if let Some(compound) = selector.compounds.last_mut() {
                compound.push(Simple::of(component));
            }
        }
        selector
    }

    fn is_compound(&self) -> bool {
        self.steps.is_empty()
    }

    fn matches(&self, path: &[Seen], is_rooted: bool, steps: &mut u32) -> Truth {
        self.matches_from(0, path, is_rooted, steps)
    }

    fn matches_from(&self, at: usize, path: &[Seen], is_rooted: bool, steps: &mut u32) -> Truth {
        let beyond = if is_rooted { Truth::No } else { Truth::Unknown };
        let Some((element, ancestors)) = path.split_last() else { return beyond };
        if *steps == 0 {
            return Truth::Unknown;
        }
        *steps -= 1;
        let own = all(&self.compounds[at], element, steps);
        let Some(step) = self.steps.get(at).filter(|_| own != Truth::No) else { return own };
        let others = match step {
            Step::Parent => self.matches_from(at + 1, ancestors, is_rooted, steps),
            Step::Ancestor => {
                let mut best = beyond;
                for len in (1..=ancestors.len()).rev() {
                    best = best.max(self.matches_from(at + 1, &ancestors[..len], is_rooted, steps));
                    if best == Truth::Yes || *steps == 0 {
                        break;
                    }
                }
                if *steps == 0 { best.max(Truth::Unknown) } else { best }
            }
            Step::Sibling => Truth::Unknown,
        };
        own.min(others)
    }
}

fn all(compound: &[Simple], element: &Seen, steps: &mut u32) -> Truth {
    compound.iter().map(|simple| simple.matches(element, steps)).min().unwrap_or(Truth::Yes)
}

impl Simple {
    fn of(component: &Component<Impl>) -> Self {
        let list = |list: &SelectorList<Impl>| -> Vec<Selector> { list.slice().iter().map(Selector::of).collect() };
        match component {
            Component::LocalName(name) => Self::Tag(name.lower_name.0.to_ascii_lowercase()),
            Component::ExplicitUniversalType | Component::ExplicitAnyNamespace => Self::Any,
            Component::ID(id) => Self::Id(id.0.clone()),
            Component::Class(class) => Self::Class(class.0.clone()),
            Component::AttributeInNoNamespaceExists { local_name_lower, .. } => {
                Self::Exists(local_name_lower.0.clone())
            }
            Component::AttributeInNoNamespace { local_name, operator, value, case_sensitivity } => Self::Attribute {
                name: local_name.0.to_ascii_lowercase(),
                operator: *operator,
                value: value.0.clone(),
                case: *case_sensitivity,
            },
            Component::AttributeOther(other) => match &other.operation {
                ParsedAttrSelectorOperation::Exists => Self::Exists(other.local_name_lower.0.clone()),
                ParsedAttrSelectorOperation::WithValue { operator, case_sensitivity, value } => Self::Attribute {
                    name: other.local_name_lower.0.clone(),
                    operator: *operator,
                    value: value.0.clone(),
                    case: *case_sensitivity,
                },
            },
            // Of a selector with steps it is not known in what tree a browser takes them: what may not match may match.
            Component::Negation(negated)
                if negated.slice().iter().map(Selector::of).all(|selector| selector.is_compound()) =>
            {
                Self::Not(list(negated))
            }
            Component::Is(any) | Component::Where(any)
                if any.slice().iter().map(Selector::of).all(|selector| selector.is_compound()) =>
            {
                Self::Is(list(any))
            }
            // Which child an element is changes without anything being told of it: so that is not known either.
            _ => Self::Unknown,
        }
    }

    fn matches(&self, element: &Seen, steps: &mut u32) -> Truth {
        if !charge(steps, 0) {
            return Truth::Unknown;
        }
        let any = |selectors: &[Selector], steps: &mut u32| {
            let truths = selectors.iter().map(|selector| all(&selector.compounds[0], element, steps));
            truths.max().unwrap_or(Truth::No)
        };
        match self {
            Self::Any => Truth::Yes,
            Self::Tag(tag) => match &element.tag {
                None => Truth::Unknown,
                Some(known) if known == tag => Truth::Yes,
                // What rrweb takes for no tag's name it writes as a div.
                Some(known)
                    if known == "div" && !tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') =>
                {
                    Truth::Unknown
                }
                Some(_) => Truth::No,
            },
            Self::Id(id) => match element.value("id") {
                Err(why) => why,
                Ok(value) if element.is_masked(value) || !charge(steps, value.len()) => Truth::Unknown,
                Ok(value) => same_name(value, id),
            },
            Self::Class(class) => match element.value("class") {
                Err(why) => why,
                Ok(value) if element.is_masked(value) || !charge(steps, value.len()) => Truth::Unknown,
                Ok(value) => {
                    let classes = value.split_ascii_whitespace().map(|known| same_name(known, class));
                    classes.max().unwrap_or(Truth::No)
                }
            },
            Self::Exists(name) => element.value(name).map_or_else(|why| why, |_| Truth::Yes),
            Self::Attribute { name, operator, value, case } => {
                let known = match element.value(name) {
                    Ok(known) => known,
                    Err(why) => return why,
                };
                if element.is_masked(known) || !charge(steps, known.len()) {
                    return Truth::Unknown;
                }
                if operator.eval_str(known, value, CaseSensitivity::CaseSensitive) {
                    return Truth::Yes;
                }
                // rrweb writes URLs with their origin, whatever the page has; and styles as a browser writes them.
                if let Some(path) = path_of(known) {
                    let written = if value.starts_with('/') { path } else { &path[1..] };
                    if operator.eval_str(written, value, CaseSensitivity::AsciiCaseInsensitive) {
                        return Truth::Yes;
                    }
                    if !value.starts_with('/') && !value.contains("://") {
                        return Truth::Unknown;
                    }
                }
                if name == "style" {
                    return Truth::Unknown;
                }
                match (case, operator.eval_str(known, value, CaseSensitivity::AsciiCaseInsensitive)) {
                    (_, false) | (ParsedCaseSensitivity::ExplicitCaseSensitive, true) => Truth::No,
                    (ParsedCaseSensitivity::AsciiCaseInsensitive, true) => Truth::Yes,
                    // Which it is depends on the kind of document.
                    (_, true) => Truth::Unknown,
                }
            }
            Self::Not(selectors) => any(selectors, steps).not(),
            Self::Is(selectors) => any(selectors, steps),
            Self::Unknown => Truth::Unknown,
        }
    }

    fn looks_at(&self, changed: &dyn Fn(&str) -> bool) -> bool {
        match self {
            Self::Id(_) => changed("id"),
            Self::Class(_) => changed("class"),
            Self::Exists(name) | Self::Attribute { name, .. } => changed(name),
            Self::Not(selectors) | Self::Is(selectors) => selectors
                .iter()
                .flat_map(|selector| selector.compounds.iter().flatten())
                .any(|simple| simple.looks_at(changed)),
            // What only a browser knows was taken to match before.
            Self::Any | Self::Tag(_) | Self::Unknown => false,
        }
    }
}

/// Ids and classes are compared with their case, but in documents in quirks mode without it.
fn same_name(known: &str, wanted: &str) -> Truth {
    if known == wanted {
        Truth::Yes
    } else if known.eq_ignore_ascii_case(wanted) {
        Truth::Unknown
    } else {
        Truth::No
    }
}

/// What the `selectors` crate wants to know of our texts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Impl;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Text(String);

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::borrow::Borrow<str> for Text {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl ToCss for Text {
    fn to_css<W: fmt::Write>(&self, dest: &mut W) -> fmt::Result {
        serialize_identifier(&self.0, dest)
    }
}

impl PrecomputedHash for Text {
    fn precomputed_hash(&self) -> u32 {
        // Asked for by bloom filters only, which are not used here.
        0
    }
}

/// A pseudo-class that only a browser can decide.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pseudo;

impl ToCss for Pseudo {
    fn to_css<W: fmt::Write>(&self, dest: &mut W) -> fmt::Result {
        dest.write_str(":-unknown")
    }
}

impl NonTSPseudoClass for Pseudo {
    fn is_active_or_hover(&self) -> bool {
        false
    }

    fn is_user_action_state(&self) -> bool {
        false
    }
}

impl PseudoElement for Pseudo {}

impl SelectorImpl for Impl {
    type ExtraMatchingData<'a> = ();
    type AttrValue = Text;
    type Identifier = Text;
    type LocalName = Text;
    type NamespaceUrl = Text;
    type NamespacePrefix = Text;
    type BorrowedNamespaceUrl = str;
    type BorrowedLocalName = str;
    type NonTSPseudoClass = Pseudo;
    type PseudoElement = Pseudo;
}

struct Grammar;

impl<'i> selectors::Parser<'i> for Grammar {
    type Impl = Impl;
    type Error = SelectorParseErrorKind;

    fn parse_nth_child_of(&self) -> bool {
        true
    }

    fn parse_is_and_where(&self) -> bool {
        true
    }

    fn parse_has(&self) -> bool {
        true
    }

    fn parse_host(&self) -> bool {
        true
    }

    fn parse_non_ts_pseudo_class(&self, _: &str) -> Result<Pseudo, ParseError<Self::Error>> {
        Ok(Pseudo)
    }

    fn parse_non_ts_functional_pseudo_class(
        &self,
        _: &str,
        parser: &mut CssParser<'i>,
        _: bool,
    ) -> Result<Pseudo, ParseError<Self::Error>> {
        while parser.next().is_ok() {}
        Ok(Pseudo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(tag: &str, attributes: &[(&str, &str)]) -> Seen {
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned())));
        Seen { tag: Some(tag.to_owned()), attributes: attributes.collect() }
    }

    fn truth(selector: &str, path: &[Seen], is_rooted: bool) -> Truth {
        let parsed = Selectors::parse([selector]).unwrap();
        parsed.0.iter().map(|selector| selector.matches(path, is_rooted, &mut STEPS_MAX.clone())).max().unwrap()
    }

    #[test]
    fn elements_match_do_not_or_may() {
        let page = [
            element("html", &[]),
            element("body", &[("class", "app dark")]),
            element("form", &[("id", "pay"), ("data-step", "2")]),
            element("input", &[("class", "wide Field"), ("name", "iban"), ("type", "text")]),
        ];
        for (selector, expect) in [
            ("input", Truth::Yes),
            ("INPUT", Truth::Yes),
            ("*", Truth::Yes),
            ("textarea", Truth::No),
            (".wide", Truth::Yes),
            (".field", Truth::Unknown),
            ("#iban", Truth::No),
            ("[name]", Truth::Yes),
            ("[name=iban]", Truth::Yes),
            ("[name^=ib]", Truth::Yes),
            ("[NAME=IBAN]", Truth::Unknown),
            ("[name=IBAN i]", Truth::Yes),
            ("[name=IBAN s]", Truth::No),
            ("[class~=wide]", Truth::Yes),
            ("[data-x]", Truth::No),
            ("#pay > input", Truth::Yes),
            ("body > input", Truth::No),
            ("body input", Truth::Yes),
            (".dark [data-step='2'] .wide", Truth::Yes),
            (".light input", Truth::No),
            ("html > body > form > input", Truth::Yes),
            ("main input, form input", Truth::Yes),
            (":is(.narrow, .wide)", Truth::Yes),
            (":where(.narrow)", Truth::No),
            ("input:not(.wide)", Truth::No),
            ("input:not(.narrow)", Truth::Yes),
            ("input:not(form *)", Truth::Unknown),
            ("textarea:not(form *)", Truth::No),
            ("input:first-child", Truth::Unknown),
            ("input:nth-child(2)", Truth::Unknown),
            ("input:last-child", Truth::Unknown),
            ("input:first-of-type", Truth::Unknown),
            ("input:nth-child(2 of .wide)", Truth::Unknown),
            ("label + input", Truth::Unknown),
            ("label ~ textarea", Truth::No),
            ("input:checked", Truth::Unknown),
            ("select:checked", Truth::No),
            ("form:has(.x)", Truth::No),
            ("input:has(.x)", Truth::Unknown),
            ("input:lang(de)", Truth::Unknown),
        ] {
            assert_eq!(truth(selector, &page, true), expect, "{selector}");
        }
        // Of an element that was added later the ancestors are not known.
        let added = [element("p", &[("class", "note")])];
        for (selector, expect) in [
            ("p", Truth::Yes),
            (".card .note", Truth::Unknown),
            (".card > .note", Truth::Unknown),
            (".card .other", Truth::No),
            ("p:not(.note)", Truth::No),
            (":not(.public) p", Truth::Unknown),
        ] {
            assert_eq!(truth(selector, &added, false), expect, "{selector}");
        }
    }

    #[test]
    fn attributes_that_are_set_late_may_make_a_match() {
        let change = |name: &str, value: Option<&str>| Seen {
            tag: None,
            attributes: vec![(name.to_owned(), value.map(str::to_owned))],
        };
        for (selector, name, value, expect) in [
            (".private", "class", Some("a private"), true),
            (".private", "class", Some("a"), false),
            (".private", "class", None, false),
            (".private", "style", Some("private"), false),
            ("p.private", "class", Some("private"), true),
            (".private[data-x]", "class", Some("private"), true),
            (".private[data-x]", "data-x", Some(""), true),
            (".outer .inner", "class", Some("outer"), true),
            ("#secret", "id", Some("secret"), true),
            ("[data-x=one]", "data-x", Some("two"), false),
            ("[data-x=one]", "data-x", Some("***"), true),
            ("p:not(.public)", "class", None, true),
            ("p:not(.public)", "class", Some("public"), false),
            ("p:hover", "class", Some("a"), false),
            ("*", "class", Some("a"), false),
        ] {
            let selectors = Selectors::parse([selector]).unwrap();
            assert_eq!(
                selectors.may_match_since(&change(name, value), &mut 1_000),
                expect,
                "{selector} {name}={value:?}"
            );
        }
    }

    #[test]
    fn what_no_browser_takes_is_refused() {
        for text in ["", " ", ">", "p::before", "p..x", "[", "p {", "a,", "ns|p", "#"] {
            assert!(Selectors::parse([text]).is_err(), "{text:?}");
        }
    }

    #[test]
    fn no_selector_takes_more_than_its_steps() {
        let path: Vec<Seen> = (0..500).map(|_| element("div", &[("class", "a")])).collect();
        // A browser would try all ways to lay it over the ancestors.
        let selector = format!(".b {} > .a", ".a > .a .a > .a ".repeat(50).trim_end());
        assert_eq!(truth(&selector, &path, true), Truth::Unknown);
    }
}
