"""Decides what a marked page says of caching, and writes it. The last step before a response leaves Flask.

Works on a response that is finished: every `after_request` function has run, and the session is saved. What keeps a
page from being shared is looked for first. What the page itself set wins where it is stricter.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from dataclasses import dataclass
from typing import Any, Callable, Iterable

from flask import Flask, Response, g, request

from .._tags import MAX_TAGS, MAX_TAGS_LENGTH, tag, tag_for
from ._policy import Policy
from ._state import MANY_VALUED, PERSONAL, State

#: The field that Larder obeys before `Cache-Control` (RFC 9213).
TARGETED = ("CDN-Cache-Control", "Larder-Cache-Control", "Surrogate-Control", "X-Accel-Expires")


class NotShared(UserWarning):
    """A page is marked with `cache_for`, and was made for one visitor."""


@dataclass(frozen=True)
class Verdict:
    """The reason why a page is not kept."""

    #: `Cache-Control` for it; empty: what the page says stays.
    cache_control: str
    why: str
    #: What to do about it. Empty: nothing, and the developer need not hear of it.
    advice: str = ""


PRIVATE = "private, no-cache"
NOTHING = "private, no-store"


# Advice on a page that is not shared, by the cause. A copy a visitor helps only where the cookie is the cause.
_VARY = (
    'Take it out of the page, log the visitor in a teardown_request function, keep a copy a visitor by vary=["Cookie"], '
    "or mark the page with @no_cache."
)
_LOG_ONLY = "Take it out of the page, log the visitor in a teardown_request function, or mark the page with @no_cache."
_SET_ELSEWHERE = "Set it in a page that is not marked, or mark this one with @no_cache."
_CHANGE_ELSEWHERE = "Change it in a page that is not marked, or mark this one with @no_cache."
_RENEW_ELSEWHERE = (
    "Set it in a page that is not marked, say SESSION_REFRESH_EACH_REQUEST = False, or mark this one with @no_cache."
)
_ADVICE = {
    "cookie": _VARY,
    "authorization": "Larder keeps no answer to a request with it: mark the page with @no_cache.",
}


@dataclass
class Settings:
    """The configuration of the application."""

    field: str = "CDN-Cache-Control"


def preview(app: Flask, state: State, response: Response, settings: Settings) -> tuple[Response, State]:
    """Returns what would become of a response without Flask-DebugToolbar; changes nothing."""
    copied = Response(response.get_data(), status=response.status, headers=response.headers.copy())
    trial = dataclasses.replace(state, is_preview=True)
    finish(app, trial, copied, settings, lambda _state, _verdict: None)
    return copied, trial


class _Uncached(Exception):
    """Raised inside: the page is not kept."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.why)
        self.verdict = verdict


def finish(app: Flask, state: State, response: Response, settings: Settings, tell: Tell) -> None:
    """Writes the fields of a finished response. Never raises; a fault makes the page uncached."""
    try:
        _finish(app, state, response, settings, tell)
    except Exception as error:
        if isinstance(error, NotShared):  # warnings are errors here, as in tests
            raise
        app.logger.exception("%s could not be given its lifetime, and is not kept", request.path)
        forbid(state, response, Verdict(NOTHING, "an exception was raised"))


def _finish(app: Flask, state: State, response: Response, settings: Settings, tell: Tell) -> None:
    if state.is_forbidden:
        forbid(state, response, Verdict(NOTHING, "it is marked with no_cache"))
        return
    if request.method not in ("GET", "HEAD"):
        state.verdict = f"the method is {request.method}"
        return
    if not state.policies:
        state.verdict = "it is not marked"
        if state.tags:
            _write_tags(response, _tags(app, state.tags))
        return
    policy = merged(state.policies)
    try:
        seconds, tags = _plan(app, state, policy, response)
    except _Uncached as uncached:
        forbid(state, response, uncached.verdict)
        if uncached.verdict.advice:
            tell(state, uncached.verdict)
        return
    if seconds is None:
        return
    _share(app, state, policy, response, settings, seconds, tags)
    for name in MANY_VALUED.intersection(state.seen):
        what = f"{state.seen[name].what} was read, so that each value of {name.title()} has a copy of its own"
        tell(state, Verdict("", what, "Don't read it in the page; log it in a teardown_request function."))


def merged(policies: list[Policy]) -> Policy:
    """Returns the policy of a page with several: the last one, which is nearest to the page; tags and fields add up."""
    last = policies[-1]
    if len(policies) == 1:
        return last
    vary = tuple(dict.fromkeys(name for policy in policies for name in policy.vary))
    return Policy(
        last.lifetime,
        last.swr,
        last.sie,
        last.browser,
        lambda: [tag for policy in policies for tag in (policy.tags() if callable(policy.tags) else policy.tags)],
        vary,
        lambda: any(policy.unless() for policy in policies if policy.unless is not None),
        lambda response: all(policy.response_filter(response) for policy in policies if policy.response_filter),
        last.statuses,
    )


