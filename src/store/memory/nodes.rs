//! Entries in queues, each found by its ticket: what leaves a queue's front, and what is taken out of its middle, costs
//! the same.

use std::num::NonZeroU32;

use super::MemoryEntry;

/// Names a node until it is taken out. The place of one that was is used again, under another ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    index: u32,
    generation: NonZeroU32,
}

/// An entry, and its neighbours in its queue.
#[derive(Debug)]
pub(super) struct Node {
    /// The hash that it is kept under.
    pub(super) slot: u128,
    pub(super) entry: MemoryEntry,
    pub(super) weight: u64,
    /// The number of its key's lock.
    pub(super) lock: u8,
    pub(super) area: Area,
}

/// The queue that a node is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Area {
    /// The entries that were put in last.
    Window,
    /// The others.
    Main,
}

/// A place for a node.
#[derive(Debug)]
struct Place {
    /// `None`: free.
    node: Option<Node>,
    generation: NonZeroU32,
    /// Its neighbours in a queue; of a free place, the next free one.
    before: u32,
    after: u32,
}

/// The first and last of some nodes, and the sum of their weights.
#[derive(Debug)]
pub(super) struct Queue {
    first: u32,
    last: u32,
    pub(super) bytes: u64,
}

/// All nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    /// The places, in pieces that never move: one list of millions would be copied whole to grow.
    pieces: Vec<Vec<Place>>,
    free: u32,
    len: usize,
}

/// No place.
const NONE: u32 = u32::MAX;

/// Number of places in a piece.
const PIECE: usize = 4096;

impl Default for Queue {
    fn default() -> Self {
        Self { first: NONE, last: NONE, bytes: 0 }
    }
}

impl Default for Nodes {
    fn default() -> Self {
        Self { pieces: Vec::new(), free: NONE, len: 0 }
    }
}

impl Nodes {
    /// Returns the number of nodes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Takes a node in, in no queue yet. Returns `None` if there are as many as can be named.
    pub(super) fn insert(&mut self, node: Node) -> Option<Ticket> {
        let index = self.free_place()?;
        let place = self.at_mut(index);
        place.node = Some(node);
        let ticket = Ticket { index, generation: place.generation };
        self.free = place.after;
        self.len += 1;
        Some(ticket)
    }

    /// Returns the number of a free place, the first of those that are linked.
    fn free_place(&mut self) -> Option<u32> {
        if self.free == NONE {
            let used = self.pieces.last().map_or(0, |piece| (self.pieces.len() - 1) * PIECE + piece.len());
            let index = u32::try_from(used).ok().filter(|index| *index != NONE)?;
            if used.is_multiple_of(PIECE) {
                self.pieces.push(Vec::with_capacity(PIECE));
            }
            self.pieces.last_mut()?.push(Place { node: None, generation: NonZeroU32::MIN, before: NONE, after: NONE });
            self.free = index;
        }
        Some(self.free)
    }

    /// Takes a node out that is in no queue any more.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Node> {
        let free = self.free;
        let place = self.place_mut(ticket)?;
        let node = place.node.take();
        place.generation = place.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        place.after = free;
        self.free = ticket.index;
        self.len -= 1;
        node
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&Node> {
        let place = self.at(ticket.index);
        place.node.as_ref().filter(|_| place.generation == ticket.generation)
    }

    pub(super) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Node> {
        self.place_mut(ticket)?.node.as_mut()
    }

    fn place_mut(&mut self, ticket: Ticket) -> Option<&mut Place> {
        let place = self.at_mut(ticket.index);
        (place.node.is_some() && place.generation == ticket.generation).then_some(place)
    }

    /// Puts a node at the end of a queue.
    pub(super) fn push(&mut self, queue: &mut Queue, ticket: Ticket) {
        let last = queue.last;
        let Some(place) = self.place_mut(ticket) else { return };
        (place.before, place.after) = (last, NONE);
        queue.bytes += place.node.as_ref().map_or(0, |node| node.weight);
        queue.last = ticket.index;
        if last == NONE {
            queue.first = ticket.index;
        } else {
            self.at_mut(last).after = ticket.index;
        }
    }

