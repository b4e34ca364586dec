"""A real Larder in front of a real gunicorn: what visitors get."""

from __future__ import annotations

import os
import random
import signal
import threading
from typing import Any, Callable

import pytest

SHOP = """
import os, itertools, time
from flask import (Flask, Response, flash, get_flashed_messages, redirect, render_template_string, request, session,
                   stream_with_context)
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user
from flask_sqlalchemy import SQLAlchemy
from flask_wtf.csrf import CSRFProtect, generate_csrf
import larder
from larder.flask import Larder, add_tags, cache_for, no_cache, tag_for

app = Flask(__name__)
app.config.update(
    SECRET_KEY="secret", SQLALCHEMY_DATABASE_URI="sqlite:///" + os.environ["SHOP"], WTF_CSRF_CHECK_DEFAULT=False,
    LARDER_PURGE_RETRY=1.0, LARDER_PURGE_WAIT=2.0,
)
db = SQLAlchemy(app)
Larder(app)
login = LoginManager(app)
CSRFProtect(app)
made = itertools.count()

class Item(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    name = db.Column(db.String)

class User(UserMixin):
    def __init__(self, name):
        self.id = name

login.user_loader(User)

def stamp():
    return f"{os.getpid()}-{next(made)}"

@app.get("/")
@cache_for(minutes=5, tags=lambda: [Item])
def front():
    return f"front {stamp()}"

@app.get("/item/<int:id>")
@cache_for(minutes=5)
def item(id):
    found = db.session.get(Item, id)
    add_tags(found)
    return f"{found.name} {stamp()}"

@app.post("/item/<int:id>")
def edit(id):
    found = db.session.get(Item, id)
    found.name = request.form["name"]
    larder.purge(tag=[tag_for(found), tag_for(Item)])
    if request.form.get("fail"):
        raise RuntimeError("before the commit")
    db.session.commit()
    return redirect(f"/item/{id}", 303)

@app.post("/login/<name>")
def log_in(name):
    login_user(User(name))
    flash(f"welcome {name}")
    return "logged in"

@app.get("/me")
@cache_for(minutes=5)
def me():
    return f"you are {current_user.get_id()} {stamp()}"

@app.get("/account")
@cache_for(minutes=5)
@login_required
def account():
    return f"account of {current_user.get_id()} {stamp()}"

@app.get("/basket")
@cache_for(minutes=5, vary=["Cookie"])
def basket():
    return f"basket of {session.get('_user_id')} {stamp()}"

@app.get("/form")
@cache_for(minutes=5)
def form():
    return f"token {generate_csrf()}"

@app.get("/messages")
@cache_for(minutes=5)
def messages():
    return f"messages {get_flashed_messages()} {stamp()}"

@app.get("/tracked")
@cache_for(minutes=5)
def tracked():
    return f"tracked {stamp()}"

@app.get("/unless")
@cache_for(minutes=5, unless=lambda: current_user.is_authenticated)
def unless():
    return f"unless {current_user.get_id()} {stamp()}"

@app.get("/language")
@cache_for(minutes=5)
def language():
    return f"{request.accept_languages.best_match(['de', 'en'])} {stamp()}"

@app.get("/basic")
@cache_for(minutes=5)
def basic():
    return f"for {request.authorization.username if request.authorization else None} {stamp()}"

@app.get("/stream")
@cache_for(minutes=5)
def stream():
    def pieces():
        yield "stream "
        if request.args.get("late"):
            yield f"of {session.get('_user_id')}"
        yield stamp()
    return Response(stream_with_context(pieces()))

@app.get("/query")
@cache_for(minutes=5)
def query():
    return f"{sorted(request.args.items())} {stamp()}"

@app.get("/missing")
@cache_for(minutes=5, statuses={404: 60})
def missing():
    return stamp(), 404

@app.get("/broken")
@cache_for(minutes=5)
def broken():
    raise RuntimeError(stamp())

@app.get("/soft")
@cache_for(minutes=5, tags=["soft"])
def soft():
    return "soft " + request.args.get("x", "")

@app.post("/purge")
def purge():
    larder.purge(**{name: value == "1" if name in ("all", "soft") else value for name, value in request.form.items()})
    return "asked"

@app.after_request
def late(response):
    if request.path == "/tracked":
        response.set_cookie("visitor", stamp())
    return response

@app.teardown_request
def log(error):
    app.logger.debug("%s", session.get("_user_id"))

with app.app_context():
    db.session.execute(db.text("PRAGMA journal_mode=WAL"))
    db.create_all()
    if not db.session.get(Item, 7):
        db.session.add(Item(id=7, name="old"))
        db.session.commit()
    db.session.remove()
    db.engine.dispose()  # no connection of SQLite's survives a fork
"""


@pytest.fixture(scope="module")
def running(start_site: Callable[..., Any]) -> Any:
    # One process makes the table, then the workers are forked.
    return start_site(SHOP, options=("--preload",))


