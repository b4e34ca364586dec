"""Tests the heads of requests, and that nothing is smuggled to the origin by HTTP/1.1."""

from __future__ import annotations

import re

import pytest

from wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    Fields,
    Larder,
    Origin,
    block,
    eventually,
    frame,
    head,
)

METHOD, SCHEME, AUTHORITY = (":method", "GET"), (":scheme", "http"), (":authority", "site.example")
MALFORMED: set[int | str] = {"reset 1", "reset -1", 400}

# Each is a request, and the outcomes that it may have. 400s come with a sentence, resets are `h2`'s.
HEADS: dict[str, tuple[Fields, set[int | str]]] = {
    "method twice": ([METHOD, METHOD, SCHEME, AUTHORITY, (":path", "/")], MALFORMED),
    "path twice": ([METHOD, SCHEME, AUTHORITY, (":path", "/"), (":path", "/admin")], MALFORMED),
    "authority twice": ([METHOD, SCHEME, AUTHORITY, AUTHORITY, (":path", "/")], MALFORMED),
    "scheme twice": ([METHOD, SCHEME, SCHEME, AUTHORITY, (":path", "/")], MALFORMED),
    "no method": ([SCHEME, AUTHORITY, (":path", "/")], MALFORMED),
    "no path": ([METHOD, SCHEME, AUTHORITY], MALFORMED),
    "no scheme": ([METHOD, AUTHORITY, (":path", "/")], MALFORMED),
    "no authority": ([METHOD, SCHEME, (":path", "/")], MALFORMED),
    "no fields": ([], MALFORMED),
    "after a field": ([METHOD, SCHEME, AUTHORITY, ("a", "b"), (":path", "/")], MALFORMED),
    "path after a field": ([METHOD, SCHEME, AUTHORITY, (":path", "/"), ("a", "b"), (":path", "/admin")], MALFORMED),
    "unknown": ([*head(), (":unknown", "x")], MALFORMED),
    "status": ([*head(), (":status", "200")], MALFORMED),
    "protocol without connect": ([*head(), (":protocol", "websocket")], MALFORMED),
    "uppercase pseudo-header": ([(":Method", "GET"), SCHEME, AUTHORITY, (":path", "/")], MALFORMED),
    "path empty": (head(""), MALFORMED),
    "path without slash": (head("admin"), MALFORMED),
    "path of a query": (head("?a=b"), MALFORMED),
    "path of a fragment": (head("#a"), MALFORMED),
    "path asterisk": (head("*"), MALFORMED),
    "path absolute": (head("http://evil.example/"), MALFORMED),
    "path with a space": (head("/a b"), MALFORMED),
    "path with a version": (head("/ HTTP/1.1"), MALFORMED),
    "path with a head": (head("/ HTTP/1.1\r\nHost: evil.example\r\n\r\nGET /smuggled"), MALFORMED),
    "path with CR": (head("/a\rb"), MALFORMED),
    "path with LF": (head("/a\nb"), MALFORMED),
    "path with NUL": (head("/a\0b"), MALFORMED),
    "path with DEL": (head("/a\x7fb"), MALFORMED),
    "path with tab": (head("/a\tb"), MALFORMED),
    "path not UTF-8": (head(b"/a\xffb"), MALFORMED),
    "method with a space": (head(method="GET /smuggled HTTP/1.1\r\n\r\nGET"), MALFORMED),
    "method with LF": (head(method="GET\n"), MALFORMED),
    "method empty": (head(method=""), MALFORMED),
    "method of odd signs": (head(method="GE@T"), MALFORMED),
    "method PRI": (head(method="PRI"), {200, 501, *MALFORMED}),
    "method TRACE": (head(method="TRACE"), {405, 501}),
    "method PURGE": (head(method="PURGE"), {403, 405}),
    "method CONNECT": ([(":method", "CONNECT"), (":authority", "site.example:80")], {405, 501}),
    "CONNECT with path": (head(method="CONNECT"), MALFORMED),
    "authority with userinfo": (head(authority="me:secret@site.example"), MALFORMED),
    "authority empty": (head(authority=""), MALFORMED),
    "authority with a space": (head(authority="site.example evil"), MALFORMED),
    "authority with a path": (head(authority="site.example/evil"), MALFORMED),
    "authority with LF": (head(authority="site.example\r\nx: y"), MALFORMED),
    "authority with a bad port": (head(authority="site.example:99999"), MALFORMED),
    "authority with letters for a port": (head(authority="site.example:http"), MALFORMED),
    "authority with two ports": (head(authority="site.example:80:80"), MALFORMED),
    "authority of two": (head(authority="site.example,evil.example"), {200, *MALFORMED}),
    "another Host": (head(more=[("host", "evil.example")]), {400}),
    "two Hosts": (head(more=[("host", "site.example"), ("host", "evil.example")]), MALFORMED),
    "two equal Hosts": (head(more=[("host", "site.example"), ("host", "site.example")]), MALFORMED),
    "scheme with LF": ([METHOD, (":scheme", "http\n"), AUTHORITY, (":path", "/")], MALFORMED),
    "scheme empty": ([METHOD, (":scheme", ""), AUTHORITY, (":path", "/")], {200, *MALFORMED}),
    "scheme of a URL": ([METHOD, (":scheme", "http://evil.example/?"), AUTHORITY, (":path", "/")], MALFORMED),
    "value with CR": (head(more=[("a", "b\rc")]), MALFORMED),
    "value with LF": (head(more=[("a", "b\nevil: c")]), MALFORMED),
    "value with CRLF": (head(more=[("a", "b\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")]), MALFORMED),
    "value with NUL": (head(more=[("a", "b\0c")]), MALFORMED),
    "value with DEL": (head(more=[("a", "b\x7fc")]), MALFORMED),
    "value behind a space": (head(more=[("a", " b")]), {400}),
    "value before a space": (head(more=[("a", "b ")]), {400}),
    "value before a tab": (head(more=[("a", "b\t")]), {400}),
    "value of a space": (head(more=[("a", " ")]), {400}),
    "name empty": (head(more=[("", "b")]), MALFORMED),
    "name uppercase": (head(more=[("Content-Length", "0")]), MALFORMED),
    "name with a colon": (head(more=[("a:b", "c")]), MALFORMED),
    "name with a space": (head(more=[("transfer-encoding ", "chunked")]), MALFORMED),
    "name with LF": (head(more=[("a\r\ntransfer-encoding", "chunked")]), MALFORMED),
    "name not ASCII": (head(more=[(b"a\xc3\xa4", "c")]), MALFORMED),
    "connection": (head(more=[("connection", "close")]), MALFORMED),
    "connection that names a field": (head(more=[("connection", "authorization")]), MALFORMED),
    "proxy-connection": (head(more=[("proxy-connection", "keep-alive")]), MALFORMED),
    "keep-alive": (head(more=[("keep-alive", "timeout=5")]), MALFORMED),
    "upgrade": (head(more=[("upgrade", "websocket")]), MALFORMED),
    "upgrade to h2c": (head(more=[("upgrade", "h2c"), ("http2-settings", "AAMAAABkAAQAAP__")]), MALFORMED),
    "transfer-encoding": (head(method="POST", more=[("transfer-encoding", "chunked")]), MALFORMED),
    "transfer-encoding identity": (head(method="POST", more=[("transfer-encoding", "identity")]), MALFORMED),
    "te": (head(more=[("te", "gzip")]), MALFORMED),
    "te, trailers": (head(more=[("te", "trailers, chunked")]), MALFORMED),
    "a length without content": (head(method="POST", more=[("content-length", "5")]), MALFORMED),
    "a length that is no number": (head(method="POST", more=[("content-length", "x")]), MALFORMED),
    "a length with a sign": (head(method="POST", more=[("content-length", "+0")]), MALFORMED),
    "a negative length": (head(method="POST", more=[("content-length", "-1")]), MALFORMED),
    "a hexadecimal length": (head(method="POST", more=[("content-length", "0x0")]), MALFORMED),
    "a list of lengths": (head(method="POST", more=[("content-length", "0, 0")]), MALFORMED),
    "two lengths": (head(method="POST", more=[("content-length", "0"), ("content-length", "5")]), MALFORMED),
    "a huge length": (head(method="POST", more=[("content-length", "99999999999999999999")]), MALFORMED),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_are_refused(larder: Larder, origin: Origin, name: str) -> None:
    fields, expected = HEADS[name]
    client = larder.client()
    outcome = client.ask(fields).outcome
    assert outcome in expected
    # Only a head that was received as one may end the connection with it, and the origin hears of none of them.
    assert larder.client().get("/after").outcome == 200
    if 200 not in expected:
        assert [request.line for request in origin.requests] == [b"GET /after HTTP/1.1"]
    check(origin)


# Requests that pass, with what the origin gets of them.
PASSED: dict[str, tuple[Fields, bytes, str]] = {
    "plain": (head("/a?b=c"), b"GET /a?b=c HTTP/1.1", "site.example"),
    "a method of one's own": (head(method="get"), b"get / HTTP/1.1", "site.example"),
    "odd signs": (head("/a|b\\c^d{e}~"), b"GET /a|b\\c^d{e}~ HTTP/1.1", "site.example"),
    "quotes": (head('/a"b?`'), b"GET /a%22b?%60 HTTP/1.1", "site.example"),
    "not ASCII": (head("/ä"), "GET /ä HTTP/1.1".encode(), "site.example"),
    "a fragment": (head("/a#b"), b"GET /a HTTP/1.1", "site.example"),
    "OPTIONS of the server": (head("*", "OPTIONS"), b"OPTIONS * HTTP/1.1", "site.example"),
    "Host alone": ([METHOD, SCHEME, (":path", "/"), ("host", "site.example")], b"GET / HTTP/1.1", "site.example"),
    "the same Host": (head(more=[("host", "SITE.example")]), b"GET / HTTP/1.1", "site.example"),
    "uppercase authority": (head(authority="SITE.Example"), b"GET / HTTP/1.1", "site.example"),
    "the default port": (head(authority="site.example:80"), b"GET / HTTP/1.1", "site.example"),
    "another port": (head(authority="site.example:8080"), b"GET / HTTP/1.1", "site.example:8080"),
    "another scheme": ([METHOD, (":scheme", "ftp"), AUTHORITY, (":path", "/")], b"GET / HTTP/1.1", "site.example"),
    "https in clear text": (
        [METHOD, (":scheme", "https"), AUTHORITY, (":path", "/")],
        b"GET / HTTP/1.1",
        "site.example",
    ),
    "te: trailers": (head(more=[("te", "trailers")]), b"GET / HTTP/1.1", "site.example"),
    "underscores": (
        head(more=[("content_length", "5"), ("transfer_encoding", "chunked")]),
        b"GET / HTTP/1.1",
        "site.example",
    ),
}


@pytest.mark.parametrize("name", PASSED)
def test_heads_that_pass(larder: Larder, origin: Origin, name: str) -> None:
    fields, line, host = PASSED[name]
    assert larder.client().ask(fields).outcome == 200
    [request] = origin.requests
    assert request.line == line
    assert request.all("host") == [host]
    assert request.all("x-forwarded-proto") == ["http"], "the scheme is the connection's"
    assert request.all("via")[0].startswith("2.0 larder-")
    assert not request.all("content_length") and not request.all("transfer_encoding")
    check(origin)


def test_keys_are_those_of_http1(larder: Larder, origin: Origin) -> None:
    """Checks that a page stored by HTTP/1.1 answers HTTP/2, however the target is written."""
    for n, target in enumerate(['/hit/a"b', "/hit/?`", "/hit/a%22b?c", "/hit/ä", "/hit/a|b\\c^d{e}", "/hit/a#b"]):
        raw = target.encode()
        text = larder.http1(b"GET %s HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n" % raw)
        assert text.startswith(b"HTTP/1.1 200")
        stream = larder.client().get(raw)
        assert (stream.outcome, "hit" in str(stream.get("cache-status"))) == (200, True), target
    assert larder.client().get("/hit/a<b>").outcome in MALFORMED, "`h2` refuses these, which HTTP/1.1 has escaped"


def check(origin: Origin) -> None:
    """Nothing reached the origin that one request is not."""
    for request in origin.requests:
        assert re.fullmatch(rb"\S+ \S+ HTTP/1\.1", request.line), request.line
        assert b"smuggled" not in request.raw
        names = [name for name, _ in request.fields]
        framing = [name for name in names if name in ("content-length", "transfer-encoding")]
        assert len(framing) <= 1, request.raw
        assert names.count("host") == 1
        assert not {"upgrade", "keep-alive", "proxy-connection", "http2-settings"} & set(names)
        assert request.all("connection") in ([], ["te"])
        assert not any(re.search(r"[\r\n\0]", value) for _, value in request.fields)


# Content, and the outcomes it may have: the stated length, the frames, and what the origin may get.
CONTENT: dict[str, tuple[Fields, list[tuple[bytes, bool]], set[int | str], bytes | None]] = {
    "as stated": ([("content-length", "5")], [(b"hello", True)], {200}, b"hello"),
    "stated twice alike": ([("content-length", "5")] * 2, [(b"hello", True)], MALFORMED, None),
    "not stated": ([], [(b"hel", False), (b"lo", True)], {200}, b"hello"),
    "ended by an empty frame": ([], [(b"hello", False), (b"", True)], {200}, b"hello"),
    "empty": ([], [(b"", True)], {200}, b""),
    "zero": ([("content-length", "0")], [(b"", True)], {200}, b""),
    "more than zero": (
        [("content-length", "0")],
        [(b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n", True)],
        MALFORMED,
        None,
    ),
    "too much": ([("content-length", "3")], [(b"helGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n", True)], MALFORMED, None),
    "too much, later": ([("content-length", "3")], [(b"hel", False), (b"lo", True)], MALFORMED, None),
    "too little": ([("content-length", "9")], [(b"hello", True)], MALFORMED, None),
    "too little, later": ([("content-length", "9")], [(b"hello", False), (b"", True)], MALFORMED, None),
    "stated as nothing": ([("content-length", "")], [(b"hello", True)], MALFORMED, None),
    "a chunk": ([], [(b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n", True)], {200}, None),
}


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
@pytest.mark.parametrize("name", CONTENT)
def test_content(larder: Larder, origin: Origin, name: str, method: str) -> None:
    fields, frames, expected, body = CONTENT[name]
    client = larder.client()
    stream = client.begin(head("/echo", method, fields), end=False)
    client.send(*(frame(DATA, END_STREAM if end else 0, stream, data) for data, end in frames))
    assert client.wait(stream).outcome in expected
    assert larder.client().get("/after").outcome == 200
    seen = origin.seen("/echo")
    assert len(origin.requests) == 1 + len(seen), [request.line for request in origin.requests]
    if expected == {200} and body is not None:
        assert [request.body for request in seen] == [body]
    if expected is MALFORMED:
        assert not seen, "the origin is not asked before the content is whole"
    for request in origin.requests:
        assert sum(name in ("content-length", "transfer-encoding") for name, _ in request.fields) <= 1, request.raw


@pytest.mark.parametrize("lengths", [[""], ["", ""], ["0", "0"], ["", "0"], ["00"]])
def test_lengths_without_content(larder: Larder, origin: Origin, lengths: list[str]) -> None:
    fields: Fields = [("content-length", length) for length in lengths]
    for method in ("POST", "GET"):
        outcome = larder.client().ask(head("/echo", method, fields)).outcome
        assert outcome in {200, *MALFORMED}
        assert outcome != 200 or lengths == ["00"]
    assert all(request.all("content-length") in ([], ["0"], ["00"]) for request in origin.requests)


def test_trailers_of_requests_stay_here(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    for trailers in (
        [("x-trailer", "1")],
        [("content-length", "9")],
        [("transfer-encoding", "chunked")],
        [(":path", "/evil")],
    ):
        stream = client.begin(head("/echo", "POST"), end=False)
        client.send(frame(DATA, 0, stream, b"hello"), frame(HEADERS, END_HEADERS | END_STREAM, stream, block(trailers)))
        outcome = client.wait(stream).outcome
        assert outcome in {200, *MALFORMED}
        if client.is_closed:
            client = larder.client()
    for request in origin.requests:
        assert (request.body, request.all("x-trailer"), request.all("content-length")) == (b"hello", [], ["5"])
    stream = client.begin(head("/echo", "POST"), end=False)
    client.send(frame(HEADERS, END_HEADERS, stream, block([("a", "b")])))
    assert client.wait(stream).outcome in MALFORMED, "trailers that do not end the stream"


def test_expectations_and_claims_do_not_pass(larder: Larder, origin: Origin) -> None:
    claims: Fields = [
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil.example"),
        ("forwarded", "for=1.2.3.4"),
        ("x-real-ip", "1.2.3.4"),
        ("x_forwarded_for", "1.2.3.4"),
    ]
    assert larder.client().get("/", claims).outcome == 200
    [request] = origin.requests
    assert request.all("x-forwarded-for") == ["127.0.0.1"]
    assert request.all("x-forwarded-host") == ["site.example"]
    assert not {"forwarded", "x-real-ip", "x_forwarded_for"} & {name for name, _ in request.fields}


def test_a_request_that_comes_back_is_a_loop(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    client.get("/")
    [via] = origin.requests[0].all("via")
    name = via.split(" ")[1]
    for version in ("1.1", "2.0"):
        assert client.get("/", [("via", f"1.0 fred, {version} {name}")]).outcome == 508
    assert client.get("/", [("via", f"2.0 {name}x")]).outcome == 200


def test_frames_that_are_not_allowed_end_the_connection_and_are_counted(larder: Larder) -> None:
    ping = frame(6, 0, 0, b"8 bytes.")
    cases = {
        "data on stream 0": frame(DATA, 0, 0, b"x"),
        "data on an idle stream": frame(DATA, 0, 9, b"x"),
        "headers on stream 0": frame(HEADERS, 5, 0, block(head())),
        "headers on an even stream": frame(HEADERS, 5, 2, block(head())),
        "continuation without headers": frame(CONTINUATION, 4, 1, b""),
        "a push": frame(5, 4, 1, b"\0\0\0\2" + block(head())),
        "a ping of 7 bytes": frame(6, 0, 0, b"7 bytes"),
        "a ping on a stream": frame(6, 0, 1, b"8 bytes."),
        "settings on a stream": frame(4, 0, 1),
        "settings of 5 bytes": frame(4, 0, 0, b"12345"),
        "settings acknowledged with a payload": frame(4, 1, 0, b"123456"),
        "an initial window past the limit": frame(4, 0, 0, b"\0\4\xff\xff\xff\xff"),
        "a frame size below the least": frame(4, 0, 0, b"\0\5\0\0\0\1"),
        "a push setting of 2": frame(4, 0, 0, b"\0\2\0\0\0\2"),
        "a window of 0": frame(8, 0, 0, b"\0\0\0\0"),
        "a window past the limit": frame(8, 0, 0, b"\x7f\xff\xff\xff"),
        "a reset of an idle stream": frame(3, 0, 9, b"\0\0\0\0"),
        "a reset of 3 bytes": frame(3, 0, 1, b"\0\0\0"),
        "a frame larger than allowed": frame(DATA, 0, 1, b"x" * 16385),
        "padding longer than the frame": frame(DATA, 8, 1, b"\xff"),
        "a table larger than allowed": frame(HEADERS, 5, 1, b"\x3f\xff\xff\xff\x0f"),
        "an index that is not there": frame(HEADERS, 5, 1, b"\xff\xff\x0f"),
        "a broken Huffman code": frame(HEADERS, 5, 1, b"\x00\x84\xff\xff\xff\xff\x01a"),
        "a goaway on a stream": frame(7, 0, 1, b"\0" * 8),
    }
    ended = 0
    for name, bad in cases.items():
        client = larder.client()
        client.get("/hit")
        before = larder.metric("larder_requests_unparsed_total")
        client.next += 2
        client.try_send(bad, ping)
        client.until(lambda: client.is_closed or client.pongs, 10)
        if client.is_closed:
            ended += 1
            assert client.goaway, name
            eventually(f"{name} is counted", lambda: larder.metric("larder_requests_unparsed_total") == before + 1)
        else:
            assert any(stream.reset for stream in client.streams.values()), name
        client.close()
    assert ended >= 18
