#!/usr/bin/env python3
"""Compares the cost of TLS and HTTP/2 in Larder, nginx, HAProxy and Caddy on one machine.

    cargo build --release && bench/tls.py --larder target/release/larder

Every server has one worker and one processor to itself, its logs off, TLS 1.3 alone with AES-128-GCM, tickets, and
the same certificates; the load has another processor. nginx, HAProxy and Larder have their caches on; Caddy, which has
none, serves files. The floor is bare hyper with rustls (bench/floor), which looks nothing up. The figure is the
processor time that the server spent, all its threads, over what it answered, as in bench/compare. The servers
are measured in turn, several rounds of it, and the tables have medians. Compare figures of one run only.

Hits by HTTP/1.1 are asked for by wrk over 64 connections, those by HTTP/2 by h2load over 16 with 10 streams each.
Handshakes are those of bench/floor/src/handshakes.rs: X25519, each on a new connection, up to its orderly end.

Needs Python 3.9, cc, cargo, openssl, wrk, h2load, two processors, and whatever of nginx, haproxy and caddy is to
be beside Larder.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Callable

from common import HERE, PATH, Failure, build_tls_floor, compiled, cpu_nanoseconds, free_port, get, pinned_to, say

SERVER_CPU, LOAD_CPU = 0, 1
NAME = "bench.example"
# The choice of Larder and Caddy; the others would take the client's first.
CIPHER = "TLS_AES_128_GCM_SHA256"
START_DEADLINE = 20
PAGES = {"/1k": 1 << 10, "/100k": 100 << 10, "/1m": 1 << 20}


@dataclass(frozen=True)
class Work:
    name: str
    # "wrk", "h2load", "full" or "resumed"; the last two are handshakes.
    load: str
    path: str = ""
    key: str = "ecdsa"


WORKS = [
    Work("HTTP/1.1, 1 KiB", "wrk", "/1k"),
    Work("HTTP/1.1, 100 KiB", "wrk", "/100k"),
    Work("HTTP/1.1, 1 MiB", "wrk", "/1m"),
    Work("HTTP/2, 1 KiB", "h2load", "/1k"),
    Work("HTTP/2, 100 KiB", "h2load", "/100k"),
    Work("handshake, ECDSA P-256", "full"),
    Work("handshake, RSA 2048", "full", key="rsa"),
    Work("handshake, resumed", "resumed"),
]


@dataclass
class Server:
    name: str
    # By the kind of key.
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)
    micros: dict[str, list[float]] = field(default_factory=dict)
    asks_origin: bool = True


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    kind: str
    chain: Path
    key: Path
    both: Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, action="append", required=True, help="a binary; repeatable, to compare builds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="how long each measurement takes")
    parser.add_argument("--only", default="", help="some servers, as in larder,nginx (default: all there are)")
    parser.add_argument("--work", default="", help="some work, by a part of its name, as in 'HTTP/2' (default: all)")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    try:
        with contextlib.ExitStack() as stack:
            print(run(options, stack))
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace, stack: contextlib.ExitStack) -> str:
    for program in ("wrk", "h2load", "openssl"):
        if not shutil.which(program, path=PATH):
            raise Failure(f"{program} is not installed: apt-get install wrk nghttp2-client openssl")
    works = [work for work in WORKS if options.work in work.name]
    floor, handshakes = build_tls_floor()
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="larder-tls-")))
    # Some servers give up root before they look for their files.
    directory.chmod(0o755)
    run = Run(options.seconds, handshakes, directory, stack)
    run.origin = int(run.start("origin", [compiled("origin", directory)], LOAD_CPU, reads=True).stdout.readline())
    pairs = [make_pair(directory, kind) for kind in ("ecdsa", "rsa") if any(work.key == kind for work in works)]
    servers = [server for server in starters(options, floor) if not options.only or server[0] in options.only.split(",")]
    started = []
    for name, start in servers:
        server = Server(name, asks_origin=name not in ("bare hyper", "caddy"))
        for pair in pairs:
            place = directory / f"{name}-{pair.kind}".replace(" ", "-")
            place.mkdir()
            say(f"starting {name} with {pair.kind}")
            start(run, server, pair, place)
        started.append(server)
    for round_number in range(1, options.rounds + 1):
        for work in works:
            for server in started:
                micros = run.measure(server, work)
                server.micros.setdefault(work.name, []).append(micros)
                say(f"round {round_number}, {work.name}, {server.name}: {micros:.2f} µs")
    return tables(started, works)


class Run:
    """A server that runs, and its measurements."""

    def __init__(self, seconds: int, handshakes: Path, directory: Path, stack: contextlib.ExitStack):
        self._seconds = seconds
        self._handshakes = handshakes
        self._directory = directory
        self._stack = stack
        self.origin = 0

    def start(self, name: str, command: list, cpu: int, *, reads: bool = False, environment: dict[str, str] | None = None) -> subprocess.Popen:
        pin = pinned_to(cpu)
        with (self._directory / f"{name.replace(' ', '-')}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if reads else log,
                stderr=log,
                env={**os.environ, "PATH": PATH, **(environment or {})},
                preexec_fn=lambda: (os.setpgid(0, 0), pin()),
            )
        self._stack.callback(ended, process)
        return process

    def start_on_port(self, server: Server, pair: Pair, command: list, port: int, environment: dict[str, str] | None = None) -> None:
        name = f"{server.name}-{pair.kind}"
        process = self.start(name, command, SERVER_CPU, environment=environment)
        deadline = time.monotonic() + START_DEADLINE
        while not answers(port, "/1k"):
            if process.poll() is not None or time.monotonic() > deadline:
                log = (self._directory / f"{name.replace(' ', '-')}.log").read_text(errors="replace")
                raise Failure(f"{name} did not start:\n{log}")
            time.sleep(0.05)
        server.ports[pair.kind], server.processes[pair.kind] = port, process

    def measure(self, server: Server, work: Work) -> float:
        """µs of the server's processor for each of what was asked for."""
        port, process = server.ports[work.key], server.processes[work.key]
        url = f"https://127.0.0.1:{port}{work.path}"
        command = {
            "wrk": ["wrk", "-t1", "-c64", f"-d{self._seconds}s", "-H", f"Host: {NAME}", url],
            "h2load": ["h2load", "-t1", "-c16", "-m10", f"-D{self._seconds}", "-H", f":authority: {NAME}", url],
        }.get(work.load, [self._handshakes, port, work.load, self._seconds * 1000])
        asked = self._asked_of_origin()
        if work.path:
            verify(server, port, work.path)
            asked = self._asked_of_origin()
        before = cpu_nanoseconds(process.pid)
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, preexec_fn=pinned_to(LOAD_CPU), env={**os.environ, "PATH": PATH})
        spent = cpu_nanoseconds(process.pid) - before
        count = counted(work, done.stdout)
        if done.returncode != 0 or not count:
            raise Failure(f"{server.name}, {work.name}: the load failed:\n{done.stdout}{done.stderr}")
        if work.path and server.asks_origin and self._asked_of_origin() - asked > count // 1000:
            raise Failure(f"{server.name}, {work.name}: not all of it were hits")
        return spent / 1000 / count

    def _asked_of_origin(self) -> int:
        return int(get(self.origin, "/count")[2])


