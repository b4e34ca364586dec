//! Tests the responses that go out to a client.

mod stored;
