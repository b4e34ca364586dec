"""Parts of the tests of HTTP/2: an origin that keeps the bytes it got, the real binary in front of it, and a
client that sends whatever frames it is told to."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import hpack

BINARY = os.environ.get("LARDER_BINARY", str(Path(__file__).parents[2] / "target/quick/larder"))
DEADLINE = 30.0

# RFC 9113 §6.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
# RFC 9113 §7.
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, REFUSED_STREAM, CANCEL = 0, 1, 3, 5, 7, 8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)
ENABLE_CONNECT_PROTOCOL = 8

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
AUTHORITY = "site.example"

Fields = Sequence[tuple[str | bytes, str | bytes]]


def eventually(what: str, condition: Callable[[], object]) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str | bytes, value: str | bytes) -> bytes:
    """A field as HPACK has it without table and without Huffman's code, so that any bytes can be sent."""
    name, value = (text.encode() if isinstance(text, str) else text for text in (name, value))
    return b"\x00" + _integer(len(name)) + name + _integer(len(value)) + value


def _integer(number: int) -> bytes:
    if number < 127:
        return bytes([number])
    number, encoded = number - 127, bytearray([127])
    while number >= 128:
        encoded.append(number % 128 + 128)
        number //= 128
    return bytes([*encoded, number])


def block(fields: Iterable[tuple[str | bytes, str | bytes]]) -> bytes:
    return b"".join(literal(name, value) for name, value in fields)


def head(path: str | bytes = "/", method: str = "GET", more: Fields = [], authority: str = AUTHORITY) -> Fields:
    return [(":method", method), (":scheme", "http"), (":authority", authority), (":path", path), *more]


def context(protocol: str) -> ssl.SSLContext:
    """TLS with a server of whatever certificate."""
    made = ssl.create_default_context()
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.set_alpn_protocols([protocol])
    return made


class Request(NamedTuple):
    """A request as the origin got it."""

    line: bytes
    fields: list[tuple[str, str]]
    body: bytes
    raw: bytes

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.fields if known == name]


