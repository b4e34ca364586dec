"""Ways to read a visitor that a real Larder once gave to the next one: each page is private, wherever it reads from."""

from __future__ import annotations

from typing import Any, Callable

import pytest

SOURCE = """
import pathlib, sys
import flask_login
from flask import (Blueprint, Flask, Request, Response, abort, g, make_response, render_template_string, request,
                   request_started, send_file, session)
from flask_login import LoginManager, UserMixin, current_user, login_user
from larder.flask import Larder, cache_for, no_cache

packages = pathlib.Path(__file__).parent / "site-packages"
packages.mkdir(exist_ok=True)
(packages / "acct.py").write_text('''
from flask import request
def get_remote_address():
    return request.remote_addr
def user():
    return request.environ.get("HTTP_X_USER")
def everything():
    return dict(request.headers).get("X-User")
''')
sys.path.append(str(packages))
import acct

class Asked(Request):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        if self.path == "/constructor":
            self.who = self.headers.get("Cookie")

app = Flask(__name__)
app.secret_key = "secret"
app.request_class = Asked

@request_started.connect_via(app)
def early(sender, **extra):
    if request.path == "/early-cookie":
        g.who = request.cookies.get("who")
    if request.path == "/early-session":
        g.who = session.get("user")

Larder(app)
login = LoginManager(app, add_context_processor=False)

class User(UserMixin):
    def __init__(self, name):
        self.id = name

login.user_loader(User)

@app.before_request
def log():
    if request.path == "/logged-user":
        app.logger.debug("by %s", current_user.get_id())
    if request.path == "/logged-cookie":
        app.logger.debug("by %s", request.cookies.get("who"))
    if request.path == "/logged-authorization":
        app.logger.debug("by %s", request.authorization)

@app.post("/login/<name>")
@no_cache
def log_in(name):
    session["user"] = name
    login_user(User(name))
    response = make_response("in")
    response.set_cookie("who", name)
    return response

def page(function):
    app.get("/" + function.__name__.replace("_", "-"), endpoint=function.__name__)(cache_for(minutes=5)(function))
    return function

@page
def plain(): return "everybody"
@page
def logged_user(): return f"{current_user.get_id()}"
@page
def logged_cookie(): return f"{request.cookies.get('who')}"
@page
def logged_authorization(): return f"{request.authorization}"
@page
def template_address(): return render_template_string("{{ request.remote_addr }}")
@page
def template_name(): return render_template_string("{{ request.remote_user }}")
@page
def template_environ(): return render_template_string("{{ request.environ.HTTP_X_USER }}")
@page
def template_item(): return render_template_string("{{ request['environ']['HTTP_COOKIE'] }}")
@page
def template_attr(): return render_template_string("{{ (request|attr('environ'))['HTTP_COOKIE'] }}")
@page
def package_environ(): return f"{acct.user()}"
@page
def package_address(): return f"{acct.get_remote_address()}"
@page
def package_fields(): return f"{acct.everything()}"
@page
def open_session(): return f"{session.get('user')}"
@page
def saved():
    def save_session(): return session.get("user")
    return f"{save_session()}"
@page
def early_cookie(): return f"{g.who}"
@page
def early_session(): return f"{g.who}"
@page
def constructor(): return f"{request.who}"
@page
def fields_environ(): return f"{request.headers.environ.get('HTTP_COOKIE')}"
@page
def other_application():
    def other(environ, start):
        start("200 OK", [])
        return [environ.get("HTTP_COOKIE", "").encode()]
    return other
@page
def file(): return send_file(__file__)
app.get("/gone", endpoint="gone")(cache_for(statuses={404: 60}, minutes=5)(lambda: abort(404)))
"""

PERSONAL = """logged-user logged-cookie logged-authorization template-address template-name template-environ template-item
template-attr package-environ package-address package-fields open-session saved early-cookie early-session constructor
fields-environ other-application""".split()


@pytest.fixture(scope="module")
def site(start_site: Callable[..., Any]) -> Any:
    return start_site(SOURCE, workers=1)


def visitor(site: Any, name: str) -> dict[str, str]:
    lines = [value for key, value in site.ask(f"/login/{name}", "POST").fields if key.lower() == "set-cookie"]
    return {"Cookie": "; ".join(line.split(";")[0] for line in lines), "X_User": name}


@pytest.mark.parametrize("page", PERSONAL)
def test_no_page_of_one_visitor_is_served_to_another(site: Any, page: str) -> None:
    ann, ben = visitor(site, "ann"), visitor(site, "ben")
    replies = [site.ask(f"/{page}", **who) for who in (ann, ann, ben)]
    assert [reply.status for reply in replies] == [200] * 3, site.gunicorn.lines
    # A copy for each value of a field is one's own, too: only Ann's second request may be a hit.
    assert not replies[2].is_hit and "ann" not in replies[2].text
    assert not replies[1].is_hit or page in ("package-fields", "constructor")


@pytest.mark.parametrize("page", ["plain", "file", "gone"])
def test_what_reads_nothing_of_its_visitor_stays_shared(site: Any, page: str) -> None:
    ann, ben = visitor(site, "ann"), visitor(site, "ben")
    first, second = site.ask(f"/{page}", **ann), site.ask(f"/{page}", **ben)
    assert second.is_hit and first.body == second.body