@pytest.fixture
def shop(running: Any) -> Any:
    assert running.ask("/item/7", "POST", "name=old").status == 303
    assert running.ask("/purge", "POST", "all=1").status == 200
    return running


def log_in(shop: Any, name: str) -> str:
    """Returns a visitor's cookie."""
    cookie: str = shop.ask(f"/login/{name}", "POST")["Set-Cookie"].split(";")[0]
    return cookie


def test_a_marked_page_is_a_hit_and_hides_nothing(shop: Any) -> None:
    first, second = shop.ask("/"), shop.ask("/")
    assert "stored" in first.cache and second.is_hit and first.body == second.body
    assert first["Cache-Control"] == "private, no-cache"
    assert shop.ask("/", If_None_Match=second["ETag"]).status == 304
    # A visitor with a session gets the page that everybody gets, although Flask-Login looks at each response.
    third = shop.ask("/", Cookie=log_in(shop, "ann"))
    assert third.is_hit and third.body == first.body and "Cookie" not in third["Vary"]


@pytest.mark.parametrize("path", ["/me", "/account", "/form", "/messages", "/unless", "/basket", "/tracked"])
def test_two_users_never_see_each_others_bytes(shop: Any, path: str) -> None:
    cookies = {name: log_in(shop, name) for name in ("ann", "ben")}
    seen: dict[str, set[bytes]] = {"ann": set(), "ben": set(), "nobody": set()}
    for _ in range(3):
        for name in seen:
            fields = {"Cookie": cookies[name]} if name in cookies else {}
            seen[name].add(shop.ask(path, **fields).body)
    if path in ("/account",):
        seen["nobody"] = set()
    assert not seen["ann"] & seen["ben"] and not seen["ann"] & seen["nobody"] and not seen["ben"] & seen["nobody"]
    if path == "/basket":
        assert {name: len(bodies) for name, bodies in seen.items()} == {"ann": 1, "ben": 1, "nobody": 1}


def test_a_cookie_that_is_set_late_is_never_stored(shop: Any) -> None:
    first, second = shop.ask("/tracked"), shop.ask("/tracked")
    assert first["Set-Cookie"] != second["Set-Cookie"] and not second.is_hit
    assert first["Cache-Control"] == "private, no-store"


def test_a_flash_message_reaches_who_it_is_for_and_nobody_else(shop: Any) -> None:
    assert "[]" in shop.ask("/messages").text
    cookie = log_in(shop, "ann")
    assert "welcome ann" in shop.ask("/messages", Cookie=cookie).text
    assert "[]" in shop.ask("/messages").text


def test_languages_have_a_copy_each(shop: Any) -> None:
    german, english = shop.ask("/language", Accept_Language="de"), shop.ask("/language", Accept_Language="en")
    assert german.text.startswith("de") and english.text.startswith("en")
    assert shop.ask("/language", Accept_Language="de").body == german.body


def test_the_order_of_parameters_never_mixes_pages(shop: Any, start_site: Callable[..., Any]) -> None:
    # pallets-eco/flask-caching#35: there the order made two copies, or with other settings the parameters none.
    pages = {path: shop.ask(path).text.split("]")[0] for path in ("/query?a=1&b=2", "/query?b=2&a=1", "/query?a=2&b=1")}
    assert pages["/query?a=1&b=2"] == pages["/query?b=2&a=1"] != pages["/query?a=2&b=1"]
    assert shop.ask("/query?a=1&b=2").is_hit
    sorting = start_site(SHOP, 'rule=[{path="/query", sort_query=true}]', workers=1)
    assert sorting.ask("/query?a=1&b=2").body == sorting.ask("/query?b=2&a=1").body
    assert sorting.ask("/query?b=1&a=2").text.startswith("[('a', '2'), ('b', '1')]")


def test_credentials_are_never_shared(shop: Any) -> None:
    assert shop.ask("/basic").text.startswith("for None")
    assert shop.ask("/basic", Authorization="Basic YW5uOng=").text.startswith("for ann")
    assert shop.ask("/basic", Authorization="Basic YmVuOng=").text.startswith("for ben")
    assert shop.ask("/basic").text.startswith("for None")


def test_a_stream_is_shared_and_one_that_reads_too_late_breaks_off(shop: Any) -> None:
    import http.client

    first = shop.ask("/stream")
    assert shop.ask("/stream").body == first.body
    for name in ("ann", "ben"):
        with pytest.raises((http.client.IncompleteRead, AssertionError)):
            reply = shop.ask("/stream?late=1", Cookie=log_in(shop, name))
            assert reply.status == 200
    shop.gunicorn.wait_for("LateRead")


