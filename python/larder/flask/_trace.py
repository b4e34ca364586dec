"""Sees what a page reads of its visitor, and names the line that did it.

The session and the request's fields are watched by subclasses that note each access and then do what they always did.
Only the first access of a kind is looked into. An access counts for nothing if it is Flask's own: opening and saving
the session, or Flask-Login looking whether it has a cookie to renew.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import sys
import sysconfig
import threading
from dataclasses import dataclass
from types import FrameType
from typing import Any, Callable, Iterator

from flask import Request
from flask.sessions import SecureCookieSession
from werkzeug.datastructures import EnvironHeaders
from werkzeug.test import create_environ

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = sysconfig.get_paths()["stdlib"] + os.sep
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

#: Functions whose reads are bookkeeping: nothing of them gets into the page.
_BOOKKEEPING = frozenset({"open_session", "save_session"})

#: True inside `ignore_reads()`.
_ignored: contextvars.ContextVar[bool] = contextvars.ContextVar("larder_ignored", default=False)


@contextlib.contextmanager
def ignore_reads() -> Iterator[None]:
    """Promises that nothing that is read of the visitor inside gets into the page: for logs and counters.

    >>> with ignore_reads():
    ...     app.logger.info("asked by %s", session.get("user"))
    """
    token = _ignored.set(True)
    try:
        yield
    finally:
        _ignored.reset(token)


@dataclass(frozen=True)
class Place:
    """A line of code."""

    filename: str
    line: int

    def __str__(self) -> str:
        return f"{self.filename}:{self.line}"


class Lookout:
    """Finds the line of an application that is responsible for what is happening."""

    def __init__(self, root_path: str) -> None:
        self._root = os.path.abspath(root_path) + os.sep
        self._root_is_installed = any(part in self._root for part in _PACKAGES)
        # One entry a file of the program.
        self._known: dict[str, bool] = {}

    def is_application(self, filename: str) -> bool:
        """True for code that is neither Python's, nor an installed package's, nor this module's."""
        known = self._known.get(filename)
        if known is None:
            known = self._is_application(filename)
            if len(self._known) < 10_000:
                self._known[filename] = known
        return known

    def _is_application(self, filename: str) -> bool:
        if filename == "<template>":
            return True
        if filename.startswith((_HERE, "<")):
            return False
        if self._root_is_installed and filename.startswith(self._root):
            return True
        return not filename.startswith(_STDLIB) and not any(part in filename for part in _PACKAGES)

    def responsible(self, frame: FrameType | None) -> tuple[Place | None, bool]:
        """Returns the line, and whether it is Flask's own bookkeeping. Without a line of the application: the innermost
        line of a package."""
        package: Place | None = None
        while frame is not None:
            code = frame.f_code
            filename = code.co_filename
            if code.co_name in _BOOKKEEPING or _is_renewal(code.co_name, filename):
                return None, True
            if code.co_name == "wsgi_app" and not self.is_application(filename):
                break
            if self.is_application(filename):
                return _place(frame), False
            if package is None and any(part in filename for part in _PACKAGES) and not _is_framework(filename):
                package = _place(frame)
            frame = frame.f_back
        return package, False


def _is_renewal(name: str, filename: str) -> bool:
    """True for Flask-Login's look, after each request, whether its cookie has to be renewed."""
    return name == "_update_remember_cookie" and f"{os.sep}flask_login{os.sep}" in filename


def _is_framework(filename: str) -> bool:
    return f"{os.sep}flask{os.sep}" in filename or f"{os.sep}werkzeug{os.sep}" in filename


def _place(frame: FrameType) -> Place:
    """Returns a frame's line; of a template the line in its source."""
    line = frame.f_lineno
    template = frame.f_globals.get("__jinja_template__")
    if template is not None:
        line = template.get_corresponding_lineno(line)
    return Place(frame.f_code.co_filename, line)


#: Told of an access: its kind ("session", "change", or a field's name), and words for what was done.
Note = Callable[[str, str], bool]


class WatchedHeaders(EnvironHeaders):
    """The request's fields, whose reading is noted.

    Each method that reads is overridden by itself, because which of them call which differs between versions of
    Werkzeug. `probe` makes sure that none is forgotten.
    """

    def __init__(self, environ: dict[str, Any], note: Note) -> None:
        super().__init__(environ)
        self._note = note

    def _noted(self, key: object) -> None:
        if isinstance(key, str):
            self._note(key.replace("_", "-").lower(), f"request.headers[{key!r}]")

    def __getitem__(self, key: Any, *rest: Any, **options: Any) -> Any:
        self._noted(key)
        return super().__getitem__(key, *rest, **options)

    def get(self, key: Any, *rest: Any, **options: Any) -> Any:
        self._noted(key)
        return super().get(key, *rest, **options)

    def __contains__(self, key: object) -> bool:
        self._noted(key)
        return self._value(key) is not None

    def getlist(self, key: Any, type: Any = None, **options: Any) -> Any:
        self._noted(key)
        value = self._value(key)
        if value is None:
            return []
        try:
            return [value if type is None else type(value)]
        except ValueError:
            return []

    def get_all(self, name: str) -> Any:
        return self.getlist(name)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self._note("*", "all of request.headers")
        return super().__iter__()

    def _value(self, key: object) -> str | None:
        """Returns a field's value without looking at other fields."""
        if not isinstance(key, str):
            return None
        name = key.upper().replace("-", "_")
        value = self.environ.get(name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}")
        return value if isinstance(value, str) else None


_request_classes: dict[type, type] = {}


