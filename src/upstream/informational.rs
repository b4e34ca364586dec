//! Informational responses (RFC 9110 §15.2: 103 Early Hints, 102 Processing) on their way to a client, whatever its
//! version of HTTP.
//!
//! They are never stored, and go to the one client whose request the origin was asked for.

use std::fmt;
use std::sync::Arc;

use http::StatusCode;
use http::header::{CONTENT_LENGTH, HeaderMap};

use crate::rfc9111::fields;

/// Sends informational responses to the client of one request, as long as that is answered.
pub(crate) trait InformationalSender: fmt::Debug + Send + Sync {
    /// Sends one, or drops it: any informational response may be dropped.
    fn send(&self, status: StatusCode, fields: &HeaderMap);
}

/// A sender that several may hold.
pub(crate) type Informational = Arc<dyn InformationalSender>;

/// Passes an informational response on, without the fields of its connection. 100 answers an expectation that this
/// server meets by itself, and 101 is not informational to a proxy.
pub(super) fn relay(sender: &dyn InformationalSender, status: StatusCode, fields: &HeaderMap) {
    if !status.is_informational() || matches!(status.as_u16(), 100 | 101) {
        return;
    }
    let mut fields = fields.clone();
    fields::remove_hop_by_hop(&mut fields);
    // RFC 9110 §8.6: there is no content to have a length.
    fields.remove(CONTENT_LENGTH);
    sender.send(status, &fields);
}

#[cfg(test)]
mod tests {
    use http::header::{CONNECTION, HeaderValue, LINK};
    use parking_lot::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Sent(Mutex<Vec<(u16, Vec<String>)>>);

    impl InformationalSender for Sent {
        fn send(&self, status: StatusCode, fields: &HeaderMap) {
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
        let sent = Sent::default();
        for status in [100, 101, 103, 200] {
            relay(&sent, StatusCode::from_u16(status).expect("a status"), &fields);
        }
        assert_eq!(*sent.0.lock(), [(103, vec!["link".to_owned()])]);
    }
}
