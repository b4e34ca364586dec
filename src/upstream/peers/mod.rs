//! Peers: other Larders, each of which fetches a share of the keys for all of them.
//!
//! A request that nothing stored answers goes to the node that rendezvous hashing names for its key. That node
//! collapses the requests of all nodes into one to the origin. These modules find the peers (`roster`), ask them
//! (`ask`), and read and write the fields by which they know each other (`protocol`). What is stored of their answers,
//! and what they answer, is decided in higher rooms.
//!
//! * A peer is asked at most one hop away: it never asks a peer on behalf of another.
//! * A peer that says nothing for `peers.timeout` is skipped. One that waits for the origin says so all the
//!   while, for as long as it was told that the asking node waits.

mod ask;
mod config;
mod protocol;
mod roster;

pub(crate) use self::ask::{PeerReply, PeerRequest, answers_question};
pub use self::config::PeersConfig;
pub(crate) use self::protocol::{
    Asker, Received, Verdict, put_word, word_of, write_facts, write_sticky, write_verdict,
};
pub(crate) use self::roster::{PeerState, Peers};
