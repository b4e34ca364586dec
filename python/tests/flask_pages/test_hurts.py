"""Tests what has hurt users of other caches. The names of the tests say what must be true here.

Each comment names where it was told: an issue of Flask-Caching, Flask-Cache, fastapi-cache or django-jimmypage, or a
vulnerability of Flask.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from flask import Flask, Response, flash, jsonify, redirect, render_template_string, request, session, url_for
from larder.flask import Larder, cache_for

pytestmark = pytest.mark.filterwarnings("ignore::larder.flask.NotShared")


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="test", LARDER_ADMIN="off", TESTING=True)
    Larder(app)
    return app


def is_shared(response: Any) -> bool:
    shared = "CDN-Cache-Control" in response.headers
    assert shared != ("no-store" in response.headers.get("Cache-Control", "no-store"))
    return shared


def is_private(response: Any) -> bool:
    return "CDN-Cache-Control" not in response.headers and "private" in response.headers["Cache-Control"]


def test_a_bearer_token_is_looked_at(app: Flask) -> None:
    # pallets-eco/flask-caching#104, long2ice/fastapi-cache#103: /users/me of one user went to the next.
    @app.get("/users/me")
    @cache_for(minutes=5)
    def me() -> Any:
        return jsonify(token=request.headers.get("Authorization", "").removeprefix("Bearer "))

    assert is_private(app.test_client().get("/users/me", headers={"Authorization": "Bearer ann"}))
    assert is_private(app.test_client().get("/users/me"))


def test_a_head_does_not_become_the_page(app: Flask) -> None:
    # pallets-eco/flask-caching#270: the empty answer to a HEAD was served to GETs.
    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return "hello"

    head, get = app.test_client().head("/"), app.test_client().get("/")
    assert is_shared(head) and head.data == b"" and get.data == b"hello"
    for name in ("Content-Length", "ETag", "CDN-Cache-Control"):
        assert head.headers[name] == get.headers[name]


def test_a_page_by_accept_has_a_copy_for_each(app: Flask) -> None:
    # thadeusb/flask-cache#107: XML was served to those who asked for JSON.
    @app.get("/")
    @cache_for(minutes=5)
    def page() -> Any:
        best = request.accept_mimetypes.best_match(["application/json", "text/html"])
        return jsonify(a=1) if best == "application/json" else "<p>"

    assert app.test_client().get("/").headers["Vary"] == "Accept"


def test_a_flash_message_is_for_one_visitor(app: Flask) -> None:
    # repology/repology-updater#183: a page with a flash message was cached.
    @app.get("/save")
    @cache_for(minutes=5)
    def save() -> str:
        flash("saved")
        return "ok"

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return render_template_string("{% for m in get_flashed_messages() %}{{ m }}{% endfor %}")

    client = app.test_client()
    assert is_private(client.get("/save")) and is_private(client.get("/"))


def test_a_csrf_token_is_seen_wherever_it_is_made(app: Flask) -> None:
    # yourcelf/django-jimmypage#1, pallets-eco/flask-caching#204: the token is noted by a layer further out.
    from flask_wtf.csrf import CSRFProtect  # type: ignore[import-untyped]

    CSRFProtect(app)

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return render_template_string('<input name="csrf_token" value="{{ csrf_token() }}">')

    client = app.test_client()
    first = client.get("/")
    assert is_private(first) and "csrf_token" in first.text
    # The second time the session has the token, and is only read.
    assert is_private(client.get("/"))


def test_a_session_that_is_only_refreshed_is_not_stored(app: Flask) -> None:
    # CVE-2023-30861: a permanent session's cookie is sent again, although nobody touched the session.
    @app.post("/login")
    def login() -> str:
        session["user"] = "ann"
        session.permanent = True
        return "ok"

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return "hello"

    app.permanent_session_lifetime = timedelta(days=1)
    client = app.test_client()
    client.post("/login")
    response = client.get("/")
    assert "Set-Cookie" in response.headers and is_private(response)
    assert "no-store" in response.headers["Cache-Control"]


def test_looking_whether_a_key_is_in_the_session_is_reading_it(app: Flask) -> None:
    # CVE-2026-27205: "key" in session was not noticed.
    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return "member" if "user" in session else "guest"

    assert is_private(app.test_client().get("/"))


def test_flask_login_alone_makes_no_page_private(app: Flask) -> None:
    # Flask-Login looks into the session after each request, so that with Flask 3.1.3 each page says Vary: Cookie.
    from flask_login import LoginManager, UserMixin, current_user, login_user  # type: ignore[import-untyped]

    class User(UserMixin):  # type: ignore[misc]
        id = "ann"

    LoginManager(app).user_loader(lambda _id: User())

    @app.post("/login")
    def login() -> str:
        login_user(User(), remember=True)
        return "ok"

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return "hello"

    @app.get("/me")
    @cache_for(minutes=5)
    def me() -> str:
        return f"hello {current_user.get_id()}"

    client = app.test_client()
    client.post("/login")
    response = client.get("/")
    assert is_shared(response) and "Vary" not in response.headers
    assert is_private(client.get("/me")) and is_private(app.test_client().get("/me"))


def test_a_remember_cookie_counts_as_a_cookie(app: Flask) -> None:
    from flask_login import LoginManager, UserMixin, login_user

    class User(UserMixin):  # type: ignore[misc]
        id = "ann"

    app.config["REMEMBER_COOKIE_REFRESH_EACH_REQUEST"] = True
    LoginManager(app).user_loader(lambda _id: User())

    @app.post("/login")
    def login() -> str:
        login_user(User(), remember=True)
        return "ok"

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return "hello"

    client = app.test_client()
    client.post("/login")
    response = client.get("/")
    assert "Set-Cookie" in response.headers and is_private(response)


def test_unless_the_user_is_logged_in_does_not_share_the_page_of_guests(app: Flask) -> None:
    # Flask-Caching's unless= also keeps a logged-in user from being served the copy of guests. A cache in front
    # answers before Flask is asked, so this page must not be shared at all.
    @app.get("/")
    @cache_for(minutes=5, unless=lambda: "user" in session)
    def page() -> str:
        return "guests only"

    assert is_private(app.test_client().get("/"))


def test_a_redirect_to_the_login_is_not_kept(app: Flask) -> None:
    # A cached redirect sends those who are logged in to the login for as long as it lives.
    @app.get("/")
    @cache_for(minutes=5)
    def page() -> Any:
        return redirect(url_for("page", next="/"))

    response = app.test_client().get("/")
    assert response.status_code == 302 and "CDN-Cache-Control" not in response.headers


def test_errors_are_not_kept_as_pages(app: Flask) -> None:
    @app.get("/<int:status>")
    @cache_for(hours=1)
    def page(status: int) -> Response:
        return Response("failed", status)

    for status in (400, 401, 403, 404, 429, 500, 503):
        assert "CDN-Cache-Control" not in app.test_client().get(f"/{status}").headers


def test_a_timeout_of_zero_is_not_forever(app: Flask) -> None:
    # In Flask-Caching 0 means without end.
    @app.get("/")
    @cache_for(seconds=0)
    def page() -> str:
        return "hello"

    assert is_private(app.test_client().get("/"))


def test_a_server_side_session_is_watched_too(app: Flask) -> None:
    from cachelib import SimpleCache
    from flask_session import Session  # type: ignore[import-untyped]

    app.config.update(SESSION_TYPE="cachelib", SESSION_CACHELIB=SimpleCache())
    Session(app)

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return "hello"

    @app.get("/me")
    @cache_for(minutes=5)
    def me() -> str:
        return f"hello {session.get('user')}"

    @app.post("/login")
    def login() -> str:
        session["user"] = "ann"
        return "ok"

    client = app.test_client()
    assert is_shared(client.get("/"))
    client.post("/login")
    assert is_private(client.get("/me")) and "ann" in client.get("/me").text
    assert is_private(app.test_client().get("/me"))


def test_compressed_pages_have_a_copy_for_each_coding(app: Flask) -> None:
    from flask_compress import Compress

    Compress(app)

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return "hello " * 1000

    plain = app.test_client().get("/")
    gzip = app.test_client().get("/", headers={"Accept-Encoding": "gzip"})
    assert is_shared(plain) and is_shared(gzip) and gzip.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in gzip.headers["Vary"] and "Accept-Encoding" in plain.headers["Vary"]
    assert plain.headers["ETag"] != gzip.headers["ETag"]


def test_languages_by_flask_babel_have_a_copy_each(app: Flask) -> None:
    from flask_babel import Babel, get_locale  # type: ignore[import-untyped]

    Babel(app, locale_selector=lambda: request.accept_languages.best_match(["de", "en"]))

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return f"{get_locale()}"

    response = app.test_client().get("/", headers={"Accept-Language": "de"})
    assert is_shared(response) and response.text == "de" and response.headers["Vary"] == "Accept-Language"
