//! Tests that space is reclaimed.
