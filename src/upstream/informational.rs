//! Passes informational responses (RFC 9110 §15.2: 103 Early Hints, 102 Processing) on to a client of any version of HTTP.
//!
//! They are never stored. They go only to the client whose request was sent to the origin.

use std::fmt;
use std::sync::Arc;

use http::StatusCode;
use http::header::{CONTENT_LENGTH, HeaderMap};

use crate::rfc9111::fields;

/// Sends informational responses to the clients of a connection's requests.
pub(crate) trait InformationalSender: fmt::Debug + Send + Sync {
    /// Sends an informational response to the request with this number, until its final response begins. May drop it,
    /// as is allowed for any.
    fn send(&self, request: u64, status: StatusCode, fields: &HeaderMap);
}

/// Sends informational responses to one request. A copy costs a count.
#[derive(Clone, Debug)]
pub(crate) struct Informational {
    /// The connection's sender.
    pub(crate) sender: Arc<dyn InformationalSender>,
    /// The number of the request among those of its connection.
    pub(crate) request: u64,
}

/// Passes an informational response on, without the fields of its connection. Drops 100, since this server answers
/// `Expect` by itself, and 101, which a proxy treats as a final response.
pub(super) fn relay(to: &Informational, status: StatusCode, fields: &HeaderMap) {
    if !status.is_informational() || matches!(status.as_u16(), 100 | 101) {
        return;
    }
    let mut fields = fields.clone();
    fields::remove_hop_by_hop(&mut fields);
    // RFC 9110 §8.6: an informational response has no content.
    fields.remove(CONTENT_LENGTH);
    to.sender.send(to.request, status, &fields);
}

#[cfg(test)]
mod tests {
    use http::header::{CONNECTION, HeaderValue, LINK};
    use parking_lot::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Sent(Mutex<Vec<(u16, Vec<String>)>>);

    impl InformationalSender for Sent {
        fn send(&self, _request: u64, status: StatusCode, fields: &HeaderMap) {
            self.0.lock().push((status.as_u16(), fields.keys().map(ToString::to_string).collect()));
        }
    }

    #[test]
    fn hints_go_on_without_the_fields_of_their_connection() {
        let mut fields = HeaderMap::new();
        fields.insert(LINK, HeaderValue::from_static("</a.css>; rel=preload"));
        fields.insert(CONNECTION, HeaderValue::from_static("x-hop"));
        fields.insert("x-hop", HeaderValue::from_static("1"));
        fields.insert(CONTENT_LENGTH, HeaderValue::from_static("5"));
        let sent = Arc::new(Sent::default());
        let to = Informational { sender: Arc::clone(&sent) as Arc<dyn InformationalSender>, request: 1 };
        for status in [100, 101, 103, 200] {
            relay(&to, StatusCode::from_u16(status).expect("a status"), &fields);
        }
        assert_eq!(*sent.0.lock(), [(103, vec!["link".to_owned()])]);
    }
}
