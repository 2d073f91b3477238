//! Exports: archives that have all that was recorded of what was asked for, and nothing else; that are made whoever dies; and that go.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use devstack::DeploymentOptions;
use flate2::read::MultiGzDecoder;
use schemas::codec::hex;
use schemas::export::{MANIFEST, Manifest, SUMS, SessionManifest, session_folder};
use schemas::http::{ExportEnd, ExportItem, ExportRequest, ExportScope, ExportState, ReadWhat, SessionItem, StoredAs};
use schemas::paths::{ObjectKey, export_prefix};
use schemas::plan::Plan;
use schemas::{ExportId, ObjectId, SessionId, SessionKey};
use storage::keystore::KeyRow;
use storage::objects::sha256;
use uuid::Uuid;
use virtual_sdk::{Api, CallError, Encoding, EventsFormat, Form, ReadsQuery, Seen, until};

use crate::harness::{LATER, SOON, System, run, run_with_versions};
use crate::load::{self, small_batch};
use crate::receipts::{quick, wait_receipt};

/// What an archive has, found to be as its manifests say.
struct Archive {
    manifest: Manifest,
    sessions: BTreeMap<SessionId, (SessionManifest, SessionItem, Vec<u8>)>,
    receipts: Vec<String>,
}

fn hash(bytes: &[u8]) -> String {
    hex(&sha256(bytes))
}

/// Opens an archive as whoever got it does, and follows the hashes from its last file to the first.
fn open(bytes: &[u8]) -> Result<Archive> {
    let mut files = BTreeMap::new();
    let mut last = String::new();
    let mut tar = tar::Archive::new(MultiGzDecoder::new(bytes));
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_str().context("a path of text")?.to_owned();
        let mut body = Vec::new();
        entry.read_to_end(&mut body)?;
        last.clone_from(&path);
        ensure!(files.insert(path.clone(), body).is_none(), "{path} is there twice");
    }
    ensure!(last == MANIFEST, "the last file is {last}");
    let manifest: Manifest = serde_json::from_slice(&files.remove(MANIFEST).context("a manifest")?)?;
    let sums = files.remove(SUMS).context("a list of sums")?;
    ensure!(hash(&sums) == manifest.sums_sha256, "the list of sums is another");
    let (mut sessions, mut receipts) = (BTreeMap::new(), Vec::new());
    for line in String::from_utf8(sums)?.lines() {
        let (sum, path) = line.split_once("  ").context("a line of sha256sum")?;
        let listed = files.remove(path).with_context(|| format!("{path} is listed"))?;
        ensure!(hash(&listed) == sum, "{path} is another");
        if path.starts_with("receipts/") {
            receipts.push(String::from_utf8(listed)?);
            continue;
        }
        let of_session: SessionManifest = serde_json::from_slice(&listed)?;
        ensure!(path == format!("{}{MANIFEST}", session_folder(of_session.session)), "{path} is of another");
        let mut parts = Vec::new();
        for file in &of_session.files {
            let body = files.remove(&file.path).with_context(|| format!("{} is listed", file.path))?;
            ensure!(hash(&body) == file.sha256 && body.len() as u64 == file.bytes, "{} is another", file.path);
            parts.push(body);
        }
        let about: SessionItem = serde_json::from_slice(&parts.remove(0))?;
        ensure!(about.id == of_session.session, "it tells of another session");
        let events = parts.concat();
        ensure!(
            memchr::memchr_iter(b'\n', &events).count() as u64 == of_session.events,
            "events are not counted right"
        );
        ensure!(sessions.insert(about.id, (of_session, about, events)).is_none(), "a session is there twice");
    }
    ensure!(files.is_empty(), "nothing lists {:?}", files.keys());
    let events: u64 = sessions.values().map(|(of_session, ..)| of_session.events).sum();
    ensure!(
        (manifest.sessions, manifest.events, manifest.receipts)
            == (sessions.len() as u64, events, receipts.len() as u64),
        "the manifest counts otherwise: {manifest:?}"
    );
    Ok(Archive { manifest, sessions, receipts })
}

