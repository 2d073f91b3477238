//! The program against a server that speaks KMS's `GenerateMac`, alone and behind a service's keyring.

#![expect(clippy::unwrap_used, reason = "what cannot be done here fails the test that wants it")]

mod fake_kms;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fake_kms::{FakeKms, Mode};
use keyring_kms::{KmsConfig, KmsKeyring};
use schemas::WorkspaceId;
use schemas::limits::KEYRING_ANSWER_MS_MAX;
use sealing::keyring::{KeyVersion, Keyring, KeyringError, Owner};
use service_kit::config::keys::KeyringSource;
use service_kit::shutdown::Shutdown;
use uuid::Uuid;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyring-kms");
const SECRET_KEY: &str = "secret-of-the-access-key";
const SESSION_TOKEN: &str = "token-of-the-session";

fn settings(kms: &FakeKms) -> Vec<(&'static str, String)> {
    vec![
        ("CLAIRVIO_KMS_KEYS", "1=first-key,2=second-key".into()),
        ("AWS_REGION", "eu-central-1".into()),
        ("AWS_ACCESS_KEY_ID", "AKID".into()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
        ("AWS_SESSION_TOKEN", SESSION_TOKEN.into()),
        ("KMS_ENDPOINT", kms.endpoint()),
    ]
}

fn keyring(kms: &FakeKms) -> KmsKeyring {
    KmsKeyring::new(&KmsConfig {
        keys: BTreeMap::from([(KeyVersion(1), "first-key".into()), (KeyVersion(2), "second-key".into())]),
        current: KeyVersion(2),
        region: "eu-central-1".into(),
        endpoint: Some(kms.endpoint()),
        access_key: "AKID".into(),
        secret_key: SECRET_KEY.into(),
        session_token: None,
    })
}

fn owners() -> [Owner; 3] {
    [Owner::Storage, owner(1), owner(2)]
}

fn owner(n: u128) -> Owner {
    Owner::Workspace(WorkspaceId(Uuid::from_u128(n)))
}

/// A script that starts the program with its settings: a service passes its own environment on, and a test cannot change its
/// own. Written by a process of its own: were the file open for writing in this one, another test's child could inherit it,
/// and until that child has started its program, the script cannot be started.
fn script(folder: &Path, settings: &[(&str, String)]) -> PathBuf {
    let path = folder.join("program");
    let exports: String = settings.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
    let text = format!("#!/bin/sh\necho started >> '{}'\n{exports}exec '{PROGRAM}'\n", starts(folder).display());
    let mut writer = Command::new("/bin/sh")
        .args(["-c", r#"cat > "$0" && chmod 700 "$0""#])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
    path
}

fn starts(folder: &Path) -> PathBuf {
    folder.join("starts")
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("never {what}"));
}

fn reason_of<T: std::fmt::Debug>(answer: Result<T, KeyringError>) -> String {
    match answer {
        Err(KeyringError::Unavailable(reason)) => reason,
        other => panic!("not unavailable: {other:?}"),
    }
}

/// Goal: a service has KMS's keys, whoever starts when. Method: a service's keyring, the real program, and a server that
/// makes real MACs; then all of it again.
#[tokio::test]
async fn a_service_has_the_same_keys_from_kms_before_and_after_a_restart() {
    let kms = FakeKms::start().await;
    let folder = tempfile::tempdir().unwrap();
    let source = KeyringSource::Program(script(folder.path(), &settings(&kms)));
    let mut seen = BTreeSet::new();
    for start in 0..2 {
        let keyring = service_kit::keys::keyring::open(&source, &Shutdown::new(Duration::ZERO)).unwrap();
        until("known", async || keyring.current() == Ok(KeyVersion(2))).await;
        assert_eq!(keyring.versions(), Ok(vec![KeyVersion(1), KeyVersion(2)]));
        for owner in owners() {
            for (version, key_id) in [(KeyVersion(1), "first-key"), (KeyVersion(2), "second-key")] {
                let key = *keyring.key(owner, version).await.unwrap().expose();
                let message = [b"clairvio keyring v1".as_slice(), &owner.to_bytes()].concat();
                assert_eq!(key, fake_kms::mac(key_id, &message));
                assert_eq!(*keyring.key(owner, version).await.unwrap().expose(), key);
                assert_eq!(
                    seen.insert(key),
                    start == 0,
                    "each owner and version has a key of its own, and always that"
                );
            }
        }
        let missing = keyring.key(Owner::Storage, KeyVersion(3)).await;
        assert_eq!(missing.unwrap_err(), KeyringError::Missing(KeyVersion(3)));
    }
    assert_eq!(std::fs::read_to_string(starts(folder.path())).unwrap(), "started\nstarted\n");

    let requests = kms.requests();
    assert_eq!(requests.len(), 2 * 6, "a service keeps keys, and nobody asks for a version that is not there");
    for request in requests {
        assert_eq!(request.header("x-amz-target"), "TrentService.GenerateMac");
        assert_eq!(request.header("content-type"), "application/x-amz-json-1.1");
        assert_eq!(request.header("x-amz-security-token"), SESSION_TOKEN);
        let authorization = request.header("authorization");
        assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKID/"), "{authorization}");
        assert!(authorization.contains("/eu-central-1/kms/aws4_request"), "{authorization}");
        assert_eq!(request.body["MacAlgorithm"], "HMAC_SHA_256");
    }
}

/// Goal: KMS out of reach is an error of each question, and costs the program nothing. Method: the server refuses, then
/// hangs, then answers; the program is started once.
#[tokio::test]
async fn a_service_hears_that_kms_is_out_of_reach_and_goes_on_when_it_is_back() {
    let kms = FakeKms::start().await;
    kms.set(Mode::Refuse(500, "KMSInternalException"));
    let folder = tempfile::tempdir().unwrap();
    let source = KeyringSource::Program(script(folder.path(), &settings(&kms)));
    let keyring = service_kit::keys::keyring::open(&source, &Shutdown::new(Duration::ZERO)).unwrap();
    until("known", async || keyring.current().is_ok()).await;
    assert!(reason_of(keyring.key(owner(1), KeyVersion(1)).await).contains("KMSInternalException"));
    kms.set(Mode::Hang);
    assert!(reason_of(keyring.key(owner(1), KeyVersion(1)).await).starts_with("ask KMS: "));
    kms.set(Mode::Refuse(400, "DisabledException"));
    let disabled = keyring.key(owner(1), KeyVersion(1)).await;
    assert_eq!(disabled.unwrap_err(), KeyringError::Missing(KeyVersion(1)));
    kms.set(Mode::Answer);
    assert!(keyring.key(owner(1), KeyVersion(1)).await.is_ok());
    assert_eq!(std::fs::read_to_string(starts(folder.path())).unwrap(), "started\n");
}

#[tokio::test]
async fn what_kms_refuses_is_missing_or_to_be_tried_again() {
    const MISSING: [&str; 3] = ["DisabledException", "NotFoundException", "KMSInvalidStateException"];
    let cases = [
        // Status, what KMS says, how often it is asked.
        (400, "DisabledException", 1),
        (400, "NotFoundException", 1),
        (400, "KMSInvalidStateException", 1),
        (400, "ThrottlingException", 3),
        (500, "KMSInternalException", 3),
        (500, "KeyUnavailableException", 3),
        (503, "ServiceUnavailable", 3),
        (400, "AccessDeniedException", 1),
        (400, "InvalidKeyUsageException", 1),
        (400, "UnrecognizedClientException", 1),
        (400, "ValidationException", 1),
    ];
    for (status, code, attempts) in cases {
        let kms = FakeKms::start().await;
        let keyring = keyring(&kms);
        kms.set(Mode::Refuse(status, code));
        let refused = keyring.key(owner(1), KeyVersion(1)).await;
        if MISSING.contains(&code) {
            assert_eq!(refused.unwrap_err(), KeyringError::Missing(KeyVersion(1)), "{code}");
        } else {
            assert_eq!(reason_of(refused), format!("KMS refuses: {code}: words of the server"));
        }
        assert_eq!(kms.requests().len(), attempts, "{code}");
        kms.set(Mode::Answer);
        assert!(keyring.key(owner(1), KeyVersion(1)).await.is_ok());
    }
}

#[tokio::test]
async fn a_failure_that_passes_is_not_seen() {
    let kms = FakeKms::start().await;
    kms.set(Mode::RefuseOnce(500, "KMSInternalException"));
    assert!(keyring(&kms).key(owner(1), KeyVersion(1)).await.is_ok());
    assert_eq!(kms.requests().len(), 2);
}

#[tokio::test]
async fn kms_that_hangs_or_is_gone_is_told_before_a_service_gives_the_program_up() {
    let patience = Duration::from_millis(KEYRING_ANSWER_MS_MAX);
    let kms = FakeKms::start().await;
    let keyring = keyring(&kms);
    kms.set(Mode::Hang);
    let asked_at = Instant::now();
    assert!(reason_of(keyring.key(owner(1), KeyVersion(1)).await).starts_with("ask KMS: "));
    assert!(asked_at.elapsed() < patience, "{:?}", asked_at.elapsed());
    drop(kms);
    assert!(reason_of(keyring.key(owner(1), KeyVersion(1)).await).starts_with("ask KMS: "));
}

#[tokio::test]
async fn an_answer_that_is_none_is_told_without_its_content() {
    let kms = FakeKms::start().await;
    let keyring = keyring(&kms);
    let mac = STANDARD.encode([7; 32]);
    let answers = [
        (format!(r#"{{"KeyId":"first-key","Mac":"{mac}""#), "KMS gave an answer that cannot be read (status 200)"),
        (format!(r#"{{"KeyId":"first-key","Mac":"{mac}!"}}"#), "KMS gave an answer that cannot be read (status 200)"),
        (r#"{"KeyId":"first-key"}"#.into(), "KMS answered without a MAC of 32 bytes"),
        (r#"{"KeyId":"first-key","Mac":"BwcHBwcHBwc="}"#.into(), "KMS answered without a MAC of 32 bytes"),
    ];
    for (answer, expected) in answers {
        kms.set(Mode::Say(answer));
        assert_eq!(reason_of(keyring.key(owner(1), KeyVersion(1)).await), expected);
    }
    assert!(!format!("{keyring:?}").contains(SECRET_KEY));
}

/// Starts the program, writes to it, and waits for its end.
async fn run(
    arguments: &'static [&'static str],
    settings: Vec<(&'static str, String)>,
    questions: &'static str,
) -> Output {
    let running = move || {
        let mut program = Command::new(PROGRAM)
            .args(arguments)
            .env_clear()
            .envs(settings)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may have ended without reading them.
        let _ = program.stdin.take().unwrap().write_all(questions.as_bytes());
        program.wait_with_output().unwrap()
    };
    tokio::task::spawn_blocking(running).await.unwrap()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn the_program_answers_what_it_was_asked_says_nothing_else_and_ends_with_its_input() {
    let kms = FakeKms::start().await;
    let mut settings = settings(&kms);
    settings.extend([
        ("CLAIRVIO_KMS_CURRENT", "1".into()),
        ("CLAIRVIO_LOG", "trace".into()),
        ("RUST_LOG", "trace".into()),
    ]);
    let questions = concat!(
        r#"{"id":7,"ask":"versions"}"#,
        "\n",
        r#"{"id":8,"ask":"key","owner":"0200000000000000000000000000000000","version":2}"#,
        "\n"
    );
    let output = run(&[], settings, questions).await;
    assert!(output.status.success());
    assert_eq!(text(&output.stderr), "");
    let message = [b"clairvio keyring v1".as_slice(), &Owner::Storage.to_bytes()].concat();
    let key = format!(r#"{{"id":8,"key":"{}"}}"#, STANDARD.encode(fake_kms::mac("second-key", &message)));
    let answers: BTreeSet<&str> = text(&output.stdout).lines().collect();
    assert_eq!(answers, BTreeSet::from([r#"{"id":7,"current":1,"versions":[1,2]}"#, &key]));

    let output = run(&[], self::settings(&kms), "nonsense\n").await;
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""));
    assert_eq!(text(&output.stderr), "keyring-kms: answer questions: a line is no question\n");
}

#[tokio::test]
async fn wrong_settings_are_told_all_at_once_and_secrets_never() {
    let output = run(&[], vec![("CLAIRVIO_KMS_KEYS", "1=alias/root".into())], "").await;
    assert_eq!(output.status.code(), Some(64));
    for name in ["CLAIRVIO_KMS_KEYS", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        assert!(text(&output.stderr).contains(name), "{}", text(&output.stderr));
    }
    let kms = FakeKms::start().await;
    let output = run(&["--print-config"], settings(&kms), "").await;
    assert!(output.status.success() && text(&output.stdout).contains("CLAIRVIO_KMS_KEYS=1=first-key,2=second-key"));
    assert!(!text(&output.stdout).contains(SECRET_KEY) && !text(&output.stdout).contains(SESSION_TOKEN));
    for (argument, expected) in
        [(["--help"].as_slice(), "CLAIRVIO_KEYRING_PROGRAM"), (&["--version"], "keyring-kms 0.")]
    {
        let output = run(argument, Vec::new(), "").await;
        assert!(output.status.success() && text(&output.stdout).contains(expected), "{output:?}");
    }
    assert_eq!(run(&["--serve"], Vec::new(), "").await.status.code(), Some(64));
}

/// Many owners at once, as when a batcher starts.
#[tokio::test]
async fn many_keys_are_had_at_once() {
    let kms = FakeKms::start().await;
    let keyring = Arc::new(keyring(&kms));
    let asked = (0..200).map(|n| keyring.key(owner(n), KeyVersion(1)));
    let keys = futures::future::join_all(asked).await;
    let keys: BTreeSet<[u8; 32]> = keys.into_iter().map(|key| *key.unwrap().expose()).collect();
    assert_eq!(keys.len(), 200);
}
