//! What a link wants masked beside what is masked always.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use schemas::http::{MaskedInputs, MaskedText, MaskingRules};

use crate::redact::Names;
use crate::selector::{SelectorError, Selectors};

/// Rules, ready for use. Made once for each link's rules, and shared.
#[derive(Clone)]
pub struct Rules {
    /// Values of all form fields are masked, and what is typed elsewhere.
    pub(crate) all_inputs: bool,
    /// All texts are masked.
    pub(crate) all_text: bool,
    pub(crate) mask: Selectors,
    pub(crate) block: Selectors,
    /// Names in lower case.
    pub(crate) attributes: Vec<String>,
    pub(crate) network_bodies: bool,
    pub(crate) names: Names,
}

/// Rules name what a customer's pages hold: their content does not belong into a log.
impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rules")
    }
}

impl Rules {
    /// The rules of a link; an error when a selector is none.
    pub fn compile(rules: &MaskingRules) -> Result<Self, SelectorError> {
        Ok(Self {
            all_inputs: rules.inputs == MaskedInputs::All,
            all_text: rules.text == MaskedText::All,
            mask: Selectors::parse(rules.mask_selectors.iter().map(String::as_str))?,
            block: Selectors::parse(rules.block_selectors.iter().map(String::as_str))?,
            attributes: rules.attributes.iter().map(|name| name.trim().to_ascii_lowercase()).collect(),
            network_bodies: rules.network_bodies,
            names: Names::new(&rules.redact_keys),
        })
    }

    /// The rules in this JSON, as tokens and records have it. Control planes let no other in than can be compiled; of what cannot
    /// be understood all the same, everything is masked.
    pub fn of_json(rules: &str) -> Self {
        let compiled = serde_json::from_str::<MaskingRules>(rules).ok().and_then(|rules| Self::compile(&rules).ok());
        compiled.unwrap_or_else(Self::strictest)
    }

    /// Everything that rules can ask for without names: for what comes without the rules that it has.
    pub fn strictest() -> Self {
        Self { all_text: true, mask: Selectors::parse(["*"]).unwrap_or_default(), ..Self::default() }
    }

    pub(crate) fn has_selectors(&self) -> bool {
        !self.mask.is_empty() || !self.block.is_empty()
    }
}

/// The rules of a link that asks for none.
impl Default for Rules {
    fn default() -> Self {
        Self {
            all_inputs: true,
            all_text: false,
            mask: Selectors::default(),
            block: Selectors::default(),
            attributes: Vec::new(),
            network_bodies: false,
            names: Names::default(),
        }
    }
}

/// Rules that were compiled lately, by their JSON. Shared by threads.
#[derive(Debug)]
pub struct RuleBook {
    default: Arc<Rules>,
    strictest: Arc<Rules>,
    known: Mutex<BTreeMap<Box<str>, Arc<Rules>>>,
}

/// Rules that are kept compiled: a few MiB.
const RULES_KNOWN_MAX: usize = 1_024;

impl Default for RuleBook {
    fn default() -> Self {
        Self { default: Arc::default(), strictest: Arc::new(Rules::strictest()), known: Mutex::default() }
    }
}

impl RuleBook {
    /// The rules of a batch that came without those that its link may have.
    pub fn strictest(&self) -> Arc<Rules> {
        Arc::clone(&self.strictest)
    }

    /// The rules in this JSON; the default ones where there is none.
    pub fn rules(&self, json: Option<&str>) -> Arc<Rules> {
        let Some(json) = json else { return Arc::clone(&self.default) };
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(json) {
            return Arc::clone(known);
        }
        let compiled = Arc::new(Rules::of_json(json));
        let mut known = lock();
        if known.len() == RULES_KNOWN_MAX {
            known.clear();
        }
        known.insert(json.into(), Arc::clone(&compiled));
        compiled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_nobody_understands_mask_everything() {
        for json in ["", "7", "{\"inputs\":\"some\"}", "{\"unheard_of\":true}", "{\"mask_selectors\":[\"p {\"]}"] {
            let rules = Rules::of_json(json);
            assert!(rules.all_inputs && rules.all_text && !rules.mask.is_empty(), "{json}");
        }
        let rules = Rules::of_json("{\"inputs\":\"sensitive\",\"attributes\":[\" Title \"]}");
        assert!(!rules.all_inputs && !rules.all_text && rules.mask.is_empty());
        assert_eq!(rules.attributes, ["title"]);
    }

    #[test]
    fn rules_are_compiled_once_and_their_book_is_bounded() {
        let book = RuleBook::default();
        let rules = book.rules(Some("{\"text\":\"all\"}"));
        assert!(Arc::ptr_eq(&rules, &book.rules(Some("{\"text\":\"all\"}"))));
        assert!(!book.rules(None).all_text);
        for number in 0..2 * RULES_KNOWN_MAX {
            book.rules(Some(&format!("{{\"redact_keys\":[\"{number}\"]}}")));
        }
        assert!(book.known.lock().unwrap().len() <= RULES_KNOWN_MAX);
    }
}
