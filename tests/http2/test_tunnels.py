"""WebSockets over HTTP/2 (RFC 8441), to an origin that speaks HTTP/1.1."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import threading

import pytest

from wire import CANCEL, Client, Fields, Larder, Origin, Request, answer, eventually


def accepts(connection: socket.socket, request: Request) -> bool:
    """A WebSocket that echoes bytes, after what RFC 6455 §4.2 asks for."""
    [key] = request.all("sec-websocket-key")
    assert request.line.startswith(b"GET ") and request.line.endswith(b" HTTP/1.1")
    assert request.all("upgrade") == ["websocket"] and request.all("connection") == ["upgrade"]
    assert len(base64.b64decode(key, validate=True)) == 16
    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    )
    while read := connection.recv(1 << 16):
        if read == b"die":
            break
        connection.sendall(read)
    return False


def connect(path: str = "/ws", protocol: str = "websocket", more: Fields = []) -> Fields:
    return [
        (":method", "CONNECT"),
        (":protocol", protocol),
        (":scheme", "http"),
        (":authority", "site.example"),
        (":path", path),
        ("sec-websocket-version", "13"),
        ("origin", "http://site.example"),
        *more,
    ]


@pytest.fixture(autouse=True)
def _websocket(origin: Origin) -> None:
    origin.answers["/ws"] = accepts


def opened(client: Client, more: Fields = []) -> int:
    stream = client.begin(connect(more=more), end=False)
    client.until(lambda: client.streams[stream].status or client.streams[stream].is_over)
    return stream


def test_bytes_go_both_ways(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    assert client.settings[8] == 1, "SETTINGS_ENABLE_CONNECT_PROTOCOL"
    stream = opened(client, [("sec-websocket-protocol", "chat"), ("cookie", "a=1")])
    got = client.streams[stream]
    assert (got.status, got.get("sec-websocket-protocol")) == (200, "chat")
    assert not {"sec-websocket-accept", "upgrade", "connection", "content-length"} & {name for name, _ in got.fields}
    [request] = origin.requests
    assert request.all("via")[0].startswith("2.0 ") and request.all("host") == ["site.example"]
    assert request.all("cookie") == ["a=1"] and request.all("sec-websocket-version") == ["13"]
    client.data(stream, b"hello", end=False)
    client.until(lambda: got.body == b"hello")
    assert client.get("/hit").outcome == 200, "others on the same connection go on"
    client.data(stream, b"", end=True)
    client.until(lambda: got.is_over)
    assert got.outcome == 200
    assert any("status=200" in line or "status=101" in line for line in larder.log if "/ws" in line)


def test_more_than_a_window_and_many_at_once(larder: Larder) -> None:
    client = larder.client()
    streams = [opened(client) for _ in range(20)]
    sent = os.urandom(700_000)
    for stream in streams:
        client.data(stream, sent, end=False)
    for stream in streams:
        client.until(lambda: len(client.streams[stream].body) == len(sent))
        assert client.streams[stream].body == sent
        client.send(client.cancel(stream))


def test_either_side_may_close(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    stream = opened(client)
    client.data(stream, b"die", end=False)
    assert client.wait(stream).is_over, "the origin has closed"
    stream = opened(client)
    eventually("it is open", lambda: origin.open >= 1)
    client.send(client.cancel(stream))
    eventually("the origin hears of it", lambda: origin.open == 0)
    other = larder.client()
    opened(other)
    eventually("it is open", lambda: origin.open >= 1)
    other.close()
    eventually("the origin hears of it", lambda: origin.open == 0)


@pytest.mark.parametrize("settings", [["server.idle_timeout=1s"]])
def test_a_tunnel_keeps_its_connection(larder: Larder) -> None:
    """A connection of which all that is left is a tunnel is not idle."""
    client = larder.client()
    stream = opened(client)
    client.read_for(5)
    assert not client.is_closed
    client.data(stream, b"still here", end=False)
    client.until(lambda: client.streams[stream].body)
    assert client.streams[stream].body == b"still here"


@pytest.mark.parametrize("settings", [["server.tunnel_timeout=1s"]])
def test_an_idle_tunnel_ends(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    stream = opened(client)
    assert client.wait(stream).reset == CANCEL
    assert client.get("/hit").outcome == 200
    eventually("the origin hears of it", lambda: origin.open <= 1)


@pytest.mark.parametrize("status", ["400 Bad Request", "403 Forbidden", "426 Upgrade Required", "200 OK"])
def test_refusals_pass(larder: Larder, origin: Origin, status: str) -> None:
    def refuses(connection: socket.socket, request: Request) -> bool:
        connection.sendall(
            answer(b"no", "Sec-WebSocket-Version: 13", "Upgrade: websocket", "Connection: upgrade", status=status)
        )
        return True

    origin.answers["/ws"] = refuses
    client = larder.client()
    got = client.wait(client.begin(connect(), end=False))
    if status.startswith("200"):
        assert got.status != 200, "a client would take it for an open tunnel"
    else:
        assert (got.status, got.body) == (int(status[:3]), b"no")
    assert "upgrade" not in dict(got.fields)
    assert client.get("/hit").outcome == 200


@pytest.mark.parametrize("protocol", ["h2c", "connect-udp", "websocket, h2c", "", "web socket", "HTTP/2.0"])
def test_other_protocols_are_refused(larder: Larder, origin: Origin, protocol: str) -> None:
    client = larder.client()
    got = client.wait(client.begin(connect(protocol=protocol), end=False))
    assert got.status == 501 or got.reset == 1
    assert not origin.requests


def test_tunnels_that_are_none(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    for fields in (
        [(":method", "CONNECT"), (":authority", "site.example:443")],
        [(":method", "CONNECT"), (":authority", "127.0.0.1:22")],
        connect(more=[("host", "evil.example")]),
        [field for field in connect() if field[0] != ":path"],
        [field for field in connect() if field[0] != ":scheme"],
        [field for field in connect() if field[0] != ":authority"],
        [(":method", "GET") if name == ":method" else (name, value) for name, value in connect()],
        connect(more=[("upgrade", "websocket")]),
    ):
        got = client.wait(client.begin(fields, end=False))
        assert got.reset is not None or got.status >= 400, fields
    assert not origin.requests
    assert client.get("/hit").outcome == 200


def test_a_client_cannot_choose_the_key(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    opened(client, [("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==")])
    assert origin.requests[0].all("sec-websocket-key") != ["AAAAAAAAAAAAAAAAAAAAAA=="]


@pytest.mark.parametrize("settings", [["server.drain_timeout=3s"]])
def test_tunnels_end_with_the_process(larder: Larder) -> None:
    client = larder.client()
    stream = opened(client)
    larder.process.terminate()
    client.data(stream, b"hello", end=False)
    client.until(lambda: client.streams[stream].body)
    assert larder.process.wait(10) == 0


def test_a_tunnel_that_nobody_reads_holds_little(larder: Larder, origin: Origin) -> None:
    stopped = threading.Event()

    def pours(connection: socket.socket, request: Request) -> bool:
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        while not stopped.is_set():
            connection.sendall(b"z" * 65536)
        return False

    origin.answers["/ws"] = pours
    before = larder.memory("VmRSS")
    client = larder.client(receive_buffer=4096)
    for _ in range(100):
        client.begin(connect(), end=False)
    eventually("all are open", lambda: len(origin.requests) == 100)
    stopped.wait(2)
    taken = larder.memory("VmRSS") - before
    print(f"memory {taken / (1 << 20):+.1f} MiB")
    assert taken < 14 << 20
    stopped.set()
    client.close()
