#!/usr/bin/env python3
"""Several origins that fail, lag and fill up: what clients see through Larder, HAProxy and nginx.

    cargo build --release && bench/origins.py --larder target/release/larder

The origins are gunicorns with a small Flask application (bench/origins_app.py), whose pages no cache may store. Requests
come at a set rate whether or not earlier ones were answered, and count from when they were due, so that a server that
stalls does not look better for it. HAProxy and nginx are configured as somebody would who knows them: health checks,
retries, redispatch and leastconn; proxy_next_upstream, max_fails and least_conn.

Scenes (--only faults,spread,limit,names):
  faults  three origins: one is killed (kill -9) and started again, one is stopped (SIGSTOP) and continued, one gets slow
          (0.3 s a page). Errors and latency in each phase, and the requests a second that the one that is back gets
  spread  three origins of which one takes five times as long: the most requests under way there, by the way of choosing
  limit   two sync workers, at most two requests at a time, 200 clients: what the application counts, the latency of pages,
          and that of hits beside them. Then with an application that could take 16 at a time
  names   a name whose addresses change every second, and whose server fails for a while
          (bench/changing_names.py, which needs `unshare`)

Needs Linux, Python 3.9, and a gunicorn with Flask (--gunicorn; `make target/test-venv/stamp` has one); HAProxy and nginx
where installed. Compare figures of one run only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import mmap
import os
import platform
import random
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Awaitable, Callable

from common import HERE, PATH, ROOT, Failure, free_port, get, say, with_settings
from crowds import Process, heading, row

# Pages are few enough that each was asked for before its origin fails, and many enough that the failures of one do not
# count as those of all.
PAGES = 200
# Limits the wait of a client, and that for an origin.
PATIENCE, ORIGIN_PATIENCE = 15.0, 3
# Sets the time that a page takes in `faults`.
PAGE = 0.03
DELAY, UNDER_WAY, MOST, BEGUN = range(0, 32, 8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, required=True, help="the binary")
    parser.add_argument("--gunicorn", type=Path, default=ROOT / "target/test-venv/bin/gunicorn")
    parser.add_argument("--only", default="faults,spread,limit,names", help="some scenes")
    parser.add_argument("--servers", default="larder,haproxy,nginx")
    parser.add_argument("--rounds", type=int, default=1, help="of each scene; errors are added up, latencies are of all")
    parser.add_argument("--seconds", type=float, default=4, help="length of a phase")
    parser.add_argument("--rate", type=int, default=200, help="requests a second")
    parser.add_argument("--posts", type=float, default=0.1, help="the part of them that are POSTs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the tables into bench/ORIGINS.md")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    scenes = {"faults": faults, "spread": spread, "limit": limit, "names": names}
    try:
        if not options.gunicorn.exists():
            raise Failure(f"there is no {options.gunicorn}: --gunicorn names one")
        with tempfile.TemporaryDirectory(prefix="larder-origins-") as directory:
            options.work = Path(directory)
            options.work.chmod(0o755)
            report = Report()
            with contextlib.redirect_stdout(report):
                print(f"{head(options)}\n")
                for name in options.only.split(","):
                    print(f"## {name}\n", flush=True)
                    scenes[name](options)
                    print(flush=True)
            if options.write:
                (HERE / "ORIGINS.md").write_text(report.text.rstrip() + "\n")
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


class Report(io.TextIOBase):
    """Standard output, which is kept as well."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return sys.__stdout__.write(text)

    def flush(self) -> None:
        sys.__stdout__.flush()


def head(options: argparse.Namespace) -> str:
    def version(*command: str) -> str:
        if not shutil.which(command[0], path=PATH):
            return f"no {command[0]}"
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": PATH})
        found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
        return f"{Path(command[0]).name} {found[0] if found else 'of no known version'}"

    versions = [version(str(options.larder.resolve()), "--version").replace(options.larder.name, "larder"), version("haproxy", "-v"), version("nginx", "-v"), version(str(options.gunicorn), "--version")]
    return (
        "# Origins that fail, lag and fill up\n\n"
        f"Taken on {time.strftime('%Y-%m-%d')} by `bench/origins.py --rounds {options.rounds} --seconds {options.seconds:g} --seed {options.seed}`, "
        f"which tells how. {os.cpu_count()} processors, Linux {platform.release()}; {', '.join(versions)}."
    )


# ---------------------------------------------------------------- origins


