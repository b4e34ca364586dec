//! Which stored responses a purge covers.
//!
//! Purges are numbered as they arrive in this process, those made here and those read from the
//! journal alike. A fetch notes the number of the last one when it begins, its **position**, and what
//! it stores is covered by every matching purge with a higher one: also by one that comes in the
//! middle of the fetch. Nothing is looked for when a purge comes; a stored response is compared with
//! the purges that it has not been compared with yet when it is next used, which is one comparison of
//! integers where there are none.
//!
//! Positions mean nothing to another process, or to this one after a restart. What goes to the durable
//! tier carries [`VersionVector`] instead: the purges that its process knew of, told by who made them and when.
//! There, a purge covers what did not know of it.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::RwLock;
use smallvec::{SmallVec, smallvec};
use tracing::warn;

use super::index::{Print, Prints};
use crate::base::Clock;
use crate::entry::{Covered, HORIZON, JournalTime, StoredHead, TICK_BITS, VersionVector};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::timestamp::Timestamp;

/// The most purged URLs whose purges are remembered one by one.
const MAX_URLS: usize = 262_144;

/// The most that are remembered after that, by forty bits of their key's hash and the time of the last of
/// them. Past it all of them are forgotten, and everything older counts as covered.
const MAX_OLD_URLS: u64 = 4 << 20;

/// The most purged tags that are remembered. What has tags and is older than a forgotten one counts as
/// covered.
const MAX_TAGS: usize = 65_536;

/// The most purged prefixes that are remembered; as for tags.
const MAX_PREFIXES: usize = 4096;

/// The most marks of one target: past it the two oldest become one.
const MAX_MARKS: usize = 16;

/// The most processes whose last records are remembered.
const MAX_MAKERS: usize = 4096;

/// After so many milliseconds a purge that is not written yet is made anew, of a later time.
const LATE: u64 = HORIZON / 6;

/// The most purges that wait to be written. Past it they become one of everything.
const MAX_OUTGOING: usize = 65_536;

/// In place of a scheme at the beginning of a prefix: whichever.
pub(crate) const EITHER: &str = "*";

/// What a purge is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// All that is stored under the key with this hash: every variant.
    Url(u128),
    /// Every URL that begins with this: scheme ([`EITHER`] for whichever), authority, path and query as they
    /// are in keys; or a path, of whatever authority.
    Prefix(String),
    /// All that has this tag, to the byte.
    Tag(String),
    /// Everything.
    All,
}

/// A purge.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Purge {
    /// What it is of.
    pub target: Target,
    /// Whether what it covers stays, stale: good for validation, and in place of an error.
    pub is_soft: bool,
}

impl Purge {
    /// A purge after which nothing of `target` is left.
    pub fn hard(target: Target) -> Self {
        Self { target, is_soft: false }
    }

    /// Whether what memory has of it is removed when it comes, so that nothing is to be compared with it.
    fn removes_at_once(&self) -> bool {
        matches!(self, Self { target: Target::Url(_), is_soft: false })
    }
}

/// A purge that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its number in this process.
    pub arrival: u64,
    /// When it was made.
    pub time: JournalTime,
    /// The process that made it; 0: nobody remembers.
    pub maker: u64,
    /// See [`Purge::is_soft`].
    pub is_soft: bool,
}

impl Mark {
    /// Whether this leaves nothing to `other` that came before it.
    fn is_as_hard_as(&self, other: &Self) -> bool {
        other.is_soft || !self.is_soft
    }

    /// When it was made, by the clock that the processes share.
    pub fn moment(&self) -> Timestamp {
        Timestamp::from_millis(i64::try_from(self.time >> TICK_BITS).unwrap_or(i64::MAX))
    }
}

type Marks = SmallVec<[Mark; 1]>;

