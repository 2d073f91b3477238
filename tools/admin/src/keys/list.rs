//! `clairvio keys list`: which keys there are, and what needs them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use sealing::keyring::KeyVersion;
use serde_json::{Value, json};
use service_kit::keys;
use service_kit::keys::KeysError;
use service_kit::keys::keyring::KeyringFile;
use service_kit::keys::tokens::{ControlKeys, EdgeKeys, RetiredKey};
use service_kit::keys::transport::TransportKeys;

use super::transport::Retention;
use crate::output::{moment, row, say, table};
use crate::settings::{self, CONTROL_FILE, EDGE_FILE, KEYRING, KEYRING_FILE, TRANSPORT_FILE, variable};

#[derive(Debug, Args)]
pub(crate) struct List {
    /// The file with the transport's keys. [default: CLAIRVIO_TRANSPORT_KEYS_FILE]
    #[arg(long, value_name = "FILE")]
    transport: Option<PathBuf>,
    /// The file with the keyring. [default: CLAIRVIO_KEYRING_FILE, else the text in CLAIRVIO_KEYRING]
    #[arg(long, value_name = "FILE")]
    keyring: Option<PathBuf>,
    /// The file with an edge's keys of tokens. [default: CLAIRVIO_EDGE_KEYS_FILE]
    #[arg(long, value_name = "FILE")]
    edge: Option<PathBuf>,
    /// The file with a control plane's keys of tokens. [default: CLAIRVIO_CONTROL_KEYS_FILE]
    #[arg(long, value_name = "FILE")]
    control: Option<PathBuf>,
    #[command(flatten)]
    retention: Retention,
    /// For machines.
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let file = |flag: Option<PathBuf>, name: &str| flag.or_else(|| variable(name).map(PathBuf::from));
        let mut found = Found::default();
        if let Some(path) = file(self.transport, TRANSPORT_FILE) {
            found.transport = Some((path.display().to_string(), keys::read(&path)?));
        }
        found.keyring = match (file(self.keyring, KEYRING_FILE), variable(KEYRING)) {
            (Some(path), _) => Some((path.display().to_string(), keys::read(&path)?)),
            (None, Some(text)) => {
                // The parser's error could quote the text: it is not told.
                let ring = serde_json::from_str(&text).map_err(|_| KeysError::Parse(format!("in {KEYRING}")))?;
                Some((KEYRING.to_owned(), ring))
            }
            (None, None) => None,
        };
        if let Some(path) = file(self.edge, EDGE_FILE) {
            found.edge = Some((path.display().to_string(), keys::read(&path)?));
        }
        if let Some(path) = file(self.control, CONTROL_FILE) {
            found.control = Some((path.display().to_string(), keys::read(&path)?));
        }
        if found.is_empty() {
            bail!(
                "list keys: no file is given\n  hint: --transport, --keyring, --edge, --control, or {TRANSPORT_FILE}, \
                 {KEYRING_FILE}, {EDGE_FILE}, {CONTROL_FILE}"
            );
        }
        if found.keyring.is_some() {
            found.count_uses().await?;
        }
        let listed = found.describe(&self.retention);
        if self.json { say(&format!("{listed:#}\n")) } else { say(&render(&listed)) }
    }
}

/// What was given, each with the name of where it lies.
#[derive(Debug, Default)]
struct Found {
    transport: Option<(String, TransportKeys)>,
    keyring: Option<(String, KeyringFile)>,
    edge: Option<(String, EdgeKeys)>,
    control: Option<(String, ControlKeys)>,
    /// Session keys that each version wraps, when there is a key store to ask.
    wrapped: Option<BTreeMap<KeyVersion, u64>>,
    /// Objects that are sealed under each version, when there is an index to ask.
    sealed: Option<BTreeMap<Option<KeyVersion>, u64>>,
}

impl Found {
    fn is_empty(&self) -> bool {
        self.transport.is_none() && self.keyring.is_none() && self.edge.is_none() && self.control.is_none()
    }

    async fn count_uses(&mut self) -> anyhow::Result<()> {
        if let Some(store) = settings::keystore_if_given()? {
            self.wrapped = Some(store.versions().await.context("count session keys")?.into_iter().collect());
        }
        if let Some(index) = settings::index_if_given()? {
            self.sealed = Some(index.sealed_under().await?.into_iter().collect());
        }
        Ok(())
    }