def quiet_port() -> int:
    """A port that no outgoing connection is given while its origin is down."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Origin:
    """A gunicorn on a port that it keeps."""

    def __init__(self, options: argparse.Namespace, name: str, *arguments: str, delay: float = 0.0) -> None:
        self.name = name
        self.port = quiet_port()
        self._gunicorn = options.gunicorn.resolve()
        self._arguments = arguments
        self._directory = options.work / f"origin-{name}-{self.port}"
        self._directory.mkdir()
        path = self._directory / "state"
        path.write_bytes(bytes(32))
        with path.open("r+b") as file:
            self._state = mmap.mmap(file.fileno(), 32)
        self.set_delay(delay)
        self.start()

    def start(self) -> None:
        environment = {
            **os.environ,
            "ORIGIN_NAME": self.name,
            "ORIGIN_STATE": str(self._directory / "state"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [self._gunicorn, "--chdir", HERE, "--bind", f"127.0.0.1:{self.port}", *self._arguments]
        command += ["--log-level", "warning", "--graceful-timeout", "1", "origins_app:app"]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, env=environment, start_new_session=True)

    def wait(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(Failure):
                get(self.port, "/healthz")
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"the origin {self.name} did not start:\n{(self._directory / 'log').read_text()}")
            time.sleep(0.05)

    def signal(self, number: int) -> None:
        """Sends a signal to the gunicorn and its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        if number == signal.SIGKILL:
            self._process.wait()
            # Those that were under way are not any more.
            struct.pack_into("<q", self._state, UNDER_WAY, 0)

    def set_delay(self, seconds: float) -> None:
        struct.pack_into("<q", self._state, DELAY, int(seconds * 1e6))

    def read(self, at: int) -> int:
        return struct.unpack_from("<q", self._state, at)[0]

    def __enter__(self) -> "Origin":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)


@contextlib.contextmanager
def started(*origins: Origin):
    with contextlib.ExitStack() as stack:
        for origin in origins:
            stack.enter_context(origin)
        for origin in origins:
            origin.wait()
        yield origins


# ---------------------------------------------------------------- servers

# By server: how it chooses, as the scene `spread` calls it; the first is what the other scenes use.
BALANCES = {
    "larder": ["p2c", "round_robin", "hash"],
    "haproxy": ["leastconn", "random(2)", "roundrobin", "uri"],
    "nginx": ["least_conn", "random two least_conn", "round robin", "hash $uri consistent"],
}


def start(options: argparse.Namespace, name: str, origins: tuple[Origin, ...], balance: str = "", most: int = 0) -> tuple[Process, int]:
    port = free_port()
    directory = options.work / f"{name}-{port}"
    directory.mkdir()
    balance = balance or BALANCES[name][0]
    ports = [origin.port for origin in origins]
    if name == "larder":
        settings: dict[str, object] = {
            "server.listen": f"127.0.0.1:{port}",
            "upstream.url": ", ".join(f"http://127.0.0.1:{port}" for port in ports),
            "upstream.balance": balance,
            "upstream.health_path": "" if most else "/healthz",
            "upstream.health_interval": "1s",
            "upstream.health_timeout": "1s",
            "upstream.slow_start": "5s",
            "upstream.connect_timeout": "1s",
            "upstream.response_timeout": f"{ORIGIN_PATIENCE}s",
            "upstream.max_requests": most,
            "durable.url": "off",
            "admin.listen": "off",
            "log.level": "info",
        }
        command = with_settings(options.larder, settings)
    elif name == "haproxy":
        config = directory / "haproxy.cfg"
        check = "" if most else "check inter 1s fall 2 rise 2 slowstart 5s"
        servers = "\n".join(f"  server {origin.name} 127.0.0.1:{origin.port} {check} maxconn {most or 1000}" for origin in origins)
        config.write_text(f"""
global
  maxconn 4000
cache pages
  total-max-size 16
  max-age 3600
defaults
  mode http
  timeout connect 1s
  timeout client 30s
  timeout server {ORIGIN_PATIENCE}s
  timeout queue 10s
  timeout check 1s
  retries 3
  option redispatch 1
  retry-on conn-failure empty-response junk-response
frontend web
  bind 127.0.0.1:{port}
  default_backend origins
backend origins
  balance {balance}
  {"hash-type consistent" if balance == "uri" else ""}
  option httpchk
  http-check send meth GET uri /healthz
  http-request disable-l7-retry if METH_POST
  http-request cache-use pages
  http-response cache-store pages
{servers}
""")
        command = ["haproxy", "-db", "-f", config]
    else:
        config = directory / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        servers = "\n".join(f"server 127.0.0.1:{port} max_fails=2 fail_timeout=2s {f'max_conns={most}' if most else ''};" for port in ports)
        config.write_text(f"""
            {user} daemon off; worker_processes auto; pid {directory}/nginx.pid; error_log stderr crit;
            events {{ worker_connections 4096; }}
            http {{
                access_log off;
                client_body_temp_path {directory}/body; proxy_temp_path {directory}/temp;
                fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
                upstream origins {{
                    zone origins 256k;
                    {"" if balance == "round robin" else balance + ";"}
                    {servers}
                    keepalive 64;
                }}
                server {{
                    listen 127.0.0.1:{port} backlog=4096;
                    location / {{
                        proxy_pass http://origins; proxy_http_version 1.1; proxy_set_header Connection "";
                        proxy_connect_timeout 1s; proxy_read_timeout {ORIGIN_PATIENCE}s;
                        proxy_next_upstream error timeout http_502 http_503 http_504; proxy_next_upstream_tries 3;
                    }}
                }}
            }}""")
        command = ["nginx", "-p", directory, "-e", "stderr", "-c", config]
    process = Process(command, directory, name)
    deadline = time.monotonic() + 20
    while True:
        # HAProxy answers 503 until its checks have passed.
        with contextlib.suppress(Failure):
            if get(port, "/hit")[0] == 200:
                return process, port
        if process.process.poll() is not None or time.monotonic() > deadline:
            raise Failure(f"{name} did not start:\n{process.log.read_text()}")
        time.sleep(0.05)