def watch_request(found: Any, note: Note, lookout: Lookout) -> None:
    """Makes a request note who looks at the visitor's address and name, and at the whole WSGI environment."""
    cls = type(found)
    with _classes_lock:
        watched = _request_classes.get(cls)
        if watched is None:
            watched = _request_classes[cls] = _watched_request(cls)
    found.__dict__["_larder_note"] = note
    found.__dict__["_larder_lookout"] = lookout
    found.__class__ = watched


def _watched_request(cls: type) -> type:
    def attribute(name: str) -> property:
        inherited = getattr(cls, name, None)

        def read(self: Any) -> Any:
            # Only what the application itself reads: libraries that limit or count requests read these as well.
            if self.__dict__["_larder_lookout"].is_application(sys._getframe(1).f_code.co_filename):
                self.__dict__["_larder_note"](f"request.{name}", f"request.{name}")
            return inherited.__get__(self, cls) if name not in self.__dict__ and inherited else self.__dict__[name]

        def write(self: Any, value: Any) -> None:
            self.__dict__[name] = value

        return property(read, write)

    names = ("environ", "remote_addr", "remote_user")
    namespace = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), {**namespace, **{name: attribute(name) for name in names}})


_session_classes: dict[type, type] = {}
_classes_lock = threading.Lock()

#: What of a session reads it. `accessed` and `modified` are watched as well, which covers sessions of other kinds.
_READS = (
    "__getitem__ __contains__ __iter__ __len__ __eq__ __ne__ __or__ __ror__ __reversed__ __repr__ "
    "get keys values items copy setdefault pop popitem"
).split()
_CHANGES = "__setitem__ __delitem__ __ior__ clear pop popitem setdefault update".split()


def watch_session(session: Any, note: Note) -> bool:
    """Makes a session note what is done with it. Returns False if that can't be done with one of its kind."""
    cls = type(session)
    with _classes_lock:
        watched = _session_classes.get(cls)
        if watched is None:
            watched = _session_classes[cls] = _watched_session(cls)
    try:
        session.__class__ = watched
        session.__dict__["_larder_note"] = note
    except (TypeError, AttributeError):
        return False
    return True


def _watched_session(cls: type) -> type:
    def flag(name: str, kind: str) -> property:
        def read(self: Any) -> Any:
            return self.__dict__.get(name, getattr(cls, name, None))

        def write(self: Any, value: Any) -> None:
            if value and self.__dict__["_larder_note"](kind, "the session") is False:
                # Flask's own bookkeeping: no reason for `Vary: Cookie`.
                if name == "accessed":
                    return
            self.__dict__[name] = value

        return property(read, write)

    namespace: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    namespace["__hash__"] = cls.__hash__
    for name, kind in (("accessed", "session"), ("modified", "change")):
        if not isinstance(getattr(cls, name, None), property):
            namespace[name] = flag(name, kind)
    for name in dict.fromkeys([*_READS, *_CHANGES]):
        original = getattr(cls, name, None)
        if original is not None and original is not getattr(object, name, None):
            namespace[name] = _noting_method(name, original)
    return type(cls.__name__, (cls,), namespace)


def probe() -> None:
    """Makes sure that nothing is read unseen with the Flask and Werkzeug that are installed. Raises `RuntimeError`."""
    seen: list[str] = []

    def note(kind: str, _what: str) -> bool:
        seen.append(kind)
        return True

    def check(what: str, kind: str, read: Callable[[], object]) -> None:
        seen.clear()
        with contextlib.suppress(KeyError):
            read()
        if kind not in seen:
            raise RuntimeError(f"larder.flask can't watch {what} with this version of Flask or Werkzeug: update Larder")

    def asked() -> Request:
        found = Request({**create_environ(), "HTTP_COOKIE": "a=b", "HTTP_AUTHORIZATION": "Bearer x"})
        found.headers = WatchedHeaders(found.environ, note)
        return found

    check("request.cookies", "cookie", lambda: asked().cookies)
    check("request.authorization", "authorization", lambda: asked().authorization)
    check("request.access_route", "x-forwarded-for", lambda: asked().access_route)
    check("request.accept_languages", "accept-language", lambda: asked().accept_languages)
    for name, read in {
        "[]": lambda fields: fields["Cookie"],
        "get": lambda fields: fields.get("Cookie"),
        "getlist": lambda fields: fields.getlist("Cookie"),
        "in": lambda fields: "Cookie" in fields,
    }.items():
        check(f"request.headers by {name}", "cookie", lambda read=read: read(asked().headers))  # type: ignore[misc]
    for name, walk in {"dict": dict, "str": str, "list": list, "len": len}.items():
        check(f"request.headers by {name}", "*", lambda walk=walk: walk(asked().headers))  # type: ignore[misc]
    for name, touch in {
        "[]": lambda found: found["a"],
        "get": lambda found: found.get("a"),
        "in": lambda found: "a" in found,
        "dict": lambda found: dict(found),
        "items": lambda found: list(found.items()),
    }.items():
        session = SecureCookieSession({"a": 1})
        watch_session(session, note)
        check(f"the session by {name}", "session", lambda touch=touch: touch(session))  # type: ignore[misc]
    session = SecureCookieSession()
    watch_session(session, note)
    check("changes of the session", "change", lambda: session.update(a=1))


def _noting_method(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    kind = "change" if name in _CHANGES and name not in ("setdefault", "pop", "popitem") else "session"

    @functools.wraps(original)
    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["_larder_note"](kind, "the session")
        return original(self, *args, **kwargs)

    return noting
