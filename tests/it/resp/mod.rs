//! Tests of the room `resp`: objects over Redis's protocol.
