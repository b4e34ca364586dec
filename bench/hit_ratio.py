#!/usr/bin/env python3
"""What memory answers, by policy: Larder's own, measured, beside others that are worked out.

    cargo build --release && bench/hit_ratio.py --larder target/release/larder

Each trace is made from a seed, and is asked for over one connection, request after request, so that the
same trace gives the same answers. Larder counts as its clients see it: an answer is from memory if its
Cache-Status says so. The policies beside it are worked out on the same trace, with the bytes that Larder
says it counts for an object:

  lru        what was used longest ago leaves
  w-tinylfu  the one of Caffeine: a window of 1 %, and a main area in two parts
  s3-fifo    three queues, the third without bodies
  best       the best set of objects that never changes; nobody knows it in advance

--durable runs what fits a second tier once more with a directory, which takes everything: memory's ratio
stays, and the origin is asked once a URL. --markdown prints the table for docs/performance.md.

Needs Python 3.9 and cc.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import math
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, OrderedDict, deque
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

from common import Failure, compiled, free_port, get, say, with_settings

REQUESTS = 400_000
URLS = 200_000
CAPACITY = 16 << 20
PAGE = 4096
SEED = 7

# Bytes that Larder counts for such an object over its body.
OVERHEAD = 700


class Request(NamedTuple):
    name: int
    size: int


Trace = "list[Request]"


def zipf(exponent: float, requests: int = REQUESTS, seed: int = SEED) -> Iterator[int]:
    """Numbers below URLS, the n-th in proportion to 1 / n ** exponent."""
    sums = list(itertools.accumulate(1 / n**exponent for n in range(1, URLS + 1)))
    rng = random.Random(seed)
    return (bisect.bisect_left(sums, rng.random() * sums[-1]) for _ in range(requests))


def pages(exponent: float) -> Trace:
    return [Request(n, PAGE) for n in zipf(exponent)]


def scans(exponent: float) -> Trace:
    """Of the requests three in ten are for a URL that nobody asks for again."""
    rng = random.Random(SEED + 1)
    once = itertools.count(URLS)
    return [Request(next(once) if rng.random() < 0.3 else n, PAGE) for n in zipf(exponent)]


def shifts(exponent: float) -> Trace:
    """The thousand most popular are forgotten eight times."""
    return [Request((n + i // (REQUESTS // 8) * 1000) % URLS, PAGE) for i, n in enumerate(zipf(exponent))]


def sizes(exponent: float) -> Trace:
    """From 1 KiB to 1 MiB, in steps of an eighth of a doubling, each as likely as the others."""
    rng = random.Random(SEED + 2)
    steps = [rng.randrange(81) for _ in range(URLS)]
    return [Request(n, round(1024 * 2 ** (steps[n] / 8))) for n in zipf(exponent)]


def bursts(exponent: float) -> Trace:
    """A fifth are for a new URL, which is asked for once more twenty requests later."""
    rng = random.Random(SEED + 3)
    new, again, trace = itertools.count(URLS), deque(), []
    for n in zipf(exponent):
        if again and again[0][0] <= len(trace):
            trace.append(Request(again.popleft()[1], PAGE))
        if rng.random() < 0.2:
            n = next(new)
            again.append((len(trace) + 20, n))
        trace.append(Request(n, PAGE))
    return trace[:REQUESTS]


TRACES: dict[str, Callable[[], Trace]] = {
    "Zipf 0.7": lambda: pages(0.7),
    "Zipf 0.9": lambda: pages(0.9),
    "Zipf 1.1": lambda: pages(1.1),
    "0.9, 30 % scans": lambda: scans(0.9),
    "0.9, shifting": lambda: shifts(0.9),
    "1.1, shifting": lambda: shifts(1.1),
    "0.9, new ones twice": lambda: bursts(0.9),
    "0.7, 1 KiB to 1 MiB": lambda: sizes(0.7),
    "0.9, 1 KiB to 1 MiB": lambda: sizes(0.9),
    "1.1, 1 KiB to 1 MiB": lambda: sizes(1.1),
}
DURABLE = ("Zipf 0.9", "0.9, 30 % scans")


class Bytes(OrderedDict):
    """Objects in an order, and their bytes."""

    bytes = 0

    def add(self, name: int, size: int) -> None:
        self[name] = size
        self.bytes += size

    def drop(self, name: int) -> int:
        size = self.pop(name)
        self.bytes -= size
        return size

    def drop_first(self) -> tuple[int, int]:
        name = next(iter(self))
        return name, self.drop(name)


def lru(trace: Trace, capacity: int) -> int:
    kept, hits = Bytes(), 0
    for name, size in trace:
        if name in kept:
            kept.move_to_end(name)
            hits += 1
            continue
        kept.add(name, size)
        while kept.bytes > capacity:
            kept.drop_first()
    return hits


def w_tinylfu(trace: Trace, capacity: int) -> int:
    window, probation, protected = Bytes(), Bytes(), Bytes()
    uses: Counter = Counter()
    counted = hits = 0
    most_window = capacity // 100
    most_main = capacity - most_window
    for name, size in trace:
        if uses[name] < 15:
            uses[name] += 1
            counted += 1
            if counted >= 10 * max(len(window) + len(probation) + len(protected), 128):
                uses = Counter({name: count // 2 for name, count in uses.items() if count > 1})
                counted //= 2
        if name in window:
            window.move_to_end(name)
            hits += 1
            continue
        if name in protected:
            protected.move_to_end(name)
            hits += 1
            continue
        if name in probation:
            protected.add(name, probation.drop(name))
            while protected.bytes > most_main * 8 // 10:
                probation.add(*protected.drop_first())
            hits += 1
            continue
        window.add(name, size)
        while window.bytes > most_window:
            candidate, weight = window.drop_first()
            lacking = probation.bytes + protected.bytes + weight - most_main
            victims, count = [], 0
            for victim, its in itertools.chain(probation.items(), protected.items()):
                if lacking <= 0 or count >= uses[candidate]:
                    break
                victims.append(victim)
                lacking -= its
                count += uses[victim]
            if lacking <= 0 and (not victims or uses[candidate] > count):
                for victim in victims:
                    (probation if victim in probation else protected).drop(victim)
                probation.add(candidate, weight)
    return hits


def s3_fifo(trace: Trace, capacity: int) -> int:
    small, main, ghost = Bytes(), Bytes(), Bytes()
    uses: dict[int, int] = {}
    hits = 0
    for name, size in trace:
        if name in uses:
            uses[name] = min(uses[name] + 1, 3)
            hits += 1
            continue
        while small.bytes + main.bytes + size > capacity:
            if small.bytes > capacity // 10 or not main:
                old, weight = small.drop_first()
                if uses[old] > 1:
                    uses[old] = 0
                    main.add(old, weight)
                else:
                    del uses[old]
                    ghost.add(old, weight)
                    while ghost.bytes > capacity * 9 // 10:
                        ghost.drop_first()
            else:
                old, weight = main.drop_first()
                if uses[old]:
                    uses[old] -= 1
                    main.add(old, weight)
                else:
                    del uses[old]
        if name in ghost:
            ghost.drop(name)
            main.add(name, size)
        else:
            small.add(name, size)
        uses[name] = 0
    return hits


def best(trace: Trace, capacity: int) -> int:
    """Those with the most hits a byte. The first request for each is none."""
    uses, size_of = Counter(name for name, _ in trace), dict(trace)
    hits = left = 0
    left = capacity
    for name in sorted(uses, key=lambda name: (uses[name] - 1) / size_of[name], reverse=True):
        if size_of[name] <= left:
            left -= size_of[name]
            hits += uses[name] - 1
    return hits


POLICIES = {"lru": lru, "w-tinylfu": w_tinylfu, "s3-fifo": s3_fifo, "best": best}


def worked_out(trace: Trace, policy: Callable[[Trace, int], int]) -> float:
    return policy([Request(name, size + OVERHEAD) for name, size in trace], CAPACITY) / len(trace)


class Measured(NamedTuple):
    memory: float
    durable: float
    memory_bytes: float


def measured(binary: Path, policy: str, file: Path, directory: Path, origin: int, replay: Path, is_durable: bool) -> Measured:
    port, admin = free_port(), free_port()
    durable = tempfile.TemporaryDirectory(prefix="durable-", dir=directory) if is_durable else None
    settings = {
        "server.listen": f"127.0.0.1:{port}",
        "server.threads": "1",
        "upstream.url": f"http://127.0.0.1:{origin}",
        "durable.url": f"file:{durable.name}" if durable else "off",
        "durable.min_lifetime": "0s",
        "durable.lookup_timeout": "10s",
        "admin.listen": f"127.0.0.1:{admin}",
        "log.level": "warn",
        "memory.capacity": CAPACITY,
        "memory.policy": policy,
    }
    process = subprocess.Popen(with_settings(binary, settings), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while not is_ready(admin):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise Failure(f"larder did not start: {process.communicate()[1]}")
            time.sleep(0.05)
        done = subprocess.run([replay, str(port), file], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failure(f"replay failed: {done.stderr}")
        counts = [int(word) for word in done.stdout.split()]
        kept = int(re.search(r"^larder_memory_bytes (\d+)$", get(admin, "/metrics")[2].decode(), re.MULTILINE)[1])
        if kept > CAPACITY:
            raise Failure(f"{kept} bytes are in a memory of {CAPACITY}")
    finally:
        process.terminate()
        process.communicate(timeout=60)
        if durable:
            durable.cleanup()
    return Measured(counts[0] / sum(counts[:3]), counts[1] / sum(counts[:3]), counts[3] / sum(counts[3:]))


def is_ready(admin: int) -> bool:
    try:
        return get(admin, "/readyz")[0] == 200
    except Failure:
        return False


def percent(ratio: float) -> str:
    return f"{100 * ratio:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, required=True, help="the binary")
    parser.add_argument("--only", default="", help="traces whose name has this in it")
    parser.add_argument("--durable", action="store_true", help="once more with a directory behind memory, where it fits")
    parser.add_argument("--quick", action="store_true", help="work nothing out")
    parser.add_argument("--markdown", action="store_true", help="the table as in docs/performance.md")
    options = parser.parse_args()
    try:
        return run(options)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    policies = {} if options.quick else POLICIES
    header = ["trace", "Larder: tinylfu", "Larder: lru", *policies]
    rows, durable_rows = [], []
    with tempfile.TemporaryDirectory(prefix="larder-ratio-") as temporary:
        directory = Path(temporary)
        replay = compiled("replay", directory)
        origin = subprocess.Popen([compiled("origin", directory)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        try:
            origin_port = int(origin.stdout.readline())
            for name, make in TRACES.items():
                if options.only not in name:
                    continue
                trace, file = make(), directory / "trace"
                file.write_text("".join(f"/bytes/{size}/{url}\n" for url, size in trace))
                say(name)
                own = [measured(options.larder, policy, file, directory, origin_port, replay, False) for policy in ("tinylfu", "lru")]
                others = [worked_out(trace, policy) for policy in policies.values()]
                rows.append([name, *(percent(one.memory) for one in own), *(percent(ratio) for ratio in others)])
                if "KiB" in name:
                    rows.append(["the same, bytes", *(percent(one.memory_bytes) for one in own), *("" for _ in others)])
                if options.durable and name in DURABLE:
                    for policy in ("tinylfu", "lru"):
                        one = measured(options.larder, policy, file, directory, origin_port, replay, True)
                        durable_rows.append([name, policy, percent(one.memory), percent(one.durable), percent(1 - one.memory - one.durable)])
        finally:
            origin.kill()
            origin.wait()
            origin.stdout.close()
    show(options, header, rows)
    if durable_rows:
        print()
        show(options, ["trace, with a directory", "policy", "memory", "directory", "origin"], durable_rows)
    return 0


def show(options: argparse.Namespace, header: list[str], rows: list[list[str]]) -> None:
    if options.markdown:
        for line in [header, ["---"] * len(header), *rows]:
            print(f"| {' | '.join(line)} |")
        return
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for line in [header, *rows]:
        print("  ".join(word.ljust(width) if not column else word.rjust(width) for column, (word, width) in enumerate(zip(line, widths))))


if __name__ == "__main__":
    sys.exit(main())