def _plan(app: Flask, state: State, policy: Policy, response: Response) -> tuple[float | None, list[str]]:
    """Returns lifetime and tags; no lifetime: this answer is none that the policy speaks of."""
    if response.status_code >= 500:
        raise _Uncached(Verdict("no-store", f"its status is {response.status_code}"))
    _check_shareable(state, policy, response)
    lifetime = policy.lifetime_of(response.status_code)
    if lifetime is None:
        state.verdict = f"cache_for says nothing of status {response.status_code}"
        return None, []
    if policy.unless is not None and _asked(app, "unless", policy.unless):
        raise _Uncached(Verdict(PRIVATE, "unless() is true"))
    accepts = policy.response_filter
    if accepts is not None and not _asked(app, "response_filter", lambda: accepts(response)):
        raise _Uncached(Verdict(PRIVATE, "response_filter() is false"))
    seconds = _asked(app, "the lifetime", lifetime)
    if not seconds or int(seconds) < 1:
        raise _Uncached(Verdict(PRIVATE, "its lifetime is less than a second"))
    tags = _asked(app, "tags", lambda: list(policy.tags() if callable(policy.tags) else policy.tags))
    names = _asked(app, "tags", lambda: _tags(app, [*tags, *state.tags]))
    # The functions above may have looked at the visitor.
    _check_shareable(state, policy, response)
    return seconds, names


def _asked(app: Flask, what: str, function: Callable[[], Any]) -> Any:
    """Calls a function of the application. An exception makes the page uncached, and is logged."""
    try:
        return function()
    except Exception:
        app.logger.exception("%s of cache_for raised for %s, which is not kept", what, request.path)
        raise _Uncached(Verdict(NOTHING, f"{what} raised an exception")) from None


def _check_shareable(state: State, policy: Policy, response: Response) -> None:
    """Raises if the page was made for one visitor, or says itself that it may not be shared."""
    control = response.cache_control
    if control.no_store:
        raise _Uncached(Verdict(NOTHING, "the page says no-store"))
    if "Set-Cookie" in response.headers or "change" in state.seen:
        seen = state.seen.get("change")
        what, place, advice = "it sets a cookie", state.cookie_place, _SET_ELSEWHERE
        if seen is not None:
            what, place = "it changes the session (a flash message is kept there, too)", seen.place
            advice = _CHANGE_ELSEWHERE
        elif place is None:
            what = "it sets a cookie (the session's, if SESSION_REFRESH_EACH_REQUEST renews it)"
            advice = _RENEW_ELSEWHERE
        raise _Uncached(Verdict(NOTHING, _at(what, place), advice))
    if not state.is_preview and _has_toolbar(state, response):
        raise _Uncached(Verdict(NOTHING, "Flask-DebugToolbar wrote its panels into it"))
    by_cookie = policy.varies_by_cookie
    if not by_cookie and ("session" in state.seen or state.is_blind):
        seen = state.seen.get("session")
        what = f"it reads {seen.what if seen else 'a session of a kind that cannot be watched'}"
        raise _Uncached(Verdict(PRIVATE, _at(what, seen.place if seen else None), _VARY))
    for name, what in PERSONAL.items():
        seen = state.seen.get(name)
        if seen is not None and not (by_cookie and name == "cookie"):
            advice = _ADVICE.get(name, _LOG_ONLY)
            raise _Uncached(Verdict(PRIVATE, _at(f"it reads {what}", seen.place), advice))
    if control.private:
        raise _Uncached(Verdict("", "the page says private"))
    if "*" in response.vary:
        raise _Uncached(Verdict(PRIVATE, "the page says Vary: *"))


def _has_toolbar(state: State, response: Response) -> bool:
    """True if Flask-DebugToolbar may have written into the response, or put a page in place of a redirect."""
    is_there = "toolbar" in state.seen or g.get("debug_toolbar") is not None
    return is_there and response.mimetype == "text/html"


def _at(what: str, place: object) -> str:
    return what if place is None else f"{what}, in {place}"


def _tags(app: Flask, asked: Iterable[Any]) -> list[str]:
    found = []
    for word in asked:
        if not isinstance(word, str):
            found.append(tag_for(word))
        elif word.strip():
            found.append(tag(word))
        else:
            app.logger.warning("an empty tag of %s was left out", request.path)
    return list(dict.fromkeys(found))


