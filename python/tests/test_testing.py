"""`larder.testing` in front of small applications, some of which leak."""

from __future__ import annotations

import itertools
import os
import select
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask, make_response, redirect, request, session
from flask.typing import ResponseReturnValue

from larder.flask import Larder, cache_for
from larder.testing import Client, LiveLarder

PUBLIC = {"Cache-Control": "public, max-age=600"}


def make_app() -> Flask:
    app = Flask(__name__)
    app.secret_key = "for tests"
    numbers = itertools.count()

    @app.get("/")
    def index() -> ResponseReturnValue:
        return "for all", PUBLIC

    @app.get("/private")
    def private() -> ResponseReturnValue:
        return "never kept", {"Cache-Control": "no-store"}

    @app.post("/login")
    def login() -> ResponseReturnValue:
        session["user"] = request.form["user"]
        return redirect("/me")

    @app.get("/me")
    def me() -> ResponseReturnValue:
        return f"Hello {session.get('user', 'stranger')}"

    @app.get("/leak/body")
    def leak_body() -> ResponseReturnValue:
        # The mistake: public, and made from the user's cookie, without Vary. Past Flask's session, which adds it.
        return f"<p>Welcome back, {request.cookies.get('name', 'stranger')}!</p>", PUBLIC

    @app.get("/leak/field")
    def leak_field() -> ResponseReturnValue:
        return "the same", {**PUBLIC, "X-Account": request.cookies.get("name", "nobody")}

    @app.get("/leak/etag")
    def leak_etag() -> ResponseReturnValue:
        return "the same", {**PUBLIC, "ETag": f'"{request.cookies.get("name", "nobody")}"'}

    @app.get("/leak/header")
    def leak_header() -> ResponseReturnValue:
        return f"<p>Welcome back, {request.headers.get('X-User', 'stranger')}!</p>", PUBLIC

    @app.get("/leak/status")
    def leak_status() -> ResponseReturnValue:
        return ("yes", 200, PUBLIC) if "name" in request.cookies else ("no", 404, PUBLIC)

    @app.get("/leak/cookie")
    def leak_cookie() -> ResponseReturnValue:
        response = make_response("the same", 200, PUBLIC)
        response.set_cookie("seen", "yes")
        return response

    @app.get("/number")
    def number() -> ResponseReturnValue:
        return f"<p>{request.cookies.get('name', '')}</p><i>{next(numbers)}</i>", PUBLIC

    @app.get("/name/<name>")
    def set_name(name: str) -> ResponseReturnValue:
        response = make_response(name)
        response.set_cookie("name", name, secure=True)
        return response

    return app


@pytest.fixture
def app() -> Flask:
    return make_app()


@pytest.fixture
def users(live_larder: LiveLarder) -> tuple[Client, Client]:
    alice, bob = live_larder.client("alice"), live_larder.client("bob")
    for user in (alice, bob):
        user.get(f"/name/{user.name}")
        assert user.cookie("name") == user.name
        assert user.post("/login", data={"user": user.name}, follow_redirects=True).text == f"Hello {user.name}"
    return alice, bob


def test_the_assertions_say_what_the_cache_did(live_larder: LiveLarder) -> None:
    client = live_larder.client()
    first, second, private = client.get("/"), client.get("/"), client.get("/private")
    live_larder.miss(first)
    live_larder.stored(first)
    live_larder.hit(second)
    live_larder.miss(private)
    live_larder.not_stored(private)
    assert (first.text, second.cache_status.detail, private.status) == ("for all", "memory", 200)
    for assertion, response, said in [
        (live_larder.hit, first, "GET / should have been a hit.\n"),
        (live_larder.not_stored, first, "GET / should not have been stored.\n"),
        (live_larder.miss, second, "GET / should have been a miss.\n"),
        (live_larder.not_stored, second, "GET / should not have been stored.\n"),
        (live_larder.stored, second, "GET / should have been stored.\n"),
        (live_larder.hit, private, "GET /private should have been a hit.\n"),
        (live_larder.stored, private, "GET /private should have been stored.\n"),
    ]:
        with pytest.raises(AssertionError) as failure:
            assertion(response)
        message = str(failure.value)
        assert message.startswith(said)
        assert f"Cache-Status  {response.cache_status.text}\n" in message
        assert "verdict: Cache-Status: larder; " in message
    assert "the response said no-store" in message, "explain says why"


