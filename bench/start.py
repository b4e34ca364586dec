#!/usr/bin/env python3
"""How long a start takes until it has hits of the durable tier, with many stored responses.

    cargo build --release && bench/start.py --larder target/release/larder --objects 1000000

Stores --objects responses of 1 KiB in a directory, stops Larder, and starts it again several times: after a stop, and
after kill -9. Prints for each start the time until stored pages, old and new, are hits, the processor time until
then, and the memory that the process holds. The page cache has the files. Compare figures of one run only.

Needs Linux, Python 3.9, cc, wrk.
"""

from __future__ import annotations

import argparse
import http.client
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import HERE, PATH, Failure, compiled, cpu_nanoseconds, free_port, get, say, with_settings

# Pages whose first hit is waited for: far apart in the order in which they were stored.
PROBES = 7


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, action="append", required=True, help="a binary; repeatable")
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    wrk = shutil.which("wrk", path=PATH)
    if not wrk:
        print("wrk is not installed", file=sys.stderr)
        return 1
    processes: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory(prefix="larder-start-") as name:
        try:
            measure(options, wrk, Path(name), processes)
        except Failure as failure:
            print(failure, file=sys.stderr)
            return 1
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
    return 0


def measure(options: argparse.Namespace, wrk: str, directory: Path, processes: list[subprocess.Popen]) -> None:
    origin = subprocess.Popen([str(compiled("origin", directory))], stdout=subprocess.PIPE)
    processes.append(origin)
    origin_port = int(origin.stdout.readline())
    print(f"| {options.objects} × 1 KiB | ended by | ms until pages are hits | ms of processor time | MiB held |")
    print("| --- | --- | --- | --- | --- |")
    for number, binary in enumerate(options.larder, 1):
        ports = (free_port(), free_port())
        settings = {
            "server.listen": f"127.0.0.1:{ports[0]}",
            "admin.listen": f"127.0.0.1:{ports[1]}",
            "upstream.url": f"http://127.0.0.1:{origin_port}",
            "durable.url": f"file:{directory / str(number)}",
            "memory.capacity": "16MiB",
            # Nothing is lost while the load is faster than the disk.
            "durable.queue_objects": 1_000_000,
            "durable.queue_bytes": "2GiB",
            "log.level": "warn",
        }
        command = with_settings(binary, settings)
        stored = fill(command, ports, wrk, options.objects, processes)
        name = f"larder {number}" if len(options.larder) > 1 else "larder"
        for how in (signal.SIGTERM, signal.SIGKILL):
            rounds = [start(command, ports, stored, how, processes) for _ in range(options.rounds)]
            middle = [statistics.median(figures) for figures in zip(*rounds)]
            print(f"| {name}, {stored} stored | {how.name} | {middle[0]:.0f} | {middle[1]:.0f} | {middle[2]:.0f} |", flush=True)


def fill(command: list[str], ports: tuple[int, int], wrk: str, objects: int, processes: list[subprocess.Popen]) -> int:
    process = launch(command, processes)
    wait(ports[0], process)
    stored = 0
    while stored < objects:
        load = [wrk, "-t1", "-c32", "-d5s", "-s", str(HERE / "wrk.lua"), f"http://127.0.0.1:{ports[0]}/page/0", "--", "each", "/page/", str(stored)]
        output = subprocess.run(load, capture_output=True, text=True, check=True).stdout
        stored += int(re.search(r"(\d+) requests in", output)[1])
        while "larder_durable_queue_objects 0\n" not in get(ports[1], "/metrics", patience=60)[2].decode():
            time.sleep(0.1)
        say(f"{stored} responses")
    end(process, signal.SIGTERM)
    return stored


def start(command: list[str], ports: tuple[int, int], stored: int, how: signal.Signals, processes: list[subprocess.Popen]) -> tuple[float, float, float]:
    """Starts and ends Larder; returns milliseconds, milliseconds of processor time, and MiB."""
    began = time.monotonic()
    process = launch(command, processes)
    wait(ports[0], process)
    # only-if-cached asks no origin, so a page that is not found yet is not stored anew.
    while not all(is_durable(ports[0], stored * (2 * part + 1) // (2 * PROBES)) for part in range(PROBES)):
        time.sleep(0.002)
    took = time.monotonic() - began
    spent = cpu_nanoseconds(process.pid) / 1e6
    held = int(re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)[1]) / 1024
    end(process, how)
    return took * 1000, spent, held


def is_durable(port: int, page: int) -> bool:
    headers = (("Cache-Control", "only-if-cached"),)
    return "hit" in (get(port, f"/page/{page}", headers)[1].get("Cache-Status") or "")


def launch(command: list[str], processes: list[subprocess.Popen]) -> subprocess.Popen:
    process = subprocess.Popen(command)
    processes.append(process)
    return process


def wait(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            http.client.HTTPConnection("127.0.0.1", port, timeout=60).connect()
            return
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise Failure("Larder does not listen") from None
            time.sleep(0.002)


def end(process: subprocess.Popen, how: signal.Signals) -> None:
    process.send_signal(how)
    process.wait(120)


if __name__ == "__main__":
    sys.exit(main())
