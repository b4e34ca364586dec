"""`Larder(app)`: connects an application with the Larder in front of it.

Hooks in at three places, none of which is a method of the application that others might replace: Flask's signals at
the beginning and at the end of a request, and its `wsgi_app`. The last sees the response as it leaves, after whatever
changed it later, and waits for the purges that the request sent.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Sequence
from urllib.parse import quote, unquote

from blinker import Namespace
from flask import (
    Flask,
    Response,
    current_app,
    has_app_context,
    has_request_context,
    request,
    request_finished,
    request_started,
)

from .. import _purging
from .._admin import DEFAULT_ADMIN, Answer, Failure, Purge
from ._finish import NOTHING, TARGETED, Settings, finish, teller
from ._state import State, begin, current_state, state_of
from ._trace import Lookout, is_watched, probe, watched_request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_signals = Namespace()

#: Sent when a Larder has made a purge: `receiver(app, answer=…)`, in a thread of Larder's own.
purged = _signals.signal("larder-purged")

#: Sent when a purge was given up: `receiver(app, failure=…)`, in a thread of Larder's own.
purge_failed = _signals.signal("larder-purge-failed")

#: Every setting with its default. The first two are environment variables as well.
DEFAULTS: dict[str, Any] = {
    "LARDER_ADMIN": DEFAULT_ADMIN,
    "LARDER_TOKEN": "",
    "LARDER_SITE": "",
    "LARDER_FIELD": "CDN-Cache-Control",
    "LARDER_PURGE_WAIT": 0.5,
    "LARDER_PURGE_TIMEOUT": 2.0,
    "LARDER_PURGE_RETRY": 30.0,
    "LARDER_PURGE_QUEUE": 10_000,
    "LARDER_EXIT_TIMEOUT": 5.0,
}


class Larder:
    """The extension. One object serves any number of applications.

    >>> larder = Larder(app)

    or, in a factory, `larder = Larder()` and later `larder.init_app(app)`. `session` is the `scoped_session`, or a
    function that returns the session, of an application that has SQLAlchemy without Flask-SQLAlchemy.
    """

    def __init__(self, app: Flask | None = None, *, session: Any = None) -> None:
        self._session = session
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Connects `app`. A second call for the same application changes nothing."""
        if "larder" in app.extensions:
            return
        probe()
        connected = Connected(app, self._session)
        app.extensions["larder"] = connected
        connected.watch_requests()
        request_started.connect(connected.on_started, app)
        request_finished.connect(connected.on_finished, app)
        app.wsgi_app = connected.wrap(app.wsgi_app)  # type: ignore[method-assign, assignment]
        from .cli import commands

        app.cli.add_command(commands)


