//! A body on its way in, read by any number of clients on its way out.
//!
//! One writer appends chunks as they arrive; every reader walks them from the first at its own
//! pace. A chunk is shared, never copied, between readers.
//!
//! * While the body stays within its limits it is kept **whole**: the writer never waits, a reader
//!   may join at any time before the end, and at the end the body can be stored. From then on
//!   readers read what is stored, and the chunks are gone.
//! * Once it grows past them the fill becomes a **window**: chunks that every reader has passed
//!   are dropped, the writer waits for the slowest reader, and who comes late is turned away.
//!
//! A reader that holds others below [`LEAST_RATE`] is turned out of a window: the slowest sets the
//! pace, but not any pace. A reader in the background (a durable upload) is turned out sooner, at
//! the rate it names.
//!
//! A fill ends [`FillWriter::complete`]d or failed. A writer that is dropped before it completes
//! has failed: readers then see an error, never a clean end.
//!
//! Every byte that a fill keeps is counted in its [`Budget`] until it is freed.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::base::Stopwatch;
use crate::entry::{Body, StoredResponse};

/// Bytes a second below which a reader of a window may not hold others.
pub(super) const LEAST_RATE: u64 = 64 * 1024;

/// How long a reader may keep others waiting beyond what [`LEAST_RATE`] allows.
const STALL: Duration = Duration::from_secs(5);

/// The same for a reader in the background.
const BACKGROUND_STALL: Duration = Duration::from_secs(2);

/// How often a writer that waits looks who it waits for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How many bytes a window holds before its writer waits.
const WINDOW: usize = 256 * 1024;

/// Time for which a body of known length is still read when no client reads it...
const UNREAD: Duration = Duration::from_secs(600);

/// ...and a second more for each so many bytes of it.
const UNREAD_RATE: u64 = 1 << 20;

/// The same for one of unknown length, which may have no end.
const UNREAD_OF_UNKNOWN: Duration = Duration::from_secs(30);

/// Says how long a body is still read once no client reads it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// Its length is known: long enough for all of it to come.
    Finite,
    /// It may go on for ever: half a minute.
    PerhapsEndless,
}

impl Unread {
    fn limit(self, len: u64) -> Duration {
        match self {
            Self::Finite => UNREAD + Duration::from_secs(len / UNREAD_RATE),
            Self::PerhapsEndless => UNREAD_OF_UNKNOWN,
        }
    }
}

/// Bytes that all fills together may keep. Shared by every fill of a proxy.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    /// Bytes of complete bodies that clients of their fills still read.
    lingering: AtomicUsize,
    /// The large stored bodies that clients read, by where they are, and how many do. Its lock is held for a look-up.
    read: Mutex<HashMap<usize, usize>>,
    limit: usize,
}

/// Up to so many bytes a stored body that is read is not counted.
const SMALL: u64 = 256 << 10;

/// Held while a client reads a stored body.
#[derive(Debug)]
pub struct Reading {
    budget: Arc<Budget>,
    stored: Arc<StoredResponse>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let key = Arc::as_ptr(&self.stored).addr();
        let mut read = self.budget.read.lock();
        let readers = read.get_mut(&key).map(|readers| {
            *readers -= 1;
            *readers
        });
        if readers == Some(0) {
            read.remove(&key);
            self.budget
                .lingering
                .fetch_sub(usize::try_from(self.stored.len()).unwrap_or(usize::MAX), Ordering::Relaxed);
        }
    }
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), lingering: AtomicUsize::new(0), read: Mutex::default(), limit })
    }

    /// Bytes that fills keep now. Windows are counted, and may exceed the limit: each by itself is
    /// bounded.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that fills keep now, and of complete bodies that clients still read who joined before they
    /// were. Memory may have those as well, or have given them up.
    pub fn held(&self) -> usize {
        self.used().saturating_add(self.lingering.load(Ordering::Relaxed))
    }

    /// Counts a large stored body for as long as a client reads it: memory may have given it up meanwhile. One that
    /// several read counts once.
    #[inline]
    pub fn reading(self: &Arc<Self>, stored: &Arc<StoredResponse>) -> Option<Reading> {
        if stored.len() <= SMALL { None } else { Some(self.begin_reading(stored)) }
    }

    #[cold]
    fn begin_reading(self: &Arc<Self>, stored: &Arc<StoredResponse>) -> Reading {
        let len = usize::try_from(stored.len()).unwrap_or(usize::MAX);
        let mut read = self.read.lock();
        let readers = read.entry(Arc::as_ptr(stored).addr()).or_insert(0);
        *readers += 1;
        if *readers == 1 {
            self.lingering.fetch_add(len, Ordering::Relaxed);
        }
        drop(read);
        Reading { budget: Arc::clone(self), stored: Arc::clone(stored) }
    }

    /// Counts `bytes` in, if that stays within the limit.
    fn reserve(&self, bytes: usize) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.limit {
            self.release(bytes);
            return false;
        }
        true
    }

    /// Counts `bytes` in whatever the limit.
    pub fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts `bytes` out.
    pub fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The body of a fetch, shared between its writer and its readers.
