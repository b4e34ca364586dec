//! The bucket's lifecycle rules, which delete what is no longer of use; and uploads that were never finished.

use std::fmt::Write as _;

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::types::{
    AbortIncompleteMultipartUpload, BucketLifecycleConfiguration, ExpirationStatus, LifecycleExpiration, LifecycleRule,
    LifecycleRuleFilter, NoncurrentVersionExpiration,
};

use super::S3Bucket;
use super::explain::Request;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::error::{StoreError, StoreErrorKind};

/// The rules that one configuration needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifecycle {
    /// The beginning of all names.
    pub root: String,
    /// Age in days at which a pack, and all that is in it, is of no use any more.
    pub days: i32,
}

/// The action of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// Deletes objects of this age, in days.
    Expire(i32),
    /// Ends uploads that were never finished. In a versioned bucket, removes versions that were replaced or deleted, and
    /// then their delete markers.
    ClearUp,
}

/// Age in days at which leftovers go.
const LEFT_OVER: i32 = 1;

/// Days for which a snapshot stays longer than a pack: what it knows of purges outlives what they cover. A snapshot is
/// written within a day of every pack.
const LONGER: i32 = 7;

impl Lifecycle {
    /// Returns for each rule its id, the prefix of its names, and its action. While a Larder runs it deletes all of this
    /// sooner; what the rules delete is what nobody uses any more.
    fn parts(&self) -> [(String, String, Action); 4] {
        let Self { root, days } = self;
        [
            (format!("larder packs {root}"), format!("{root}j/"), Action::Expire(*days)),
            (format!("larder bodies {root}"), format!("{root}b/"), Action::Expire(*days)),
            (format!("larder snapshots {root}"), format!("{root}s/"), Action::Expire(days.saturating_add(LONGER))),
            (format!("larder leftovers {root}"), root.clone(), Action::ClearUp),
        ]
    }

    fn rules(&self) -> Result<Vec<LifecycleRule>, StoreError> {
        let rule = |(id, prefix, action): (String, String, Action)| {
            let rule = LifecycleRule::builder()
                .id(id)
                .filter(LifecycleRuleFilter::builder().prefix(prefix).build())
                .status(ExpirationStatus::Enabled);
            let rule = match action {
                Action::Expire(days) => rule.expiration(LifecycleExpiration::builder().days(days).build()),
                Action::ClearUp => rule
                    .abort_incomplete_multipart_upload(
                        AbortIncompleteMultipartUpload::builder().days_after_initiation(LEFT_OVER).build(),
                    )
                    .noncurrent_version_expiration(
                        NoncurrentVersionExpiration::builder().noncurrent_days(LEFT_OVER).build(),
                    )
                    .expiration(LifecycleExpiration::builder().expired_object_delete_marker(true).build()),
            };
            rule.build().map_err(invalid)
        };
        self.parts().into_iter().map(rule).collect()
    }

    /// Returns the rules as `aws s3api put-bucket-lifecycle-configuration` takes them.
    pub fn to_json(&self) -> serde_json::Value {
        let rule = |(id, prefix, action): (String, String, Action)| {
            let mut rule = serde_json::json!({"ID": id, "Filter": {"Prefix": prefix}, "Status": "Enabled"});
            match action {
                Action::Expire(days) => rule["Expiration"] = serde_json::json!({"Days": days}),
                Action::ClearUp => {
                    rule["AbortIncompleteMultipartUpload"] = serde_json::json!({"DaysAfterInitiation": LEFT_OVER});
                    rule["NoncurrentVersionExpiration"] = serde_json::json!({"NoncurrentDays": LEFT_OVER});
                    rule["Expiration"] = serde_json::json!({"ExpiredObjectDeleteMarker": true});
                }
            }
            rule
        };
        serde_json::json!({"Rules": self.parts().map(rule)})
    }
}

fn invalid(error: aws_sdk_s3::error::BuildError) -> StoreError {
    let text = error.to_string();
    StoreError::caused_by(StoreErrorKind::Unacceptable, text, error)
}

fn prefix_of(rule: &LifecycleRule) -> &str {
    // The older form has the prefix beside the filter.
    #[expect(deprecated, reason = "buckets may still have rules of the older form")]
    let older = rule.prefix();
    let and = || rule.filter()?.and()?.prefix();
    rule.filter().and_then(LifecycleRuleFilter::prefix).or_else(and).or(older).unwrap_or_default()
}

/// Returns whether a rule deletes current objects before they are `days` old.
fn expires_before(rule: &LifecycleRule, days: i32) -> bool {
    let is_early = |expiration: &LifecycleExpiration| {
        expiration.date().is_some() || expiration.days().is_some_and(|its| its < days)
    };
    *rule.status() == ExpirationStatus::Enabled && rule.expiration().is_some_and(is_early)
}

fn in_words(rule: &LifecycleRule) -> String {
    let mut text = format!("\"{}\" for names that begin with \"{}\"", rule.id().unwrap_or_default(), prefix_of(rule));
    if let Some(days) = rule.expiration().and_then(LifecycleExpiration::days) {
        let _ = write!(text, ", deleted after {}", in_days(days));
    }
    let abort = rule.abort_incomplete_multipart_upload();
    if let Some(days) = abort.and_then(AbortIncompleteMultipartUpload::days_after_initiation) {
        let _ = write!(text, ", uploads ended after {}", in_days(days));
    }
    let noncurrent = rule.noncurrent_version_expiration().and_then(NoncurrentVersionExpiration::noncurrent_days);
    if let Some(days) = noncurrent {
        let _ = write!(text, ", noncurrent versions deleted after {}", in_days(days));
    }
    if rule.expiration().and_then(LifecycleExpiration::expired_object_delete_marker) == Some(true) {
        text.push_str(", delete markers removed with the last version");
    }
    if *rule.status() != ExpirationStatus::Enabled {
        text.push_str(", disabled");
    }
    text
}

