#!/usr/bin/env python3
"""What becomes of a hit's cost with more processors, and with more objects.

    cargo build --release && bench/scale.py --larder target/release/larder

  cores    the processor time of a hit with one worker on one processor, and with two on two. What two workers
           cost each other is in it; a load generator runs on both processors in either case, so that it costs
           both the same. Two processors serve 2 * first / second times as much as one.
  objects  the processor time of a hit among 1,000 to 1,000,000 objects of 1 KiB, each asked for as often as the
           others, and the memory that an object takes over its body: resident, and as Larder counts it. Beside
           it, what a look at memory costs on this machine that is in no cache of the processor (bench/chase.c):
           how many of those the difference comes to. Bare hyper (bench/floor) is asked for the same URLs: it has
           one page, so what it pays more is what the load generator's spread costs any server.

Figures are processor time over requests answered, as in bench/compare: medians of --rounds. Needs Linux, Python
3.9, cc, cargo, wrk, and two processors.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import HERE, PATH, Failure, build_floor, compiled, cpu_nanoseconds, free_port, get, say, with_settings

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
START_DEADLINE = 20


class Running:
    """A server on some processors, until it is left."""

    def __init__(self, command: list, cpus: set[int], port: int | None = None, directory: Path | None = None):
        self._command, self._cpus, self.port, self._directory = command, cpus, port, directory

    def __enter__(self) -> "Running":
        self.process = subprocess.Popen(
            [str(part) for part in self._command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if self.port is None else None,
            cwd=self._directory, preexec_fn=lambda: os.sched_setaffinity(0, self._cpus),
        )  # fmt: skip
        if self.port is None:
            self.port = int(self.process.stdout.readline())
            return self
        deadline = time.monotonic() + START_DEADLINE
        while True:
            with contextlib.suppress(Failure):
                if get(self.port, "/1k")[0] == 200:
                    return self
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failure("larder did not start")
            time.sleep(0.05)

    def __exit__(self, *_exception: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    def resident(self) -> int:
        return int(re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{self.pid}/smaps_rollup").read_text(), re.MULTILINE)[1]) * 1024


def larder(options: argparse.Namespace, directory: Path, origin: int, threads: int, cpus: set[int]) -> tuple[Running, int]:
    port, admin = free_port(), free_port()
    settings = {
        "server.listen": f"127.0.0.1:{port}",
        "server.threads": threads,
        "upstream.url": f"http://127.0.0.1:{origin}",
        "durable.url": "off",
        "admin.listen": f"127.0.0.1:{admin}",
        "log.level": "warn",
        "memory.capacity": "12GiB",
    }
    return Running(with_settings(options.larder, settings), cpus, port, directory), admin


def cost(server: Running, options: argparse.Namespace, threads: int, cpus: set[int], path: str = "/1k", script: tuple[str, ...] = ()) -> float:
    """Microseconds of processor time a request, under load from some processors."""
    command = [options.wrk, f"-t{threads}", "-c64", f"-d{options.seconds}s", "-s", HERE / "wrk.lua", f"http://127.0.0.1:{server.port}{path}", "--", *script]
    before = cpu_nanoseconds(server.pid)
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, preexec_fn=lambda: os.sched_setaffinity(0, cpus))
    spent = cpu_nanoseconds(server.pid) - before
    found = re.search(r"(\d+) requests in", done.stdout)
    if done.returncode != 0 or not found or "Non-2xx" in done.stdout:
        raise Failure(f"wrk failed:\n{done.stdout}{done.stderr}")
    return spent / 1000 / int(found[1])


def cores(options: argparse.Namespace, directory: Path, origin: int) -> str:
    both = {0, 1}
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(larder(options, directory, origin, threads, cpus)[0]) for threads, cpus in ((1, {0}), (2, both))]
        rounds = []
        for _ in range(options.rounds):
            rounds.append([cost(server, options, 2, both) for server in servers])
    one, two = (statistics.median(values) for values in zip(*rounds))
    speedup = statistics.median(2 * first / second for first, second in rounds)
    table = f"| workers | µs a hit of 1 KiB |\n| --- | --- |\n| 1, on one processor | {one:.2f} |\n| 2, on two | {two:.2f} |\n"
    return f"{table}\nTwo processors serve {speedup:.2f} times as much as one.\n"


def objects(options: argparse.Namespace, directory: Path, origin: int) -> str:
    pace, chase = compiled("pace", directory), compiled("chase", directory)
    look = float(subprocess.run(["taskset", "-c", "0", chase, "2048"], capture_output=True, text=True, check=True).stdout)
    server, admin = larder(options, directory, origin, 1, {0})
    rows = []
    with server, Running([build_floor()], {0}) as floor:
        at_first, filled = server.resident(), 0
        for count in COUNTS:
            say(f"{count:,} objects")
            filling = [pace, str(server.port), "/page/", "8", "each", str(count)]
            subprocess.run([str(part) for part in filling], check=True, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, {1}))
            script = ("uniform", "/page/", str(count))
            samples = [(cost(server, options, 1, {1}, "/page/0", script), cost(floor, options, 1, {1}, "/page/0", script)) for _ in range(options.rounds)]
            metrics = get(admin, "/metrics")[2].decode()
            kept = int(re.search(r"^larder_memory_objects (\d+)$", metrics, re.MULTILINE)[1])
            counted = int(re.search(r"^larder_memory_bytes (\d+)$", metrics, re.MULTILINE)[1])
            if kept < count:
                raise Failure(f"of {count} objects {kept} are kept")
            over = (server.resident() - at_first) / kept - 1024
            rows.append((count, *(statistics.median(values) for values in zip(*samples)), over, counted / kept - 1024))
    lines = ["| objects | µs a hit | bare hyper | bytes an object over its body, resident | as counted |", "| --- | --- | --- | --- | --- |"]
    for count, own, hyper, over, counted in rows:
        shown = f"{over:,.0f}" if count >= 100_000 else ""
        lines.append(f"| {count:,} | {own:.2f} | {hyper:.2f} | {shown} | {counted:,.0f} |")
    more = (rows[-1][1] - rows[-1][2]) - (rows[0][1] - rows[0][2])
    lines.append(f"\nOver bare hyper, a hit among {COUNTS[-1]:,} costs {more:.2f} µs more than among {COUNTS[0]:,}. A look at memory that is in no cache takes {look:.0f} ns here: {more * 1000 / look:.0f} of them.\n")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, required=True, help="the binary")
    parser.add_argument("--only", default="cores,objects", help="some scenes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="put the tables into bench/SCALE.md")
    options = parser.parse_args()
    options.wrk = shutil.which("wrk", path=PATH)
    scenes = {"cores": cores, "objects": objects}
    try:
        if not options.wrk:
            raise Failure("wrk is not installed, and it makes the load: apt-get install wrk, or your system's like of it")
        if not {0, 1} <= os.sched_getaffinity(0):
            raise Failure("processors 0 and 1 are needed")
        if unknown := set(options.only.split(",")) - set(scenes):
            raise Failure(f"there is no scene {', '.join(unknown)}; there are: {', '.join(scenes)}")
        with tempfile.TemporaryDirectory(prefix="larder-scale-") as temporary:
            directory = Path(temporary)
            with Running([compiled("origin", directory)], {1}) as origin:
                tables = [scenes[name](options, directory, origin.port) for name in options.only.split(",")]
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    machine = f"{os.cpu_count()} processors, {platform.system()} {platform.release()}"
    heading = f"# Processors and objects\n\nTaken on {time.strftime('%Y-%m-%d')} by `bench/scale.py`, which tells how: {options.rounds} rounds of {options.seconds} s each, medians. {machine}.\n"
    report = "\n".join([heading, *tables])
    print(report)
    if options.write:
        (HERE / "SCALE.md").write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
