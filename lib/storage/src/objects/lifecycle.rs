//! The bucket's own rules, the net beneath the retention workers: what these would end and remove goes some days later by itself, should
//! none of them run.
//!
//! A rule ends uploads that nobody ended, and removes versions that readers do not see any more, and delete markers that stand alone. None
//! removes what readers see: that is decided by plans and deletions alone. The bucket's other rules are their owners': all are written
//! back as they were found, for S3 knows only all of them at once.

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::types::{
    AbortIncompleteMultipartUpload, BucketLifecycleConfiguration, ExpirationStatus, LifecycleExpiration, LifecycleRule,
    LifecycleRuleFilter, NoncurrentVersionExpiration,
};
use schemas::paths::Section;

use super::{ObjectError, Objects};

/// What became of the bucket's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lifecycle {
    /// Ours are among them.
    Kept,
    /// The server has none.
    Unknown,
    /// It did not let us read or write them, by this code.
    Refused(String),
}

/// What stands for the answer of a server that has no such rules.
const UNKNOWN: [&str; 3] = ["NotImplemented", "MethodNotAllowed", "XNotImplemented"];
/// The same as numbers.
const UNKNOWN_STATUS: [u16; 2] = [405, 501];

impl Objects {
    /// Makes sure that the bucket ends our uploads, and removes our old versions and delete markers, after so many days. An error is
    /// something that passes.
    pub async fn keep_lifecycle(&self, days: i32) -> Result<Lifecycle, ObjectError> {
        let what = "read the bucket's lifecycle rules";
        let (found, least_size) =
            match self.client.get_bucket_lifecycle_configuration().bucket(&self.bucket).send().await {
                Ok(found) => (found.rules.unwrap_or_default(), found.transition_default_minimum_object_size),
                Err(error) if error.code() == Some("NoSuchLifecycleConfiguration") => (Vec::new(), None),
                Err(error) => return self.refused(what, error),
            };
        let Some(rules) = merged(&found, &self.lifecycle_prefixes(), days) else { return Ok(Lifecycle::Kept) };
        let what = "write the bucket's lifecycle rules";
        let rules = rules.and_then(|rules| BucketLifecycleConfiguration::builder().set_rules(Some(rules)).build());
        let rules = rules.map_err(|error| self.failed_text(what, error.to_string()))?;
        let put = self.client.put_bucket_lifecycle_configuration().bucket(&self.bucket);
        let put = put.lifecycle_configuration(rules).set_transition_default_minimum_object_size(least_size);
        match put.send().await {
            Ok(_) => Ok(Lifecycle::Kept),
            Err(error) => self.refused(what, error),
        }
    }

    /// Below which the rules hold: whatever else lies in the bucket, also beside an empty prefix, is not ours to remove.
    pub fn lifecycle_prefixes(&self) -> Vec<String> {
        Section::ALL.map(|section| format!("{}{}", self.prefix, section.prefix())).into()
    }

