#!/usr/bin/env python3
"""Larder in front of a real Flask application, told request by request.

Called by `make demo`. It starts the application in examples/flask-app under gunicorn, and
Larder in front of it, each on a free port of the loopback interface; then it asks for pages
and shows what came back, how long it took, and how many requests the application has seen by
then. At the end `larder dev` runs a small application, which is edited while it runs. Each line is checked, and the exit code is 1 if any of them is wrong.

Needs Python 3.10 and nothing besides; Flask and gunicorn go into target/demo-venv.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "examples" / "flask-app"
VENV = ROOT / "target" / "demo-venv"
BUCKET = "larder-demo"

START_DEADLINE = 30
STOP_DEADLINE = 10
REQUEST_TIMEOUT = 30
QUEUE_DEADLINE = 15


class Failure(Exception):
    """The demo cannot go on; the text says why."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, required=True, help="the binary to show")
    parser.add_argument("--once", action="store_true", help="end after the story")
    parser.add_argument("--s3", action="store_true", help="an S3 server as durable tier, not files")
    options = parser.parse_args()

    # Without this a SIGTERM would end the script and leave its children running.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))

    try:
        return run(options)
    except Failure as failure:
        say(f"\n{failure}")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Nobody reads on, as in `… | head`. Python would try to write the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def run(options: argparse.Namespace) -> int:
    larder_binary = options.larder.resolve()
    if not os.access(larder_binary, os.X_OK):
        raise Failure(f"{options.larder} is not there to run. Build it: cargo build --release")
    python = virtual_environment(with_s3=options.s3)

    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="larder-demo-")))
        children = stack.enter_context(Children(directory))
        app_port, larder_port, admin_port, s3_port = free_ports(4)

        app = children.start(
            "application",
            [python, "-m", "gunicorn"],
            cwd=APP,
            env={"BIND": f"127.0.0.1:{app_port}"},
        )
        durable = {"url": f"file:{directory / 'cache'}"}
        credentials = {}
        s3 = None
        if options.s3:
            s3 = children.start(
                "S3 server",
                [python, "-m", "moto.server", "-H", "127.0.0.1", "-p", s3_port],
            )
            durable = {
                "url": f"s3://{BUCKET}/cache",
                "endpoint_url": f"http://127.0.0.1:{s3_port}",
                "region": "us-east-1",
                "path_style": True,
            }
            credentials = {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo-secret"}

        app.wait_until(lambda: accepts(app_port), "accepting connections")
        if s3:
            s3.wait_until(lambda: accepts(s3_port), "accepting connections")
            make_bucket(s3_port)

        config = directory / "config.toml"
        config.write_text(
            toml(
                {
                    "server": {"listen": f"127.0.0.1:{larder_port}"},
                    "upstream": {"url": f"http://127.0.0.1:{app_port}"},
                    "durable": durable,
                    "admin": {"listen": f"127.0.0.1:{admin_port}"},
                }
            ),
            encoding="utf-8",
        )

        def start_larder() -> Child:
            child = children.start("Larder", [larder_binary, "--config", config], env=credentials)
            child.wait_until(lambda: ready(admin_port), "ready (200 from /readyz)")
            return child

        larder = start_larder()
        introduce(larder_binary, python, config, durable["url"])
        addresses = [
            ("Larder", f"http://127.0.0.1:{larder_port}/"),
            ("application", f"http://127.0.0.1:{app_port}/", "its counter: /count"),
            ("admin", f"http://127.0.0.1:{admin_port}/metrics"),
        ]
        if s3:
            addresses.append(("S3 server", f"http://127.0.0.1:{s3_port}/{BUCKET}"))
        show_addresses(addresses)

        story = Story(app, larder, start_larder, app_port, larder_port, admin_port)
        story.tell()
        right = story.summary()
        if not right:
            say(story.larder.last_output())
        right = develop(children, larder_binary, python, directory) and right
        if not options.once:
            stay(children, addresses, larder_port)
    return 0 if right else 1


# ---- the story -------------------------------------------------------------------------


class Story:
    """Asks, shows, checks. Each line tells the application's count as it is after the request."""

    def __init__(self, app, larder, start_larder, app_port, larder_port, admin_port):
        self.larder_port = larder_port
        self.app_port = app_port
        self.admin_port = admin_port
        self.app = app
        self.larder = larder
        self.start_larder = start_larder
        # What came before the first line, such as a probe of Larder's, is not part of the story.
        self.before = self.application()
        self.count = 0
        self.asked = 0
        self.by_larder = 0
        self.misses = 0
        self.validations = 0
        self.wrong = 0
        self.explained = set()

    def tell(self) -> None:
        self.headings()

        self.chapter("A page that is good for a minute")
        page = self.ask("/page", expect=["fwd=uri-miss", "stored"], application=1)
        self.ask("/page", expect=["hit", "detail=memory"], same_as=page)
        self.ask(
            "/page",
            {"If-None-Match": page.field("ETag")},
            note="with ETag",
            status=304,
            expect=["hit", "detail=memory"],
        )

        self.chapter("A page that is good for a second: Larder asks whether its copy still holds")
        news = self.ask("/news", expect=["fwd=uri-miss", "stored"], application=1)
        # Age is in whole seconds, and so may be one behind.
        self.pause(2.1, "until it is stale")
        self.ask(
            "/news",
            note="app: 304",
            expect=["fwd=stale"],
            application=1,
            not_modified=1,
            same_as=news,
        )

        self.chapter("A page in two languages (Vary: Accept-Language)")
        english, german = {"Accept-Language": "en"}, {"Accept-Language": "de"}
        in_english = self.ask(
            "/hello", english, note="en", expect=["fwd=uri-miss", "stored"], application=1
        )
        in_german = self.ask(
            "/hello", german, note="de", expect=["fwd=vary-miss", "stored"], application=1
        )
        self.ask("/hello", english, note="en", expect=["hit", "detail=memory"], same_as=in_english)
        self.ask("/hello", german, note="de", expect=["hit", "detail=memory"], same_as=in_german)

        self.chapter("Larder is killed and started again: memory is lost, the rest is not")
        self.await_durable_writes()
        self.kill_and_restart()
        self.ask("/page", expect=["hit", "detail=durable"], same_as=page)
        self.ask("/page", expect=["hit", "detail=memory"], same_as=page)
        self.ask("/hello", german, note="de", expect=["hit", "detail=durable"], same_as=in_german)

        self.chapter("A purge removes one page everywhere, and no other page")
        self.purge("/page")
        again = self.ask("/page", expect=["fwd=uri-miss|fwd=miss", "stored"], application=1)
        self.ask("/page", expect=["hit", "detail=memory"], same_as=again)
        self.ask("/hello", german, note="de", expect=["hit", "detail=memory"], same_as=in_german)

    def ask(
        self,
        path: str,
        headers: dict[str, str] | None = None,
        *,
        expect: list[str],
        note: str = "",
        status: int = 200,
        application: int = 0,
        not_modified: int = 0,
        same_as: Answer | None = None,
    ) -> Answer:
        """One request to Larder, one line. `a|b` in `expect` means that either will do."""
        before = self.application()
        answer = self.larder.request(self.larder_port, "GET", path, headers)
        after = self.application()
        reached = after.total - before.total
        cache_status = answer.field("Cache-Status")
        told = {part.strip() for part in cache_status.split(";")}

        wrong = []
        if answer.status != status:
            wrong.append(f"the status should be {status}")
        for wanted in expect:
            if told.isdisjoint(wanted.split("|")):
                wrong.append(f"Cache-Status should say {wanted.replace('|', ' or ')}")
        if reached != application:
            wrong.append(
                f"the application should have been asked {times(application)}, "
                f"and was asked {times(reached)}"
            )
        if after.not_modified - before.not_modified != not_modified:
            wrong.append(f"the application should have answered 304 {times(not_modified)}")
        if same_as and answer.body != same_as.body:
            wrong.append("the body is not the one that was stored")
        if status == 304 and answer.body:
            wrong.append("a 304 has no body")
        age = answer.field("Age")
        if "hit" in told:
            # The application's Date is in whole seconds: a copy may seem one older than it is.
            oldest = answer.at - same_as.at + 1 if same_as else REQUEST_TIMEOUT
            if not age.isdigit() or int(age) > oldest:
                wrong.append("Age should be the seconds since the application answered")

        self.asked += 1
        self.count += reached
        if reached == 0:
            self.by_larder += 1
        if "fwd=stale" in told:
            self.validations += 1
        elif any(part.startswith("fwd=") for part in told):
            self.misses += 1
        what = f"GET {path}" + (f"  ({note})" if note else "")
        self.line(what, str(answer.status), cache_status, age, answer.seconds, wrong)
        self.explain(told)
        return answer

    def explain(self, told: set[str]) -> None:
        """Says what each part of a Cache-Status means, the first time that it appears."""
        news = [
            ("fwd=uri-miss", "there was no copy of this URL, so Larder asked the application."),
            ("fwd=vary-miss", "there is a copy, but in another language."),
            ("fwd=stale", "the copy was too old, so Larder asked whether it still holds."),
            ("fwd-status=304", "the application answered that it does."),
            ("hit", "answered from the copy; the application was not asked."),
            ("detail=durable", "the copy came from the disk or the bucket."),
        ]
        if "ttl=0" in told:
            news.append(
                ("stored; ttl=0", "kept, though it is good for less than one more whole second:")
            )
        else:
            news.append(("stored", "Larder kept a copy of the answer."))
            seconds = next((part[4:] for part in told if part.startswith("ttl=")), "")
            news.append((f"ttl={seconds}", f"the copy is good for {seconds} more whole seconds."))
        for name, words in news:
            kind = "ttl" if name.startswith("ttl=") else name
            if kind in self.explained or not told.issuperset(name.split("; ")):
                continue
            self.explained.add(kind)
            say(style(f"      {name}: {words}", "2"))
            if name == "stored; ttl=0":
                rest = "to ask later whether it still holds costs less than a new page."
                say(style(f"      {rest}", "2"))

    def purge(self, path: str) -> None:
        url = f"http://127.0.0.1:{self.larder_port}{path}"
        answer = self.larder.request(
            self.admin_port,
            "POST",
            "/purge",
            {"Content-Type": "application/json"},
            json.dumps({"url": url}).encode(),
        )
        wrong = (
            []
            if 200 <= answer.status < 300
            else ["the purge was refused: " + answer.body.decode(errors="replace")]
        )
        self.line(f"purge {path}", str(answer.status), "", "", answer.seconds, wrong)

    def pause(self, seconds: float, why: str) -> None:
        time.sleep(seconds)
        self.line(f"  wait {why}", seconds=seconds)

    def await_durable_writes(self) -> None:
        """Writes happen behind the answers; what was not written yet does not outlive a kill."""
        start = time.monotonic()
        empty_looks = 0
        # Twice in a row: an answer can be out a moment before its write is in the queue.
        while empty_looks < 2:
            depth = self.gauge("larder_durable_queue_objects")
            empty_looks = empty_looks + 1 if depth == 0 else 0
            if time.monotonic() - start > QUEUE_DEADLINE:
                raise Failure(
                    f"{depth:g} objects still wait to be written to the durable tier "
                    f"after {QUEUE_DEADLINE} s\n{self.larder.last_output()}"
                )
            time.sleep(0.05)
        self.line("  copies are written", seconds=time.monotonic() - start)

    def gauge(self, name: str) -> float:
        metrics = self.larder.request(self.admin_port, "GET", "/metrics")
        lines = metrics.body.decode(errors="replace").splitlines()
        samples = [line for line in lines if line.startswith((name + " ", name + "{"))]
        if not samples:
            raise Failure(f"Larder's /metrics does not show {name}")
        return sum(float(line.rpartition("}")[2].replace(name, "").split()[0]) for line in samples)

    def kill_and_restart(self) -> None:
        start = time.monotonic()
        self.larder.kill()
        self.line("  kill -9 larder", seconds=time.monotonic() - start)
        start = time.monotonic()
        self.larder = self.start_larder()
        self.line("  started again, ready", seconds=time.monotonic() - start)

    def application(self) -> Application:
        """What the application counted, asked for behind Larder's back."""
        answer = self.app.request(self.app_port, "GET", "/count")
        if answer.status != 200:
            raise Failure(f"The application's /count: {answer.status}\n{self.app.last_output()}")
        told = json.loads(answer.body)
        return Application(told["total"], told["not_modified"])

    def headings(self) -> None:
        say()
        self.columns("", "", "", "", "time", "app's", "")
        self.columns("request", "status", "Cache-Status", "Age", "ms", "count", "")

    def chapter(self, title: str) -> None:
        say("\n" + style(title, "1"))

    def line(self, what, status="", cache_status="", age="", seconds=0.0, wrong=()) -> None:
        # Only what asked something has an outcome to check.
        verdict = style("WRONG", "1;31") if wrong else style("ok", "32") if status else ""
        count = str(self.count) if status else ""
        self.columns(what, status, cache_status, age, f"{seconds * 1000:.1f}", count, verdict)
        for reason in wrong:
            say(f"      {reason}")
        self.wrong += bool(wrong)

    @staticmethod
    def columns(what, status, cache_status, age, milliseconds, count, verdict) -> None:
        say(
            f"  {what:<24} {status:<6} {cache_status:<50} {age:>3} {milliseconds:>8} {count:>5}"
            f"  {verdict}".rstrip()
        )

    def summary(self) -> bool:
        counted = self.application().total - self.before.total
        told = self.misses + self.validations
        agree = counted == told
        say()
        say(f"{self.asked} requests: {self.by_larder} answered by Larder without the application.")
        say(
            f"Told above: {self.misses} misses and {self.validations} validation"
            f"{'' if self.validations == 1 else 's'}, {told} in all. "
            f"The application counted {counted}: "
            + (style("the same.", "32") if agree else style("WRONG.", "1;31"))
        )
        if self.wrong:
            say(f"{self.wrong} of the lines above {'is' if self.wrong == 1 else 'are'} WRONG.")
        return agree and not self.wrong


# The application of the last chapter, which is edited while it runs.
GREETING = """\
from flask import Flask

app = Flask(__name__)

@app.get("/")
def index():
    return "Hello\\n", {"Cache-Control": "public, max-age=60"}
"""


def develop(children: Children, larder: Path, python: Path, directory: Path) -> bool:
    """`larder dev`: an edit shows at once, though the page was stored. Returns whether it did."""
    say("\n" + style("While you write the application: larder dev hello:app", "1"))
    home = directory / "dev"
    home.mkdir()
    source = home / "hello.py"
    source.write_text(GREETING, encoding="utf-8")
    port, admin_port = free_ports(2)
    command = [larder, "dev", "hello:app", "--python", python, "--port", port]
    command += ["--set", f"admin.listen=127.0.0.1:{admin_port}"]
    dev = children.start("larder dev", command, cwd=home)
    dev.wait_until(lambda: "larder: open http://" in dev.log.read_text(), "up")

    wrong = 0

    def ask(text: str, wanted: str) -> None:
        nonlocal wrong
        answer = dev.request(port, "GET", "/")
        cache_status = answer.field("Cache-Status")
        is_right = answer.body.decode() == text and wanted in cache_status.split("; ")
        wrong += not is_right
        what = f"GET /  ({answer.body.decode().strip()})"
        verdict = style("ok", "32") if is_right else style("WRONG", "1;31")
        milliseconds = f"{answer.seconds * 1000:.1f}"
        Story.columns(what, answer.status, cache_status, answer.field("Age"), milliseconds, "", verdict)

    def wait_for_hit() -> None:
        # On a slow machine the purge after the restart may come a moment after the new code's first answer.
        dev.wait_until(
            lambda: "hit" in dev.request(port, "GET", "/").field("Cache-Status"), "answering from memory"
        )

    ask("Hello\n", "fwd=uri-miss")
    wait_for_hit()
    ask("Hello\n", "hit")
    start = time.monotonic()
    source.write_text(GREETING.replace("Hello", "Good morning"), encoding="utf-8")
    # The old code answers until the server has seen the change; after that it never does.
    dev.wait_until(lambda: b"Good" in dev.request(port, "GET", "/").body, "reloaded")
    Story.columns("  edit hello.py, reload", "", "", "", f"{(time.monotonic() - start) * 1000:.1f}", "", "")
    wait_for_hit()
    ask("Good morning\n", "hit")
    if wrong:
        say(dev.last_output())
    elif not dev.stop():
        wrong += 1
        say("larder dev did not stop.")
    dev.killed = True
    return not wrong


@dataclass
class Application:
    total: int
    not_modified: int


@dataclass
class Answer:
    status: int
    fields: http.client.HTTPMessage
    body: bytes
    seconds: float
    at: float

    def field(self, name: str) -> str:
        return ", ".join(self.fields.get_all(name, []))


def request(
    port: int,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """One request on a connection of its own; timed without the making of the connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT)
    with contextlib.closing(connection):
        connection.connect()
        start = time.monotonic()
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        content = response.read()
        end = time.monotonic()
    return Answer(response.status, response.headers, content, end - start, end)


def stay(children: Children, addresses: list[tuple[str, ...]], larder_port: int) -> None:
    say("\nAll of it stays up until Ctrl-C.")
    show_addresses(addresses)
    say(f"\n  curl -i http://127.0.0.1:{larder_port}/page")
    try:
        while True:
            time.sleep(0.5)
            children.check()
    except KeyboardInterrupt:
        say("\nStopping.")


def introduce(larder: Path, python: Path, config: Path, cache: str) -> None:
    """Prints what is about to run, in words for somebody who sees it for the first time."""
    say("Larder is a cache that stands in front of a web application. This demo starts a small")
    say("Flask application and Larder in front of it, and then asks Larder for pages. Each line")
    say("shows a request: what Larder did, how long it took, and how many requests have reached")
    say("the application by then.")
    asks = "import sys, importlib.metadata as m; print(sys.version.split()[0], m.version('flask'))"
    python_version, flask_version = first_line([python, "-c", asks]).split()
    say()
    version = first_line([larder, "--version"])
    versions = f"{version}, Python {python_version}, Flask {flask_version}"
    say(f"  {'versions':<14}{versions}")
    say(f"  {'configuration':<14}{config}")
    say(f"  {'cache':<14}{cache.removeprefix('file:')}")
    say(f"  {'':<14}(files of this demo are removed when it ends)")


def first_line(command: list) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise Failure(f"{' '.join(words)}: failed.\n{done.stdout}")
    return done.stdout.splitlines()[0]


def show_addresses(addresses: list[tuple[str, ...]]) -> None:
    say()
    for name, address, *remark in addresses:
        say(f"  {name:<14}{address:<32}{''.join(remark)}".rstrip())


# ---- the processes ---------------------------------------------------------------------


class Children:
    """The processes of the demo; none of them outlives it."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.running: list[Child] = []

    def start(self, name, command, *, cwd=None, env=None) -> Child:
        log = self.directory / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=cwd,
                env={**plain_environment(), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A group of its own, so that workers go with it, and Ctrl-C comes to us alone.
                start_new_session=True,
            )
        child = Child(name, process, log)
        self.running.append(child)
        return child

    def check(self) -> None:
        for child in self.running:
            child.check()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_exception) -> None:
        # An impatient second Ctrl-C must not leave half of them behind.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # The last one started leans on those before it.
        unwilling = [child.name for child in reversed(self.running) if not child.stop()]
        # Said last, as there may be nobody left to say it to.
        for name in unwilling:
            say(f"{name} did not stop within {STOP_DEADLINE} s, and was killed.")


class Child:
    def __init__(self, name: str, process: subprocess.Popen, log: Path):
        self.name = name
        self.process = process
        self.log = log
        self.killed = False

    def wait_until(self, condition, what: str) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise Failure(
                    f"{self.name} is not {what} after {START_DEADLINE} s.\n" + self.last_output()
                )
            time.sleep(0.02)
        # Somebody else's server on the same port would be a strange thing to go on with.
        self.check()

    def check(self) -> None:
        code = self.process.poll()
        if code is not None and not self.killed:
            raise Failure(f"{self.name} ended by itself (exit code {code}).\n{self.last_output()}")

    def last_output(self, lines: int = 20) -> str:
        text = self.log.read_text(errors="replace").splitlines()[-lines:]
        if not text:
            return f"It wrote nothing ({self.name})."
        return f"Last output ({self.name}):\n" + "\n".join("    " + line for line in text)

    def request(self, port: int, method: str, path: str, headers=None, body=None) -> Answer:
        """A request whose failure is told together with what the process last said."""
        try:
            return request(port, method, path, headers, body)
        except (OSError, http.client.HTTPException) as error:
            self.check()
            raise Failure(
                f"{method} {path}: no answer from this process ({error!r}).\n{self.last_output()}"
            ) from error

    def kill(self) -> None:
        self.killed = True
        self.signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> bool:
        """Whether it stopped when it was asked to; it has ended in either case."""
        willing = True
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_DEADLINE)
            except subprocess.TimeoutExpired:
                willing = False
        # Also when it has ended: it may have left workers in its group.
        self.signal(signal.SIGKILL)
        self.process.wait()
        return willing

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


