"""Speaks to Larder's admin listener: its addresses, what is asked of it, and what it answers.

Knows no queue, no retry and no application. `Connection` is for threads; `larder.aio` has one for event loops.
"""

from __future__ import annotations

# Imported here, because a thread would import it at its first connection: a process that is forked at that moment
# would never find the codec.
import encodings.idna  # noqa: F401
import http.client
import json
import logging
import socket
import ssl
from dataclasses import dataclass
from typing import Any, Iterable, Literal, Mapping, Sequence, Union
from urllib.parse import urlsplit

from ._tags import tag as _tag

logger = logging.getLogger("larder")

Kind = Literal["url", "prefix", "tag", "all"]
Scheme = Literal["both", "exact"]
Words = Union[str, Iterable[str], None]

#: The most bytes of an answer that are read.
MAX_ANSWER = 1 << 20

DEFAULT_ADMIN = "http://127.0.0.1:9090"


@dataclass(frozen=True)
class Address:
    """The address of an admin listener: `http` and `https` have host and port, `unix` has a path."""

    scheme: Literal["http", "https", "unix"]
    host: str = "localhost"
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads `http://127.0.0.1:9090`, `127.0.0.1:9090` or `unix:/run/larder-admin.sock`."""
        allowed = "write http://127.0.0.1:9090, or unix:/run/larder-admin.sock"
        text = text.strip()
        if text.startswith("unix:"):
            path = text[len("unix:") :]
            path = path[2:] if path.startswith("//") else path
            if not path:
                raise ValueError(f'"{text}" names no socket: {allowed}')
            return cls("unix", path=path)
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError(f'"{text}" is no address of an admin listener ({error}): {allowed}') from None
        extra = parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None
        if not host or extra or parts.scheme not in ("http", "https"):
            raise ValueError(f'"{text}" is no address of an admin listener: {allowed}')
        if parts.scheme == "https":
            return cls("https", host, port or 443)
        return cls("http", host, port or 9090)

    @property
    def authority(self) -> str:
        """The value for `Host`."""
        if self.scheme == "unix":
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """True if nobody between here and there can read along."""
        return self.scheme in ("unix", "https") or self.host in ("localhost", "::1") or self.host.startswith("127.")

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.scheme == "unix" else f"{self.scheme}://{self.authority}"


@dataclass(frozen=True)
class Purge:
    """One thing to purge."""

    kind: Kind
    value: str = ""
    soft: bool = False
    scheme: Scheme = "both"

    def body(self) -> bytes:
        """Returns the body for `POST /purge`."""
        asked: dict[str, Any] = {self.kind: True if self.kind == "all" else self.value}
        if self.soft:
            asked["soft"] = True
        if self.scheme == "exact" and self.kind in ("url", "prefix"):
            asked["scheme"] = "exact"
        return json.dumps(asked).encode()

    def covers(self, other: Purge) -> bool:
        """True if `other` is of no use once this purge is made."""
        if self.soft and not other.soft:
            return False
        if self.kind == "all":
            return True
        same = (self.kind, self.value) == (other.kind, other.value)
        return same and (self.scheme == other.scheme or self.scheme == "both")

    def __str__(self) -> str:
        words = {"url": self.value, "prefix": f"what begins with {self.value}", "tag": f"what is tagged {self.value}"}
        return words.get(self.kind, "everything") + (" (soft)" if self.soft else "")


@dataclass(frozen=True)
class Answer:
    """The answer of one Larder to one purge."""

    address: str
    purge: Purge
    told: Mapping[str, Any]

    @property
    def held(self) -> Mapping[str, Any] | None:
        """For a URL: which tiers held it, by scheme. Larder does not search for the rest."""
        held = self.told.get("held")
        return held if isinstance(held, dict) else None


@dataclass(frozen=True)
class Failure:
    """The reason why one Larder did not make one purge."""

    address: str
    purge: Purge
    reason: str
    #: The status of Larder's answer; `None`: there was none.
    status: int | None = None

    @property
    def may_pass(self) -> bool:
        """True if the same purge may succeed later."""
        return self.status is None or self.status >= 500 or self.status in (408, 429)

    def __str__(self) -> str:
        return f"{self.purge} was not purged at {self.address}: {self.reason}"


class PurgeError(Exception):
    """A purge that was not made everywhere. `failures` says where and why, `answers` where it was made."""

    def __init__(self, failures: Sequence[Failure], answers: Sequence[Answer] = ()) -> None:
        super().__init__("; ".join(str(failure) for failure in failures))
        self.failures = list(failures)
        self.answers = list(answers)


class AdminError(Exception):
    """The admin listener can't be reached, or does not answer as one."""


def words(value: Words, name: str) -> list[str]:
    """Returns one word or several as a list."""
    if value is None:
        return []
    found = [value] if isinstance(value, str) else list(value)
    for word in found:
        if name == "tag" and isinstance(word, str) and not word.strip():
            # Often a visitor's word: no page has it, as it is left out where pages are tagged.
            logger.warning("an empty tag was left out of a purge")
        elif not isinstance(word, str) or not word.strip():
            raise ValueError(f"{name}={word!r} names nothing to purge")
    return [word for word in found if word.strip()]


