#!/usr/bin/env python3
"""Compares what it costs Larder, nginx and HAProxy to pass a request on to an origin that speaks TLS.

    cargo build --release && bench/origin_tls.py --larder target/release/larder

Clients come by plain HTTP/1.1, over 64 connections of wrk. The origin is bench/origin.c behind an nginx that ends TLS
1.3 with AES-128-GCM; both run on the processor of the load. Every server has one worker and the other processor to
itself. All check the origin's certificate. "kept" keeps connections to the origin; "new" makes one for each request, and
resumes a session where the server does that. The figure is the processor time that the server spent, all its threads,
over what it answered. The servers are measured in turn, several rounds of it, and the table has medians. Compare figures
of one run only.

Needs Python 3.9, cc, openssl, wrk, nginx, two processors, and haproxy if that is to be beside Larder.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import PATH, Failure, compiled, cpu_nanoseconds, free_port, get, pinned_to, say
from tls import CIPHER, LOAD_CPU, NAME, SERVER_CPU, START_DEADLINE, Pair, Run, make_pair, nginx_command

WAYS = ("kept", "new")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, required=True, help="the binary")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="how long each measurement takes")
    options = parser.parse_args()
    try:
        with contextlib.ExitStack() as stack:
            print(run(options, stack))
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace, stack: contextlib.ExitStack) -> str:
    for program in ("wrk", "nginx", "openssl"):
        if not shutil.which(program, path=PATH):
            raise Failure(f"{program} is not installed: apt-get install wrk nginx openssl")
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="larder-origin-tls-")))
    directory.chmod(0o755)
    runner = Run(options.seconds, Path(), directory, stack)
    plain = int(runner.start("origin", [compiled("origin", directory)], LOAD_CPU, reads=True).stdout.readline())
    pair = make_pair(directory, "ecdsa")
    origin = start_origin(runner, directory, pair, plain)
    servers = {"larder": larder, "nginx": nginx, "haproxy": haproxy}
    started: dict[tuple[str, str], tuple[int, subprocess.Popen]] = {}
    for name, command in servers.items():
        if name != "larder" and not shutil.which(name, path=PATH):
            say(f"{name} is not installed, and left out")
            continue
        for way in WAYS:
            place = directory / f"{name}-{way}"
            place.mkdir()
            port = free_port()
            binary = options.larder.resolve() if name == "larder" else shutil.which(name, path=PATH)
            process = runner.start(f"{name}-{way}", command(binary, place, pair, origin, port, way), SERVER_CPU)
            wait(process, port, directory / f"{name}-{way}.log")
            started[name, way] = port, process
    micros: dict[tuple[str, str], list[float]] = {}
    for number in range(1, options.rounds + 1):
        for (name, way), (port, process) in started.items():
            spent = measure(options.seconds, port, process, plain)
            micros.setdefault((name, way), []).append(spent)
            say(f"round {number}, {way}, {name}: {spent:.2f} µs")
    names = list(dict.fromkeys(name for name, _ in started))
    lines = ["| µs of processor time | " + " | ".join(names) + " | " + " | ".join(f"Larder over {name}" for name in names[1:]) + " |"]
    lines.append("| --- " * (2 * len(names)) + "|")
    for way in WAYS:
        figures = [f"{statistics.median(micros[name, way]):.1f}" for name in names]
        ratios = [statistics.median(ours / theirs for ours, theirs in zip(micros["larder", way], micros[name, way])) for name in names[1:]]
        lines.append(f"| connections {way} | " + " | ".join(figures + [f"{ratio:.2f}" for ratio in ratios]) + " |")
    return "\n".join(lines)


def wait(process: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE
    while True:
        with contextlib.suppress(OSError, Failure):
            if get(port, "/pass")[0] == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failure(f"{log.stem} did not start:\n{log.read_text(errors='replace')}")
        time.sleep(0.05)


def measure(seconds: int, port: int, process: subprocess.Popen, origin: int) -> float:
    """µs of the server's processor for each request."""
    command = ["wrk", "-t1", "-c64", f"-d{seconds}s", "-H", f"Host: {NAME}", f"http://127.0.0.1:{port}/pass"]
    asked, before = int(get(origin, "/count")[2]), cpu_nanoseconds(process.pid)
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=pinned_to(LOAD_CPU), env={**os.environ, "PATH": PATH})
    spent = cpu_nanoseconds(process.pid) - before
    found = re.search(r"(\d+) requests in", done.stdout)
    if done.returncode != 0 or not found or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise Failure(f"the load failed:\n{done.stdout}{done.stderr}")
    count = int(found[1])
    if int(get(origin, "/count")[2]) - asked < count:
        raise Failure("not all of it was passed on")
    return spent / 1000 / count


