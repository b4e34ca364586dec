//! Logs why an answer is 502 or 504 because the application gave none, or had no room.

use std::error::Error;

use http::{Response, StatusCode};
use tracing::info;

use super::Proxy;
use crate::base::log::{OncePerMinute, cut};
use crate::proxy::target::RequestTarget;
use crate::respond::{Cause, ResponseBody};

/// The failures logged lately, by key and status.
pub type Failures = OncePerMinute<(u128, StatusCode)>;

impl Proxy {
    /// Logs why the application gave no answer, if `response` is such a 502, 503 or 504: once a minute for each URL and
    /// status.
    pub(super) fn log_failure(&self, target: Option<&RequestTarget<'_>>, response: &mut Response<ResponseBody>) {
        let status = response.status();
        let may_be_ours =
            [StatusCode::BAD_GATEWAY, StatusCode::GATEWAY_TIMEOUT, StatusCode::SERVICE_UNAVAILABLE].contains(&status);
        if !may_be_ours {
            return;
        }
        // One that the application itself gave carries no cause.
        let (Some(cause), Some(target)) = (response.extensions_mut().remove::<Cause>(), target) else { return };
        let id = target.id();
        let now = self.fetcher.clock.now().as_millis();
        let Some(turn) = self.failures.turn((target.key.hash(), status), now) else { return };
        info!(
            request_id = %id,
            status = status.as_u16(),
            url = &*cut(target.key.to_url().into()),
            cause = match cause {
                Cause::Upstream(error) => with_sources(&error),
                Cause::Internal(sentence) => sentence.to_owned(),
            },
            "a request got no answer from the application{}",
            turn.in_words()
        );
    }
}

/// Returns an error's text with those of its sources.
fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}
