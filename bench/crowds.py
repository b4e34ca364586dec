#!/usr/bin/env python3
"""What becomes of crowds: many clients at once on one cold, uncacheable, expired or very large page.

    cargo build --release && bench/crowds.py --larder target/release/larder

Each scene starts its servers anew, in front of an origin of its own (bench/crowd.c, which is also the
clients), and prints what they saw: how many requests the origin got, how long after its first byte the
clients had theirs, when the last of them had everything, and the server's resident memory. nginx and
Varnish are put through the same where they are installed. Nothing is pinned to a processor: server,
origin and clients share what there is, so that figures of one run compare and others do not.

Scenes (--only cold,private,slow,expired,huge):
  cold     10,000 clients on one cold URL; the origin takes 2 s and then sends 1 MiB in 64 pieces
  private  the same with Cache-Control: no-store, by as many as there are file descriptors for
  slow     1,000 clients of that, of which 100 read 1 KiB/s and 100 leave in the middle
  expired  an expired page whose origin hangs: stale-while-revalidate, and stale-if-error
  huge     a body of --huge GiB, cold, by 4 clients, into a bucket; then 1 MiB of its middle

Needs Linux, Python 3.9, cc; wrk for `expired`; cargo for the S3 server of `huge`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from common import PATH, Failure, free_port, get, with_settings

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MIB = 1 << 20
BODY = "pieces=64&size=16384"
# Clients of each run come from an address of their own, so that no port is in the way of the next.
sources = iter(range(2, 250))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, required=True, help="the binary")
    parser.add_argument("--only", default="cold,private,slow,expired,huge", help="some scenes")
    parser.add_argument("--servers", default="larder,nginx,varnish")
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--huge", type=float, default=10, metavar="GIB")
    parser.add_argument("--directory", type=Path, help="where `huge` puts its bucket (default: a temporary one)")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < options.clients + 100:
        print(f"{hard} open files are allowed, which is not enough for {options.clients} clients", file=sys.stderr)
        return 1
    scenes = {"cold": cold, "private": private, "slow": slow, "expired": expired, "huge": huge}
    try:
        with tempfile.TemporaryDirectory(prefix="larder-crowd-", dir=options.directory) as directory:
            options.work = Path(directory)
            options.work.chmod(0o755)
            options.crowd = compile_crowd(options.work)
            options.files = hard
            for name in options.only.split(","):
                print(f"## {name}", flush=True)
                scenes[name](options)
                print(flush=True)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def compile_crowd(directory: Path) -> Path:
    compiler = os.environ.get("CC") or shutil.which("cc")
    if not compiler:
        raise Failure("cc is not installed")
    binary = directory / "crowd"
    subprocess.run([compiler, "-O2", "-o", binary, HERE / "crowd.c"], check=True)
    return binary


# ---------------------------------------------------------------- processes


class Process:
    def __init__(self, command: list, directory: Path, name: str, environment: dict | None = None, prints_port: bool = False):
        self.name = name
        self.log = directory / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if prints_port else log,
                stderr=log,
                env={**os.environ, "PATH": PATH, **(environment or {})},
                start_new_session=True,
            )
        self.lines: list[str] = []
        self.port = 0
        if prints_port:
            self.port = int(self.process.stdout.readline() or 0)
            if not self.port:
                raise Failure(f"{name} did not start:\n{self.log.read_text()}")
            threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.decode(errors="replace").rstrip())

    def wait_for(self, port: int) -> None:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(Failure):
                get(port, "/count")
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"{self.name} did not start:\n{self.log.read_text()}")
            time.sleep(0.05)

    def memory(self, field: str = "VmRSS") -> int:
        """Resident bytes of the process and those that it started; each one's peak for VmHWM."""
        total = 0
        pids = [self.process.pid]
        while pids:
            pid = pids.pop()
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
                total += int(found[1]) * 1024 if found else 0
                for task in Path(f"/proc/{pid}/task").iterdir():
                    pids += [int(child) for child in (task / "children").read_text().split()]
        return total

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_exception: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start_origin(options: argparse.Namespace) -> Process:
    return Process([options.crowd, "origin"], options.work, "origin", prints_port=True)