    /// All of it, without a secret.
    fn describe(&self, retention: &Retention) -> Value {
        let mut listed = json!({});
        if let Some((file, keys)) = &self.transport {
            listed["transport"] = json!({ "file": file, "epochs": epochs(keys, retention) });
        }
        if let Some((file, ring)) = &self.keyring {
            listed["keyring"] = self.versions(file, ring);
        }
        if let Some((file, keys)) = &self.edge {
            listed["edge"] = json!({
                "file": file,
                "link_keys": keys.link_keys.iter().map(|key| &key.kid).collect::<Vec<_>>(),
                "session_signing": keys.session_signing.kid,
                "session_next": keys.session_next.as_ref().map(|key| &key.kid),
                "session_keys": keys.session_keys.iter().map(|key| &key.kid).collect::<Vec<_>>(),
                "retired": keys.retired.iter().map(RetiredKey::kid).collect::<Vec<_>>(),
            });
        }
        if let Some((file, keys)) = &self.control {
            listed["control"] = json!({
                "file": file,
                "link_signing": keys.link_signing.kid,
                "link_next": keys.link_next.as_ref().map(|key| &key.kid),
            });
        }
        listed
    }

    fn versions(&self, file: &str, ring: &KeyringFile) -> Value {
        // Versions that something needs and the keyring does not have are what an operator must see first of all.
        let wrapped = self.wrapped.iter().flat_map(BTreeMap::keys).copied();
        let sealed = self.sealed.iter().flat_map(BTreeMap::keys).filter_map(|version| *version);
        let mut all: Vec<KeyVersion> = ring.versions().into_iter().chain(wrapped).chain(sealed).collect();
        all.sort_unstable();
        all.dedup();
        let known = ring.versions();
        let versions = all.into_iter().map(|version| {
            let state = match version.cmp(&ring.current()) {
                _ if !known.contains(&version) => "missing",
                std::cmp::Ordering::Less => "opens",
                std::cmp::Ordering::Equal => "current",
                std::cmp::Ordering::Greater => "stands ready",
            };
            json!({
                "version": version.0,
                "state": state,
                "session_keys": self.wrapped.as_ref().map(|wrapped| wrapped.get(&version).copied().unwrap_or(0)),
                "objects": self.sealed.as_ref().map(|sealed| sealed.get(&Some(version)).copied().unwrap_or(0)),
            })
        });
        let staged = self.sealed.as_ref().map(|sealed| sealed.get(&None).copied().unwrap_or(0));
        json!({ "file": file, "versions": versions.collect::<Vec<_>>(), "staged_objects": staged })
    }
}

fn epochs(keys: &TransportKeys, retention: &Retention) -> Vec<Value> {
    let current = keys.current().0.0;
    let epoch = |epoch: &keys::transport::Epoch| {
        let state = match epoch.id.cmp(&current) {
            std::cmp::Ordering::Less => "ended",
            std::cmp::Ordering::Equal => "current",
            std::cmp::Ordering::Greater => "stands ready",
        };
        json!({
            "id": epoch.id,
            "state": state,
            "ended_at": epoch.ended_at.map(moment),
            "destroyable_from": epoch.ended_at.map(|ended| moment(ended + retention.kept())),
        })
    };
    keys.epochs().iter().map(epoch).collect()
}