impl Archive {
    /// It has these sessions and no others, and of each what the API gives.
    async fn is_of(&self, api: &Api, sessions: &[SessionId]) -> Result<()> {
        let found: BTreeSet<SessionId> = self.sessions.keys().copied().collect();
        ensure!(found == sessions.iter().copied().collect(), "it has {found:?}, not {sessions:?}");
        for (id, (of_session, about, events)) in &self.sessions {
            let mut lines = Vec::new();
            let mut read = api.events(*id, EventsFormat::Lines).await?;
            while let Some(event) = read.next_event().await? {
                lines.extend_from_slice(&event);
                lines.push(b'\n');
            }
            ensure!(!lines.is_empty() && lines == *events, "events of {id} are others than the API gives");
            let item = api.session(*id).await?;
            ensure!(item.reference == about.reference && item.consent == about.consent, "{id}: {about:?}");
            ensure!(!of_session.damaged, "{id} is damaged");
        }
        Ok(())
    }
}

/// Asks for an export, and waits until its archive is whole.
pub(crate) async fn wait_ready(api: &Api, request: &ExportRequest) -> Result<ExportItem> {
    let asked = api.ask_export(request).await?;
    ensure!(asked.state == ExportState::Building && asked.ended_because.is_none(), "{asked:?}");
    wait_state(api, asked.id, ExportState::Ready).await
}

pub(crate) async fn wait_state(api: &Api, id: ExportId, state: ExportState) -> Result<ExportItem> {
    let what = format!("the export is {state:?}");
    let seen = until(&what, LATER, || async {
        match api.export(id).await {
            Ok(item) if item.state == state => Seen::Done(item),
            Ok(item) => Seen::not_yet(format_args!("{item:?}")),
            Err(error) => Seen::not_yet(error),
        }
    });
    Ok(seen.await?)
}

fn refused<T>(answer: Result<T, CallError>) -> Option<u16> {
    answer.err().as_ref().and_then(CallError::status)
}

fn of_reference(reference: &str) -> ExportRequest {
    ExportRequest { reference: Some(reference.to_owned()), ..ExportRequest::default() }
}

const ALL: ExportRequest = ExportRequest { session: None, reference: None, workspace: true };