    /// What the server meant by refusing. One that says nothing clear is asked again.
    fn refused<E>(&self, what: &'static str, error: SdkError<E>) -> Result<Lifecycle, ObjectError>
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
        SdkError<E>: std::error::Error,
    {
        let status = error.raw_response().map_or(0, |response| response.status().as_u16());
        let code = error.code().unwrap_or_default();
        if UNKNOWN.contains(&code) || UNKNOWN_STATUS.contains(&status) {
            return Ok(Lifecycle::Unknown);
        }
        if (400..500).contains(&status) && !super::remains::is_throttled(&error) {
            return Ok(Lifecycle::Refused(if code.is_empty() { status.to_string() } else { code.to_owned() }));
        }
        Err(self.failed(what, error))
    }
}

type Rules = Result<Vec<LifecycleRule>, aws_sdk_s3::error::BuildError>;

/// All rules, ours among them as they should be; `None` when they are found so.
fn merged(found: &[LifecycleRule], prefixes: &[String], days: i32) -> Option<Rules> {
    // One configuration has rules of one form: those of old, without filters, take no others beside them.
    let is_old = found.iter().any(|rule| rule.filter.is_none() && prefix_of(rule).is_some());
    let ours: Result<Vec<LifecycleRule>, _> = prefixes.iter().map(|prefix| rule(prefix, days, is_old)).collect();
    let ours = match ours {
        Ok(ours) => ours,
        Err(error) => return Some(Err(error)),
    };
    let is_kept = |wanted: &LifecycleRule| {
        let mut same = found.iter().filter(|rule| rule.id == wanted.id);
        same.next().is_some_and(|rule| is_as(rule, wanted)) && same.next().is_none()
    };
    if ours.iter().all(is_kept) {
        return None;
    }
    let others = found.iter().filter(|rule| ours.iter().all(|wanted| rule.id != wanted.id)).cloned();
    Some(Ok(others.chain(ours.clone()).collect()))
}

fn rule(prefix: &str, days: i32, is_old: bool) -> Result<LifecycleRule, aws_sdk_s3::error::BuildError> {
    let rule = LifecycleRule::builder()
        .id(format!("clairvio below {prefix}"))
        .status(ExpirationStatus::Enabled)
        .abort_incomplete_multipart_upload(
            AbortIncompleteMultipartUpload::builder().days_after_initiation(days).build(),
        )
        .noncurrent_version_expiration(NoncurrentVersionExpiration::builder().noncurrent_days(days).build())
        // No days and no date: those would remove what readers see.
        .expiration(LifecycleExpiration::builder().expired_object_delete_marker(true).build());
    if is_old {
        #[expect(deprecated, reason = "rules that others have written have this form")]
        return rule.prefix(prefix).build();
    }
    rule.filter(LifecycleRuleFilter::builder().prefix(prefix).build()).build()
}

#[expect(deprecated, reason = "rules that others have written have this form")]
fn prefix_of(rule: &LifecycleRule) -> Option<&str> {
    rule.filter.as_ref().and_then(LifecycleRuleFilter::prefix).or(rule.prefix.as_deref())
}

/// Whether a rule says what is wanted, and nothing more, whatever form the server gives it.
fn is_as(rule: &LifecycleRule, wanted: &LifecycleRule) -> bool {
    let expires = |rule: &LifecycleRule| {
        rule.expiration
            .as_ref()
            .map(|expires| (expires.days.unwrap_or(0), expires.date, expires.expired_object_delete_marker))
    };
    let filter = rule.filter.as_ref();
    let is_narrowed = filter.is_some_and(|filter| {
        filter.tag.is_some()
            || filter.and.is_some()
            || filter.object_size_greater_than.is_some()
            || filter.object_size_less_than.is_some()
    });
    prefix_of(rule) == prefix_of(wanted)
        && !is_narrowed
        && rule.status == wanted.status
        && expires(rule) == expires(wanted)
        && rule.noncurrent_version_expiration == wanted.noncurrent_version_expiration
        && rule.abort_incomplete_multipart_upload == wanted.abort_incomplete_multipart_upload
        && rule.transitions().is_empty()
        && rule.noncurrent_version_transitions().is_empty()
}

#[cfg(test)]
mod tests {
    use super::super::stub;
    use super::*;

    const DAYS: i32 = 7;

    fn prefixes() -> Vec<String> {
        vec!["some/sessions/".into(), "some/shared/".into()]
    }

    fn merge(found: &[LifecycleRule]) -> Option<Vec<LifecycleRule>> {
        merged(found, &prefixes(), DAYS).map(Result::unwrap)
    }

    fn ours() -> Vec<LifecycleRule> {
        prefixes().iter().map(|prefix| rule(prefix, DAYS, false).unwrap()).collect()
    }

    /// A rule of somebody else's that even removes what readers see.
    fn other(id: Option<&str>) -> LifecycleRule {
        LifecycleRule::builder()
            .set_id(id.map(str::to_owned))
            .status(ExpirationStatus::Disabled)
            .filter(LifecycleRuleFilter::builder().prefix("logs/").build())
            .expiration(LifecycleExpiration::builder().days(3).build())
            .build()
            .unwrap()
    }

    #[test]
    fn rules_of_others_stay_as_they_are_and_ours_are_added_once() {
        for others in [vec![], vec![other(Some("logs")), other(None), other(None)]] {
            let all = merge(&others).expect("ours are missing");
            assert_eq!(all[..others.len()], others);
            assert_eq!(all[others.len()..], ours());
            assert_eq!(merge(&all), None, "there is nothing to write");
            let reversed: Vec<LifecycleRule> = all.into_iter().rev().collect();
            assert_eq!(merge(&reversed), None, "their order says nothing");
        }
    }