def start_origin(runner: Run, directory: Path, pair: Pair, plain: int) -> int:
    place, port = directory / "origin-tls", free_port()
    place.mkdir()
    command = nginx_command(shutil.which("nginx", path=PATH), place, f"""
            upstream origin {{ server 127.0.0.1:{plain}; keepalive 128; }}
            server {{
                listen 127.0.0.1:{port} ssl;
                ssl_certificate {pair.chain};
                ssl_certificate_key {pair.key};
                ssl_protocols TLSv1.3;
                ssl_session_cache shared:tls:10m;
                ssl_conf_command Ciphersuites {CIPHER};
                location / {{
                    proxy_pass http://origin;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                }}
            }}
    """)
    process = runner.start("origin-tls", command, LOAD_CPU)
    deadline = time.monotonic() + START_DEADLINE
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return port
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failure("the origin did not start:\n" + (directory / "origin-tls.log").read_text(errors="replace"))
        time.sleep(0.05)


def larder(binary: Path, place: Path, pair: Pair, origin: int, port: int, way: str) -> list:
    config = place / "larder.toml"
    config.write_text(f"""
        [server]
        listen = ["http://127.0.0.1:{port}"]
        threads = 1
        [upstream]
        url = "https://127.0.0.1:{origin}"
        server_name = "{NAME}"
        ca_file = "{pair.chain}"
        max_idle = {256 if way == "kept" else 0}
        [durable]
        url = "file:{place / 'durable'}"
        [admin]
        listen = "off"
        [log]
        level = "warn"
    """)
    return [binary, "--config", config]


def nginx(binary: str, place: Path, pair: Pair, origin: int, port: int, way: str) -> list:
    kept = 'proxy_http_version 1.1; proxy_set_header Connection "";' if way == "kept" else ""
    return nginx_command(binary, place, f"""
            proxy_cache_path {place}/cache keys_zone=cache:64m max_size=2g use_temp_path=off;
            upstream origin {{ server 127.0.0.1:{origin}; {"keepalive 128; keepalive_requests 1000000000;" if way == "kept" else ""} }}
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass https://origin;
                    proxy_ssl_name {NAME};
                    proxy_ssl_server_name on;
                    proxy_ssl_verify on;
                    proxy_ssl_trusted_certificate {pair.chain};
                    proxy_ssl_protocols TLSv1.3;
                    {kept}
                    proxy_cache cache;
                }}
            }}
    """)


def haproxy(binary: str, place: Path, pair: Pair, origin: int, port: int, way: str) -> list:
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
    bind 127.0.0.1:{port}
    default_backend origin

backend origin
    http-reuse {"always" if way == "kept" else "never"}
    {"" if way == "kept" else "option http-server-close"}
    http-request cache-use store
    http-response cache-store store
    server origin 127.0.0.1:{origin} ssl verify required ca-file {pair.chain} sni str({NAME}) verifyhost {NAME} pool-max-conn -1 pool-purge-delay 300s
""")
    return [binary, "-db", "-f", config]


if __name__ == "__main__":
    sys.exit(main())
