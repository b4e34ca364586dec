//! What goes out to a client.

mod stored;
