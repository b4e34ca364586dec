"""Exchanges as they should be, and those that break off."""

from __future__ import annotations

import signal
import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest

from wire import (
    AUTHORITY,
    DEADLINE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    NO_ERROR,
    PING,
    SETTINGS,
    Client,
    Larder,
    Origin,
    Request,
    answer,
    block,
    eventually,
    frame,
    head,
)


@pytest.mark.parametrize("stated", [True, False])
def test_uploads(larder: Larder, origin: Origin, stated: bool) -> None:
    body = bytes(range(256)) * 20_000
    client = larder.client()
    stream = client.begin(head("/upload", "POST", [("content-length", str(len(body)))] if stated else []), end=False)
    client.data(stream, body)
    assert client.wait(stream).outcome == 200
    [request] = origin.requests
    assert request.body == body
    assert client.get("/hit").outcome == 200


def test_a_hundred_uploads_at_once(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    streams = [client.begin(head(f"/upload/{n}", "POST"), end=False) for n in range(100)]
    for n, stream in enumerate(streams):
        client.data(stream, bytes([n]) * 100_000)
    for stream in streams:
        assert client.wait(stream).outcome == 200
    bodies = {request.line.split(b" ")[1]: request.body for request in origin.requests}
    assert all(bodies[f"/upload/{n}".encode()] == bytes([n]) * 100_000 for n in range(100))


def test_a_query_is_one_by_whatever_version_and_framing(larder: Larder, origin: Origin) -> None:
    """Checks that a QUERY is answered by its content, and that one which lies about its length is none."""
    origin.answers["/query"] = lambda connection, request: connection.sendall(
        answer(request.body, "Cache-Control: max-age=600")
    )
    client = larder.client()
    text = [("content-type", "text/plain")]

    def ask(content: bytes, pieces: int, fields: list[tuple[str, str]]) -> str:
        stream = client.begin(head("/query", "QUERY", fields), end=False)
        for at in range(0, len(content), pieces):
            client.data(stream, content[at : at + pieces], end=at + pieces >= len(content))
        got = client.wait(stream)
        assert (got.outcome, bytes(got.body)) == (200, content)
        return got.get("cache-status") or ""

    assert ask(b"one", 3, [*text, ("content-length", "3")]).startswith("larder; fwd=uri-miss; stored")
    for pieces, fields in ((3, text), (1, text), (2, [("content-length", "3"), ("content-type", "TEXT/plain")])):
        assert ask(b"one", pieces, fields).startswith("larder; hit")
    assert ask(b"two", 3, text).startswith("larder; fwd=uri-miss")
    raw = b"QUERY /query HTTP/1.1\r\nHost: %s\r\nContent-Type: text/plain\r\nConnection: close\r\n" % AUTHORITY.encode()
    assert b"cache-status: larder; hit" in larder.http1(raw + b"Content-Length: 3\r\n\r\none").lower()
    for length, content in (("4", b"one"), ("2", b"one"), ("3", b"")):
        stream = client.begin(head("/query", "QUERY", [*text, ("content-length", length)]), end=False)
        client.data(stream, content)
        assert client.wait(stream).outcome != 200
    assert [request.body for request in origin.seen("/query")] == [b"one", b"two"]
    # Trailers may say something of the content, and are no part of it.
    for _ in range(2):
        stream = client.begin(head("/query", "QUERY", text), end=False)
        client.data(stream, b"one", end=False)
        client.send(frame(HEADERS, 5, stream, block([("x-sum", "9")])))
        assert client.wait(stream).get("cache-status") == "larder; fwd=request"


@pytest.mark.parametrize("settings", [["server.max_body_size=1MiB"]])
def test_early_answers(larder: Larder, origin: Origin) -> None:
    """Checks that an early answer arrives, followed by RST_STREAM with NO_ERROR (RFC 9113 §8.1)."""
    client = larder.client()
    for fields in ([("content-length", str(2 << 20))], []):
        stream = client.begin(head("/upload", "POST", fields), end=False)
        for _ in range(200):
            if client.streams[stream].is_over:
                break
            client.data(stream, b"x" * 16384, end=False)
            client.step(0)
        got = client.wait(stream)
        client.until(lambda: got.reset is not None)
        assert (got.status, got.is_ended, got.reset) == (413, True, NO_ERROR)

    def refuses(connection: socket.socket, request: Request) -> bool:
        connection.sendall(answer(b"who are you?", status="401 Unauthorized"))
        return True

    origin.answers["/private"] = refuses
    stream = client.begin(head("/private", "POST", [("content-length", "100")]), end=False)
    client.data(stream, b"x" * 50, end=False)
    client.read_for(0.2)
    client.data(stream, b"x" * 50)
    assert client.wait(stream).outcome == 401
    assert client.get("/hit").outcome == 200, "the connection goes on"


def test_an_upload_that_breaks_off(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    stream = client.begin(head("/upload", "POST", [("content-length", str(8 << 20))]), end=False)
    client.data(stream, b"x" * (4 << 20), end=False)
    client.send(client.cancel(stream))
    assert client.get("/hit").outcome == 200
    assert origin.seen("/upload") == [], "it never was whole"


@pytest.mark.parametrize("settings", [["server.body_timeout=1s"]])
def test_slow_uploads(larder: Larder) -> None:
    client = larder.client()
    stream = client.begin(head("/upload", "POST", [("content-length", "10")]), end=False)
    client.data(stream, b"x", end=False)
    got = client.wait(stream)
    assert got.status == 408
    assert client.get("/hit").outcome == 200
    stream = client.begin(head("/upload", "POST"), end=False)
    assert client.wait(stream).status == 408


def test_expectations(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    stream = client.begin(head("/upload", "POST", [("content-length", "5"), ("expect", "100-continue")]), end=False)
    client.until(lambda: client.streams[stream].informational)
    assert client.streams[stream].informational[0][0] == 100
    client.data(stream, b"hello")
    assert client.wait(stream).outcome == 200
    assert origin.requests[0].body == b"hello"


def test_a_hundred_downloads_at_once(larder: Larder) -> None:
    client = larder.client()
    streams = [client.begin(head(f"/size/1000000?{n % 10}")) for n in range(100)]
    for stream in streams:
        got = client.wait(stream)
        assert (got.outcome, len(got.body), set(got.body)) == (200, 1_000_000, {ord("y")})


@pytest.mark.parametrize("settings", [["server.body_timeout=2s"]])
def test_a_slow_reader_of_one_stream_holds_up_no_other(larder: Larder) -> None:
    client = larder.client()
    client.send(frame(SETTINGS, payload=struct.pack(">HI", INITIAL_WINDOW_SIZE, 1000)))
    slow = client.begin(head("/size/100000"))
    client.until(lambda: len(client.streams[slow].body) == 1000)
    for n in range(20):
        other = client.begin(head(f"/size/5000?{n}"))
        client.send(client.give(other, 10_000))
        assert len(client.wait(other).body) == 5000
    started = time.monotonic()
    for _ in range(6):
        client.send(client.give(slow, 1000))
        client.read_for(0.5)
    assert len(client.streams[slow].body) == 7000, "whoever reads slowly reads on"
    assert time.monotonic() - started > 2.5
    assert client.wait(slow).outcome == "reset 8", "whoever does not is given up"
    assert client.get("/hit", []).status == 200


@pytest.mark.parametrize("settings", [["server.body_timeout=1s"]])
def test_streams_that_share_a_narrow_connection_all_get_there(larder: Larder) -> None:
    """Each waits for its turn for longer than a client may leave a stream alone."""
    client = larder.client(connection_window=65535)
    streams = [client.begin(head(f"/size/60000?{n}")) for n in range(40)]
    given = 0
    while not all(client.streams[stream].is_over for stream in streams):
        client.read_for(0.15)
        taken = sum(len(client.streams[stream].body) for stream in streams)
        client.send(client.give(0, max(taken - given, 1)))
        given = max(given, taken)
    assert {client.streams[stream].outcome for stream in streams} == {200}


@pytest.mark.parametrize("settings", [["server.idle_timeout=200ms"]])
def test_who_reads_on_is_not_idle(larder: Larder) -> None:
    """The last of a response waits for its client, and nothing else goes on."""
    client = Client(larder.port, receive_buffer=4096)
    stream = client.begin(head("/size/450000"))
    while not client.streams[stream].is_over:
        client.step(0.1, most=2000)
        time.sleep(0.045)
    assert client.streams[stream].outcome == 200
    assert len(client.streams[stream].body) == 450_000


@pytest.mark.parametrize("settings", [["server.idle_timeout=1s", "server.body_timeout=1s"]])
def test_a_window_that_is_taken_back_keeps_no_connection(larder: Larder) -> None:
    """Holds back what was handed over, since SETTINGS made the window negative (RFC 9113 §6.9.2)."""
    client = larder.client(window=1 << 20, receive_buffer=4096)
    streams = [client.begin(head(f"/size/60000?{n}")) for n in range(20)]
    client.until(lambda: client.streams[streams[0]].status)
    client.send(frame(SETTINGS, payload=struct.pack(">HI", INITIAL_WINDOW_SIZE, 0)))
    client.until(lambda: client.is_closed, 15)


@pytest.mark.parametrize("settings", [["server.idle_timeout=1s"]])
def test_idle_connections_are_told(larder: Larder) -> None:
    client = larder.client()
    assert client.get("/hit").outcome == 200
    client.until(lambda: client.goaway is not None)
    assert (client.goaway, client.is_closed) == (NO_ERROR, False)
    client.until(lambda: client.is_closed)
    mute = larder.client()
    mute.acks = False
    mute.until(lambda: mute.is_closed)
    busy = larder.client()
    for _ in range(8):
        assert busy.get("/hit").outcome == 200
        time.sleep(0.3)
    assert busy.goaway is None


def test_answers_without_content(larder: Larder, origin: Origin) -> None:
    def own(text: bytes) -> Callable[[socket.socket, Request], bool]:
        def send(connection: socket.socket, request: Request) -> bool:
            connection.sendall(text)
            return True

        return send

    origin.answers["/204"] = own(b"HTTP/1.1 204 No Content\r\n\r\n")
    origin.answers["/304"] = own(b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n')
    origin.answers["/chunked"] = own(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\n"
        b"Keep-Alive: timeout=5\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    )
    origin.answers["/trailers"] = own(
        b"HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 9\r\n\r\n"
    )
    origin.answers["/bad-trailers"] = own(
        b"HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
        b"X-Sum: 9\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nKeep-Alive: x\r\n\r\n"
    )
    origin.answers["/hints"] = own(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    )
    client = larder.client()
    got = client.get("/hit", method="HEAD")
    assert (got.outcome, got.get("content-length"), got.body) == (200, "1024", b"")
    assert client.get("/hit").outcome == 200
    got = client.get("/hit", method="HEAD")
    assert (got.outcome, got.get("content-length"), got.body) == (200, "1024", b"")
    got = client.get("/204")
    assert (got.outcome, got.get("content-length"), got.body) == (204, None, b"")
    got = client.get("/304", [("if-none-match", '"a"'), ("cache-control", "no-store")])
    assert (got.outcome, got.body) == (304, b"")
    got = client.get("/hit", [("range", "bytes=10-19")])
    assert (got.outcome, got.get("content-range"), len(got.body)) == (206, "bytes 10-19/1024", 10)
    got = client.get("/chunked")
    assert (got.outcome, got.body) == (200, b"hello")
    assert not {"connection", "transfer-encoding", "keep-alive", "x-hop"} & {name for name, _ in got.fields}
    for path in ("/trailers", "/bad-trailers"):
        got = client.get(path, [("te", "trailers")])
        assert (got.outcome, got.body, got.trailers) == (200, b"hello", [("x-sum", "9")])
    got = client.get("/hints")
    assert (got.outcome, got.body) == (200, b"ok")
    [(status, fields)] = got.informational
    assert (status, dict(fields).get("link"), dict(fields).get("connection")) == (103, "</a.css>; rel=preload", None)


def test_a_long_head_goes_out_in_several_frames(larder: Larder, origin: Origin) -> None:
    def long(connection: socket.socket, request: Request) -> bool:
        connection.sendall(answer(b"ok", *(f"X-{n}: {chr(97 + n) * 3000}" for n in range(15))))
        return True

    origin.answers["/long"] = long
    client = larder.client()
    for _ in range(2):
        got = client.get("/long")
        assert (got.outcome, got.get("x-14")) == (200, "o" * 3000)


def test_cookies_are_joined_before_anything_looks_at_them(larder: Larder, origin: Origin) -> None:
    def varies(connection: socket.socket, request: Request) -> bool:
        text = "|".join(request.all("cookie")).encode()
        connection.sendall(answer(text, "Cache-Control: max-age=600", "Vary: Cookie"))
        return True

    origin.answers["/varies"] = varies
    client = larder.client()
    whole = larder.http1(b"GET /varies HTTP/1.1\r\nHost: site.example\r\nCookie: a=1; b=2\r\nConnection: close\r\n\r\n")
    assert whole.endswith(b"a=1; b=2")
    got = client.get("/varies", [("cookie", "a=1"), ("cookie", "b=2")])
    assert (got.body, "hit" in str(got.get("cache-status"))) == (b"a=1; b=2", True)
    got = client.get("/varies", [("cookie", "a=1")])
    assert (got.body, "hit" in str(got.get("cache-status"))) == (b"a=1", False)


def test_authorization_is_answered_as_by_http1(larder: Larder) -> None:
    client = larder.client()
    assert "hit" not in str(client.get("/hit", [("authorization", "Bearer a")]).get("cache-status"))
    assert "hit" not in str(client.get("/hit", [("authorization", "Bearer b")]).get("cache-status"))


def test_a_client_that_leaves_harms_nobody_who_shares_its_fetch(larder: Larder, origin: Origin) -> None:
    go = threading.Event()

    def slow(connection: socket.socket, request: Request) -> bool:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\nCache-Control: max-age=600\r\n\r\n" + b"s" * 1000
        )
        go.wait(DEADLINE)
        connection.sendall(b"s" * 199_000)
        return True

    origin.answers["/shared"] = slow
    first, second = larder.client(), larder.client()
    leader = first.begin(head("/shared"))
    first.until(lambda: first.streams[leader].body)
    follower, other = second.begin(head("/shared")), first.begin(head("/shared"))
    second.until(lambda: second.streams[follower].body)
    first.send(first.cancel(leader))
    go.set()
    assert len(second.wait(follower).body) == len(first.wait(other).body) == 200_000
    assert len(origin.seen("/shared")) == 1


@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("stored", ["max-age=600", "no-store"])
def test_an_origin_that_dies_is_never_a_clean_end(larder: Larder, origin: Origin, framing: str, stored: str) -> None:
    def dies(connection: socket.socket, request: Request) -> bool:
        text = f"HTTP/1.1 200 OK\r\n{framing}\r\nCache-Control: {stored}\r\n\r\n".encode()
        connection.sendall(text + (b"3e8\r\n" if "chunked" in framing else b"") + b"x" * 1000)
        return False

    origin.answers["/dies"] = dies
    client = larder.client()
    for _ in range(2):
        got = client.get("/dies")
        assert got.reset not in (None, NO_ERROR) and not got.is_ended, got.outcome
    assert client.get("/hit").outcome == 200


def test_a_stop_lets_requests_finish_and_takes_no_new_ones(larder: Larder, origin: Origin) -> None:
    client, idle, mute = larder.client(), larder.client(), larder.client()
    mute.acks = False
    idle.get("/hit")
    streams = [client.begin(head(f"/gate/{n}")) for n in range(5)]
    download = client.begin(head("/size/5000000"))
    eventually("they are under way", lambda: sum(b"/gate" in r.line for r in origin.requests) == 5)
    larder.process.send_signal(signal.SIGTERM)
    client.until(lambda: client.last_stream is not None and client.last_stream < 1 << 30)
    assert client.goaway == NO_ERROR and (client.last_stream or 0) >= download
    late = client.begin(head("/late"))
    idle.until(lambda: idle.is_closed, 10)
    mute.until(lambda: mute.is_closed, 10)
    assert larder.process.poll() is None
    origin.gate.set()
    for stream in streams:
        assert client.wait(stream).outcome == 200
    assert len(client.wait(download).body) == 5_000_000
    client.until(lambda: client.is_closed)
    assert client.streams[late].status == 0
    assert not origin.seen("/late")
    assert larder.process.wait(10) == 0


def test_a_client_that_says_goaway_gets_what_it_has_asked_for(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    stream = client.begin(head("/gate"))
    eventually("it is under way", lambda: origin.seen("/gate"))
    client.send(frame(7, 0, 0, struct.pack(">II", 0, NO_ERROR)))
    origin.gate.set()
    assert client.wait(stream).outcome == 200
    client.until(lambda: client.is_closed)


@pytest.mark.parametrize("settings", [["server.max_requests=10", "server.max_streams=20"]])
def test_limits_of_requests(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    streams = [client.begin(head(f"/gate/{n}")) for n in range(10)]
    eventually("they are under way", lambda: len(origin.requests) == 10)
    for other in (client, larder.client()):
        got = other.get("/hit")
        assert (got.outcome, got.get("retry-after")) == (503, "1")
    assert larder.unparsed("too-many-requests") == 2
    client.send(client.cancel(streams[0]))
    eventually("there is room for one", lambda: larder.client().get("/size/1").outcome == 200)
    origin.gate.set()
    for stream in streams[1:]:
        assert client.wait(stream).outcome == 200


@pytest.mark.parametrize("settings", [["server.max_streams=20"]])
def test_streams_past_the_limit_are_refused(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    assert client.settings[3] == 20
    streams = [client.begin(head(f"/gate/{n}")) for n in range(30)]
    for stream in streams[20:]:
        assert client.wait(stream).outcome == "reset 7", "REFUSED_STREAM: the client may send it again"
    origin.gate.set()
    assert [client.wait(stream).outcome for stream in streams[:20]] == [200] * 20
    assert len(origin.requests) == 20


@pytest.mark.parametrize("settings", [["server.max_connections=3"]])
def test_a_limit_of_connections(larder: Larder) -> None:
    held = [larder.client() for _ in range(3)]
    assert all(client.get("/hit").outcome == 200 for client in held)
    with socket.create_connection(("127.0.0.1", larder.port), timeout=DEADLINE) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS))
        assert connection.recv(100).startswith(b"HTTP/1.1 503"), "its version is not known yet"
    assert larder.unparsed("too-many-connections") == 1
    held[0].close()
    eventually("there is room for one", lambda: _answers(larder))


def _answers(larder: Larder) -> bool:
    try:
        return larder.client().get("/hit").outcome == 200
    except (OSError, AssertionError):
        return False


def test_the_access_log_tells_of_http2_as_of_http1(larder: Larder) -> None:
    larder.client().get("/hit?by=2")
    larder.http1(b"GET /hit?by=1 HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n")

    def lines(by: int) -> list[str]:
        return [line for line in larder.log if f"/hit?by={by}" in line]

    eventually("both are logged", lambda: lines(1) and lines(2))
    for by in (1, 2):
        [line] = lines(by)
        plain = line.replace('"', "")
        assert f" protocol=HTTP/{by} " in plain and f" uri=/hit?by={by} " in plain and " host=site.example " in plain


def test_pings_are_answered_while_a_request_waits(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    stream = client.begin(head("/gate"))
    client.send(frame(PING, payload=b"12345678"))
    client.until(lambda: client.pongs)
    assert client.pongs == [b"12345678"]
    origin.gate.set()
    assert client.wait(stream).outcome == 200
