//! What a bucket is told to delete by itself, and what an upload left behind that was killed.

use std::fmt::Write as _;

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::types::{
    AbortIncompleteMultipartUpload, BucketLifecycleConfiguration, ExpirationStatus, LifecycleExpiration, LifecycleRule,
    LifecycleRuleFilter,
};

use super::S3Store;
use crate::clock::Timestamp;
use crate::store::backend::BackendError;

/// The rules of a deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifecycle {
    /// What the names of everything begin with.
    pub root: String,
    /// After so many days objects and bodies are deleted.
    pub days: i32,
}

impl Lifecycle {
    /// What the names of each rule's objects begin with, and whether they expire. The journal does not: it is
    /// kept short by those who write it.
    fn parts(&self) -> [(String, String, bool); 3] {
        let Self { root, .. } = self;
        [
            (format!("larder objects {root}"), format!("{root}o/"), true),
            (format!("larder bodies {root}"), format!("{root}b/"), true),
            (format!("larder uploads {root}"), root.clone(), false),
        ]
    }

    fn rules(&self) -> Result<Vec<LifecycleRule>, BackendError> {
        let rule = |(id, prefix, expires): (String, String, bool)| {
            let rule = LifecycleRule::builder()
                .id(id)
                .filter(LifecycleRuleFilter::builder().prefix(prefix).build())
                .status(ExpirationStatus::Enabled);
            let rule = if expires {
                rule.expiration(LifecycleExpiration::builder().days(self.days).build())
            } else {
                let abort = AbortIncompleteMultipartUpload::builder().days_after_initiation(1).build();
                rule.abort_incomplete_multipart_upload(abort)
            };
            rule.build().map_err(|error| BackendError(error.to_string()))
        };
        self.parts().into_iter().map(rule).collect()
    }

    /// The rules as `aws s3api put-bucket-lifecycle-configuration` takes them.
    pub fn to_json(&self) -> serde_json::Value {
        let rule = |(id, prefix, expires): (String, String, bool)| {
            let mut rule = serde_json::json!({"ID": id, "Filter": {"Prefix": prefix}, "Status": "Enabled"});
            if expires {
                rule["Expiration"] = serde_json::json!({"Days": self.days});
            } else {
                rule["AbortIncompleteMultipartUpload"] = serde_json::json!({"DaysAfterInitiation": 1});
            }
            rule
        };
        serde_json::json!({"Rules": self.parts().map(rule)})
    }
}

fn prefix_of(rule: &LifecycleRule) -> &str {
    // The older form has it beside the filter.
    #[expect(deprecated, reason = "buckets may still have rules of the older form")]
    let older = rule.prefix();
    let and = || rule.filter()?.and()?.prefix();
    rule.filter().and_then(LifecycleRuleFilter::prefix).or_else(and).or(older).unwrap_or_default()
}

fn in_words(rule: &LifecycleRule) -> String {
    let mut text = format!("\"{}\" for names that begin with \"{}\"", rule.id().unwrap_or_default(), prefix_of(rule));
    if let Some(days) = rule.expiration().and_then(LifecycleExpiration::days) {
        let _ = write!(text, ", deleted after {days} days");
    }
    let abort = rule.abort_incomplete_multipart_upload();
    if let Some(days) = abort.and_then(AbortIncompleteMultipartUpload::days_after_initiation) {
        let _ = write!(text, ", uploads ended after {days} days");
    }
    text
}

impl S3Store {
    /// The bucket's rules beside `wanted`, and what installing those would change, a line each.
    async fn compare(&self, wanted: &Lifecycle) -> Result<(Vec<LifecycleRule>, Vec<String>), BackendError> {
        let asked = self.client.get_bucket_lifecycle_configuration().bucket(&self.config.bucket).send().await;
        let present = match asked {
            Ok(present) => present.rules.unwrap_or_default(),
            Err(error) if error.code() == Some("NoSuchLifecycleConfiguration") => Vec::new(),
            Err(error) => return Err(self.config.fault("the lifecycle rules", &error)),
        };
        let rules = wanted.rules()?;
        let mut lines = Vec::new();
        for rule in &rules {
            let old = present.iter().find(|old| old.id() == rule.id());
            lines.push(match old {
                Some(old) if in_words(old) == in_words(rule) => format!("as it is: {}", in_words(rule)),
                Some(old) => format!("instead of: {}: {}", in_words(old), in_words(rule)),
                None => format!("new: {}", in_words(rule)),
            });
        }
        let others: Vec<LifecycleRule> =
            present.into_iter().filter(|old| !rules.iter().any(|rule| rule.id() == old.id())).collect();
        for other in &others {
            lines.push(format!("stays: {}", in_words(other)));
            let journal = format!("{}j/", wanted.root);
            let is_enabled = *other.status() == ExpirationStatus::Enabled;
            if is_enabled && other.expiration().is_some() && journal.starts_with(prefix_of(other)) {
                lines.push(format!(
                    "beware: \"{}\" deletes the journal as well, and with it what is known of purges; narrow it",
                    other.id().unwrap_or_default()
                ));
            }
        }
        Ok((others, lines))
    }

    /// What installing the rules would change.
    pub async fn compare_lifecycle(&self, wanted: &Lifecycle) -> Result<Vec<String>, BackendError> {
        self.compare(wanted).await.map(|(_, lines)| lines)
    }

    /// Installs the rules beside those that the bucket has; what that changed.
    pub async fn install_lifecycle(&self, wanted: &Lifecycle) -> Result<Vec<String>, BackendError> {
        let (mut rules, lines) = self.compare(wanted).await?;
        rules.extend(wanted.rules()?);
        let configuration = BucketLifecycleConfiguration::builder()
            .set_rules(Some(rules))
            .build()
            .map_err(|error| BackendError(error.to_string()))?;
        self.client
            .put_bucket_lifecycle_configuration()
            .bucket(&self.config.bucket)
            .lifecycle_configuration(configuration)
            .send()
            .await
            .map_err(|error| self.config.fault("the lifecycle rules", &error))?;
        Ok(lines)
    }

    /// Ends uploads of names below `root` that were begun before `before`; how many.
    pub async fn end_uploads(&self, root: &str, before: Timestamp, is_dry: bool) -> Result<u64, BackendError> {
        let listed = self.client.list_multipart_uploads().bucket(&self.config.bucket).prefix(root).send().await;
        let listed = match listed {
            Ok(listed) => listed.uploads.unwrap_or_default(),
            // Not every service has this: then its lifecycle rules end them.
            Err(error) if error.raw_response().is_some_and(|answer| answer.status().as_u16() == 501) => Vec::new(),
            Err(error) => return Err(self.config.fault("the uploads", &error)),
        };
        let mut ended = 0;
        for upload in listed {
            let begun =
                upload.initiated.and_then(|time| std::time::SystemTime::try_from(time).ok()).map(Timestamp::from);
            let (Some(key), Some(id), Some(begun)) = (upload.key, upload.upload_id, begun) else { continue };
            if begun >= before || !key.starts_with(root) {
                continue;
            }
            if !is_dry {
                let abort = self.client.abort_multipart_upload().bucket(&self.config.bucket).key(&key).upload_id(id);
                abort.send().await.map_err(|error| self.config.fault(&key, &error))?;
            }
            ended += 1;
        }
        Ok(ended)
    }
}
