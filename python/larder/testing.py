"""A real Larder in front of the application under test.

    from larder.testing import LiveLarder

    def test_the_front_page_is_shared_and_the_cart_is_not():
        with LiveLarder(app) as larder:
            alice, bob = larder.client("alice"), larder.client("bob")
            larder.miss(alice.get("/"))
            larder.hit(bob.get("/"))
            larder.not_stored(alice.get("/cart"))
            larder.shared(alice, bob, "/cart")

The application is served by threads of the test's own process: the test reads and changes its state as it likes. Larder
is the `larder` command, on free ports. With pytest, the fixture `live_larder` does the same for the fixture `app`.

The assertions raise `AssertionError` with Cache-Status and what `larder explain` says of the request.
"""

from __future__ import annotations

import json as json_module
import os
import re
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._binary import find_binary
from ._cache_status import CacheStatus
from ._client import Client, Response
from ._sharing import Sharing, check_sharing

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["AppRequest", "CacheStatus", "Client", "Counted", "LiveLarder", "Response", "Sharing"]

_START_DEADLINE = 30.0
_STOP_DEADLINE = 10.0
_KEPT_LINES = 200
_LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")
_ADMIN = re.compile(r"admin on (127\.0\.0\.1:\d+)")
# Marks a request that does not come through Larder. The application does not see the field.
_DIRECT = "HTTP_LARDER_TESTING_DIRECT"


@dataclass(frozen=True)
class AppRequest:
    """A request that reached the application."""

    method: str
    path: str
    query: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}{'?' + self.query if self.query else ''}"


@dataclass
class Counted:
    """The requests that reached the application within `LiveLarder.counting`."""

    requests: list[AppRequest] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.requests)