def servers(options: argparse.Namespace) -> list[str]:
    return [name for name in options.servers.split(",") if name == "larder" or shutil.which(name, path=PATH)]


# ---------------------------------------------------------------- clients


@dataclass
class Seen:
    """One request: when it was due, begun and over, what came of it, and from which origin."""

    method: str
    due: float
    begun: float
    end: float
    # A status, or how it failed.
    result: str
    origin: str
    is_hit: bool = False

    @property
    def took(self) -> float:
        return self.end - self.due


class Connection(asyncio.Protocol):
    """A client's connection, with one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[str, str]] | None = None
        self._text = b""
        self.is_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._text += data
        head, end, body = self._text.partition(b"\r\n\r\n")
        if not end or not self._answer or self._answer.done():
            return
        fields = {}
        status, *lines = head.decode("latin-1").split("\r\n")
        for line in lines:
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        if "content-length" not in fields:
            if fields.get("transfer-encoding") == "chunked" and not body.endswith(b"0\r\n\r\n"):
                return
        elif len(body) < int(fields["content-length"]):
            return
        self._text = b""
        if fields.get("connection", "").lower() == "close":
            self.close()
        self._answer.set_result((status.split(" ")[1], fields.get("x-origin", "")))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._answer and not self._answer.done():
            self._answer.set_result(("cut off" if b"\r\n\r\n" in self._text else "closed", ""))

    async def ask(self, request: bytes) -> tuple[str, str]:
        assert self._transport
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await asyncio.wait_for(self._answer, PATIENCE)
        except asyncio.TimeoutError:
            self.close()
            return "no answer", ""

    def close(self) -> None:
        self.is_open = False
        if self._transport:
            self._transport.close()


class Clients:
    """Clients of one server, whose connections serve one request after the other."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []
        self.seen: list[Seen] = []

    async def ask(self, method: str, path: str, due: float) -> None:
        begun = time.monotonic()
        connection = None
        while self._idle and connection is None:
            last = self._idle.pop()
            connection = last if last.is_open else None
        try:
            if connection is None:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(Connection, "127.0.0.1", self._port)
        except OSError:
            self.seen.append(Seen(method, due, begun, time.monotonic(), "not connected", ""))
            return
        length = "Content-Length: 0\r\n" if method == "POST" else ""
        result, origin = await connection.ask(f"{method} {path} HTTP/1.1\r\nHost: site.example\r\n{length}\r\n".encode())
        self.seen.append(Seen(method, due, begun, time.monotonic(), result, origin, path == "/hit"))
        if connection.is_open:
            self._idle.append(connection)

    async def at_rate(self, rate: float, seconds: float, draw: Callable[[], tuple[str, str]]) -> None:
        """Asks at a rate, whatever comes back."""
        began = time.monotonic()
        asked = []
        for n in range(int(rate * seconds)):
            due = began + n / rate
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            asked.append(asyncio.ensure_future(self.ask(*draw(), due)))
        await asyncio.gather(*asked)

    async def in_turn(self, count: int, seconds: float, draw: Callable[[], tuple[str, str]]) -> None:
        """`count` clients each ask again once they have an answer."""
        end = time.monotonic() + seconds

        async def one() -> None:
            while time.monotonic() < end:
                await self.ask(*draw(), time.monotonic())

        await asyncio.gather(*(one() for _ in range(count)))

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


