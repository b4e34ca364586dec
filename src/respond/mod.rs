//! Makes the answers to clients: from stored responses (the whole, a range, 304, 416), and refusals.
//!
//! * An answer from a stored response has the right `Age`, and no hop-by-hop fields.
//! * Refusals (4xx, 502, 503, 504) are never stored, and are all in one table.
//!
//! May import: `rfc9111`, `base`, `entry`, `store`, `upstream`, `fetch`. Decides nothing.

mod answers;
mod body;
mod refusal;

pub(crate) use self::answers::{
    Answer, ClientRequest, Label, Multipart, Portion, add_age, answer_head, build, hit, passed,
};
pub(crate) use self::body::{Carrier, Piece, ResponseBody};
pub(crate) use self::refusal::{Cause, Refusal, challenge, options, redirect, unanswered};