/// The same for people.
fn render(listed: &Value) -> String {
    let text = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut out = String::new();
    let section = |name: &str, of: &Value, head: Vec<String>, rows: Vec<Vec<String>>| {
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
        format!("{name}: {}\n{}", text(&of["file"]), table("  ", &rows))
    };
    let pick = |of: &Value, list: &str, fields: &[&str]| -> Vec<Vec<String>> {
        let items = of[list].as_array().into_iter().flatten();
        items.map(|item| fields.iter().map(|field| text(&item[*field])).collect()).collect()
    };
    if let Some(of) = listed.get("transport") {
        let rows = pick(of, "epochs", &["id", "state", "ended_at", "destroyable_from"]);
        out.push_str(&section(
            "transport keys",
            of,
            row(["epoch", "state", "ended at", "may be destroyed from"]),
            rows,
        ));
    }
    if let Some(of) = listed.get("keyring") {
        let rows = pick(of, "versions", &["version", "state", "session_keys", "objects"]);
        let head = row(["version", "state", "session keys wrapped", "objects sealed"]);
        out.push_str(&section("keyring", of, head, rows));
        match of["staged_objects"].as_u64() {
            Some(0) => {}
            Some(staged) => out.push_str(&format!("  staged objects, which may be sealed right now: {staged}\n")),
            None => out.push_str("  set DATABASE_URL to see what needs them\n"),
        }
    }
    if let Some(of) = listed.get("edge") {
        let kids = |field: &str, what: &str| -> Vec<Vec<String>> {
            let kids = of[field].as_array().into_iter().flatten();
            kids.map(|kid| vec![text(kid), what.to_owned()]).collect()
        };
        let mut rows = vec![vec![text(&of["session_signing"]), "signs session tokens".to_owned()]];
        let next = of["session_next"].as_str();
        rows.extend(next.map(|kid| vec![kid.to_owned(), "stands ready to sign session tokens".to_owned()]));
        rows.extend(kids("session_keys", "session tokens signed by it are taken"));
        rows.extend(kids("link_keys", "links signed by it are taken"));
        rows.extend(kids("retired", "retired: what it signed begins and sends nothing"));
        out.push_str(&section("edge's keys of tokens", of, row(["key", "use"]), rows));
    }
    if let Some(of) = listed.get("control") {
        let mut rows = vec![vec![text(&of["link_signing"]), "signs links".to_owned()]];
        let next = of["link_next"].as_str();
        rows.extend(next.map(|kid| vec![kid.to_owned(), "stands ready to sign links".to_owned()]));
        out.push_str(&section("control plane's keys of tokens", of, row(["key", "use"]), rows));
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use time::OffsetDateTime;

    use super::*;

    pub(crate) fn folder() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("clairvio-admin-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&folder).unwrap();
        folder
    }

    fn sample() -> (Found, Vec<String>) {
        let folder = folder();
        keys::make(&folder).unwrap();
        let path = |name| folder.join(name);
        let mut transport: TransportKeys = keys::read(&path(keys::TRANSPORT_FILE)).unwrap();
        transport.rotate(OffsetDateTime::UNIX_EPOCH).unwrap();
        let mut ring: KeyringFile = keys::read(&path(keys::KEYRING_FILE)).unwrap();
        ring.add().unwrap();
        let found = Found {
            transport: Some(("t".into(), transport)),
            keyring: Some(("k".into(), ring)),
            edge: Some(("e".into(), keys::read(&path(keys::EDGE_FILE)).unwrap())),
            control: Some(("c".into(), keys::read(&path(keys::CONTROL_FILE)).unwrap())),
            wrapped: Some([(KeyVersion(1), 12), (KeyVersion(9), 1)].into()),
            sealed: Some([(Some(KeyVersion(1)), 3), (None, 2)].into()),
        };
        // Everything in the files that looks like a secret: 32 bytes as base64.
        let files = [
            serde_json::to_string(&found.transport.as_ref().unwrap().1).unwrap(),
            serde_json::to_string(&found.keyring.as_ref().unwrap().1).unwrap(),
            serde_json::to_string(&found.edge.as_ref().unwrap().1).unwrap(),
            serde_json::to_string(&found.control.as_ref().unwrap().1).unwrap(),
        ];
        let texts =
            files.iter().flat_map(|file| file.split('"')).filter(|text| text.len() == 44 && text.ends_with('='));
        let secrets: Vec<String> = texts.map(str::to_owned).collect();
        std::fs::remove_dir_all(&folder).unwrap();
        (found, secrets)
    }

    #[test]
    fn all_keys_are_listed_and_no_secret_is() {
        let (found, secrets) = sample();
        assert_eq!(secrets.len(), 3 + 2 + 4 + 2);
        let listed = found.describe(&Retention { retention_hours: 72 });
        let text = render(&listed);
        for secret in secrets {
            assert!(!text.contains(&secret) && !listed.to_string().contains(&secret));
        }
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for expect in [
            "1 ended 1970-01-01T00:00:00Z 1970-01-04T04:00:00Z",
            "2 current - -",
            "3 stands ready - -",
            "1 current 12 3",
            "2 stands ready 0 0",
            "9 missing 1 0",
            "staged objects, which may be sealed right now: 2",
        ] {
            assert!(lines.iter().any(|line| line == expect), "{expect} in {text}");
        }
        let link = listed["control"]["link_signing"].as_str().unwrap();
        assert_eq!(listed["edge"]["link_keys"], json!([link, listed["control"]["link_next"]]));
        assert_eq!(text.matches(link).count(), 2);
    }

    #[test]
    fn without_databases_it_says_that_uses_are_not_known() {
        let (found, _) = sample();
        let found = Found { wrapped: None, sealed: None, ..found };
        let listed = found.describe(&Retention { retention_hours: 72 });
        assert_eq!(listed["keyring"]["versions"][0]["session_keys"], Value::Null);
        assert!(render(&listed).contains("set DATABASE_URL"));
    }
}