    /// Takes a node out of its queue.
    pub(super) fn unlink(&mut self, queue: &mut Queue, ticket: Ticket) {
        let Some(place) = self.place_mut(ticket) else { return };
        let (before, after) = (place.before, place.after);
        queue.bytes -= place.node.as_ref().map_or(0, |node| node.weight);
        match before {
            NONE => queue.first = after,
            before => self.at_mut(before).after = after,
        }
        match after {
            NONE => queue.last = before,
            after => self.at_mut(after).before = before,
        }
    }

    /// Takes the first node out of a queue.
    pub(super) fn pop(&mut self, queue: &mut Queue) -> Option<Ticket> {
        let index = Some(queue.first).filter(|index| *index != NONE)?;
        let ticket = Ticket { index, generation: self.at(index).generation };
        self.unlink(queue, ticket);
        Some(ticket)
    }

    fn at(&self, index: u32) -> &Place {
        let index = index as usize;
        &self.pieces[index / PIECE][index % PIECE]
    }

    fn at_mut(&mut self, index: u32) -> &mut Place {
        let index = index as usize;
        &mut self.pieces[index / PIECE][index % PIECE]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use super::super::Times;
    use super::*;
    use crate::entry::VaryRecord;
    use crate::rfc9111::key::{CacheKey, KeyParts};

    fn node(slot: u128, weight: u64) -> Node {
        let key = CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "h", path: "/", query: None });
        let entry = MemoryEntry::Vary(Arc::new(VaryRecord::new(key, 0, Vec::new())), Arc::new(Times::default()));
        Node { slot, entry, weight, lock: 0, area: Area::Window }
    }

    /// Whatever is done, a queue is what a plain list would be.
    #[test]
    fn a_queue_is_a_list() {
        let (mut nodes, mut queue) = (Nodes::default(), Queue::default());
        let mut model: VecDeque<(Ticket, u128, u64)> = VecDeque::new();
        let mut random = fastrand::Rng::with_seed(5);
        let mut gone = Vec::new();
        for slot in 0..30_000 {
            match random.u32(..10) {
                0..5 => {
                    let weight = random.u64(..100);
                    let ticket = nodes.insert(node(slot, weight)).expect("room");
                    nodes.push(&mut queue, ticket);
                    model.push_back((ticket, slot, weight));
                }
                5..7 if !model.is_empty() => {
                    let (ticket, slot, _) = model.remove(random.usize(..model.len())).expect("one");
                    nodes.unlink(&mut queue, ticket);
                    assert_eq!(nodes.remove(ticket).map(|node| node.slot), Some(slot));
                    gone.push(ticket);
                }
                7 => {
                    let first = nodes.pop(&mut queue);
                    assert_eq!(first, model.pop_front().map(|(ticket, ..)| ticket));
                    gone.extend(first.filter(|first| nodes.remove(*first).is_some()));
                }
                8 => {
                    if let Some(first) = model.pop_front() {
                        assert_eq!(nodes.pop(&mut queue), Some(first.0));
                        nodes.push(&mut queue, first.0);
                        model.push_back(first);
                    }
                }
                _ => {
                    assert_eq!(
                        (nodes.len(), queue.bytes),
                        (model.len(), model.iter().map(|(.., weight)| weight).sum())
                    );
                    if let Some(old) = gone.pop() {
                        assert!(
                            nodes.get(old).is_none() && nodes.get_mut(old).is_none() && nodes.remove(old).is_none()
                        );
                    }
                }
            }
        }
        for (ticket, slot, _) in model {
            assert_eq!(nodes.get(ticket).map(|node| node.slot), Some(slot));
            assert_eq!(nodes.pop(&mut queue), Some(ticket));
        }
        assert_eq!((nodes.pop(&mut queue), queue.bytes), (None, 0));
    }
}