def start(options: argparse.Namespace, name: str, origin: int, more: dict[str, str] | None = None) -> tuple[Process, int]:
    port = free_port()
    directory = options.work / f"{name}-{port}"
    directory.mkdir()
    if name == "larder":
        settings = {
            "server.listen": f"127.0.0.1:{port}",
            "upstream.url": f"http://127.0.0.1:{origin}",
            "durable.url": f"file:{directory}/durable",
            "admin.listen": f"127.0.0.1:{free_port()}",
            "log.level": "warn",
            **(more or {}),
        }
        command = with_settings(options.larder, settings)
        environment = {"AWS_ACCESS_KEY_ID": "larder", "AWS_SECRET_ACCESS_KEY": "secret"}
        process = Process(command, directory, name, environment)
        process.admin = int(settings["admin.listen"].rsplit(":", 1)[1])
    elif name == "nginx":
        # With the lock, or it would send the whole crowd to the origin; `private` shows what that costs
        # there. Its waiters look again every 500 ms.
        user = "user root;" if os.geteuid() == 0 else ""
        config = directory / "nginx.conf"
        config.write_text(f"""
            {user} daemon off; worker_processes auto; worker_rlimit_nofile {options.files};
            pid {directory}/nginx.pid; error_log stderr crit;
            events {{ worker_connections {options.files}; }}
            http {{
                access_log off; sendfile on;
                client_body_temp_path {directory}/body; proxy_temp_path {directory}/temp;
                fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
                proxy_cache_path {directory}/cache keys_zone=cache:10m max_size=256m use_temp_path=off;
                server {{
                    listen 127.0.0.1:{port} backlog=16384;
                    location / {{
                        proxy_pass http://127.0.0.1:{origin}; proxy_http_version 1.1; proxy_set_header Connection "";
                        proxy_cache cache; proxy_cache_lock on; proxy_cache_lock_timeout 60s; proxy_cache_lock_age 60s;
                    }}
                }}
            }}""")
        process = Process(["nginx", "-p", directory, "-e", "stderr", "-c", config], directory, name)
    else:
        config = directory / "default.vcl"
        config.write_text(f'vcl 4.1;\nbackend default {{ .host = "127.0.0.1"; .port = "{origin}"; }}\n')
        process = Process(
            ["varnishd", "-F", "-j", "none", "-n", directory / "work", "-a", f"127.0.0.1:{port}", "-f", config]
            + ["-s", "malloc,256m", "-p", "listen_depth=16384", "-p", "thread_pool_max=12000", "-p", "thread_queue_limit=20000"],
            directory,
            name,
        )
    process.wait_for(port)
    return process, port


def servers(options: argparse.Namespace) -> list[str]:
    programs = {"larder": options.larder, "nginx": "nginx", "varnish": "varnishd"}
    return [name for name in options.servers.split(",") if name == "larder" or shutil.which(str(programs[name]), path=PATH)]


