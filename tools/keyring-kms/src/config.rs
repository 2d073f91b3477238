//! The program's settings.

use std::collections::BTreeMap;

use sealing::keyring::KeyVersion;
use service_kit::config::{Env, Knob};

/// Which keys of which KMS, and as whom.
#[derive(Clone)]
pub struct KmsConfig {
    /// The id or ARN of each version's HMAC key.
    pub keys: BTreeMap<KeyVersion, String>,
    /// The version that wraps new keys, one of them.
    pub current: KeyVersion,
    /// The region that the keys are in.
    pub region: String,
    /// The server; absent for AWS itself.
    pub endpoint: Option<String>,
    /// The access key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// The session's token, where the access key is a temporary one.
    pub session_token: Option<String>,
}

impl std::fmt::Debug for KmsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KmsConfig")
            .field("keys", &self.keys)
            .field("current", &self.current)
            .field("region", &self.region)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

const KEYS: Knob = Knob {
    name: "CLAIRVIO_KMS_KEYS",
    doc: "The HMAC key of each version. An alias is refused: it can be moved, and all that was sealed would be lost.",
    unit: "1=<key id or ARN>,2=<key id or ARN>,…",
    default: None,
    secret: false,
};
const CURRENT: Knob = Knob {
    name: "CLAIRVIO_KMS_CURRENT",
    doc: "The version that wraps new keys; the greatest when it is not given. Every process has a version before one uses it.",
    unit: "a version",
    default: None,
    secret: false,
};
const REGION: Knob = Knob {
    name: "AWS_REGION",
    doc: "The region that the keys are in.",
    unit: "a region's name",
    default: None,
    secret: false,
};
const ENDPOINT: Knob = Knob {
    name: "KMS_ENDPOINT",
    doc: "The KMS server; leave it out for AWS.",
    unit: "a URL",
    default: None,
    secret: false,
};
const ACCESS_KEY: Knob =
    Knob { name: "AWS_ACCESS_KEY_ID", doc: "The access key.", unit: "text", default: None, secret: false };
const SECRET_KEY: Knob =
    Knob { name: "AWS_SECRET_ACCESS_KEY", doc: "The access key's secret.", unit: "text", default: None, secret: true };
const SESSION_TOKEN: Knob = Knob {
    name: "AWS_SESSION_TOKEN",
    doc: "The session's token, where the access key is a temporary one.",
    unit: "text",
    default: None,
    secret: true,
};

impl KmsConfig {
    /// Reads the settings.
    pub fn load(env: &mut Env<'_>) -> Self {
        let keys = env.parsed(&KEYS, BTreeMap::new(), parse_keys);
        let greatest = keys.keys().last().copied();
        let current = match env.optional_text(&CURRENT) {
            Some(text) => text.parse().ok().map(KeyVersion).filter(|version| keys.contains_key(version)),
            None => greatest,
        };
        if current.is_none() && greatest.is_some() {
            env.error(format!("{} is none of the versions in {}", CURRENT.name, KEYS.name));
        }
        Self {
            keys,
            // A configuration with errors is never used.
            current: current.unwrap_or(KeyVersion(0)),
            region: env.text(&REGION),
            endpoint: env.optional_text(&ENDPOINT),
            access_key: env.text(&ACCESS_KEY),
            secret_key: env.text(&SECRET_KEY),
            session_token: env.optional_text(&SESSION_TOKEN),
        }
    }
}

/// Each version and each key once: two versions with one key would be one.
fn parse_keys(text: &str) -> Option<BTreeMap<KeyVersion, String>> {
    let mut keys = BTreeMap::new();
    for entry in text.split(',') {
        let (version, key) = entry.split_once('=')?;
        let (version, key) = (version.trim().parse().ok().map(KeyVersion)?, key.trim());
        let is_alias = key.starts_with("alias/") || key.contains(":alias/");
        let is_known = keys.contains_key(&version) || keys.values().any(|known| known == key);
        if key.is_empty() || is_alias || is_known || key.contains(char::is_whitespace) {
            return None;
        }
        keys.insert(version, key.to_owned());
    }
    Some(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: [(&str, &str); 4] = [
        ("CLAIRVIO_KMS_KEYS", "1=aaaa, 10=arn:aws:kms:eu-central-1:1:key/bbbb,2=cccc"),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ACCESS_KEY_ID", "AKID"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
    ];

    fn load(changed: &[(&str, &str)]) -> Result<KmsConfig, Vec<String>> {
        let lookup = |name: &str| {
            let given = changed.iter().chain(&GIVEN).find(|(known, _)| *known == name);
            given.map(|(_, value)| (*value).to_owned())
        };
        let mut env = Env::new(&lookup);
        let config = KmsConfig::load(&mut env);
        if env.errors().is_empty() { Ok(config) } else { Err(env.errors().to_vec()) }
    }

    #[test]
    fn the_greatest_version_is_current_unless_another_is_named() {
        let config = load(&[]).unwrap();
        assert_eq!(config.keys.keys().map(|version| version.0).collect::<Vec<_>>(), [1, 2, 10]);
        assert_eq!(config.keys[&KeyVersion(10)], "arn:aws:kms:eu-central-1:1:key/bbbb");
        assert_eq!(config.current, KeyVersion(10));
        assert_eq!(load(&[("CLAIRVIO_KMS_CURRENT", "2")]).unwrap().current, KeyVersion(2));
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn what_could_lose_keys_is_refused() {
        for keys in ["", "aaaa", "1=", "1=aaaa,", "1=aaaa,1=bbbb", "1=aaaa,2=aaaa", "1=alias/root", "x=aaaa", "1=a a"] {
            let errors = load(&[("CLAIRVIO_KMS_KEYS", keys)]).unwrap_err();
            assert_eq!(errors.len(), 1, "{errors:?}");
        }
        assert!(load(&[("CLAIRVIO_KMS_KEYS", "1=arn:aws:kms:eu-central-1:1:alias/root")]).is_err());
        for current in ["3", "new", "-1"] {
            assert_eq!(load(&[("CLAIRVIO_KMS_CURRENT", current)]).unwrap_err().len(), 1);
        }
    }
}
