#!/usr/bin/env python3
"""How many instructions a request takes, counted, and held to what it took before.

    cargo build --release && bench/instructions.py --larder target/release/larder

Instructions are counted by valgrind (callgrind), one request after the other over one connection, in
the whole process: the same binary gives the same count to a few in a thousand, however busy the machine
is. A compiler or a processor may change the counts of everything, so what is held is not the count but
what it is of that of bare hyper (bench/floor), built by the same compiler and counted in the same run:
bench/instructions.json has it for each kind of request, and 5 % more than that fail. --record writes it
down anew; --keep leaves callgrind's files, for callgrind_annotate.

Needs Python 3.9, valgrind, cargo and cc. What the kernel does is not counted: see bench/compare for that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import HERE, Failure, build_floor, compiled, free_port, with_settings

RECORD = HERE / "instructions.json"

# How much more than was recorded is too much.
TOLERANCE = 1.05
REQUESTS = 300
ROUNDS = 3
START_DEADLINE = 120

ETAG = '"one-of-a-kind"'
WORKS = {
    "1 KiB hit": ("/1k", ""),
    "100 KiB hit": ("/100k", ""),
    "304 hit": ("/1k", f"If-None-Match: {ETAG}\r\n"),
    "206 hit": ("/100k", "Range: bytes=1000-1999\r\n"),
    "pass": ("/pass", ""),
}
# As a browser asks, nearly: what a request is made of counts.
FIELDS = "Host: bench.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: text/html,*/*;q=0.8\r\nAccept-Language: de,en;q=0.5\r\nAccept-Encoding: gzip\r\n"


class Connection:
    """One kept-alive connection, over which one request follows the other."""

    def __init__(self, port: int):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._file = self._socket.makefile("rb")

    def ask(self, path: str, fields: str) -> int:
        self._socket.sendall(f"GET {path} HTTP/1.1\r\n{FIELDS}{fields}\r\n".encode())
        status = int(self._file.readline().split()[1])
        length = 0
        while (line := self._file.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        if status != 304:
            self._file.read(length)
        return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, required=True, help="the binary")
    parser.add_argument("--only", default="", help="one kind of request")
    parser.add_argument("--record", action="store_true", help="write down what comes out")
    parser.add_argument("--keep", type=Path, help="where callgrind's files go")
    options = parser.parse_args()
    try:
        return run(options)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    for program in ("valgrind", "callgrind_control", "cargo", "cc"):
        if not shutil.which(program):
            raise Failure(f"{program} is not installed")
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    floor = build_floor()
    ratios, is_over = {}, False
    print(f"{'':12} {'larder':>8} {'hyper':>8} {'ratio':>6} {'was':>6}")
    with tempfile.TemporaryDirectory(prefix="larder-count-") as temporary:
        directory = Path(temporary)
        with contextlib.ExitStack() as stack:
            origin_port = started(stack, [compiled("origin", directory)])
            hyper = counted(options, directory, "hyper", [floor], None, [work for work in WORKS if work != "pass"])
            hyper |= counted(options, directory, "hyper-pass", [floor, str(origin_port)], None, ["pass"])
            port = free_port()
            sets = {
                "server.listen": f"127.0.0.1:{port}",
                "server.threads": "1",
                "upstream.url": f"http://127.0.0.1:{origin_port}",
                "durable.url": f"file:{directory / 'durable'}",
                "admin.listen": "127.0.0.1:0",
                "log.level": "warn",
            }
            larder = counted(options, directory, "larder", with_settings(options.larder, sets), port, list(WORKS))
    for work, count in larder.items():
        # bench/floor has no ranges: that of a whole page will do.
        base = hyper.get(work) or hyper["1 KiB hit"]
        ratio = ratios[work] = round(count / base, 3)
        was = recorded.get(work)
        mark = ""
        if was and ratio > was * TOLERANCE:
            mark, is_over = f"  over: {ratio / was - 1:.1%} more than was recorded", True
        elif was and ratio < was / TOLERANCE:
            mark = "  less than was recorded: --record keeps it so"
        print(f"{work:12} {count:8.0f} {base:8.0f} {ratio:6.3f} {was or 0:6.3f}{mark}")
    if options.record:
        RECORD.write_text(json.dumps({**recorded, **ratios}, indent=2) + "\n")
        return 0
    return 1 if is_over else 0


def started(stack: contextlib.ExitStack, command: list) -> int:
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    stack.callback(process.stdout.close)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return int(process.stdout.readline())


def counted(options: argparse.Namespace, directory: Path, name: str, command: list, port: int | None, works: list[str]) -> dict[str, float]:
    """The instructions of a request of each kind, by one process."""
    out = directory / f"{name}.out"
    valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}", "--quiet"]
    log = (directory / f"{name}.log").open("w+")
    process = subprocess.Popen(
        [str(part) for part in [*valgrind, *command]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if port is None else log, stderr=log, cwd=directory
    )  # fmt: skip
    counts = {}
    try:
        if port is None:
            port = int(process.stdout.readline())
        connection = reached(process, port, log)
        for work in works:
            if options.only and work not in (options.only, "1 KiB hit"):
                continue
            path, fields = WORKS[work]
            # Caches, pools and tables have what they will have.
            for _ in range(100):
                connection.ask(path, "")
                connection.ask(path, fields)
            rounds = []
            for _ in range(ROUNDS):
                totals = []
                for part in range(2):
                    control(process.pid, "--instr=on")
                    for _ in range(REQUESTS * (1 + part)):
                        connection.ask(path, fields)
                    control(process.pid, "--instr=off")
                    control(process.pid, "--dump")
                    totals.append(newest_total(directory, name, options.keep, work))
                # What was not of a request is in both; what came by chance, in one of the rounds.
                rounds.append((totals[1] - totals[0]) / REQUESTS)
            counts[work] = statistics.median(rounds)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()
        if process.stdout:
            process.stdout.close()
    return counts


def reached(process: subprocess.Popen, port: int, log) -> Connection:
    deadline = time.monotonic() + START_DEADLINE
    while True:
        with contextlib.suppress(OSError, IndexError, ValueError):
            connection = Connection(port)
            if connection.ask("/1k", "") == 200:
                return connection
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise Failure(f"it did not start:\n{log.read()}")
        time.sleep(0.1)


def control(pid: int, command: str) -> None:
    done = subprocess.run(["callgrind_control", command, str(pid)], capture_output=True, text=True, check=False)
    if done.returncode != 0 or "OK" not in done.stdout + done.stderr:
        raise Failure(f"callgrind_control {command}: {done.stdout}{done.stderr}")


def newest_total(directory: Path, name: str, keep: Path | None, work: str) -> int:
    """The total of the part that was dumped last. A dump begins the count anew."""
    parts = sorted(directory.glob(f"{name}.out.*"), key=lambda path: int(path.suffix[1:]))
    text = parts[-1].read_text()
    found = re.search(r"^totals: (\d+)", text, re.MULTILINE)
    if not found:
        raise Failure(f"{parts[-1]} has no total")
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        shutil.copy(parts[-1], keep / f"{name}-{work.replace(' ', '-')}.callgrind")
    return int(found[1])


if __name__ == "__main__":
    sys.exit(main())