fn in_days(days: i32) -> String {
    format!("{days} day{}", if days == 1 { "" } else { "s" })
}

/// Returns what replaces a rule that has the same id.
fn changes(old: &LifecycleRule, new: &LifecycleRule) -> String {
    let days = |rule: &LifecycleRule| rule.expiration().and_then(LifecycleExpiration::days);
    let others = |rule: &LifecycleRule| {
        let mut text = in_words(rule);
        if let Some(days) = days(rule) {
            text = text.replace(&format!(", deleted after {}", in_days(days)), "");
        }
        text
    };
    match (days(old), days(new)) {
        (Some(before), Some(after)) if others(old) == others(new) => {
            format!("changes from {before} to {}: {}", in_days(after), in_words(new))
        }
        _ => format!("changes: {}; it was: {}", in_words(new), in_words(old)),
    }
}

impl S3Bucket {
    /// Returns the bucket's rules beside `wanted`, and what installing those would change, a line each.
    async fn compare(&self, wanted: &Lifecycle) -> Result<(Vec<LifecycleRule>, Vec<String>), StoreError> {
        let asked = self.client.get_bucket_lifecycle_configuration().bucket(&self.config.bucket).send().await;
        let present = match asked {
            Ok(present) => present.rules.unwrap_or_default(),
            Err(error) if error.code() == Some("NoSuchLifecycleConfiguration") => Vec::new(),
            Err(error) => return Err(self.config.fault(Request::ReadLifecycle, "the lifecycle rules", error)),
        };
        let rules = wanted.rules()?;
        let mut lines = Vec::new();
        for rule in &rules {
            let old = present.iter().find(|old| old.id() == rule.id());
            lines.push(match old {
                Some(old) if in_words(old) == in_words(rule) => format!("unchanged: {}", in_words(rule)),
                Some(old) => changes(old, rule),
                None => format!("new: {}", in_words(rule)),
            });
        }
        let others: Vec<LifecycleRule> =
            present.into_iter().filter(|old| !rules.iter().any(|rule| rule.id() == old.id())).collect();
        for other in &others {
            lines.push(format!("stays: {}", in_words(other)));
            let packs = format!("{}j/", wanted.root);
            if packs.starts_with(prefix_of(other)) && expires_before(other, wanted.days) {
                lines.push(format!(
                    "beware: \"{}\" deletes packs that are of use, and what is known of purges; narrow it",
                    other.id().unwrap_or_default()
                ));
            }
        }
        Ok((others, lines))
    }

    /// Returns what installing the rules would change, a line each.
    pub async fn compare_lifecycle(&self, wanted: &Lifecycle) -> Result<Vec<String>, StoreError> {
        self.compare(wanted).await.map(|(_, lines)| lines)
    }

    /// Installs the rules beside those that the bucket has. Returns what that changed, a line each.
    pub async fn install_lifecycle(&self, wanted: &Lifecycle) -> Result<Vec<String>, StoreError> {
        let (mut rules, lines) = self.compare(wanted).await?;
        rules.extend(wanted.rules()?);
        let configuration = BucketLifecycleConfiguration::builder().set_rules(Some(rules)).build().map_err(invalid)?;
        self.client
            .put_bucket_lifecycle_configuration()
            .bucket(&self.config.bucket)
            .lifecycle_configuration(configuration)
            .send()
            .await
            .map_err(|error| self.config.fault(Request::WriteLifecycle, "the lifecycle rules", error))?;
        Ok(lines)
    }

    /// Ends uploads of names below `root` that were begun before `before`, unless `is_dry`. Returns their number.
    pub(super) async fn end_uploads(&self, root: &str, before: Timestamp, is_dry: bool) -> Result<u64, StoreError> {
        let (mut ended, mut after) = (0, None::<(String, String)>);
        loop {
            let listing = self.client.list_multipart_uploads().bucket(&self.config.bucket).prefix(root);
            let listing = match &after {
                Some((key, id)) => listing.key_marker(key).upload_id_marker(id),
                None => listing,
            };
            let page = match listing.send().await {
                Ok(page) => page,
                // Not every service lists uploads. Its lifecycle rules end them.
                Err(error) if error.raw_response().is_some_and(|answer| answer.status().as_u16() == 501) => break,
                Err(error) => return Err(self.config.fault(Request::ListUploads, root, error)),
            };
            let next = page.next_key_marker.zip(page.next_upload_id_marker).filter(|_| page.is_truncated == Some(true));
            for upload in page.uploads.unwrap_or_default() {
                let begun =
                    upload.initiated.and_then(|time| std::time::SystemTime::try_from(time).ok()).map(Timestamp::from);
                let (Some(key), Some(id), Some(begun)) = (upload.key, upload.upload_id, begun) else { continue };
                if begun >= before || !key.starts_with(root) {
                    continue;
                }
                if !is_dry {
                    let abort = self.client.abort_multipart_upload().bucket(&self.config.bucket).key(&key);
                    let aborted = abort.upload_id(id).send().await;
                    aborted.map_err(|error| self.config.fault(Request::AbortUpload, &key, error))?;
                }
                ended += 1;
            }
            // A service that starts again from the beginning would never come to an end.
            match next {
                Some(next) if after.as_ref().is_none_or(|after| *after < next) => after = Some(next),
                Some(_) | None => break,
            }
        }
        Ok(ended)
    }
}
