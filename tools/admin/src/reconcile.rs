//! `clairvio reconcile`: one round of comparing bucket and index, by the code of the retention worker; and removing what no row names.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use schemas::paths::ObjectKey;
use service_kit::config::postgres::PostgresConfig;
use service_kit::config::s3::S3Config;
use storage::index::Index;
use storage::objects::Objects;
use storage::reconciling::{Finding, Reconciler};

use crate::output::{Progress, counted, say};
use crate::settings::load;

pub(crate) const EXAMPLES: &str = "Findings are lines on standard output, each a word and a key:
  orphan       an object, or versions of one, that no row of the index names
  stranger     the same, under a key that is none of ours; it is never removed
  missing      an object that a live row names, and that is not in the bucket
  unknown      an entry of the journal that the index does not know; retention workers carry it out, and it is never removed
  past-window  a session, WORKSPACE/SESSION, that is readable more than an hour after the end of its window, and its bytes

After an old backup of the index was restored, orphans are data: restore a newer one before you remove any.

Examples:
  clairvio reconcile
  clairvio reconcile | grep ^missing
  clairvio reconcile --remove-orphans --expect 12";

#[derive(Debug, Args)]
pub(crate) struct Reconcile {
    /// Objects put less long ago than this many seconds are no orphans: their uploads may be on their way. More than
    /// CLAIRVIO_STAGED_STALE_MS and S3_REQUEST_TIMEOUT_MS of the services together.
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600)]
    upload_age_max: u64,
    /// Remove the orphans that are found, with all their versions, for good. Nobody can bring them back.
    #[arg(long, requires = "expect")]
    remove_orphans: bool,
    /// How many orphans there are, as an earlier run said. When there are as many, they are removed; else nothing is, so that an index
    /// that is empty, old or another's does not empty the bucket.
    #[arg(long, value_name = "ORPHANS", requires = "remove_orphans")]
    expect: Option<u64>,
}

/// What a round found.
#[derive(Debug, Default)]
struct Found {
    objects: u64,
    orphans: Vec<ObjectKey>,
    strangers: u64,
    missing: u64,
    unknown: u64,
    past_window: u64,
}

impl Reconcile {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let index = Index::new(&load(PostgresConfig::load)?)?;
        let objects = Objects::new(&load(S3Config::load)?);
        let reconciler = Reconciler::new(index, objects, Duration::from_secs(self.upload_age_max));
        let mut found = round(&reconciler).await?;
        if self.remove_orphans {
            remove(&reconciler, &mut found, self.expect).await?;
        }
        let is_clean =
            found.orphans.is_empty() && found.strangers + found.missing + found.unknown + found.past_window == 0;
        Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Compares, and says what is found as it is found.
async fn round(reconciler: &Reconciler) -> anyhow::Result<Found> {
    let (mut progress, mut found) = (Progress::begin(), Found::default());
    let mut walk = reconciler.walk(None).await?;
    while let Some(findings) = reconciler.step(&mut walk).await? {
        let mut lines = String::new();
        for finding in findings {
            lines.push_str(&match finding {
                Finding::Orphan(key) => {
                    found.orphans.push(key);
                    format!("orphan {key}\n")
                }
                Finding::Stranger(name) => {
                    found.strangers += 1;
                    // Whoever put it there may have put anything into its name, control characters too.
                    format!("stranger {}\n", name.escape_debug())
                }
                Finding::Unknown(key) => {
                    found.unknown += 1;
                    format!("unknown {key}\n")
                }
                Finding::Missing(key) => {
                    found.missing += 1;
                    format!("missing {key}\n")
                }
            });
        }
        say(&lines)?;
        progress.tell(|| format!("{} objects so far, at {}", walk.objects(), walk.position()));
    }
    for past in reconciler.past_window().await? {
        found.past_window += 1;
        say(&format!("past-window {}/{} {}\n", past.key.workspace, past.key.session, past.bytes))?;
    }
    found.objects = walk.objects();
    let pages = walk.pages();
    eprintln!(
        "clairvio: compared {} by {} and {}: {}, {}, {} missing, {}, {} past their window",
        counted(found.objects, "object", "objects"),
        counted(pages.listed, "list of the bucket", "lists of the bucket"),
        counted(pages.rows, "page of rows", "pages of rows"),
        counted(found.orphans.len() as u64, "orphan", "orphans"),
        counted(found.strangers, "stranger", "strangers"),
        found.missing,
        counted(found.unknown, "unknown entry", "unknown entries"),
        counted(found.past_window, "session", "sessions"),
    );
    Ok(found)
}

async fn remove(reconciler: &Reconciler, found: &mut Found, expected: Option<u64>) -> anyhow::Result<()> {
    let orphans = found.orphans.len() as u64;
    if expected != Some(orphans) {
        bail!(
            "remove orphans: of {} {} no row in the index, and --expect says otherwise; nothing was removed\n  hint: look at what is listed, and \
             whether the index is the one of this bucket; then say that number",
            counted(found.objects, "object", "objects"),
            counted(orphans, "has", "have"),
        );
    }
    let outcome = reconciler.remove(&found.orphans).await?;
    eprintln!(
        "clairvio: removed {}, kept {} that a row names by now; {} the bucket refused to remove",
        outcome.removed, outcome.named, outcome.left
    );
    if outcome.left == 0 {
        found.orphans.clear();
    }
    Ok(())
}
