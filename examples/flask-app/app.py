"""An ordinary Flask application, to be put behind Larder.

It has one page for each thing that makes caching easy or hard: pages for everybody, pages
for one user, validators, languages, cookies, downloads, streams, forms. It knows nothing of
Larder: all it says, it says in the response fields that HTTP has for it.

`/count` tells how many requests got as far as the application, which is how one sees from
outside what a cache in front of it saves.
"""

import fcntl
import hashlib
import io
import json
import os
import secrets
import tempfile
import time
from collections import Counter
from datetime import datetime, timezone

from flask import (
    Flask,
    Response,
    abort,
    jsonify,
    make_response,
    redirect,
    render_template_string,
    request,
    send_file,
    session,
    url_for,
)

KIB = 1024
MIB = 1024 * KIB

app = Flask(__name__)
app.config.update(
    SECRET_KEY=os.environ.get("SECRET_KEY", "for development only"),
    SESSION_COOKIE_SAMESITE="Lax",
)


class SharedLines:
    """Records that every worker process and thread may add and read.

    It is a file without a name: workers inherit it by fork, and it is gone when the last of
    them is. Appending needs no lock, as the kernel keeps O_APPEND writes apart.
    """

    def __init__(self):
        self._file = tempfile.TemporaryFile()
        self._fd = self._file.fileno()
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_APPEND)

    def append(self, record):
        os.write(self._fd, json.dumps(record).encode() + b"\n")

    def read(self):
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        # A line that is being written this moment may be there in part only.
        whole = data[: data.rfind(b"\n") + 1]
        return [json.loads(line) for line in whole.splitlines()]


requests_seen = SharedLines()
notes_written = SharedLines()


@app.before_request
def count_request():
    if request.path != "/count":
        requests_seen.append({"asked": request.path})


@app.after_request
def count_not_modified(response):
    if response.status_code == 304:
        requests_seen.append({"not_modified": request.path})
    return response


LAYOUT = """<!doctype html>
<html lang="{{ lang }}">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: auto; padding: 1rem }
  td, th { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0 }
</style>
<h1>{{ title }}</h1>
BODY
</html>
"""


def page(title, body, lang="en", **values):
    """An HTML response; `body` is a template, and what is put into it is escaped."""
    template = LAYOUT.replace("BODY", body)
    return make_response(render_template_string(template, title=title, lang=lang, **values))


def cacheable(response, max_age, public=False):
    """Give a finished response a lifetime and an ETag; answer 304 where the client has it."""
    response.cache_control.max_age = max_age
    if public:
        response.cache_control.public = True
    response.add_etag()
    return response.make_conditional(request)


def query_number(name, default, highest, kind=int):
    """A number from the query, or 400: nobody should wait for a page with a typing error."""
    text = request.args.get(name, str(default))
    try:
        number = kind(text)
    except ValueError:
        abort(400, f"{name} must be a number, not {text!r}")
    if not 0 <= number <= highest:
        abort(400, f"{name} must lie between 0 and {highest}")
    return number


# ---- pages for everybody ---------------------------------------------------------------


@app.get("/")
def index():
    """This list."""
    rows = []
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        if rule.endpoint != "static":
            summary = (view.__doc__ or "").splitlines()[0]
            methods = sorted(rule.methods - {"HEAD", "OPTIONS"})
            rows.append((rule.rule, " ".join(methods), summary))
    body = """
    <table>
    {% for path, methods, summary in rows %}
      <tr><td>{{ methods }}</td>
          <td>{% if "GET" in methods and "<" not in path %}<a href="{{ path }}">{{ path }}</a>
              {%- else %}{{ path }}{% endif %}</td>
          <td>{{ summary }}</td></tr>
    {% endfor %}
    </table>
    """
    return cacheable(page("An application behind Larder", body, rows=rows), max_age=60, public=True)


