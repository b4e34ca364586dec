"""Tests what a page says of caching, by Flask's own test client."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import warnings
from datetime import timedelta
from typing import Any, Iterator

import larder
import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    after_this_request,
    flash,
    make_response,
    redirect,
    render_template_string,
    request,
    send_file,
    session,
    stream_with_context,
)
from flask.views import MethodView
from larder.flask import Larder, LateRead, NotShared, add_tags, cache_for, no_cache, tag_for

PRIVATE = "private, no-cache"
NOTHING = "private, no-store"


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="test", LARDER_ADMIN="off")
    Larder(app)
    return app


def get(app: Flask, path: str = "/", method: str = "GET", **fields: str) -> Any:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    return app.test_client().open(path, method=method, headers=headers)


def kept(response: Any) -> str | None:
    """Returns what Larder is told."""
    value: str | None = response.headers.get("CDN-Cache-Control")
    return value


# ---- lifetimes ----


def test_a_marked_page_tells_larder_and_browsers_apart(app: Flask) -> None:
    @app.get("/")
    @cache_for(minutes=5, seconds=1, swr=30, sie=600, tags=["front", "a b"], vary=["Accept-Language"])
    def page() -> str:
        return "hello"

    response = get(app)
    assert kept(response) == "max-age=301, stale-while-revalidate=30, stale-if-error=600"
    assert response.headers["Cache-Control"] == PRIVATE
    assert response.headers["Cache-Tag"] == "front, a%20b"
    assert response.headers["Vary"] == "Accept-Language"
    assert response.headers["ETag"]
    assert get(app, If_None_Match=response.headers["ETag"]).status_code == 304


def test_browsers_get_a_lifetime_of_their_own(app: Flask) -> None:
    @app.get("/")
    @cache_for(hours=1, browser=60)
    def page() -> str:
        return "hello"

    response = get(app)
    assert (kept(response), response.headers["Cache-Control"]) == ("max-age=3600", "private, max-age=60")


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"seconds": 5}, "max-age=5"),
        ({"days": 1, "hours": 1, "minutes": 1, "seconds": 1}, "max-age=90061"),
        ({"seconds": timedelta(minutes=2)}, "max-age=120"),
        ({"minutes": lambda: 2}, "max-age=120"),
        ({"minutes": lambda: timedelta(seconds=7)}, "max-age=7"),
        ({"minutes": lambda: None}, None),
        ({"seconds": lambda: 0}, None),
        ({"seconds": 0}, None),
        ({"seconds": 0.4}, None),
        ({"days": 10**6}, "max-age=2147483648"),
    ],
)
def test_units_add_up_and_may_be_called_for(app: Flask, times: dict[str, Any], expected: str | None) -> None:
    @app.get("/")
    @cache_for(**times)
    def page() -> str:
        return "hello"

    response = get(app)
    assert kept(response) == expected
    assert response.headers["Cache-Control"] == PRIVATE


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"minutes": -1},
        {"minutes": "5"},
        {"minutes": float("nan")},
        {"minutes": True},
        {"minutes": 1, "tags": "front"},
        {"minutes": 1, "vary": ["*"]},
        {"minutes": 1, "vary": ["Authorization"]},
        {"minutes": 1, "vary": ["a b"]},
        {"minutes": 1, "statuses": {500: 1}},
        {"minutes": 1, "statuses": {401: 1}},
        {"minutes": 1, "statuses": {429: 1}},
    ],
)
def test_a_mistake_shows_where_it_is_written(wrong: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        cache_for(**wrong)


def test_other_statuses_need_a_lifetime_of_their_own(app: Flask) -> None:
    @app.get("/<int:status>")
    @cache_for(minutes=5, statuses={404: 30, 301: lambda: timedelta(hours=1)})
    def page(status: int) -> Response:
        return Response("x", status)

    assert kept(get(app, "/200")) == "max-age=300"
    assert kept(get(app, "/404")) == "max-age=30"
    assert kept(get(app, "/301")) == "max-age=3600"
    for status in (302, 400, 403, 410, 429):
        response = get(app, f"/{status}")
        assert kept(response) is None and "Cache-Control" not in response.headers, status


def test_abort_and_error_handlers_are_the_pages_of_their_view(app: Flask) -> None:
    @app.errorhandler(404)
    def missing(_error: Exception) -> tuple[str, int]:
        return "nothing here", 404

    @app.get("/")
    @cache_for(minutes=5, statuses={404: 30})
    def page() -> str:
        abort(404)

    assert kept(get(app)) == "max-age=30"
    assert kept(get(app, "/unknown")) is None


def test_an_exception_makes_a_page_that_nobody_keeps(app: Flask) -> None:
    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        raise RuntimeError("a bug")

    response = get(app)
    assert (response.status_code, kept(response), response.headers["Cache-Control"]) == (500, None, "no-store")


def test_the_debugger_is_not_stored(app: Flask) -> None:
    from werkzeug.debug import DebuggedApplication
    from werkzeug.test import Client

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        raise RuntimeError("a bug")

    app.debug = True
    response = Client(DebuggedApplication(app)).get("/")
    assert response.status_code == 500 and "CDN-Cache-Control" not in response.headers


@pytest.mark.parametrize("name", ["minutes", "unless", "response_filter", "tags", "swr", "browser"])
def test_an_exception_in_a_callable_makes_the_page_uncached_and_is_logged(
    app: Flask, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("a bug in a callable")

    options: dict[str, Any] = {"minutes": 5, name: broken}

    @app.get("/")
    @cache_for(**options)
    def page() -> str:
        return "hello"

    response = get(app)
    assert (response.status_code, response.text, kept(response)) == (200, "hello", None)
    assert response.headers["Cache-Control"] == NOTHING
    assert "a bug in a callable" in caplog.text


def test_unless_and_response_filter_keep_a_page_out(app: Flask) -> None:
    @app.get("/unless")
    @cache_for(minutes=5, unless=lambda: request.args.get("draft"))
    def unless() -> str:
        return "hello"

    @app.get("/filter")
    @cache_for(minutes=5, response_filter=lambda response: b"partial" not in response.data)
    def filtered() -> str:
        return request.args.get("text", "whole")

    assert kept(get(app, "/unless")) and kept(get(app, "/unless?draft=1")) is None
    assert kept(get(app, "/filter")) and kept(get(app, "/filter?text=partial")) is None
    assert get(app, "/filter?text=partial").headers["Cache-Control"] == PRIVATE


# ---- marks ----


def test_only_get_and_head_get_a_lifetime(app: Flask) -> None:
    @app.route("/", methods=["GET", "POST", "PUT", "OPTIONS"], provide_automatic_options=False)
    @cache_for(minutes=5)
    def page() -> str:
        return "hello"

    assert kept(get(app)) and kept(get(app, method="HEAD"))
    assert get(app).headers["ETag"] == get(app, method="HEAD").headers["ETag"]
    for method in ("POST", "PUT", "OPTIONS"):
        response = get(app, method=method)
        assert kept(response) is None and "Cache-Control" not in response.headers, method


def test_unmarked_pages_are_left_alone(app: Flask) -> None:
    @app.get("/")
    def page() -> Response:
        assert session.get("user") is None
        return Response("hello", headers={"Cache-Control": "public, max-age=9", "CDN-Cache-Control": "max-age=8"})

    response = get(app)
    assert response.headers["Cache-Control"] == "public, max-age=9"
    assert kept(response) == "max-age=8"
    assert "ETag" not in response.headers and "Cache-Tag" not in response.headers


def test_decorators_work_above_and_below_others_and_at_several_endpoints(app: Flask) -> None:
    import functools

    def other(view: Any) -> Any:
        @functools.wraps(view)
        def wrapper(**kwargs: Any) -> Any:
            return make_response(view(**kwargs))

        return wrapper

    def refusing(view: Any) -> Any:
        return functools.wraps(view)(lambda **kwargs: ("not you", 200))

    def page() -> str:
        return "hello"

    marked = cache_for(minutes=5)(page)
    for number, view in enumerate([other(marked), cache_for(minutes=5)(other(page)), marked, refusing(marked)]):
        app.add_url_rule(f"/{number}", f"page{number}", view)
    app.add_url_rule("/again", "again", marked)
    assert [kept(get(app, path)) for path in ("/0", "/1", "/2", "/again")] == ["max-age=300"] * 4
    assert kept(get(app, "/3")) is None, "a decorator above answered by itself"


def test_blueprints_method_views_and_async_views(app: Flask) -> None:
    blueprint = Blueprint("shop", __name__, url_prefix="/shop")

    @blueprint.get("/")
    @cache_for(minutes=1)
    def front() -> str:
        return "front"

    @app.get("/async")
    @cache_for(minutes=2)
    async def later() -> str:
        await asyncio.sleep(0)
        add_tags("async")
        return "later"

    class Item(MethodView):
        @cache_for(minutes=3)
        def get(self) -> str:
            return "item"

        def post(self) -> str:
            return "changed"

    class Listing(MethodView):
        decorators = [cache_for(minutes=4)]

        def get(self) -> str:
            return "list"

    app.register_blueprint(blueprint)
    app.add_url_rule("/item", view_func=Item.as_view("item"))
    app.add_url_rule("/list", view_func=Listing.as_view("list"))
    assert [kept(get(app, path)) for path in ("/shop/", "/async", "/item", "/list")] == [
        f"max-age={60 * minutes}" for minutes in (1, 2, 3, 4)
    ]
    assert get(app, "/async").headers["Cache-Tag"] == "async"
    assert kept(get(app, "/item", "POST")) is None


def test_a_page_can_be_marked_while_it_is_made(app: Flask) -> None:
    @app.get("/")
    def page() -> str:
        cache_for(minutes=5, tags=["a"])
        add_tags("b", "c,d")
        return "hello"

    @app.get("/secret")
    @cache_for(minutes=5)
    def secret() -> str:
        no_cache()
        return "hello"

    response = get(app)
    assert (kept(response), response.headers["Cache-Tag"]) == ("max-age=300", "a, b, c%2Cd")
    response = get(app, "/secret")
    assert (kept(response), response.headers["Cache-Control"]) == (None, NOTHING)


def test_a_decorator_that_is_made_in_a_request_marks_no_page(app: Flask) -> None:
    @app.get("/function")
    def function() -> str:
        @cache_for(minutes=5)
        def inner() -> str:
            return "inner"

        return "never called" if inner is None else "hello"

    @app.get("/module")
    def module() -> str:
        # As an import in a function: a module whose views are marked.
        exec(compile("from larder.flask import cache_for\nmark = cache_for(minutes=5)\n", "late.py", "exec"), {})
        return "hello"

    assert kept(get(app, "/function")) is None
    assert kept(get(app, "/module")) is None


def test_no_cache_wins_over_everything(app: Flask) -> None:
    @app.get("/")
    @cache_for(minutes=5)
    @no_cache
    def page() -> Response:
        return Response("hello", headers={"CDN-Cache-Control": "max-age=9", "Expires": "0", "Cache-Control": "public"})

    response = get(app)
    assert (kept(response), response.headers["Cache-Control"]) == (None, NOTHING)
    assert "Expires" not in response.headers


def test_the_last_policy_counts_and_tags_and_vary_add_up(app: Flask) -> None:
    @app.get("/")
    @cache_for(minutes=5, tags=["a"], vary=["Accept-Language"], unless=lambda: request.args.get("draft"))
    @cache_for(minutes=1, tags=["b"], vary=["X-Shop"])
    def page() -> str:
        return "hello"

    response = get(app)
    assert (kept(response), response.headers["Cache-Tag"]) == ("max-age=60", "a, b")
    assert response.headers["Vary"] == "Accept-Language, X-Shop"
    assert kept(get(app, "/?draft=1")) is None


def test_two_apps_and_a_factory_in_one_process() -> None:
    larder = Larder()

    def create(minutes: int, field: str) -> Flask:
        app = Flask(__name__)
        app.config.update(LARDER_ADMIN="off", LARDER_FIELD=field)
        larder.init_app(app)
        larder.init_app(app)

        @app.get("/")
        @cache_for(minutes=minutes)
        def page() -> str:
            return "hello"

        return app

    one, two = create(1, "CDN-Cache-Control"), create(2, "Larder-Cache-Control")
    assert kept(get(one)) == "max-age=60"
    assert kept(get(two)) is None and get(two).headers["Larder-Cache-Control"] == "max-age=120"

    from werkzeug.middleware.dispatcher import DispatcherMiddleware
    from werkzeug.test import Client

    mounted = Client(DispatcherMiddleware(one, {"/two": two}))
    assert mounted.get("/").headers["CDN-Cache-Control"] == "max-age=60"
    assert mounted.get("/two/").headers["Larder-Cache-Control"] == "max-age=120"


# ---- what the page set itself ----


def test_what_a_page_says_itself_wins_where_it_is_stricter(app: Flask) -> None:
    @app.get("/")
    @cache_for(minutes=5)
    def page() -> Response:
        return Response("hello", headers=dict(pair.split(": ", 1) for pair in request.args.getlist("say")))

    def said(*fields: str) -> tuple[str | None, str]:
        response = app.test_client().get("/", query_string={"say": list(fields)})
        return kept(response), response.headers["Cache-Control"]

    assert said("Cache-Control: no-store") == (None, NOTHING)
    assert said("Cache-Control: private, max-age=5") == (None, "private, max-age=5")
    assert said("Cache-Control: public, max-age=5") == ("max-age=300", "public, max-age=5")
    assert said("CDN-Cache-Control: max-age=7") == ("max-age=7", PRIVATE)
    assert said("Vary: *") == (None, PRIVATE)
    response = app.test_client().get("/", query_string={"say": ["Vary: X-A", "Cache-Tag: own", 'ETag: "mine"']})
    assert (response.headers["Vary"], response.headers["Cache-Tag"]) == ("X-A", "own")
    assert response.headers["ETag"] == '"mine"'


def test_streams_and_files_get_a_lifetime_and_no_new_etag(app: Flask) -> None:
    made: list[int] = []

    @app.get("/stream")
    @cache_for(minutes=5)
    def stream() -> Response:
        def pieces() -> Iterator[str]:
            for number in range(3):
                made.append(number)
                yield f"{number}\n"

        return Response(pieces())

    @app.get("/file")
    @cache_for(minutes=5)
    def file() -> Response:
        return send_file(io.BytesIO(b"0123456789"), "text/plain", etag="mine", download_name="a.txt")

    response = app.test_client().get("/stream", buffered=False)
    assert made in ([], [0]), "the stream was read before it was sent"
    assert kept(response) == "max-age=300" and "ETag" not in response.headers
    assert response.text == "0\n1\n2\n"
    response = get(app, "/file")
    assert (kept(response), response.headers["Cache-Control"]) == ("max-age=300", PRIVATE)
    response = get(app, "/file", Range="bytes=2-4")
    assert (response.status_code, response.text, kept(response)) == (206, "234", "max-age=300")
    assert get(app, "/file", If_None_Match='"mine"').status_code == 304


def test_a_failed_precondition_gets_no_lifetime(app: Flask) -> None:
    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return "hello"

    response = get(app, If_Match='"other"')
    assert (response.status_code, kept(response)) == (412, None)


# ---- pages made for one visitor ----


def test_the_warning_names_the_line_that_read_the_session(app: Flask) -> None:
    app.debug = True

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        name = session.get("user")  # the line
        return f"hello {name}"

    with pytest.warns(NotShared, match="reads the session") as caught:
        response = get(app)
    assert (kept(response), response.headers["Cache-Control"]) == (None, PRIVATE)
    source = open(__file__).read().splitlines()
    assert caught[0].filename == __file__ and source[caught[0].lineno - 1].endswith("# the line")
    assert f"{os.path.basename(__file__)}:{caught[0].lineno}" in str(caught[0].message)


@pytest.mark.parametrize("vary", [[], ["Cookie"]])
@pytest.mark.parametrize(
    ("look", "advice", "by_vary"),
    [
        (lambda: session.get("user"), "Take it out of the page", True),
        (lambda: request.cookies.get("a"), "Take it out of the page", True),
        (lambda: request.remote_addr, "Take it out of the page", False),
        (lambda: request.access_route, "Take it out of the page", False),
        (lambda: request.authorization, "Larder keeps no answer to a request with it", False),
        (lambda: session.update(user="a"), "Change it in a page that is not marked", False),
        (lambda: after_this_request(_with_cookie), "Set it in a page that is not marked", False),
    ],
)
def test_the_advice_fits_the_cause(app: Flask, look: Any, advice: str, by_vary: bool, vary: list[str]) -> None:
    app.testing = True

    @app.get("/")
    @cache_for(minutes=5, vary=vary)
    def page() -> str:
        look()
        return "hello"

    if by_vary and vary:
        assert get(app).headers["Larder-Cache-Control"] == "max-age=300"
        return
    with pytest.warns(NotShared) as caught:
        get(app)
    told = str(caught[0].message)
    assert advice in told and "@no_cache" in told
    assert ('vary=["Cookie"]' in told) is by_vary


def _with_cookie(response: Response) -> Response:
    response.set_cookie("a", "b")
    return response


def test_the_date_is_left_to_the_server(app: Flask) -> None:
    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return "hello"

    @app.get("/dated")
    @cache_for(minutes=5)
    def dated() -> tuple[str, dict[str, str]]:
        return "hello", {"Date": "Thu, 01 Jan 2026 00:00:00 GMT"}

    first = get(app)
    again = get(app, If_None_Match=first.headers["ETag"])
    assert (first.status_code, again.status_code) == (200, 304)
    assert "Date" not in first.headers and "Date" not in again.headers
    assert get(app, "/dated").headers["Date"] == "Thu, 01 Jan 2026 00:00:00 GMT"


@pytest.mark.parametrize(
    ("times", "options", "told"),
    [
        ((60,), {}, r"say the unit: cache_for\(seconds=60\)"),
        ((lambda: "the view",), {}, "say the unit"),
        ((), {"minute": 5}, "has no option minute: do you mean minutes"),
        ((), {"timeout": 5}, "has no option timeout: do you mean seconds"),
        ((), {"zone": 5}, "has no option zone: say how long by"),
    ],
)
def test_a_time_without_a_unit_says_what_is_meant(times: Any, options: Any, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        cache_for(*times, **options)


def test_in_production_it_is_logged_once_an_endpoint(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return f"hello {session.get('user')}"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            assert get(app).headers["Cache-Control"] == PRIVATE
    told = [record for record in caplog.records if record.name == "larder.flask"]
    assert len(told) == 1 and told[0].levelno == logging.WARNING and __file__ in told[0].getMessage()


@pytest.mark.filterwarnings("ignore::larder.flask.NotShared")
@pytest.mark.parametrize(
    "read",
    [
        lambda: session["x"] if "x" in session else "",
        lambda: "x" in session,
        lambda: len(session),
        lambda: dict(session),
        lambda: list(session.items()),
        lambda: bool(session),
        lambda: session == {},
        lambda: session.permanent,
        lambda: request.cookies.get("theme"),
        lambda: "theme" in request.cookies,
        lambda: request.headers.get("Cookie"),
        lambda: request.headers.getlist("cookie"),
        lambda: request.authorization,
        lambda: request.headers.get("Authorization"),
        lambda: "Authorization" in request.headers,
        lambda: dict(request.headers),
        lambda: str(request.headers),
        lambda: request.access_route,
        lambda: request.remote_addr,
        lambda: request.remote_user,
        lambda: request.environ.get("HTTP_COOKIE"),
        lambda: render_template_string("{{ session.user }}"),
        lambda: render_template_string("{{ get_flashed_messages() }}"),
    ],
)
def test_every_way_to_look_at_the_visitor_is_seen(app: Flask, read: Any) -> None:
    app.testing = True

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return f"hello {read()}"

    response = get(app, Cookie="theme=dark", Authorization="Bearer secret")
    assert (kept(response), response.headers["Cache-Control"]) == (None, PRIVATE)


@pytest.mark.filterwarnings("ignore::larder.flask.NotShared")
@pytest.mark.parametrize(
    "change",
    [
        lambda: session.update(user="a"),
        lambda: session.__setitem__("user", "a"),
        lambda: session.setdefault("user", "a"),
        lambda: session.clear(),
        lambda: flash("saved"),
    ],
)
def test_every_change_of_the_session_keeps_the_page_from_being_stored_at_all(app: Flask, change: Any) -> None:
    app.testing = True

    @app.get("/")
    @cache_for(minutes=5, vary=["Cookie"])
    def page() -> str:
        change()
        return "hello"

    response = get(app)
    assert (kept(response), response.headers["Cache-Control"]) == (None, NOTHING)


def test_a_template_is_named_with_its_own_line(app: Flask, tmp_path: Any) -> None:
    app.debug = True
    (tmp_path / "page.html").write_text("<p>\n\nhello {{ session.user }}\n")
    app.template_folder = str(tmp_path)

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        from flask import render_template

        return render_template("page.html")

    with pytest.warns(NotShared) as caught:
        get(app)
    assert (caught[0].filename, caught[0].lineno) == (str(tmp_path / "page.html"), 3)


def test_a_cookie_is_seen_wherever_it_is_set_and_its_line_is_named(app: Flask) -> None:
    app.debug = True

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return "hello"

    @app.after_request
    def late(response: Response) -> Response:
        response.set_cookie("visitor", "1")  # the cookie
        return response

    with pytest.warns(NotShared, match="sets a cookie") as caught:
        response = get(app)
    assert (kept(response), response.headers["Cache-Control"]) == (None, NOTHING)
    source = open(__file__).read().splitlines()
    assert source[caught[0].lineno - 1].endswith("# the cookie")


def test_a_cookie_set_after_flask_is_done_takes_the_permission_back(app: Flask) -> None:
    from flask import request_finished

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return "hello"

    def later(_app: Flask, response: Response, **_: Any) -> None:
        response.headers.add("Set-Cookie", "visitor=1")

    with request_finished.connected_to(later, app):
        response = get(app)
    assert response.headers["Set-Cookie"] == "visitor=1"
    assert (kept(response), response.headers["Cache-Control"]) == (None, NOTHING)


def test_a_look_at_the_visitor_after_flask_is_done_takes_the_permission_back(app: Flask) -> None:
    from flask import request_finished

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return "hello"

    def later(_app: Flask, response: Response, **_: Any) -> None:
        response.set_data(f"hello {session.get('user')}")

    with request_finished.connected_to(later, app):
        response = get(app)
    # Signals have no order: it ran before the page was finished, or after.
    assert (response.text, kept(response)) == ("hello None", None)
    assert response.headers["Cache-Control"] in (PRIVATE, NOTHING)


def test_the_last_look_takes_back_what_later_code_speaks_against(app: Flask) -> None:
    from larder.flask._extension import last_look
    from larder.flask._state import Sighting, State
    from larder.flask._trace import Lookout

    said = [("CDN-Cache-Control", "max-age=300"), ("Cache-Control", PRIVATE), ("X", "y")]
    for late, status, more in [
        ("session", "200 OK", []),
        ("cookie", "200 OK", []),
        ("", "500 FAILED", []),
        ("", "200 OK", [("Set-Cookie", "a=b")]),
        ("", "200 OK", [("Vary", "Accept, *")]),
    ]:
        state = State(Lookout("/"), is_shared=True)
        assert last_look(state, "200 OK", said) == said
        if late:
            state.seen[late] = Sighting("late")
        assert last_look(state, status, said + more) == [("X", "y"), *more, ("Cache-Control", NOTHING)]
        assert not state.is_shared


def test_what_libraries_read_counts_like_what_the_application_reads(app: Flask, tmp_path: Any) -> None:
    package = tmp_path / "site-packages" / "limiter.py"
    names: dict[str, Any] = {}
    code = (
        "from flask import request\n"
        "def limit():\n    assert request.remote_addr and dict(request.headers) and request.environ\n"
    )
    exec(compile(code, str(package), "exec"), names)
    app.before_request(names["limit"])

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return "hello"

    assert kept(get(app)) is None


def test_a_copy_a_visitor_is_kept_where_the_developer_asks_for_it(app: Flask) -> None:
    app.testing = True

    @app.get("/")
    @cache_for(minutes=5, vary=["Cookie"])
    def page() -> str:
        return f"hello {session.get('user')} {request.cookies.get('theme')}"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        response = get(app)
    # Larder alone may keep it: not every cache that reads CDN-Cache-Control obeys Vary.
    assert response.headers["Larder-Cache-Control"] == "max-age=300" and kept(response) is None
    assert "Cookie" in response.headers["Vary"]


def test_what_is_only_logged_keeps_nothing_from_being_shared(app: Flask) -> None:
    app.testing = True

    @app.teardown_request
    def log(_error: BaseException | None) -> None:
        app.logger.info("asked by %s %s", session.get("user"), request.cookies.get("theme"))

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return "hello"

    response = get(app)
    assert kept(response) == "max-age=300"
    assert "Cookie" not in response.headers.get("Vary", "")


def test_a_stream_that_looks_at_its_visitor_too_late_breaks(app: Flask) -> None:
    app.testing = True

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> Response:
        def pieces() -> Iterator[str]:
            yield "hello "
            yield str(session.get("user"))

        return Response(stream_with_context(pieces()))

    with pytest.raises(LateRead, match="while the page was being sent"):
        assert not get(app).data


def test_a_stream_may_be_logged_at_its_end_if_nothing_follows(app: Flask) -> None:
    app.testing = True
    read: list[str] = []

    @app.teardown_request
    def log(_error: BaseException | None) -> None:
        read.append(str(session.get("user")))

    @app.get("/<end>")
    @cache_for(minutes=5)
    def page(end: str) -> Response:
        inner = stream_with_context(iter(["hello "]))

        def pieces() -> Iterator[str]:
            yield from inner
            if end == "more":
                yield read[-1]

        return Response(pieces())

    response = get(app, "/end")
    assert (response.text, kept(response)) == ("hello ", "max-age=300")
    with pytest.raises(LateRead):
        assert not get(app, "/more").data


def test_flask_login_in_every_template_is_told(app: Flask) -> None:
    from flask_login import LoginManager  # type: ignore[import-untyped]

    app.testing = True
    LoginManager(app).user_loader(lambda _name: None)

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return render_template_string("hello")

    with pytest.warns(NotShared, match="add_context_processor=False"):
        assert kept(get(app)) is None


@pytest.mark.parametrize("where", ["converter", "interface", "replaced"])
def test_what_is_read_before_the_page_counts(app: Flask, where: str) -> None:
    from flask import Request
    from flask.sessions import SecureCookieSessionInterface
    from werkzeug.routing import BaseConverter

    class Who(BaseConverter):
        def to_python(self, value: str) -> str:
            return str(session.get("user")) if where == "converter" else value

    class Interface(SecureCookieSessionInterface):
        def open_session(self, app: Flask, asked: Any) -> Any:
            opened = super().open_session(app, asked)
            asked.who = asked.cookies.get("who")
            return opened

    class Other(Request):
        pass

    app.url_map.converters["who"] = Who

    @app.get("/<who:value>")
    @cache_for(minutes=5)
    def page(value: str) -> str:
        return f"{value} {request.who if where == 'interface' else ''}"  # type: ignore[attr-defined]

    if where == "interface":
        app.session_interface = Interface()
    if where == "replaced":

        def request_context(environ: Any) -> Any:
            app.request_class = Other
            return Flask.request_context(app, environ)

        app.request_context = request_context  # type: ignore[method-assign]
    assert kept(get(app, "/a")) is None


def test_fields_that_a_page_reads_select_its_copies(app: Flask) -> None:
    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        language = request.accept_languages.best_match(["de", "en"])
        return f"{language} {request.headers.get('HX-Request')} {request.host}"

    @app.get("/plain")
    @cache_for(minutes=5)
    def plain() -> str:
        return f"{request.args} {request.path} {request.method}"

    assert get(app).headers["Vary"] == "Accept-Language, Hx-Request"
    assert "Vary" not in get(app, "/plain").headers


@pytest.mark.parametrize(
    "field", ["Content-Type", "Baggage", "X-Request-Id", "Traceparent", "Via", "Te", "Cache-Control", "Pragma"]
)
@pytest.mark.filterwarnings("ignore::larder.flask.NotShared")
def test_nobody_writes_into_the_page_of_others_by_a_field_that_seems_neutral(app: Flask, field: str) -> None:
    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return f"you sent {request.headers.get(field)}"

    answer = get(app, **{field: "mallory"})
    assert answer.text == "you sent mallory" and answer.headers["Vary"] == field


def test_a_page_for_what_clients_say_they_send_is_not_the_page_of_others(app: Flask) -> None:
    @app.get("/")
    @cache_for(minutes=5)
    def page() -> Any:
        return {"items": []} if request.is_json else "<p>no items"

    for kind in ({"Content_Type": "application/json"}, {}):
        assert get(app, **kind).headers["Vary"] == "Content-Type"


@pytest.mark.parametrize("field", ["User-Agent", "X-Request-Id", "Baggage"])
def test_a_field_of_many_values_is_told_in_debug(app: Flask, field: str) -> None:
    app.debug = True

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return f"hello {request.headers.get(field)}"

    with pytest.warns(NotShared, match=f"each value of {field} has a copy.*log it in a teardown_request"):
        assert get(app).headers["Vary"] == field


def test_a_werkzeug_that_cannot_be_watched_is_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from larder.flask._trace import WatchedHeaders
    from werkzeug.datastructures import EnvironHeaders

    Larder(Flask(__name__))
    # As if a later version read the fields in other ways. One way alone may be noted by another that it goes through.
    for names in (["getlist"], ["__iter__"], ["__getitem__", "get", "__contains__"]):
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(WatchedHeaders, name, getattr(EnvironHeaders, name))
            with pytest.raises(RuntimeError, match="can't watch"):
                Larder(Flask(__name__))


# ---- tags ----


def test_tags_of_models_are_stable() -> None:
    class Item:
        __tablename__ = "item"

        def __init__(self, id: object) -> None:
            self.id = id

    class Line:
        __tablename__ = "a:b"
        __primary_key__ = ("order", "number")
        order, number = 1, "x:y z"

    assert tag_for(Item) == "item" and tag_for(Item, 7) == tag_for(Item(7)) == "item:7"
    assert tag_for(Line()) == "a%3Ab:1:x%3Ay%20z"
    with pytest.raises(ValueError, match="no primary key yet"):
        tag_for(Item(None))
    with pytest.raises(TypeError, match="no __tablename__"):
        tag_for(object())


def test_more_tags_than_larder_keeps_make_the_page_uncached(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        add_tags(*[f"t{number}" for number in range(1001)])
        return "hello"

    response = get(app)
    assert kept(response) is None and "more than the 1000" in caplog.text


@pytest.mark.parametrize("empty", ["", " ", "\x85", "\u3000\n"])
def test_an_empty_tag_is_left_out(app: Flask, caplog: pytest.LogCaptureFixture, empty: str) -> None:
    @app.get("/")
    @cache_for(minutes=5, tags=["a", empty])
    def page() -> str:
        add_tags(empty, "b", "\ud800")
        larder.purge(tag=empty)
        return "hello"

    response = get(app)
    assert (kept(response), response.headers["Cache-Tag"]) == ("max-age=300", "a, b, %ED%A0%80")
    assert "an empty tag" in caplog.text


def test_longer_tags_than_a_head_holds_make_the_page_uncached(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    @app.get("/<mark>")
    def page(mark: str) -> str:
        if mark == "marked":
            cache_for(minutes=5)
        add_tags(*[f"{number:0990}" for number in range(300)])
        return "hello"

    for path in ("/marked", "/plain"):
        response = get(app, path)
        assert kept(response) is None and "Cache-Tag" not in response.headers
        assert response.headers["Cache-Control"] == NOTHING and "more than 65536" in caplog.text
        caplog.clear()


def test_an_application_without_the_extension_is_told(caplog: pytest.LogCaptureFixture) -> None:
    app = Flask(__name__)

    @app.get("/")
    @cache_for(minutes=5)
    def page() -> str:
        return "hello"

    assert [kept(get(app)) for _ in range(2)] == [None, None]
    assert caplog.text.count("Larder(app) was not called") == 1


def test_redirects_are_left_alone(app: Flask) -> None:
    @app.get("/")
    @cache_for(minutes=5)
    def page() -> Any:
        return redirect("/login")

    response = get(app)
    assert kept(response) is None and "Cache-Control" not in response.headers
