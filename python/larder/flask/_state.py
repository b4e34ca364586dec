"""Keeps the state of one request: how its page is marked, and what it read of its visitor."""

from __future__ import annotations

import logging
import sys
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flask import Flask, current_app, request

from .._admin import Purge
from ._trace import WATCH, Lookout, Place, is_login_in_templates, is_of, is_teardown, is_watched, watch_session

if TYPE_CHECKING:
    from ._policy import Policy

logger = logging.getLogger("larder.flask")

_told_that_it_is_missing: weakref.WeakSet[Flask] = weakref.WeakSet()

#: Under this name a request carries its state.
_ATTRIBUTE = WATCH

#: Request fields that say who asks. A page that reads one is made for one visitor.
PERSONAL = {
    "cookie": "the request's cookies",
    "authorization": "the request's Authorization",
    "proxy-authorization": "the request's Proxy-Authorization",
    "x-forwarded-for": "the visitor's address",
    "request.remote_addr": "the visitor's address",
    "request.remote_user": "the visitor's name",
    "request.environ": "the request's environ",
    "*": "all fields of the request",
}

#: Request fields that are part of Larder's key, or that Larder handles by itself. Any other selects a copy, even one that
#: only names the request: its client chooses what it says, and the page may show it.
NEUTRAL = frozenset(
    """host x-forwarded-host x-forwarded-proto x-forwarded-port content-length transfer-encoding connection upgrade
    if-match if-none-match if-modified-since if-unmodified-since if-range range""".split()
)

#: Fields of which nearly every visitor or request has a value of its own.
MANY_VALUED = frozenset("user-agent referer x-request-id x-correlation-id traceparent tracestate baggage".split())


_LOGIN_IN_TEMPLATES = (
    "Flask-Login loads the user for each template; LoginManager(app, add_context_processor=False) leaves it to "
    "templates that are given current_user"
)


class LateRead(RuntimeError):
    """A stream read of its visitor after its head had said that everybody may have it."""


@dataclass
class Sighting:
    """The first access of a kind."""

    what: str
    place: Place | None = None


@dataclass
class State:
    """One request's page."""

    lookout: Lookout
    policies: list[Policy] = field(default_factory=list)
    is_forbidden: bool = False
    tags: list[Any] = field(default_factory=list)
    #: By kind: "session", "change", "toolbar", or a request field in lower case.
    seen: dict[str, Sighting] = field(default_factory=dict)
    #: How many accesses were left out of account.
    left_out: int = 0
    #: True once the session's accesses are seen.
    has_begun: bool = False
    #: Where `set_cookie` was called, if it was seen.
    cookie_place: Place | None = None
    purges: list[Purge] = field(default_factory=list)
    #: True if the session's accesses can't be seen.
    is_blind: bool = False
    #: True once the head says that everybody may have the page.
    is_shared: bool = False
    #: What had been seen when the head was written.
    judged: frozenset[str] = frozenset()
    #: True if the body is made while it is sent.
    is_stream: bool = False
    #: True while the server asks a stream for its next piece.
    is_streaming: bool = False
    #: A read at the end of a stream, which no piece may follow.
    late: LateRead | None = None
    #: Why the page is not kept, in words; for the panel.
    verdict: str = ""
    #: True while the panel asks what the page would say without the toolbar.
    is_preview: bool = False

    def note(self, kind: str, what: str) -> bool:
        """Notes an access. Returns False if it counts for nothing.

        Raises `LateRead` if the page's head is out and says that everybody may have it.
        """
        if kind in NEUTRAL:
            return False
        if kind in self.seen and not self.is_streaming:
            return True
        place, is_bookkeeping = self.lookout.responsible(sys._getframe(1))
        if is_bookkeeping:
            self.left_out += 1
            return False
        if place is not None and is_of("flask_debugtoolbar", place.filename):
            kind = "toolbar"
            self.left_out += 1
        elif kind == "session" and is_login_in_templates(sys._getframe(1)):
            what += f" ({_LOGIN_IN_TEMPLATES})"
        self.seen.setdefault(kind, Sighting(what, place))
        if self.is_streaming and self.is_shared:
            late = LateRead(
                f"{what} was read in {place} while the page was being sent, and its head lets everybody have it: "
                "read it before the response is returned, or mark the page with @no_cache"
            )
            if not is_teardown(sys._getframe(1)):
                raise late
            # The page is over: it matters only if another piece follows.
            self.late = late
        return True

    @property
    def has_late_reads(self) -> bool:
        """True if more of the visitor was read after the head was written."""
        return any(kind in ("session", "change") or kind in PERSONAL for kind in self.seen if kind not in self.judged)

    @property
    def varies_by(self) -> list[str]:
        """The request fields that the page read, and that select a copy of it."""
        special = {"session", "change", "toolbar", *PERSONAL}
        return sorted(kind.title() for kind in self.seen if kind not in special)


def begin(app: Flask) -> State:
    """Begins to watch the session of the current request, whose own fields are watched since it was made."""
    state: State | None = request.__dict__.get(_ATTRIBUTE)
    if state is None or not is_watched(type(request._get_current_object())):  # type: ignore[attr-defined]
        # Somebody replaced how requests are made: nobody knows what was read.
        state = _make(app)
        state.note("*", "a request of a class that cannot be watched")
    session = _session()
    if not state.has_begun and session is not None:
        state.has_begun = True
        if getattr(session, "__dict__", {}).get("accessed") is True:
            # A receiver of the same signal, or a converter of the route, was first.
            state.note("session", "the session")
        if not watch_session(session, state.note):
            state.is_blind = True
    holder = request.__dict__["environ"].get("larder.states")
    if isinstance(holder, list):
        holder.append(state)
    return state


def _session() -> Any | None:
    """Returns the session that was opened, without counting as its reader."""
    from flask.globals import request_ctx

    context = request_ctx._get_current_object()  # type: ignore[attr-defined]
    if hasattr(context, "_session"):
        return context._session
    return context.session


def _make(app: Flask) -> State:
    state = State(Lookout(app.root_path))
    request.__dict__[_ATTRIBUTE] = state
    return state


def current_state() -> State:
    """Returns the state of the current request."""
    state = request.__dict__.get(_ATTRIBUTE)
    if state is not None:
        return state  # type: ignore[no-any-return]
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    if "larder" not in app.extensions and app not in _told_that_it_is_missing:
        _told_that_it_is_missing.add(app)
        logger.warning("%s has pages that are marked with cache_for, but Larder(app) was not called", app.name)
    return _make(app)


def state_of(found: Any) -> State | None:
    """Returns the state of a request, if it has one."""
    state: State | None = found.__dict__.get(_ATTRIBUTE)
    return state