    #[test]
    fn what_became_of_ours_is_put_right() {
        let changes: [fn(&mut LifecycleRule); 7] = [
            |rule| rule.status = ExpirationStatus::Disabled,
            |rule| rule.filter = other(None).filter,
            |rule| rule.expiration = other(None).expiration,
            |rule| rule.expiration = None,
            |rule| rule.noncurrent_version_expiration = None,
            |rule| rule.abort_incomplete_multipart_upload = None,
            |rule| rule.transitions = Some(vec![aws_sdk_s3::types::Transition::builder().days(1).build()]),
        ];
        for change in changes {
            let mut found = ours();
            found.insert(0, other(Some("logs")));
            change(&mut found[1]);
            let all = merge(&found).expect("one of ours is not as it should be");
            assert_eq!(all.len(), 3);
            assert!(all[0] == other(Some("logs")) && ours().iter().all(|wanted| all.contains(wanted)), "{all:?}");
        }
        let mut found = ours();
        found.push(ours()[0].clone());
        assert_eq!(merge(&found), Some(ours()), "one stood there twice");
    }

    #[test]
    fn nothing_that_readers_see_is_ever_removed() {
        for is_old in [false, true] {
            for rule in prefixes().iter().map(|prefix| rule(prefix, DAYS, is_old).unwrap()) {
                let expiration = rule.expiration().expect("of markers");
                assert_eq!((expiration.days(), expiration.date()), (None, None));
                assert!(rule.transitions().is_empty() && prefix_of(&rule).is_some_and(|prefix| prefix.ends_with('/')));
            }
        }
    }

    #[test]
    fn beside_rules_of_the_old_form_ours_have_it_too() {
        #[expect(deprecated, reason = "rules that others have written have this form")]
        let old = LifecycleRule::builder().prefix("logs/").status(ExpirationStatus::Enabled).build().unwrap();
        let all = merge(std::slice::from_ref(&old)).expect("ours are missing");
        assert_eq!(all[0], old);
        assert!(all.iter().all(|rule| rule.filter.is_none()), "{all:?}");
        assert_eq!(prefix_of(&all[1]), Some("some/sessions/"));
        assert_eq!(merge(&all), None);
    }

    #[tokio::test]
    async fn rules_are_read_written_once_and_found_again() {
        let empty = (404, "<Error><Code>NoSuchLifecycleConfiguration</Code></Error>".to_owned());
        let (objects, mut requests) = stub::bucket(vec![empty, (200, String::new())]).await;
        assert_eq!(objects.keep_lifecycle(DAYS).await.unwrap(), Lifecycle::Kept);
        let get = requests.recv().await.unwrap();
        assert!(get.starts_with("GET ") && get.contains("?lifecycle"), "{get}");
        let put = requests.recv().await.unwrap();
        assert!(put.starts_with("PUT ") && put.contains("?lifecycle"), "{put}");
        let written = put.split_once("\r\n\r\n").unwrap().1.to_owned();
        for prefix in ["some/quarantine/", "some/sessions/", "some/shared/", "some/journal/"] {
            assert!(written.contains(&format!("<Prefix>{prefix}</Prefix>")), "{written}");
        }
        assert!(!written.contains("<Days>") && !written.contains("<Date>"), "{written}");
        let (objects, mut requests) = stub::bucket(vec![(200, written)]).await;
        assert_eq!(objects.keep_lifecycle(DAYS).await.unwrap(), Lifecycle::Kept);
        assert!(requests.recv().await.unwrap().starts_with("GET "));
        assert!(requests.try_recv().is_err(), "it was written once more");
    }

    #[tokio::test]
    async fn a_server_without_rules_is_told_from_one_that_refuses_and_one_that_is_down() {
        let refused = |code: &str| Some(Lifecycle::Refused(code.into()));
        for (status, code, expected) in [
            (501, "NotImplemented", Some(Lifecycle::Unknown)),
            (405, "MethodNotAllowed", Some(Lifecycle::Unknown)),
            (400, "XNotImplemented", Some(Lifecycle::Unknown)),
            (403, "AccessDenied", refused("AccessDenied")),
            (403, "", refused("403")),
            (503, "SlowDown", None),
            (500, "InternalError", None),
        ] {
            let body = if code.is_empty() { String::new() } else { format!("<Error><Code>{code}</Code></Error>") };
            let (objects, _requests) = stub::bucket(vec![(status, body)]).await;
            assert_eq!(objects.keep_lifecycle(DAYS).await.ok(), expected, "{status} {code}");
        }
    }
}
