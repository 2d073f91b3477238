//! Compares bucket and index, both ways: what lies in the bucket and no row names, and rows whose object is missing.
//!
//! A [`Walk`] goes through the bucket and through the rows in the one order of keys, a page of 1,000 at a time, and lays them side by
//! side ([`engine::reconciling`]). A million objects cost 1,000 requests that list them and 1,000 queries along an index, whatever lies
//! there; a page on which something is suspicious, one or two more of each. Nothing is held but a page of each side.
//!
//! Objects come and go meanwhile. What is suspicious is asked for once more, in an order that makes it certain, since a row is there
//! before its object and goes after it, no name is used twice, and no row becomes live again:
//!
//! - an **orphan** was listed, then had no row, then was listed again, and was put longer ago than any upload can be on its way, by the
//!   bucket's clock. Had it been on its way out its row would have stood until a listing showed it absent;
//! - an object is **missing** that a live row named, that then was not listed, and whose row was live still after that: it was all the
//!   time between.
//!
//! Entries of the journal are there before their rows. One without a row is **unknown**: whoever wrote it died before it noted that, or the
//! index is one of a backup. Carried out once more it is known, and changes nothing in the first case.
//!
//! It only looks. [`Reconciler::remove`] is for operators: after an old backup of the index was restored, what no row names is data.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engine::reconciling::{Comparison, Lying, OutOfOrder, Row, Suspicion, Wanted};
use schemas::ObjectId;
use schemas::paths::{ObjectKey, Section};
use thiserror::Error;

use crate::index::reconciling::PastWindow;
use crate::index::{Index, IndexError};
use crate::objects::{DELETE_KEYS_MAX, Listed, ListedTo, ObjectError, Objects};

/// Rows of one page: as many as a list of the bucket has keys.
const PAGE_ROWS: usize = 1_000;

/// A session is past its window for so long at least before it is told of: what is due takes a few passes to go.
pub const PAST_WINDOW_TOLERANCE: Duration = Duration::from_secs(3_600);

/// Sessions past their window are counted up to here.
const PAST_WINDOW_MAX: i64 = 10_000;

/// Why bucket and index could not be compared.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// The index did not do what was asked.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The bucket did not do what was asked.
    #[error(transparent)]
    Objects(#[from] ObjectError),
    /// A side did not come in order.
    #[error(
        "compare bucket and index\n  hint: a bucket whose server does not list keys in their order cannot be compared"
    )]
    Order(#[from] OutOfOrder),
}

/// What does not agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// No row names what lies in the bucket under this key.
    Orphan(ObjectKey),
    /// An entry of the journal that the index does not know: it is one of a backup, and a deletion is to be carried out once more.
    Unknown(ObjectKey),
    /// No row names what lies there, and the key is none that we give: there may be anything in its name, so it stands in no log.
    Stranger(String),
    /// A live row names this object, and it is not there.
    Missing(ObjectKey),
}

impl Finding {
    /// The key of an object of ours.
    pub fn key(&self) -> Option<&ObjectKey> {
        match self {
            Self::Orphan(key) | Self::Unknown(key) | Self::Missing(key) => Some(key),
            Self::Stranger(_) => None,
        }
    }
}

/// What became of orphans that were to be removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Gone, with all versions.
    pub removed: u64,
    /// Kept, since a row names them by now.
    pub named: u64,
    /// Refused by the bucket.
    pub left: u64,
}

/// Who compares.
#[derive(Debug, Clone)]
pub struct Reconciler {
    index: Index,
    objects: Objects,
    /// What was put less long ago may be on its way still.
    upload_age_max: Duration,
}

/// A round under way.
#[derive(Debug)]
pub struct Walk {
    /// Whether versions are listed: where only old ones are left of an object, readers do not see it, and it is there all the same.
    versions: bool,
    section: Section,
    comparison: Comparison<String>,
    /// The last key of ours that was compared in this section.
    compared: Option<ObjectKey>,
    listed_to: Option<ListedTo>,
    rows_to: Option<ObjectKey>,
    wanted: Wanted,
    /// Keys of sections that are done.
    objects_before: u64,
    pages: Pages,
}

/// What a walk has cost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pages {
    /// Lists of the bucket, those too by which suspicions were looked into: requests that are paid for.
    pub listed: u64,
    /// Pages of rows.
    pub rows: u64,
}

impl Walk {
    /// Where another walk can go on: the last key of ours that was compared, or the beginning of a part of the bucket. What strangers
    /// lie behind it are found again then.
    pub fn position(&self) -> String {
        self.compared.map_or_else(|| self.section.prefix().to_owned(), |key| key.to_string())
    }

