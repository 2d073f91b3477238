//! The keyring against real programs: shell scripts that answer, and that do not.
//!
//! A script's parts are the commands for each question; it notes in a file what happened to it. A test repairs its script by
//! a file that the script looks for, and waits for conditions.

use std::cell::RefCell;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Once;

use schemas::WorkspaceId;
use uuid::Uuid;

use super::*;

const PATIENT: Times = Times {
    answer: Duration::from_secs(60),
    look: Duration::from_secs(60),
    kept: Duration::from_secs(60),
    restart_min: Duration::from_millis(2),
    restart_max: Duration::from_millis(20),
};
const VERSIONS: &str = r#"echo "{\"id\":$id,\"current\":2,\"versions\":[1,2]}""#;
/// A key of 32 bytes, made of owner and version: the owner's digits are base64 as well.
const KEY: &str = r#"echo "{\"id\":$id,\"key\":\"${owner}AAAAAAA${version}A=\"}""#;

/// A script in a folder of its own, which goes with it.
struct Script {
    folder: PathBuf,
}

impl Script {
    fn new(on_versions: &str, on_key: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("clairvio-keyring-program-{}", Uuid::now_v7()));
        fs::create_dir(&folder).unwrap();
        let script = Self { folder };
        script.write(&format!(
            r#"#!/bin/sh
cd "{folder}"
note() {{ echo "$1" >> notes; }}
note "started $$"
while read -r line; do
    id=${{line#*'"id":'}}; id=${{id%%[!0-9]*}}
    owner=${{line#*'"owner":"'}}; owner=${{owner%%'"'*}}
    version=${{line#*'"version":'}}; version=${{version%%[!0-9]*}}
    case "$line" in
    *'"ask":"versions"'*) note versions
        {on_versions} ;;
    *'"ask":"key"'*) note key
        {on_key} ;;
    esac
done
"#,
            folder = script.folder.display()
        ));
        script
    }

    fn path(&self) -> PathBuf {
        self.folder.join("program")
    }

    /// By a process of its own: were the file open for writing in this one, another test's child could inherit it, and until
    /// that child has started its program, ours cannot be started.
    fn write(&self, text: &str) {
        let mut writer = Command::new("/bin/sh")
            .args(["-c", r#"cat > "$0" && chmod 700 "$0""#])
            .arg(self.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
    }

    fn touch(&self, name: &str) {
        fs::write(self.folder.join(name), "").unwrap();
    }

    /// How often something happened to it.
    fn noted(&self, what: &str) -> usize {
        self.notes().iter().filter(|note| note.starts_with(what)).count()
    }

    fn notes(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.join("notes")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // A script that is ending may write its notes still: its folder is then left to the system.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn owner(n: u128) -> Owner {
    Owner::Workspace(WorkspaceId(Uuid::from_u128(n)))
}

fn open(script: &Script, times: Times) -> ProgramKeyring {
    ProgramKeyring::with(&script.path(), times).unwrap()
}

async fn key_of(keyring: &ProgramKeyring, n: u128) -> Result<[u8; 32], KeyringError> {
    keyring.key(owner(n), KeyVersion(1)).await.map(|key| *key.expose())
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

#[tokio::test]
async fn a_key_is_asked_for_once_and_each_owner_and_version_has_its_own() {
    let script = Script::new(VERSIONS, KEY);
    let keyring = open(&script, PATIENT);
    assert!(matches!(keyring.current(), Err(KeyringError::Unavailable(_))), "nothing is known before the first answer");
    let mut keys = BTreeSet::new();
    for version in [KeyVersion(1), KeyVersion(2)] {
        for owner in [owner(1), owner(2), Owner::Storage] {
            let key = *keyring.key(owner, version).await.unwrap().expose();
            assert!(keys.insert(key));
            assert_eq!(*keyring.key(owner, version).await.unwrap().expose(), key);
        }
    }
    assert_eq!((script.noted("started"), script.noted("key")), (1, 6));

    let again = open(&script, PATIENT);
    assert!(keys.contains(&key_of(&again, 1).await.unwrap()), "a new program has the same keys");
}

#[tokio::test]
async fn a_new_current_version_is_seen_without_a_restart() {
    let versions = r#"if [ -e rotated ]; then current=2; else current=1; fi
        echo "{\"id\":$id,\"current\":$current,\"versions\":[1,$current]}""#;
    let script = Script::new(versions, KEY);
    let keyring = open(&script, Times { look: Duration::from_millis(20), ..PATIENT });
    until("known", async || keyring.current() == Ok(KeyVersion(1))).await;
    script.touch("rotated");
    until("rotated", async || keyring.current() == Ok(KeyVersion(2))).await;
    assert_eq!(keyring.versions(), Ok(vec![KeyVersion(1), KeyVersion(2)]));
    assert_eq!(script.noted("started"), 1);
}

#[tokio::test]
async fn a_key_is_asked_for_again_when_its_time_is_over() {
    let script = Script::new(VERSIONS, KEY);
    let keyring = open(&script, Times { kept: Duration::from_millis(50), ..PATIENT });
    let first = key_of(&keyring, 1).await.unwrap();
    until("asked again", async || {
        assert_eq!(key_of(&keyring, 1).await, Ok(first));
        script.noted("key") >= 2
    })
    .await;
}

#[tokio::test]
async fn refusals_are_passed_on_and_harm_nothing() {
    let on_key = r#"case $version in
        8) echo "{\"id\":$id,\"error\":\"missing\"}" ;;
        9) echo "{\"id\":$id,\"error\":\"unavailable\",\"reason\":\"throttled\"}" ;;
        *) echo "{\"id\":$id,\"key\":\"${owner}AAAAAAA${version}A=\"}" ;;
        esac"#;
    let script = Script::new(VERSIONS, on_key);
    let keyring = open(&script, PATIENT);
    for _ in 0..2 {
        let missing = keyring.key(owner(1), KeyVersion(8)).await;
        assert_eq!(missing.unwrap_err(), KeyringError::Missing(KeyVersion(8)));
        assert_eq!(reason_of(keyring.key(owner(1), KeyVersion(9)).await), "throttled");
    }
    assert!(key_of(&keyring, 1).await.is_ok());
    assert_eq!((script.noted("started"), script.noted("key")), (1, 5), "a refusal is not kept");
}

#[tokio::test]
async fn answers_are_matched_by_id_whatever_their_order() {
    let on_key = r#"case $owner in
        *1) first="{\"id\":$id,\"key\":\"${owner}AAAAAAA1A=\"}" ;;
        *) echo "{\"id\":$id,\"key\":\"${owner}AAAAAAA1A=\"}"; echo "$first" ;;
        esac"#;
    let script = Script::new(VERSIONS, on_key);
    let keyring = open(&script, PATIENT);
    let (one, two) = tokio::join!(key_of(&keyring, 1), key_of(&keyring, 2));
    let (expected_one, expected_two) = {
        let other = Script::new(VERSIONS, KEY);
        let keyring = open(&other, PATIENT);
        (key_of(&keyring, 1).await, key_of(&keyring, 2).await)
    };
    assert_eq!((one.clone(), two), (expected_one, expected_two));
    assert!(one.is_ok());
}

#[tokio::test]
async fn more_questions_than_may_be_open_wait_their_turn() {
    let script = Script::new(VERSIONS, KEY);
    let keyring = open(&script, PATIENT);
    let asked = (0..3 * KEYRING_QUESTIONS_MAX as u128).map(|n| key_of(&keyring, n));
    let keys: BTreeSet<_> = futures::future::join_all(asked).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(keys.len(), 3 * KEYRING_QUESTIONS_MAX);
    assert_eq!(script.noted("started"), 1);
}

/// Each way in which a program can misbehave is an error that says so, costs it its place, and is over with the next one.
#[tokio::test]
async fn a_program_that_misbehaves_is_replaced() {
    let secret = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlYyE=";
    let ways = [
        ("exit 3", "the program has ended"),
        ("kill -9 $$", "the program has ended"),
        (&format!("echo '{secret}'"), "the program wrote a line that is no answer"),
        (
            &format!(r#"echo "{{\"id\":$id,\"key\":\"{secret}\",\"versions\":[1]}}""#),
            "the program wrote a line that is no answer",
        ),
        (&format!(r#"echo "{{\"id\":999,\"key\":\"{secret}\"}}""#), "the program answered a question that is not open"),
        (&format!(r#"echo "{{\"id\":$id,\"key\":\"{secret}\"}}"; echo "{{\"id\":$id,\"error\":\"missing\"}}""#), ""),
        (VERSIONS, "the program answered another question than was asked"),
        ("head -c 20000 /dev/zero | tr '\\0' a", "read from the program: a line is longer than 16384 bytes"),
    ];
    for (on_key, expected) in ways {
        listen();
        let script = Script::new(VERSIONS, &format!("if [ -e repaired ]; then {KEY}; else {on_key}; fi"));
        let keyring = open(&script, PATIENT);
        until("known", async || keyring.current().is_ok()).await;
        let answer = key_of(&keyring, 1).await;
        if !expected.is_empty() {
            assert_eq!(reason_of(answer), expected, "{on_key}");
        }
        script.touch("repaired");
        until("repaired", async || key_of(&keyring, 2).await.is_ok()).await;
        until("started anew", async || script.noted("started") >= 2).await;
        assert_eq!(keyring.current(), Ok(KeyVersion(2)), "what was known stays known");
        let told = logged();
        assert!(told.contains("ask the keyring: ") && told.contains("keyring program started"), "{told}");
        assert!(!told.contains(secret), "what was said instead of an answer may be a key: {told}");
    }
}

#[tokio::test]
async fn a_program_that_hangs_is_replaced_and_all_who_wait_are_told() {
    let script = Script::new(VERSIONS, &format!("if [ -e repaired ]; then {KEY}; fi"));
    let keyring = open(&script, Times { answer: Duration::from_millis(500), ..PATIENT });
    until("known", async || keyring.current().is_ok()).await;
    let (one, other) = tokio::join!(key_of(&keyring, 1), key_of(&keyring, 2));
    for answer in [one, other] {
        assert_eq!(reason_of(answer), "the program did not answer within 500ms");
    }
    script.touch("repaired");
    until("repaired", async || key_of(&keyring, 1).await.is_ok()).await;
    assert!(script.noted("started") >= 2);
}

/// More ask than may be open, so that some wait for others that get no answer: they hear of it in the same time.
#[tokio::test]
async fn a_program_that_reads_nothing_is_replaced() {
    let script = Script::new(VERSIONS, KEY);
    script.write("#!/bin/sh\nexec sleep 30\n");
    let keyring = open(&script, Times { answer: Duration::from_millis(200), ..PATIENT });
    let asked = (0..2 * KEYRING_QUESTIONS_MAX as u128).map(|n| key_of(&keyring, n));
    for answer in futures::future::join_all(asked).await {
        assert_eq!(reason_of(answer), "the program did not answer within 200ms");
    }
    until("told", async || reason_of(keyring.current()) == "the program did not answer within 200ms").await;
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_an_error_of_each_question_and_tried_again() {
    let script = Script::new(VERSIONS, KEY);
    let text = fs::read_to_string(script.path()).unwrap();
    script.write("#!/nowhere/sh\n");
    let keyring = open(&script, PATIENT);
    for _ in 0..2 {
        let reason = reason_of(key_of(&keyring, 1).await);
        assert!(reason.starts_with("start the program: "), "{reason}");
    }
    assert!(reason_of(keyring.versions()).starts_with("start the program: "));
    script.write(&text);
    until("started", async || key_of(&keyring, 1).await.is_ok()).await;
    until("known", async || keyring.current() == Ok(KeyVersion(2))).await;
}

#[tokio::test]
async fn versions_that_are_known_stay_known_while_the_program_fails() {
    let script = Script::new(&format!("[ -e broken ] && exit 1\n{VERSIONS}"), KEY);
    let keyring = open(&script, Times { look: Duration::from_millis(20), ..PATIENT });
    until("known", async || keyring.current().is_ok()).await;
    script.touch("broken");
    let before = script.noted("started");
    until("failed again and again", async || {
        assert_eq!(keyring.current(), Ok(KeyVersion(2)));
        script.noted("started") > before + 2
    })
    .await;
}

#[tokio::test]
async fn a_path_where_no_program_can_be_is_an_error_at_the_start() {
    let script = Script::new(VERSIONS, KEY);
    script.touch("data");
    for path in [script.folder.join("absent"), script.folder.join("data"), script.folder.clone()] {
        let error = ProgramKeyring::start(&path).unwrap_err();
        let KeysError::Program { path: told, .. } = &error else { panic!("{error}") };
        assert_eq!(*told, path.display().to_string());
    }
}

#[tokio::test]
async fn the_program_ends_with_its_keyring() {
    let script = Script::new(VERSIONS, KEY);
    let keyring = open(&script, PATIENT);
    let shown = format!("{keyring:?} {:?}", keyring.key(owner(1), KeyVersion(1)).await.unwrap());
    assert!(shown.contains("Key(secret)") && !shown.contains("AAAAAAA"), "{shown}");
    let notes = script.notes();
    let pid = notes.iter().find_map(|note| note.strip_prefix("started ")).unwrap();
    let is_there = || Command::new("/bin/sh").args(["-c", "kill -0 $0 2>&-", pid]).status().unwrap().success();
    assert!(is_there());
    drop(keyring);
    until("ended", async || !is_there()).await;
}

thread_local! {
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What this thread logs from now on. By a subscriber of the whole process: with one for this thread, a place in the code
/// that another thread comes by first would be taken for one that nobody listens to.
fn listen() {
    static LISTENING: Once = Once::new();
    LISTENING.call_once(|| {
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(|| Log);
        tracing::subscriber::set_global_default(subscriber.with_ansi(false).finish()).unwrap();
        tracing::callsite::rebuild_interest_cache();
    });
    LOG.take();
}

fn logged() -> String {
    String::from_utf8(LOG.take()).unwrap()
}

struct Log;

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
