"""Purges: `purge` in the background, `purge_now` here and now, `purging` all at once when a block has succeeded.

A `Client` has one `Sender` for each Larder: a bounded queue and a thread that is started by the first purge. Senders
know nothing of each other, so a Larder that is down delays no purge at another one. What can't be sent is tried again
for `Options.retry_for` seconds, then given up, logged and reported. No purge breaks the work that asked for it.

A forked process begins with empty queues: what the parent has queued, the parent sends.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import logging
import os
import threading
import time
import weakref
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
from ._sender import Options as Options
from ._sender import Results as Results
from ._sender import Sender
from ._sender import Ticket as Ticket

logger = logging.getLogger("larder")


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

# Collects the tickets of the purges that the current work sends, so that its end can wait for them.
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
    """The work that asks for a purge, as its framework knows it."""

    @property
    def client(self) -> Client:
        """The Larders that get its purges."""

    def absolute(self, url: str) -> str:
        """Returns an absolute URL for a path. Raises `ValueError` where it can't know the host."""

    @property
    def is_debug(self) -> bool:
        """True where a developer looks at the log."""

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

    @property
    def is_debug(self) -> bool:
        return False

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
    in a transaction, it waits for its commit, and is dropped if that rolls back. Otherwise it goes at once, and again
    after the session's next commit: what that writes may be what the purge is for.

    Raises `ValueError` for what no Larder could purge. What goes wrong later is logged, never raised.
    """
    context = current_context()
    route(context, asked_for(context, url, prefix, tag, all, soft, scheme), session)


def route(context: Context, asked: Sequence[Purge], session: Any = None) -> None:
    """Hands purges to what they wait for: a block, a transaction, or nothing."""
    if not held(context, asked, session):
        context.client.send(asked)


def held(context: Context, asked: Sequence[Purge], session: Any = None) -> bool:
    """Hands purges to the block or transaction that they wait for. Returns False if they have to go at once."""
    owned = [(context.client, purge) for purge in asked]
    collected = _collected.get()
    if collected is not None:
        collected.extend(owned)
        return True
    if session is None:
        session = context.session()
    if session is None:
        return False
    from . import sqlalchemy

    return sqlalchemy.wait_for_commit(session, owned)


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