def purges(
    url: Words, prefix: Words, tag: Words, all: bool, soft: bool, scheme: Scheme = "both"
) -> list[Purge]:
    """Returns what is asked for, each thing once. Raises `ValueError` if that is nothing, or contradicts itself."""
    if scheme not in ("both", "exact"):
        raise ValueError(f'scheme={scheme!r}: it is "both" or "exact"')
    if all and not (url is None and prefix is None and tag is None):
        raise ValueError("all=True purges everything: leave out url, prefix and tag")
    if not all and url is None and prefix is None and tag is None:
        raise ValueError("purge what? Give url=, prefix= or tag=, or all=True")
    found = [Purge("all", soft=soft)] if all else []
    found += [Purge("url", word, soft, scheme) for word in words(url, "url")]
    found += [Purge("prefix", word, soft, scheme) for word in words(prefix, "prefix")]
    found += [Purge("tag", _tag(word), soft) for word in words(tag, "tag")]
    for purge in found:
        where = ("/", "http://", "https://")
        if purge.kind in ("url", "prefix") and not purge.value.lower().startswith(where):
            raise ValueError(f'{purge.kind}="{purge.value}" is no URL: write it as clients see it, http://host/path')
    return list(dict.fromkeys(found))


def seconds_text(wait: float) -> str:
    """Returns a time as `?wait=` takes it."""
    if not 0 <= wait <= 60:
        raise ValueError(f"wait={wait!r}: it is 0 to 60 seconds")
    return f"{round(wait * 1000)}ms"


def purge_path(wait: float | None) -> str:
    return f"/purge?wait={seconds_text(wait)}" if wait else "/purge"


def judged(address: Address, purge: Purge, status: int, told: Mapping[str, Any]) -> Answer | Failure:
    """Tells an answer that the purge was made from one that it was not."""
    if status == 200 and "purged" in told:
        return Answer(str(address), purge, told)
    reason = str(told.get("error", f"the answer's status is {status}, and it is not one of an admin listener"))
    if status == 401:
        reason = f"it wants a token, and LARDER_TOKEN is missing or is not its admin.token ({reason})"
    return Failure(str(address), purge, reason, status)


def read_answer(status: int, body: bytes) -> dict[str, Any]:
    """Reads the JSON of an answer; an empty dictionary if there is none."""
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Connection:
    """One kept-alive connection to an admin listener. One thread uses it at a time."""

    def __init__(self, address: Address, token: str = "", timeout: float = 2.0) -> None:
        self.address = address
        self._token = token
        self._timeout = timeout
        self._open: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: bytes | None = None, wait: float = 0.0) -> tuple[int, dict[str, Any]]:
        """Asks, and returns status and answer. `wait` is the time that the answer is delayed on purpose.

        A kept-alive connection that Larder has closed meanwhile is made anew once: everything that is asked here may
        be asked twice.
        """
        reused = self._open is not None
        try:
            return self._exchange(method, path, body, wait)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not reused or isinstance(error, TimeoutError):
                raise AdminError(_reason(error)) from error
        try:
            return self._exchange(method, path, body, wait)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise AdminError(_reason(error)) from error

    def purge(self, purge: Purge, wait: float | None = None) -> Answer | Failure:
        """Purges one thing; never raises for what Larder or the network did."""
        try:
            status, told = self.ask("POST", purge_path(wait), purge.body(), wait or 0.0)
        except (AdminError, ValueError) as error:
            return Failure(str(self.address), purge, str(error))
        return judged(self.address, purge, status, told)

    def close(self) -> None:
        """Closes the connection; the next question opens another."""
        opened, self._open = self._open, None
        if opened is not None:
            opened.close()

    def forget(self) -> None:
        """Closes this process's copy of a connection that another process uses, without a word to Larder."""
        self.close()

    def _exchange(self, method: str, path: str, body: bytes | None, wait: float) -> tuple[int, dict[str, Any]]:
        if self._open is None:
            self._open = self._connect()
        opened = self._open
        opened.timeout = self._timeout + wait
        if opened.sock is not None:
            opened.sock.settimeout(self._timeout + wait)
        opened.request(method, path, body, self._fields(body))
        response = opened.getresponse()
        content = response.read(MAX_ANSWER + 1)
        if len(content) > MAX_ANSWER:
            raise http.client.HTTPException("the answer is longer than any of an admin listener")
        if response.will_close:
            self.close()
        return response.status, read_answer(response.status, content)

    def _fields(self, body: bytes | None) -> dict[str, str]:
        fields = {"Host": self.address.authority, "Accept": "application/json"}
        if body is not None:
            fields["Content-Type"] = "application/json"
        if self._token:
            fields["Authorization"] = f"Bearer {self._token}"
        return fields

    def _connect(self) -> http.client.HTTPConnection:
        address = self.address
        if address.scheme == "unix":
            return _UnixConnection(address.path, self._timeout)
        if address.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(address.host, address.port, timeout=self._timeout, context=context)
        return http.client.HTTPConnection(address.host, address.port, timeout=self._timeout)


def _reason(error: BaseException) -> str:
    """Says in words what went wrong on the way."""
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there (connection refused)"
    if isinstance(error, FileNotFoundError):
        return "there is no such socket"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it closed the connection without an answer"
    return f"{type(error).__name__}: {error}"
