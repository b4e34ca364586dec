#!/usr/bin/env python3
"""How a directory keeps to its capacity under a flood, and what that costs the pages that are used.

    cargo build --release && bench/flood.py --larder target/release/larder

Half of the requests are for URLs that nobody asks for again, ten times as many bytes as `durable.capacity`; the others are
spread by Zipf 0.9 over pages of about one and a half times the capacity. All are of 4 KiB. Prints the most bytes on disk, the
bytes that Larder counts as live at the end, and how many of the others' requests were hits, beside an exact LRU of the same
size by simulation on the same trace.

Needs Linux, Python 3.9, cc.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections import OrderedDict
from pathlib import Path

from common import Failure, compiled, free_port, get, with_settings

PAGE = 4096
# Bytes of an entry over its body: header, head, and its part of the footer.
OVERHEAD = 640
SEED = 7


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, required=True)
    parser.add_argument("--capacity", type=int, default=128, help="in MiB")
    parser.add_argument("--pack-size", type=int, default=4, help="in MiB")
    parser.add_argument("--memory", type=int, default=8, help="in MiB")
    options = parser.parse_args()
    capacity = options.capacity << 20
    objects = capacity // (PAGE + OVERHEAD)
    trace = mixed(flood=10 * objects, urls=objects * 3 // 2)
    with tempfile.TemporaryDirectory(prefix="larder-flood-") as name:
        directory = Path(name)
        processes: list[subprocess.Popen] = []
        try:
            measure(options, directory, trace, capacity, processes)
        except Failure as failure:
            print(failure, file=sys.stderr)
            return 1
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
                process.wait(30)
    return 0


def mixed(flood: int, urls: int) -> list[int]:
    """URLs below `urls` by Zipf, and between any two of them one that is asked for once."""
    sums = list(itertools.accumulate(1 / n**0.9 for n in range(1, urls + 1)))
    order = list(range(urls))
    random.seed(SEED)
    random.shuffle(order)
    trace = []
    for number in range(flood):
        trace.append(order[bisect_left(sums, random.random() * sums[-1])])
        trace.append(urls + number)
    return trace


def measure(options: argparse.Namespace, directory: Path, trace: list[int], capacity: int, processes: list[subprocess.Popen]) -> None:
    origin_process = subprocess.Popen([compiled("origin", directory)], stdout=subprocess.PIPE)
    processes.append(origin_process)
    origin = int(origin_process.stdout.readline())
    replay = compiled("replay", directory)
    port, admin = free_port(), free_port()
    settings = {
        "server.listen": f"127.0.0.1:{port}",
        "server.threads": "1",
        "upstream.url": f"http://127.0.0.1:{origin}",
        "durable.url": f"file:{directory / 'cache'}",
        "durable.capacity": f"{options.capacity}MiB",
        "durable.pack_size": f"{options.pack_size}MiB",
        "memory.capacity": f"{options.memory}MiB",
        "admin.listen": f"127.0.0.1:{admin}",
        "log.level": "warn",
    }
    larder = subprocess.Popen(with_settings(options.larder, settings))
    processes.append(larder)
    for _ in range(200):
        try:
            get(admin, "/metrics")
            break
        except Failure:
            time.sleep(0.05)
    halves = []
    for name, wanted in (("used", 0), ("flood", 1)):
        halves.append(directory / name)
    urls = len(trace) and max(trace[0::2]) + 1
    most, hits, asked = 0, 0, 0
    # In pieces, so that the pages that are used are counted for themselves, and the disk is looked at between them.
    for start in range(0, len(trace), 2000):
        piece = trace[start : start + 2000]
        for path, part in zip(halves, (piece[0::2], piece[1::2])):
            path.write_text("".join(f"/4k/{number}\n" for number in part))
        # In turn: two files, each over a connection of its own, at once.
        runs = [subprocess.Popen([replay, str(port), path], stdout=subprocess.PIPE, text=True) for path in halves]
        printed = [run.communicate()[0] for run in runs]
        memory, durable, missed, *_ = (int(word) for word in printed[0].split())
        if start >= len(trace) // 4:
            hits, asked = hits + memory + durable, asked + memory + durable + missed
        most = max(most, on_disk(directory / "cache"))
    metrics = get(admin, "/metrics")[2].decode()
    size, live = metric(metrics, "larder_packs_bytes"), metric(metrics, "larder_packs_live_bytes")
    ideal = simulate(trace, capacity // (PAGE + OVERHEAD))
    print("| | |")
    print("| --- | --- |")
    print(f"| capacity, MiB | {options.capacity} |")
    print(f"| on disk at most, MiB | {most / 2**20:.1f} ({(most - capacity) / (options.pack_size << 20):+.1f} packs) |")
    print(f"| bytes of packs over bytes live, at the end | {size / max(live, 1):.2f} |")
    print(f"| hits of what is used, % | {100 * hits / asked:.1f} |")
    print(f"| hits of an exact LRU of that size, % | {100 * ideal:.1f} |")
    print(f"| bytes copied over bytes stored | {metric(metrics, 'larder_packs_rewritten_bytes_total') / (len(trace) * PAGE):.2f} |")


def metric(text: str, name: str) -> float:
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])


def on_disk(directory: Path) -> int:
    total = 0
    for root, _, files in os.walk(directory):
        for name in files:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                pass
    return total


def simulate(trace: list[int], objects: int) -> float:
    """The share of the used pages' requests that an exact LRU answers, after the first quarter."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = asked = 0
    for number, url in enumerate(trace):
        if url in cache:
            cache.move_to_end(url)
            found = True
        else:
            cache[url] = None
            found = False
            if len(cache) > objects:
                cache.popitem(last=False)
        if number % 2 == 0 and number >= len(trace) // 4:
            hits, asked = hits + found, asked + 1
    return hits / asked


if __name__ == "__main__":
    sys.exit(main())