/// Adds a mark to those of its target, without those that it leaves nothing to.
fn add(marks: &mut Marks, mark: Mark) {
    marks.retain(|old| {
        // Whoever knew of a mark so much later was told of this one before.
        let is_long_ago = old.time.saturating_add((2 * HORIZON) << TICK_BITS) < mark.time;
        let is_superseded = (old.maker == mark.maker && old.time <= mark.time) || is_long_ago;
        !(is_superseded && mark.is_as_hard_as(old))
    });
    marks.push(mark);
    while marks.len() > MAX_MARKS {
        let (a, b) = (marks.remove(0), marks.remove(0));
        marks.insert(0, merge(a, b));
    }
}

/// One mark that covers what either does.
fn merge(a: Mark, b: Mark) -> Mark {
    Mark { arrival: a.arrival.max(b.arrival), time: a.time.max(b.time), maker: 0, is_soft: a.is_soft && b.is_soft }
}

/// Targets of one kind and their marks, the oldest forgotten first.
#[derive(Debug)]
struct Targets<K> {
    marks: HashMap<K, Marks>,
    order: VecDeque<(K, u64)>,
    limit: usize,
}

impl<K: Clone + Eq + Hash> Targets<K> {
    fn new(limit: usize) -> Self {
        Self { marks: HashMap::new(), order: VecDeque::new(), limit }
    }

    fn is_known(&self, target: &K, time: JournalTime, maker: u64, is_soft: bool) -> bool {
        self.marks.get(target).is_some_and(|marks| is_among(marks, time, maker, is_soft))
    }

    /// Notes a mark; the arrival of the last one before it, and what is forgotten for it.
    fn note(&mut self, target: K, mark: Mark) -> (Option<u64>, Vec<(K, Mark)>) {
        let marks = self.marks.entry(target.clone()).or_default();
        let before = marks.iter().map(|mark| mark.arrival).max();
        add(marks, mark);
        self.order.push_back((target, mark.arrival));
        let mut forgotten = Vec::new();
        while self.order.len() > self.limit {
            let Some((target, arrival)) = self.order.pop_front() else { break };
            if self.marks.get(&target).is_some_and(|marks| marks.iter().all(|mark| mark.arrival <= arrival)) {
                let marks = self.marks.remove(&target).unwrap_or_default();
                forgotten.extend(marks.into_iter().map(|mark| (target.clone(), mark)));
            }
        }
        (before, forgotten)
    }

    fn of_mut(&mut self, target: &K) -> impl Iterator<Item = &mut Mark> {
        self.marks.get_mut(target).into_iter().flatten()
    }

    fn of(&self, target: &K) -> &[Mark] {
        self.marks.get(target).map_or(&[], |marks| marks)
    }
}

fn is_among(marks: &[Mark], time: JournalTime, maker: u64, is_soft: bool) -> bool {
    marks.iter().any(|mark| mark.maker == maker && mark.time >= time && (is_soft || !mark.is_soft))
}

/// The purges that a process knows of.
#[derive(Debug)]
pub struct Purges {
    clock: Clock,
    clock_offset: AtomicI64,
    /// What this process signs its purges with.
    maker: u64,
    /// The position of the last purge.
    last: AtomicU64,
    /// The position of the last one that memory was not told of when it came.
    last_unseen: AtomicU64,
    /// Guarded by its lock: read on a miss, and on the first use after a purge.
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    maker: u64,
    urls: Targets<u128>,
    /// By the tag's hash.
    tags: Targets<u128>,
    /// In the order of their arrival.
    prefixes: VecDeque<(String, Mark)>,
    all: Marks,
    /// The URLs whose purges are not remembered one by one.
    old_urls: Prints,
    /// What was forgotten: all of a kind that is older counts as covered.
    floors: Floors,
    /// The last time that each process is known to have made a purge at.
    makers: HashMap<u64, JournalTime>,
    /// See [`VersionVector::complete_until`].
    until: JournalTime,
    version_vector: Arc<VersionVector>,
    /// The latest time that was given out here or read.
    latest: JournalTime,
    outgoing: Vec<Outgoing>,
    /// Whether what is made here is to be written.
    is_written: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Floors {
    /// The last forgotten purge of a URL: for what is under way.
    urls: u64,
    /// Of those that are remembered by their prints.
    old_urls: Option<Mark>,
    /// Of those that are not.
    any_urls: Option<Mark>,
    tags: Option<Mark>,
    prefixes: Option<Mark>,
}

/// A purge of this process that is not in the journal yet.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The purge.
    pub purge: Purge,
    /// When it was made.
    pub time: JournalTime,
    /// Its number here.
    pub arrival: u64,
}