class _CountingApp:
    """Notes each request that Larder sends, and passes it on."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._requests: list[AppRequest] = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.pop(_DIRECT, None) is None:
            seen = AppRequest(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""), environ.get("QUERY_STRING", ""))
            with self._lock:
                self._requests.append(seen)
        return self._app(environ, start_response)

    def requests(self, since: int = 0) -> list[AppRequest]:
        with self._lock:
            return self._requests[since:]


class LiveLarder:
    """Larder, running in front of `app`, until `stop` or the end of the `with` block.

    The purges of a Flask application with `larder.flask` go to this Larder from then on.

    `settings` are keys of Larder's configuration, as in `{"cache.stale_if_error": "1m"}`; `config` is a configuration
    file. The addresses and the tier in memory alone are decided here; `{"durable.url": …}` adds a durable tier.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        config: str | os.PathLike[str] | None = None,
        settings: Mapping[str, object] | None = None,
        binary: str | os.PathLike[str] | None = None,
    ) -> None:
        self._app = app
        self._counting = _CountingApp(app)
        self._config = config
        self._settings = dict(settings or {})
        self._binary = binary
        self._app_server: _AppServer | None = None
        self._process: _Process | None = None
        self._clients: list[Client] = []

    def __enter__(self) -> LiveLarder:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the application's server and Larder, and waits until both answer."""
        server = _AppServer(self._counting)
        try:
            self._process = _Process(self._command(server.port), server)
        except BaseException:
            server.stop()
            raise
        self._app_server = server
        _point_purges(self._app, self.admin_url, str(self._settings.get("admin.token", "")))

    def stop(self) -> None:
        """Stops both. Does nothing if they do not run."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        process, self._process = self._process, None
        server, self._app_server = self._app_server, None
        if process:
            process.stop()
        if server:
            server.stop()

    def _command(self, app_port: int) -> list[str]:
        own: dict[str, object] = {
            "server.listen": "127.0.0.1:0",
            "admin.listen": "127.0.0.1:0",
            "upstream.url": f"http://127.0.0.1:{app_port}",
        }
        settings = {"durable.url": "off", **self._settings, **own}
        command = [os.fspath(self._binary or find_binary())]
        if self._config is not None:
            command += ["--config", os.fspath(self._config)]
        for name, value in settings.items():
            command += ["--set", f"{name}={_setting(value)}"]
        return command

    @property
    def _running(self) -> _Process:
        if self._process is None:
            raise RuntimeError("Larder does not run: use `with LiveLarder(app) as larder:`, or call start()")
        return self._process

    @property
    def host(self) -> str:
        """Larder's address, as in `127.0.0.1:41234`."""
        return self._running.listening

    @property
    def url(self) -> str:
        """Larder's URL, without a slash at its end."""
        return f"http://{self.host}"

    @property
    def admin_url(self) -> str:
        """The URL of the admin listener; `LARDER_ADMIN` for `larder.purge`."""
        return f"http://{self._running.admin}"

    @property
    def log(self) -> str:
        """The last lines of Larder's log."""
        return "\n".join(self._running.lines)

    def client(self, name: str = "", headers: Mapping[str, str] | None = None) -> Client:
        """Returns a client with a cookie jar and a connection of its own. Use one for each user and thread.

        It sends `headers` with every request: what tells the application who asks, where that is no cookie.
        """
        client = Client(self, self.host, name or f"client {len(self._clients) + 1}", headers)
        self._clients.append(client)
        return client

    def direct(self, client: Client) -> Client:
        """Returns a client with a copy of `client`'s cookies that asks the application, past Larder.

        It sends what Larder would send, such as Host and X-Forwarded-For. Its requests are not counted.
        """
        server = self._app_server
        if server is None:
            raise RuntimeError("the application does not run: call start()")
        fields = {
            "Host": self.host,
            "X-Forwarded-For": "127.0.0.1",
            "X-Forwarded-Proto": "http",
            "X-Forwarded-Host": self.host,
            "Larder-Testing-Direct": "1",
        }
        return client._twin(f"127.0.0.1:{server.port}", fields)

    # ---- what reached the application

    def requests(self) -> list[AppRequest]:
        """Returns the requests that reached the application so far, in order."""
        return self._counting.requests()

    def count(self, path: str | None = None) -> int:
        """Returns how many requests have reached the application: all, or those for `path`."""
        return sum(1 for seen in self.requests() if path is None or seen.path == path)

    @contextmanager
    def counting(self) -> Iterator[Counted]:
        """Counts the requests that reach the application within the block."""
        since, counted = len(self._counting.requests()), Counted()
        try:
            yield counted
        finally:
            counted.requests.extend(self._counting.requests(since))

    # ---- the admin listener

    def purge(
        self,
        url: str | None = None,
        *,
        prefix: str | None = None,
        tag: str | None = None,
        all: bool = False,
        soft: bool = False,
    ) -> None:
        """Purges one of these. A `url` that is a path is one of this Larder."""
        given = {"url": url, "prefix": prefix, "tag": tag, "all": True if all else None}
        what: dict[str, object] = {name: value for name, value in given.items() if value is not None}
        if len(what) != 1:
            raise TypeError("purge takes one of: a URL, prefix=, tag=, all=True")
        if url is not None:
            what["url"] = self._absolute(url)
        self._ask("/purge", {**what, "soft": soft})

    def explain(self, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Returns what `larder explain --json` says of a GET of `url`. The application is not asked."""
        fields = [f"{name}: {value}" for name, value in (headers or {}).items()]
        return self._ask("/explain", {"url": self._absolute(url), "fields": fields})

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of the admin listener by name and labels, as in `larder_purges_total`."""
        connection = HTTPConnection(self._running.admin, timeout=_STOP_DEADLINE)
        try:
            connection.request("GET", "/metrics", headers=self._token())
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def _absolute(self, url: str) -> str:
        return self.url + url if url.startswith("/") else url

    def _token(self) -> dict[str, str]:
        token = self._settings.get("admin.token")
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _ask(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        connection = HTTPConnection(self._running.admin, timeout=_STOP_DEADLINE)
        fields = {"Content-Type": "application/json", **self._token()}
        try:
            connection.request("POST", path, json_module.dumps(body), fields)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{path} {dict(body)}: the admin listener answers {answer.status}: {text}")
        told = json_module.loads(text)
        return told if isinstance(told, dict) else {}

    # ---- assertions

    def hit(self, response: Response) -> None:
        """Asserts that the response came from the cache, without a request to the application."""
        if not response.cache_status.hit:
            raise self._failure(response, "should have been a hit")

    def miss(self, response: Response) -> None:
        """Asserts that the application was asked for the response (`fwd=…`), or that it shared such an answer."""
        if response.cache_status.hit or response.cache_status.fwd is None:
            raise self._failure(response, "should have been a miss")

    def stored(self, response: Response) -> None:
        """Asserts that the application was asked, and that its answer was kept."""
        if not response.cache_status.stored:
            raise self._failure(response, "should have been stored")

    def not_stored(self, response: Response) -> None:
        """Asserts that the application was asked, and that its answer was not kept."""
        if response.cache_status.stored or response.cache_status.hit:
            raise self._failure(response, "should not have been stored")

    def shared(
        self,
        user_a: Client,
        user_b: Client,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        ignore: str | None = None,
    ) -> Sharing:
        """Asserts that nobody gets another's bytes at `path`, whoever asks first.

        1. Asks the application itself, past Larder, twice as each user and twice as a visitor without cookies. The two
           answers to one user must be the same: what varies from request to request is named by `ignore`, a regular
           expression whose matches are left out of the comparison.
        2. Purges the URL, and asks Larder as each of the three, twice round. Does so three times: each comes first once.
        3. Each answer through Larder must be the one that the application gives to that user: the same status, body, and
           fields (but for those that describe the cached copy). An answer from the cache must not set a cookie.

        A page that is not stored passes, as does one that is the same for all. Whether the users shared a copy is in
        what this returns. Asks with GET, and does not change the cookies of the two clients.
        """
        return check_sharing(self, user_a, user_b, path, dict(headers or {}), ignore)

    def _failure(self, response: Response, what: str) -> AssertionError:
        return AssertionError(f"{response.method} {response.path} {what}.\n{self._described(response)}")

    def _described(self, response: Response) -> str:
        lines = [
            f"  status        {response.status}",
            f"  Cache-Status  {response.cache_status.text or '(none)'}",
            f"  Cache-Control {response.headers.get('Cache-Control', '(none)')}",
        ]
        why = _verdict(self._app, response.path)
        if why:
            lines.append(f"  larder.flask  {why}")
        if response.method in ("GET", "HEAD"):
            told = self._explained(response)
            lines += [f"  explain       {line}" if n == 0 else f"                {line}" for n, line in enumerate(told)]
        return "\n".join(lines)

    def _explained(self, response: Response) -> list[str]:
        """Returns what `explain` says of the same request now; never an error in place of the failure."""
        try:
            lines = self.explain(response.path, response.sent).get("lines", [])
        except (OSError, HTTPException, RuntimeError, ValueError) as error:
            return [f"could not be asked: {error}"]
        return [str(line) for line in lines]


def _point_purges(app: object, admin_url: str, token: str) -> None:
    """Lets a Flask application that has the extension purge through `admin_url`."""
    extension = getattr(app, "extensions", {}).get("larder")
    if extension is not None:
        extension.connect_to(admin_url, token)


def _verdict(app: object, path: str) -> str:
    """Returns why a Flask application that has the extension did not let everybody have its last answer at `path`."""
    extension = getattr(app, "extensions", {}).get("larder")
    return "" if extension is None else str(extension.verdict(path))


def _setting(value: object) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return json_module.dumps(list(value))
    return str(value)


class _AppServer:
    """Serves the application on a free port, with a thread for each connection."""

    def __init__(self, app: _CountingApp) -> None:
        try:
            from werkzeug.serving import WSGIRequestHandler, make_server
        except ModuleNotFoundError as error:
            raise RuntimeError("larder.testing serves the application with Werkzeug: pip install werkzeug") from error

        class Quiet(WSGIRequestHandler):
            """Logs errors, and not each request."""

            # It writes head and body apart: the body would wait until the head is acknowledged.
            disable_nagle_algorithm = True

            def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
                pass

        self._server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
        self.port = self._server.server_port
        self._work: deque[Callable[[], None]] = deque()
        self._thread = threading.Thread(target=self._run, name="larder-testing-app", daemon=True)
        self._started = False

    def run_first(self, work: Callable[[], None]) -> None:
        """Runs `work` on the server's thread, and then serves."""
        self._work.append(work)
        self._started = True
        self._thread.start()

    def _run(self) -> None:
        while self._work:
            self._work.popleft()()
        self._server.serve_forever(poll_interval=0.02)

    def stop(self) -> None:
        if self._started:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Process:
    """The `larder` command, which ends with this process."""

    listening = ""
    admin = ""

    def __init__(self, command: list[str], server: _AppServer) -> None:
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._child: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        # Linux ends the child with the thread that started it, which therefore has to live as long: the server's.
        server.run_first(lambda: self._spawn(command))
        if not self._ready.wait(_START_DEADLINE) or self._error or not (self.listening and self.admin):
            self.stop()
            said = "\n".join(f"    {line}" for line in self.lines)
            raise RuntimeError(f"Larder did not start: {self._error or ' '.join(command)}\n{said}") from self._error

    def _spawn(self, command: list[str]) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LARDER_")}
        # `larder tied` becomes the command, and is ended with this process even if that is killed.
        try:
            self._child = subprocess.Popen(
                [command[0], "tied", str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=environment,
            )
        except OSError as error:
            self._error = error
            self._ready.set()
            return
        self._reader = threading.Thread(target=self._read, args=(self._child,), name="larder-testing-log", daemon=True)
        self._reader.start()

    def _read(self, child: subprocess.Popen[str]) -> None:
        """Keeps the last lines, and learns from the first ones where Larder listens."""
        for line in child.stderr or ():
            self.lines.append(line.rstrip("\n"))
            if self._ready.is_set():
                continue
            for pattern, name in ((_LISTENING, "listening"), (_ADMIN, "admin")):
                found = pattern.search(line)
                if found:
                    setattr(self, name, found[1])
            if self.listening and self.admin:
                self._ready.set()
        # It ended.
        if child.stderr:
            child.stderr.close()
        self._ready.set()

    def stop(self) -> None:
        child = self._child
        if child is None:
            return
        child.terminate()
        try:
            child.wait(_STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if self._reader:
            self._reader.join(_STOP_DEADLINE)
