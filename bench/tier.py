#!/usr/bin/env python3
"""What a hit of the directory tier costs, with a working set many times as large as memory.

    cargo build --release && bench/tier.py --larder target/release/larder

Stores --urls responses of 4 KiB, of which memory holds a fifteenth, and asks for all of them at random. The page cache
has them. Prints for each server the processor time a request, what it holds in memory over `memory.capacity`, its
threads, and how many requests reached the origin; nginx with its disk cache runs beside, if it is installed. Every
server has one processor, the load generator (wrk) another. Compare figures of one run only.

Needs Linux, Python 3.9, cc, wrk.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from common import HERE, PATH, Failure, compiled, cpu_nanoseconds, free_port, get, pinned_to, say, with_settings

SERVER_CPU, LOAD_CPU = 0, 1

# URLs that memory holds.
FEW = 500


@dataclass
class Server:
    name: str
    port: int
    process: subprocess.Popen
    micros: list[float] = field(default_factory=list)
    # Of the same number of requests for few URLs, which memory holds.
    in_memory: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    threads: int = 0
    to_origin: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, action="append", required=True, help="a binary; repeatable")
    parser.add_argument("--urls", type=int, default=60_000)
    parser.add_argument("--capacity", type=int, default=16, help="of memory, in MiB")
    parser.add_argument("--threads", type=int, default=1, help="worker threads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    wrk = shutil.which("wrk", path=PATH)
    if not wrk:
        print("wrk is not installed", file=sys.stderr)
        return 1
    processes: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory(prefix="larder-tier-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        try:
            measure(options, wrk, directory, processes)
        except Failure as failure:
            print(failure, file=sys.stderr)
            return 1
        finally:
            for process in processes:
                os.killpg(process.pid, signal.SIGTERM)
            for process in processes:
                process.wait(10)
    return 0


def start(command: list, cpu: int, processes: list[subprocess.Popen], **more: object) -> subprocess.Popen:
    pin = pinned_to(cpu)
    process = subprocess.Popen([str(part) for part in command], preexec_fn=lambda: (os.setpgid(0, 0), pin()), **more)
    processes.append(process)
    return process


def measure(options: argparse.Namespace, wrk: str, directory: Path, processes: list[subprocess.Popen]) -> None:
    origin_process = start([compiled("origin", directory)], LOAD_CPU, processes, stdout=subprocess.PIPE)
    origin = int(origin_process.stdout.readline())
    servers = []
    for number, binary in enumerate(options.larder, 1):
        port, admin = free_port(), free_port()
        settings = {
            "server.listen": f"127.0.0.1:{port}",
            "server.threads": str(options.threads),
            "upstream.url": f"http://127.0.0.1:{origin}",
            "durable.url": f"file:{directory / str(number)}",
            "admin.listen": f"127.0.0.1:{admin}",
            "memory.capacity": f"{options.capacity}MiB",
            "log.level": "warn",
        }
        name = f"larder {number}" if len(options.larder) > 1 else "larder"
        server = Server(name, port, start(with_settings(binary, settings), SERVER_CPU, processes))
        servers.append(server)
        fill(server, options.urls)
        deadline = time.monotonic() + 600
        while "larder_durable_queue_objects 0\n" not in get(admin, "/metrics")[2].decode():
            if time.monotonic() > deadline:
                raise Failure(f"{name} has still not written everything")
            time.sleep(0.1)
    if nginx := shutil.which("nginx", path=PATH):
        servers.append(start_nginx(nginx, directory, origin, processes))
        fill(servers[-1], options.urls)
    for round_number in range(options.rounds + 1):
        for server in servers:
            is_counted = round_number > 0
            micros = ask(server, options, wrk, origin, options.urls)
            in_memory = ask(server, options, wrk, origin, FEW)
            if is_counted:
                server.micros.append(micros)
                server.in_memory.append(in_memory)
                say(f"{server.name}: {micros:.2f} µs, {in_memory:.2f} µs from memory")
    print(f"| {options.urls} × 4 KiB at random, {options.capacity} MiB of memory | µs a request | µs from memory | MiB over memory.capacity, at most | threads | to the origin |")
    print("| --- | --- | --- | --- | --- | --- |")
    for server in servers:
        over = f"{max(server.memory) - options.capacity:.0f}" if server.name.startswith("larder") else f"({max(server.memory):.0f} in all)"
        print(f"| {server.name} | {statistics.median(server.micros):.2f} | {statistics.median(server.in_memory):.2f} | {over} | {server.threads} | {server.to_origin} |")


def fill(server: Server, urls: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            get(server.port, "/1k")
            break
        except Failure:
            if time.monotonic() > deadline or server.process.poll() is not None:
                raise
            time.sleep(0.05)

    def some(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for number in range(first, urls, 8):
            connection.request("GET", f"/4k/{number}")
            connection.getresponse().read()

    threads = [threading.Thread(target=some, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say(f"{server.name} has {urls} responses")


def ask(server: Server, options: argparse.Namespace, wrk: str, origin: int, urls: int) -> float:
    asked = int(get(origin, "/count")[2])
    before = cpu_nanoseconds(server.process.pid)
    command = [wrk, "-t1", "-c64", f"-d{options.seconds}s", "-s", HERE / "wrk.lua", f"http://127.0.0.1:{server.port}/4k/0", "--", "uniform", "/4k/", str(urls)]
    load = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, preexec_fn=pinned_to(LOAD_CPU))
    while load.poll() is None:
        server.memory.append(resident(server.process.pid))
        server.threads = max(server.threads, threads_of(server.process.pid))
        time.sleep(0.1)
    output = load.stdout.read()
    spent = cpu_nanoseconds(server.process.pid) - before
    found = re.search(r"(\d+) requests in", output)
    if not found or "Non-2xx" in output or "Socket errors" in output:
        raise Failure(f"{server.name} did not answer everything:\n{output}")
    server.to_origin += int(get(origin, "/count")[2]) - asked
    return spent / 1000 / int(found[1])


def family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in family(int(child)))]


def resident(pid: int) -> float:
    """MiB of a process and its children, what they share counted once."""
    return sum(int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{member}/smaps_rollup").read_text(), re.MULTILINE)[1]) for member in family(pid)) / 1024


def threads_of(pid: int) -> int:
    return sum(len(os.listdir(f"/proc/{member}/task")) for member in family(pid))


def start_nginx(binary: str, directory: Path, origin: int, processes: list[subprocess.Popen]) -> Server:
    port, root = free_port(), directory / "nginx"
    root.mkdir()
    user = "user root;" if os.geteuid() == 0 else ""
    config = root / "nginx.conf"
    config.write_text(f"""
        {user}
        daemon off;
        worker_rlimit_nofile 20000;
        worker_processes 1;
        pid {root}/nginx.pid;
        error_log stderr error;
        events {{ worker_connections 8192; }}
        http {{
            access_log off;
            sendfile on;
            keepalive_requests 1000000000;
            open_file_cache max=15000 inactive=300s;
            open_file_cache_valid 300s;
            client_body_temp_path {root}/body;
            proxy_temp_path {root}/temp;
            fastcgi_temp_path {root}/fastcgi;
            uwsgi_temp_path {root}/uwsgi;
            scgi_temp_path {root}/scgi;
            proxy_cache_path {root}/cache levels=1:2 keys_zone=cache:64m max_size=4g inactive=1h use_temp_path=off;
            upstream origin {{ server 127.0.0.1:{origin}; keepalive 128; }}
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass http://origin;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_cache cache;
                }}
            }}
        }}
    """)
    return Server("nginx", port, start([binary, "-c", config], SERVER_CPU, processes))


if __name__ == "__main__":
    sys.exit(main())