class Origin:
    """An application that speaks HTTP/1.1 as bytes. It keeps what it gets, and answers by path."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[Request] = []
        self.open = 0
        self.working = 0
        self.gate = threading.Event()
        self.lock = threading.Lock()
        self.answers: dict[str, Callable[[socket.socket, Request], bool | None]] = {}
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def close(self) -> None:
        self.gate.set()
        self._listener.close()

    def _serve(self, connection: socket.socket) -> None:
        with self.lock:
            self.open += 1
        try:
            with connection, contextlib.suppress(OSError):
                buffer = bytearray()
                while True:
                    while b"\r\n\r\n" not in buffer:
                        read = connection.recv(1 << 16)
                        if not read:
                            return
                        buffer += read
                    if not self._answer(connection, buffer):
                        return
        finally:
            with self.lock:
                self.open -= 1

    def _answer(self, connection: socket.socket, buffer: bytearray) -> bool:
        end = buffer.index(b"\r\n\r\n") + 4
        raw = bytes(buffer[:end])
        del buffer[:end]
        line, *lines = raw[:-4].split(b"\r\n")
        fields = []
        for text in lines:
            name, _, value = text.decode("latin-1").partition(":")
            fields.append((name.lower(), value[1:] if value.startswith(" ") else value))
        stated = dict(fields)
        body = b""
        if stated.get("expect") != "never":
            if "chunked" in stated.get("transfer-encoding", ""):
                body = self._chunks(connection, buffer)
            else:
                length = int(stated.get("content-length", 0))
                while len(buffer) < length:
                    read = connection.recv(1 << 16)
                    if not read:
                        return False
                    buffer += read
                body = bytes(buffer[:length])
                del buffer[:length]
        request = Request(line, fields, body, raw)
        with self.lock:
            self.requests.append(request)
        path = line.split(b" ")[1].decode("latin-1")
        with self.lock:
            self.working += 1
        try:
            return self._respond(connection, request, path)
        finally:
            with self.lock:
                self.working -= 1

    def _respond(self, connection: socket.socket, request: Request, path: str) -> bool:
        own = self.answers.get(path.partition("?")[0])
        if own is not None:
            return own(connection, request) is not False
        line, *lines = request.raw[:-4].split(b"\r\n")
        is_head = line.startswith(b"HEAD ")
        if path.startswith("/hit"):
            connection.sendall(answer(b"x" * 1024, "Cache-Control: max-age=600", is_head=is_head))
        elif path.startswith("/size/"):
            connection.sendall(
                answer(b"y" * int(path.partition("?")[0].split("/")[2]), "Cache-Control: no-store", is_head=is_head)
            )
        elif path.startswith("/gate"):
            self.gate.wait(DEADLINE)
            connection.sendall(answer(b"late", "Cache-Control: no-store"))
        else:
            text = b"".join(b"%s\n" % part for part in (line, *lines, b"", request.body))
            connection.sendall(answer(text, "Cache-Control: no-store", is_head=is_head))
        return True

    @staticmethod
    def _chunks(connection: socket.socket, buffer: bytearray) -> bytes:
        body = bytearray()
        while True:
            while b"\r\n" not in buffer:
                buffer += connection.recv(1 << 16) or b"0\r\n\r\n"
            line, _, _ = bytes(buffer).partition(b"\r\n")
            length = int(line.split(b";")[0], 16)
            need = len(line) + 2 + length + 2
            while len(buffer) < need:
                read = connection.recv(1 << 16)
                if not read:
                    return bytes(body)
                buffer += read
            body += buffer[len(line) + 2 : len(line) + 2 + length]
            del buffer[:need]
            if length == 0:
                return bytes(body)

    def seen(self, path: str) -> list[Request]:
        """The requests for a path."""
        with self.lock:
            return [request for request in self.requests if request.line.split(b" ")[1] == path.encode()]


def answer(body: bytes, *fields: str, status: str = "200 OK", is_head: bool = False) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: text/plain", *fields, "", ""]
    return "\r\n".join(lines).encode() + (b"" if is_head else body)


class Larder:
    """The binary, running in front of an origin."""

    def __init__(self, origin: int, directory: Path, *settings: str, config: str = "") -> None:
        """`config` is the text of a file: tables of tables can't be set one by one."""
        self.has_tls = "tls.certificate" in config
        file = directory / "larder.toml"
        file.write_text(config)
        sets = [
            'server.listen=["http://127.0.0.1:0"]', "server.h2c=true", "server.threads=2", "admin.listen=127.0.0.1:0",
            f"upstream.url=http://127.0.0.1:{origin}", "log.access=true", *settings,
        ]  # fmt: skip
        command = [BINARY, "--config", str(file)] + [part for text in sets for part in ("--set", text)]
        env = {"PATH": os.environ["PATH"], "TMPDIR": str(directory)}
        self.process = subprocess.Popen(
            command, cwd=directory, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.log: list[str] = []
        self.port = self.admin = 0
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            if found := re.search(r"listening on (?:https?://)?127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
            if found := re.search(r"admin on (?:http://)?127\.0\.0\.1:(\d+)", line):
                self.admin = int(found[1])
            if self.port and self.admin:
                break
        assert self.port and self.admin, "".join(self.log)
        threading.Thread(target=self._keep_log, daemon=True).start()

    def _keep_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def client(self, **settings: int) -> Client:
        return Client(self.port, has_tls=self.has_tls, **settings)

    def metric(self, name: str, label: str = "") -> int:
        """The sum of a metric's values with a label."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=DEADLINE)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        found = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*{re.escape(label)}[^}}]*\}})? (\S+)$", text, re.M)
        assert found, f"no metric {name}"
        return int(sum(float(value) for value in found))

    def unparsed(self, reason: str) -> int:
        return self.metric("larder_requests_unparsed_total", f'reason="{reason}"')

    def memory(self, which: str = "VmHWM") -> int:
        """Bytes, as the kernel says."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{which}:\s+(\d+) kB", status, re.M)[1]) << 10  # type: ignore[index]

    def cpu(self) -> float:
        """Seconds of processor time."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def http1(self, raw: bytes) -> bytes:
        """The answer to the bytes of a request of HTTP/1.1 that ends its connection."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)
        if self.has_tls:
            connection = context("http/1.1").wrap_socket(connection, server_hostname=AUTHORITY)
        with connection:
            connection.sendall(raw)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@dataclass
class Stream:
    """The frames that have come on a stream."""

    status: int = 0
    fields: list[tuple[str, str]] = field(default_factory=list)
    informational: list[tuple[int, list[tuple[str, str]]]] = field(default_factory=list)
    trailers: list[tuple[str, str]] | None = None
    body: bytearray = field(default_factory=bytearray)
    reset: int | None = None
    is_ended: bool = False

    def get(self, name: str) -> str | None:
        return dict(self.fields).get(name)

    @property
    def is_over(self) -> bool:
        return self.is_ended or self.reset is not None

    @property
    def outcome(self) -> int | str:
        """The status of a whole response, or how it broke off."""
        return self.status if self.reset in (None, NO_ERROR) and self.is_ended else f"reset {self.reset}"


