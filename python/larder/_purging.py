"""Purges: `purge` in the background, `purge_now` here and now, `purging` all at once when a block has succeeded.

A `Client` has one `Sender` for each Larder: a bounded queue and a thread that is started by the first purge. Senders
know nothing of each other, so a Larder that is down delays no purge at another one. What can't be sent is tried again
for `Options.retry_for` seconds, then given up, logged and reported. No purge breaks the work that asked for it.

A forked process begins with empty queues: what the parent has queued, the parent sends.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import contextvars
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Iterator, Protocol, Sequence

from ._admin import (
    DEFAULT_ADMIN,
    Address,
    Answer,
    Connection,
    Failure,
    Purge,
    PurgeError,
    Scheme,
    Words,
    purges,
)

logger = logging.getLogger("larder")

#: The first pause after a failure; it doubles up to `_LONGEST_PAUSE`.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0

#: How long an unused connection is kept. Larder closes it after `server.idle_timeout`, 75 s.
_KEEP_OPEN = 30.0

#: The most purges that a sender takes from its queue at once.
_BATCH = 512

#: The most connections to one Larder, and the purges for which another one is worth it. Larder writes purges of the
#: same moment together, so that many at once take hardly longer than one.
_LANES = 16
_PURGES_A_LANE = 4


@dataclass(frozen=True)
class Options:
    """The bounds of a client, in seconds where not said otherwise."""

    #: The time that one exchange with Larder may take.
    timeout: float = 2.0
    #: How long a purge is tried again.
    retry_for: float = 30.0
    #: The most purges that wait for one Larder.
    queue: int = 10_000
    #: How long the end of the process waits for what is queued.
    exit_timeout: float = 5.0


class Ticket:
    """Tells when each Larder was asked once, whatever came of it."""

    def __init__(self, outstanding: int) -> None:
        self._outstanding = outstanding
        self._lock = threading.Lock()
        self._done = threading.Event()
        if outstanding == 0:
            self._done.set()

    def tried(self) -> None:
        """Notes one attempt."""
        with self._lock:
            self._outstanding -= 1
            if self._outstanding <= 0:
                self._done.set()

    def wait(self, timeout: float) -> bool:
        """Waits for the attempts; returns False if they take longer."""
        return self._done.wait(max(0.0, timeout))


class Results(Protocol):
    """Hears what became of the purges of a client, mostly in a thread of the client."""

    def purged(self, answer: Answer) -> None: ...

    def failed(self, failure: Failure) -> None: ...


@dataclass
class _Waiting:
    """A purge in a queue."""

    asked_at: float
    tickets: list[Ticket] = field(default_factory=list)

    def tried(self) -> None:
        tickets, self.tickets = self.tickets, []
        for ticket in tickets:
            ticket.tried()


class Sender:
    """The queue of purges for one Larder, and the thread that sends them."""

    def __init__(
        self, address: Address, token: str, options: Options, report: Callable[[Answer | Failure], None]
    ) -> None:
        self.address = address
        self._options = options
        self._report = report
        self._connections = [Connection(address, token, options.timeout) for _ in range(_LANES)]
        self._begin()

    def _begin(self) -> None:
        # Guards everything below; notified when something is queued or done.
        self._changed = threading.Condition()
        self._queue: OrderedDict[Purge, _Waiting] = OrderedDict()
        self._in_flight = 0
        self._thread: threading.Thread | None = None
        self._failures = 0
        self._not_before = 0.0

    @property
    def is_down(self) -> bool:
        """True if the last attempt failed."""
        return self._failures > 0

    def put(self, asked: Sequence[Purge], ticket: Ticket) -> None:
        """Queues purges; one that the queue has already is sent once."""
        refused: list[Purge] = []
        with self._changed:
            for purge in asked:
                if not self._put(purge, ticket):
                    refused.append(purge)
            self._start()
            self._changed.notify_all()
        for _ in refused if not self.is_down else asked:
            # Nobody waits for what is not queued, nor for a Larder that does not answer.
            ticket.tried()
        for purge in refused:
            reason = f"{self._options.queue} purges wait for it already"
            self._report(Failure(str(self.address), purge, reason))

    def _put(self, purge: Purge, ticket: Ticket) -> bool:
        hard = Purge(purge.kind, purge.value, False, purge.scheme)
        for same in (purge, hard):
            # It is sent after this moment, so it does for this purge as well.
            if same in self._queue:
                if not self.is_down:
                    self._queue[same].tickets.append(ticket)
                return True
        entry = _Waiting(time.monotonic(), [] if self.is_down else [ticket])
        if purge.kind == "all":
            # What it covers need not be sent.
            for other in [other for other in self._queue if purge.covers(other)]:
                entry.tickets += self._queue.pop(other).tickets
        elif len(self._queue) >= self._options.queue:
            return False
        self._queue[purge] = entry
        return True

    def flush(self, until: float) -> bool:
        """Waits until the queue is empty, or the time is `until`. Returns whether it is."""
        with self._changed:
            self._not_before = 0.0
            self._start()
            self._changed.notify_all()
            while self._queue or self._in_flight:
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            return True

    def pending(self) -> list[Purge]:
        """Returns the purges that wait."""
        with self._changed:
            return list(self._queue)

    def after_fork(self) -> None:
        """Begins anew in a child process: its parent sends what is queued, over the connection that it has."""
        for connection in self._connections:
            connection.forget()
        self._begin()

    def _start(self) -> None:
        if self._thread is not None or not self._queue:
            return
        thread = threading.Thread(target=self._run, name=f"larder-purge {self.address}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending: `flush` finds it still queued, and it is reported as lost
            return
        self._thread = thread

    def _run(self) -> None:
        changed = self._changed
        while True:
            with changed:
                batch = self._next_batch()
            if batch is None:
                for connection in self._connections:
                    connection.close()
                with changed:
                    # Something may have come in meanwhile.
                    if not self._queue:
                        self._thread = None
                        return
                continue
            self._send_all(batch)

    def _next_batch(self) -> list[tuple[Purge, _Waiting]] | None:
        """Waits for purges, and takes them out of the queue; `None` if there were none for a long time."""
        idle_until = time.monotonic() + _KEEP_OPEN
        while True:
            now = time.monotonic()
            if self._queue and now >= self._not_before:
                count = 1 if self._failures else min(_BATCH, len(self._queue))
                batch = [self._queue.popitem(last=False) for _ in range(count)]
                self._in_flight = len(batch)
                return batch
            if not self._queue and now >= idle_until:
                return None
            self._changed.wait((self._not_before if self._queue else idle_until) - now)

    def _send_all(self, batch: list[tuple[Purge, _Waiting]]) -> None:
        """Sends over as many connections as are worth it, up to the first failure that may pass. What is left then
        goes back to the head of the queue."""
        left = collections.deque(batch)
        broken = threading.Event()
        count = max(1, min(_LANES, len(batch) // _PURGES_A_LANE))
        threads = []
        for connection in self._connections[1:count]:
            thread = threading.Thread(target=self._send_on, args=(connection, left, broken), daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is ending, or has no more threads: fewer connections do as well
                break
            threads.append(thread)
        self._send_on(self._connections[0], left, broken)
        for thread in threads:
            thread.join()
        with self._changed:
            self._put_back(list(left))
            self._in_flight = 0
            self._changed.notify_all()

    def _send_on(
        self, connection: Connection, left: collections.deque[tuple[Purge, _Waiting]], broken: threading.Event
    ) -> None:
        """Sends on one connection until nothing is left, or something failed on any of them."""
        while not broken.is_set():
            try:
                purge, waiting = left.popleft()
            except IndexError:
                return
            outcome = connection.purge(purge)
            failed = isinstance(outcome, Failure) and outcome.may_pass
            gives_up = failed and time.monotonic() - waiting.asked_at >= self._options.retry_for
            with self._changed:
                if failed:
                    is_first = not self._failures
                    self._pause(broken)
                    if not gives_up:
                        self._put_back([(purge, waiting)])
                elif not broken.is_set():
                    self._failures, self._not_before = 0, 0.0
            if not failed or gives_up:
                self._report(outcome)
            elif is_first:
                logger.warning("%s; it is tried again for %g s", outcome, self._options.retry_for)
            waiting.tried()

    def _pause(self, broken: threading.Event) -> None:
        """Counts a failure, once for all connections that it broke at the same time."""
        if broken.is_set():
            return
        broken.set()
        self._not_before = time.monotonic() + min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**min(self._failures, 10))
        self._failures += 1
        # Nobody waits for a Larder that does not answer.
        for waiting in self._queue.values():
            waiting.tried()

    def _put_back(self, left: list[tuple[Purge, _Waiting]]) -> None:
        for purge, waiting in reversed(left):
            again = self._queue.pop(purge, None)
            if again is not None:
                waiting.tickets += again.tickets
                # Asked for again meanwhile: it may be tried for longer.
                waiting.asked_at = again.asked_at
            waiting.tried()
            self._queue[purge] = waiting
            self._queue.move_to_end(purge, last=False)


class Client:
    """Purges at one or several Larders.

    `admin` names their admin listeners; none: purges go nowhere. `results` hears what became of each purge.
    """

    def __init__(
        self,
        admin: str | Iterable[str] = DEFAULT_ADMIN,
        token: str = "",
        options: Options | None = None,
        results: Results | None = None,
    ) -> None:
        if not token.isascii() or not token.isprintable():
            raise ValueError("LARDER_TOKEN has signs that a field of HTTP can't carry: it is admin.token of Larder")
        self.options = options or Options()
        self.token = token
        self.addresses = parse_addresses(admin)
        self._results: Results = results or _Deaf()
        self._senders = [Sender(address, token, self.options, self.report) for address in self.addresses]
        _clients.add(self)

    def send(self, asked: Sequence[Purge]) -> Ticket:
        """Queues purges and returns at once. The ticket tells when each Larder was asked."""
        ticket = Ticket(len(self._senders) * len(asked))
        for sender in self._senders:
            sender.put(asked, ticket)
        collector = _tickets.get()
        if collector is not None and not self.is_down:
            collector.append(ticket)
        return ticket

    def send_again(self, failure: Failure) -> None:
        """Queues a purge again for the Larder that it failed at."""
        for sender in self._senders:
            if str(sender.address) == failure.address:
                logger.warning("%s; it is tried again for %g s", failure, self.options.retry_for)
                sender.put([failure.purge], Ticket(1))

    def report(self, outcome: Answer | Failure) -> None:
        """Tells what finally became of a purge; never raises."""
        try:
            if isinstance(outcome, Answer):
                self._results.purged(outcome)
            else:
                logger.error("%s; given up", outcome)
                self._results.failed(outcome)
        except Exception:
            logger.exception("a receiver of what became of a purge failed")

    def send_now(self, asked: Sequence[Purge], wait: float | None = None) -> list[Answer]:
        """Purges at every Larder before it returns. Raises `PurgeError` if one did not purge all of it."""
        answers: list[Answer] = []
        failures: list[Failure] = []
        for address in self.addresses:
            connection = Connection(address, self.token, self.options.timeout)
            try:
                for purge in asked:
                    outcome = connection.purge(purge, wait)
                    if isinstance(outcome, Answer):
                        answers.append(outcome)
                    else:
                        failures.append(outcome)
                        if outcome.status is None:
                            break
            finally:
                connection.close()
        if failures:
            raise PurgeError(failures, answers)
        return answers

    @property
    def is_down(self) -> bool:
        """True if no Larder answered the last attempt."""
        return bool(self._senders) and all(sender.is_down for sender in self._senders)

    def flush(self, timeout: float) -> bool:
        """Waits until nothing is queued, at most `timeout` seconds. Returns whether nothing is."""
        until = time.monotonic() + timeout
        return all([sender.flush(until) for sender in self._senders])

    def pending(self) -> dict[str, list[Purge]]:
        """Returns what is queued, by Larder."""
        return {str(sender.address): sender.pending() for sender in self._senders}

    def after_fork(self) -> None:
        for sender in self._senders:
            sender.after_fork()

    def _at_exit(self, until: float) -> None:
        for sender in self._senders:
            if not sender.flush(until):
                lost = sender.pending()
                shown = ", ".join(str(purge) for purge in lost[:5]) + (", …" if len(lost) > 5 else "")
                logger.error("the process ends before %d purges reached %s: %s", len(lost), sender.address, shown)


class _Deaf:
    def purged(self, answer: Answer) -> None: ...

    def failed(self, failure: Failure) -> None: ...


def parse_addresses(admin: str | Iterable[str]) -> list[Address]:
    """Reads the addresses of admin listeners. Text may name several with commas between; "off" is none."""
    texts = admin.split(",") if isinstance(admin, str) else list(admin)
    texts = [text.strip() for text in texts]
    if texts in ([], ["off"], [""]):
        return []
    return list(dict.fromkeys(Address.parse(text) for text in texts))


# Every client of this process, so that a fork and the end of the process find them.
_clients: weakref.WeakSet[Client] = weakref.WeakSet()

# Where the tickets of purges are collected that the current work sends, so that its end can wait for them.
_tickets: contextvars.ContextVar[list[Ticket] | None] = contextvars.ContextVar("larder_tickets", default=None)

# The purges of the innermost `purging` block.
_collected: contextvars.ContextVar[list[tuple[Client, Purge]] | None] = contextvars.ContextVar(
    "larder_collected", default=None
)


@contextlib.contextmanager
def collecting_tickets() -> Iterator[list[Ticket]]:
    """Collects the tickets of purges that are sent inside."""
    found: list[Ticket] = []
    token = _tickets.set(found)
    try:
        yield found
    finally:
        _tickets.reset(token)


def _after_fork() -> None:
    global _process_lock
    # Another thread of the parent may have held it.
    _process_lock = threading.Lock()
    for client in list(_clients):
        client.after_fork()


def _at_exit() -> None:
    clients = list(_clients)
    now = time.monotonic()
    for client in clients:
        client._at_exit(now + client.options.exit_timeout)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


# ---- whose purge it is ------------------------------------------------------------------------


class Context(Protocol):
    """What a framework knows of the work that asks for a purge."""

    @property
    def client(self) -> Client:
        """Where its purges go."""

    def absolute(self, url: str) -> str:
        """Returns an absolute URL for a path. Raises `ValueError` where it can't know the host."""

    def session(self) -> Any | None:
        """Returns the database session that the purge waits for; `None`: it goes at once."""

    def note(self, asked: Sequence[Purge]) -> None:
        """Hears what is asked for."""


