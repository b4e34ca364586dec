#!/usr/bin/env python3
"""What it takes of Larder's memory to pass on something very large.

    cargo build --release && bench/large.py --larder target/release/larder

A response of 2 GiB of stated length, one in chunks, and an upload of 2 GiB go through Larder;
the responses say that they may be stored, and are too large for memory, so Larder also writes them
to its durable tier as they pass. The receiving side pauses once, for long enough to have everything
pile up in between if anything in between would take it. Every byte is checked on arrival: length
and SHA-256.

Prints a line each, with Larder's resident memory before, at its peak, and after; the exit code is
1 when a peak is more than 100 MiB above what Larder had when it was idle, or a byte is wrong.
Needs Linux, and Python 3.9.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import multiprocessing
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterator

from common import free_port, with_settings

MIB = 1 << 20
BLOCK = MIB
ALLOWED = 100 * MIB
# Where the receiving side pauses, and for how long.
PAUSE_AT = 64 * MIB
PAUSE = 1.0
START_DEADLINE = 20
TIMEOUT = 120


class Failure(Exception):
    """Something is wrong; the text says what."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, required=True, help="the binary")
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="how much each time (default: 2048)")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    try:
        return run(options.larder, options.size * MIB)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run(binary: Path, size: int) -> int:
    if not os.access(binary, os.X_OK):
        raise Failure(f"{binary} is not there to run. Build it: cargo build --release")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="larder-large-")))
        origin_port = stack.enter_context(origin())
        larder = stack.enter_context(Larder(binary.resolve(), directory, origin_port))
        # Threads, connections and the allocator's first pages are there once it has answered.
        download(larder.port, "/warm-up", MIB)
        idle = larder.memory("VmRSS")
        print(f"idle: {mib(idle)} resident")

        too_much = False
        for name, transfer in (
            ("response, Content-Length", lambda: download(larder.port, "/length", size)),
            ("response, chunked", lambda: download(larder.port, "/chunked", size)),
            ("upload, Content-Length", lambda: upload(larder.port, size, chunked=False)),
            ("upload, chunked", lambda: upload(larder.port, size, chunked=True)),
        ):
            before = larder.memory("VmRSS")
            larder.forget_peak()
            started = time.monotonic()
            transfer()
            seconds = time.monotonic() - started - PAUSE
            peak, after = larder.memory("VmHWM"), larder.memory("VmRSS")
            above = peak - idle
            too_much |= above > ALLOWED
            verdict = "TOO MUCH" if above > ALLOWED else "ok"
            print(
                f"{name}, {mib(size)} at {size / MIB / max(seconds, 0.001):.0f} MiB/s: resident {mib(before)} before, "
                f"{mib(peak)} at the peak, {mib(after)} after; {mib(above)} above idle: {verdict}",
                flush=True,
            )
    return 1 if too_much else 0


def mib(number: int) -> str:
    return f"{number / MIB:.1f} MiB" if number % MIB else f"{number // MIB} MiB"


class Larder:
    """Larder, running, and what the kernel says of its memory."""

    def __init__(self, binary: Path, directory: Path, origin_port: int):
        self.port = free_port()
        self._log = directory / "larder.log"
        settings = {
            "server.listen": f"127.0.0.1:{self.port}",
            "upstream.url": f"http://127.0.0.1:{origin_port}",
            "durable.url": f"file:{directory / 'durable'}",
            "admin.listen": "off",
        }
        self._command = with_settings(binary, settings)

    def __enter__(self) -> "Larder":
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_DEADLINE
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise Failure(f"larder did not start:\n{self._log.read_text(errors='replace')}")
            time.sleep(0.02)

    def __exit__(self, *_exception: object) -> None:
        # What is under way when the benchmark fails is not worth waiting for.
        self._process.kill()
        self._process.wait()

    def memory(self, which: str) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.search(rf"{which}:\s+(\d+) kB", status)[1]) * 1024

    def forget_peak(self) -> None:
        # See proc(5): 5 sets the peak to what is resident now.
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")


# ---------------------------------------------------------------- content


def content(size: int) -> Iterator[memoryview]:
    """Blocks of bytes, no two of them alike, so that none can be lost, doubled or swapped unseen."""
    block = bytearray(hashlib.shake_256(b"larder").digest(BLOCK))
    for offset in range(0, size, BLOCK):
        struct.pack_into("<Q", block, 0, offset)
        yield memoryview(block)[: min(BLOCK, size - offset)]


