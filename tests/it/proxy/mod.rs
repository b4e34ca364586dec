//! The life of a request: its key, its rules, and how its answer is explained.

mod decisions;
mod explain;
mod keys;
mod query;
