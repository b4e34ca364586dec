"""`cache_for` and `no_cache`: what a page says of its lifetime. What becomes of it is decided in `_finish`.

A decorator notes its policy in the current request when it is called, and on the function for `flask larder check`.
So it works above and below other decorators: one above that answers by itself leaves the page unmarked.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Callable, Iterable, Mapping, NoReturn, TypeVar, Union, cast, overload

from flask import Response, has_request_context

from ._state import State, current_state

F = TypeVar("F", bound=Callable[..., Any])

#: A time: a number of the unit, or a `timedelta`.
Time = Union[int, float, timedelta]
#: A time, or a function that returns one; `None` or 0 from it: the page is not kept.
Lifetime = Union[Time, Callable[[], "Time | None"]]
Tags = Union[Iterable[Any], Callable[[], Iterable[Any]]]

#: The attribute by which `check` finds the marks of a view. `functools.wraps` hands it on.
MARK = "__larder__"

#: The statuses that `cache_for` gives its lifetime to. A 304 stands for a 200.
SHARED = frozenset({200, 203, 206, 304})

#: Further statuses that `statuses=` may name: they say something of the page to everybody.
NAMEABLE = frozenset({200, 203, 204, 300, 301, 302, 303, 307, 308, 404, 405, 410, 414, 451})

_DAY = 86400.0
_LONGEST = 2**31


@dataclass(frozen=True)
class Policy:
    """The terms of one `cache_for`. Times are in seconds once they are called for."""

    lifetime: Callable[[], float | None]
    swr: Callable[[], float | None] | None = None
    sie: Callable[[], float | None] | None = None
    browser: Callable[[], float | None] | None = None
    tags: Tags = ()
    vary: tuple[str, ...] = ()
    unless: Callable[[], object] | None = None
    response_filter: Callable[[Response], object] | None = None
    statuses: Mapping[int, Callable[[], float | None]] = field(default_factory=dict)

    def lifetime_of(self, status: int) -> Callable[[], float | None] | None:
        """Returns the lifetime of a status; `None`: the policy says nothing of it."""
        if status in self.statuses:
            return self.statuses[status]
        return self.lifetime if status in SHARED else None

    @property
    def varies_by_cookie(self) -> bool:
        """True if each value of `Cookie` has a copy of its own."""
        return any(name.lower() == "cookie" for name in self.vary)


def _seconds(value: object, unit: float, name: str) -> float:
    """Returns a time in seconds; raises for what is none."""
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = value * unit
    else:
        raise TypeError(f"{name}={value!r} is no time: give a number or a timedelta")
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{name}={value!r} is no time: it is negative or not finite")
    return min(seconds, _LONGEST)


def _timed(value: Lifetime, unit: float, name: str) -> Callable[[], float | None]:
    """Returns a function that returns the seconds of `value`. A number is checked here and now."""
    if callable(value):
        ask = value

        def called() -> float | None:
            told = ask()
            return None if told is None else _seconds(told, unit, name)

        return called
    seconds = _seconds(value, unit, name)
    return lambda: seconds


def _sum(parts: list[Callable[[], float | None]]) -> Callable[[], float | None]:
    """Adds times; if one of them says that the page is not kept, it is not."""

    def total() -> float | None:
        seconds = 0.0
        for part in parts:
            told = part()
            if told is None:
                return None
            seconds += told
        return min(seconds, _LONGEST)

    return total


def _names(vary: Iterable[str] | str) -> tuple[str, ...]:
    names = (vary,) if isinstance(vary, str) else tuple(vary)
    for name in names:
        if not isinstance(name, str) or not name or not all(c.isalnum() or c in "!#$%&'*+-.^_`|~" for c in name):
            raise ValueError(f"vary={name!r} is no field of a request")
        if name == "*":
            raise ValueError('vary="*" means that nobody may share the page: mark it with @no_cache')
        if name.lower() == "authorization":
            raise ValueError('vary="Authorization": Larder keeps no answer to such requests: mark it with @no_cache')
    return names


def _misuse(times: tuple[object, ...], unknown: Mapping[str, object]) -> str:
    """Says what is meant by a time without a unit, and by an option that does not exist."""
    if times:
        number = times[0] if isinstance(times[0], (int, float)) else 60
        return f"say the unit: cache_for(seconds={number})"
    name = next(iter(unknown))
    parameters = inspect.signature(cache_for).parameters.values()
    options = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    meant = difflib.get_close_matches(name, options, 1) or ["seconds" if name in ("timeout", "ttl", "max_age") else ""]
    hint = f"do you mean {meant[0]}?" if meant[0] else "say how long by days, hours, minutes or seconds"
    return f"cache_for has no option {name}: {hint}"


class cache_for:
    """Lets Larder keep a page and give it to everybody.

    As a decorator, `@cache_for(minutes=5)`, for a view, a method of a `MethodView`, or in its `decorators`. As a call
    in a request, `cache_for(minutes=5)`, for the page that is being made.

    `days`, `hours`, `minutes` and `seconds` add up to the time that Larder keeps the page. Each is a number, a
    `timedelta`, or a function that returns one of them; if it returns `None`, or the sum is 0, the page is not kept.

    `swr` and `sie` are the seconds after that in which Larder may still serve it, while it asks for a new one, or while
    the application fails. `browser` is the seconds for which browsers may use their copy without asking.

    `tags` are words to purge it by: texts, models (see `tag_for`), or a function that returns them. `vary` names
    request fields, each value of which has a copy of its own. `unless()` true, or `response_filter(response)` false:
    the page is not kept. `statuses={404: 30}` are lifetimes of further statuses, in seconds.
    """

    def __init__(
        self,
        *times: NoReturn,  # there are none: see `_misuse`
        days: Lifetime | None = None,
        hours: Lifetime | None = None,
        minutes: Lifetime | None = None,
        seconds: Lifetime | None = None,
        swr: Lifetime | None = None,
        sie: Lifetime | None = None,
        browser: Lifetime | None = None,
        tags: Tags = (),
        vary: Iterable[str] | str = (),
        unless: Callable[[], object] | None = None,
        response_filter: Callable[[Response], object] | None = None,
        statuses: Mapping[int, Lifetime] | None = None,
        **unknown: NoReturn,
    ) -> None:
        if times or unknown:
            raise TypeError(_misuse(times, unknown))
        given = [
            _timed(value, unit, name)
            for value, unit, name in (
                (days, _DAY, "days"),
                (hours, 3600.0, "hours"),
                (minutes, 60.0, "minutes"),
                (seconds, 1.0, "seconds"),
            )
            if value is not None
        ]
        if not given:
            raise TypeError("cache_for how long? Give days=, hours=, minutes= or seconds=")
        if isinstance(tags, str):
            raise TypeError(f"tags={tags!r}: give a list of tags")
        for status in statuses or {}:
            if status not in NAMEABLE:
                why = "such an answer may concern one client alone, or is a failure"
                raise ValueError(f"statuses={{{status}: …}}: {why}")

        def optional(value: Lifetime | None, name: str) -> Callable[[], float | None] | None:
            return None if value is None else _timed(value, 1.0, name)

        self.policy = Policy(
            lifetime=_sum(given),
            swr=optional(swr, "swr"),
            sie=optional(sie, "sie"),
            browser=optional(browser, "browser"),
            tags=tags if callable(tags) else tuple(tags),
            vary=_names(vary),
            unless=unless,
            response_filter=response_filter,
            statuses={status: _timed(value, 1.0, f"statuses[{status}]") for status, value in (statuses or {}).items()},
        )
        # A call in a request marks its page; a decorator that is made in a request does not: see `__call__`. What is
        # made while a module or class is read is never such a call.
        self._marked: State | None = None
        is_in_function = bool(sys._getframe(1).f_code.co_flags & inspect.CO_OPTIMIZED)
        if is_in_function and has_request_context():
            self._marked = current_state()
            self._marked.policies.append(self.policy)

    def __call__(self, view: F) -> F:
        if self._marked is not None:
            # It was the beginning of a decorator, not a call for the page of the moment.
            self._marked.policies = [policy for policy in self._marked.policies if policy is not self.policy]
            self._marked = None
        policy = self.policy
        return _noting(view, policy, lambda state: state.policies.append(policy))


@overload
def no_cache() -> None: ...
@overload
def no_cache(view: F) -> F: ...
def no_cache(view: F | None = None) -> F | None:
    """Keeps a page out of every cache. As a decorator, `@no_cache`, or as a call in a request, `no_cache()`.

    It wins over every `cache_for`.
    """
    if view is None:
        current_state().is_forbidden = True
        return None

    def forbid(state: State) -> None:
        state.is_forbidden = True

    return _noting(view, None, forbid)


def _noting(view: F, policy: Policy | None, note: Callable[[State], None]) -> F:
    """Returns `view` with a note to the request's state before each call."""
    if isinstance(view, type):
        raise TypeError("mark the methods of a view class, or list the decorator in its `decorators`")
    if not callable(view):
        raise TypeError(f"{view!r} is no view")
    if inspect.iscoroutinefunction(view):

        @functools.wraps(view)
        async def noting_async(*args: Any, **kwargs: Any) -> Any:
            note(current_state())
            return await view(*args, **kwargs)

        wrapper: Any = noting_async
    else:

        @functools.wraps(view)
        def noting(*args: Any, **kwargs: Any) -> Any:
            note(current_state())
            return view(*args, **kwargs)

        wrapper = noting
    setattr(wrapper, MARK, [*getattr(view, MARK, []), policy])
    return cast(F, wrapper)


def add_tags(*tags: Any) -> None:
    """Adds tags to the page that is being made: texts, or models (see `tag_for`)."""
    current_state().tags.extend(tags)
