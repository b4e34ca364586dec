//! Labels responses: adds `Cache-Status`, and removes the fields that clients do not see.

use http::header::HeaderMap;

use super::Proxy;
use super::reply::Step;
use super::target::RequestTarget;
use crate::entry::Reading;
use crate::respond::{Answer, Label};
use crate::rfc9111::cache_status::{CACHE_STATUS, CacheStatus, Handling};

impl Proxy {
    /// Adds `Cache-Status` to a response, and removes the fields that clients do not see.
    pub(super) fn put_label(&self, target: Option<&RequestTarget<'_>>, status: &CacheStatus, fields: &mut HeaderMap) {
        if status.handling != Handling::Hit {
            // A stored response has none of the tag fields.
            self.cache.tag_fields.remove(fields);
        }
        if self.cache.remove_targets {
            for name in self.cache.targets.names() {
                fields.remove(name);
            }
        }
        let key = target.filter(|_| self.cache.status_key).map(|target| &target.key);
        fields.append(CACHE_STATUS, status.to_value(key));
        if let Some(target) = target {
            self.https.strict(target.scheme, fields);
        }
    }

    pub(super) fn label_answer(&self, (status, response): &mut Answer, target: Option<&RequestTarget<'_>>) {
        self.put_label(target, status, response.headers_mut());
        self.log_failure(target, response);
        // The access line has the id that other lines of the request have.
        if let Some(id) = target.and_then(|target| target.id.get()) {
            response.extensions_mut().insert(**id);
        }
    }

    /// Labels an answer that is made here, and returns it as a step.
    pub(super) fn labelled<'a>(&self, mut answer: Answer, target: Option<&RequestTarget<'_>>) -> Step<'a> {
        self.label_answer(&mut answer, target);
        Step::answered(answer)
    }

    pub(super) fn label(&self, target: &RequestTarget<'_>) -> Label<impl FnOnce(&CacheStatus, &mut HeaderMap)> {
        // With the key in it, the label depends on the request: several keys may lead to one response.
        let is_steady = !self.cache.status_key;
        Label {
            put: move |status: &CacheStatus, fields: &mut HeaderMap| self.put_label(Some(target), status, fields),
            is_steady,
        }
    }
}

/// Makes an answer hold `reading` until its body has ended.
#[cold]
pub(super) fn held_by((status, response): Answer, reading: Reading) -> Answer {
    (status, response.map(|body| body.on_end(move |_| drop(reading))))
}
