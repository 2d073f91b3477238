//! House rules that a machine can keep: who depends on whom, documents that name what exists, pages that match the code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use schemas::http::{ConsoleCounts, EventCounts, SessionItem};
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the workspace").to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

/// The files that git tracks or would track.
fn files() -> Vec<String> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists files");
    let text = String::from_utf8(listed.stdout).expect("paths are UTF-8");
    text.lines().filter(|path| root().join(path).is_file()).map(str::to_owned).collect()
}

/// Which of our crates each of our crates may depend on, tests apart. A line: schemas ← engine, masking, sealing ← service-kit ←
/// storage ← services; the edge stops at service-kit; tools, bench and tests depend on what they like, and nothing on them.
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    const SERVICE: &[&str] = &["schemas", "engine", "sealing", "service-kit", "storage"];
    const MASKING: &[&str] = &["schemas", "engine", "masking", "sealing", "service-kit", "storage"];
    BTreeMap::from([
        ("schemas", [].as_slice()),
        ("engine", &["schemas"]),
        ("masking", &["schemas"]),
        ("sealing", &["schemas"]),
        ("service-kit", &["schemas", "sealing"]),
        ("storage", &["schemas", "engine", "sealing", "service-kit"]),
        ("ingest-edge", &["schemas", "engine", "masking", "sealing", "service-kit"]),
        ("batcher", MASKING),
        ("compactor", SERVICE),
        ("retention-worker", SERVICE),
        ("control-plane", MASKING),
        ("admin", SERVICE),
        ("keyring-kms", &["schemas", "sealing", "service-kit"]),
        ("virtual-sdk", &["schemas", "masking"]),
        ("devstack", &["schemas", "service-kit", "storage", "virtual-sdk"]),
        (
            "bench",
            &[
                "schemas",
                "engine",
                "masking",
                "sealing",
                "service-kit",
                "storage",
                "ingest-edge",
                "devstack",
                "virtual-sdk",
            ],
        ),
        ("system-tests", &["schemas"]),
    ])
}

#[test]
fn dependencies_form_a_line() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo tells its metadata");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let allowed = allowed();
    assert_eq!(ours, allowed.keys().copied().collect(), "the list above names every crate");
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let (on, kind) = (dependency["name"].as_str().expect("a name"), dependency["kind"].as_str());
            if kind != Some("dev") && ours.contains(on) {
                assert!(allowed[name].contains(&on), "{name} must not depend on {on}");
            }
        }
        let manifest = std::fs::read_to_string(package["manifest_path"].as_str().expect("a path")).expect("manifest");
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name} does not take the workspace's lints");
    }
}

#[test]
fn the_edge_knows_neither_postgres_nor_s3() {
    let manifest = read("ingest-edge/Cargo.toml");
    for heavy in ["sqlx", "aws-", "storage"] {
        assert!(!manifest.contains(heavy), "ingest-edge/Cargo.toml names {heavy}");
    }
}

/// A key service stands behind a program: its client's weight is in that program alone.
#[test]
fn only_the_keyring_program_knows_a_key_service() {
    let manifests = files().into_iter().filter(|path| path.ends_with("/Cargo.toml"));
    let knowing: Vec<String> = manifests.filter(|path| read(path).contains("aws-sdk-kms")).collect();
    assert_eq!(knowing, ["tools/keyring-kms/Cargo.toml"]);
}

#[test]
fn every_service_has_the_same_files() {
    for service in ["ingest-edge", "batcher", "compactor", "retention-worker", "control-plane"] {
        for file in ["main.rs", "lib.rs", "driver.rs", "metrics.rs"] {
            assert!(root().join(service).join("src").join(file).is_file(), "{service}/src/{file} is missing");
        }
    }
}

/// Links in documents and paths in backticks name files that exist.
#[test]
fn documents_name_what_exists() {
    let files = files();
    let exists = |path: &str| {
        let path = path.trim_end_matches('/');
        files.iter().any(|file| file == path || file.starts_with(&format!("{path}/")))
    };
    for document in files.iter().filter(|path| path.ends_with(".md")) {
        let folder = Path::new(document).parent().expect("a file has a folder");
        for link in links(&read(document)) {
            let target = folder.join(link.split('#').next().unwrap_or_default());
            assert!(exists(&normal(&target)), "{document} links to {link}, which does not exist");
        }
        if folder.starts_with("bench/recorder") {
            continue;
        }
        for path in code_paths(&read(document)) {
            assert!(exists(&path), "{document} names {path}, which does not exist");
        }
    }
}

fn normal(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.components().filter_map(|part| part.as_os_str().to_str()) {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Relative targets of Markdown links.
fn links(text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.contains("://") && !target.starts_with('#') && !target.starts_with("mailto:"))
        .map(str::to_owned)
        .collect()
}

/// Texts in backticks that look like paths of this repository.
fn code_paths(text: &str) -> Vec<String> {
    const TOP: &[&str] = &[
        "schemas/",
        "ingest-edge/",
        "batcher/",
        "compactor/",
        "retention-worker/",
        "control-plane/",
        "lib/",
        "tools/",
        "bench/",
        "tests/",
        "docs/",
        "fuzz/",
    ];
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| TOP.iter().any(|top| code.starts_with(top)) && !code.contains([' ', '*', '<', '{', ':', '\n']))
        .map(str::to_owned)
        .collect()
}

