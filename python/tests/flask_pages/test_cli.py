"""`flask larder purge|explain|check`, and the panel for Flask-DebugToolbar."""

from __future__ import annotations

from typing import Any, Callable

import larder
import pytest
from flask import Blueprint, Flask, request, session
from flask.views import MethodView
from flask_login import LoginManager, login_required  # type: ignore[import-untyped]
from larder.flask import Larder, add_tags, cache_for, no_cache


def make(admin: str, **config: Any) -> Flask:
    app = Flask(__name__, static_folder=None)
    app.config.update(SECRET_KEY="test", LARDER_ADMIN=admin, **config)
    Larder(app)
    return app


def run(app: Flask, *arguments: str) -> tuple[int, str]:
    result = app.test_cli_runner().invoke(args=["larder", *arguments])
    return result.exit_code, result.output


def test_purge_says_what_a_real_larder_answered(start_larder: Callable[..., Any]) -> None:
    _, _, admin = start_larder()
    app = make(admin, LARDER_SITE="https://shop.example")
    assert run(app, "purge", "/item/7") == (
        0,
        f"purged https://shop.example/item/7 at {admin} (nothing was held)\n",
    )
    code, told = run(app, "purge", "--tag", "a", "--prefix", "/b", "--soft")
    assert code == 0 and told == (
        f"purged what begins with /b (soft) at {admin}\npurged what is tagged a (soft) at {admin}\n"
    )
    assert run(app, "purge", "--all") == (0, f"purged everything at {admin}\n")
    code, told = run(app, "purge")
    assert code == 2 and "Give a URL, --prefix, --tag or --all" in told
    code, told = run(app, "purge", "--all", "--tag", "a")
    assert code == 2 and "leave out the URLs, --prefix and --tag" in told
    code, told = run(app, "purge", "--tag", "a", "--tag", " ")
    assert code == 2 and "--tag is empty" in told, "a script whose variable is empty has to hear of it"
    code, told = run(app, "purge", "ftp://a")
    assert code == 2 and 'url="ftp://a" is no URL' in told
    code, told = run(app, "purge", "http://")
    assert code == 1 and "is no absolute http or https URL" in told, "what Larder said"


def test_explain_asks_a_real_larder(start_larder: Callable[..., Any]) -> None:
    _, _, admin = start_larder()
    app = make(admin, LARDER_SITE="https://shop.example")
    code, told = run(app, "explain", "/item/7", "-H", "Accept-Language: de")
    assert code == 0 and "verdict: Cache-Status: larder; fwd=uri-miss" in told and "authority shop.example" in told
    code, told = run(app, "explain", "/item/7", "--json")
    assert code == 0 and '"verdict": "larder; fwd=uri-miss"' in told
    assert run(make(admin), "explain", "/item/7")[0] == 2


def test_a_token_and_a_unix_socket(start_larder: Callable[..., Any], tmp_path: Any) -> None:
    _, _, admin = start_larder("http://127.0.0.1:9", f"admin.listen=unix:{tmp_path / 'a.sock'}", "admin.token=secret")
    assert admin.startswith("unix:")
    code, told = run(make(admin), "check")
    assert code == 1 and "wants a token: set LARDER_TOKEN" in told
    assert run(make(admin, LARDER_TOKEN="secret"), "check")[0] == 0
    assert run(make(admin, LARDER_TOKEN="secret"), "purge", "--all")[0] == 0
    code, told = run(make(admin, LARDER_TOKEN="wrong"), "purge", "--all")
    assert code == 1 and "LARDER_TOKEN is missing or is not its admin.token" in told