/// What is to be written as one record.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The record's own time, not before that of any purge in it and before that of every later one.
    pub time: JournalTime,
    /// The purges.
    pub purges: Vec<Outgoing>,
}

/// A purge that was made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its position.
    pub position: u64,
    /// The position of the last one of the same URL before it, if that is remembered.
    pub before: Option<u64>,
}

impl Purges {
    /// None so far. `maker` is a random number, not 0, of this process.
    pub fn new(clock: Clock, maker: u64) -> Self {
        let state = State {
            maker,
            urls: Targets::new(MAX_URLS),
            tags: Targets::new(MAX_TAGS),
            prefixes: VecDeque::new(),
            all: Marks::new(),
            old_urls: Prints::default(),
            floors: Floors::default(),
            makers: HashMap::new(),
            until: 0,
            version_vector: Arc::default(),
            latest: 0,
            outgoing: Vec::new(),
            is_written: false,
        };
        Self {
            clock,
            clock_offset: AtomicI64::new(0),
            maker,
            last: AtomicU64::new(1),
            last_unseen: AtomicU64::new(0),
            state: RwLock::new(state),
        }
    }

    /// What this process signs its purges with.
    pub fn maker(&self) -> u64 {
        self.maker
    }

    /// From now on, purges made here wait to be written.
    pub fn write_down(&self) {
        self.state.write().is_written = true;
    }

