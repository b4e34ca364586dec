//! The model: what happened, who knows of it for certain, and so what may be served and what must be found.

use std::fmt;

use bytes::Bytes;

use super::node::{Node, Page, Served};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::purge::{Purge, PurgeTarget};

/// Returns a body that no other fetch has.
pub(super) fn body(at: usize, page: usize, variant: usize, padding: usize) -> Bytes {
    Bytes::from(format!("{at} {page} {variant} {}", "x".repeat(padding)))
}

/// What was done with a page or a variant of it.
#[derive(Clone)]
pub(super) enum Doing {
    /// A response was stored. `deletes` says whether one that it replaced was known to be in the durable tier.
    Stored { body: Bytes, is_durable: bool, deletes: bool },
    /// The page was invalidated.
    Removed,
}

impl fmt::Debug for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed => f.write_str("Removed"),
            Self::Stored { body, is_durable, deletes } => {
                write!(f, "Stored {} bytes, durable {is_durable}, deletes {deletes}", body.len())
            }
        }
    }
}

/// Something that was done.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub doing: Doing,
    pub page: usize,
    /// `None`: all of the page.
    pub variant: Option<usize>,
    pub node: usize,
    pub life: usize,
    /// The steps at which it began and at which it was done.
    pub began: usize,
    pub at: usize,
    pub time: Timestamp,
    /// The step at which its node had last read the journal.
    pub read_at: usize,
    /// The purges, and the removals by their events, that its node knew of for certain when it began.
    pub known: (Vec<usize>, Vec<usize>),
    /// The step by which it was in the place.
    pub written: Option<usize>,
    /// True if that took so long that its purge may have got a later time.
    pub is_late: bool,
}

impl Event {
    /// Returns whether its node knew of another for certain.
    fn knew(&self, other: &Self) -> bool {
        let is_own = (self.node, self.life) == (other.node, other.life);
        is_own || other.written.is_some_and(|written| written < self.read_at)
    }

    /// Returns whether its entry takes the place of others in its slot for certain. What was fetched before the journal was
    /// read may count as purged, and then is not written.
    fn is_entry(&self) -> bool {
        match self.doing {
            _ if self.read_at == 0 => false,
            Doing::Stored { is_durable, deletes, .. } => is_durable || deletes,
            Doing::Removed => false,
        }
    }
}

/// A purge that was made.
#[derive(Debug)]
struct Made {
    purge: Purge,
    node: usize,
    life: usize,
    at: usize,
    /// Its position in its process, and the step by which it was in the journal.
    position: u64,
    recorded: Option<usize>,
    time: Timestamp,
    /// True if writing it took so long that it got a later time.
    is_late: bool,
}

impl Made {
    fn is_of(&self, page: &Page) -> bool {
        match &self.purge.target {
            PurgeTarget::Url(hash) => *hash == page.key.hash(),
            PurgeTarget::Prefix(prefix) => {
                page.url.starts_with(prefix) || page.url["http://h".len()..].starts_with(prefix)
            }
            PurgeTarget::Tag(tag) => page.tags.contains(tag),
            PurgeTarget::All => true,
        }
    }
}

/// All that happened.
#[derive(Debug)]
pub(super) struct Model {
    pub step: usize,
    pub events: Vec<Event>,
    purges: Vec<Made>,
    /// By how many milliseconds two processes' clocks differ at most.
    apart: i64,
    /// True if packs are damaged.
    is_damaging: bool,
}

impl Model {
    pub(super) fn new(apart: i64, is_damaging: bool) -> Self {
        Self { step: 0, events: Vec::new(), purges: Vec::new(), apart, is_damaging }
    }

    pub(super) fn purged(&mut self, purge: Purge, number: usize, node: &Node, position: u64, time: Timestamp) {
        let (life, at) = (node.life, self.step);
        self.purges.push(Made { purge, node: number, life, at, position, recorded: None, time, is_late: false });
    }

    /// Notes what is in the place by now.
    pub(super) fn note_written(&mut self, nodes: &[Node], now: Timestamp) {
        for event in self.events.iter_mut().filter(|event| event.written.is_none()) {
            let node = &nodes[event.node];
            if node.life == event.life && node.durable().queue_depth().0 == 0 && !node.has_lost() {
                event.written = Some(self.step);
                event.is_late |= now.millis_since(event.time) > 9000;
            }
        }
        for made in self.purges.iter_mut().filter(|made| made.recorded.is_none()) {
            let node = &nodes[made.node];
            if node.life == made.life {
                made.recorded = (node.journal().written() >= made.position).then_some(self.step);
                made.is_late |= now.millis_since(made.time) > 9000;
            }
        }
    }

    /// Returns whether a body was stored in the durable tier, as far as is known.
    pub(super) fn is_durable(&self, served: &Bytes) -> bool {
        let is_it =
            |event: &&Event| matches!(&event.doing, Doing::Stored { body, is_durable: true, .. } if body == served);
        self.events.iter().any(|event| is_it(&event))
    }

    /// Returns all that happened to a page, for people.
    pub(super) fn history(&self, page: usize) -> String {
        let events = self.events.iter().filter(|event| event.page == page);
        events.map(|event| format!("{event:?}")).collect::<Vec<_>>().join("\n    ")
    }

    /// Returns the purges, and the removals, that a node knows of for certain.
    pub(super) fn known(&self, number: usize, node: &Node) -> (Vec<usize>, Vec<usize>) {
        let purges = (0..self.purges.len()).filter(|made| knows_purge(number, node, &self.purges[*made]));
        // That of another process may be known to it alone.
        let knows = |event: &Event| (event.node, event.life) == (number, node.life);
        (purges.collect(), (0..self.events.len()).filter(|event| knows(&self.events[*event])).collect())
    }