def plain_environment() -> dict[str, str]:
    """Ours, without what would change the behaviour of the demo's processes."""
    ours = ("LARDER_", "AWS_", "GUNICORN_", "FLASK_", "MOTO_", "WEB_CONCURRENCY", "THREADS", "BIND")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(ours) and not name.lower().endswith("_proxy")
    }
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    # Keeps the AWS SDK from reading the user's own profile.
    environment["AWS_CONFIG_FILE"] = os.devnull
    environment["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    environment["AWS_EC2_METADATA_DISABLED"] = "true"
    return environment


def free_ports(number: int) -> list[int]:
    """Ports that were free a moment ago; all held at once, so that no two are the same."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(number):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
        return ports


def accepts(port: int) -> bool:
    """Whether somebody listens. Not a request, as the application would count that."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def ready(admin_port: int) -> bool:
    try:
        return request(admin_port, "GET", "/readyz").status == 200
    except (OSError, http.client.HTTPException):
        return False


def make_bucket(s3_port: int) -> None:
    answer = request(s3_port, "PUT", f"/{BUCKET}")
    if answer.status != 200:
        raise Failure(f"The S3 server refused to make a bucket: {answer.body.decode()}")


def toml(tables: dict[str, dict]) -> str:
    """JSON's strings and booleans are also TOML's."""
    lines = []
    for table, values in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def virtual_environment(with_s3: bool) -> Path:
    """The Python of target/demo-venv, made and filled where that has not been done yet."""
    python = VENV / "bin" / "python"
    # It has paths written into it, so neither a moved checkout nor another Python can use it.
    remember(
        VENV / "made-by",
        f"{VENV}\n{sys.executable}\n{sys.version}\n",
        f"Making {VENV.relative_to(ROOT)} (the first time only)",
        [sys.executable, "-m", "venv", "--clear", str(VENV)],
        hint="On Debian and Ubuntu: apt install python3-venv",
    )
    wanted = [APP / "requirements.txt"]
    if with_s3:
        wanted.append(ROOT / "scripts" / "requirements-s3.txt")
    for requirements in wanted:
        content = requirements.read_text()
        pins = [line for line in content.splitlines() if line and not line.startswith("#")]
        remember(
            VENV / f"installed-{requirements.name}",
            content,
            f"Installing {', '.join(pins)}",
            [
                str(python),
                "-m",
                "pip",
                "install",
                "--disable-pip-version-check",
                "-q",
                "-r",
                str(requirements),
            ],
        )
    return python


def remember(stamp: Path, content: str, what: str, command: list[str], hint: str = "") -> None:
    """Do it, unless the stamp says that just this was done before."""
    if stamp.exists() and stamp.read_text() == content:
        return
    say(what + " ...")
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode != 0:
        output = "\n".join("    " + line for line in done.stdout.splitlines()[-20:])
        raise Failure(f"{what}: failed.\n{output}\n{hint}".rstrip())
    stamp.write_text(content)


# ---- words -----------------------------------------------------------------------------


def times(number: int) -> str:
    return {0: "not at all", 1: "once"}.get(number, f"{number} times")


def style(text: str, code: str) -> str:
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[{code}m{text}\033[0m"


def say(text: str = "") -> None:
    # Flushed, so that a story told into a pipe arrives line by line as well.
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