    /// The position of a fetch that begins now.
    pub fn position(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// The same in terms that hold in other processes. For a response it is asked for when its fetch begins:
    /// what comes after it covers it here, and others may have purged for themselves alone.
    pub fn version_vector(&self) -> Arc<VersionVector> {
        Arc::clone(&self.state.read().version_vector)
    }

    /// Where the time comes from.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The time of day.
    pub fn time(&self) -> Timestamp {
        self.clock.now()
    }

    /// The time as the journal counts it.
    pub fn journal_now(&self) -> JournalTime {
        let now = self.clock.now().plus_millis(self.clock_offset.load(Ordering::Relaxed));
        u64::try_from(now.as_millis()).unwrap_or(0) << TICK_BITS
    }

    /// Notes how far the clock that the processes share is ahead of this one's, in milliseconds.
    pub fn set_clock_offset(&self, offset: i64) {
        self.clock_offset.store(offset, Ordering::Relaxed);
    }

    /// Purges. In force when it returns. `is_shared` says whether other processes are told.
    pub fn purge(&self, purge: Purge, is_shared: bool) -> Made {
        let mut state = self.state.write();
        let time = self.next_time(&mut state);
        let is_seen = purge.removes_at_once();
        let arrival = self.last.load(Ordering::Acquire) + 1;
        let mark = Mark { arrival, time, maker: self.maker, is_soft: purge.is_soft };
        let before = state.note(&Kept::from(&purge.target), mark);
        if is_shared && state.is_written {
            if state.outgoing.len() >= MAX_OUTGOING {
                warn!("too many purges wait to be written: everything counts as purged instead");
                let all = Mark { is_soft: false, ..mark };
                state.note(&Kept::All, all);
                state.outgoing = vec![Outgoing { purge: Purge::hard(Target::All), time, arrival }];
            } else {
                state.outgoing.push(Outgoing { purge, time, arrival });
            }
        }
        state.know(self.maker, time);
        self.publish(arrival, is_seen);
        Made { position: arrival, before }
    }

    /// Takes over a purge that another process made. `false` when it is known.
    pub fn learn(&self, purge: &Purge, time: JournalTime, maker: u64) -> bool {
        let mut state = self.state.write();
        state.latest = state.latest.max(time);
        let arrival = self.last.load(Ordering::Acquire) + 1;
        let (kept, mark) = (Kept::from(&purge.target), Mark { arrival, time, maker, is_soft: purge.is_soft });
        if state.has(&kept, &mark) {
            return false;
        }
        state.note(&kept, mark);
        self.publish(arrival, purge.removes_at_once());
        true
    }

    /// All purges that `maker` made until `time` are known.
    pub fn learnt(&self, maker: u64, time: JournalTime) {
        let mut state = self.state.write();
        state.latest = state.latest.max(time);
        state.know(maker, time);
    }

    /// Everything in the journal was read that was there at `time`, by the clock of this process.
    pub fn read_until(&self, time: JournalTime) {
        let mut state = self.state.write();
        state.until = time.saturating_sub(HORIZON << TICK_BITS);
        // What is made here from now on is not of before, also where this clock goes back.
        state.latest = state.latest.max(time);
        state.see();
    }

    fn publish(&self, arrival: u64, is_seen: bool) {
        if !is_seen {
            self.last_unseen.store(arrival, Ordering::Release);
        }
        self.last.store(arrival, Ordering::Release);
    }

    /// A time after all that were given out or read: also where this process's clock is behind.
    fn next_time(&self, state: &mut State) -> JournalTime {
        state.latest = self.journal_now().max(state.latest.saturating_add(1));
        state.latest
    }

    /// Whether a stored response in memory has to be compared with purges: with those of URLs only if it is
    /// found by another way than its URL's key.
    pub fn is_due(&self, head: &StoredHead) -> bool {
        let counter = if head.is_found_otherwise { &self.last } else { &self.last_unseen };
        let last = counter.load(Ordering::Acquire);
        head.marks.checked.load(Ordering::Acquire) < last && head.position < last
    }

    /// What the purges make of a response in memory that it was not compared with yet.
    pub fn check(&self, head: &StoredHead) -> Covered {
        let last = self.last.load(Ordering::Acquire);
        let since = head.position.max(head.marks.checked.load(Ordering::Acquire));
        let covered = self.covers(head, since);
        if covered == Covered::No {
            head.marks.checked.fetch_max(last, Ordering::AcqRel);
        }
        covered
    }

    /// What the purges after `since` make of a response.
    pub fn covers(&self, head: &StoredHead, since: u64) -> Covered {
        if since >= self.last.load(Ordering::Acquire) {
            return Covered::No;
        }
        let covered = self.state.read().covers(&head.key, head.tags(), Some(since), |mark| mark.arrival > since);
        self.not_ahead(covered)
    }

    /// What purges make of a response that was read from the durable tier.
    pub fn covers_read(&self, head: &StoredHead) -> Covered {
        let state = self.state.read();
        self.not_ahead(
            state.covers(&head.key, head.tags(), None, |mark| !head.version_vector.contains(mark.maker, mark.time)),
        )
    }

    /// The clock of whoever purged may be ahead of this one's: what he purged is stale now.
    fn not_ahead(&self, covered: Covered) -> Covered {
        match covered {
            Covered::Softly(moment) => Covered::Softly(moment.min(self.clock.now())),
            covered => covered,
        }
    }

    /// The purges that cover a response, each with what it is of: those that [`Purges::covers_read`] goes by
    /// when `since` is `None`.
    pub fn covering(&self, head: &StoredHead, since: Option<u64>) -> Vec<(Target, Mark)> {
        let counts = |mark: &Mark| match since {
            Some(since) => mark.arrival > since,
            None => !head.version_vector.contains(mark.maker, mark.time),
        };
        let mut covering = Vec::new();
        self.state.read().each(&head.key, head.tags(), since, &mut |target: &dyn Fn() -> Target, mark| {
            if counts(mark) {
                covering.push((target(), *mark));
            }
        });
        covering
    }

    /// Whether any URL was purged since `position`.
    pub fn is_any_since(&self, position: u64) -> bool {
        position < self.last.load(Ordering::Acquire)
    }

    /// Whether a purge of one of `tags` came since `position`.
    pub fn covers_tags(&self, tags: &[String], position: u64) -> bool {
        if tags.is_empty() || position >= self.last.load(Ordering::Acquire) {
            return false;
        }
        let state = self.state.read();
        state.floors.tags.is_some_and(|floor| floor.arrival > position)
            || tags.iter().flat_map(|tag| state.tags.of(&hash_of(tag))).any(|mark| mark.arrival > position)
    }

    /// Whether a purge covers a fetch of the URL with `hash` that began at `position`.
    pub fn covers_fetch(&self, hash: u128, position: u64) -> bool {
        if position >= self.last.load(Ordering::Acquire) {
            return false;
        }
        let state = self.state.read();
        position < state.floors.urls || state.urls.of(&hash).iter().any(|mark| mark.arrival > position)
    }

    /// Takes what waits to be written, at most `most`. Whoever takes it gives it back with
    /// [`Purges::give_back`] or writes it before taking more.
    pub fn take_outgoing(&self, most: usize) -> Batch {
        let mut state = self.state.write();
        let time = self.next_time(&mut state);
        let count = state.outgoing.len().min(most);
        let mut purges: Vec<Outgoing> = state.outgoing.drain(..count).collect();
        // A record turns up soon after the times in it, or whoever reads it would have to have known.
        let is_late = |outgoing: &&mut Outgoing| outgoing.time + (LATE << TICK_BITS) < time;
        let late = purges.iter_mut().take_while(is_late).count();
        state.make_anew(&mut purges[..late], time);
        // What is made from now on is of a later time, also what is left over.
        if !state.outgoing.is_empty() {
            let later = self.next_time(&mut state);
            let mut left = std::mem::take(&mut state.outgoing);
            state.make_anew(&mut left, later);
            state.outgoing = left;
        }
        Batch { time, purges }
    }

    /// Gives back what could not be written. In case that it was written after all: the next record tells
    /// the same, of the same times, and told twice is told once.
    pub fn give_back(&self, batch: Batch) {
        let mut state = self.state.write();
        let mut purges = batch.purges;
        purges.append(&mut state.outgoing);
        state.outgoing = purges;
    }

    /// The number of purges that wait to be written.
    pub fn outgoing(&self) -> usize {
        self.state.read().outgoing.len()
    }

    /// Every purge that is remembered, for a snapshot.
    pub fn remembered(&self) -> Remembered {
        let state = self.state.read();
        let mut marks: Vec<(Kept, Mark)> = Vec::new();
        marks.extend(state.all.iter().map(|mark| (Kept::All, *mark)));
        marks.extend(state.prefixes.iter().map(|(prefix, mark)| (Kept::Prefix(prefix.clone()), *mark)));
        for (targets, kept) in [(&state.tags, Kept::Tag as fn(u128) -> Kept), (&state.urls, Kept::Url)] {
            for (hash, of) in &targets.marks {
                marks.extend(of.iter().map(|mark| (kept(*hash), *mark)));
            }
        }
        let floors = [
            (Kept::OldUrls, state.floors.old_urls),
            (Kept::UrlFloor, state.floors.any_urls),
            (Kept::TagFloor, state.floors.tags),
            (Kept::PrefixFloor, state.floors.prefixes),
        ];
        marks.extend(floors.into_iter().filter_map(|(kept, floor)| Some((kept, floor?))));
        marks.sort_by_key(|(_, mark)| mark.arrival);
        let makers = state.makers.iter().map(|(maker, time)| (*maker, *time)).collect();
        Remembered { marks, makers, old_urls: state.old_urls.encode(), latest: state.latest }
    }

    /// Takes over what a snapshot remembers. `false` when a part of it makes no sense.
    #[must_use]
    pub fn remember(&self, remembered: &Remembered) -> bool {
        let mut state = self.state.write();
        let is_sound = state.old_urls.take_over(&remembered.old_urls);
        let mut arrival = self.last.load(Ordering::Acquire);
        for (kept, mark) in &remembered.marks {
            if state.has(kept, mark) {
                continue;
            }
            arrival += 1;
            state.note(kept, Mark { arrival, ..*mark });
        }
        for (maker, time) in &remembered.makers {
            state.know(*maker, *time);
        }
        state.latest = state.latest.max(remembered.latest);
        self.publish(arrival, false);
        is_sound
    }
}

/// What purges a process remembers, by their hashes where it has no more than those.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Targets and marks, in the order of their arrival.
    pub marks: Vec<(Kept, Mark)>,
    /// See [`Purges::learnt`].
    pub makers: Vec<(u64, JournalTime)>,
    /// The prints of URLs whose purges are not remembered one by one.
    pub old_urls: Vec<u8>,
    /// The latest time known.
    pub latest: JournalTime,
}

