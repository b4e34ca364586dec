#!/usr/bin/env python3
"""What the durable tier costs and survives, on an S3 server (s3s-fs) and a directory of this machine.

    cargo build --release && bench/durable.py --larder target/release/larder

Scenes (--only stores,warm,faults,cpu):
  stores  --stores responses of 10 KiB as fast as they come, into a bucket that takes 100 ms a request: the packs and
          requests that takes, in all and for a million; then a new process: time until its index is complete, its
          bytes a response, and 10,000 cold misses, with what the bucket was asked for meanwhile
  warm    10,000 URLs stored, the process killed with -9 once its queue is empty, everything it had besides the
          bucket removed; a new one on the same bucket: hits, requests to the origin, and the hit ratio of
          its first 10 s while another 10,000 URLs are asked for as well
  faults  a bucket that fails in every way, against what clients see: errors, latency added (with the breaker
          closed, and open), time until the bucket is in use again
  cpu     CPU time of a hit from the bucket against a bare GetObject of the SDK, of the same range

Needs Linux, Python 3.9, cargo.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import http.server
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from crowds import ROOT, Process, heading, mib, row
from common import Failure, cpu_nanoseconds, free_port, get, with_settings

FAULTS = [
    "reset in mid-body", "500", "503 SlowDown", "403", "5 s latency", "truncated body", "wrong checksum",
    "clock skew error", "slow trickle",
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, required=True, help="the binary")
    parser.add_argument("--only", default="stores,warm,faults,cpu", help="some scenes")
    parser.add_argument("--stores", type=int, default=100_000)
    parser.add_argument("--urls", type=int, default=10_000)
    parser.add_argument("--directory", type=Path, help="where the buckets go (default: a temporary one)")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    if not all((ROOT / "target/release/examples" / name).exists() for name in ("s3-server", "s3-get")):
        subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--examples"], cwd=ROOT, check=True)
    scenes = {"stores": stores, "warm": warm, "faults": faults, "cpu": cpu}
    try:
        with tempfile.TemporaryDirectory(prefix="larder-durable-", dir=options.directory) as directory:
            options.work = Path(directory)
            for name in options.only.split(","):
                print(f"## {name}", flush=True)
                scenes[name](options)
                print(flush=True)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


# ---------------------------------------------------------------- origin, bucket, clients


class Origin:
    """Any page, for an hour, of the size that its query asks for."""

    def __init__(self) -> None:
        origin = self
        self.requests = 0
        self.lock = threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = 1 << 20

            def do_GET(self) -> None:
                with origin.lock:
                    origin.requests += 1
                size = int(self.path.partition("size=")[2] or 1024)
                body = (self.path.encode() * (size // len(self.path) + 1))[:size]
                self.send_response(200)
                self.send_header("Cache-Control", "max-age=3600")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 1024

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Bucket(Process):
    def __init__(self, directory: Path, port: int = 0):
        (directory / "bucket").mkdir(parents=True, exist_ok=True)
        read, self.pipe = os.pipe()
        self.name, self.log = "s3", directory / "s3.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [ROOT / "target/release/examples/s3-server", directory, str(port)],
                stdin=read, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        os.close(read)
        self.lines: list[str] = []
        self.port = int(self.process.stdout.readline() or 0)
        threading.Thread(target=self._drain, daemon=True).start()

    def mood(self, text: str) -> None:
        os.write(self.pipe, f"{text}\n".encode())
        while f"# {text}" not in self.lines:
            time.sleep(0.01)
        self.lines.clear()

    def settings(self) -> dict[str, str]:
        return {
            "durable.url": "s3://bucket/p",
            "durable.endpoint_url": f"http://127.0.0.1:{self.port}",
            "durable.region": "us-east-1",
            "durable.path_style": "true",
        }

    def count(self, method: str, part: str = "") -> int:
        return sum(1 for line in list(self.lines) if line.startswith(method) and part in line)

    def reads(self) -> int:
        return sum(1 for line in list(self.lines) if line.startswith("GET") and (".pack" in line or "/b/" in line))


class Larder:
    def __init__(self, options: argparse.Namespace, origin: int, more: dict[str, str]):
        self.port, self.admin = free_port(), free_port()
        settings = {
            "server.listen": f"127.0.0.1:{self.port}",
            "admin.listen": f"127.0.0.1:{self.admin}",
            "upstream.url": f"http://127.0.0.1:{origin}",
            **more,
        }
        command = with_settings(options.larder, settings)
        self.began = time.monotonic()
        environment = {"AWS_ACCESS_KEY_ID": "larder", "AWS_SECRET_ACCESS_KEY": "secret"}
        self.process = Process(command, options.work, f"larder-{self.port}", environment)
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(Failure):
                get(self.admin, "/healthz")
                break
            if self.process.process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"larder did not start:\n{self.process.log.read_text()}")
            time.sleep(0.02)

    def metric(self, name: str) -> float:
        text = get(self.admin, "/metrics", patience=60)[2].decode()
        return float(re.search(rf"^{re.escape(name)} (\S+)", text, re.M)[1])

    def wait(self, name: str, value: float, patience: float = 600) -> float:
        """Seconds since the start until a metric has a value."""
        deadline = time.monotonic() + patience
        while self.metric(name) != value:
            if time.monotonic() > deadline:
                raise Failure(f"{name} is {self.metric(name)}, not {value}:\n{self.process.log.read_text()[-2000:]}")
            time.sleep(0.05)
        return time.monotonic() - self.began

    def kill(self) -> None:
        self.process.process.kill()
        self.process.process.wait()

    def __enter__(self) -> "Larder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.__exit__(*exception)


def ask(port: int, paths: list[str], clients: int = 8, until: float | None = None) -> list[tuple[float, int, str]]:
    """Asks for paths over kept connections: seconds it took, status, Cache-Status of each."""
    answers: list[tuple[float, int, str]] = []
    lock = threading.Lock()
    todo = iter(paths)

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        mine = []
        while until is None or time.monotonic() < until:
            with lock:
                path = next(todo, None)
            if path is None:
                break
            began = time.monotonic()
            connection.request("GET", path, headers={"Host": "bench.example"})
            response = connection.getresponse()
            response.read()
            mine.append((time.monotonic() - began, response.status, response.headers["Cache-Status"]))
        with lock:
            answers.extend(mine)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def hits(answers: list[tuple[float, int, str]], tier: str = "hit") -> int:
    return sum(1 for _, _, status in answers if "; hit" in status and tier in status)


def quantile(answers: list[tuple[float, int, str]], q: float) -> str:
    times = sorted(seconds for seconds, _, _ in answers)
    return f"{times[min(len(times) - 1, int(len(times) * q))] * 1000:.1f} ms"


def settle(larder: Larder) -> None:
    larder.wait("larder_durable_queue_objects", 0)


# ---------------------------------------------------------------- scenes


def stores(options: argparse.Namespace) -> None:
    origin = Origin()
    heading("", f"{options.stores:,} responses of 10 KiB, a bucket that takes 100 ms a request")
    with Bucket(options.work / "s3-stores") as s3:
        s3.mood("delay 100")
        settings = {**s3.settings(), "memory.capacity": "64MiB"}
        with Larder(options, origin.port, settings) as larder:
            before, began = cpu_nanoseconds(larder.process.process.pid), time.monotonic()
            ask(larder.port, [f"/page/{n}?size=10240" for n in range(options.stores)], 16)
            took = time.monotonic() - began
            settle(larder)
            spent = cpu_nanoseconds(larder.process.process.pid) - before
            packs, puts = s3.count("PUT", ".pack"), s3.count("PUT")
            lost = larder.metric('larder_durable_lost_total{why="queue-full"}')
            row("stored", f"{options.stores / took:,.0f} a second, {spent / 1000 / options.stores:.0f} us of CPU each; {lost:.0f} found the queue full")
            row("PUT requests", f"{puts:,}, {packs:,} of them packs: {packs * 1_000_000 / options.stores:,.0f} packs for a million")
            row("LIST and GET requests meanwhile", f"{s3.count('GET'):,}")
            sizes = sorted(path.stat().st_size for path in (options.work / "s3-stores/bucket/p/larder-1/j").glob("*.pack"))
            row("a pack", f"{mib(sizes[len(sizes) // 2])} at the median, {mib(sizes[0])} to {mib(sizes[-1])}")
        s3.mood("delay 20")
        with Larder(options, origin.port, settings) as larder:
            up = time.monotonic() - larder.began
            loaded = larder.wait("larder_index_loaded", 1)
            row("a new process (20 ms a request)", f"answers after {up:.2f} s, index complete after {loaded:.2f} s and {len(s3.lines)} requests")
            keys, size = larder.metric("larder_index_keys"), larder.metric("larder_index_bytes")
            row("the index", f"{keys:,.0f} keys, {mib(int(size))}: {size / keys:.1f} bytes a key")
            s3.lines.clear()
            before = origin.requests
            answers = ask(larder.port, [f"/cold/{n}" for n in range(options.urls)])
            row(f"{options.urls:,} cold misses", f"{origin.requests - before:,} requests to the origin, {s3.reads()} reads of the bucket; p50 {quantile(answers, 0.5)}, p99 {quantile(answers, 0.99)}")


def warm(options: argparse.Namespace) -> None:
    origin = Origin()
    heading("", "")
    with Bucket(options.work / "s3-warm") as s3:
        paths = [f"/page/{n}?size=2048" for n in range(options.urls)]
        larder = Larder(options, origin.port, s3.settings())
        ask(larder.port, paths)
        settle(larder)
        row("stored", f"{origin.requests:,} requests to the origin; {s3.lines.__len__():,} to the bucket")
        larder.kill()
        row("killed with -9", "the bucket is all that is left")
        before = origin.requests
        with Larder(options, origin.port, s3.settings()) as larder:
            up = time.monotonic() - larder.began
            answers = ask(larder.port, paths)
            row("a new one", f"up after {up:.2f} s; {hits(answers, 'durable'):,} of {len(answers):,} are hits, {origin.requests - before} requests to the origin; p50 {quantile(answers, 0.5)}, p99 {quantile(answers, 0.99)}")
            if hits(answers) != len(paths) or origin.requests != before:
                raise Failure("that is not right")
        rng = random.Random(7)
        mixed = [rng.choice(paths) for _ in range(2_000_000)]
        with Larder(options, origin.port, s3.settings()) as larder:
            answers = ask(larder.port, mixed, until=time.monotonic() + 10)
            row("another, its first 10 s under load", f"{len(answers):,} requests, {hits(answers) / len(answers):.2%} hits")
        other = Larder(options, origin.port, {**s3.settings(), "durable.url": "off"})
        with other:
            answers = ask(other.port, mixed, until=time.monotonic() + 10)
            row("the same without a durable tier", f"{len(answers):,} requests, {hits(answers) / len(answers):.2%} hits")


def faults(options: argparse.Namespace) -> None:
    origin = Origin()
    print("lookup_timeout 500 ms, breaker after 5 failures, 2 s between its probes; 4 clients, a second each\n")
    heading("fault", "errors seen", "p50 / p99 / max while it is found down", "p50 / p99 while it is down", "in use again after")
    with Bucket(options.work / "s3-faults") as s3:
        more = {**s3.settings(), "memory.capacity": "0"}
        paths = [f"/page/{n}" for n in range(2000)]
        with Larder(options, origin.port, more) as larder:
            ask(larder.port, paths)
            settle(larder)
            well = ask(larder.port, paths, 4, time.monotonic() + 2)
            row("none: hits", 0, f"{quantile(well, 0.5)} / {quantile(well, 0.99)} / {quantile(well, 1)}", "", "")
            missed = ask(larder.port, [f"/miss/{n}" for n in range(2000)], 4, time.monotonic() + 2)
            row("none: misses", 0, f"{quantile(missed, 0.5)} / {quantile(missed, 0.99)} / {quantile(missed, 1)}", "", "")
            settle(larder)
        for fault in [*FAULTS, "refused"]:
            with Larder(options, origin.port, more) as larder:
                larder.wait("larder_index_loaded", 1)
                ask(larder.port, paths)
                settle(larder)
                if fault == "refused":
                    os.killpg(s3.process.pid, signal.SIGSTOP)
                    os.killpg(s3.process.pid, signal.SIGKILL)
                    s3.process.wait()
                else:
                    s3.mood(fault)
                found = ask(larder.port, paths, 4, time.monotonic() + 3)
                down = larder.metric("larder_durable_down")
                during = ask(larder.port, paths[::-1], 4, time.monotonic() + 2)
                errors = sum(1 for _, status, _ in found + during if status != 200)
                with contextlib.ExitStack() as stack:
                    if fault == "refused":
                        stack.enter_context(Bucket(options.work / "s3-faults", s3.port))
                    else:
                        s3.mood("none")
                    began = time.monotonic()
                    larder.wait("larder_durable_down", 0)
                    settle(larder)
                    after = f"{time.monotonic() - began:.1f} s"
                row(
                    fault,
                    errors,
                    f"{quantile(found, 0.5)} / {quantile(found, 0.99)} / {quantile(found, 1)}",
                    f"{quantile(during, 0.5)} / {quantile(during, 0.99)}" if down else "not down: " + f"{quantile(during, 0.5)} / {quantile(during, 0.99)}",
                    after,
                )


def cpu(options: argparse.Namespace) -> None:
    origin = Origin()
    heading("size", "bare GetObject", "a hit from the bucket", "ratio")
    with Bucket(options.work / "s3-cpu") as s3:
        for size in (1024, 10 * 1024, 100 * 1024):
            # Less than can be stored in memory at all, so that every hit is one from the bucket.
            more = {**s3.settings(), "memory.capacity": "0", "server.threads": "1"}
            with Larder(options, origin.port, more) as larder:
                paths = [f"/page/{n}?size={size}" for n in range(500)]
                ask(larder.port, paths)
                settle(larder)
                s3.lines.clear()
                ask(larder.port, paths)
                looked = [line.split() for line in s3.lines if line.startswith("GET") and ".pack" in line]
                _, name, span, _ = looked[len(looked) // 2]
                bucket, _, name = name.lstrip("/").partition("/")
                bare, ours = [], []
                for _ in range(3):
                    before, began = cpu_nanoseconds(larder.process.process.pid), time.monotonic()
                    answers = ask(larder.port, paths * 8, 4)
                    spent = cpu_nanoseconds(larder.process.process.pid) - before
                    rate = len(answers) / (time.monotonic() - began)
                    if hits(answers, "durable") != len(answers):
                        raise Failure("not every answer was a hit from the bucket")
                    ours.append(spent / 1000 / len(answers))
                    done = subprocess.run(
                        [ROOT / "target/release/examples/s3-get", f"http://127.0.0.1:{s3.port}", bucket, name, span, "4000", "4", f"{rate:.0f}"],
                        capture_output=True, text=True, check=True,
                    )  # fmt: skip
                    bare.append(float(done.stdout))
                a, b = sorted(bare)[1], sorted(ours)[1]
                row(f"{size // 1024} KiB", f"{a:.0f} us", f"{b:.0f} us", f"{b / a:.2f}")


if __name__ == "__main__":
    sys.exit(main())
