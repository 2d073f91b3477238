//! `retention-worker --dry-run`: what would go right now, and why. Nothing is changed.

use std::io::Write as _;

use anyhow::Context as _;
use storage::index::Index;
use storage::index::deletions::DueSession;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::Config;

/// Rows of one question.
const PAGE: i64 = 1_000;
/// Of closed workspaces and of exports there are few.
const ALL: i64 = i64::MAX;

/// Lists on standard output what the next passes would begin to delete, a line each, and on standard error how much that is.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let index = Index::new(&config.postgres)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let (mut workspaces, mut sessions) = (0, 0);
    let mut after = None;
    loop {
        let page = index.workspaces_that_expire(after, PAGE).await?;
        for workspace in &page {
            let mut behind: Option<(OffsetDateTime, schemas::SessionId)> = None;
            let before = sessions;
            loop {
                let due = index.due_sessions(*workspace, behind, PAGE).await?;
                for session in &due {
                    writeln!(out, "{}", because(session)).context("write to standard output")?;
                }
                sessions += due.len();
                behind = due.last().map(|session| (session.started_at, session.key.session));
                if due.len() < PAGE as usize {
                    break;
                }
            }
            workspaces += usize::from(sessions > before);
        }
        after = page.last().copied();
        if page.len() < PAGE as usize {
            break;
        }
    }
    let closed = index.due_workspaces(ALL).await?;
    for (workspace, at, sessions) in &closed {
        writeln!(out, "{workspace} all of it ({sessions} sessions): closed, its time was over at {}", moment(*at))
            .context("write to standard output")?;
    }
    let exports = index.due_exports(ALL).await?;
    for (export, workspace, at) in &exports {
        writeln!(out, "{workspace} export {export}: its time was over at {}", moment(*at))
            .context("write to standard output")?;
    }
    out.flush().context("write to standard output")?;
    let rest = index.leaving_now().await?;
    eprintln!(
        "{sessions} sessions of {workspaces} workspaces are past their windows, {} closed workspaces and {} exports past their time; {} sessions and {} objects \
         are on their way out already; nothing was changed",
        closed.len(),
        exports.len(),
        rest.sessions,
        rest.objects
    );
    Ok(())
}

fn because(due: &DueSession) -> String {
    format!(
        "{} {} expired: it began at {}, and the plan {} keeps it for {} days, until {}",
        due.key.workspace,
        due.key.session,
        moment(due.started_at),
        due.plan,
        due.kept_for / Duration::DAY,
        moment(due.started_at + due.kept_for)
    )
}

fn moment(at: OffsetDateTime) -> String {
    let second = at.replace_nanosecond(0).unwrap_or(at);
    // A year beyond 9999 has no such text.
    second.format(&Rfc3339).unwrap_or_else(|_| second.unix_timestamp().to_string())
}