/// Goal (P15, P16): an archive has all that was recorded of what was asked for, as the API gives it, and of nobody else; whoever has
/// it can tell that it is whole; who was cut off goes on; and who read it is noted. Method: recordings of two references, in session
/// objects and in shared ones; an archive of each scope is opened by other tools' means and followed hash by hash.
#[test]
fn p16_an_archive_has_all_that_was_asked_for_and_can_be_checked() -> Result<()> {
    run(quick("exports"), &[], async |system| {
        let (api, sdk) = (&system.api, system.sdk(1)?);
        let (one, other) = (system.link("one").await?, system.link("other").await?);
        let mut sessions = Vec::new();
        for (number, name) in ["login-short", "idle-long", "login-short"].iter().enumerate() {
            let link = if number < 2 { &one } else { &other };
            let sdks = std::slice::from_ref(&sdk);
            let recording = load::recording(name)?;
            sessions.push(load::send_recording(system, sdks, link, &recording, number).await?.session.id);
        }
        for session in &sessions[..2] {
            load::wait_stored(api, *session, StoredAs::Object, LATER).await?;
        }
        let gone = load::begin(system, &sdk, &one).await?;
        load::send(system, &sdk, &gone, &small_batch(gone.id, 0, 0, true, 500)?, Form::Lines, Encoding::Zstd).await?;
        load::compare_all(system, LATER).await?;
        let deletion = api.delete_session(gone.id).await?.deletion_id;
        system.ledger.forget(gone.id);
        wait_receipt(system, api, deletion).await?;

        let at_once = open(&api.export_session(sessions[0]).await?)?;
        at_once.is_of(api, &sessions[..1]).await?;
        ensure!(at_once.manifest.scope == ExportScope::Session && at_once.manifest.export.is_none());
        ensure!(refused(api.export_session(gone.id).await) == Some(410), "a deleted session is exported");
        ensure!(refused(api.export_session(SessionId(Uuid::now_v7())).await) == Some(404), "an unknown one is");

        let item = wait_ready(api, &of_reference("one")).await?;
        ensure!(item.sessions == 2 && item.sessions_total == Some(2) && item.bytes > 0, "{item:?}");
        let bytes = api.archive(item.id, None).await?;
        ensure!(bytes.len() as u64 == item.bytes, "it has {} bytes, not {}", bytes.len(), item.bytes);
        let archive = open(&bytes)?;
        archive.is_of(api, &sessions[..2]).await?;
        ensure!(archive.manifest.export == Some(item.id) && archive.receipts.len() == 1, "{:?}", archive.manifest);
        ensure!(crate::receipts::open(system, &archive.receipts[0])?.deletion_id == deletion, "another receipt");
        let mut pieces = Vec::new();
        for (at, size) in (0..).step_by(70_000).map(|at| (at, 70_000)).take_while(|(at, _)| *at < item.bytes) {
            let piece: Bytes = api.archive(item.id, Some((at, at + size - 1))).await?;
            pieces.extend_from_slice(&piece);
        }
        ensure!(pieces == bytes, "put together from ranges it is another");
        ensure!(refused(api.archive(item.id, Some((item.bytes, item.bytes + 9))).await) == Some(416), "behind its end");

        let whole = wait_ready(api, &ALL).await?;
        open(&api.archive(whole.id, None).await?)?.is_of(api, &sessions).await?;
        let single = ExportRequest { session: Some(sessions[2]), ..ExportRequest::default() };
        let single = wait_ready(api, &single).await?;
        open(&api.archive(single.id, None).await?)?.is_of(api, &sessions[2..]).await?;
        let nobody = wait_ready(api, &of_reference("nobody")).await?;
        ensure!(open(&api.archive(nobody.id, None).await?)?.sessions.is_empty(), "nobody has sessions");
        let listed: Vec<ExportId> = api.exports().await?.items.iter().map(|item| item.id).collect();
        ensure!(listed == [nobody.id, single.id, whole.id, item.id], "{listed:?}");

        let reads = |session| ReadsQuery { session: Some(session), ..ReadsQuery::default() };
        let noted = async |session| {
            let all = api.all_reads(&reads(session)).await?;
            Ok::<_, CallError>(all.into_iter().filter(|read| read.what == ReadWhat::Export).count())
        };
        // At once, of its reference, and of the workspace.
        ensure!(noted(sessions[0]).await? == 3, "{} readings were noted", noted(sessions[0]).await?);
        let (_, another) = system.another_workspace(Plan::Scale).await?;
        let stranger = system.api_at(1, &another)?;
        ensure!(refused(stranger.archive(item.id, None).await) == Some(404), "another workspace fetches it");
        let wrong = [ExportRequest::default(), ExportRequest { workspace: true, ..of_reference("one") }];
        for request in wrong {
            ensure!(refused(api.ask_export(&request).await) == Some(422), "{request:?} is taken");
        }
        Ok(())
    })
}

/// Nothing of an export is left: in the bucket, whatever it keeps, and in the key store no key.
pub(crate) async fn is_gone(system: &System<'_>, id: ExportId) -> Result<()> {
    let keeps = system.objects.keeps().await?;
    let left = system.objects.lying(&export_prefix(system.workspace, id), keeps).await?;
    ensure!(left.is_empty(), "{left:?} is left of export {id}");
    let rows = system.keystore.rows(&[SessionKey::of_export(system.workspace, id)]).await?;
    ensure!(rows.iter().all(|(_, row)| *row == KeyRow::Shredded), "the key of export {id} is there");
    Ok(())
}

