#!/usr/bin/env python3
"""What a command of the `[resp]` listener costs, beside a real redis-server.

    cargo build --release && bench/resp.py --larder target/release/larder

GET and SET of 1 KiB over --keys keys, one command a write and sixteen (`redis-benchmark -P 1` and `-P 16`). Every server
has one processor, the load generator another; both servers take turns in each round. Prints the processor time a
command. That of a SET includes what is done once the answer is sent: for Larder until its durable queue is empty.
redis-server runs twice, without a disk and with its append-only file (`appendfsync everysec`); Larder runs twice, without
a durable tier and with a directory. Compare figures of one run only.

Needs Linux, Python 3.9, redis-server and redis-benchmark (Debian: redis-server, redis-tools).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from common import PATH, Failure, cpu_nanoseconds, free_port, get, pinned_to, say, with_settings

SERVER_CPU, LOAD_CPU = 0, 1
SIZE = 1024
# Answers that redis-benchmark asks for before it begins.
OVERHEAD = 2


@dataclass(frozen=True)
class Case:
    command: str
    pipeline: int

    def __str__(self) -> str:
        return f"{self.command} -P {self.pipeline}"


CASES = [Case(command, pipeline) for command in ("SET", "GET") for pipeline in (1, 16)]


@dataclass
class Server:
    name: str
    port: int
    process: subprocess.Popen
    # Larder's admin listener; 0 for redis-server.
    admin: int = 0
    micros: dict[Case, list[float]] = field(default_factory=lambda: {case: [] for case in CASES})
    rates: dict[Case, list[float]] = field(default_factory=lambda: {case: [] for case in CASES})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, required=True, help="the binary")
    parser.add_argument("--commands", type=int, default=200_000, help="of each kind, in each round")
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-most", type=float, help="fails if Larder's time over redis-server's of the same kind is more")
    options = parser.parse_args()
    processes: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory(prefix="larder-resp-") as name:
        try:
            return measure(options, Path(name), processes)
        except Failure as failure:
            print(failure, file=sys.stderr)
            return 1
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                process.wait(30)


def tool(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if not found:
        raise Failure(f"{name} is not installed: apt-get install redis-server redis-tools")
    return found


def start(command: list, processes: list[subprocess.Popen]) -> subprocess.Popen:
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, preexec_fn=pinned_to(SERVER_CPU))
    processes.append(process)
    return process


def start_redis(name: str, directory: Path, processes: list[subprocess.Popen], *more: str) -> Server:
    port, place = free_port(), directory / f"redis-{len(processes)}"
    place.mkdir()
    command = [tool("redis-server"), "--bind", "127.0.0.1", "--port", port, "--dir", place, "--save", "", *more]
    return Server(name, port, start(command, processes))


def start_larder(name: str, options: argparse.Namespace, durable: str, processes: list[subprocess.Popen]) -> Server:
    port, admin = free_port(), free_port()
    settings = {
        "server.listen": f"127.0.0.1:{free_port()}",
        "server.threads": "1",
        "resp.listen": f"127.0.0.1:{port}",
        "durable.url": durable,
        "admin.listen": f"127.0.0.1:{admin}",
        "log.level": "warn",
    }
    return Server(name, port, start(with_settings(options.larder, settings), processes), admin)


def measure(options: argparse.Namespace, directory: Path, processes: list[subprocess.Popen]) -> int:
    tool("redis-benchmark")
    servers = [
        start_redis("redis-server, no disk", directory, processes, "--appendonly", "no"),
        start_larder("larder, no durable tier", options, "off", processes),
        start_redis("redis-server, append-only file", directory, processes, "--appendonly", "yes", "--appendfsync", "everysec"),
        start_larder("larder, directory", options, f"file:{directory / 'durable'}", processes),
    ]
    for server in servers:
        wait_until_ready(server)
        # All keys are there before the first GET.
        benchmark(server, Case("SET", 16), options, 5 * options.keys)
        settle(server)
    for number in range(options.rounds):
        for case in CASES:
            for server in servers:
                ask(server, case, options)
        say(f"round {number + 1} of {options.rounds} is done")
    return report(servers, options)


def wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection(("127.0.0.1", server.port), timeout=1) as connection:
                connection.sendall(b"*1\r\n$4\r\nPING\r\n")
                if connection.recv(64) == b"+PONG\r\n":
                    return
        except OSError:
            pass
        if time.monotonic() > deadline or server.process.poll() is not None:
            raise Failure(f"{server.name} does not start")
        time.sleep(0.05)


def settle(server: Server) -> None:
    """Waits until nothing is left to write to the durable tier."""
    deadline = time.monotonic() + 120
    while server.admin and "larder_durable_queue_objects 0\n" not in get(server.admin, "/metrics")[2].decode():
        if time.monotonic() > deadline:
            raise Failure(f"{server.name} has still not written everything")
        time.sleep(0.1)


def benchmark(server: Server, case: Case, options: argparse.Namespace, commands: int) -> float:
    """Sends the commands; returns how many were answered in a second."""
    command = [
        tool("redis-benchmark"), "-h", "127.0.0.1", "-p", server.port, "-t", case.command.lower(), "-P", case.pipeline,
        "-n", commands, "-c", options.clients, "-r", options.keys, "-d", SIZE, "-q",
    ]
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, preexec_fn=pinned_to(LOAD_CPU)
    )
    found = re.findall(rf"{case.command}: ([0-9.]+) requests per second", done.stdout)
    if done.returncode != 0 or not found or "ERR" in done.stdout:
        raise Failure(f"{server.name}, {case}:\n{done.stdout[-2000:]}")
    return float(found[-1])


def ask(server: Server, case: Case, options: argparse.Namespace) -> None:
    before = cpu_nanoseconds(server.process.pid)
    rate = benchmark(server, case, options, options.commands)
    settle(server)
    spent = cpu_nanoseconds(server.process.pid) - before
    server.micros[case].append(spent / 1000 / (options.commands + OVERHEAD))
    server.rates[case].append(rate)


def report(servers: list[Server], options: argparse.Namespace) -> int:
    print(f"{options.rounds} rounds of {options.commands} commands, {options.clients} connections, {options.keys} keys, values of {SIZE} bytes, medians; {os.uname().release}\n")
    print(f"| µs a command | {' | '.join(map(str, CASES))} |")
    print(f"| --- {'| --- ' * len(CASES)}|")
    for server in servers:
        print(f"| {server.name} | {' | '.join(f'{statistics.median(server.micros[case]):.2f}' for case in CASES)} |")
    print(f"\n| commands a second | {' | '.join(map(str, CASES))} |")
    print(f"| --- {'| --- ' * len(CASES)}|")
    for server in servers:
        print(f"| {server.name} | {' | '.join(f'{statistics.median(server.rates[case]):.0f}' for case in CASES)} |")
    print(f"\n| larder over redis-server, round by round | {' | '.join(map(str, CASES))} |")
    print(f"| --- {'| --- ' * len(CASES)}|")
    worst = 0.0
    for redis, larder, what in ((servers[0], servers[1], "memory alone"), (servers[2], servers[3], "with a disk"), (servers[0], servers[3], "directory over no disk")):
        ratios = {case: statistics.median(ours / theirs for ours, theirs in zip(larder.micros[case], redis.micros[case])) for case in CASES}
        print(f"| {what} | {' | '.join(f'{ratios[case]:.2f}' for case in CASES)} |")
        if what != "directory over no disk":
            worst = max(worst, *ratios.values())
    if options.at_most and worst > options.at_most:
        print(f"\nLarder takes {worst:.2f} × redis-server's time, which is more than {options.at_most}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
