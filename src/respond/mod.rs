//! What goes out to a client: responses made from stored ones (the whole, a range, 304, 416), and the few that are made
//! here.
//!
//! * A response made from a stored one has an `Age` that is right, and no field of a connection.
//! * What is made here (4xx, 502, 503, 504) is never stored: all of it is in one table.
//!
//! May import: `rfc9111`, `base`, `entry`, `store`, `upstream`, `fetch`. Decides nothing.

mod answers;
mod body;
mod refusal;

pub(crate) use self::answers::{
    Answer, ClientRequest, Label, Multipart, Part, add_age, answer_head, build, hit, passed,
};
pub(crate) use self::body::{Carrier, ResponseBody};
pub(crate) use self::refusal::{Cause, Refusal, options, unanswered};
