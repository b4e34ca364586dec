//! What a response says of how it came about: `Cache-Status`, and the fields that clients do not see.

use http::header::HeaderMap;

use super::Proxy;
use super::reply::Step;
use super::target::Target;
use crate::entry::Reading;
use crate::respond::{Answer, Label};
use crate::rfc9111::cache_status::{CACHE_STATUS, CacheStatus, Handling};

impl Proxy {
    /// What a response says of what was done, and what of it clients do not see.
    pub(super) fn put_label(&self, target: Option<&Target<'_>>, status: &CacheStatus, fields: &mut HeaderMap) {
        if status.handling != Handling::Hit {
            // What is stored has none.
            self.cache.tag_fields.remove(fields);
        }
        if self.cache.remove_targets {
            for name in self.cache.targets.names() {
                fields.remove(name);
            }
        }
        let key = target.filter(|_| self.cache.status_key).map(|target| &target.key);
        fields.append(CACHE_STATUS, status.to_value(key));
    }

    pub(super) fn label_answer(&self, (status, response): &mut Answer, target: Option<&Target<'_>>) {
        self.put_label(target, status, response.headers_mut());
        self.tell_failure(target, response);
    }

    /// A step that is an answer of our own.
    pub(super) fn labelled<'a>(&self, mut answer: Answer, target: Option<&Target<'_>>) -> Step<'a> {
        self.label_answer(&mut answer, target);
        Step::answered(answer)
    }

    pub(super) fn label(&self, target: &Target<'_>) -> Label<impl FnOnce(&CacheStatus, &mut HeaderMap)> {
        // Several keys may lead to one response.
        let is_steady = !self.cache.status_key;
        Label {
            put: move |status: &CacheStatus, fields: &mut HeaderMap| self.put_label(Some(target), status, fields),
            is_steady,
        }
    }
}

/// An answer that keeps `reading` until its body has ended.
#[cold]
pub(super) fn held_by((status, response): Answer, reading: Reading) -> Answer {
    (status, response.map(|body| body.on_end(move |_| drop(reading))))
}