pub struct Fill {
    state: Mutex<State>,
    /// The most bytes kept whole.
    limit: usize,
    budget: Arc<Budget>,
}

/// Guarded by the fill's lock, which is held for a few instructions at a time and never across
/// an await or a wake.
struct State {
    /// The chunks kept, and how many readers have each as their next.
    chunks: VecDeque<Chunk>,
    /// The number of chunks dropped from the front.
    dropped: u64,
    /// Bytes in `chunks`, each of them counted in the budget.
    kept: usize,
    /// Bytes appended so far.
    len: u64,
    mode: Mode,
    end: End,
    /// The body as it is stored, in place of the chunks.
    stored: Option<Body>,
    /// The readers, by slot.
    readers: Vec<Option<Place>>,
    free: Vec<usize>,
    /// Readers that have read all there is so far; clients among them.
    at_end: usize,
    clients_at_end: usize,
    /// Readers that are clients.
    clients: usize,
    /// Whether a client has waited since the writer began to wait.
    client_waits: bool,
    writer: Option<Waker>,
}

struct Chunk {
    bytes: Bytes,
    readers: usize,
}

/// Where a reader is.
#[derive(Default)]
struct Place {
    /// The number of its next chunk.
    next: u64,
    /// The bytes it has read.
    read: u64,
    /// Woken when its next chunk has come.
    waker: Option<Waker>,
    /// It held up others for too long, and gets no more.
    turned_out: bool,
    /// It is no client, and named the rate below which it may not hold up any.
    background: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Whole,
    Window,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    Complete,
    Failed,
}

/// The body ended before it was complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incomplete;

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the origin's response ended before it was complete")
    }
}

impl std::error::Error for Incomplete {}

impl fmt::Debug for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Fill").field("len", &state.len).field("mode", &state.mode).field("end", &state.end).finish()
    }
}

impl Fill {
    /// A fill that keeps at most `limit` bytes whole, and counts them against `budget`.
    pub fn start(limit: usize, unread: Unread, budget: Arc<Budget>) -> FillWriter {
        let state = State {
            chunks: VecDeque::new(),
            dropped: 0,
            kept: 0,
            len: 0,
            mode: Mode::Whole,
            end: End::Open,
            stored: None,
            readers: Vec::new(),
            free: Vec::new(),
            at_end: 0,
            clients_at_end: 0,
            clients: 0,
            client_waits: false,
            writer: None,
        };
        let fill = Arc::new(Self { state: Mutex::new(state), limit, budget });
        FillWriter {
            fill,
            finished: false,
            is_window: false,
            on_overflow: None,
            held_up: HeldUp::default(),
            unread,
            unread_since: None,
        }
    }

    /// Joins as a reader from the first byte; `None` when that byte is no longer kept.
    pub fn reader(self: &Arc<Self>) -> Option<FillReader> {
        self.join(None)
    }

    /// Joins as a reader that is no client, and that is turned out when it holds clients below
    /// `rate` bytes a second.
    pub fn background_reader(self: &Arc<Self>, rate: u64) -> Option<FillReader> {
        self.join(Some(rate.max(1)))
    }