    /// Keys of the bucket that this walk has compared.
    pub fn objects(&self) -> u64 {
        self.objects_before + self.comparison.objects()
    }

    /// What it has cost.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    fn enter(&mut self, section: Section, behind: Option<ObjectKey>) {
        self.objects_before += self.comparison.objects();
        self.section = section;
        self.comparison = Comparison::default();
        self.compared = behind;
        self.listed_to = behind.map(behind_key);
        self.rows_to = behind;
        self.wanted = Wanted::Lying;
    }
}

/// What a comparison goes by of what was listed.
fn lying(listed: Listed) -> Lying<String> {
    Lying { key: listed.key, is_object: listed.is_object, put_s: listed.put_s }
}

/// Lists go on behind all that lies under this key.
fn behind_key(key: ObjectKey) -> ListedTo {
    ListedTo { key: key.to_string(), version: None }
}

impl Reconciler {
    /// Compares these two. An upload lands at the latest `upload_age_max` after its row was staged.
    pub fn new(index: Index, objects: Objects, upload_age_max: Duration) -> Self {
        Self { index, objects, upload_age_max }
    }

    /// Begins a walk, or goes on with one from its position.
    pub async fn walk(&self, position: Option<&str>) -> Result<Walk, ReconcileError> {
        let within = |section: &Section| position.is_some_and(|position| position.starts_with(section.prefix()));
        let section = Section::ALL.into_iter().find(within).unwrap_or(Section::ALL[0]);
        let mut walk = Walk {
            versions: self.objects.keeps_versions().await?,
            section,
            comparison: Comparison::default(),
            compared: None,
            listed_to: None,
            rows_to: None,
            wanted: Wanted::Lying,
            objects_before: 0,
            pages: Pages::default(),
        };
        walk.enter(section, position.and_then(ObjectKey::parse));
        Ok(walk)
    }

    /// Takes a page, and gives what does not agree as far as that goes; none when the walk is over. After an error the walk is not gone on
    /// with, but another one from the position before.
    pub async fn step(&self, walk: &mut Walk) -> Result<Option<Vec<Finding>>, ReconcileError> {
        match walk.wanted {
            Wanted::Lying => {
                let page =
                    self.objects.list_page(walk.section.prefix(), walk.listed_to.as_ref(), walk.versions).await?;
                walk.pages.listed += 1;
                walk.comparison.add_lying(page.listed.into_iter().map(lying), page.next.is_none())?;
                walk.listed_to = page.next;
            }
            Wanted::Rows => {
                let page = self.index.rows_behind(walk.section, walk.rows_to.as_ref(), PAGE_ROWS as i64).await?;
                walk.pages.rows += 1;
                let is_last = page.len() < PAGE_ROWS;
                walk.rows_to = page.last().map(|row| row.key);
                let rows = page.into_iter().map(|row| Row { key: row.key.to_string(), is_live: row.is_live });
                walk.comparison.add_rows(rows, is_last)?;
            }
            Wanted::Nothing => match walk.section.next() {
                None => return Ok(None),
                Some(section) => walk.enter(section, None),
            },
        }
        let mut suspicions = Vec::new();
        let behind = walk.compared;
        walk.wanted = walk.comparison.compare(&mut suspicions);
        walk.compared = walk.comparison.compared().and_then(|key| ObjectKey::parse(key)).or(behind);
        Ok(Some(self.look_into(walk, behind, suspicions).await?))
    }