class Connected:
    """The state that the extension keeps of one application."""

    def __init__(self, app: Flask, session: Any) -> None:
        for name, value in DEFAULTS.items():
            if name in ("LARDER_ADMIN", "LARDER_TOKEN"):
                value = os.environ.get(name, value)
            app.config.setdefault(name, value)
        self._app = weakref.ref(app)
        self._given_session = session
        self.lookout = Lookout(app.root_path)
        self._lock = threading.Lock()
        _every.add(self)
        self._client: _purging.Client | None = None
        self._tell = teller(app, set(), {})
        # The reasons why pages were not shared, by path and query; kept for `larder.testing` alone.
        self._verdicts: dict[str, str] | None = None
        _purging.parse_addresses(app.config["LARDER_ADMIN"] or "off")

    @property
    def app(self) -> Flask:
        app = self._app()
        assert app is not None, "the application is gone, and its extension is used"
        return app

    # ---- pages ----

    def on_started(self, _app: Flask, **_extra: Any) -> None:
        """Begins to watch the session, which Flask has opened."""
        app = self.app
        if app.debug or app.testing:
            _watch_cookies()
        _hook_sqlalchemy()
        begin(app)

    def watch_requests(self) -> None:
        """Makes the application's requests note who reads them. Each request asks for it, as the class may be replaced."""
        app = self.app
        if not is_watched(app.request_class):
            app.request_class = watched_request(app.request_class, lambda: State(self.lookout))

    def on_finished(self, _app: Flask, response: Response, **_extra: Any) -> None:
        """Writes the fields. Flask has run what is to run after a request, and saved the session."""
        app = self.app
        state = current_state()
        try:
            finish(app, state, response, Settings(app.config["LARDER_FIELD"]), self._tell)
        finally:
            if self._verdicts is not None:
                self._verdicts[_path_and_query()] = state.verdict

    def wrap(self, inner: WSGIApplication) -> WSGIApplication:
        """Returns the application with a last look at each response."""

        @functools.wraps(inner)
        def wsgi_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            self.watch_requests()
            states: list[State] = []
            outer = environ.get("larder.states")
            environ["larder.states"] = states

            def start(status: str, fields: list[tuple[str, str]], exc_info: Any = None) -> Any:
                state = states[-1] if states else None
                return start_response(status, last_look(state, status, fields), exc_info)

            with _purging.collecting_tickets() as tickets:
                try:
                    body = inner(environ, start)
                finally:
                    environ["larder.states"] = outer
            self._wait(tickets)
            state = states[-1] if states else None
            if state is not None and state.is_shared and state.is_stream:
                return _Watched(body, state)
            return body

        return wsgi_app

    def _wait(self, tickets: Sequence[_purging.Ticket]) -> None:
        """Waits until the request's purges were sent, so that who gets its answer gets no page from before."""
        until = time.monotonic() + float(self.app.config["LARDER_PURGE_WAIT"])
        for ticket in tickets:
            if not ticket.wait(until - time.monotonic()):
                return

    # ---- purges ----

    @property
    def client(self) -> _purging.Client:
        """The client of the application's Larders. The first use reads the configuration."""
        with self._lock:
            if self._client is None:
                try:
                    self._client = self.new_client(self)
                except ValueError as error:
                    # No purge breaks a request.
                    self.app.logger.error("nothing is purged: %s", error)
                    self._client = _purging.Client("off")
            return self._client

    def connect_to(self, admin: str, token: str) -> None:
        """Purges through this admin listener from now on. For `larder.testing`, whose Larder starts after the application."""
        self.app.config.update(LARDER_ADMIN=admin, LARDER_TOKEN=token)
        with self._lock:
            self._client = None
        self._verdicts = {}

    def verdict(self, path: str) -> str:
        """Returns why the page of a path and query was not shared the last time. For `larder.testing`."""
        return (self._verdicts or {}).get(_same(path), "")

    def new_client(self, results: _purging.Results | None = None) -> _purging.Client:
        """Returns a client as it is configured. Raises `ValueError` that says what is wrong."""
        config = self.app.config
        try:
            options = _purging.Options(
                timeout=float(config["LARDER_PURGE_TIMEOUT"]),
                retry_for=float(config["LARDER_PURGE_RETRY"]),
                queue=int(config["LARDER_PURGE_QUEUE"]),
                exit_timeout=float(config["LARDER_EXIT_TIMEOUT"]),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"one of LARDER_PURGE_… and LARDER_EXIT_TIMEOUT is no number: {error}") from None
        return _purging.Client(config["LARDER_ADMIN"] or "off", config["LARDER_TOKEN"] or "", options, results)

    def purged(self, answer: Answer) -> None:
        purged.send(self.app, answer=answer)

    def failed(self, failure: Failure) -> None:
        purge_failed.send(self.app, failure=failure)

    def absolute(self, url: str) -> str:
        """Returns the URL of a path: below `LARDER_SITE`, or of the host that the request asked."""
        site = str(self.app.config["LARDER_SITE"])
        if not site and has_request_context():
            site = request.host_url
        if not site:
            raise ValueError(
                f'url="{url}" names no host, and there is no request: set LARDER_SITE, or write http://host{url}'
            )
        return site.rstrip("/") + url

    @property
    def is_debug(self) -> bool:
        """True where a developer looks at the log."""
        return self.app.debug or self.app.testing

    def session(self) -> Any | None:
        """Returns the session that a purge waits for. One that was not used yet may be used later."""
        if self._given_session is not None:
            return self._given_session
        database = self.app.extensions.get("sqlalchemy")
        registry = getattr(getattr(database, "session", None), "registry", None)
        return None if registry is None else registry()

    def note(self, asked: Sequence[Purge]) -> None:
        """Remembers purges for the panel."""
        if has_request_context():
            state = state_of(request._get_current_object())  # type: ignore[attr-defined]
            if state is not None:
                state.purges.extend(asked)


