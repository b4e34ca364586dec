//! One client's connection: reads commands, runs them in their order, and writes their replies.
//!
//! * What memory answers is read, run and answered in one poll: one read and one write for all that arrived together.
//! * While a command waits for the durable tier, the commands behind it wait; other connections do not.
//! * A client that does not read is read no further once as many replies wait as it may have.
//! * Between its turns a connection holds only what has arrived of a command, and the replies that were not taken.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use super::commands::{self, Ran, Step, Waiting, WaitingWithSession, no_room};
use super::input::{Input, NoRoom};
use super::memory::Lease;
use super::output::Output;
use super::parse::{Limits, Next, Skipped};
use super::presence::Presence;
use super::reply::Reply;
use super::server::{Common, Server};
use super::session::Session;
use super::settling::Seat;
use crate::base::{RespClass, RespCounters, RespRefusal, Stopwatch, Timer, Transport, format_size};

/// Replies are written once so many bytes are gathered, or no whole command is left.
const GATHER: usize = 64 << 10;

/// The most commands of a turn. Then it is another connection's.
const TURN: u32 = 1024;

/// The bytes that give a slow client one second more.
const BYTES_A_SECOND: u64 = 16 << 10;

/// The arguments for which room is kept.
const KEPT_ARGUMENTS: usize = 1024;

thread_local! {
    /// Buffers that the connections of a thread share, since they run in turn.
    static SHARED: RefCell<Shared> = RefCell::default();
}

#[derive(Debug, Default)]
struct Shared {
    input: BytesMut,
    output: Vec<u8>,
    arguments: Vec<Bytes>,
}

/// The reason why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client closed it, or it broke.
    Left,
    /// The client asked for it.
    Quit,
    /// Larder stops.
    Stopped,
    /// It carried no command for too long.
    Idle,
    /// The client is not served any further.
    Refused(RespRefusal),
}

/// The reason why no further command was run.
enum Halt {
    /// No whole command is left.
    Unfinished,
    /// Replies are to be written first.
    Gathered,
    /// A command waits.
    Waits,
    /// A command has begun to wait.
    Began,
    /// Others have their turn.
    Turn,
}

/// Something that takes time, of which a client may take only so much.
#[derive(Clone, Copy, Debug)]
struct Progress {
    since: Stopwatch,
    /// Runs since the last byte.
    last: Stopwatch,
    bytes: u64,
}

impl Progress {
    fn begin() -> Self {
        let now = Stopwatch::start();
        Self { since: now, last: now, bytes: 0 }
    }

    fn advance(&mut self, bytes: u64) {
        if bytes > 0 {
            self.last = Stopwatch::start();
            self.bytes += bytes;
        }
    }

    /// Returns the time that it may take: so long without a byte, and in all not much longer than its bytes deserve.
    fn limit(self, timeout: Duration) -> Duration {
        let of_all = Duration::from_secs(self.bytes / BYTES_A_SECOND);
        timeout.saturating_add(of_all.min(self.last.since(self.since)))
    }
}

/// A command that waits for its reply.
enum Pending {
    Reply(Waiting),
    WithSession(WaitingWithSession),
}

/// One client's connection.
pub(super) struct Connection {
    server: Arc<Server>,
    transport: Transport,
    session: Session,
    counters: Arc<RespCounters>,
    input: Input,
    output: Output,
    /// Counts the replies that wait to be read.
    unread: Lease,
    /// The command that waits, and its class.
    waiting: Option<(RespClass, Pending)>,
    /// True if the command that waits changes nothing: nobody misses it once its client is gone.
    is_read: bool,
    /// Tells the command that waits when its client is gone.
    presence: Presence,
    /// True if values were changed since the last write.
    has_changed: bool,
    /// Its place among those that wait until a directory has what was changed: replies say what holds.
    settling: Option<Seat>,
    /// Set once no further command is run. The connection ends when its replies are written.
    end: Option<End>,
    /// The command that arrives.
    arriving: Option<Progress>,
    /// The replies that are read.
    leaving: Option<Progress>,
    /// Runs since the last command.
    idle: Stopwatch,
    timer: Timer,
    /// The bytes that the refusal was about.
    culprit: Vec<u8>,
}