/// What a remembered mark is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// [`Target::All`]
    All,
    /// [`Target::Prefix`]
    Prefix(String),
    /// [`Target::Tag`], by the tag's hash.
    Tag(u128),
    /// [`Target::Url`]
    Url(u128),
    /// Purges of URLs that are remembered by their prints.
    OldUrls,
    /// Purges of URLs that are forgotten.
    UrlFloor,
    /// Purges of tags that are forgotten.
    TagFloor,
    /// Purges of prefixes that are forgotten.
    PrefixFloor,
}

impl From<&Target> for Kept {
    fn from(target: &Target) -> Self {
        match target {
            Target::Url(hash) => Self::Url(*hash),
            Target::Tag(tag) => Self::Tag(hash_of(tag)),
            Target::Prefix(prefix) => Self::Prefix(prefix.clone()),
            Target::All => Self::All,
        }
    }
}

impl State {
    /// Notes a mark; the arrival of the last one of the same URL before it.
    fn note(&mut self, kept: &Kept, mark: Mark) -> Option<u64> {
        match kept {
            Kept::Url(hash) => return self.note_url(*hash, mark),
            Kept::Tag(hash) => self.note_tag(*hash, mark),
            Kept::Prefix(prefix) => self.note_prefix(prefix, mark),
            Kept::All => add(&mut self.all, mark),
            Kept::OldUrls => raise(&mut self.floors.old_urls, mark),
            Kept::UrlFloor => raise(&mut self.floors.any_urls, mark),
            Kept::TagFloor => raise(&mut self.floors.tags, mark),
            Kept::PrefixFloor => raise(&mut self.floors.prefixes, mark),
        }
        None
    }