    fn join(self: &Arc<Self>, background: Option<u64>) -> Option<FillReader> {
        let slot = self.state.lock().join(background)?;
        Some(FillReader { fill: Arc::clone(self), slot })
    }

    /// Ready when a chunk more may be appended.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        state.trim(&self.budget);
        if state.is_full() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
    /// Fails the readers that have the oldest chunk as their next.
    fn turn_out(&self, culprit: Culprit) {
        let mut wakers = Vec::new();
        let mut state = self.state.lock();
        let mut left = 0;
        for place in state.slowest() {
            if culprit == Culprit::Client || place.background.is_some() {
                place.turned_out = true;
                wakers.extend(place.waker.take());
            } else {
                left += 1;
            }
        }
        if let Some(chunk) = state.chunks.front_mut() {
            chunk.readers = left;
        }
        state.trim(&self.budget);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        self.budget.release(state.kept);
        self.budget.lingering.fetch_sub(state.lingering(), Ordering::Relaxed);
    }
}

impl State {
    fn join(&mut self, background: Option<u64>) -> Option<usize> {
        // One that failed has nothing for who comes now: they ask elsewhere, and get all of it.
        if self.end == End::Failed || (self.dropped > 0 && self.stored.is_none()) {
            return None;
        }
        let place = Place { background, ..Place::default() };
        let slot = if let Some(slot) = self.free.pop() {
            self.readers[slot] = Some(place);
            slot
        } else {
            self.readers.push(Some(place));
            self.readers.len() - 1
        };
        self.clients += usize::from(background.is_none());
        self.arrive(slot);
        Some(slot)
    }

    fn append(&mut self, bytes: Bytes) {
        self.kept += bytes.len();
        self.len += bytes.len() as u64;
        let readers = std::mem::take(&mut self.at_end);
        self.clients_at_end = 0;
        self.chunks.push_back(Chunk { bytes, readers });
    }

    fn take_wakers(&mut self) -> Vec<Waker> {
        self.readers.iter_mut().flatten().filter_map(|reader| reader.waker.take()).collect()
    }

    fn has_readers(&self) -> bool {
        self.readers.len() > self.free.len()
    }

    /// The bytes that the reader in `slot` is to have next, if they are there.
    fn next(&mut self, slot: usize) -> Option<Bytes> {
        let place = self.readers[slot].as_ref()?;
        if let Some(body) = &self.stored {
            let bytes = body.piece_from(place.read)?;
            self.readers[slot].as_mut()?.read += bytes.len() as u64;
            return Some(bytes);
        }
        let bytes = self.index(place.next).and_then(|at| self.chunks.get(at))?.bytes.clone();
        self.leave(slot);
        let place = self.readers[slot].as_mut()?;
        place.next += 1;
        place.read += bytes.len() as u64;
        self.arrive(slot);
        Some(bytes)
    }

    /// Counts the reader in `slot` where it is.
    fn arrive(&mut self, slot: usize) {
        let Some(place) = &self.readers[slot] else { return };
        let (next, is_client) = (place.next, place.background.is_none());
        match self.index(next).and_then(|at| self.chunks.get_mut(at)) {
            Some(chunk) => chunk.readers += 1,
            None => {
                self.at_end += 1;
                self.clients_at_end += usize::from(is_client);
            }
        }
    }

    /// Counts the reader in `slot` no more where it is.
    fn leave(&mut self, slot: usize) {
        let Some(place) = self.readers[slot].as_ref().filter(|place| !place.turned_out) else { return };
        let (next, is_client) = (place.next, place.background.is_none());
        match self.index(next).and_then(|at| self.chunks.get_mut(at)) {
            Some(chunk) => chunk.readers = chunk.readers.saturating_sub(1),
            None => {
                self.at_end = self.at_end.saturating_sub(1);
                self.clients_at_end = self.clients_at_end.saturating_sub(usize::from(is_client));
            }
        }
    }

    fn index(&self, chunk: u64) -> Option<usize> {
        usize::try_from(chunk.checked_sub(self.dropped)?).ok()
    }

