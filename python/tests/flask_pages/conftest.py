"""Starts what the tests need: a real Larder, a real gunicorn, and an admin listener that a test scripts."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def larder_binary() -> str:
    """Returns the binary under test."""
    named = os.environ.get("LARDER_BINARY")
    built = [ROOT / "target" / profile / "larder" for profile in ("quick", "release", "debug")]
    found = named or next((str(path) for path in built if path.exists()), None) or shutil.which("larder")
    assert found, "no larder binary: build it, or name it in LARDER_BINARY"
    return found


class Process:
    """A program whose lines are read until one says that it is ready."""

    def __init__(self, command: list[str], ready: str, env: dict[str, str], cwd: Path) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True, env=env, cwd=cwd
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait_for(ready)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self.lines.append("")  # the end
            self._changed.notify_all()

    def wait_for(self, pattern: str, timeout: float = 20.0) -> re.Match[str]:
        """Waits for a line that matches."""
        with self._changed:
            while True:
                for line in self.lines:
                    if match := re.search(pattern, line):
                        return match
                assert "" not in self.lines, f"it ended without {pattern!r}:\n{''.join(self.lines)}"
                assert self._changed.wait(timeout), f"no {pattern!r} in {timeout} s:\n{''.join(self.lines)}"

    def stop(self) -> str:
        """Stops it as a service manager does. Returns all that it printed."""
        self.process.terminate()
        self.process.wait(20)
        self._reader.join(20)
        return "".join(self.lines)


class Reply:
    """A response as a client sees it."""

    def __init__(self, status: int, fields: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.fields = fields
        self.body = body
        self.text = body.decode("utf-8", "replace")

    def __getitem__(self, name: str) -> str:
        return ", ".join(value for key, value in self.fields if key.lower() == name.lower())

    @property
    def cache(self) -> str:
        return self["Cache-Status"]

    @property
    def is_hit(self) -> bool:
        return "; hit" in self.cache


class Site:
    """A Larder in front of a gunicorn, each of them real."""

    def __init__(self, larder: Process, gunicorn: Process, port: int, admin: str) -> None:
        self.larder = larder
        self.gunicorn = gunicorn
        self.port = port
        self.admin = admin

    def ask(self, path: str, method: str = "GET", body: str | None = None, **fields: str) -> Reply:
        """Asks Larder; `Accept_Language` is the field Accept-Language."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            sent = {name.replace("_", "-"): value for name, value in fields.items()}
            if body is not None:
                sent["Content-Type"] = "application/x-www-form-urlencoded"
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Reply(response.status, response.getheaders(), response.read())
        finally:
            connection.close()


StartSite = Callable[..., Site]


StartLarder = Callable[..., tuple[Process, int, str]]


@pytest.fixture(scope="module")
def start_larder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartLarder]:
    """Starts Larders. Returns process, port and address of the admin listener."""
    started: list[Process] = []

    def start(upstream: str = "http://127.0.0.1:9", *sets: str) -> tuple[Process, int, str]:
        base = ["server.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0", "durable.url=off", f"upstream.url={upstream}"]
        command = [larder_binary()]
        for setting in [*base, *sets]:
            command += ["--set", setting]
        env = {name: value for name, value in os.environ.items() if not name.startswith("LARDER_")}
        process = Process(command, r"admin on \S+", env, tmp_path_factory.mktemp("larder"))
        started.append(process)
        port = int(process.wait_for(r"listening on 127\.0\.0\.1:(\d+)").group(1))
        admin = process.wait_for(r"admin on (\S+)").group(1)
        return process, port, admin if admin.startswith("unix:") else f"http://{admin}"

    yield start
    for process in started:
        process.stop()


@pytest.fixture(scope="module")
def start_site(tmp_path_factory: pytest.TempPathFactory, start_larder: StartLarder) -> Iterator[StartSite]:
    """Starts a Larder and gunicorn with an application, which is the text of a module with an `app`."""
    started: list[Process] = []

    def start(source: str, *sets: str, workers: int = 2, options: tuple[str, ...] = (), **env: str) -> Site:
        directory = tmp_path_factory.mktemp("site")
        larder, port, admin = start_larder(f"unix:{directory / 'app.sock'}", *sets)
        (directory / "application.py").write_text(source)
        command = [sys.executable, "-m", "gunicorn", "--bind", "unix:app.sock", "--workers", str(workers)]
        # Newer ones open a socket in the home directory.
        quiet = ["--no-control-socket"] if int(version("gunicorn").split(".")[0]) >= 25 else []
        command += ["--worker-class", "gthread", "--threads", "4", *quiet, *options, "application:app"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LARDER_")}
        path = os.pathsep.join([str(ROOT / "python"), str(directory)])
        told = {"LARDER_ADMIN": admin, "SHOP": str(directory / "shop.db"), **env}
        gunicorn = Process(command, r"Booting worker", {**inherited, "PYTHONPATH": path, **told}, directory)
        started.append(gunicorn)
        return Site(larder, gunicorn, port, admin)

    yield start
    for process in started:
        process.stop()


class FakeAdmin:
    """An admin listener that a test scripts: it notes what it is asked, and answers as it is told."""

    def __init__(self, unix: Path | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.fields: list[dict[str, str]] = []
        self.connections = 0
        #: Statuses for the next requests; afterwards 200.
        self.statuses: list[int] = []
        #: While it is set, nothing is answered.
        self.gate = threading.Event()
        self.gate.set()
        self._changed = threading.Condition()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                with outer._changed:
                    outer.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._changed:
                    outer.asked.append({**body, "path": self.path} if self.path != "/purge" else body)
                    outer.fields.append(dict(self.headers.items()))
                    status = outer.statuses.pop(0) if outer.statuses else 200
                    outer._changed.notify_all()
                outer.gate.wait(20)
                told = {"purged": body} if status == 200 else {"error": "as the test wants it"}
                data = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                # One write: two would wait for each other (Nagle's algorithm and delayed acknowledgements).
                self._headers_buffer += [b"\r\n", data]  # type: ignore[attr-defined]
                self.flush_headers()

            def address_string(self) -> str:
                return "test"

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 64

        if unix is None:
            self._server: Any = Server(("127.0.0.1", 0), Handler)
            self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        else:

            class UnixServer(Server):
                address_family = socket.AF_UNIX

                def server_bind(self) -> None:
                    self.socket.bind(self.server_address)

            self._server = UnixServer(str(unix), Handler)  # type: ignore[arg-type]
            self.address = f"unix:{unix}"
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()

    def wait_for(self, count: int, timeout: float = 10.0) -> list[dict[str, Any]]:
        """Waits until it was asked so often."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.asked) >= count, timeout), self.asked
            return list(self.asked)

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    """A scripted admin listener."""
    fake = FakeAdmin()
    yield fake
    fake.close()


@pytest.fixture
def fake_admin(tmp_path: Path) -> Iterator[Callable[..., FakeAdmin]]:
    """Makes scripted admin listeners."""
    with ExitStack() as stack:

        def make(unix: bool = False) -> FakeAdmin:
            fake = FakeAdmin(tmp_path / "fake.sock" if unix else None)
            stack.callback(fake.close)
            return fake

        yield make


@pytest.fixture
def free_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps one test's Larder from being that of the next."""
    import weakref

    from larder import _purging

    for name in [name for name in os.environ if name.startswith("LARDER_") and name != "LARDER_BINARY"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(_purging, "_process", None)
    monkeypatch.setattr(_purging, "_clients", weakref.WeakSet())
    yield