class Receipt:
    """What has arrived."""

    def __init__(self) -> None:
        self.length = 0
        self._digest = hashlib.sha256()

    def take(self, piece: memoryview) -> None:
        if self.length < PAUSE_AT <= self.length + len(piece):
            time.sleep(PAUSE)
        self.length += len(piece)
        self._digest.update(piece)

    def check(self, what: str, size: int) -> None:
        verify(what, size, self.length, self.digest())

    def digest(self) -> str:
        return self._digest.hexdigest()


def verify(what: str, size: int, length: int, digest: str) -> None:
    if length != size:
        raise Failure(f"{what}: {length} bytes arrived of {size}")
    expected = hashlib.sha256()
    for block in content(size):
        expected.update(block)
    if digest != expected.hexdigest():
        raise Failure(f"{what}: {length} bytes arrived, and they are not the ones that were sent")


# ---------------------------------------------------------------- the client's side


def download(port: int, path: str, size: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    with contextlib.closing(connection):
        try:
            connection.request("GET", f"{path}?{size}")
            response = connection.getresponse()
            if response.status != 200:
                raise Failure(f"{path}: status {response.status}: {response.read(200)!r}")
            receipt, buffer = Receipt(), memoryview(bytearray(BLOCK))
            while count := response.readinto(buffer):
                receipt.take(buffer[:count])
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"{path} broke off: {error!r}") from error
    receipt.check(path, size)


def upload(port: int, size: int, *, chunked: bool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    headers = {} if chunked else {"Content-Length": str(size)}
    with contextlib.closing(connection):
        try:
            connection.request("PUT", "/upload", body=content(size), headers=headers, encode_chunked=chunked)
            response = connection.getresponse()
            answer = response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"the upload broke off: {error!r}") from error
    if response.status != 200:
        raise Failure(f"the upload: status {response.status}: {answer}")
    length, digest = answer.split()
    verify("the upload", size, int(length), digest)


# ---------------------------------------------------------------- the origin's side


@contextlib.contextmanager
def origin() -> Iterator[int]:
    """An origin in a process of its own, so that it and the client do not share one interpreter."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=16)
    process = multiprocessing.get_context("fork").Process(target=serve, args=(listener,), daemon=True)
    process.start()
    try:
        yield listener.getsockname()[1]
    finally:
        process.kill()
        process.join()
        listener.close()


def serve(listener: socket.socket) -> None:
    # The benchmark's Ctrl-C reaches this process as well, and is not its business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        connection, _ = listener.accept()
        # One at a time is enough: a connection has one exchange.
        with connection, contextlib.suppress(OSError):
            connection.settimeout(TIMEOUT)
            exchange(connection)


def exchange(connection: socket.socket) -> None:
    stream = connection.makefile("rb", buffering=BLOCK)
    with stream:
        method, target, _ = stream.readline().decode("latin-1").split()
        fields = http.client.parse_headers(stream)
        if method == "PUT":
            receipt = Receipt()
            for piece in request_body(stream, fields):
                receipt.take(piece)
            answer = f"{receipt.length} {receipt.digest()}".encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
            return
        path, size = target.split("?")
        head = "HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: public, max-age=60\r\n"
        if path == "/chunked":
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            for block in content(int(size)):
                connection.sendall(b"%x\r\n" % len(block))
                connection.sendall(block)
                connection.sendall(b"\r\n")
            connection.sendall(b"0\r\n\r\n")
        else:
            connection.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode())
            for block in content(int(size)):
                connection.sendall(block)


def request_body(stream: "socket.SocketIO", fields: http.client.HTTPMessage) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(BLOCK))

    def pieces(length: int) -> Iterator[memoryview]:
        while length:
            count = stream.readinto(buffer[: min(length, BLOCK)])
            if not count:
                raise ConnectionError("the request's body broke off")
            length -= count
            yield buffer[:count]

    if "Content-Length" in fields:
        yield from pieces(int(fields["Content-Length"]))
        return
    while length := int(stream.readline().split(b";")[0], 16):
        yield from pieces(length)
        stream.readline()
    # No trailers are sent; the empty line ends the body.
    stream.readline()


if __name__ == "__main__":
    sys.exit(main())