/// Goal (R3, R9): an export goes with one of its sessions, from the deletion's answer on; a session is not called erased while an
/// archive has it; an export goes when its time is over and when somebody ends it, and parts go that no row names; and then nothing of it is left.
/// Method: a bucket that keeps versions, and an export that ends in each way.
#[test]
fn r03_an_export_goes_with_its_sessions_and_with_its_time() -> Result<()> {
    run_with_versions(quick("exported"), &["that no row names: the index is one of a backup"], async |system| {
        let (api, sdk) = (&system.api, system.sdk(1)?);
        let mut sessions = Vec::new();
        for reference in ["a", "b", "c"] {
            let session = load::begin(system, &sdk, &system.link(reference).await?).await?;
            let batch = small_batch(session.id, 0, 0, true, 500)?;
            load::send(system, &sdk, &session, &batch, Form::Lines, Encoding::Zstd).await?;
            load::wait_stored(api, session.id, StoredAs::Object, LATER).await?;
            sessions.push(session.id);
        }
        let (of_all, of_a, of_b) = (
            wait_ready(api, &ALL).await?.id,
            wait_ready(api, &of_reference("a")).await?.id,
            wait_ready(api, &of_reference("b")).await?.id,
        );
        // Removing them would take a while, and a session that is erased meanwhile was called so too early.
        system.take_down(&system.service("retention-worker", 1)).await?;
        let deletion = api.delete_session(sessions[0]).await?.deletion_id;
        system.ledger.forget(sessions[0]);
        for (id, status) in [(of_all, 410), (of_a, 410)] {
            ensure!(refused(api.archive(id, None).await) == Some(status), "an archive of a deleted session is given");
        }
        ensure!(!api.archive(of_b, None).await?.is_empty(), "an archive without the session is gone");
        system.bring_back(&system.service("retention-worker", 1)).await?;
        let erased = until("the session is erased", LATER, || async {
            let exported =
                "select count(*) from export_session e join deletion_session d using (workspace_id, session_id)
                 where d.erased_at is not null";
            match (system.count(exported).await, api.deletion(deletion).await) {
                (Ok(0), Ok(item)) if item.receipt.is_some() => Seen::Done(Ok(())),
                (Ok(0), Ok(item)) => Seen::not_yet(format_args!("{:?}", item.state)),
                (Ok(early), _) => Seen::Done(Err(early)),
                (Err(error), _) => Seen::not_yet(error),
            }
        })
        .await?;
        ensure!(erased.is_ok(), "R3: a session is erased that {erased:?} archives have");
        for id in [of_all, of_a] {
            let item = wait_state(api, id, ExportState::Gone).await?;
            ensure!(item.ended_because == Some(ExportEnd::SessionDeleted), "{item:?}");
            is_gone(system, id).await?;
        }
        ensure!(!api.archive(of_b, None).await?.is_empty(), "an archive without the session is gone");

        api.end_export(of_b).await?;
        ensure!(refused(api.archive(of_b, None).await) == Some(410), "an archive that was ended is given");
        let of_c = wait_ready(api, &of_reference("c")).await?;
        ensure!(of_c.expires_at - of_c.requested_at <= time::Duration::hours(72), "{of_c:?}");
        sqlx::query("update export set expires_at = requested_at where id = $1")
            .bind(of_c.id.0)
            .execute(system.index.pool())
            .await?;
        for (id, because) in [(of_b, ExportEnd::ByHand), (of_c.id, ExportEnd::Expired)] {
            let item = wait_state(api, id, ExportState::Gone).await?;
            ensure!(item.ended_because == Some(because), "{item:?}");
            ensure!(refused(api.archive(id, None).await) == Some(410), "an archive that is gone is given");
            is_gone(system, id).await?;
        }
        load::compare_all(system, SOON).await?;

        // Of an index that a backup took the rows from: parts of an export that it does not know, and of one that it does.
        let of_c = wait_ready(api, &of_reference("c")).await?.id;
        system.take_down(&system.service("retention-worker", 1)).await?;
        let standing = system.objects.list("exports/").await?;
        ensure!(!standing.is_empty(), "an archive lies nowhere");
        let stray = |export| ObjectKey::Export { workspace: system.workspace, export, id: ObjectId(Uuid::now_v7()) };
        for key in [stray(of_c), stray(ExportId(Uuid::now_v7()))] {
            system.objects.put(&key, Bytes::from_static(b"stray"), &sha256(b"stray")).await?;
        }
        ensure!(system.objects.list("exports/").await?.len() == standing.len() + 2, "the strays are not there");
        system.bring_back(&system.service("retention-worker", 1)).await?;
        until("the strays are gone", LATER, || async {
            match system.objects.list("exports/").await {
                Ok(left) if left == standing => Seen::Done(()),
                left => Seen::not_yet(format_args!("{left:?}")),
            }
        })
        .await?;
        ensure!(!api.archive(of_c, None).await?.is_empty(), "what has a row went with them");
        Ok(())
    })
}

