"""The queue of purges for one Larder, and the thread that sends them.

Bounded in length, in attempts and in time. Knows no application and no transaction: see `_purging`.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Callable, Protocol, Sequence

from ._admin import Address, Answer, Connection, Failure, Purge

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
            # Leaves out the purges that it covers.
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