def test_what_reached_the_application_is_counted(live_larder: LiveLarder) -> None:
    client = live_larder.client()
    for _ in range(3):
        client.get("/")
    assert live_larder.count() == live_larder.count("/") == 1
    with live_larder.counting() as counted:
        client.get("/")
        client.get("/private?a=1")
        client.get("/private?a=1")
        live_larder.direct(client).get("/")
    assert [str(seen) for seen in counted.requests] == ["GET /private?a=1"] * 2
    assert (counted.total, live_larder.count("/private"), live_larder.count("/nowhere")) == (2, 2, 0)


def test_a_purge_brings_the_next_request_to_the_application(live_larder: LiveLarder) -> None:
    client = live_larder.client()
    for purge in [{"url": "/"}, {"url": f"{live_larder.url}/"}, {"prefix": "/"}, {"all": True}]:
        client.get("/")
        live_larder.hit(client.get("/"))
        live_larder.purge(**purge)  # type: ignore[arg-type]
        live_larder.miss(client.get("/"))
    live_larder.purge("/", soft=True)
    stale = client.get("/")
    assert stale.cache_status.fwd == "stale", stale
    with pytest.raises(TypeError):
        live_larder.purge()
    with pytest.raises(RuntimeError, match="no prefix"):
        live_larder.purge(prefix="nonsense")
    assert live_larder.metrics()["larder_purges_total"] >= 5


def test_a_page_for_all_and_a_page_for_each_pass(live_larder: LiveLarder, users: tuple[Client, Client]) -> None:
    shared = live_larder.shared(*users, "/")
    assert (shared.answers, shared.hits, shared.reused) == (18, 15, True)
    for path in ["/private", "/me"]:
        shared = live_larder.shared(*users, path)
        assert not shared.reused, path
    assert [user.get("/me").text for user in users] == ["Hello alice", "Hello bob"], "the users are who they were"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/leak/body", ["Welcome back, alice!", "Welcome back, bob!", "these are the bytes for alice"]),
        ("/leak/field", ["x-account: ['alice'], and the application gives ['bob']"]),
        ("/leak/etag", ["etag: ['\"alice\"'], and the application gives ['\"bob\"']"]),
        ("/leak/status", ["200, and the application gives 404", "these are the bytes for alice and bob"]),
    ],
)
def test_a_page_that_leaks_is_caught(
    live_larder: LiveLarder, users: tuple[Client, Client], path: str, said: list[str]
) -> None:
    with pytest.raises(AssertionError) as failure:
        live_larder.shared(*users, path)
    message = str(failure.value)
    for words in ["did not get what the application gives", "Cache-Status  larder; hit; ", "verdict: ", *said]:
        assert words in message, message


def test_users_that_a_header_names_are_told_apart(live_larder: LiveLarder) -> None:
    alice, bob = (live_larder.client(name, headers={"X-User": name}) for name in ("alice", "bob"))
    assert alice.get("/private", headers={"X-User": "carol"}).sent["X-User"] == "carol", "a request's own come first"
    with pytest.raises(AssertionError, match="Welcome back, bob!(?s:.)*these are the bytes for alice"):
        live_larder.shared(alice, bob, "/leak/header")


@pytest.mark.larder(cache__set_cookie="rfc")
def test_a_stored_cookie_is_caught(live_larder: LiveLarder, users: tuple[Client, Client]) -> None:
    with pytest.raises(AssertionError, match="a stored answer sets a cookie"):
        live_larder.shared(*users, "/leak/cookie")