def _path_and_query() -> str:
    """Returns what was asked for, as `larder.testing` asks for it."""
    query = request.query_string.decode("latin-1")
    return _same(quote(request.path) + (f"?{query}" if query else ""))


def _same(path: str) -> str:
    """Returns one spelling for all of the same path and query, whatever is percent-encoded."""
    return unquote(path).removesuffix("?")


def last_look(state: State | None, status: str, fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Takes back that everybody may have a page, if something that came later speaks against it."""
    if state is None or not state.is_shared:
        return fields
    names = {name.lower() for name, _ in fields}
    varies = any(name.lower() == "vary" and "*" in value for name, value in fields)
    is_failure = status.startswith("5")
    if "set-cookie" not in names and not varies and not is_failure and not state.has_late_reads:
        return fields
    state.is_shared = False
    state.verdict = "something came after it was finished: a cookie, a look at the visitor, Vary: * or an error"
    drop = {name.lower() for name in (*TARGETED, "Cache-Control", "Expires")}
    return [field for field in fields if field[0].lower() not in drop] + [("Cache-Control", NOTHING)]


class _Watched:
    """A stream that everybody may have. Raises in the middle if it reads of its visitor, so that it never counts as
    whole."""

    def __init__(self, body: Iterable[bytes], state: State) -> None:
        self._body = body
        self._pieces = iter(body)
        self._state = state

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._state.is_streaming = True
        try:
            piece = next(self._pieces)
            if self._state.late is not None:
                raise self._state.late
            return piece
        finally:
            self._state.is_streaming = False

    def close(self) -> None:
        close: Callable[[], None] | None = getattr(self._body, "close", None)
        if close is not None:
            close()


def connected() -> Connected | None:
    """Returns the extension of the current application; `None`: there is no application, or it has none."""
    if not has_app_context():
        return None
    found: Connected | None = current_app.extensions.get("larder")
    return found


_purging.providers.append(connected)

# Every application's, so that a fork finds them.
_every: weakref.WeakSet[Connected] = weakref.WeakSet()


def _after_fork() -> None:
    for found in list(_every):
        # Another thread of the parent may have held it.
        found._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)

_hooked = False


def _hook_sqlalchemy() -> None:
    """Begins to hear of transactions, once the application uses SQLAlchemy."""
    global _hooked
    if not _hooked and "sqlalchemy.orm" in sys.modules:
        from .. import sqlalchemy  # noqa: F401

        _hooked = True


_watches_cookies = False


def _watch_cookies() -> None:
    """Notes where a page sets a cookie, for the warning. Only in debug and in tests: nothing depends on it."""
    global _watches_cookies
    if _watches_cookies:
        return
    _watches_cookies = True
    from werkzeug.sansio.response import Response as Base

    original = Base.set_cookie

    @functools.wraps(original)
    def set_cookie(self: Base, *args: Any, **kwargs: Any) -> None:
        if has_request_context():
            state = state_of(request._get_current_object())  # type: ignore[attr-defined]
            if state is not None and state.cookie_place is None:
                state.cookie_place = state.lookout.responsible(sys._getframe(1))[0]
        original(self, *args, **kwargs)

    Base.set_cookie = set_cookie  # type: ignore[method-assign]
