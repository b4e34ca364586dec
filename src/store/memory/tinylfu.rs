//! Decides what memory keeps by how often it was used of late (`TinyLFU`).
//!
//! * The *window* takes every entry, whatever its use, and keeps it for a while: it is there for those who ask next.
//! * The *main area* takes what leaves the window. Where there is no room, the entry has to prevail over those that would
//!   leave for it. A Vary record always does: without it no variant is found.
//! * The first entry of the main area leaves, unless it was used or replaced since it was first before. Then it goes to the
//!   end, and so do entries that a rival did not prevail over.
//! * A look-up counts a use at the entry that it finds. A miss is a use too: a sketch counts it when the response is put
//!   in, and keeps the counts of what has left. All counts are halved from time to time.
//!
//! This is an account only. It takes no lock and knows no request. When an entry goes from the window to the main area,
//! a queue changes here, and nothing that a reader or a purge sees.
//!
//! The constants are those that do best over the traces of `bench/hit_ratio.py`.

use super::nodes::{Area, Node, Nodes, Queue, Ticket};
use super::seed::Seed;
use super::sketch::{FEWEST, Sketch};
use super::{Leaving, MemoryEntry};
use crate::entry::Uses;

/// The account of the entries in memory.
#[derive(Debug)]
pub(super) struct TinyLfu {
    capacity: u64,
    /// The most bytes in the window. It grows with the largest entry so far.
    window_limit: u64,
    nodes: Nodes,
    window: Queue,
    main: Queue,
    sketch: Sketch,
    /// Number of the times that all counts were halved.
    epoch: u16,
    /// Entries that came in during this epoch.
    arrived: usize,
}

/// Bytes that the account takes for an entry: a node, its share of the sketch, and a ticket.
const ACCOUNT: u64 = 104;

/// The window's part of the capacity.
const WINDOW: u64 = 50;

/// The part of the capacity up to which the window grows. A larger entry seeks admission at once.
const LARGEST_WINDOW: u64 = 10;

/// Number of arrivals for each entry in memory, after which the counts are halved. More answer more of what stays popular,
/// fewer follow sooner when that changes.
const EPOCH: usize = 8;

/// The most entries that one arrival spares because they were used: it must not go through all of memory.
const SPARED: usize = 64;

impl TinyLfu {
    pub(super) fn new(capacity: u64, seed: Seed) -> Self {
        Self {
            capacity,
            window_limit: capacity / WINDOW,
            nodes: Nodes::default(),
            window: Queue::default(),
            main: Queue::default(),
            sketch: Sketch::new(seed),
            epoch: 0,
            arrived: 0,
        }
    }

    /// Returns the number of the epoch, by which uses are counted.
    pub(super) fn epoch(&self) -> u16 {
        self.epoch
    }

    /// Returns the number of entries, and their bytes.
    pub(super) fn usage(&self) -> (u64, u64) {
        (self.nodes.len() as u64, self.window.bytes + self.main.bytes)
    }

    /// Takes an entry in, in place of that with the ticket `old`. Notes in `leaving` what has to leave for it; that may be
    /// the entry itself. Returns `None` if the entry is too large.
    pub(super) fn put(
        &mut self,
        slot: u128,
        lock: u8,
        entry: MemoryEntry,
        old: Option<Ticket>,
        leaving: &mut Vec<Leaving>,
    ) -> Option<Ticket> {
        let weight = entry.weight() + ACCOUNT;
        if weight > self.capacity - self.window_limit {
            if let Some(old) = old {
                self.remove(old);
            }
            return None;
        }
        if weight <= self.capacity / LARGEST_WINDOW {
            self.window_limit = self.window_limit.max(weight);
        }
        let ticket = match old.filter(|old| self.replace_in_main(*old, &entry, weight)) {
            Some(ticket) => ticket,
            None => {
                let ticket = match old.filter(|old| self.unlink(*old).is_some()) {
                    Some(old) => self.replace(old, entry, weight),
                    None => self.arrive(Node { slot, entry, weight, lock, area: Area::Window })?,
                };
                if weight > self.window_limit {
                    self.seek_admission(ticket, leaving);
                } else {
                    self.nodes.push(&mut self.window, ticket);
                }
                ticket
            }
        };
        while self.window.bytes > self.window_limit
            && let Some(first) = self.nodes.pop(&mut self.window)
        {
            self.seek_admission(first, leaving);
        }
        // The main area is too large if the window has grown, or an entry was replaced by a larger one.
        if let Some(victims) = self.victims(self.lacking(0), None) {
            self.release(victims, leaving);
        }
        Some(ticket)
    }

    /// Takes in an entry for what was not in memory: a miss, which is a use.
    fn arrive(&mut self, node: Node) -> Option<Ticket> {
        node.entry.uses().begin(self.sketch.count(node.slot), self.epoch);
        let ticket = self.nodes.insert(node)?;
        self.arrived += 1;
        if self.arrived >= EPOCH * self.nodes.len().max(FEWEST) {
            self.arrived = 0;
            self.epoch = self.epoch.wrapping_add(1);
            self.sketch.age();
        }
        self.sketch.suit(self.nodes.len());
        Some(ticket)
    }

    /// Puts an entry in the place of another, which is in no queue now, and whose uses it takes over.
    fn replace(&mut self, ticket: Ticket, entry: MemoryEntry, weight: u64) -> Ticket {
        if let Some(node) = self.nodes.get_mut(ticket) {
            entry.uses().take_over(node.entry.uses());
            (node.entry, node.weight) = (entry, weight);
        }
        ticket
    }