def ended(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


def counted(work: Work, output: str) -> int:
    """Returns the number of right answers; 0: others came as well."""
    if work.load == "wrk":
        found = re.search(r"(\d+) requests in", output)
        return int(found[1]) if found and "Non-2xx" not in output and "Socket errors" not in output else 0
    if work.load == "h2load":
        found = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, 0 failed, 0 errored", output)
        is_http2 = "Application protocol: h2" in output
        return int(found[1]) if found and is_http2 and found[1] == found[2] else 0
    done, resumed = (int(word) for word in (output.split() or ["0", "0"]))
    # The first of each thread has nothing to resume.
    is_as_wanted = resumed >= done - 16 if work.load == "resumed" else resumed == 0
    return done if is_as_wanted else 0


def unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def fetched(port: int, path: str) -> tuple[int, int, str]:
    """The status, the length of the body, and the cipher."""
    connection = HTTPSConnection("127.0.0.1", port, timeout=10, context=unchecked())
    try:
        connection.request("GET", path, headers={"Host": NAME})
        cipher = connection.sock.cipher()[0]
        response = connection.getresponse()
        return response.status, len(response.read()), cipher
    finally:
        connection.close()


def answers(port: int, path: str) -> bool:
    with contextlib.suppress(OSError, HTTPException):
        return fetched(port, path)[0] == 200
    return False


def verify(server: Server, port: int, path: str) -> None:
    # The first request fills the cache, which may take a moment.
    for _ in range(3):
        status, length, cipher = fetched(port, path)
        if (status, length, cipher) != (200, PAGES[path], CIPHER):
            raise Failure(f"{server.name}: {path} has status {status} and {length} bytes, by {cipher}")
        time.sleep(0.05)


def make_pair(directory: Path, kind: str) -> Pair:
    """A certificate that signs itself: what is measured does not look at who has issued it."""
    algorithm = {"ecdsa": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"], "rsa": ["-newkey", "rsa:2048"]}[kind]
    chain, key, both = (directory / f"{kind}{suffix}" for suffix in (".pem", ".key", "-both.pem"))
    command = ["openssl", "req", "-x509", *algorithm, "-nodes", "-days", "30", "-subj", f"/CN={NAME}"]
    command += ["-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1", "-keyout", key, "-out", chain]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"openssl makes no certificate:\n{done.stderr}")
    both.write_text(chain.read_text() + key.read_text())
    for file in (chain, key, both):
        file.chmod(0o644)
    return Pair(kind, chain, key, both)


# ---------------------------------------------------------------- servers


Start = Callable[[Run, Server, Pair, Path], None]


def starters(options: argparse.Namespace, floor: Path) -> list[tuple[str, Start]]:
    found: list[tuple[str, Start]] = [("bare hyper", lambda run, server, pair, _place: start_floor(floor, run, server, pair))]
    for number, binary in enumerate(options.larder, 1):
        if not os.access(binary, os.X_OK):
            raise Failure(f"{binary} is not there to run. Build it: cargo build --release")
        name = "larder" if number == 1 else f"larder {number}"
        found.append((name, lambda *given, binary=binary: start_larder(binary.resolve(), *given)))
    for name, start in (("nginx", start_nginx), ("haproxy", start_haproxy), ("caddy", start_caddy)):
        if path := shutil.which(name, path=PATH):
            found.append((name, lambda *given, path=path, start=start: start(path, *given)))
        else:
            say(f"{name} is not installed, and left out")
    return found


def start_floor(binary: Path, run: Run, server: Server, pair: Pair) -> None:
    process = run.start(f"floor-{pair.kind}", [binary, pair.chain, pair.key], SERVER_CPU, reads=True)
    server.ports[pair.kind], server.processes[pair.kind] = int(process.stdout.readline()), process


def start_larder(binary: Path, run: Run, server: Server, pair: Pair, place: Path) -> None:
    """As it comes, both tiers, metrics and the admin listener included; only held to one thread."""
    port = free_port()
    config = place / "larder.toml"
    config.write_text(f"""
        [server]
        listen = ["https://127.0.0.1:{port}"]
        threads = 1
        [tls]
        min_version = "1.3"
        [[tls.certificate]]
        chain = "{pair.chain}"
        key = "{pair.key}"
        [upstream]
        url = "http://127.0.0.1:{run.origin}"
        [durable]
        url = "file:{place / 'durable'}"
        [admin]
        listen = "127.0.0.1:{free_port()}"
        [log]
        level = "warn"
    """)
    run.start_on_port(server, pair, [binary, "--config", config], port)


def nginx_command(binary: str, place: Path, http: str) -> list:
    """Writes the configuration of an nginx with one worker, whose files are all in `place`, and returns its command."""
    # Only root may say who the workers are, and they need to reach the temporary directory.
    user = "user root;" if os.geteuid() == 0 else ""
    config = place / "nginx.conf"
    config.write_text(f"""
        {user}
        daemon off;
        worker_processes 1;
        pid {place}/nginx.pid;
        error_log stderr error;
        events {{ worker_connections 8192; }}
        http {{
            access_log off;
            keepalive_timeout 300s;
            keepalive_requests 1000000000;
            client_body_temp_path {place}/body;
            proxy_temp_path {place}/temp;
            fastcgi_temp_path {place}/fastcgi;
            uwsgi_temp_path {place}/uwsgi;
            scgi_temp_path {place}/scgi;
            {http}
        }}
    """)
    return [binary, "-p", place, "-e", "stderr", "-c", config]


def start_nginx(binary: str, run: Run, server: Server, pair: Pair, place: Path) -> None:
    port = free_port()
    command = nginx_command(binary, place, f"""
            sendfile on;
            open_file_cache max=200000 inactive=300s;
            open_file_cache_valid 300s;
            proxy_cache_path {place}/cache keys_zone=cache:64m max_size=2g use_temp_path=off;
            upstream origin {{ server 127.0.0.1:{run.origin}; keepalive 128; }}
            server {{
                listen 127.0.0.1:{port} ssl http2;
                ssl_certificate {pair.chain};
                ssl_certificate_key {pair.key};
                ssl_protocols TLSv1.3;
                ssl_conf_command Ciphersuites {CIPHER};
                location / {{
                    proxy_pass http://origin;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_cache cache;
                }}
            }}
    """)
    run.start_on_port(server, pair, command, port)


def start_haproxy(binary: str, run: Run, server: Server, pair: Pair, place: Path) -> None:
    port = free_port()
    config = place / "haproxy.cfg"
    config.write_text(f"""
global
    nbthread 1
    maxconn 4096

defaults
    mode http
    timeout connect 5s
    timeout client 300s
    timeout server 60s

cache store
    total-max-size 1024
    max-object-size 2000000
    max-age 3600

frontend in
    bind 127.0.0.1:{port} ssl crt {pair.both} alpn h2,http/1.1 ssl-min-ver TLSv1.3 ciphersuites {CIPHER}
    default_backend origin

backend origin
    http-reuse always
    http-request cache-use store
    http-response cache-store store
    server origin 127.0.0.1:{run.origin} pool-max-conn -1 pool-purge-delay 300s
""")
    run.start_on_port(server, pair, [binary, "-db", "-f", config], port)


def start_caddy(binary: str, run: Run, server: Server, pair: Pair, place: Path) -> None:
    port = free_port()
    files = place / "files"
    files.mkdir()
    for path, length in PAGES.items():
        (files / path[1:]).write_bytes(b"abcdefghijklmnopqrstuvwxyz012345" * (length // 32))
    config = place / "Caddyfile"
    config.write_text(f"""{{
    admin off
    auto_https off
    default_sni {NAME}
    servers {{
        protocols h1 h2
    }}
}}
https://:{port} {{
    bind 127.0.0.1
    tls {pair.chain} {pair.key} {{
        protocols tls1.3
    }}
    root * {files}
    file_server
}}
""")
    environment = {"GOMAXPROCS": "1", "HOME": str(place), "XDG_DATA_HOME": str(place), "XDG_CONFIG_HOME": str(place)}
    run.start_on_port(server, pair, [binary, "run", "--adapter", "caddyfile", "--config", config], port, environment)


# ---------------------------------------------------------------- telling


def tables(servers: list[Server], works: list[Work]) -> str:
    names = [server.name for server in servers]
    lines = ["| µs of processor time | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for work in works:
        lines.append(f"| {work.name} | " + " | ".join(f"{statistics.median(server.micros[work.name]):.1f}" for server in servers) + " |")
    larder = next((server for server in servers if server.name == "larder"), None)
    others = [server for server in servers if server is not larder]
    if larder and others:
        lines += ["", "| Larder over, round by round | " + " | ".join(server.name for server in others) + " |", "| --- " * (len(others) + 1) + "|"]
        for work in works:
            ratios = [statistics.median(ours / theirs for ours, theirs in zip(larder.micros[work.name], server.micros[work.name])) for server in others]
            lines.append(f"| {work.name} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    handshakes = [work for work in works if not work.path]
    if handshakes:
        lines += ["", "| handshakes a second of a processor | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
        for work in handshakes:
            lines.append(f"| {work.name} | " + " | ".join(f"{1e6 / statistics.median(server.micros[work.name]):,.0f}" for server in servers) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