/// `docs/configuration.md` is made from the knobs themselves: `UPDATE_PAGES=1 cargo test -p system-tests --test tidy`.
#[test]
fn the_configuration_page_is_that_of_the_code() {
    let mut page = "# Configuration\n\nAll settings are environment variables. A service started with `--print-config` \
                    shows them with their values;\none with wrong settings names all that is wrong, and exits with 64. A \
                    variable without a default must be given, unless\nits sentence says otherwise.\n\n"
        .to_owned();
    let parts = [
        ingest_edge::DEFINITION.reference(),
        batcher::DEFINITION.reference(),
        compactor::DEFINITION.reference(),
        retention_worker::DEFINITION.reference(),
        control_plane::DEFINITION.reference(),
    ];
    page.push_str(&parts.join("\n"));
    if std::env::var_os("UPDATE_PAGES").is_some() {
        std::fs::write(root().join("docs/configuration.md"), &page).expect("the page can be written");
    }
    assert_eq!(read("docs/configuration.md"), page, "run UPDATE_PAGES=1 cargo test -p system-tests --test tidy");
}

/// `schemas/openapi.yaml` describes every call there is, and no other.
#[test]
fn openapi_describes_every_call() {
    let mut described = BTreeSet::new();
    let mut path = String::new();
    for line in read("schemas/openapi.yaml").lines() {
        if let Some(found) = line.strip_prefix("  /").and_then(|rest| rest.strip_suffix(':')) {
            path = format!("/{found}");
        }
        for method in ["get", "post", "put", "patch", "delete"] {
            if line == format!("    {method}:") {
                described.insert((method.to_owned(), path.clone()));
            }
        }
    }
    let calls = ingest_edge::CALLS.iter().chain(control_plane::CALLS);
    let served: BTreeSet<(String, String)> =
        calls.map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(described, served);
}

/// A session in `schemas/openapi.yaml` has the fields that a session has, and no other.
#[test]
fn openapi_describes_a_session_as_it_is() {
    let id = "0190a000-0000-7000-8000-000000000001";
    let at = "2026-03-23T00:00:00Z";
    let item = json!({
        "id": id, "state": "ended", "reference": "r", "link_id": id, "started_at": at, "ended_at": at, "duration_ms": 1,
        "events": 1, "counts": EventCounts::default(), "pages": 1, "errors": 1, "active_ms": 1, "clicks": 1,
        "keypresses": 1, "console": ConsoleCounts::default(), "failed_requests": 1, "urls": [], "bytes_received": 1,
        "bytes_stored": 1, "stored_as": null, "expires_at": at, "completeness": null,
        "consent": { "notice_version": "v", "accepted_at": at, "receipt_id": id },
    });
    let item: SessionItem = serde_json::from_value(item).expect("a session");
    let page = read("schemas/openapi.yaml");
    let check = |schema: &str, value: Value| {
        let names: BTreeSet<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
        let (_, described) = page.split_once(&format!("\n    {schema}:\n")).expect("a schema");
        let (_, required) = described.split_once("required: [").expect("required fields");
        let (required, properties) = required.split_once(']').expect("the list's end");
        assert_eq!(required.split(',').map(str::trim).collect::<BTreeSet<_>>(), names, "required of {schema}");
        // Properties stand eight blanks in, and the next schema four.
        let properties = properties.lines().skip_while(|line| *line != "      properties:").skip(1);
        let named = properties
            .take_while(|line| line.starts_with("        "))
            .filter_map(|line| line.strip_prefix("        ")?.split_once(':'))
            .filter(|(name, _)| !name.starts_with(' '));
        assert_eq!(named.map(|(name, _)| name).collect::<BTreeSet<_>>(), names, "properties of {schema}");
    };
    check("ConsoleCounts", serde_json::to_value(item.console).expect("counts"));
    check("SessionItem", serde_json::to_value(item).expect("a session"));
}

/// Every invariant that code cites by id is in the registry, and every one in it is cited.
#[test]
fn invariants_are_cited() {
    let sources: String = files()
        .iter()
        .filter(|path| path.ends_with(".rs") && !path.ends_with("invariants.rs") && !path.starts_with("tests/tidy"))
        .map(|path| read(path))
        .collect();
    for invariant in engine::invariants::ALL {
        let lower = format!("{}_", invariant.id.to_lowercase());
        let padded = format!("{}{:0>2}_", &invariant.id[..1].to_lowercase(), &invariant.id[1..]);
        let cited = [")", ",", ":"].map(|after| format!("{}{after}", invariant.id));
        assert!(
            cited.iter().any(|text| sources.contains(text)) || sources.contains(&lower) || sources.contains(&padded),
            "no code or test cites {}: {}",
            invariant.id,
            invariant.sentence
        );
    }
}

/// No test is switched off, no note is left for later, and no expectation goes without its reason.
#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file does not find itself.
    let forbidden = [concat!("#[ign", "ore"), concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!(")];
    for path in files().iter().filter(|path| path.ends_with(".rs") || path.ends_with(".md") || path.ends_with(".sql")) {
        let text = read(path);
        for word in forbidden {
            assert!(!text.contains(word), "{path} has {word}");
        }
    }
}