/// Goal: an archive is made whoever dies, from what stands of it, and has each session once. Method: while one is made the control
/// planes are ended in turn, by force and by request; what stands never gets less.
#[test]
fn an_archive_is_made_whoever_dies() -> Result<()> {
    let options = DeploymentOptions { control_planes: 2, ..quick("export-crashes") }
        .with("control-plane", "S3_REQUEST_TIMEOUT_MS", 1_000)
        .with("control-plane", "CLAIRVIO_EXPORTS_AT_ONCE", 1);
    run(options, &[], async |system| {
        let (api, sdk, link) = (&system.api, system.sdk(1)?, system.link("many").await?);
        let mut sessions = Vec::new();
        for _ in 0..MANY {
            let session = load::begin(system, &sdk, &link).await?;
            let batch = small_batch(session.id, 0, 0, true, 20_000)?;
            load::send(system, &sdk, &session, &batch, Form::Lines, Encoding::Zstd).await?;
            sessions.push(session.id);
        }
        load::count_all(system, LATER).await?;
        let asked = api.ask_export(&of_reference("many")).await?;
        let (supervisor, planes) =
            (&system.deployment.supervisor, [1, 2].map(|number| system.service("control-plane", number)));
        let mut stood = 0_i64;
        for round in 0..DEATHS {
            let included = "select count(*) from export_session where manifest_sha256 is null";
            let (is_ready, sessions) = until("somebody is in the middle of it", LATER, || async {
                let row = sqlx::query_as("select ready_at is not null, sessions from export where id = $1");
                let row = row.bind(asked.id.0).fetch_one(system.index.pool()).await;
                match (row, system.count(included).await) {
                    (Ok((is_ready, sessions)), Ok(included)) if is_ready || included > 0 => {
                        Seen::Done((is_ready, sessions))
                    }
                    (row, included) => Seen::not_yet(format_args!("{row:?} {included:?}")),
                }
            })
            .await?;
            ensure!(!is_ready, "it is made already, in round {round}: the test shows little");
            ensure!(sessions >= stood, "{stood} sessions stood, and now {sessions}");
            stood = sessions;
            for plane in &planes {
                // By force nothing of what was begun stands, and a lease has to run out.
                if round % 2 == 1 { supervisor.kill(plane).await? } else { supervisor.terminate(plane).await? }
            }
            for plane in &planes {
                supervisor.wait_ready(plane, SOON).await?;
            }
        }
        ensure!(stood > 0, "nothing stood that anybody went on with");
        let item = wait_state(api, asked.id, ExportState::Ready).await?;
        ensure!(item.sessions == MANY && item.sessions_total == Some(MANY), "{item:?}");
        let archive = open(&api.archive(asked.id, None).await?)?;
        archive.is_of(api, &sessions).await?;
        let parts = system.objects.list(&export_prefix(system.workspace, asked.id)).await?;
        eprintln!("{} sessions in {} parts", archive.sessions.len(), parts.len());
        Ok(())
    })
}

/// Sessions that are exported while makers die,
const MANY: u64 = 60;
/// so often.
const DEATHS: u64 = 4;