impl Connection {
    /// Begins with a client that was just accepted.
    pub(super) fn new(transport: Transport, server: Arc<Server>, session: Session) -> Self {
        Self {
            presence: Presence::new(&session.is_gone),
            input: Input::new(Lease::new(&server.memory)),
            unread: Lease::new(&server.memory),
            server,
            transport,
            counters: Arc::clone(&session.counters),
            session,
            output: Output::default(),
            waiting: None,
            is_read: false,
            has_changed: false,
            settling: None,
            end: None,
            arriving: None,
            leaving: None,
            idle: Stopwatch::start(),
            timer: Timer::default(),
            culprit: Vec::new(),
        }
    }

    /// Serves the client until one of them ends it.
    pub(super) async fn serve(mut self, common: Arc<Common>) {
        let mut told = pin!(common.ending.told());
        // Registers this task, so that the stop wakes it.
        let _ = poll_fn(|cx| Poll::Ready(told.as_mut().poll(cx))).await;
        let end = poll_fn(|cx| SHARED.with_borrow_mut(|shared| self.turn(cx, shared, &common))).await;
        match end {
            // Everything that arrived was read, so closing resets nothing.
            End::Left | End::Idle | End::Quit | End::Stopped => {}
            End::Refused(why) => {
                self.counters.refused(why);
                self.server.tell(why, self.session.peer, &self.culprit);
                // Closing at once could reset the connection before the error has reached the client.
                if matches!(why, RespRefusal::Protocol | RespRefusal::Memory) {
                    self.transport.linger().await;
                }
            }
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>, shared: &mut Shared, common: &Common) -> Poll<End> {
        self.input.lend(&mut shared.input);
        self.output.lend(&mut shared.output);
        let outcome = self.go_on(cx, shared, common);
        self.input.give_back(&mut shared.input);
        self.output.give_back(&mut shared.output);
        if outcome.is_ready() { outcome } else { self.poll_deadline(cx) }
    }

    /// Goes on as far as possible without waiting.
    fn go_on(&mut self, cx: &mut Context<'_>, shared: &mut Shared, common: &Common) -> Poll<End> {
        let mut turn = TURN;
        loop {
            let halt = if self.poll_waiting(cx).is_pending() { Halt::Waits } else { self.run(shared, &mut turn) };
            if matches!(halt, Halt::Began) {
                continue;
            }
            if self.poll_settled(cx, common).is_pending() {
                return Poll::Pending;
            }
            if self.poll_write(cx).is_err() {
                return Poll::Ready(End::Left);
            }
            if let Some(end) = self.end {
                return if self.output.is_empty() { Poll::Ready(end) } else { Poll::Pending };
            }
            if !self.may_go_on() {
                return Poll::Pending;
            }
            match halt {
                Halt::Waits => return Poll::Pending,
                Halt::Gathered | Halt::Began => {}
                Halt::Turn => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Halt::Unfinished => match self.poll_read(cx, shared) {
                    Poll::Ready(Some(end)) => self.end = Some(end),
                    Poll::Ready(None) => {}
                    // Answers the commands that had arrived.
                    Poll::Pending if common.ending.is_near() => self.end = Some(End::Stopped),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }

    /// Polls the command that waits. Ready if there is none.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((class, pending)) = &mut self.waiting else { return Poll::Ready(()) };
        let class = *class;
        let reply = match pending {
            Pending::Reply(waiting) => std::task::ready!(waiting.as_mut().poll(cx)),
            Pending::WithSession(waiting) => {
                let (reply, session) = std::task::ready!(waiting.as_mut().poll(cx));
                self.session = session;
                reply
            }
        };
        self.waiting = None;
        self.reply(class, reply);
        if self.presence.is_gone() {
            // Nothing behind it is carried out for nobody.
            self.end = Some(End::Left);
        }
        Poll::Ready(())
    }

    /// Ready once what was changed is where it survives the process.
    fn poll_settled(&mut self, cx: &Context<'_>, common: &Common) -> Poll<()> {
        if std::mem::take(&mut self.has_changed) && self.server.store.has_unwritten_values() {
            self.settling = Some(common.settling.join(cx));
        }
        if let Some(seat) = self.settling {
            std::task::ready!(common.settling.poll(seat, cx));
            self.settling = None;
        }
        Poll::Ready(())
    }

    /// Runs the commands that have arrived.
    fn run(&mut self, shared: &mut Shared, turn: &mut u32) -> Halt {
        let mut arguments = std::mem::take(&mut shared.arguments);
        let mut has_run = false;
        let enough = self.output.len() + GATHER;
        let halt = loop {
            if self.end.is_some() || self.output.len() >= enough {
                break Halt::Gathered;
            }
            if self.waiting.is_some() {
                break Halt::Began;
            }
            if *turn == 0 {
                break Halt::Turn;
            }
            *turn -= 1;
            match self.input.next(&mut arguments, &self.limits()) {
                Ok(Next::Command) => self.command(&arguments),
                Ok(Next::Inline) => self.inline(&arguments),
                Ok(Next::Skipped(why)) => self.skipped(why),
                Ok(Next::Unfinished) => break Halt::Unfinished,
                Err(error) => {
                    self.refuse(RespRefusal::Protocol, format!("ERR {}", error.0));
                    continue;
                }
            }
            has_run = true;
        };
        arguments.clear();
        if arguments.capacity() <= KEPT_ARGUMENTS {
            shared.arguments = arguments;
        }
        if has_run {
            self.idle = Stopwatch::start();
            self.arriving = None;
        }
        halt
    }

    fn limits(&self) -> Limits {
        Limits { is_authenticated: self.session.is_authenticated, ..self.server.limits }
    }

    fn inline(&mut self, arguments: &[Bytes]) {
        match arguments {
            [_, _, version] if version.starts_with(b"HTTP/1.") => self.end_http(arguments),
            _ => self.command(arguments),
        }
    }

    /// Ends a connection that sends HTTP: a web page that makes its visitor's browser send commands gets no further
    /// than this, and no reply. The replies to what came before are not sent either.
    #[cold]
    fn end_http(&mut self, arguments: &[Bytes]) {
        self.culprit = arguments.join(&b' ');
        self.culprit.truncate(SHOWN);
        self.output.clear();
        self.end = Some(End::Refused(RespRefusal::Http));
    }

    fn command(&mut self, arguments: &[Bytes]) {
        let is = |name: &[u8]| arguments[0].eq_ignore_ascii_case(name);
        if is(b"post") || is(b"host:") {
            return self.end_http(arguments);
        }
        let Ran { class, is_read, step } = commands::run(&self.server, &mut self.session, arguments);
        self.is_read = is_read;
        match step {
            Step::Done(reply) => self.reply(class, reply),
            Step::Waits(waiting) => self.waiting = Some((class, Pending::Reply(waiting))),
            Step::TakesSession(waiting) => self.waiting = Some((class, Pending::WithSession(waiting))),
        }
    }

    fn skipped(&mut self, why: Skipped) {
        let (why, reply) = match why {
            Skipped::TooLarge => {
                let size = format_size(self.server.config.max_value_size as u64);
                (
                    RespRefusal::TooLarge,
                    Reply::error(format!("ERR the value is larger than {size} (resp.max_value_size)")),
                )
            }
            Skipped::NoRoom => (RespRefusal::Memory, no_room()),
        };
        if let Some(transaction) = &mut self.session.transaction {
            transaction.is_spoilt = true;
        }
        self.counters.refused(why);
        self.server.tell(why, self.session.peer, &[]);
        self.output.put(reply, self.session.protocol);
    }

    /// Sends an error, and ends the connection behind it.
    fn refuse(&mut self, why: RespRefusal, error: String) {
        self.culprit = self.input.beginning().iter().take(SHOWN).copied().collect();
        self.output.put(Reply::error(error), self.session.protocol);
        self.end = Some(End::Refused(why));
    }

    /// Adds the reply to a command.
    fn reply(&mut self, class: RespClass, mut reply: Reply) {
        let size = reply.size();
        if size > GATHER && !self.unread.set(self.output.len() + size) {
            self.counters.refused(RespRefusal::Memory);
            self.server.tell(RespRefusal::Memory, self.session.peer, &[]);
            reply = no_room();
        }
        self.has_changed |= !matches!(class, RespClass::Connection | RespClass::Read);
        self.counters.command(class, reply.is_error());
        self.output.put(reply, self.session.protocol);
        if self.session.is_closing {
            self.end = Some(End::Quit);
        }
    }

    /// Writes what the client takes.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let before = self.output.len();
        if before == 0 {
            return Ok(());
        }
        let outcome = self.output.poll_write(cx, &mut self.transport);
        let written = (before - self.output.len()) as u64;
        self.counters.bytes_out.add(written);
        match outcome {
            Poll::Ready(Ok(())) => {
                self.leaving = None;
                self.unread.set(0);
                Ok(())
            }
            Poll::Ready(Err(_)) => Err(End::Left),
            Poll::Pending => {
                match &mut self.leaving {
                    Some(leaving) => leaving.advance(written),
                    None => self.leaving = Some(Progress::begin()),
                }
                Ok(())
            }
        }
    }

    /// Returns whether further commands may be run although their replies may have to wait.
    fn may_go_on(&mut self) -> bool {
        let unread = self.output.len();
        unread == 0 || (unread <= self.server.config.max_value_size && self.unread.set(unread))
    }

    /// Reads. `Some`: the connection ends.
    fn poll_read(&mut self, cx: &mut Context<'_>, shared: &mut Shared) -> Poll<Option<End>> {
        match self.input.make_room(&mut shared.input) {
            Ok(true) => {}
            // The parser drops the rest first.
            Ok(false) => return Poll::Ready(None),
            Err(NoRoom) => {
                let Reply::Error(text) = no_room() else { return Poll::Ready(Some(End::Left)) };
                self.refuse(RespRefusal::Memory, text.into_owned());
                return Poll::Ready(self.end);
            }
        }
        let read = pin!(self.transport.read_buf(self.input.buffer())).poll(cx);
        match read {
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Some(End::Left)),
            Poll::Ready(Ok(bytes)) => {
                let bytes = bytes as u64;
                self.counters.bytes_in.add(bytes);
                if let Some(arriving) = &mut self.arriving {
                    arriving.advance(bytes);
                }
                Poll::Ready(None)
            }
            Poll::Pending => {
                if self.arriving.is_none() && self.input.is_within() {
                    self.arriving = Some(Progress::begin());
                }
                Poll::Pending
            }
        }
    }

    /// Ready once the client has taken too long.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let timeout = self.server.config.timeout;
        let (since, limit, end) = match (self.leaving, self.arriving) {
            (Some(leaving), _) => (leaving.since, leaving.limit(timeout), End::Refused(RespRefusal::SlowReader)),
            (None, _) if self.waiting.is_some() => {
                let is_gone = self.presence.poll(cx, &mut self.timer, &self.transport);
                return if is_gone && self.is_read { Poll::Ready(End::Left) } else { Poll::Pending };
            }
            // It waits for us.
            (None, _) if self.settling.is_some() => return Poll::Pending,
            (None, Some(arriving)) => (arriving.since, arriving.limit(timeout), End::Refused(RespRefusal::SlowCommand)),
            (None, None) => (self.idle, self.server.config.idle_timeout, End::Idle),
        };
        self.timer.poll(cx, since, limit).map(|()| end)
    }
}

/// The most bytes of what was refused that are logged.
const SHOWN: usize = 80;