    /// Returns whether an event came after another by every clock.
    fn is_surely_after(&self, event: &Event, other: &Event) -> bool {
        event.knew(other) || event.time.millis_since(other.time) > self.apart + 1
    }

    /// Returns whether a node that knows of `event` serves nothing of `other`, which came before it.
    fn undoes(&self, event: &Event, other: &Event, is_own: bool) -> bool {
        match &event.doing {
            Doing::Removed => is_own || event.knew(other),
            // A process deletes nothing of which the damage has left it nothing.
            Doing::Stored { is_durable: false, .. } if self.is_damaging => event.is_entry() && event.knew(other),
            Doing::Stored { .. } => event.is_entry() && self.is_surely_after(event, other),
        }
    }

    /// Checks what a node serves. `is_cold` says whether that is from the durable tier alone.
    #[expect(clippy::too_many_arguments, reason = "all that is known of an answer")]
    pub(super) fn check(
        &self,
        number: usize,
        node: &Node,
        page: usize,
        pages: &[Page],
        variant: usize,
        served: Option<&Served>,
        is_cold: bool,
    ) {
        let Some(served) = served else { return };
        let is_it = |event: &&Event| {
            event.page == page
                && event.variant == Some(variant)
                && matches!(&event.doing, Doing::Stored { body, .. } if *body == served.body)
        };
        let url = &pages[page].url;
        let Some(stored) = self.events.iter().find(is_it) else {
            panic!("step {}: {url} {variant}: bytes that nobody stored for it", self.step)
        };
        for made in self.purges.iter().filter(|made| made.is_of(&pages[page]) && made.at >= stored.began) {
            if knows_purge(number, node, made) {
                let is_allowed = made.purge.is_soft && !served.is_fresh;
                assert!(is_allowed, "step {}: {url} of {} in spite of {made:?}", self.step, stored.began);
            }
        }
        let since = self.events.iter().skip_while(|event| !std::ptr::eq(*event, stored));
        let since: Vec<&Event> = since.filter(|event| event.page == page).collect();
        // Processes that do not know of each other's Vary records name variants differently: the last record leads to its own.
        let by_one = since.iter().all(|event| (event.node, event.life) == (stored.node, stored.life));
        let is_of_it = |event: &&&Event| event.variant.is_none_or(|other| other == variant);
        for event in since[1..].iter().filter(is_of_it) {
            // A process whose memory has the record that led to it may have stored another variant since.
            let by_others =
                |other: &&&Event| other.at > event.at && (other.node, other.life) != (event.node, event.life);
            if pages[page].varies
                && !by_one
                && (matches!(event.doing, Doing::Stored { .. }) || since.iter().any(|other| by_others(&other)))
            {
                continue;
            }
            let is_own = (event.node, event.life) == (number, node.life);
            // A process serves its own queue before it looks at what others wrote.
            let waits = stored.written.is_none() && (stored.node, stored.life) == (number, node.life);
            let is_read = event.written.is_some_and(|written| written < node.read_at);
            let knows = is_own || (is_cold && !waits && is_read);
            // To be validated, it may come back: what a damaged pack deleted, or a response whose successor was purged softly
            // before it was written.
            let is_undone = knows && self.undoes(event, stored, is_own);
            let (step, from) = (self.step, if is_cold { "durable" } else { "any" });
            assert!(
                !is_undone || !served.is_fresh,
                "step {step}: node {number}, life {}, which read at {}, serves {url} {variant} ({from}) of {} in spite of {}: {}",
                node.life,
                node.read_at,
                stored.at,
                event.at,
                self.history(page),
            );
        }
    }

    /// Returns the variant of a page, and its body, that a node must find in the durable tier, if it is certain.
    pub(super) fn must_find(&self, number: usize, node: &Node, page: usize, pages: &[Page]) -> Option<(usize, Bytes)> {
        let events: Vec<&Event> = self.events.iter().filter(|event| event.page == page).collect();
        let (last, before) = events.split_last()?;
        let Doing::Stored { body, is_durable: true, .. } = &last.doing else { return None };
        // While something waits to be written, the queue answers for the key.
        if node.durable().queue_depth().0 > 0 {
            return None;
        }
        let is_own = (last.node, last.life) == (number, node.life);
        let is_read = last.written.is_some_and(|written| is_own || written < node.read_at);
        let is_last = before.iter().all(|event| self.is_surely_after(last, event));
        let of_page = |made: &usize| self.purges[*made].is_of(&pages[page]);
        let is_purged = (0..self.purges.len())
            .filter(of_page)
            .any(|made| !last.known.0.contains(&made) || self.purges[made].is_late);
        let is_removal = |(_, event): &(usize, &Event)| event.page == page && matches!(event.doing, Doing::Removed);
        let is_removed = self
            .events
            .iter()
            .enumerate()
            .filter(is_removal)
            .any(|(number, event)| !last.known.1.contains(&number) || event.is_late);
        (is_read && is_last && !is_purged && !is_removed).then(|| (last.variant.unwrap_or(0), body.clone()))
    }
}

fn knows_purge(number: usize, node: &Node, made: &Made) -> bool {
    let is_own = (made.node, made.life) == (number, node.life);
    is_own || made.recorded.is_some_and(|recorded| recorded < node.read_at)
}