def crowd(options: argparse.Namespace, port: int, target: str, n: int, slow_ones: int = 0, leaving: int = 0, length: int = MIB) -> dict:
    done = subprocess.run(
        [str(part) for part in (options.crowd, "clients", port, target, n, slow_ones, 1024, leaving, length, next(sources))],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Failure(f"the clients ended: {done.stderr}")
    return json.loads(done.stdout)


def count(origin: Process) -> dict:
    return json.loads(get(origin.port, "/count")[2])


def ms(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:,.0f} ms"


def mib(size: int) -> str:
    return f"{size / MIB:,.0f} MiB"


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def heading(*cells: str) -> None:
    row(*cells)
    row(*("---" for _ in cells))


# ---------------------------------------------------------------- scenes


def cold(options: argparse.Namespace) -> None:
    n = options.clients
    heading("server", "origin requests", "whole answers", "first byte after the origin's: p50", "p99", "max", "all had everything after", "memory: idle", "connected, peak", "a client")
    for name in servers(options):
        with start_origin(options) as origin:
            process, port = start(options, name, origin.port)
            with process:
                idle = process.memory()
                count(origin)
                seen = crowd(options, port, f"/cold?delay=2000&every=10&{BODY}", n)
                asked = count(origin)
                peak = process.memory("VmHWM")
                after = {key: ms(value - asked["first"]) if seen["whole"] else "-" for key, value in seen["first"].items()}
                cost = f"{(peak - idle - MIB) / n / 1024:.0f} KiB"
                row(name, asked["requests"], f"{seen['whole']} of {n}", after["p50"], after["p99"], after["max"], ms(seen["end"]["max"] - asked["first"]) if seen["whole"] else "-", mib(idle), mib(peak), cost)


def private(options: argparse.Namespace) -> None:
    # A connection to the client and one to the origin each.
    n = min(options.clients, (options.files - 1000) // 2)
    print(f"{n} clients, 2 s and a body each: once one that takes no time to copy, once 1 MiB. The second crowd comes right after the first.\n")
    heading("server", "body", "crowd", "origin requests", "whole answers", "first byte: p50", "p99", "max", "all after", "memory")
    for size, body in ((16, "pieces=64&size=256"), (1024, BODY)):
        target = f"/private?cc=no-store&delay=2000&{body}"

        def line(name: str, which: str, port: int, origin: Process) -> None:
            count(origin)
            seen = crowd(options, port, target, n, length=size * 1024)
            first = [ms(seen["first"][key] - seen["began"]) for key in ("p50", "p99", "max")]
            asked = count(origin)["requests"]
            row(name, f"{size} KiB", which, asked, f"{seen['whole']} of {n}", *first, ms(seen["finished"] - seen["began"]), "")

        with start_origin(options) as origin:
            line("(none)", "", origin.port, origin)
        for name in servers(options):
            with start_origin(options) as origin:
                process, port = start(options, name, origin.port)
                with process:
                    for which in ("first", "second"):
                        line(name, which, port, origin)
                    row(name, f"{size} KiB", "memory at its peak", *[""] * 6, mib(process.memory("VmHWM")))


def slow(options: argparse.Namespace) -> None:
    heading("server", "slow", "leaving", "origin requests", "whole answers", "first byte: p50", "p99", "everything: p50", "p99", "max", "slow ones still served", "memory")
    for name in servers(options):
        for slow_ones, leaving in ((0, 0), (100, 100)):
            with start_origin(options) as origin:
                process, port = start(options, name, origin.port)
                with process:
                    count(origin)
                    n = 800 + slow_ones + leaving
                    seen = crowd(options, port, f"/slow?delay=500&every=10&{BODY}", n, slow_ones, leaving)
                    asked = count(origin)
                    times = [ms(seen[what][key] - asked["first"]) for what, keys in (("first", ("p50", "p99")), ("end", ("p50", "p99", "max"))) for key in keys]
                    row(name, slow_ones, leaving, asked["requests"], f"{seen['whole']} of 800", *times, seen["slow_still_served"], mib(process.memory("VmHWM")))


def expired(options: argparse.Namespace) -> None:
    wrk = shutil.which("wrk", path=PATH)
    if not wrk:
        raise Failure("wrk is not installed")

    def load(port: int, target: str) -> list[str]:
        done = subprocess.run([wrk, "-t1", "-c64", "-d3s", "--latency", f"http://127.0.0.1:{port}{target}"], capture_output=True, text=True, check=True)
        if "Non-2xx" in done.stdout or "timeout" in done.stdout:
            raise Failure(done.stdout)
        return [re.search(rf"\s{p}%\s+(\S+)", done.stdout)[1] for p in (50, 99)] + [re.search(r"(\d+) requests in", done.stdout)[1]]

    heading("larder", "p50", "p99", "requests", "origin requests meanwhile")
    more = {"upstream.response_timeout": "1s", "upstream.connect_timeout": "1s"}
    pages = {
        "hit": "/hit?cc=max-age=600",
        "stale-while-revalidate, the origin hangs": "/swr?cc=max-age=1+stale-while-revalidate=600",
        "stale-if-error, the origin hangs, the breaker open": "/sie?cc=max-age=1+stale-if-error=600",
    }
    with start_origin(options) as origin:
        process, port = start(options, "larder", origin.port, more)
        with process:
            for target in pages.values():
                get(port, target)
            time.sleep(2.1)
            get(origin.port, "/hang")
            for what, target in pages.items():
                if "breaker" in what:
                    # Five pages time out, one after the other for each.
                    ask = [threading.Thread(target=lambda i=i: fetch(port, f"/other/{i}")) for i in range(5)]
                    for thread in ask:
                        thread.start()
                    for thread in ask:
                        thread.join()
                    metrics = get(process.admin, "/metrics")[2].decode()
                    if "larder_origin_down 1" not in metrics:
                        raise Failure("the breaker is not open")
                count(origin)
                row(what, *load(port, target), count(origin)["requests"])


def fetch(port: int, target: str) -> None:
    with contextlib.suppress(Exception):
        urllib.request.urlopen(f"http://127.0.0.1:{port}{target}", timeout=60).read()


def huge(options: argparse.Namespace) -> None:
    server = ROOT / "target/release/examples/s3-server"
    if not server.exists():
        subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--example", "s3-server"], cwd=ROOT, check=True)
    pieces = int(options.huge * 256)
    length = pieces * 4 * MIB
    bucket = options.work / "s3"
    (bucket / "bucket").mkdir(parents=True)
    with Process([server, bucket], options.work, "s3", prints_port=True) as s3, start_origin(options) as origin:
        more = {
            "durable.url": "s3://bucket/huge",
            "durable.endpoint_url": f"http://127.0.0.1:{s3.port}",
            "durable.region": "us-east-1",
            "durable.path_style": "true",
            # This S3 server takes the checksum of the whole object before it answers for a part of it.
            "durable.lookup_timeout": "120s",
        }
        process, port = start(options, "larder", origin.port, more)
        with process:
            idle = process.memory()
            count(origin)
            target = f"/huge?pieces={pieces}&size={4 * MIB}"
            began = time.monotonic()
            seen = crowd(options, port, target, 4, length=length)
            took = time.monotonic() - began
            asked = count(origin)
            heading("", "")
            row("clients", f"{seen['whole']} of 4 had all {length / (1 << 30):g} GiB after {took:.0f} s ({4 * length / took / MIB:,.0f} MiB/s together)")
            row("origin requests", asked["requests"])
            metric = lambda name: int(re.search(rf"^{name} (\d+)", get(process.admin, "/metrics")[2].decode(), re.M)[1])
            while metric("larder_durable_uploads") + metric("larder_durable_queue_objects") > 0:
                time.sleep(0.2)
            row("in the bucket after", f"{time.monotonic() - began:.0f} s")
            peak = process.memory("VmHWM")
            row("resident memory", f"idle {mib(idle)}, peak {mib(peak)}: {mib(peak - idle)} above")
            s3.lines.clear()
            first = length // 2 + 12_345
            status, fields, body = get(port, target, (("Host", "crowd.example"), ("Range", f"bytes={first}-{first + MIB - 1}")), 120)
            row("1 MiB of the middle", f"{status}, {len(body)} bytes, {fields['Cache-Status']}, origin requests {count(origin)['requests']}")
            for line in s3.lines[:5]:
                row("the bucket was asked", line)
            if seen["whole"] != 4 or status != 206 or body != b"x" * MIB:
                raise Failure("that is not right")
            if "detail=durable" not in fields["Cache-Status"]:
                raise Failure(f"it was not in the bucket:\n{process.log.read_text()}")


if __name__ == "__main__":
    sys.exit(main())