    fn note_url(&mut self, hash: u128, mark: Mark) -> Option<u64> {
        let (before, forgotten) = self.urls.note(hash, mark);
        for (hash, mark) in forgotten {
            self.floors.urls = self.floors.urls.max(mark.arrival);
            self.keep_old(Print::of(hash), mark);
        }
        before
    }

    fn keep_old(&mut self, print: Print, mark: Mark) {
        self.old_urls.insert(print);
        raise(&mut self.floors.old_urls, mark);
        if self.old_urls.len() > MAX_OLD_URLS {
            if let Some(floor) = self.floors.old_urls.take() {
                raise(&mut self.floors.any_urls, floor);
            }
            self.old_urls = Prints::default();
        }
    }

    fn note_tag(&mut self, hash: u128, mark: Mark) {
        let (_, forgotten) = self.tags.note(hash, mark);
        for (_, mark) in forgotten {
            raise(&mut self.floors.tags, mark);
        }
    }

    fn note_prefix(&mut self, prefix: &str, mark: Mark) {
        let of_same = self.prefixes.iter().filter(|(other, _)| other == prefix).map(|(_, mark)| *mark);
        let mut marks: Marks = of_same.collect();
        add(&mut marks, mark);
        self.prefixes.retain(|(other, _)| other != prefix);
        // Merged or not, the newest is last, and those before it are in their order.
        for mark in marks {
            let at = self.prefixes.partition_point(|(_, other)| other.arrival <= mark.arrival);
            self.prefixes.insert(at, (prefix.to_owned(), mark));
        }
        while self.prefixes.len() > MAX_PREFIXES {
            if let Some((_, mark)) = self.prefixes.pop_front() {
                raise(&mut self.floors.prefixes, mark);
            }
        }
    }

