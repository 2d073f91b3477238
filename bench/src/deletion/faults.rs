//! What is left of what had to go, and what is missing of what had to stay.

use std::collections::BTreeSet;

use anyhow::Context;
use engine::receipt::read;
use schemas::SessionId;
use schemas::deletion::Receipt;
use service_kit::keys::receipts::ReceiptPublic;
use service_kit::keys::{self, RECEIPT_PUBLIC_FILE};
use uuid::Uuid;
use virtual_sdk::Api;

use super::Bench;
use super::ingest::Ingest;
use super::seed::{KEPT, KEPT_WITH_OBJECTS, Seeded, object_key};

/// Sessions of a receipt's deletion that are looked for in it.
const LOOKED_FOR: i64 = 100;

/// A number that has to be another.
#[derive(Debug, Clone, PartialEq)]
struct Count {
    what: &'static str,
    found: i64,
    expected: i64,
}

pub(super) async fn find(bench: &Bench<'_>, seeded: &Seeded, ingest: &Ingest) -> anyhow::Result<Vec<String>> {
    let mut faults = wrong(&counts(bench, seeded).await?);
    let prefix = schemas::paths::workspace_prefix(seeded.workspace);
    let listed = bench.objects.list(&prefix).await.context("list the bucket")?;
    let listed: BTreeSet<String> =
        listed.into_iter().map(|key| key.map_or_else(|name| name, |key| key.to_string())).collect();
    let kept: BTreeSet<String> =
        seeded.kept.iter().map(|(session, id)| object_key(seeded.workspace, *session, *id).to_string()).collect();
    faults.extend(differ(&listed, &kept));
    let read_back = ingest.read_back().await;
    let unread = read_back.sessions_not_readable + read_back.sessions_unread;
    if unread > 0 || !read_back.comparison.is_exact() {
        faults.push(format!(
            "of the load {unread} sessions cannot be read, {} events are lost, {} altered; first: {:?} {:?}",
            read_back.comparison.lost,
            read_back.comparison.altered,
            read_back.first_error,
            read_back.comparison.first_fault
        ));
    }
    faults.extend(receipt(bench, seeded).await?);
    Ok(faults)
}

async fn counts(bench: &Bench<'_>, seeded: &Seeded) -> anyhow::Result<Vec<Count>> {
    let (sessions, objects) = (i64::from(bench.options.sessions), i64::from(KEPT_WITH_OBJECTS));
    let asked: [(&'static str, &'static str, i64); 8] = [
        ("live sessions that are in their window", "select count(*) from session where workspace_id = $1 and state = 0", KEPT.into()),
        ("tombstones of erased sessions", "select count(*) from session where workspace_id = $1 and state = 3", sessions),
        ("keys of sessions that stay", "select count(*) from keystore.session_key where workspace_id = $1 and wrapped is not null", objects),
        (
            "keys that were destroyed",
            "select count(*) from keystore.session_key where workspace_id = $1 and shredded_at is not null and wrapped is null",
            sessions,
        ),
        ("rows of live objects", "select count(*) from object where workspace_id = $1 and state = 1", objects),
        ("rows of objects", "select count(*) from object where workspace_id = $1", objects),
        ("sessions in receipts", "select coalesce(sum(sessions), 0)::bigint from receipt where workspace_id = $1", sessions),
        (
            "live sessions of others",
            "select count(*) from session where $1::uuid is not null and workspace_id < '00000000-0001-0000-0000-000000000000'
                 and state = 0",
            seeded.rows.into(),
        ),
    ];
    let mut counts = Vec::new();
    for (what, query, expected) in asked {
        let found = sqlx::query_scalar(query).bind(seeded.workspace.0).fetch_one(&bench.pool).await;
        counts.push(Count { what, found: found.with_context(|| format!("count {what}"))?, expected });
    }
    Ok(counts)
}

fn wrong(counts: &[Count]) -> Vec<String> {
    let wrong = counts.iter().filter(|count| count.found != count.expected);
    wrong.map(|Count { what, found, expected }| format!("{what}: {found}, and {expected} should be")).collect()
}

/// What lies in the bucket and what should.
fn differ(listed: &BTreeSet<String>, kept: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for (what, mut keys) in
        [("are left", listed.difference(kept)), ("that had to stay are gone", kept.difference(listed))]
    {
        if let Some(first) = keys.next() {
            faults.push(format!("{} objects {what}, {first} for one", keys.count() + 1));
        }
    }
    faults
}

/// Fetches a receipt as an operator does, and checks it as anybody can.
async fn receipt(bench: &Bench<'_>, seeded: &Seeded) -> anyhow::Result<Option<String>> {
    let endpoints = bench.deployment.endpoints();
    let operator = Api::new(&endpoints.api_url, &endpoints.operator_key)?;
    let listed = operator.receipts_of_workspace(seeded.workspace).await.context("list receipts")?;
    let Some(item) = listed.items.first() else { return Ok(Some("no receipt is listed".to_owned())) };
    let public: ReceiptPublic = keys::read(&bench.deployment.keys.join(RECEIPT_PUBLIC_FILE))?;
    let receipt = match read(&item.receipt, |kid| public.verifying(kid)) {
        Ok(receipt) => receipt,
        Err(error) => return Ok(Some(format!("a receipt does not verify: {error}"))),
    };
    let deleted: Vec<Uuid> =
        sqlx::query_scalar("select session_id from deletion_session where deletion_id = $1 limit $2")
            .bind(item.deletion_id.0)
            .bind(LOOKED_FOR)
            .fetch_all(&bench.pool)
            .await
            .context("ask for sessions of a receipt")?;
    let kept = seeded.kept.iter().map(|(session, _)| *session);
    Ok(scope_fault(&receipt, seeded, deleted.into_iter().map(SessionId), kept))
}

fn scope_fault(
    receipt: &Receipt,
    seeded: &Seeded,
    mut deleted: impl Iterator<Item = SessionId>,
    mut kept: impl Iterator<Item = SessionId>,
) -> Option<String> {
    let covers = |session| receipt.scope.covers(seeded.workspace, session);
    if deleted.any(|session| covers(session) != Some(true)) {
        return Some("a receipt lacks a session of its deletion".to_owned());
    }
    kept.any(|session| covers(session) != Some(false))
        .then(|| "a receipt has a session that was not deleted".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_that_is_another_is_a_fault() {
        let count = |found| Count { what: "rows", found, expected: 7 };
        assert_eq!(wrong(&[count(7)]), Vec::<String>::new());
        assert_eq!(wrong(&[count(7), count(8), count(0)]).len(), 2);
    }

    #[test]
    fn what_is_left_in_the_bucket_is_told_from_what_is_missing() {
        let keys = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
        assert_eq!(differ(&keys(&["a", "b"]), &keys(&["a", "b"])), Vec::<String>::new());
        let faults = differ(&keys(&["a", "b", "c"]), &keys(&["a", "d"]));
        assert_eq!(faults, ["2 objects are left, b for one", "1 objects that had to stay are gone, d for one"]);
    }
}