    /// Drops what every reader has passed, unless the body is to be kept whole, or there is room: who is
    /// only just told of the head may still join then.
    fn trim(&mut self, budget: &Budget) {
        if self.mode == Mode::Whole && self.end == End::Open {
            return;
        }
        while self.kept >= WINDOW && self.chunks.front().is_some_and(|chunk| chunk.readers == 0) {
            if let Some(chunk) = self.chunks.pop_front() {
                self.kept -= chunk.bytes.len();
                budget.release(chunk.bytes.len());
                self.dropped += 1;
            }
        }
    }

    /// Ends the fill. With `stored`, readers read that from now on.
    fn finish(&mut self, end: End, stored: Option<Body>, budget: &Budget) -> Vec<Waker> {
        self.end = end;
        if stored.is_some() {
            self.stored = stored;
            self.chunks = VecDeque::new();
            budget.release(std::mem::take(&mut self.kept));
            budget.lingering.fetch_add(self.lingering(), Ordering::Relaxed);
        } else {
            self.trim(budget);
        }
        self.take_wakers()
    }

    /// The bytes that the fill holds of a body that is stored.
    fn lingering(&self) -> usize {
        self.stored.as_ref().map_or(0, |body| usize::try_from(body.len()).unwrap_or(usize::MAX))
    }

    /// Whether a window is full.
    fn is_full(&self) -> bool {
        self.mode == Mode::Window && self.kept >= WINDOW && self.has_readers()
    }

    /// Whoever has the oldest chunk as its next.
    fn slowest(&mut self) -> impl Iterator<Item = &mut Place> {
        let first = (!self.chunks.is_empty()).then_some(self.dropped);
        self.readers.iter_mut().flatten().filter(move |place| Some(place.next) == first && !place.turned_out)
    }

    /// Who holds the writer up: a client, or only readers in the background.
    fn held_up_by(&mut self) -> Culprit {
        self.client_waits = self.clients_at_end > 0;
        let mut rate = 0;
        for place in self.slowest() {
            match place.background {
                Some(least) => rate = rate.max(least),
                None => return Culprit::Client,
            }
        }
        Culprit::Background(rate)
    }
}

/// Who makes a writer wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Culprit {
    Client,
    /// The rate below which it may not.
    Background(u64),
}

/// For how long clients have waited for slower readers, less what the least rate allows.
#[derive(Debug, Default)]
struct HeldUp {
    by_clients: Duration,
    by_background: Duration,
    /// The rate that the reader in the background named.
    rate: u64,
}

impl HeldUp {
    /// Notes a wait; whether that was too long.
    fn note(&mut self, culprit: Culprit, waited: Duration) -> bool {
        match culprit {
            Culprit::Client => {
                self.by_clients += waited;
                self.by_clients >= STALL
            }
            Culprit::Background(rate) => {
                self.rate = rate;
                self.by_background += waited;
                self.by_background >= BACKGROUND_STALL
            }
        }
    }

    /// Notes that the body went on by so many bytes.
    fn went_on(&mut self, bytes: usize) {
        let allowed = |rate: u64| Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / rate.max(1));
        self.by_clients = self.by_clients.saturating_sub(allowed(LEAST_RATE));
        self.by_background = self.by_background.saturating_sub(allowed(self.rate));
    }
}

/// Takes over a body that outgrew its limit, as its reader in the background.
type OnOverflow = Box<dyn FnOnce(FillReader) + Send>;

/// The one that appends to a fill. Dropped before [`FillWriter::complete`], it fails the fill.
pub struct FillWriter {
    fill: Arc<Fill>,
    finished: bool,
    is_window: bool,
    on_overflow: Option<(u64, OnOverflow)>,
    held_up: HeldUp,
    unread: Unread,
    unread_since: Option<Stopwatch>,
}

impl fmt::Debug for FillWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FillWriter").field("fill", &self.fill).finish_non_exhaustive()
    }
}