    /// Whether a mark, or one that leaves nothing to it, is noted already.
    fn has(&self, kept: &Kept, mark: &Mark) -> bool {
        let Mark { time, maker, is_soft, .. } = *mark;
        let above = |floor: Option<Mark>| floor.is_some_and(|floor| floor.time >= time && floor.is_as_hard_as(mark));
        match kept {
            Kept::All => is_among(&self.all, time, maker, is_soft),
            Kept::Prefix(prefix) => {
                self.prefixes.iter().any(|(other, mark)| other == prefix && is_among(&[*mark], time, maker, is_soft))
            }
            Kept::Tag(hash) => self.tags.is_known(hash, time, maker, is_soft),
            Kept::Url(hash) => self.urls.is_known(hash, time, maker, is_soft),
            Kept::OldUrls => above(self.floors.old_urls),
            Kept::UrlFloor => above(self.floors.any_urls),
            Kept::TagFloor => above(self.floors.tags),
            Kept::PrefixFloor => above(self.floors.prefixes),
        }
    }

    fn know(&mut self, maker: u64, time: JournalTime) {
        let last = self.makers.entry(maker).or_default();
        *last = time.max(*last);
        while self.makers.len() > MAX_MAKERS {
            let oldest = self.makers.iter().min_by_key(|(_, time)| **time).map(|(maker, _)| *maker);
            oldest.map(|maker| self.makers.remove(&maker));
        }
        self.see();
    }

    fn see(&mut self) {
        let mut recent: Vec<(u64, JournalTime)> =
            self.makers.iter().filter(|(_, time)| **time > self.until).map(|(maker, time)| (*maker, *time)).collect();
        recent.sort_unstable_by_key(|(maker, time)| (std::cmp::Reverse(*time), *maker));
        recent.truncate(VersionVector::MAX_RECENT);
        if self.version_vector.complete_until != self.until || self.version_vector.recent != recent {
            self.version_vector = Arc::new(VersionVector { complete_until: self.until, recent });
        }
    }

    /// Gives purges of this process that wait a later time.
    fn make_anew(&mut self, purges: &mut [Outgoing], time: JournalTime) {
        let maker = self.maker;
        for outgoing in purges.iter_mut() {
            let old = outgoing.time;
            outgoing.time = time;
            let is_it = |mark: &&mut Mark| mark.maker == maker && mark.time == old;
            match Kept::from(&outgoing.purge.target) {
                Kept::Url(hash) => self.urls.of_mut(&hash).filter(is_it).for_each(|mark| mark.time = time),
                Kept::Tag(hash) => self.tags.of_mut(&hash).filter(is_it).for_each(|mark| mark.time = time),
                Kept::Prefix(prefix) => {
                    let of = self.prefixes.iter_mut().filter(|(other, _)| *other == prefix).map(|(_, mark)| mark);
                    of.filter(is_it).for_each(|mark| mark.time = time);
                }
                // No purge is of what is forgotten.
                _ => self.all.iter_mut().filter(is_it).for_each(|mark| mark.time = time),
            }
        }
        if !purges.is_empty() {
            self.know(maker, time);
        }
    }

