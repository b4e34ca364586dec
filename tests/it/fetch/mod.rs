//! One fetch for many: who shares an answer, and who gets one of their own.

mod cancellation;
mod own_answers;
mod sharing;
mod streams;