def _write_tags(response: Response, tags: list[str]) -> None:
    own = [word for line in response.headers.getlist("Cache-Tag") for word in line.replace(",", " ").split()]
    every = list(dict.fromkeys([*own, *tags]))
    field = ", ".join(every)
    # Larder refuses a head that is too large, so what is too much must not be sent.
    response.headers.pop("Cache-Tag", None)
    if len(every) > MAX_TAGS:
        raise ValueError(f"{len(every)} tags are more than the {MAX_TAGS} that Larder keeps of a page")
    if len(field) > MAX_TAGS_LENGTH:
        raise ValueError(f"the tags of a page are {len(field)} bytes, more than {MAX_TAGS_LENGTH}")
    if every:
        response.headers["Cache-Tag"] = field


def forbid(state: State, response: Response, verdict: Verdict) -> None:
    """Takes out every permission to keep a response, and forbids it."""
    state.verdict = verdict.why
    state.is_shared = False
    for name in (*TARGETED, "Expires"):
        response.headers.pop(name, None)
    # The page's own statement may be stricter.
    if response.cache_control.no_store:
        response.headers["Cache-Control"] = NOTHING
    elif verdict.cache_control:
        response.headers["Cache-Control"] = verdict.cache_control


def _share(
    app: Flask, state: State, policy: Policy, response: Response, settings: Settings, seconds: float, tags: list[str]
) -> None:
    """Writes that everybody may have the page."""
    for name in (*policy.vary, *state.varies_by):
        response.vary.add(name)
    _validate(response)
    if policy.lifetime_of(response.status_code) is None:  # 412
        state.verdict = f"cache_for says nothing of status {response.status_code}"
        return
    swr, sie, browser = (
        None if ask is None else _asked_seconds(app, name, ask)
        for name, ask in (("swr", policy.swr), ("sie", policy.sie), ("browser", policy.browser))
    )
    _write_tags(response, tags)
    if not any(name in response.headers for name in ("CDN-Cache-Control", "Larder-Cache-Control")):
        directives = [f"max-age={int(seconds)}"]
        if swr:
            directives.append(f"stale-while-revalidate={swr}")
        if sie:
            directives.append(f"stale-if-error={sie}")
        # Other caches that read the common field do not all obey Vary.
        name = "Larder-Cache-Control" if policy.varies_by_cookie else settings.field
        response.headers[name] = ", ".join(directives)
    if browser is not None:
        # Caches between Larder and the browser would not hear of purges.
        response.headers["Cache-Control"] = f"private, max-age={browser}" if browser else PRIVATE
    elif "Cache-Control" not in response.headers or _is_bare_no_cache(response):
        response.headers["Cache-Control"] = PRIVATE
    state.is_shared = True
    state.judged = frozenset(state.seen)
    state.is_stream = response.is_streamed and not response.direct_passthrough
    state.verdict = ""


def _is_bare_no_cache(response: Response) -> bool:
    """True for what `send_file` says by itself."""
    return response.headers.get("Cache-Control", "").strip().lower() == "no-cache"


def _asked_seconds(app: Flask, name: str, ask: Callable[[], float | None]) -> int | None:
    try:
        told = ask()
    except Exception:
        app.logger.exception("%s of cache_for raised for %s, which is not kept", name, request.path)
        raise
    return None if told is None else int(told)


def _validate(response: Response) -> None:
    """Gives a page an ETag, and answers 304 where the client has it. Streams and files are left alone."""
    if response.status_code != 200 or response.direct_passthrough or response.is_streamed:
        return
    if "ETag" not in response.headers:
        response.add_etag()
    is_dated = "Date" in response.headers
    response.make_conditional(request.__dict__["environ"])
    if not is_dated:
        # Werkzeug adds one here, and servers add theirs: two would be sent.
        response.headers.pop("Date", None)


#: Tells the developer why a page is not shared.
Tell = Callable[[State, Verdict], None]


def teller(app: Flask, told: set[tuple[str, str]], registry: dict[Any, Any]) -> Tell:
    """Returns a function that warns in debug, with the line that did it; else it logs, once an endpoint and reason."""
    logger = logging.getLogger("larder.flask")

    def tell(state: State, verdict: Verdict) -> None:
        endpoint = request.endpoint or request.path
        text = f'the page of "{endpoint}" is marked with cache_for, but '
        if verdict.cache_control:
            text += f"nobody else gets it: {verdict.why}. {verdict.advice}"
        else:
            text += f"few will share it: {verdict.why}. {verdict.advice}"
        if app.debug or app.testing:
            place = _place_of(state)
            warnings.warn_explicit(
                text, NotShared, place[0], place[1], module="larder.flask", registry=registry, source=None
            )
        elif (endpoint, verdict.why) not in told and len(told) < 1000:
            told.add((endpoint, verdict.why))
            logger.warning("%s", text)

    return tell


def _place_of(state: State) -> tuple[str, int]:
    places = [seen.place for seen in state.seen.values()] + [state.cookie_place]
    for place in places:
        if place is not None:
            return place.filename, place.line
    return "larder", 0