def test_what_varies_has_to_be_named(live_larder: LiveLarder, users: tuple[Client, Client]) -> None:
    with pytest.raises(AssertionError, match="gives alice two different answers.*\n.*<i>"):
        live_larder.shared(*users, "/number")
    with pytest.raises(AssertionError, match="these are the bytes for alice"):
        live_larder.shared(*users, "/number", ignore="<i>.*</i>")


def test_a_user_is_not_another_by_being_named_twice(live_larder: LiveLarder, users: tuple[Client, Client]) -> None:
    with pytest.raises(ValueError, match="two users"):
        live_larder.shared(users[0], users[0], "/")


@pytest.mark.larder(cache__default_timeout="1h", durable__url="off")
def test_a_marker_sets_configuration(live_larder: LiveLarder) -> None:
    live_larder.stored(live_larder.client().get("/me"))


def test_a_configuration_file_is_taken(app: Flask, tmp_path: Path) -> None:
    config = tmp_path / "larder.toml"
    config.write_text('[durable]\nurl = "file:/nowhere/at/all"\n[[rule]]\npath = "/me"\noverride_timeout = "1h"\n')
    with LiveLarder(app, config=config) as larder:
        larder.stored(larder.client().get("/me"))
    config.write_text("[server]\nlisen = 1\n")
    with pytest.raises(RuntimeError, match='the nearest key is "server.listen"'):
        LiveLarder(app, config=config).start()
    with pytest.raises(RuntimeError, match="does not run"):
        LiveLarder(app).client()
    with pytest.raises(RuntimeError, match="No such file"):
        LiveLarder(app, binary=tmp_path / "nothing").start()


def test_threads_of_clients_do_not_disturb_each_other(app: Flask) -> None:
    with LiveLarder(app) as larder:
        texts: list[str] = []

        def look(client: Client) -> None:
            client.get(f"/name/{client.name}")
            texts.extend(client.get("/private").text for _ in range(20))

        threads = [threading.Thread(target=look, args=(larder.client(f"user{n}"),)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == ["never kept"] * 160
        assert larder.count("/private") == 160


def processes(parent: int) -> Iterator[int]:
    for task in Path(f"/proc/{parent}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def test_larder_ends_with_a_test_run_that_is_killed() -> None:
    script = textwrap.dedent("""
        import sys
        from larder.testing import LiveLarder
        from flask import Flask
        larder = LiveLarder(Flask("app"))
        larder.start()
        print("up", flush=True)
        sys.stdin.read()
    """)
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None and running.stdout.readline() == b"up\n"
        (larder,) = processes(running.pid)
        handle = os.pidfd_open(larder)
        running.kill()
    ended, _, _ = select.select([handle], [], [], 20)
    os.close(handle)
    assert ended, "Larder lives on"


def test_a_failure_says_why_the_application_did_not_share_its_page_each_time() -> None:
    app = Flask(__name__)
    app.secret_key = "for tests"
    Larder(app)

    @app.get("/caf\u00e9")
    @cache_for(minutes=5)
    def page() -> ResponseReturnValue:
        return f"Hello {session.get('user', 'stranger')}"

    @app.get("/plain")
    @cache_for(minutes=5)
    def plain() -> ResponseReturnValue:
        return "for all"

    with LiveLarder(app) as larder:
        client = larder.client()
        for path in ("/caf%C3%A9", "/caf%C3%A9", "/caf%C3%A9?page=2"):
            with pytest.raises(AssertionError) as failure:
                larder.hit(client.get(path))
            assert f"larder.flask  it reads the session, in {__file__}" in str(failure.value)
        with pytest.raises(AssertionError) as failure:
            larder.hit(client.get("/plain"))
        assert "larder.flask" not in str(failure.value)