def drawing(options: argparse.Namespace, run: int, posts: float = 0) -> Callable[[], tuple[str, str]]:
    chance = random.Random(options.seed * 1000 + run)
    return lambda: ("POST" if chance.random() < posts else "GET", f"/page/{chance.randrange(PAGES)}")


def at(seen: list[Seen], percent: float) -> str:
    times = sorted(one.took for one in seen)
    return f"{times[min(len(times) - 1, int(len(times) * percent / 100))] * 1e3:,.0f}" if times else "-"


def errors(seen: list[Seen]) -> str:
    kinds = Counter(f"{one.method} {one.result}" for one in seen if one.result != "200")
    return ", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items())) or "0"


def most_under_way(seen: list[Seen], origin: str) -> int:
    """The largest number of requests that one origin answered and that were under way at one moment."""
    steps = [step for one in seen if one.origin == origin for step in ((one.begun, 1), (one.end, -1))]
    return max(itertools.accumulate(by for _, by in sorted(steps)), default=0)


# ---------------------------------------------------------------- scenes

GTHREAD = ("--worker-class", "gthread", "--workers", "1", "--threads", "32")


@dataclass
class Phase:
    name: str
    length: float
    # A request belongs to the phase in which it ended. What happens at the start:
    begin: Callable[[], None] = lambda: None
    # The origin that is back from then on.
    back: str = ""
    began: float = 0.0
    seen: list[Seen] = field(default_factory=list)
    # The requests of each second from the first on that the origin got which is back, of each round.
    shares: list[list[int]] = field(default_factory=list)


