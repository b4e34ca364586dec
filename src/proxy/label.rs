//! Labels responses: adds `Cache-Status`, and removes the fields that clients do not see.

use http::Response;
use http::header::{self, HeaderMap};

use super::Proxy;
use super::reply::Step;
use super::target::RequestTarget;
use crate::entry::Reading;
use crate::respond::{Answer, Label, ResponseBody};
use crate::rfc9111::cache_status::{CACHE_STATUS, CacheStatus, Handling};
use crate::rfc9111::directives::CacheControl;
use crate::rfc9111::targeted::governing;
use crate::upstream::NewStickyCookie;

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

    /// Adds the cookie that keeps a client at an address to a response that nobody else gets, here or in a cache between
    /// here and its client.
    #[cold]
    fn put_sticky_cookie(
        &self,
        target: Option<&RequestTarget<'_>>,
        status: &CacheStatus,
        response: &mut Response<ResponseBody>,
    ) {
        let Some(cookie) = response.extensions_mut().remove::<NewStickyCookie>() else { return };
        let is_own = matches!(status.handling, Handling::Forward { stored: false, collapsed: false, .. });
        let fields = response.headers_mut();
        if is_own
            && !self.may_be_shared(fields)
            && let Some(cookie) = cookie.to_value(target.map_or("http", |target| target.scheme))
        {
            fields.append(header::SET_COOKIE, cookie);
        }
    }

    /// Returns whether a shared cache may take a response for one that it may give to others.
    fn may_be_shared(&self, fields: &HeaderMap) -> bool {
        let is_personal = |directives: &CacheControl| directives.private || directives.no_store;
        let plain = CacheControl::of(fields);
        let states_lifetime = plain.public || plain.max_age.is_some() || plain.s_maxage.is_some();
        // Caches make a lifetime of Last-Modified by themselves (RFC 9111 §4.2.2).
        let has_dates = fields.contains_key(header::EXPIRES) || fields.contains_key(header::LAST_MODIFIED);
        let targeted = governing(fields, &self.cache.targets, self.fetcher.clock.now());
        let by_target = targeted.states_lifetime(fields) && !is_personal(&targeted.directives);
        by_target || (!is_personal(&plain) && (states_lifetime || has_dates))
    }

    pub(super) fn label_answer(&self, (status, response): &mut Answer, target: Option<&RequestTarget<'_>>) {
        if !response.extensions().is_empty() {
            self.put_sticky_cookie(target, status, response);
        }
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
