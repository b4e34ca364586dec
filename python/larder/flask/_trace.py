"""Sees what a page reads of its visitor, and names the line that did it.

The session and the request's fields are watched by subclasses that note each access and then do what they always did.
Every access counts, whoever makes it: a template and an installed package make pages, too. Left out is only what Flask
does for itself: opening and saving the session, and finding the route. Nothing that came of it is kept for others.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import sysconfig
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Callable, Iterator, Protocol

import flask.helpers
import werkzeug
from flask import Flask, Request
from flask.ctx import RequestContext
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface, SessionInterface, SessionMixin
from werkzeug.datastructures import EnvironHeaders, Headers
from werkzeug.local import LocalProxy
from werkzeug.test import create_environ
from werkzeug.utils import cached_property, environ_property
from werkzeug.wrappers import Request as WerkzeugRequest
from werkzeug.wrappers import Response as WerkzeugResponse

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = sysconfig.get_paths()["stdlib"] + os.sep
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")



def _codes(cls: type, *names: str) -> frozenset[CodeType]:
    """Returns the code of a class's functions and properties; of all that it defines itself, if none is named."""
    found = set()
    for name in names or list(vars(cls)):
        value = getattr(cls, name, None) if names else vars(cls)[name]
        for function in (value, getattr(value, "fget", None)):
            code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
            if isinstance(code, CodeType):
                found.add(code)
    return frozenset(found)


def _directory(module: Any) -> str:
    return os.path.dirname(os.path.abspath(str(module.__file__))) + os.sep


_WERKZEUG = _directory(werkzeug)

#: What only passes an access on: whoever called it is the reader.
_PASSES_ON = frozenset({*_codes(RequestContext), *_codes(SecureCookieSession), *_codes(SessionMixin)})

#: Flask's own looks at the session and its cookie: opening and saving it. Nothing of them gets into the page. Known by
#: the code itself, because any function may have such a name.
_BOOKKEEPING = frozenset(
    {
        *_codes(SecureCookieSessionInterface, "open_session", "save_session"),
        *_codes(SessionInterface, "should_set_cookie", "get_expiration_time", "is_null_session"),
    }
)

#: What of Flask and Werkzeug reads the environment, and neither returns anything of it nor puts it into the page.
_READS_ENVIRON = frozenset(
    {
        *_codes(WerkzeugRequest, "__init__", "want_form_data_parsed", "stream"),
        *_codes(Flask, "create_url_adapter"),
        *_codes(RequestContext, "copy", "pop"),
        flask.helpers.send_file.__code__,
        flask.helpers.send_from_directory.__code__,
        *(function.__code__ for function in [getattr(flask.helpers, "_prepare_send_file_kwargs", None)] if function),
    }
)
#: `flask.request`, which passes an access on to the request itself.
_PROXIES = LocalProxy.__init__.__code__.co_filename
_MAKES_RESPONSE = _codes(Flask, "make_response")
_MAKES_CONDITIONAL = _codes(WerkzeugResponse, "make_conditional")
_TEARDOWN = _codes(Flask, "do_teardown_request")
_HEADERS = frozenset({*_codes(EnvironHeaders), *_codes(Headers)})


def _is_plumbing(frame: FrameType) -> bool:
    """True if what reads the request's environment is Flask or Werkzeug, for purposes of their own."""
    while frame.f_code.co_filename == _PROXIES and frame.f_back is not None:
        frame = frame.f_back
    code = frame.f_code
    if code in _READS_ENVIRON:
        return True
    if code in _MAKES_RESPONSE:
        # An exception of Werkzeug's is made a response. Any other WSGI application makes a page of the environment.
        answer = frame.f_locals.get("rv")
        return isinstance(answer, WerkzeugResponse) or type(answer).__module__.startswith("werkzeug.")
    outer = frame.f_back
    is_asked_for = outer is not None and outer.f_code in _MAKES_CONDITIONAL
    return is_asked_for and code.co_name == "_get_environ" and code.co_filename.startswith(_WERKZEUG)


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
        if is_bookkeeping(frame):
            return None, True
        package: Place | None = None
        while frame is not None:
            code = frame.f_code
            filename = code.co_filename
            if code.co_name == "wsgi_app" and not self.is_application(filename):
                break
            if self.is_application(filename):
                return _place(frame), False
            if package is None and any(part in filename for part in _PACKAGES) and not _is_framework(filename):
                package = _place(frame)
            frame = frame.f_back
        return package, False


def is_bookkeeping(frame: FrameType | None) -> bool:
    """True if the one who reads is Flask itself, which opens or saves the session; or Flask-Session, which does it in
    its place; or Flask-Login, which looks after each request whether its cookie has to be renewed."""
    while frame is not None:
        filename = frame.f_code.co_filename
        if not filename.startswith((_HERE, _WERKZEUG)) and frame.f_code not in _PASSES_ON:
            break
        frame = frame.f_back
    if frame is None:
        return False
    code = frame.f_code
    if code in _BOOKKEEPING or is_of("flask_session", code.co_filename):
        return True
    login = getattr(sys.modules.get("flask_login.login_manager"), "LoginManager", None)
    return login is not None and code in _codes(login, "_update_remember_cookie")


def is_teardown(frame: FrameType | None) -> bool:
    """True for what runs once a request is over."""
    while frame is not None:
        if frame.f_code in _TEARDOWN:
            return True
        frame = frame.f_back
    return False


def is_of(package: str, filename: str) -> bool:
    """True for a file of an installed package."""
    module = sys.modules.get(package)
    return module is not None and module.__file__ is not None and filename.startswith(_directory(module))


