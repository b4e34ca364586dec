//! The configuration: where it is read from, and what is said of mistakes.

mod check;
mod effective;
