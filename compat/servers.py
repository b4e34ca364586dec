"""Starts the servers that the suites talk to: Debian's redis-server, and Larder in three settings."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Nothing stays in memory, so every value is read from the durable tier or its queue.
SMALL = "0"
# Values get to a bucket while the test that set them runs. As shipped they would wait for five seconds, and the queue
# would answer for them.
PROMPT = {"durable.pack_interval": "50ms"}
BUCKET = "compat"
PATIENCE = 30.0


class Failure(Exception):
    """The run can't go on; the text says why."""


@dataclass(frozen=True)
class Running:
    """A server that answers on `port`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    # Larder's admin listener; 0 for a server that has none.
    admin: int = 0

    def metric(self, name: str) -> float:
        """Returns the sum of a metric of Larder over all its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^{name} (\S+)$", text, re.MULTILINE))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def is_ready(port: int) -> bool:
    """Says whether the server on `port` answers PING."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(b"*1\r\n$4\r\nPING\r\n")
        return connection.recv(64) == b"+PONG\r\n"
    return False


def _wait(process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failure(f"{what} does not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)


@contextlib.contextmanager
def _started(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, cwd=log.parent)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _unused(port: int) -> int:
    if accepts(port):
        raise Failure(f"something listens on 127.0.0.1:{port}, which the suite wants for itself: stop it first")
    return port


@contextlib.contextmanager
def redis(port: int) -> Iterator[Running]:
    """Runs redis-server, without anything on disk."""
    binary = shutil.which("redis-server")
    if not binary:
        raise Failure("redis-server is not installed: apt-get install redis-server redis-tools")
    with tempfile.TemporaryDirectory(prefix="larder-compat-") as name:
        log = Path(name) / "redis.log"
        command = [binary, "--bind", "127.0.0.1", "--port", str(_unused(port)), "--save", "", "--appendonly", "no", "--dir", name]
        with _started(command, log) as process:
            _wait(process, log, lambda: is_ready(port), "redis-server")
            yield Running(process, port, log)


@contextlib.contextmanager
def bucket(moto: Path, name: str = BUCKET) -> Iterator[dict[str, str]]:
    """Runs an S3 server with an empty bucket; returns the settings that make it the durable tier."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="larder-compat-s3-") as directory:
        log = Path(directory) / "s3.log"
        with _started([str(moto), "-H", "127.0.0.1", "-p", str(port)], log) as process:
            _wait(process, log, lambda: accepts(port), str(moto))
            # moto takes any signature, so this needs no client.
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/{name}", method="PUT",
                headers={"Authorization": "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request"},
            )
            urllib.request.urlopen(request, timeout=PATIENCE).close()
            yield {"durable.url": f"s3://{name}/cache", "durable.endpoint_url": f"http://127.0.0.1:{port}", "durable.region": "us-east-1"}


def environment() -> dict[str, str]:
    """Returns this process's environment with the credentials that `bucket` takes."""
    return os.environ | {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


@contextlib.contextmanager
def larder(binary: Path, port: int, settings: dict[str, str], directory: Path) -> Iterator[Running]:
    """Runs Larder with its `[resp]` listener on `port`, and these settings over its defaults."""
    admin = free_port()
    values = {
        "server.listen": f"127.0.0.1:{free_port()}",
        "admin.listen": f"127.0.0.1:{admin}",
        "resp.listen": f"127.0.0.1:{_unused(port)}",
        "durable.url": f"file:{directory / 'durable'}",
    } | settings
    log = directory / "larder.log"
    command = [str(binary.resolve()), *(word for key, value in values.items() for word in ("--set", f"{key}={value}"))]
    with _started(command, log, environment()) as process:
        _wait(process, log, lambda: is_ready(port), "larder")
        yield Running(process, port, log, admin)