def is_login_in_templates(frame: FrameType | None) -> bool:
    """True if Flask-Login loads the user because a template is rendered."""
    code = getattr(getattr(sys.modules.get("flask_login.utils"), "_user_context_processor", None), "__code__", None)
    while frame is not None and code is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


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
        self._note = note
        super().__init__(environ)

    @property
    def environ(self) -> dict[str, Any]:
        if sys._getframe(1).f_code not in _HEADERS:
            self._note("request.environ", "request.headers.environ")
        return self._raw

    @environ.setter
    def environ(self, value: dict[str, Any]) -> None:
        self._raw = value

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
        value = self._raw.get(name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}")
        return value if isinstance(value, str) else None


class Watch(Protocol):
    """Is told what a request reads."""

    #: How many reads were left out of account. What came of one must not be kept for the next reader.
    left_out: int

    def note(self, kind: str, what: str) -> bool: ...


#: Under this name a request carries who is told of its reads.
WATCH = "_larder_state"


def watched_request(cls: type, begin: Callable[[], Watch]) -> type:
    """Returns a class of requests that note, from their making on, who looks at their fields, at the visitor's address
    and name, and at the whole WSGI environment."""
    if is_watched(cls):
        return cls

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        self.__dict__[WATCH] = begin()
        cls.__init__(self, *args, **options)  # type: ignore[misc]

    namespace: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    namespace.update({"__init__": __init__, "__doc__": cls.__doc__, "_larder_watched": True})
    for name in {name for base in cls.__mro__ for name in vars(base)}:
        inherited = inspect.getattr_static(cls, name)
        if isinstance(inherited, (cached_property, functools.cached_property)):
            namespace[name] = _kept(cls, name, inherited)
    for name in ("environ", "remote_addr", "remote_user"):
        namespace[name] = _noting(cls, name)
    namespace["headers"] = _headers()
    return type(cls.__name__, (cls,), namespace)


def is_watched(cls: type) -> bool:
    """True for a class that `watched_request` has made, and for its subclasses."""
    return getattr(cls, "_larder_watched", False) is True


def _noting(cls: type, name: str) -> property:
    """Returns an attribute that notes who reads it."""
    inherited = getattr(cls, name, None)

    def read(self: Any) -> Any:
        if name != "environ" or not _is_plumbing(sys._getframe(1)):
            self.__dict__[WATCH].note(f"request.{name}", f"request.{name}")
        if name in self.__dict__:
            return self.__dict__[name]
        if name == "remote_user" and isinstance(inherited, environ_property):
            return self.__dict__["environ"].get("REMOTE_USER")
        if inherited is not None and hasattr(inherited, "__get__"):
            return inherited.__get__(self, cls)
        raise AttributeError(name)

    def write(self: Any, value: Any) -> None:
        self.__dict__[name] = value

    return property(read, write)


def _kept(cls: type, name: str, inherited: Any) -> property:
    """Returns an attribute whose value is kept only if every read that led to it was taken into account."""

    def read(self: Any) -> Any:
        watch: Watch = self.__dict__[WATCH]
        before = watch.left_out
        value = inherited.__get__(self, cls)
        if watch.left_out != before:
            self.__dict__.pop(name, None)
        return value

    def write(self: Any, value: Any) -> None:
        self.__dict__[name] = value

    def delete(self: Any) -> None:
        self.__dict__.pop(name, None)

    return property(read, write, delete, inherited.__doc__)


def _headers() -> property:
    def read(self: Any) -> Any:
        return self.__dict__["headers"]

    def write(self: Any, value: Any) -> None:
        if isinstance(value, EnvironHeaders) and not isinstance(value, WatchedHeaders):
            value = WatchedHeaders(value.environ, self.__dict__[WATCH].note)
        self.__dict__["headers"] = value

    return property(read, write)


_session_classes: dict[type, type] = {}

#: What of a session reads it. `accessed` and `modified` are watched as well, which covers sessions of other kinds.
_READS = (
    "__getitem__ __contains__ __iter__ __len__ __eq__ __ne__ __or__ __ror__ __reversed__ __repr__ "
    "get keys values items copy setdefault pop popitem"
).split()
_CHANGES = "__setitem__ __delitem__ __ior__ clear pop popitem setdefault update".split()


def watch_session(session: Any, note: Note) -> bool:
    """Makes a session note what is done with it. Returns False if that can't be done with one of its kind."""
    cls = type(session)
    watched = _session_classes.get(cls)
    if watched is None:
        # Of two threads that make one the first counts. A lock would stay locked in a process that is forked meanwhile.
        watched = _session_classes.setdefault(cls, _watched_session(cls))
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

    class All:
        left_out = 0

        def note(self, kind: str, what: str) -> bool:
            return note(kind, what)

    watched = watched_request(Request, All)

    def asked() -> Any:
        return watched({**create_environ(), "HTTP_COOKIE": "a=b", "HTTP_AUTHORIZATION": "Bearer x"})

    check("request.cookies", "cookie", lambda: asked().cookies)
    check("request.authorization", "authorization", lambda: asked().authorization)
    check("request.access_route", "x-forwarded-for", lambda: asked().access_route)
    check("request.accept_languages", "accept-language", lambda: asked().accept_languages)
    for name in ("environ", "remote_addr", "remote_user"):
        check(f"request.{name}", f"request.{name}", lambda name=name: getattr(asked(), name))  # type: ignore[misc]
    check("request.headers.environ", "request.environ", lambda: asked().headers.environ)
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