def faults(options: argparse.Namespace) -> None:
    results: dict[str, list[Phase]] = {}
    for number in range(options.rounds):
        for name in servers(options):
            say(f"faults, round {number + 1}: {name}")
            a, b, c = (Origin(options, letter, *GTHREAD, delay=PAGE) for letter in "abc")
            with started(a, b, c) as origins:
                phases = [
                    Phase("all are well", 1),
                    Phase("a is killed", 1, lambda: a.signal(signal.SIGKILL)),
                    Phase("a is started", 2, a.start, "a"),
                    Phase("b is stopped", 2, lambda: b.signal(signal.SIGSTOP)),
                    Phase("b is continued", 2, lambda: b.signal(signal.SIGCONT), "b"),
                    Phase("c takes 0.3 s", 2, lambda: c.set_delay(0.3)),
                    Phase("c is quick again", 1, lambda: c.set_delay(PAGE)),
                ]
                process, port = start(options, name, origins)
                with process:
                    clients = Clients(port)
                    asyncio.run(with_events(options, clients, phases, number))
                    keep_log(options, process)
                for phase, following in zip(phases, [*phases[1:], None]):
                    end = following.began if following else float("inf")
                    phase.seen = [one for one in clients.seen if phase.began <= one.end < end]
                    if phase.back:
                        theirs = [one.begun for one in clients.seen if one.origin == phase.back and one.begun >= phase.began and one.begun < end]
                        seconds = int(phase.length * options.seconds)
                        counts = Counter(int(when - min(theirs)) for when in theirs)
                        phase.shares.append([counts[second] for second in range(seconds)])
                if name in results:
                    for sum_of, phase in zip(results[name], phases):
                        sum_of.seen += phase.seen
                        sum_of.shares += phase.shares
                else:
                    results[name] = phases
    fair = options.rate / 3
    print(f"{options.rate} requests a second, {options.posts:.0%} of them POST, pages of {PAGE * 1e3:.0f} ms; {options.rounds} rounds. Times in ms.\n")
    heading("phase", "server", "requests", "errors", "p50", "p99", "max")
    for number in range(7):
        for name, phases in results.items():
            phase = phases[number]
            row(phase.name, name, len(phase.seen), errors(phase.seen), at(phase.seen, 50), at(phase.seen, 99), at(phase.seen, 100))
    print(f"\nRequests a second to the one that is back, from its first on; an even share is {fair:.0f}.\n")
    heading("phase", "server", "by second")
    for number in (2, 4):
        for name, phases in results.items():
            shares = [sum(second) // options.rounds for second in zip(*phases[number].shares)]
            row(phases[number].name, name, ", ".join(map(str, shares)))


async def with_events(options: argparse.Namespace, clients: Clients, phases: list[Phase], run: int) -> None:
    async def events() -> None:
        for phase in phases:
            phase.began = time.monotonic()
            phase.begin()
            await asyncio.sleep(phase.length * options.seconds)

    length = sum(phase.length for phase in phases) * options.seconds
    await asyncio.gather(events(), clients.at_rate(options.rate, length, drawing(options, run, options.posts)))
    clients.close()


def keep_log(options: argparse.Namespace, process: Process) -> None:
    """Shows what the server logged to who asks for that."""
    if os.environ.get("BENCH_LOGS"):
        say(process.log.read_text())


def spread(options: argparse.Namespace) -> None:
    seconds = 3 * options.seconds
    print(f"{options.rate} requests a second; a and b take 10 ms, c takes 50 ms with 4 at a time. Times in ms.\n")
    heading("server", "chooses by", "errors", "p50", "p99", "max", "answered by c", "most under way at c", "at a or b")
    for name in servers(options):
        for balance in BALANCES[name]:
            seen: list[Seen] = []
            for number in range(options.rounds):
                say(f"spread, round {number + 1}: {name} {balance}")
                few = (*GTHREAD[:-1], "4")
                with started(*(Origin(options, letter, *few, delay=0.05 if letter == "c" else 0.01) for letter in "abc")) as origins:
                    process, port = start(options, name, origins, balance)
                    with process:
                        clients = Clients(port)
                        asyncio.run(alone(clients.at_rate(options.rate, seconds, drawing(options, number)), clients))
                        keep_log(options, process)
                # One after the other, for what is under way.
                for one in clients.seen:
                    one.begun += number * 1e6
                    one.end += number * 1e6
                    one.due += number * 1e6
                seen += clients.seen
            share = sum(one.origin == "c" for one in seen) / len(seen)
            others = max(most_under_way(seen, "a"), most_under_way(seen, "b"))
            row(name, balance, errors(seen), at(seen, 50), at(seen, 99), at(seen, 100), f"{share:.0%}", most_under_way(seen, "c"), others)


async def alone(load: Awaitable[None], clients: Clients) -> None:
    await load
    clients.close()


def limit(options: argparse.Namespace) -> None:
    seconds = 3 * options.seconds
    print("200 clients in turn, pages of 10 ms, 100 hits a second beside them. Times in ms.\n")
    heading("workers", "server", "errors", "most at once", "pages a second", "p50", "p99", "max", "p50 of hits alone", "p99", "p50 of hits beside", "p99")
    sixteen = (*GTHREAD[:-1], "16")
    for workers, arguments in (("2 sync", ("--workers", "2")), ("16 threads", sixteen)):
        for name in (name for name in servers(options) if name != "nginx"):
            pages: list[Seen] = []
            before: list[Seen] = []
            beside: list[Seen] = []
            most = 0
            for number in range(options.rounds):
                say(f"limit, round {number + 1}: {name}, {workers}")
                with started(Origin(options, "a", *arguments, delay=0.01)) as origins:
                    process, port = start(options, name, origins, most=2)
                    with process:
                        clients, hits = Clients(port), Clients(port)

                        def hit() -> tuple[str, str]:
                            return "GET", "/hit"

                        asyncio.run(alone(hits.at_rate(100, options.seconds, hit), hits))
                        before += hits.seen
                        hits = Clients(port)

                        async def both() -> None:
                            await asyncio.gather(clients.in_turn(200, seconds, drawing(options, number)), hits.at_rate(100, seconds, hit))
                            clients.close()
                            hits.close()

                        asyncio.run(both())
                        keep_log(options, process)
                    most = max(most, origins[0].read(MOST))
                pages += clients.seen
                beside += hits.seen
            rate = len(pages) / seconds / options.rounds
            of_hits = (at(before, 50), at(before, 99), at(beside, 50), at(beside, 99))
            row(workers, name, errors(pages + beside), most, f"{rate:.0f}", at(pages, 50), at(pages, 99), at(pages, 100), *of_hits)


def names(options: argparse.Namespace) -> None:
    print("A name changes every second; then its server is silent, fails, and denies the name. Times in ms.\n")
    heading("requests", "errors", "sent again", "changes", "addresses that answered", "look-ups", "of these in vain", "p99", "max")
    for number in range(options.rounds):
        command = [sys.executable, HERE / "changing_names.py", "--larder", options.larder.resolve(), "--rate", options.rate]
        command += ["--changes", int(3 * options.seconds), "--seed", options.seed + number]
        done = subprocess.run(["unshare", "-rmn", *map(str, command)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failure(f"names: {done.stderr}")
        found = json.loads(done.stdout)
        row(*(found[key] for key in ("requests", "errors", "retries", "changes", "addresses", "looked_up", "unanswered", "p99", "max")))


if __name__ == "__main__":
    sys.exit(main())
