"""The clients of `larder.testing`: each with its own cookies and its own connection."""

from __future__ import annotations

import json as json_module
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urljoin, urlsplit

from ._cache_status import CacheStatus

if TYPE_CHECKING:
    from .testing import LiveLarder

_TIMEOUT = 30.0
_MAX_REDIRECTS = 10
# Methods that may be sent again where a kept connection turned out to be closed.
_REPEATABLE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Response:
    """A response, complete."""

    client: Client
    method: str
    path: str
    """The path and the query that were asked for."""
    sent: Mapping[str, str]
    """The fields of the request."""
    status: int
    headers: Message
    """The fields of the response; `headers["Age"]`, `headers.get_all("Set-Cookie")`."""
    body: bytes

    @property
    def cache_status(self) -> CacheStatus:
        return CacheStatus.parse(self.headers.get("Cache-Status", ""))

    @property
    def text(self) -> str:
        return self.body.decode(self.headers.get_content_charset() or "utf-8", errors="replace")

    def json(self) -> Any:
        return json_module.loads(self.body)

    def __repr__(self) -> str:
        return f"<{self.method} {self.path} {self.status} [{self.cache_status.text}]>"


class Client:
    """A user of the application: requests with cookies of their own. For one thread at a time."""

    def __init__(self, larder: LiveLarder, host: str, name: str, fields: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._larder = larder
        self._host = host
        self._fields = dict(fields or {})
        self._connection: HTTPConnection | None = None
        # A cookie with Secure goes to Larder as well: in production TLS ends in front of it.
        policy = DefaultCookiePolicy(secure_protocols=("http", "https"))
        self.cookies = CookieJar(policy)

    def __repr__(self) -> str:
        return f"<Client {self.name}>"

    def _twin(self, host: str, fields: Mapping[str, str]) -> Client:
        """A client of another server with a copy of the cookies, and the same fields besides `fields`."""
        twin = Client(self._larder, host, self.name, {**self._fields, **fields})
        for cookie in self.cookies:
            twin.cookies.set_cookie(cookie)
        return twin

    def cookie(self, name: str) -> str | None:
        """Returns the value of a cookie, or None."""
        found: list[Cookie] = [cookie for cookie in self.cookies if cookie.name == name]
        return found[0].value if found else None

    def get(self, path: str, **options: Any) -> Response:
        return self.request("GET", path, **options)

    def head(self, path: str, **options: Any) -> Response:
        return self.request("HEAD", path, **options)

    def post(self, path: str, **options: Any) -> Response:
        return self.request("POST", path, **options)

    def put(self, path: str, **options: Any) -> Response:
        return self.request("PUT", path, **options)

    def patch(self, path: str, **options: Any) -> Response:
        return self.request("PATCH", path, **options)

    def delete(self, path: str, **options: Any) -> Response:
        return self.request("DELETE", path, **options)

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Mapping[str, object] | bytes | str | None = None,
        json: object = None,
        follow_redirects: bool = False,
    ) -> Response:
        """Sends a request. `data` is a form where it is a mapping, and else the body."""
        fields = {**self._fields, **(headers or {})}
        body: bytes | None = None
        if json is not None:
            body = json_module.dumps(json).encode()
            fields.setdefault("Content-Type", "application/json")
        elif isinstance(data, Mapping):
            body = urlencode(dict(data), doseq=True).encode()
            fields.setdefault("Content-Type", "application/x-www-form-urlencoded")
        elif data is not None:
            body = data.encode() if isinstance(data, str) else data
        response = self._send(method, path, fields, body)
        for _ in range(_MAX_REDIRECTS if follow_redirects else 0):
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or location is None:
                break
            target = urlsplit(urljoin(f"http://{self._host}{response.path}", location))
            path = (target.path or "/") + (f"?{target.query}" if target.query else "")
            if response.status in (301, 302, 303) and method != "HEAD":
                method, body = "GET", None
                fields.pop("Content-Type", None)
            response = self._send(method, path, fields, body)
        return response

    def _send(self, method: str, path: str, fields: Mapping[str, str], body: bytes | None) -> Response:
        if not path.startswith("/"):
            raise ValueError(f"{path!r} is no path: it begins with a slash")
        # The jar reads a request, and a response, of urllib.
        asked = urllib.request.Request(f"http://{self._host}{path}", method=method)
        self.cookies.add_cookie_header(asked)
        sent = dict(fields)
        if asked.has_header("Cookie"):
            sent.setdefault("Cookie", asked.get_header("Cookie") or "")
        answer = self._exchange(method, path, sent, body)
        content = answer.read()
        self.cookies.extract_cookies(answer, asked)
        return Response(self, method, path, sent, answer.status, answer.headers, content)

    def _exchange(self, method: str, path: str, fields: Mapping[str, str], body: bytes | None) -> HTTPResponse:
        is_kept = self._connection is not None
        if self._connection is None:
            self._connection = HTTPConnection(self._host, timeout=_TIMEOUT)
        try:
            self._connection.request(method, path, body, dict(fields))
            return self._connection.getresponse()
        except (HTTPException, ConnectionError):
            self.close()
            if not is_kept or method not in _REPEATABLE:
                raise
        # The server closed the kept connection just then.
        return self._exchange(method, path, fields, body)

    def close(self) -> None:
        """Closes the connection. The next request opens another."""
        connection, self._connection = self._connection, None
        if connection:
            connection.close()