    /// Asks once more for what is suspicious, of keys behind the one given.
    async fn look_into(
        &self,
        walk: &mut Walk,
        behind: Option<ObjectKey>,
        suspicions: Vec<Suspicion<String>>,
    ) -> Result<Vec<Finding>, ReconcileError> {
        // First the rows: an object that was listed and has none by now has had one before, and gets none any more.
        let listed_alone = suspicions.iter().filter_map(|suspicion| match suspicion {
            Suspicion::Orphan(key) => ObjectKey::parse(key),
            Suspicion::Missing(_) => None,
        });
        let named = self.rows_of(listed_alone.collect()).await?;
        let mut suspicions = suspicions;
        suspicions.retain(|suspicion| match suspicion {
            Suspicion::Orphan(key) => !named.contains_key(key),
            Suspicion::Missing(_) => true,
        });
        if suspicions.is_empty() {
            return Ok(Vec::new());
        }
        // Then the bucket: what was deleted meanwhile is no orphan, and what was put meanwhile is not missing.
        let lying = self.list_again(walk, behind, &suspicions).await?;
        let old_s = self.objects.now_s().await? - self.upload_age_max.as_secs().cast_signed();
        // Then the rows again: whose object was condemned meanwhile need not be there.
        let absent = suspicions.iter().filter_map(|suspicion| match suspicion {
            Suspicion::Missing(key) if lying.get(key).is_none_or(|lying| !lying.is_object) => ObjectKey::parse(key),
            _ => None,
        });
        let still_named = self.rows_of(absent.collect()).await?;
        let finding = |suspicion: Suspicion<String>| match suspicion {
            Suspicion::Orphan(key) if lying.get(&key).is_some_and(|lying| lying.put_s < old_s) => {
                // Old versions of an entry say nothing.
                let is_object = lying.get(&key).is_some_and(|lying| lying.is_object);
                Some(match ObjectKey::parse(&key) {
                    Some(entry @ ObjectKey::Journal { .. }) if is_object => Finding::Unknown(entry),
                    Some(object) => Finding::Orphan(object),
                    None => Finding::Stranger(key),
                })
            }
            Suspicion::Missing(key) if still_named.get(&key) == Some(&true) => {
                ObjectKey::parse(&key).map(Finding::Missing)
            }
            _ => None,
        };
        Ok(suspicions.into_iter().filter_map(finding).collect())
    }

    /// Whether these have rows, and live ones, by key: a row of the same id that names another key is none of theirs.
    async fn rows_of(&self, keys: Vec<ObjectKey>) -> Result<BTreeMap<String, bool>, ReconcileError> {
        let ids: Vec<ObjectId> = keys.iter().map(ObjectKey::id).collect();
        if ids.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows = self.index.rows_among(&ids).await?;
        Ok(rows.into_iter().map(|row| (row.key.to_string(), row.is_live)).collect())
    }

    /// What of this lies in the bucket now. The keys are those of a page, so a page or two have them all.
    async fn list_again(
        &self,
        walk: &mut Walk,
        behind: Option<ObjectKey>,
        suspicions: &[Suspicion<String>],
    ) -> Result<BTreeMap<String, Lying<String>>, ReconcileError> {
        let wanted: BTreeSet<&String> = suspicions
            .iter()
            .map(|suspicion| match suspicion {
                Suspicion::Orphan(key) | Suspicion::Missing(key) => key,
            })
            .collect();
        let mut found: BTreeMap<String, Lying<String>> = BTreeMap::new();
        let mut listed_to = behind.map(behind_key);
        loop {
            let page = self.objects.list_page(walk.section.prefix(), listed_to.as_ref(), walk.versions).await?;
            walk.pages.listed += 1;
            for lying in page.listed.into_iter().map(lying).filter(|lying| wanted.contains(&lying.key)) {
                found.entry(lying.key.clone()).and_modify(|known| known.join(&lying)).or_insert(lying);
            }
            // A key may go on upon the next page.
            match page.next {
                Some(next) if wanted.last().is_some_and(|last| next.key <= **last) => listed_to = Some(next),
                _ => return Ok(found),
            }
        }
    }

    /// Sessions that are readable and past their window by more than [`PAST_WINDOW_TOLERANCE`]: 10,000 of them at most.
    pub async fn past_window(&self) -> Result<Vec<PastWindow>, ReconcileError> {
        Ok(self.index.past_window(PAST_WINDOW_TOLERANCE, PAST_WINDOW_MAX).await?)
    }

    /// Removes orphans with all their versions. Each is asked for once more: what a row names by now stays.
    pub async fn remove(&self, orphans: &[ObjectKey]) -> Result<Removed, ReconcileError> {
        let (keeps, mut outcome) = (self.objects.keeps().await?, Removed::default());
        for some in orphans.chunks(DELETE_KEYS_MAX) {
            let named = self.rows_of(some.to_vec()).await?;
            let unnamed: Vec<ObjectKey> =
                some.iter().filter(|key| !named.contains_key(&key.to_string())).copied().collect();
            let left = self.objects.erase(&unnamed, keeps).await?;
            outcome.named += (some.len() - unnamed.len()) as u64;
            // Of one object several versions may be left.
            let left: BTreeSet<String> = left.iter().map(ObjectKey::to_string).collect();
            outcome.left += left.len() as u64;
            outcome.removed += (unnamed.len() - left.len()) as u64;
        }
        Ok(outcome)
    }
}