    /// Puts an entry in the place of another in the main area. It does not move, which would touch its neighbours: it goes
    /// to the end when it is first. Returns `false`, and changes nothing, if the other is not in the main area.
    fn replace_in_main(&mut self, ticket: Ticket, entry: &MemoryEntry, weight: u64) -> bool {
        let Some(node) = self.nodes.get_mut(ticket).filter(|node| node.area == Area::Main) else { return false };
        entry.uses().take_over(node.entry.uses());
        entry.uses().note_recent();
        self.main.bytes = self.main.bytes - node.weight + weight;
        (node.entry, node.weight) = (entry.clone(), weight);
        true
    }

    /// Lets an entry that left the window into the main area, or lets it go.
    fn seek_admission(&mut self, ticket: Ticket, leaving: &mut Vec<Leaving>) {
        let Some(node) = self.nodes.get_mut(ticket) else { return };
        node.area = Area::Main;
        let (weight, uses) = (node.weight, node.entry.uses());
        let rival = match &node.entry {
            MemoryEntry::Response(_) => Some(uses.of_late(self.epoch)),
            MemoryEntry::Vary(..) => None,
        };
        uses.take_recent();
        match self.victims(self.lacking(weight), rival) {
            Some(victims) => {
                self.release(victims, leaving);
                self.nodes.push(&mut self.main, ticket);
            }
            None => self.release(vec![ticket], leaving),
        }
    }

    /// Returns the bytes that have to leave the main area before so many more have room in it.
    fn lacking(&self, weight: u64) -> u64 {
        let limit = self.capacity - self.window_limit;
        self.main.bytes.saturating_add(weight).saturating_sub(limit)
    }

    /// Takes entries of so many bytes out of the main area. Returns `None`, and leaves them in, if a rival with so many uses
    /// does not prevail over them.
    fn victims(&mut self, bytes: u64, rival: Option<u8>) -> Option<Vec<Ticket>> {
        let (mut victims, mut freed, mut uses, mut spared) = (Vec::new(), 0, 0, 0);
        while freed < bytes {
            let first = self.nodes.pop(&mut self.main);
            let Some((ticket, node)) = first.and_then(|ticket| Some((ticket, self.nodes.get(ticket)?))) else { break };
            if spared < SPARED && node.entry.uses().take_recent() {
                spared += 1;
                self.nodes.push(&mut self.main, ticket);
                continue;
            }
            freed += node.weight;
            uses += usize::from(node.entry.uses().of_late(self.epoch));
            victims.push(ticket);
            if rival.is_some_and(|rival| !prevails(rival, uses, victims.len())) {
                for ticket in victims {
                    self.nodes.push(&mut self.main, ticket);
                }
                return None;
            }
        }
        Some(victims)
    }

    /// Lets entries go that are in no queue any more.
    fn release(&mut self, tickets: Vec<Ticket>, leaving: &mut Vec<Leaving>) {
        for ticket in tickets {
            if let Some(node) = self.nodes.remove(ticket) {
                self.sketch.raise(node.slot, node.entry.uses().of_late(self.epoch));
                leaving.push(Leaving { slot: node.slot, lock: node.lock, ticket });
            }
        }
    }

    /// Removes an entry. Its uses count if it comes back.
    pub(super) fn remove(&mut self, ticket: Ticket) {
        if self.unlink(ticket).is_some()
            && let Some(node) = self.nodes.remove(ticket)
        {
            self.sketch.raise(node.slot, node.entry.uses().of_late(self.epoch));
        }
    }

    /// Takes an entry out of the queue that it is in. Returns which that is.
    fn unlink(&mut self, ticket: Ticket) -> Option<Area> {
        let area = self.nodes.get(ticket)?.area;
        match area {
            Area::Window => self.nodes.unlink(&mut self.window, ticket),
            Area::Main => self.nodes.unlink(&mut self.main, ticket),
        }
        Some(area)
    }
}

#[cfg(test)]
impl TinyLfu {
    /// Returns whether an entry is the one with this ticket.
    pub(super) fn knows(&self, ticket: Ticket, entry: &MemoryEntry) -> bool {
        self.nodes.get(ticket).is_some_and(|node| std::ptr::eq(node.entry.uses(), entry.uses()))
    }
}

/// Returns whether a rival with so many uses of late takes the place of so many victims, which have so many together. If
/// its uses are more than are counted, less than one a victim does: a large response that is asked for all the time must
/// not be kept out by thousands of small ones that hardly are.
fn prevails(rival: u8, uses: usize, victims: usize) -> bool {
    usize::from(rival) > uses || rival == Uses::MOST && uses < victims
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_admission() {
        for (rival, uses, victims, prevails) in [
            (1, 0, 1, true),
            (1, 1, 1, false),
            (2, 1, 1, true),
            (2, 2, 2, false),
            (3, 2, 2, true),
            (0, 0, 0, false),
            (Uses::MOST, 6, 1, true),
            (Uses::MOST, 7, 1, false),
            (Uses::MOST, 99, 100, true),
            (Uses::MOST, 100, 100, false),
            (Uses::MOST - 1, 99, 100, false),
        ] {
            assert_eq!(super::prevails(rival, uses, victims), prevails, "{rival} and {uses} of {victims}");
        }
    }
}
