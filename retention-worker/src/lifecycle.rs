//! The bucket's own rules: made sure of beside the passes, at the start and once a day. Nothing waits for them.

use std::time::Duration;

use service_kit::retry::Backoff;
use service_kit::shutdown::Shutdown;
use storage::objects::{Keeps, Lifecycle, Objects};

/// Others write the bucket's rules too, all at once: what they did not see they took away.
const LOOK_EVERY: Duration = Duration::from_secs(86_400);
const DAY_S: u64 = 86_400;

/// After how many days the bucket removes things by itself; not before an upload may end that its row is staged for.
pub(crate) fn days(wanted: u64, put_horizon: Duration) -> i32 {
    i32::try_from(wanted.max(put_horizon.as_secs() / DAY_S + 1)).unwrap_or(i32::MAX)
}

/// Makes sure of them until the shutdown. What cannot be is told once.
pub(crate) async fn keep(objects: Objects, keeps: Keeps, days: i32, shutdown: Shutdown) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    let mut told = None;
    loop {
        let (text, wait) = match objects.keep_lifecycle(days).await {
            Ok(lifecycle) => {
                backoff.reset();
                (warning(&lifecycle, keeps, days, &objects.lifecycle_prefixes()), LOOK_EVERY)
            }
            Err(error) => (Some(format!("{error}; trying again")), backoff.wait()),
        };
        if let Some(text) = text.filter(|text| told.as_ref() != Some(text)) {
            tracing::warn!("{text}");
            told = Some(text);
        }
        if !shutdown.sleep(wait).await {
            return;
        }
    }
}

/// What an operator has to know, where the bucket does not do it by itself.
pub(crate) fn warning(lifecycle: &Lifecycle, keeps: Keeps, days: i32, prefixes: &[String]) -> Option<String> {
    match lifecycle {
        Lifecycle::Kept => None,
        Lifecycle::Unknown if keeps.uploads => {
            Some("the bucket's server has no lifecycle rules: what retention workers do not remove stays".to_owned())
        }
        Lifecycle::Unknown => Some(
            "the bucket's server lists no uploads and has no lifecycle rules: parts of those that nobody ended stay until it \
             removes them"
                .to_owned(),
        ),
        Lifecycle::Refused(code) => Some(format!(
            "the bucket's lifecycle rules could not be made sure of: {code}\n  hint: allow s3:GetLifecycleConfiguration and \
             s3:PutLifecycleConfiguration; or have rules below {} that abort incomplete uploads and expire noncurrent versions \
             after {days} days and delete markers that stand alone, and set CLAIRVIO_LIFECYCLE_DAYS=0",
            prefixes.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_bucket_does_not_do_is_one_warning() {
        let warning = |lifecycle, uploads| {
            warning(&lifecycle, Keeps { versions: false, uploads }, 7, &["a/sessions/".into(), "a/shared/".into()])
        };
        assert_eq!(warning(Lifecycle::Kept, true), None);
        assert_eq!(warning(Lifecycle::Kept, false), None);
        for uploads in [true, false] {
            let text = warning(Lifecycle::Unknown, uploads).unwrap();
            assert_eq!(text.contains("lists no uploads"), !uploads);
            assert!(text.contains("has no lifecycle rules"));
        }
        let text = warning(Lifecycle::Refused("AccessDenied".into()), true).unwrap();
        for part in ["AccessDenied", "s3:PutLifecycleConfiguration", "a/sessions/, a/shared/", "7 days"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn no_upload_that_goes_on_is_ended_by_the_bucket() {
        assert_eq!(days(7, Duration::from_secs(930)), 7);
        assert_eq!(days(7, Duration::from_secs(9 * DAY_S + 1)), 10);
        assert_eq!(days(u64::MAX, Duration::ZERO), i32::MAX);
    }
}