@app.get("/page")
def article():
    """A page for everybody, good for a minute, with an ETag."""
    body = "<p>Whoever asks within a minute may have the copy that was made for the first.</p>"
    return cacheable(page("A page for everybody", body), max_age=60, public=True)


@app.get("/news")
def news():
    """Good for one second only, but with an ETag: asking again is cheap."""
    body = "<p>No news. Whoever has this page already is told so in a 304 without a body.</p>"
    return cacheable(page("News", body), max_age=1, public=True)


GREETINGS = {"en": "Good morning!", "de": "Guten Morgen!"}


@app.get("/hello")
def hello():
    """English or German, as Accept-Language asks (Vary: Accept-Language)."""
    lang = request.accept_languages.best_match(list(GREETINGS), default="en")
    response = page(GREETINGS[lang], "<p>{{ lang }}</p>", lang=lang)
    response.content_language.add(lang)
    response.vary.add("Accept-Language")
    return cacheable(response, max_age=60)


@app.get("/old")
def moved():
    """Moved for good: 301 to /page, good for a minute."""
    response = redirect(url_for("article"), 301)
    response.cache_control.max_age = 60
    return response


@app.get("/today")
def today():
    """Somewhere else today: 302 to /news, with nothing said about caching."""
    return redirect(url_for("news"))


@app.get("/missing")
def missing():
    """404, and good for a minute. Any other unknown path is a 404 that says nothing of it."""
    response = page("Not here", "<p>Nor will it be within the next minute.</p>")
    response.status_code = 404
    response.cache_control.max_age = 60
    return response


@app.errorhandler(404)
def not_found(_error):
    return page("Not here", '<p>There is no such page. <a href="/">What there is.</a></p>'), 404


# ---- pages for one user ----------------------------------------------------------------
# Flask adds `Vary: Cookie` to each response that read or changed the session.


@app.route("/login", methods=["GET", "POST"])
def login():
    """A form; POST user=NAME starts a session. There is no password."""
    if request.method == "POST":
        user = request.form.get("user", "").strip()[:64]
        if not user:
            abort(400, "user must not be empty")
        session.clear()
        session["user"] = user
        return redirect(url_for("me"), 303)
    body = """
    <form method="post">
      <label>Name <input name="user" required></label> <button>Log in</button>
    </form>
    """
    return page("Log in", body)


@app.post("/logout")
def logout():
    """Ends the session."""
    session.clear()
    return redirect(url_for("me"), 303)


@app.get("/me")
def me():
    """Who is logged in; says nothing about caching."""
    body = """
    {% if user %}
      <p>You are {{ user }}.</p>
      <form method="post" action="/logout"><button>Log out</button></form>
    {% else %}
      <p>You are nobody yet. <a href="/login">Log in</a></p>
    {% endif %}
    """
    return page("You", body, user=session.get("user"))


@app.get("/account")
def account():
    """One user's page that is good for a minute: a copy may serve that user alone."""
    response = page(
        "Account", "<p>The account of {{ user }}.</p>", user=session.get("user", "nobody")
    )
    response.cache_control.max_age = 60
    return response


@app.get("/tracker")
def tracker():
    """Good for a minute, and sets a cookie that no two visitors may share."""
    visitor = secrets.token_hex(8)
    response = page("Tracker", "<p>You are visitor {{ visitor }}.</p>", visitor=visitor)
    response.set_cookie("visitor", visitor, httponly=True, samesite="Lax")
    response.cache_control.max_age = 60
    return response


# ---- a form that changes a page --------------------------------------------------------


@app.get("/notes")
def notes():
    """The guestbook, good for a minute, unless somebody writes in it."""
    body = """
    <form method="post"><input name="text" maxlength="200" required> <button>Write</button></form>
    <ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
    """
    newest_first = notes_written.read()[:-51:-1]
    return cacheable(page("Guestbook", body, notes=newest_first), max_age=60, public=True)


