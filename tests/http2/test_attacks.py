"""Attacks by frames: each costs little memory and keeps nobody else waiting."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from wire import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PADDED,
    PING,
    PRIORITY,
    PROTOCOL_ERROR,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    Client,
    Larder,
    Origin,
    attack,
    block,
    eventually,
    frame,
    head,
    literal,
)

MIB = 1 << 20


def flood(client: Client, frames: bytes, times: int) -> None:
    """Sends frames over and over, and reads what comes, until the other end has had enough."""
    for _ in range(times):
        if not client.try_send(frames):
            break
        while client.step(0):
            if client.is_closed:
                return
    if not client.is_closed:
        client.read_for(3)


def is_given_up(larder: Larder, client: Client) -> None:
    client.until(lambda: client.is_closed)
    assert client.goaway in (ENHANCE_YOUR_CALM, PROTOCOL_ERROR, None), client.goaway


def test_rapid_reset(larder: Larder, origin: Origin) -> None:
    """Requests that are reset at once (CVE-2023-44487), those of misses and of hits."""
    with attack(larder):
        for path in ("/hit", "/gate/reset"):
            client = larder.client()
            for _ in range(200):
                frames = []
                for _ in range(50):
                    stream, client.next = client.next, client.next + 2
                    fields = block(head(f"{path}?{stream}"))
                    frames += [frame(HEADERS, END_HEADERS | END_STREAM, stream, fields), client.cancel(stream)]
                if not client.try_send(*frames):
                    break
                while client.step(0) and not client.is_closed:
                    pass
            is_given_up(larder, client)
    eventually("both are counted", lambda: larder.unparsed("flood") == 2)
    assert len(origin.requests) < 1300, "the origin is asked for what was not reset before it was looked at"
    assert any("were reset" in line for line in larder.log)
    origin.gate.set()
    eventually("nothing is left of it", lambda: larder.metric("larder_flights") == 0 and origin.working == 0)


@pytest.mark.parametrize("how", ["overflow", "late", "too much data", "too little data", "self", "malformed"])
def test_made_you_reset(larder: Larder, origin: Origin, how: str) -> None:
    """Requests that the server has to reset (CVE-2025-8671), while the origin works on them."""
    with attack(larder):
        client = larder.client()
        for _ in range(3000):
            stream, client.next = client.next, client.next + 2
            path = f"/gate/{how.replace(' ', '')}/{stream}"
            first = frame(HEADERS, END_HEADERS | END_STREAM, stream, block(head(path)))
            post = head(path, "POST", [("content-length", "5")])
            match how:
                case "overflow":
                    frames = [first, client.give(stream, 0x7FFFFFFF)]
                case "late":
                    frames = [first, frame(DATA, 0, stream, b"x")]
                case "too much data":
                    frames = [frame(HEADERS, END_HEADERS, stream, block(post)), frame(DATA, 0, stream, b"x" * 6)]
                case "too little data":
                    frames = [frame(HEADERS, END_HEADERS, stream, block(post)), frame(DATA, END_STREAM, stream, b"x")]
                case "self":
                    priority = frame(PRIORITY, 0, stream, struct.pack(">IB", stream, 1))
                    frames = [first, priority]
                case _:
                    frames = [frame(HEADERS, END_HEADERS | END_STREAM, stream, block(post[:3]))]
            if not client.try_send(*frames) or client.goaway:
                break
            while client.step(0) and not client.is_closed:
                pass
        client.until(lambda: client.is_closed, 10)
        assert client.goaway in (ENHANCE_YOUR_CALM, PROTOCOL_ERROR, STREAM_CLOSED), client.goaway
    assert len(origin.requests) <= 1300
    eventually("it is counted", lambda: larder.unparsed("flood") + larder.unparsed("malformed") >= 1)
    origin.gate.set()
    eventually("nothing is left of it", lambda: larder.metric("larder_flights") == 0 and origin.working == 0)


def test_continuation_flood(larder: Larder) -> None:
    """A head without end (CVE-2024-27316 and its like): of fields, of empty frames, of frames of a byte."""
    with attack(larder):
        for piece, more in (
            (block([("x", "y" * 1000)]) * 15, b""),
            (b"", b""),
            (literal("a", ""), b""),
            (b"\x82", b""),
        ):
            client = larder.client()
            client.send(frame(HEADERS, END_STREAM, 1, block(head())))
            frames = b"".join(frame(CONTINUATION, 0, 1, piece) for _ in range(50))
            flood(client, frames, 2000)
            assert client.is_closed, piece[:20]
        client = larder.client()
        client.send(frame(HEADERS, END_STREAM, 1, block(head())), frame(PING, payload=b"8 bytes."))
        client.until(lambda: client.is_closed)
        assert client.goaway == PROTOCOL_ERROR, "nothing may come in between"


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("settings", frame(SETTINGS, payload=struct.pack(">HI", INITIAL_WINDOW_SIZE, 5)) * 100),
        ("empty settings", frame(SETTINGS) * 100),
        ("acknowledgements", frame(SETTINGS, ACK) * 100),
        ("pings", frame(PING, payload=b"8 bytes.") * 100),
        ("pongs", frame(PING, ACK, payload=b"8 bytes.") * 100),
        ("priorities", b"".join(frame(PRIORITY, 0, n, struct.pack(">IB", 0, 1)) for n in range(1, 201, 2))),
        ("unknown", frame(0xEE, 0, 0, b"x" * 100) * 100),
        ("large and unknown", frame(0xEE, 0, 0, b"x" * 16384) * 5),
        ("windows", frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)) * 100),
    ],
)
@pytest.mark.parametrize("reads", [True, False])
def test_floods(larder: Larder, name: str, frames: bytes, reads: bool) -> None:
    """Frames that ask for nothing, from a client that reads the answers, and one that does not."""
    with attack(larder):
        client = larder.client(connection_window=1 << 20)
        client.get("/hit")
        if reads:
            flood(client, frames, 20_000)
            is_given_up(larder, client)
        else:
            client.socket.settimeout(1)
            sent = 0
            while sent < 20_000 and client.try_send(frames):
                sent += 1
    if reads:
        # An acknowledgement of nothing is not allowed in the first place.
        reason = "malformed" if name == "acknowledgements" else "flood"
        eventually("it is counted", lambda: larder.unparsed(reason) == 1)
        assert any(f"reason={reason}" in line or f'reason="{reason}"' in line for line in larder.log)


@pytest.mark.parametrize("settings", [["server.body_timeout=2s"]])
def test_zero_windows(larder: Larder, origin: Origin) -> None:
    """A client that gives no window to one stream, to all, or to the connection."""
    with attack(larder):
        for path in ("/hit", "/size/1000000"):
            client = larder.client(window=0)
            streams = [client.begin(head(f"{path}?{n}")) for n in range(100)]
            for stream in streams:
                assert client.wait(stream).outcome == "reset 8", "given up"
            open_stream = client.begin(head("/hit"))
            client.send(client.give(open_stream, 2000))
            assert client.wait(open_stream).outcome == 200, "the connection goes on"
            client.close()
        client = larder.client(window=1 << 30, connection_window=0)
        streams = [client.begin(head("/size/1000000")) for n in range(3)]
        for stream in streams:
            assert client.wait(stream).outcome == "reset 8"
        assert sum(len(client.streams[stream].body) for stream in streams) == 65535


@pytest.mark.parametrize("settings", [["server.body_timeout=2s"]])
def test_windows_that_open_by_a_byte(larder: Larder, origin: Origin) -> None:
    with attack(larder):
        client = larder.client(window=1)
        streams = [client.begin(head(f"/size/100000?{n}")) for n in range(100)]
        for _ in range(300):
            if not client.try_send(*(client.give(stream, 1) for stream in streams)):
                break
            while client.step(0) and not client.is_closed:
                pass
        client.close()


@pytest.mark.parametrize("settings", [["server.body_timeout=2s", "upstream.buffer_response=0"]])
def test_clients_that_do_not_read(larder: Larder, origin: Origin) -> None:
    """Wide windows, and nobody who reads: what waits to go out is bounded by connection, not by stream alone. The
    responses are in memory only as far as they wait for their clients."""
    with attack(larder, memory=100 * MIB, latency=3):
        clients = [larder.client(receive_buffer=4096) for _ in range(5)]
        for client in clients:
            for n in range(60):
                client.begin(head(f"/size/500000?{n}"))
        eventually("all of it is under way", lambda: len(origin.requests) > 5 * 60)
        time.sleep(1)
        assert larder.memory() < 150 * MIB
        time.sleep(4)
        for client in clients:
            client.until(lambda: client.is_closed)


def test_tiny_frames_of_data(larder: Larder, origin: Origin) -> None:
    with attack(larder):
        client = larder.client()
        stream = client.begin(head("/upload", "POST"), end=False)
        for _ in range(2000):
            if not client.try_send(frame(DATA, 0, stream, b"x") * 50):
                break
            client.step(0)
        client.try_send(frame(DATA, END_STREAM, stream, b"x"))
        client.wait(stream)
        outcome = client.streams[stream].outcome
        assert outcome == 200 or client.goaway == ENHANCE_YOUR_CALM, outcome


def test_empty_frames(larder: Larder, origin: Origin) -> None:
    for padding in (b"", b"\0", b"\xff" + b"\0" * 255):
        with attack(larder):
            client = larder.client()
            stream = client.begin(head("/upload", "POST"), end=False)
            frames = frame(DATA, PADDED if padding else 0, stream, padding) * 50
            flood(client, frames, 3000)
            assert client.is_closed or client.streams[stream].is_over, padding[:1]


def test_hpack_bomb(larder: Larder) -> None:
    """A field of 4 KB in the table, which a byte repeats."""
    with attack(larder):
        for _ in range(20):
            client = larder.client()
            stored = b"\x40" + literal("x", "y" * 3900)[1:]
            stream = client.begin([], headers=block(head()) + stored + b"\xbe" * 12000)
            client.wait(stream)
            assert client.streams[stream].outcome in (431, "reset 7", "reset -1"), client.streams[stream].outcome
            if not client.is_closed:
                stream = client.begin([], headers=block(head()) + b"\xbe" * 10)
                assert client.wait(stream).outcome == 200, "the table is still in step"
            client.close()


def test_table_sizes(larder: Larder) -> None:
    with attack(larder):
        client = larder.client(header_table_size=0x7FFFFFFF)
        for n in range(2000):
            assert client.get(f"/size/1?{n}").outcome == 200
        client.close()
        client = larder.client()
        stream = client.begin([], headers=b"\x3f\xff\xff\xff\x0f" + block(head()))
        client.wait(stream)
        assert client.goaway in (COMPRESSION_ERROR, PROTOCOL_ERROR), "the table is larger than allowed"


def test_ten_thousand_streams(larder: Larder, origin: Origin) -> None:
    """More streams than allowed are refused, and those that are there are served."""
    with attack(larder):
        client = larder.client()
        for n in range(10_000):
            stream, client.next = client.next, client.next + 2
            if not client.try_send(frame(HEADERS, END_HEADERS | END_STREAM, stream, block(head(f"/gate?{n}")))):
                break
            while client.step(0) and not client.is_closed:
                pass
        if not client.is_closed:
            eventually("the origin has them", lambda: len(origin.seen("/gate?0")) == 1)
            origin.gate.set()
            client.until(lambda: client.streams[1].is_over)
        origin.gate.set()
        assert sum(stream.reset == 7 for stream in client.streams.values()) >= 9000 or client.is_closed
        client.close()
    assert len([request for request in origin.requests if b"/gate" in request.line]) <= 100


@pytest.mark.parametrize("settings", [["server.max_headers=50"]])
def test_long_heads(larder: Larder) -> None:
    with attack(larder):
        client = larder.client()
        many = [(f"x-{n}", "") for n in range(60)]
        assert client.get("/", many).outcome == 431
        assert larder.unparsed("head-too-large") == 1
        crumbs = [("cookie", f"c{n}=1") for n in range(200)]
        assert client.get("/", crumbs).outcome == 200, "cookies are one field, whatever HTTP/2 made of them"
        assert client.get("/", [(f"x{n}", "y" * 15_000) for n in range(4)]).outcome == 200
        assert client.get("/", [(f"x{n}", "y" * 15_000) for n in range(5)]).outcome == 431
        assert client.get("/" + "p" * 60_000).outcome in (200, 414)
        assert client.get("/" + "p" * 66_000).outcome == 431
        assert client.get("/hit").outcome == 200, "the connection goes on"
        assert client.get("/", [(f"x{n}", "y" * 15_000) for n in range(20)]).outcome in (431, "reset -1")


@pytest.mark.parametrize("settings", [["server.idle_timeout=2s", "server.header_timeout=2s"]])
def test_connections_that_begin_and_stop(larder: Larder) -> None:
    """After the preface, in mid-frame, in mid-head: each ends by itself."""
    with attack(larder, latency=3):
        for start in (
            b"PRI",
            b"PRI * HTTP/2.0\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS) + frame(HEADERS, 0, 1, block(head())),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS) + frame(HEADERS, 4, 1, block(head()))[:30],
        ):
            with socket.create_connection(("127.0.0.1", larder.port), timeout=15) as connection:
                connection.sendall(start)
                while connection.recv(1 << 16):
                    pass
    eventually("all are gone", lambda: larder.metric("larder_connections") == 0)
