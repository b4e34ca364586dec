//! The log, as an operator finds it.

mod log;
