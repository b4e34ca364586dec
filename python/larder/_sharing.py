"""Checks that no user gets another's bytes: `LiveLarder.shared`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._client import Client, Response

if TYPE_CHECKING:
    from .testing import LiveLarder

# Fields that describe the copy, the connection or the moment, and not what is shown to the user.
_NOT_COMPARED = frozenset(
    "age cache-control cache-groups cache-status cache-tag cdn-cache-control connection content-length date expires "
    "keep-alive larder-cache-control last-modified server set-cookie surrogate-control surrogate-key "
    "transfer-encoding vary via xkey".split()
)
# Characters of a body that are shown around a difference.
_CONTEXT = 40


@dataclass(frozen=True)
class Sharing:
    """The observations of `LiveLarder.shared`."""

    answers: int
    """Answers through Larder that were compared."""
    hits: int
    """The number of them that came from the cache."""
    reused: bool
    """True if one user was answered with the copy of an answer to another."""


@dataclass(frozen=True)
class _Truth:
    """The answer that the application itself gives a user."""

    status: int
    body: bytes
    fields: Mapping[str, list[str]]


def check_sharing(
    larder: LiveLarder, user_a: Client, user_b: Client, path: str, headers: dict[str, str], ignore: str | None
) -> Sharing:
    if user_a is user_b:
        raise ValueError("shared needs two users: two clients, each with its own cookies")
    visitor = Client(larder, larder.host, "a visitor without cookies")
    left_out = re.compile(ignore.encode()) if ignore is not None else None
    users = [user_a, user_b, visitor]
    truths = {user: _ask_application(larder, user, path, headers, left_out) for user in users}
    answers = hits = 0
    reused = False
    for first in range(len(users)):
        larder.purge(path)
        asked: list[Client] = []
        for user in (users[first:] + users[:first]) * 2:
            # A copy: the answer may set cookies, and the user's own stay as they are.
            twin = user._twin(larder.host, {})
            try:
                response = twin.get(path, headers=headers)
            finally:
                twin.close()
            _compare(larder, user, response, truths, asked, left_out)
            answers += 1
            if response.cache_status.hit:
                hits += 1
                reused = reused or user not in asked
            asked.append(user)
    return Sharing(answers, hits, reused)


def _ask_application(
    larder: LiveLarder, user: Client, path: str, headers: dict[str, str], left_out: re.Pattern[bytes] | None
) -> _Truth:
    """Asks twice, past Larder: what differs between the two is nobody's own."""
    responses = []
    for _ in range(2):
        direct = larder.direct(user)
        try:
            responses.append(direct.get(path, headers=headers))
        finally:
            direct.close()
    one, other = responses
    bodies = [_comparable(response, left_out) for response in responses]
    if one.status != other.status or bodies[0] != bodies[1]:
        raise AssertionError(
            f"GET {path}: the application gives {user.name} two different answers, so they can't be compared with what "
            f"comes through Larder. Name what varies from request to request with ignore=REGEX.\n"
            f"  first   {one.status} {_difference(*bodies)}\n"
            f"  second  {other.status} {_difference(*reversed(bodies))}"
        )
    fields = {name: values for name, values in _fields(one).items() if _fields(other).get(name) == values}
    return _Truth(one.status, bodies[0], fields)


def _compare(
    larder: LiveLarder,
    user: Client,
    response: Response,
    truths: Mapping[Client, _Truth],
    asked: list[Client],
    left_out: re.Pattern[bytes] | None,
) -> None:
    truth = truths[user]
    body, fields = _comparable(response, left_out), _fields(response)
    wrong: list[str] = []
    if response.status != truth.status:
        wrong.append(f"  status        {response.status}, and the application gives {truth.status}")
    if body != truth.body:
        wrong.append(f"  got           {_difference(body, truth.body)}")
        wrong.append(f"  application   {_difference(truth.body, body)}")
        owners = [other.name for other, its in truths.items() if other is not user and its.body == body]
        if owners:
            wrong.append(f"  these are the bytes for {' and '.join(owners)}")
    for name, values in truth.fields.items():
        if fields.get(name) != values:
            wrong.append(f"  {name}: {fields.get(name)}, and the application gives {values}")
    cookies = response.headers.get_all("Set-Cookie", [])
    if response.cache_status.hit and cookies:
        wrong.append(f"  Set-Cookie    {', '.join(cookies)}: a stored answer sets a cookie that was made for one user")
    if wrong:
        order = ", ".join([other.name for other in asked] + [user.name])
        raise AssertionError(
            f"GET {response.path}: {user.name} did not get what the application gives {user.name}.\n"
            f"  asked in turn {order}\n" + "\n".join(wrong) + "\n" + larder._described(response)
        )


def _comparable(response: Response, left_out: re.Pattern[bytes] | None) -> bytes:
    return left_out.sub(b"", response.body) if left_out else response.body


def _fields(response: Response) -> dict[str, list[str]]:
    names = {name.lower() for name in response.headers.keys()} - _NOT_COMPARED
    return {name: response.headers.get_all(name, []) for name in names}


def _difference(body: bytes, other: bytes) -> str:
    """The body from a little before where it differs from the other."""
    length = min(len(body), len(other))
    at = next((n for n in range(length) if body[n] != other[n]), length)
    start, end = max(0, at - _CONTEXT), at + _CONTEXT
    shown = body[start:end].decode("utf-8", errors="replace")
    return f"{'…' if start else ''}{shown!r}{'…' if end < len(body) else ''}"
