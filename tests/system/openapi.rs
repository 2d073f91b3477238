//! `schemas/openapi.yaml` as tests use it: which calls there are, and whether an answer is what it says.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use jsonschema::Validator;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};

/// The page.
pub(crate) struct Spec {
    page: Value,
}

/// A call of the control plane.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Whether it is an operator's.
    pub(crate) is_operators: bool,
    /// Scopes of which it needs one.
    pub(crate) scopes: Vec<String>,
    pub(crate) responses: Value,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// What was answered, and found to be as the page says.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The body; null where it is none of JSON.
    pub(crate) body: Value,
}

impl Answer {
    /// The code of a refusal; empty when it is none.
    pub(crate) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

impl Spec {
    pub(crate) fn read() -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas/openapi.yaml");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut page: Value = serde_saphyr::from_str(&text).context("parse openapi.yaml")?;
        close(&mut page["components"]["schemas"])?;
        Ok(Self { page })
    }

    /// All calls of the control plane, those last that end something.
    pub(crate) fn calls(&self) -> Result<Vec<Call>> {
        let mut calls = Vec::new();
        for (path, methods) in self.page["paths"].as_object().context("paths")? {
            for (method, described) in methods.as_object().context("methods")? {
                let tag = described["tags"][0].as_str().unwrap_or_default();
                if method == "parameters" || tag == "edge" {
                    continue;
                }
                let scopes = described["x-scopes"].as_array().cloned().unwrap_or_default();
                let scopes: Vec<String> = scopes.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                let is_operators = tag == "operator";
                ensure!(is_operators || tag == "control", "{method} {path} has the tag {tag:?}");
                ensure!(is_operators == scopes.is_empty(), "{method} {path} has the scopes {scopes:?}");
                let (method, path, responses) = (method.clone(), path.clone(), described["responses"].clone());
                calls.push(Call { method, path, is_operators, scopes, responses });
            }
        }
        ensure!(calls.len() >= 19, "only {} calls were found", calls.len());
        calls.sort_by_key(|call| call.method == "delete");
        Ok(calls)
    }

    /// Makes a call, and demands that the answer is what the page says of it.
    pub(crate) async fn make(
        &self,
        api_url: &str,
        key: Option<&str>,
        call: &Call,
        id: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer> {
        let path = call.path.replace("{id}", id.unwrap_or("{id}"));
        ensure!(!path.contains('{'), "{call} needs an id");
        let method = Method::from_bytes(call.method.to_uppercase().as_bytes())?;
        let client = Client::builder().no_proxy().build()?;
        let mut request = client.request(method, format!("{api_url}{path}"));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.with_context(|| format!("send {call}"))?;
        self.check(call, response).await.with_context(|| format!("check the answer to {call}"))
    }

    async fn check(&self, call: &Call, response: Response) -> Result<Answer> {
        let status = response.status().as_u16();
        let content_type =
            response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let bytes = response.bytes().await?;
        let mut described = match &call.responses[status.to_string()] {
            Value::Null if status >= 400 => &call.responses["default"],
            Value::Null => bail!("the page knows of no answer with {status}"),
            described => described,
        };
        if let Some(name) = described["$ref"].as_str() {
            described = self.page.pointer(name.trim_start_matches('#')).context("find response")?;
        }
        let Some(contents) = described["content"].as_object() else {
            ensure!(bytes.is_empty(), "an answer with {status} has a body");
            return Ok(Answer { status, body: Value::Null });
        };
        let content_type = content_type.context("the answer has no content type")?;
        let content = contents.get(&content_type);
        let schema = &content.with_context(|| format!("the page knows nothing of {content_type}"))?["schema"];
        if content_type == "application/x-ndjson" || content_type == "application/gzip" {
            return Ok(Answer { status, body: Value::Null });
        }
        let body: Value = serde_json::from_slice(&bytes).context("the body is no JSON")?;
        let wrong: Vec<String> = self.validator(schema)?.iter_errors(&body).map(|error| error.to_string()).collect();
        ensure!(wrong.is_empty(), "with {status} came what the page does not say: {}", wrong.join("; "));
        ensure!(status < 400 || body["status"] == status, "the body has another status than {status}");
        Ok(Answer { status, body })
    }

    fn validator(&self, schema: &Value) -> Result<Validator> {
        let mut schema = schema.clone();
        schema["components"] = self.page["components"].clone();
        jsonschema::options().should_validate_formats(true).build(&schema).context("use schema")
    }
}

/// What a schema does not name must not come: else a field could go undescribed. An rrweb event has fields of its own.
fn close(schemas: &mut Value) -> Result<()> {
    for (name, schema) in schemas.as_object_mut().context("schemas")? {
        let object = schema.as_object_mut().context("a schema")?;
        if name != "Event" && object.contains_key("properties") && !object.contains_key("additionalProperties") {
            object.insert("additionalProperties".into(), json!(false));
        }
    }
    Ok(())
}

/// The page's checks find what they are for.
#[test]
fn a_field_that_the_page_does_not_name_or_that_is_missing_is_found() -> Result<()> {
    let spec = Spec::read()?;
    let validator = spec.validator(&json!({ "$ref": "#/components/schemas/KeyCreated" }))?;
    let id = "0190a000-0000-7000-8000-000000000001";
    let whole = json!({ "id": id, "key": "k", "name": "n", "scopes": ["read"], "created_at": "2026-03-23T00:00:00Z" });
    ensure!(validator.is_valid(&whole), "what the page describes is not taken");
    for (field, value) in [
        ("more", json!(1)),
        ("id", json!("7")),
        ("created_at", json!("yesterday")),
        ("scopes", json!(["owner"])),
        ("key", Value::Null),
    ] {
        let mut changed = whole.clone();
        changed[field] = value;
        ensure!(!validator.is_valid(&changed), "{field} may be anything");
    }
    let mut short = whole.clone();
    short.as_object_mut().context("an object")?.remove("key");
    ensure!(!validator.is_valid(&short), "a field may be missing");
    Ok(())
}