def test_check_looks_at_every_route(start_larder: Callable[..., Any]) -> None:
    _, _, admin = start_larder()
    app = make(admin)
    LoginManager(app)

    @app.get("/plain")
    def plain() -> str:
        return ""

    @app.get("/marked")
    @cache_for(minutes=5)
    def marked() -> str:
        return ""

    @app.get("/forbidden")
    @no_cache
    def forbidden() -> str:
        return ""

    @app.get("/session")
    @cache_for(minutes=5)
    def reads() -> str:
        return str(session)

    @app.get("/visitor")
    @cache_for(minutes=5, vary=["Cookie"])
    def visitor() -> str:
        return str(session)

    @app.get("/address")
    @cache_for(minutes=5, vary=["Cookie"])
    def address() -> str:
        return str(request.remote_addr)

    @app.post("/post")
    @cache_for(minutes=5)
    def post() -> str:
        return ""

    class Item(MethodView):
        decorators = [login_required]

        @cache_for(minutes=5)
        def get(self) -> str:
            return ""

    blueprint = Blueprint("shop", __name__)
    blueprint.add_url_rule("/item", view_func=Item.as_view("item"))
    app.register_blueprint(blueprint)
    code, told = run(app, "check")
    states = {line.split()[0]: " ".join(line.split()[2:]) for line in told.splitlines() if line.startswith("  /")}
    assert states == {
        "/address": "cache_for address",
        "/forbidden": "no_cache forbidden",
        "/item": "cache_for shop.item",
        "/marked": "cache_for marked",
        "/plain": "not marked plain",
        "/post": "cache_for post",
        "/session": "cache_for reads",
        "/visitor": "cache_for visitor",
    }
    assert "/session is marked with cache_for, and uses the session" in told and __file__ in told
    assert "/post is marked with cache_for, but only GET and HEAD are kept" in told
    assert "/item is marked with cache_for, and is for users who are logged in" in told
    assert "/address is marked with cache_for, and uses the visitor's address" in told
    assert "/marked is" not in told and "/visitor is" not in told
    assert code == 0 and told.endswith("ok\n")


def test_check_names_mistakes_in_sentences(free_port: int) -> None:
    app = make(f"127.0.0.1:{free_port}", LARDER_FIELD="Cache-Control", LARDER_SITE="shop.example")
    app.config["LARDER_TAGS"] = "x"
    code, told = run(app, "check")
    assert code == 1
    for sentence in (
        "LARDER_TAGS is no setting",
        'LARDER_FIELD is "Cache-Control"',
        "write it with its scheme",
        f"no Larder at http://127.0.0.1:{free_port}: nobody listens there",
    ):
        assert sentence in told, told


@pytest.mark.filterwarnings("ignore::larder.flask.NotShared")
def test_the_panel_shows_what_the_page_would_say_and_the_page_itself_is_not_shared(admin: Any) -> None:
    from flask_debugtoolbar import DebugToolbarExtension

    app = make(admin.address)
    app.debug = True
    app.config["DEBUG_TB_PANELS"] = [
        "flask_debugtoolbar.panels.request_vars.RequestVarsDebugPanel",
        "larder.flask.panel.LarderPanel",
    ]
    DebugToolbarExtension(app)

    @app.get("/")
    @cache_for(minutes=5, tags=["front"])
    def page() -> str:
        larder.purge(tag="a<b")
        add_tags("item:7")
        return "<html><body>hello</body></html>"

    @app.get("/me")
    @cache_for(minutes=5)
    def me() -> str:
        return f"<html><body>{session.get('user')}</body></html>"

    @app.get("/data")
    @cache_for(minutes=5)
    def data() -> dict[str, int]:
        return {"a": 1}

    response = app.test_client().get("/")
    assert "everybody may have it" in response.text and "front, item:7" in response.text
    assert "max-age=300" in response.text and "what is tagged a&lt;b" in response.text
    assert "Cache-Status" in response.text
    assert response.headers["Cache-Control"] == "private, no-store", "the toolbar is in it"
    assert "it reads the session" in app.test_client().get("/me").text
    assert app.test_client().get("/data").headers["CDN-Cache-Control"] == "max-age=300"
