//! A deletion that waits. One that is asked for again before it is written is moved on instead of queued twice.

use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::{SmallVec, smallvec};

use crate::entry::{BodyObject, JournalTime, Variant};
use crate::rfc9111::key::CacheKey;

/// The bytes that a deletion holds besides its key, about: in the channel, in the queue, and those of its selector.
const AROUND: u64 = 256;

/// A deletion of what a key leads to.
#[derive(Debug)]
pub(crate) struct Deletion {
    /// The key.
    pub key: CacheKey,
    /// The one variant to delete: its name, and what selects it. `None`: everything.
    pub variant: Option<(u128, Variant)>,
    /// Guarded by its lock: what another one changes.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// See [`crate::store::pack::EntryHeader::order`].
    order: JournalTime,
    /// The separate bodies that go with it, as far as known. They count as not written from then on.
    bodies: SmallVec<[Arc<BodyObject>; 1]>,
    stage: Stage,
}

/// The stage of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The writer does not have it yet: what is told the writer now would come before it.
    New,
    /// The writer has it, and its order may still change.
    Waiting,
    /// Its tombstone has its order.
    Encoded,
}

impl Deletion {
    pub(crate) fn new(
        key: &CacheKey,
        variant: Option<(u128, Variant)>,
        body: Option<Arc<BodyObject>>,
        order: JournalTime,
    ) -> Self {
        let bodies = body.map_or_else(SmallVec::new, |body| smallvec![body]);
        let state = Mutex::new(State { order, bodies, stage: Stage::New });
        Self { key: key.clone(), variant, state }
    }

    /// Returns the name of what it deletes under its key; 0: everything.
    pub(crate) fn name(&self) -> u128 {
        self.variant.as_ref().map_or(0, |(name, _)| *name)
    }

    /// Returns its order.
    pub(crate) fn order(&self) -> JournalTime {
        self.state.lock().order
    }

    /// Returns the bytes that it holds.
    pub(crate) fn bytes(&self) -> u64 {
        AROUND + self.key.as_bytes().len() as u64
    }

    /// Records that the writer has it.
    pub(crate) fn is_sent(&self) {
        let mut state = self.state.lock();
        if state.stage == Stage::New {
            state.stage = Stage::Waiting;
        }
    }

    /// Settles its order: it is about to be encoded.
    pub(crate) fn close(&self) {
        self.state.lock().stage = Stage::Encoded;
    }

    /// Moves it on to take the place of another one of the same, if that is still possible.
    pub(super) fn take_over(&self, order: JournalTime, body: Option<&Arc<BodyObject>>) -> bool {
        let mut state = self.state.lock();
        if state.stage != Stage::Waiting {
            return false;
        }
        state.order = state.order.max(order);
        if let Some(body) = body.filter(|body| !state.bodies.iter().any(|other| Arc::ptr_eq(other, body))) {
            state.bodies.push(Arc::clone(body));
        }
        true
    }

    /// Counts its bodies as not written.
    pub(crate) fn forget_bodies(&self) {
        for body in &self.state.lock().bodies {
            body.note(false);
        }
    }
}