@app.post("/notes")
def write_note():
    """POST text=… adds a note."""
    text = request.form.get("text", "").strip()[:200]
    if not text:
        abort(400, "text must not be empty")
    notes_written.append(text)
    return redirect(url_for("notes"), 303)


# ---- bytes -----------------------------------------------------------------------------

PUBLISHED = datetime(2025, 1, 1, 12, 0, 0, tzinfo=timezone.utc)

FILES = {
    "squares.csv": b"number,square\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(10_000)),
    "numbers.bin": b"".join(n.to_bytes(4, "big") for n in range(MIB // 4)),
}


@app.get("/files/<name>")
def download(name):
    """Downloads (squares.csv, numbers.bin) with ETag, Last-Modified and ranges."""
    if name not in FILES:
        abort(404)
    data = FILES[name]
    return send_file(
        io.BytesIO(data),
        download_name=name,
        as_attachment=True,
        etag=hashlib.sha256(data).hexdigest()[:16],
        last_modified=PUBLISHED,
        max_age=300,
    )


@app.get("/stream")
def stream():
    """Sent in pieces as they are made (?pieces=5&delay=0.2), without a Content-Length."""
    pieces = query_number("pieces", 5, highest=10_000)
    delay = query_number("delay", 0.2, highest=60, kind=float)

    def lines():
        for number in range(1, pieces + 1):
            if number > 1:
                time.sleep(delay)
            # gunicorn sends each piece as it is given, so there is nothing to flush.
            yield f"piece {number} of {pieces}\n"

    response = Response(lines(), mimetype="text/plain")
    response.cache_control.public = True
    response.cache_control.max_age = 60
    return response


@app.get("/large")
def large():
    """As many bytes as ?size= says; &length=1 states a Content-Length, &store=0 forbids storing."""
    size = query_number("size", MIB, highest=1024 * 1024 * MIB)
    state_length = query_number("length", 0, highest=1)
    may_store = query_number("store", 1, highest=1)
    filler = b"0123456789abcde\n" * (64 * KIB // 16)

    def blocks():
        # Each block begins with its number, so that one lost or repeated on the way shows.
        for number in range(-(-size // len(filler))):
            block = b"%015d\n" % number + filler[16:]
            yield block[: size - number * len(filler)]

    response = Response(blocks(), mimetype="application/octet-stream")
    if state_length:
        response.content_length = size
    if may_store:
        response.cache_control.max_age = 60
    else:
        response.cache_control.no_store = True
    return response


@app.route("/upload", methods=["POST", "PUT"])
def upload():
    """Reads a body of any size; answers its size and SHA-256."""
    digest = hashlib.sha256()
    size = 0
    # Piece by piece: `request.data` or a form would hold the whole of it in memory.
    while piece := request.stream.read(64 * KIB):
        digest.update(piece)
        size += len(piece)
    response = jsonify(size=size, sha256=digest.hexdigest())
    response.cache_control.no_store = True
    return response


@app.get("/slow")
def slow():
    """Takes ?seconds= to answer, and is then good for a minute."""
    seconds = query_number("seconds", 1, highest=120, kind=float)
    time.sleep(seconds)
    response = page("Slow", "<p>It took {{ seconds }} s.</p>", seconds=seconds)
    response.cache_control.max_age = 60
    return response


# ---- what the application sees ---------------------------------------------------------


@app.get("/count")
def count():
    """How many requests came this far: in all, by path, and how many ended in a 304."""
    seen = requests_seen.read()
    paths = Counter(record["asked"] for record in seen if "asked" in record)
    response = jsonify(
        total=sum(paths.values()),
        paths=paths,
        not_modified=sum("not_modified" in record for record in seen),
    )
    response.cache_control.no_store = True
    return response


@app.get("/whoami")
def whoami():
    """The request as it arrived here, as JSON."""
    response = jsonify(
        method=request.method,
        path=request.path,
        remote_addr=request.remote_addr,
        scheme=request.scheme,
        headers=dict(request.headers),
    )
    response.cache_control.no_store = True
    return response