    /// Calls `each` with every purge that is about the response; for `since`, those of prefixes only as far
    /// back as they are later.
    fn each(
        &self,
        key: &CacheKey,
        tags: &[String],
        since: Option<u64>,
        each: &mut dyn FnMut(&dyn Fn() -> Target, &Mark),
    ) {
        for mark in &self.all {
            each(&|| Target::All, mark);
        }
        let searched = key.searched_path();
        for hash in [Some(key.hash()), searched].into_iter().flatten() {
            let old = self.floors.old_urls.as_ref().filter(|_| self.old_urls.contains(hash));
            for mark in self.urls.of(&hash).iter().chain(old).chain(&self.floors.any_urls) {
                each(&|| Target::Url(key.hash()), mark);
            }
        }
        for tag in tags {
            for mark in self.tags.of(&hash_of(tag)).iter().chain(&self.floors.tags) {
                each(&|| Target::Tag(tag.clone()), mark);
            }
        }
        if let Some(mark) = &self.floors.prefixes {
            each(&|| Target::Prefix(String::new()), mark);
        }
        for (prefix, mark) in self.prefixes.iter().rev() {
            if since.is_some_and(|since| mark.arrival <= since) {
                break;
            }
            if begins_with(key, prefix) {
                each(&|| Target::Prefix(prefix.clone()), mark);
            }
        }
    }

    fn covers(&self, key: &CacheKey, tags: &[String], since: Option<u64>, counts: impl Fn(&Mark) -> bool) -> Covered {
        let mut covered = Covered::No;
        self.each(key, tags, since, &mut |_, mark| {
            if !counts(mark) {
                return;
            }
            covered = match covered {
                _ if !mark.is_soft => Covered::Wholly,
                Covered::No => Covered::Softly(mark.moment()),
                Covered::Softly(moment) => Covered::Softly(moment.max(mark.moment())),
                Covered::Wholly => Covered::Wholly,
            };
        });
        covered
    }
}

fn raise(floor: &mut Option<Mark>, mark: Mark) {
    // Nobody is known to have known of what is forgotten.
    *floor = Some(floor.map_or(Mark { maker: 0, ..mark }, |floor| merge(floor, mark)));
}

/// Whether the URL of a key begins with `prefix`.
fn begins_with(key: &CacheKey, prefix: &str) -> bool {
    let Some(parts) = key.parts() else { return false };
    let mut url: SmallVec<[&str; 6]> = smallvec![parts.path];
    // Of what is stored for several queries nobody can tell how its query begins.
    let is_searched = parts.query.is_some_and(|query| query.contains('\0'));
    let prefix = match prefix.split_once('?') {
        Some((path, _)) if is_searched => {
            url.push("?");
            &prefix[..=path.len()]
        }
        _ => {
            url.extend(parts.query.filter(|_| !is_searched).into_iter().flat_map(|query| ["?", query]));
            prefix
        }
    };
    if !prefix.starts_with('/') {
        url.insert(0, parts.authority);
        url.insert(0, "://");
        url.insert(0, if prefix.starts_with(EITHER) { EITHER } else { parts.scheme });
    }
    let mut rest = prefix.as_bytes();
    for part in url {
        let part = part.as_bytes();
        if rest.len() <= part.len() {
            return part.starts_with(rest);
        }
        match rest.strip_prefix(part) {
            Some(left) => rest = left,
            None => return false,
        }
    }
    false
}

fn hash_of(tag: &str) -> u128 {
    xxhash_rust::xxh3::xxh3_128(tag.as_bytes())
}

#[cfg(test)]
mod tests;