class _ProcessContext:
    """Work outside of any framework."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def client(self) -> Client:
        return self._client

    def absolute(self, url: str) -> str:
        raise ValueError(f'url="{url}" names no host: write it as clients see it, http://host{url}')

    def session(self) -> Any | None:
        return None

    def note(self, asked: Sequence[Purge]) -> None: ...


# Asked in turn for the context of the current work. A framework's integration adds its own.
providers: list[Callable[[], Context | None]] = []

_process_lock = threading.Lock()
_process: Client | None = None


def configure(
    admin: str | Iterable[str] | None = None, token: str | None = None, options: Options | None = None
) -> Client:
    """Sets where `purge` goes outside of a Flask application. Without it: `LARDER_ADMIN` and `LARDER_TOKEN`."""
    global _process
    client = Client(
        os.environ.get("LARDER_ADMIN", DEFAULT_ADMIN) if admin is None else admin,
        os.environ.get("LARDER_TOKEN", "") if token is None else token,
        options,
    )
    with _process_lock:
        _process = client
    return client


def current_context() -> Context:
    """Returns the context of the current work."""
    for provider in providers:
        found = provider()
        if found is not None:
            return found
    with _process_lock:
        client = _process
    return _ProcessContext(client or configure())


def asked_for(
    context: Context, url: Words, prefix: Words, tag: Words, all: bool, soft: bool, scheme: Scheme
) -> list[Purge]:
    """Returns the purges with absolute URLs, and lets the context know."""
    found = [
        Purge("url", context.absolute(purge.value), purge.soft, purge.scheme)
        if purge.kind == "url" and purge.value.startswith("/")
        else purge
        for purge in purges(url, prefix, tag, all, soft, scheme)
    ]
    context.note(found)
    return found


def purge(
    *,
    url: Words = None,
    prefix: Words = None,
    tag: Words = None,
    all: bool = False,
    soft: bool = False,
    scheme: Scheme = "both",
    session: Any = None,
) -> None:
    """Purges in the background, after the database has committed.

    >>> purge(tag="front")
    >>> purge(url="https://shop.example/item/7")    # every variant of this URL, and no other query
    >>> purge(prefix="/item/")                      # of every host
    >>> purge(tag=["item:7", "item"], soft=True)    # stays, stale: validated before its next use
    >>> purge(all=True)

    Each of `url`, `prefix` and `tag` takes one word or several. Under Flask a `url` may be a path of the same host.
    `scheme="exact"` purges a URL or prefix under its own scheme alone; "both" is http and https.

    Inside `purging()` it waits for the end of the block. Otherwise, if `session` (or Flask-SQLAlchemy's session) is
    in a transaction, it waits for its commit, and is dropped if that rolls back. Otherwise it goes at once.

    Raises `ValueError` for what no Larder could purge. What goes wrong later is logged, never raised.
    """
    context = current_context()
    route(context, asked_for(context, url, prefix, tag, all, soft, scheme), session)


def route(context: Context, asked: Sequence[Purge], session: Any = None) -> None:
    """Hands purges to what they wait for: a block, a transaction, or nothing."""
    collected = _collected.get()
    if collected is not None:
        collected.extend((context.client, purge) for purge in asked)
        return
    if session is None:
        session = context.session()
    if session is not None:
        from . import sqlalchemy

        if sqlalchemy.wait_for_commit(session, [(context.client, purge) for purge in asked]):
            return
    context.client.send(asked)


def send_collected(collected: Iterable[tuple[Client, Purge]]) -> None:
    """Sends purges, those of one client together."""
    by_client: dict[Client, dict[Purge, None]] = {}
    for client, purge in collected:
        by_client.setdefault(client, {})[purge] = None
    for client, asked in by_client.items():
        client.send(list(asked))


@contextlib.contextmanager
def purging() -> Iterator[None]:
    """Holds purges back until the block ends, and drops them if it raises.

    >>> with purging(), connection.transaction():
    ...     connection.execute(...)
    ...     purge(tag="item:7")

    A block inside another one hands its purges to the outer one.
    """
    held: list[tuple[Client, Purge]] = []
    token = _collected.set(held)
    try:
        yield
    except BaseException:
        if held:
            logger.debug("%d purges were dropped: their block raised", len(held))
        raise
    finally:
        _collected.reset(token)
    outer = _collected.get()
    if outer is not None:
        outer.extend(held)
    else:
        send_collected(held)


def purge_now(
    *,
    url: Words = None,
    prefix: Words = None,
    tag: Words = None,
    all: bool = False,
    soft: bool = False,
    scheme: Scheme = "both",
    wait: float | None = None,
) -> list[Answer]:
    """Purges before it returns, whatever transaction is open. Returns what each Larder said of each purge.

    `wait` is a time in seconds, at most 60: each Larder answers so long after its purge is written, so that other
    Larders on the same bucket or directory have it too. Raises `PurgeError`.
    """
    context = current_context()
    return context.client.send_now(asked_for(context, url, prefix, tag, all, soft, scheme), wait)


def flush(timeout: float = 5.0) -> bool:
    """Waits until every purge of this process was sent or given up, at most `timeout` seconds. Returns whether."""
    until = time.monotonic() + timeout
    return False not in [client.flush(until - time.monotonic()) for client in list(_clients)]