def test_errors_are_asked_for_again_and_a_404_is_kept_where_it_is_marked(shop: Any) -> None:
    assert shop.ask("/missing").body == shop.ask("/missing").body
    assert [shop.ask("/broken").status for _ in range(2)] == [500, 500]
    assert not shop.ask("/broken").is_hit


def test_an_edit_shows_on_the_next_request(shop: Any) -> None:
    for number in range(20):
        assert shop.ask("/item/7").text.startswith(f"name-{number - 1} " if number else "old ")
        assert shop.ask("/item/7").is_hit and (shop.ask("/") and shop.ask("/").is_hit)
        assert shop.ask("/item/7", "POST", f"name=name-{number}").status == 303
        assert shop.ask("/item/7").text.startswith(f"name-{number} ")
        assert not shop.ask("/").is_hit


def test_a_rollback_purges_nothing_and_the_page_stays_a_hit(shop: Any) -> None:
    first = shop.ask("/item/7")
    assert shop.ask("/item/7", "POST", "name=never&fail=1").status == 500
    # Larder itself drops the URL of an unsafe request only if that succeeds.
    again = shop.ask("/item/7")
    assert again.is_hit and again.body == first.body


def test_every_kind_of_purge_reaches_the_real_larder(shop: Any) -> None:
    for form in ("url=/", "prefix=/", "tag=item", "all=1"):
        assert shop.ask("/").status == 200 and shop.ask("/").is_hit
        assert shop.ask("/purge", "POST", form).text == "asked"
        assert not shop.ask("/").is_hit, form
    assert shop.ask("/soft").status == 200
    shop.ask("/purge", "POST", "tag=soft&soft=1")
    validated = shop.ask("/soft")
    assert "fwd=stale" in validated.cache and "fwd-status=304" in validated.cache


def test_a_larder_that_is_gone_breaks_nothing(start_site: Callable[..., Any], free_port: int) -> None:
    site = start_site(SHOP, workers=1, LARDER_ADMIN=f"127.0.0.1:{free_port}")
    assert site.ask("/item/7", "POST", "name=new").status == 303
    assert site.ask("/item/7").text.startswith("new ")
    site.gunicorn.wait_for("given up")


def test_workers_that_were_forked_after_a_purge_purge_too(start_site: Callable[..., Any]) -> None:
    source = SHOP + "\nwith app.app_context():\n    larder.purge(tag='start')\n"
    # Each worker serves a few requests, and is then replaced by a fork of the process that has purged. Without kept
    # connections, none is closed while a POST is on its way.
    site = start_site(source, options=("--preload", "--max-requests", "7", "--keep-alive", "0"), workers=2)
    pids = set()
    for _ in range(20):
        assert site.ask("/item/7").status == 200, site.gunicorn.lines
        assert site.ask("/purge", "POST", "tag=item:7").status == 200, site.gunicorn.lines
        reply = site.ask("/item/7")
        assert not reply.is_hit
        pids.add(reply.text.split()[1].split("-")[0])
    assert len(pids) > 1, "only one worker was tried"


def test_a_worker_that_stops_sends_what_it_has(start_site: Callable[..., Any], fake_admin: Any) -> None:
    fake = fake_admin()
    fake.gate.clear()
    site = start_site(
        SHOP.replace("LARDER_PURGE_WAIT=2.0", "LARDER_PURGE_WAIT=0.0"),
        workers=1,
        LARDER_ADMIN=fake.address,
    )
    for number in range(5):
        assert site.ask("/purge", "POST", f"tag=t{number}").status == 200
    fake.wait_for(1)
    os.kill(site.gunicorn.process.pid, signal.SIGTERM)
    fake.gate.set()
    assert [asked["tag"] for asked in fake.wait_for(5)] == [f"t{number}" for number in range(5)]


def test_many_visitors_at_once_never_meet(shop: Any) -> None:
    """Twelve visitors, seeded: whatever they ask for in whatever order, each page is theirs or everybody's."""
    failures: list[str] = []
    counts = {"hits": 0, "all": 0}
    lock = threading.Lock()

    def visitor(number: int) -> None:
        chance = random.Random(f"visitor {number}")
        name = f"user{number}"
        cookie = log_in(shop, name)
        for _ in range(60):
            path = chance.choice(["/", "/item/7", "/me", "/account", "/basket", "/unless", "/messages", "/language"])
            if chance.random() < 0.1:
                shop.ask("/item/7", "POST", f"name=by-{name}")
            reply = shop.ask(path, Cookie=cookie)
            others = [f"user{other}" for other in range(12) if other != number]
            words = reply.text.replace("by-", "by ").split() if path != "/item/7" else []
            with lock:
                counts["all"] += 1
                counts["hits"] += reply.is_hit
                if any(other in words for other in others) or reply.status != 200:
                    failures.append(f"{name} got {path}: {reply.status} {reply.text}")

    threads = [threading.Thread(target=visitor, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[:5]
    assert counts["all"] == 720 and counts["hits"] > 50, counts