impl FillWriter {
    /// The fill, for readers to join.
    pub fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }

    /// Has `take` called when the body outgrows what is kept whole, with a reader in the background
    /// (see [`Fill::background_reader`]) at its first byte.
    pub fn on_overflow(&mut self, rate: u64, take: impl FnOnce(FillReader) + Send + 'static) {
        self.on_overflow = Some((rate, Box::new(take)));
    }

    /// Returns whether the body is no longer kept whole: the writer may have to wait for readers.
    pub fn is_window(&self) -> bool {
        self.is_window
    }

    /// Appends `bytes`; in a window, first waits for the slowest reader. `false`: the body is no
    /// longer kept whole and nobody reads it, or no client has for long, so there is no use in
    /// going on.
    pub async fn push(&mut self, bytes: Bytes) -> bool {
        if bytes.is_empty() {
            return true;
        }
        self.wait_for_room().await;
        self.held_up.went_on(bytes.len());
        let (wakers, overflow) = {
            let mut state = self.fill.state.lock();
            let state = &mut *state;
            let mut overflow = None;
            if state.mode == Mode::Whole {
                let fits = state.kept + bytes.len() <= self.fill.limit;
                if !fits || !self.fill.budget.reserve(bytes.len()) {
                    state.mode = Mode::Window;
                    self.is_window = true;
                    if let Some((rate, take)) = self.on_overflow.take()
                        && let Some(slot) = state.join(Some(rate.max(1)))
                    {
                        overflow = Some((slot, take));
                    }
                    state.trim(&self.fill.budget);
                    self.fill.budget.add(bytes.len());
                }
            } else {
                self.fill.budget.add(bytes.len());
            }
            if state.mode == Mode::Window && !state.has_readers() {
                self.fill.budget.release(bytes.len());
                return false;
            }
            if is_unread_for_long(state, self.unread, &mut self.unread_since) {
                self.fill.budget.release(bytes.len());
                return false;
            }
            state.append(bytes);
            (state.take_wakers(), overflow)
        };
        if let Some((slot, take)) = overflow {
            take(FillReader { fill: Arc::clone(&self.fill), slot });
        }
        wakers.into_iter().for_each(Waker::wake);
        true
    }

    async fn wait_for_room(&mut self) {
        loop {
            let culprit = {
                let mut state = self.fill.state.lock();
                state.trim(&self.fill.budget);
                if !state.is_full() {
                    return;
                }
                state.held_up_by()
            };
            let (fill, began) = (Arc::clone(&self.fill), Stopwatch::start());
            let room = std::future::poll_fn(|cx| fill.poll_room(cx));
            let _ = tokio::time::timeout(LOOK_AGAIN, room).await;
            // One that reads alone is left its own pace.
            let is_too_long = fill.state.lock().client_waits && self.held_up.note(culprit, began.elapsed());
            if is_too_long {
                self.fill.turn_out(culprit);
            }
        }
    }

    /// The whole body, `last` included, if it was kept: what is to be stored. To be asked for
    /// before [`FillWriter::complete`], so that a client that has read to the end finds it stored.
    pub fn whole(&self, last: &Bytes) -> Option<Body> {
        let state = self.fill.state.lock();
        if state.mode == Mode::Window || state.kept + last.len() > self.fill.limit {
            return None;
        }
        let len = state.len + last.len() as u64;
        Some(Body::from_chunks(state.chunks.iter().map(|chunk| &chunk.bytes).chain(std::iter::once(last)), len))
    }

    /// Whether a body that ends with `last` can be kept whole.
    pub fn has_room_for(&self, last: &Bytes) -> bool {
        let state = self.fill.state.lock();
        state.mode == Mode::Whole && state.kept + last.len() <= self.fill.limit
    }

    /// Appends `last`, which may be empty, and ends the fill well. `stored` is the whole of it, where
    /// that is kept elsewhere: the fill keeps nothing of its own then.
    pub fn complete(mut self, last: Bytes, stored: Option<Body>) {
        self.finished = true;
        let wakers = {
            let mut state = self.fill.state.lock();
            if !last.is_empty() {
                self.fill.budget.add(last.len());
                state.append(last);
            }
            state.finish(End::Complete, stored, &self.fill.budget)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Whether no client has read a body for longer than it is taken in for nobody.
fn is_unread_for_long(state: &State, unread: Unread, since: &mut Option<Stopwatch>) -> bool {
    if state.clients > 0 {
        *since = None;
        return false;
    }
    let since = *since.get_or_insert_with(Stopwatch::start);
    since.elapsed() > unread.limit(state.len)
}

impl Drop for FillWriter {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let wakers = self.fill.state.lock().finish(End::Failed, None, &self.fill.budget);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// One reader of a fill.
#[derive(Debug)]
pub struct FillReader {
    fill: Arc<Fill>,
    slot: usize,
}

impl FillReader {
    /// The next chunk; `None` at the end of a complete body.
    pub fn poll_chunk(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Incomplete>>> {
        let this = self.get_mut();
        let mut state = this.fill.state.lock();
        if state.readers[this.slot].as_ref().is_none_or(|reader| reader.turned_out) {
            return Poll::Ready(Some(Err(Incomplete)));
        }
        if let Some(bytes) = state.next(this.slot) {
            state.trim(&this.fill.budget);
            let writer = (!state.is_full()).then(|| state.writer.take()).flatten();
            drop(state);
            if let Some(writer) = writer {
                writer.wake();
            }
            return Poll::Ready(Some(Ok(bytes)));
        }
        match state.end {
            End::Complete => Poll::Ready(None),
            End::Failed => Poll::Ready(Some(Err(Incomplete))),
            End::Open => {
                if let Some(reader) = &mut state.readers[this.slot] {
                    let is_client = reader.background.is_none();
                    if !reader.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                        reader.waker = Some(cx.waker().clone());
                    }
                    state.client_waits |= is_client;
                }
                Poll::Pending
            }
        }
    }

    /// The next chunk; `None` at the end of a complete body.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, Incomplete>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_chunk(cx)).await
    }

    /// Whether every byte was read and the body is complete.
    pub fn is_end(&self) -> bool {
        let state = self.fill.state.lock();
        let place = state.readers[self.slot].as_ref().filter(|place| !place.turned_out);
        state.end == End::Complete && place.is_some_and(|place| place.read == state.len)
    }
}

impl Drop for FillReader {
    fn drop(&mut self) {
        let writer = {
            let mut state = self.fill.state.lock();
            state.leave(self.slot);
            if let Some(place) = state.readers[self.slot].take() {
                state.clients -= usize::from(place.background.is_none());
                state.free.push(self.slot);
            }
            state.trim(&self.fill.budget);
            state.writer.take()
        };
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn next(reader: &mut FillReader) -> Option<Result<Bytes, Incomplete>> {
        poll_fn(|cx| Pin::new(&mut *reader).poll_chunk(cx)).await
    }

    fn is_pending(reader: &mut FillReader) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(reader).poll_chunk(&mut cx).is_pending()
    }

    #[tokio::test]
    async fn every_reader_sees_every_byte_whenever_it_joins() {
        let budget = Budget::new(1000);
        let mut writer = Fill::start(100, Unread::Finite, Arc::clone(&budget));
        let mut early = writer.fill().reader().expect("nothing dropped");
        assert!(is_pending(&mut early));
        assert!(writer.push(Bytes::from_static(b"one")).await);
        let mut late = writer.fill().reader().expect("nothing dropped");
        assert_eq!(next(&mut early).await, Some(Ok(Bytes::from_static(b"one"))));
        assert!(writer.push(Bytes::from_static(b"two")).await);
        assert_eq!(budget.used(), 6);
        let fill = Arc::clone(writer.fill());
        let last = Bytes::from_static(b"three");
        let body = writer.whole(&last).expect("kept whole");
        assert_eq!(body.segments(), [Bytes::from_static(b"onetwothree")]);
        writer.complete(last, Some(body));
        assert_eq!(budget.used(), 0, "what is stored is not kept twice");
        assert_eq!(budget.held(), 11, "and counted as long as it is read");
        let mut after = fill.reader().expect("nothing dropped");
        for (reader, rest) in
            [(&mut early, &b"twothree"[..]), (&mut late, b"onetwothree"), (&mut after, b"onetwothree")]
        {
            assert_eq!(next(reader).await, Some(Ok(Bytes::copy_from_slice(rest))));
            assert_eq!(next(reader).await, None);
            assert!(reader.is_end());
        }
        drop((early, late, after, fill));
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test]
    async fn a_dropped_writer_is_a_failure_never_an_end() {
        let mut writer = Fill::start(100, Unread::Finite, Budget::new(1000));
        let mut reader = writer.fill().reader().expect("nothing dropped");
        writer.push(Bytes::from_static(b"half")).await;
        let fill = Arc::clone(writer.fill());
        drop(writer);
        assert!(fill.reader().is_none(), "nobody begins what has failed");
        assert_eq!(next(&mut reader).await, Some(Ok(Bytes::from_static(b"half"))));
        assert_eq!(next(&mut reader).await, Some(Err(Incomplete)));
    }

    #[tokio::test]
    async fn past_its_limit_it_follows_the_slowest_reader_and_keeps_a_window_only() {
        let budget = Budget::new(usize::MAX);
        let mut writer = Fill::start(WINDOW, Unread::Finite, Arc::clone(&budget));
        let mut slow = writer.fill().reader().expect("nothing dropped");
        let mut quick = writer.fill().reader().expect("nothing dropped");
        let chunk = Bytes::from(vec![7; WINDOW / 2]);
        for _ in 0..3 {
            assert!(writer.push(chunk.clone()).await);
        }
        assert_eq!(budget.used(), 3 * WINDOW / 2, "what is kept is counted, in a window as well");
        for _ in 0..3 {
            assert_eq!(next(&mut quick).await, Some(Ok(chunk.clone())));
        }
        let mut cx = Context::from_waker(Waker::noop());
        assert!(writer.fill().poll_room(&mut cx).is_pending(), "the slow reader holds it back");
        assert_eq!(next(&mut slow).await, Some(Ok(chunk.clone())));
        assert!(writer.fill().reader().is_none(), "the head is gone");
        assert_eq!(next(&mut slow).await, Some(Ok(chunk.clone())));
        assert!(writer.fill().poll_room(&mut cx).is_ready());
        drop(slow);
        assert!(writer.push(chunk.clone()).await);
        drop(quick);
        assert!(!writer.push(chunk).await, "nobody reads, nothing is kept: no use in going on");
        assert!(writer.whole(&Bytes::new()).is_none());
        drop(writer);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stands_still_is_turned_out_when_others_wait() {
        let mut writer = Fill::start(0, Unread::Finite, Budget::new(usize::MAX));
        let mut stuck = writer.fill().reader().expect("nothing dropped");
        let mut quick = writer.fill().reader().expect("nothing dropped");
        let chunk = Bytes::from(vec![7; WINDOW]);
        assert!(writer.push(chunk.clone()).await);
        assert_eq!(next(&mut quick).await, Some(Ok(chunk.clone())));
        // Time is the test's own: it moves on by itself while nothing else can.
        assert!(writer.push(chunk.clone()).await);
        assert_eq!(next(&mut quick).await, Some(Ok(chunk.clone())));
        assert_eq!(next(&mut stuck).await, Some(Err(Incomplete)));
        drop(stuck);
        writer.complete(Bytes::new(), None);
        assert_eq!(next(&mut quick).await, None);
    }

    /// Reads one chunk a `pause`, until the end or an error.
    async fn read_slowly(mut reader: FillReader, pause: Duration) -> Result<u64, Incomplete> {
        let mut read = 0;
        while let Some(chunk) = next(&mut reader).await {
            read += chunk?.len() as u64;
            tokio::time::sleep(pause).await;
        }
        Ok(read)
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_sets_the_pace_of_a_window_but_not_any_pace() {
        const CHUNK: usize = 64 * 1024;
        for (pause, is_kept) in [(Duration::from_millis(500), true), (Duration::from_secs(4), false)] {
            let mut writer = Fill::start(0, Unread::Finite, Budget::new(usize::MAX));
            let slow = tokio::spawn(read_slowly(writer.fill().reader().expect("nothing dropped"), pause));
            let quick = tokio::spawn(read_slowly(writer.fill().reader().expect("nothing dropped"), Duration::ZERO));
            for _ in 0..100 {
                assert!(writer.push(Bytes::from(vec![7; CHUNK])).await);
            }
            writer.complete(Bytes::new(), None);
            assert_eq!(quick.await.expect("no panic"), Ok(100 * CHUNK as u64));
            assert_eq!(slow.await.expect("no panic").is_ok(), is_kept, "{pause:?} for {CHUNK} bytes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_in_the_background_is_turned_out_at_the_rate_it_names() {
        const CHUNK: usize = 64 * 1024;
        // 640 KiB a second.
        for (rate, is_kept) in [(512 * 1024, true), (1024 * 1024, false)] {
            let mut writer = Fill::start(0, Unread::Finite, Budget::new(usize::MAX));
            let upload = writer.fill().background_reader(rate).expect("nothing dropped");
            let upload = tokio::spawn(read_slowly(upload, Duration::from_millis(100)));
            let client = tokio::spawn(read_slowly(writer.fill().reader().expect("nothing dropped"), Duration::ZERO));
            for _ in 0..200 {
                assert!(writer.push(Bytes::from(vec![7; CHUNK])).await);
            }
            writer.complete(Bytes::new(), None);
            assert_eq!(client.await.expect("no panic"), Ok(200 * CHUNK as u64));
            assert_eq!(upload.await.expect("no panic").is_ok(), is_kept, "{rate}");
        }
    }

    #[tokio::test]
    async fn what_outgrows_its_limit_is_taken_over_from_its_first_byte() {
        let budget = Budget::new(usize::MAX);
        let mut writer = Fill::start(10, Unread::Finite, Arc::clone(&budget));
        let (taken, mut take) = tokio::sync::oneshot::channel();
        writer.on_overflow(1, move |reader| drop(taken.send(reader)));
        assert!(writer.push(Bytes::from_static(b"12345678")).await);
        assert!(take.try_recv().is_err(), "within its limit");
        assert!(writer.push(Bytes::from_static(b"90123")).await);
        let mut reader = take.await.expect("it outgrew it");
        assert!(writer.fill().reader().is_some(), "nothing was read yet");
        writer.complete(Bytes::from_static(b"4"), None);
        for part in [&b"12345678"[..], b"90123", b"4"] {
            assert_eq!(next(&mut reader).await, Some(Ok(Bytes::copy_from_slice(part))));
        }
        assert_eq!(next(&mut reader).await, None);
        drop(reader);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_reads_is_taken_in_for_a_while_only() {
        let mut writer = Fill::start(1000, Unread::Finite, Budget::new(usize::MAX));
        let mut pushed = 0;
        while writer.push(Bytes::from_static(b"x")).await {
            pushed += 1;
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        assert_eq!(pushed, 21, "for ten minutes");
    }

    #[tokio::test]
    async fn the_budget_bounds_all_fills_together() {
        let budget = Budget::new(10);
        let mut a = Fill::start(100, Unread::Finite, Arc::clone(&budget));
        let mut b = Fill::start(100, Unread::Finite, Arc::clone(&budget));
        let reader = b.fill().reader();
        assert!(a.push(Bytes::from_static(b"12345678")).await);
        assert!(b.push(Bytes::from_static(b"12345678")).await);
        assert_eq!(budget.used(), 16, "over it by a window");
        assert!(a.whole(&Bytes::new()).is_some());
        assert!(b.whole(&Bytes::new()).is_none(), "over budget: streamed, not stored");
        drop(a.whole(&Bytes::new()));
        a.complete(Bytes::new(), None);
        b.complete(Bytes::new(), None);
        drop(reader);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_may_be_endless_ends_soon_after_its_last_client() {
        for (unread, patience) in [(Unread::PerhapsEndless, 30), (Unread::Finite, 600)] {
            let mut writer = Fill::start(1 << 20, unread, Budget::new(1 << 20));
            let reader = writer.fill().reader();
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(10)).await;
                assert!(writer.push(Bytes::from_static(b"event")).await, "somebody listens");
            }
            drop(reader);
            assert!(writer.push(Bytes::from_static(b"event")).await);
            tokio::time::sleep(Duration::from_secs(patience - 1)).await;
            assert!(writer.push(Bytes::from_static(b"event")).await, "{unread:?}");
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert!(!writer.push(Bytes::from_static(b"event")).await, "{unread:?}");
        }
    }
}