class Client:
    """A connection of HTTP/2 that is as good or as bad as it is told to be."""

    def __init__(self, port: int, window: int = 1 << 30, connection_window: int = 1 << 30, receive_buffer: int = 0,
                 reads: bool = True, has_tls: bool = False, **settings: int) -> None:  # fmt: skip
        self.socket: socket.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if has_tls:
            wrapped = context("h2").wrap_socket(self.socket, server_hostname=AUTHORITY)
            assert wrapped.selected_alpn_protocol() == "h2"
            self.socket = wrapped
        self.streams: defaultdict[int, Stream] = defaultdict(Stream)
        self.next = 1
        self.goaway: int | None = None
        self.last_stream: int | None = None
        self.is_closed = False
        self.settings: dict[int, int] = {}
        self.pongs: list[bytes] = []
        self.windows: defaultdict[int, int] = defaultdict(lambda: 0)
        self.acks = True
        self._decoder = hpack.Decoder(max_header_list_size=1 << 20)
        self._buffer = bytearray()
        codes = {"header_table_size": HEADER_TABLE_SIZE}
        pairs = [(INITIAL_WINDOW_SIZE, window), *((codes[name], value) for name, value in settings.items())]
        opening = PREFACE + frame(SETTINGS, payload=b"".join(struct.pack(">HI", *pair) for pair in pairs))
        if connection_window > 65535:
            opening += frame(WINDOW_UPDATE, payload=struct.pack(">I", connection_window - 65535))
        self.send(opening)
        if reads:
            self.until(lambda: self.settings)

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def try_send(self, *frames: bytes) -> bool:
        """Sends; returns whether the other end still takes it."""
        try:
            self.send(*frames)
            return True
        except OSError:
            self.is_closed = True
            return False

    def begin(self, fields: Fields, end: bool = True, headers: bytes | None = None) -> int:
        stream, self.next = self.next, self.next + 2
        rest = block(fields) if headers is None else headers
        kind, flags, frames = HEADERS, END_STREAM if end else 0, []
        while rest or kind == HEADERS:
            piece, rest = rest[:16384], rest[16384:]
            frames.append(frame(kind, flags | (0 if rest else END_HEADERS), stream, piece))
            kind, flags = CONTINUATION, 0
        self.send(*frames)
        return stream

    def data(self, stream: int, body: bytes, end: bool = True) -> None:
        """Sends content as far as there is window for it."""
        while True:
            room = min(self.room(stream), self.room(0), 16384, len(body))
            if room <= 0 and body:
                if not self.step(DEADLINE) or self.streams[stream].is_over:
                    return
                continue
            piece, body = body[:room], body[room:]
            is_end = end and not body
            if not self.try_send(frame(DATA, END_STREAM if is_end else 0, stream, piece)):
                return
            self.windows[stream] -= len(piece)
            self.windows[0] -= len(piece)
            if not body:
                return

    def room(self, stream: int) -> int:
        first = 65535 if stream == 0 else self.settings.get(INITIAL_WINDOW_SIZE, 65535)
        return first + self.windows[stream]

    def get(self, path: str | bytes = "/", more: Fields = [], **kind: str) -> Stream:
        return self.wait(self.begin(head(path, more=more, **kind)))

    def ask(self, fields: Fields, body: bytes | None = None) -> Stream:
        stream = self.begin(fields, end=body is None)
        if body is not None:
            self.data(stream, body)
        return self.wait(stream)

    def wait(self, stream: int) -> Stream:
        self.until(lambda: self.streams[stream].is_over)
        return self.streams[stream]

    def until(self, condition: Callable[[], object], seconds: float = DEADLINE) -> None:
        """Reads until a condition holds, or the connection has ended."""
        deadline = time.monotonic() + seconds
        while not condition() and not self.is_closed:
            left = deadline - time.monotonic()
            assert left > 0 and (self.step(left) or time.monotonic() < deadline), "nothing came of it in time"

    def read_for(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.is_closed and (left := deadline - time.monotonic()) > 0:
            self.step(left)

    def step(self, seconds: float, most: int = 1 << 16) -> bool:
        """Reads once. Returns whether there was something."""
        self.socket.settimeout(max(seconds, 0.001))
        try:
            read = self.socket.recv(most)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError:
            read = b""
        finally:
            self.socket.settimeout(DEADLINE)
        if not read:
            self.is_closed = True
            for stream in self.streams.values():
                if not stream.is_over:
                    stream.reset = -1
            return True
        self._buffer += read
        while len(self._buffer) >= 9:
            length = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + length:
                break
            kind, flags, number = self._buffer[3], self._buffer[4], int.from_bytes(self._buffer[5:9], "big")
            payload = bytes(self._buffer[9 : 9 + length])
            del self._buffer[: 9 + length]
            self._take(kind, flags, number, payload)
        return True

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        stream = self.streams[number] if number else Stream()
        if kind == DATA:
            stream.body += payload
            stream.is_ended |= bool(flags & END_STREAM)
        elif kind in (HEADERS, CONTINUATION):
            if not flags & END_HEADERS:
                self._partial = getattr(self, "_partial", b"") + payload
                self._ends = flags & END_STREAM
                return
            payload = getattr(self, "_partial", b"") + payload
            flags |= getattr(self, "_ends", 0)
            self._partial, self._ends = b"", 0
            fields = [(str(name), str(value)) for name, value in self._decoder.decode(payload)]
            status = int(dict(fields).get(":status", 0))
            if 100 <= status < 200:
                stream.informational.append((status, fields))
            elif stream.status:
                stream.trailers = fields
            else:
                stream.status, stream.fields = status, fields
            stream.is_ended |= bool(flags & END_STREAM)
        elif kind == RST_STREAM:
            stream.reset = int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            self.settings |= {code: value for code, value in struct.iter_unpack(">HI", payload)}
            if self.acks:
                self.try_send(frame(SETTINGS, ACK))
        elif kind == PING:
            if flags & ACK:
                self.pongs.append(payload)
            elif self.acks:
                self.try_send(frame(PING, ACK, payload=payload))
        elif kind == GOAWAY:
            self.last_stream, self.goaway = struct.unpack(">II", payload[:8])
        elif kind == WINDOW_UPDATE:
            self.windows[number] += int.from_bytes(payload, "big")

    def give(self, stream: int, bytes: int) -> bytes:
        return frame(WINDOW_UPDATE, stream=stream, payload=struct.pack(">I", bytes))

    def cancel(self, stream: int, why: int = CANCEL) -> bytes:
        return frame(RST_STREAM, stream=stream, payload=struct.pack(">I", why))

    def close(self) -> None:
        self.socket.close()


class Bystander:
    """Asks for hits by HTTP/1.1 and HTTP/2 while something else goes on, each time by connections of its own."""

    def __init__(self, larder: Larder) -> None:
        self._larder = larder
        self._stop = threading.Event()
        self.latencies: list[float] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                client = self._larder.client()
                status = client.get("/hit").outcome
                client.close()
                text = self._larder.http1(b"GET /hit HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n")
                if status != 200 or not text.startswith(b"HTTP/1.1 200"):
                    self.failures.append(f"{status} {text[:40]!r}")
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))
            self.latencies.append(time.monotonic() - started)
            self._stop.wait(0.02)

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        eventually("others are served", lambda: len(self.latencies) >= 3)
        self._stop.set()
        self._thread.join(DEADLINE)


@contextlib.contextmanager
def attack(larder: Larder, memory: int = 64 << 20, latency: float = 1.0) -> Iterator[None]:
    """Checks that what goes on inside costs no more memory than that, and keeps nobody else waiting."""
    larder.client().get("/hit")
    Path(f"/proc/{larder.process.pid}/clear_refs").write_text("5")
    before, spent, started = larder.memory("VmRSS"), larder.cpu(), time.monotonic()
    with Bystander(larder) as others:
        yield
    taken = larder.memory() - before
    slowest = max(others.latencies)
    print(f"memory {taken / (1 << 20):+.1f} MiB, processor {larder.cpu() - spent:.2f} s of {time.monotonic() - started:.2f} s, "
          f"others {sorted(others.latencies)[len(others.latencies) // 2] * 1000:.1f} ms, {slowest * 1000:.1f} ms at most")  # fmt: skip
    assert larder.process.poll() is None, "".join(larder.log[-20:])
    assert not others.failures, others.failures[:5]
    assert taken < memory, f"{taken >> 20} MiB"
    assert slowest < latency, f"{slowest:.3f} s"
