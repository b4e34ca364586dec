#!/usr/bin/env python3
"""What a request costs Larder, and what it costs the other caches on the same machine.

    cargo build --release && bench/hits.py --larder target/release/larder --floor

Every server gets one processor to itself, and the load generator (wrk, one thread, 64
connections, keep-alive) another. The figure is the processor time that the server spent, over
the requests that it answered: that holds where the load generator is the bottleneck and on a
machine that does other things besides, and requests a second do not. All servers run side by
side and are measured in turn, several rounds of it, so that a moment of noise spoils a round of
everyone and not everything of one; the tables have medians. Compare figures of one run only.

Needs Python 3.9, wrk, and cc for the origin. nginx, HAProxy, Varnish and Traffic Server are
measured if they are installed. The origin that all of them ask is bench/origin.c; pinned to the
servers' processor it is also the floor, together with a bare hyper (--floor, needs cargo).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import platform
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
from typing import Callable, Iterator

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

SERVER_CPU = 0
LOAD_CPU = 1
CONNECTIONS = 64
START_DEADLINE = 20
STOP_DEADLINE = 5
# Debian has most daemons where the path of an ordinary user does not lead.
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"

ETAG = '"one-of-a-kind"'


class Failure(Exception):
    """The benchmark can't go on; the text says why."""


class NotMeasurable(Exception):
    """A server answers rightly, and wrk can't read it."""


@dataclass(frozen=True)
class Work:
    """A request that is sent over and over, and what its answer has to be."""

    name: str
    path: str
    length: int
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    reaches_origin: bool = False


WORKS = [
    Work("1 KiB hit", "/1k", 1024),
    Work("100 KiB hit", "/100k", 100 * 1024),
    Work("pass", "/pass", 1024, reaches_origin=True),
    Work("304 hit", "/1k", 0, status=304, headers=(("If-None-Match", ETAG),)),
]


@dataclass
class Server:
    """A running server, and what was measured of it."""

    name: str
    port: int
    process: subprocess.Popen
    # A floor answers by itself and has no pass path.
    is_floor: bool = False
    samples: dict[str, list["Sample"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    micros: float
    per_second: float
    p50: str
    p99: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, action="append", default=[], help="the binary; repeatable, to compare builds")
    parser.add_argument("--floor", action="store_true", help="build and measure bare hyper as well")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="how long each measurement takes")
    parser.add_argument("--only", default="", help="some servers, as in larder,nginx (default: all there are)")
    parser.add_argument("--work", default="", help="some work, as in '1 KiB hit,pass' (default: all)")
    parser.add_argument("--write", action="store_true", help="put the tables into bench/RESULTS.md")
    options = parser.parse_args()

    # Without this a SIGTERM would end the script and leave the servers running.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    try:
        report = run(options)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(report)
    if options.write:
        (HERE / "RESULTS.md").write_text(report + "\n")
    return 0


def run(options: argparse.Namespace) -> str:
    wrk = shutil.which("wrk", path=PATH)
    if not wrk:
        raise Failure("wrk is not installed, and it makes the load: apt-get install wrk, or your system's like of it")
    if not {SERVER_CPU, LOAD_CPU} <= os.sched_getaffinity(0):
        raise Failure(f"processors {SERVER_CPU} and {LOAD_CPU} are needed, one for the server and one for the load")
    works = pick(WORKS, options.work, lambda work: work.name)

    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="larder-bench-")))
        # Some servers give up root before they look for their files.
        directory.chmod(0o755)
        children = stack.enter_context(Children(directory))
        origin_binary = compile_origin(directory)
        # With a processor to spare the origin has it; with two it shares that of the load.
        spare = sorted(os.sched_getaffinity(0) - {SERVER_CPU, LOAD_CPU})
        origin = children.start_printing_port("origin", [origin_binary], cpu=spare[0] if spare else LOAD_CPU)

        servers = []
        for name, start in starters(options, origin_binary):
            work_directory = directory / name.replace(" ", "-")
            work_directory.mkdir()
            say(f"starting {name}")
            servers.append(start(children, name, work_directory, origin.port))
        if not servers:
            raise Failure("there is nothing to measure; name a binary: --larder target/release/larder")

        for round_number in range(1, options.rounds + 1):
            for work in works:
                for server in servers:
                    if server.is_floor and work.reaches_origin:
                        continue
                    try:
                        sample = measure(wrk, server, work, origin.port, options.seconds)
                    except NotMeasurable as why:
                        say(f"round {round_number}, {work.name}, {server.name}: left out: {why}")
                        continue
                    server.samples.setdefault(work.name, []).append(sample)
                    say(f"round {round_number}, {work.name}, {server.name}: {sample.micros:.2f} µs, {sample.per_second:,.0f}/s")
        versions = [version(server.name, options) for server in servers]
    return tables(servers, works, versions, options)


def pick(items: list, names: str, name_of: Callable) -> list:
    if not names:
        return items
    wanted = [name.strip() for name in names.split(",")]
    known = [name_of(item) for item in items]
    for name in wanted:
        if name not in known:
            raise Failure(f"there is no \"{name}\"; there are: {', '.join(known)}")
    return [item for item in items if name_of(item) in wanted]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- measuring


def measure(wrk: str, server: Server, work: Work, origin_port: int, seconds: int) -> Sample:
    """One run of wrk, with a look before at what it will get, and one after at where it came from."""
    verify(server, work, origin_port)
    asked_before = origin_requests(origin_port)
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"]
    for name, value in work.headers:
        command += ["-H", f"{name}: {value}"]
    command.append(f"http://127.0.0.1:{server.port}{work.path}")

    before = cpu_nanoseconds(server.process.pid)
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=pinned_to(LOAD_CPU))
    spent = cpu_nanoseconds(server.process.pid) - before
    output = done.stdout
    found = re.search(r"(\d+) requests in", output)
    if done.returncode != 0 or not found or int(found[1]) == 0:
        raise Failure(f"wrk against {server.name} failed:\n{output}{done.stderr}")
    for trouble in ("Non-2xx", "Socket errors"):
        if trouble in output:
            raise Failure(f"{server.name} did not answer everything, {work.name}:\n{output}")
    requests = int(found[1])
    asked = origin_requests(origin_port) - asked_before
    if work.reaches_origin and asked < requests:
        raise Failure(f"{server.name}: of {requests} requests that must not be stored only {asked} reached the origin")
    if not work.reaches_origin and not server.is_floor and asked > requests // 1000:
        raise Failure(f"{server.name}: {asked} of {requests} requests were no hits")
    return Sample(
        micros=spent / 1000 / requests,
        per_second=float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1]),
        p50=re.search(r"\s50%\s+(\S+)", output)[1],
        p99=re.search(r"\s99%\s+(\S+)", output)[1],
    )


def verify(server: Server, work: Work, origin_port: int) -> None:
    """That the answer is the right one, and comes from where it should; wrk looks at neither.

    The origin's count tells a hit from a miss in the same way for every server.
    """
    deadline = time.monotonic() + 5
    while True:
        asked = origin_requests(origin_port)
        status, fields, body = get(server.port, work.path, work.headers)
        asked = origin_requests(origin_port) - asked
        if status != work.status or len(body) != work.length:
            raise Failure(f"{server.name}, {work.name}: status {status} and {len(body)} bytes, not {work.status} and {work.length}")
        if status == 304 and int(fields.get("Content-Length", "0")) > 0:
            # RFC 9110 §15.4.5 allows it; wrk waits for those bytes forever.
            raise NotMeasurable("its 304 has the Content-Length of the 200, and wrk waits for the bytes")
        if server.is_floor or asked == (1 if work.reaches_origin else 0):
            return
        if time.monotonic() > deadline:
            raise Failure(f"{server.name}, {work.name}: a request for {work.path} reached the origin {asked} times")
        # The first request fills the cache, which may take a moment. The plain page is asked for,
        # since an answer to a condition of the client's need not be the one that is stored.
        get(server.port, work.path, ())
        time.sleep(0.05)


def get(port: int, path: str, headers: tuple[tuple[str, str], ...] = (), patience: float = 10) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience)
    try:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Failure(f"GET {path} on port {port}: {error}") from error
    finally:
        connection.close()


def origin_requests(port: int) -> int:
    return int(get(port, "/count")[2])


def pinned_to(cpu: int) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, {cpu})


def cpu_nanoseconds(pid: int) -> int:
    """The time on a processor of every thread of a process and of those that it started."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int((task / "schedstat").read_text().split()[0])
            for child in (task / "children").read_text().split():
                total += cpu_nanoseconds(int(child))
    return total


# ---------------------------------------------------------------- processes


class Children:
    """The processes that were started. None is left when this is left."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._processes: list[subprocess.Popen] = []

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_exception: object) -> None:
        for process in self._processes:
            # Each is the head of a group of its own, workers included.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(STOP_DEADLINE)
            except subprocess.TimeoutExpired:
                pass
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout:
                process.stdout.close()

    def start(self, name: str, command: list, *, cpu: int, environment: dict[str, str] | None = None, read_output: bool = False) -> subprocess.Popen:
        log = (self._directory / f"{name.replace(' ', '-')}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if read_output else log,
                stderr=log,
                env={**os.environ, "PATH": PATH, **(environment or {})},
                start_new_session=True,
                preexec_fn=pinned_to(cpu),
            )
        self._processes.append(process)
        return process

    def start_printing_port(self, name: str, command: list, *, cpu: int, is_floor: bool = False) -> Server:
        process = self.start(name, command, cpu=cpu, read_output=True)
        line = process.stdout.readline()
        if not line:
            raise Failure(f"{name} did not start:\n{self._log(name)}")
        return Server(name, int(line), process, is_floor)

    def start_on_port(self, name: str, command: list, port: int, **more: object) -> Server:
        process = self.start(name, command, cpu=SERVER_CPU, **more)
        deadline = time.monotonic() + START_DEADLINE
        while True:
            with contextlib.suppress(Failure):
                # Traffic Server listens before it has opened its cache.
                if get(port, "/1k")[0] == 200:
                    return Server(name, port, process)
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"{name} did not start:\n{self._log(name)}")
            time.sleep(0.05)

    def _log(self, name: str) -> str:
        return (self._directory / f"{name.replace(' ', '-')}.log").read_text(errors="replace")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def compile_origin(directory: Path) -> Path:
    compiler = os.environ.get("CC") or shutil.which("cc")
    if not compiler:
        raise Failure("cc is not installed, and the origin is written in C: apt-get install gcc")
    binary = directory / "origin-binary"
    done = subprocess.run([compiler, "-O2", "-o", binary, HERE / "origin.c"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"origin.c does not compile:\n{done.stderr}")
    return binary


# ---------------------------------------------------------------- servers


def starters(options: argparse.Namespace, origin_binary: Path) -> Iterator[tuple[str, Callable[[Children, str, Path, int], Server]]]:
    """Every server that is to be measured, and what starts it."""
    found: list[tuple[str, Callable[[Children, str, Path, int], Server]]] = []
    found.append(("epoll in C", lambda children, name, _directory, _origin: children.start_printing_port(name, [origin_binary], cpu=SERVER_CPU, is_floor=True)))
    if options.floor:
        floor = build_floor()
        found.append(("bare hyper", lambda children, name, _directory, _origin: children.start_printing_port(name, [floor], cpu=SERVER_CPU, is_floor=True)))
    for index, binary in enumerate(options.larder):
        if not os.access(binary, os.X_OK):
            raise Failure(f"{binary} is not there to run. Build it: cargo build --release")
        name = "larder" if index == 0 else f"larder {index + 1}"
        found.append((name, lambda *given, binary=binary: start_larder(binary.resolve(), *given)))
    for name, binary, start in (
        ("haproxy", "haproxy", start_haproxy),
        ("nginx", "nginx", start_nginx),
        ("trafficserver", "traffic_server", start_traffic_server),
        ("varnish", "varnishd", start_varnish),
    ):
        path = shutil.which(binary, path=PATH)
        if path:
            found.append((name, lambda *given, path=path, start=start: start(path, *given)))
        else:
            say(f"{name} is not installed, and left out")
    return iter(pick(found, options.only, lambda item: item[0]))


def build_floor() -> Path:
    if not shutil.which("cargo"):
        raise Failure("cargo is not installed, and --floor needs it")
    say("building bare hyper")
    done = subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=HERE / "floor", check=False)
    if done.returncode != 0:
        raise Failure("bench/floor does not build")
    target = Path(os.environ.get("CARGO_TARGET_DIR", HERE / "floor" / "target"))
    return target / "release" / "larder-bench-floor"


def start_larder(binary: Path, children: Children, name: str, directory: Path, origin: int) -> Server:
    """As it comes, both tiers, metrics and the admin listener included; only held to one thread."""
    port = free_port()
    settings = {
        "server.listen": f"127.0.0.1:{port}",
        "server.threads": "1",
        "upstream.url": f"http://127.0.0.1:{origin}",
        "durable.url": f"file:{directory / 'durable'}",
        "admin.listen": f"127.0.0.1:{free_port()}",
        "log.level": "warn",
    }
    command = [binary]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    return children.start_on_port(name, command, port)


def start_nginx(binary: str, children: Children, name: str, directory: Path, origin: int) -> Server:
    port = free_port()
    # Only root may say who the workers are, and they need to reach the temporary directory.
    user = "user root;" if os.geteuid() == 0 else ""
    config = directory / "nginx.conf"
    # tcp_nopush is left off: with it, large hits wait for delayed acknowledgements.
    # keepalive_requests: by default nginx hangs up after 1000. open_file_cache: without it every
    # hit opens its file again. No proxy_cache_lock: it would have requests that must not be stored
    # wait for each other.
    config.write_text(f"""
        {user}
        daemon off;
        worker_processes 1;
        pid {directory}/nginx.pid;
        error_log stderr error;
        events {{ worker_connections 1024; }}
        http {{
            access_log off;
            sendfile on;
            keepalive_timeout 300s;
            keepalive_requests 1000000000;
            open_file_cache max=1000 inactive=300s;
            open_file_cache_valid 300s;
            client_body_temp_path {directory}/body;
            proxy_temp_path {directory}/temp;
            fastcgi_temp_path {directory}/fastcgi;
            uwsgi_temp_path {directory}/uwsgi;
            scgi_temp_path {directory}/scgi;
            proxy_cache_path {directory}/cache keys_zone=cache:10m max_size=256m use_temp_path=off;
            upstream origin {{
                server 127.0.0.1:{origin};
                keepalive {CONNECTIONS * 2};
                keepalive_requests 1000000000;
            }}
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
    return children.start_on_port(name, [binary, "-p", directory, "-e", "stderr", "-c", config], port)


def start_haproxy(binary: str, children: Children, name: str, directory: Path, origin: int) -> Server:
    port = free_port()
    config = directory / "haproxy.cfg"
    config.write_text(f"""
global
    nbthread 1
    maxconn 1024

defaults
    mode http
    timeout connect 5s
    timeout client 300s
    timeout server 60s

cache store
    total-max-size 256
    max-object-size 1000000
    max-age 3600

frontend in
    bind 127.0.0.1:{port}
    default_backend origin

backend origin
    http-reuse always
    http-request cache-use store
    http-response cache-store store
    server origin 127.0.0.1:{origin} pool-max-conn -1 pool-purge-delay 300s
""")
    return children.start_on_port(name, [binary, "-db", "-f", config], port)


def start_varnish(binary: str, children: Children, name: str, directory: Path, origin: int) -> Server:
    port = free_port()
    config = directory / "default.vcl"
    config.write_text(f'vcl 4.1;\nbackend default {{ .host = "127.0.0.1"; .port = "{origin}"; }}\n')
    # Varnish always logs to shared memory; what a request writes there can be masked.
    tags = (
        "Begin End Link Timestamp SessOpen SessClose Hit HitMiss HitPass Fetch_Body Filters Gzip TTL Storage BackendOpen BackendClose "
        "BackendReuse BackendStart VCL_call VCL_return VCL_use VCL_acl VCL_Log ReqStart ReqMethod ReqURL ReqProtocol ReqHeader ReqUnset "
        "ReqAcct RespProtocol RespStatus RespReason RespHeader RespUnset RespLost BereqMethod BereqURL BereqProtocol BereqHeader "
        "BereqUnset BereqAcct BerespProtocol BerespStatus BerespReason BerespHeader BerespUnset BerespLost"
    )
    command = [binary, "-F", "-j", "none", "-n", directory / "work", "-a", f"127.0.0.1:{port}", "-f", config]
    command += ["-s", "malloc,256m", "-p", "thread_pools=1"]
    command += ["-p", "vsl_mask=" + ",".join(f"-{tag}" for tag in tags.split())]
    return children.start_on_port(name, command, port)


def start_traffic_server(binary: str, children: Children, name: str, directory: Path, origin: int) -> Server:
    port = free_port()
    # It looks for everything below one root, which it is told of by a file there.
    places = {"prefix": ".", "sysconfdir": "etc", "localstatedir": "var", "runtimedir": "run", "logdir": "log", "cachedir": "cache"}
    for place in places.values():
        (directory / place).mkdir(exist_ok=True)
    runroot = {key: directory / place for key, place in places.items()}
    installed = {"exec_prefix": "PREFIX", "bindir": "BINDIR", "sbindir": "BINDIR", "libdir": "LIBDIR", "libexecdir": "PLUGINDIR"}
    layout = traffic_layout()
    for key, installed_key in installed.items():
        runroot[key] = layout[installed_key]
    (directory / "runroot.yaml").write_text("".join(f"{key}: {place}\n" for key, place in runroot.items()))
    etc = directory / "etc"
    settings = {
        "exec_thread.autoconfig INT": 0,
        "exec_thread.limit INT": 1,
        "accept_threads INT": 0,
        "task_threads INT": 1,
        "cache.threads_per_disk INT": 1,
        "cache.ram_cache.size INT": 64 << 20,
        "http.server_ports STRING": f"{port}:ip-in=127.0.0.1",
        "http.cache.http INT": 1,
        "reverse_proxy.enabled INT": 1,
        "url_remap.remap_required INT": 1,
        "log.logging_enabled INT": 0,
        # A process outside the group, which would be left behind.
        "crash_log_helper STRING": "NULL",
        "http.keep_alive_no_activity_timeout_in INT": 300,
        # As whoever started it: it would change to a user that may not read the directory.
        "admin.user_id STRING": "#-1",
    }
    (etc / "records.config").write_text("".join(f"CONFIG proxy.config.{key} {value}\n" for key, value in settings.items()))
    (etc / "remap.config").write_text(f"map / http://127.0.0.1:{origin}\n")
    (etc / "storage.config").write_text(f"{directory / 'cache'} 256M\n")
    (etc / "ip_allow.yaml").write_text("ip_allow:\n  - apply: in\n    ip_addrs: 127.0.0.1\n    action: allow\n    methods: ALL\n")
    for empty in ("plugin.config", "cache.config", "hosting.config", "volume.config", "parent.config", "ssl_multicert.config", "splitdns.config"):
        (etc / empty).touch()
    return children.start_on_port(name, [binary, f"--run-root={directory}"], port, environment={"TS_RUNROOT": str(directory)})


def traffic_layout() -> dict[str, str]:
    program = shutil.which("traffic_layout", path=PATH)
    if not program:
        raise Failure("traffic_server is installed, and traffic_layout, which tells where, is not")
    output = subprocess.run([program, "info"], capture_output=True, text=True, check=True).stdout
    return dict(line.split(": ", 1) for line in output.splitlines() if ": " in line)


# ---------------------------------------------------------------- telling


def version(name: str, options: argparse.Namespace) -> str:
    commands = {
        "nginx": ["nginx", "-v"],
        "haproxy": ["haproxy", "-v"],
        "varnish": ["varnishd", "-V"],
        "trafficserver": ["traffic_server", "-V"],
    }
    if name in commands:
        command = commands[name]
    elif name.startswith("larder"):
        index = int(name.split()[1]) - 1 if " " in name else 0
        command = [str(options.larder[index].resolve()), "--version"]
    else:
        return name
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": PATH}, check=False)
    number = re.search(r"\d+\.\d+(\.\d+)?", done.stdout + done.stderr)
    return f"{name} {number[0]}" if number else name


def tables(servers: list[Server], works: list[Work], versions: list[str], options: argparse.Namespace) -> str:
    def cell(server: Server, work: Work, show: Callable[[list[Sample]], str]) -> str:
        samples = server.samples.get(work.name)
        return show(samples) if samples else ""

    def table(heading: str, show: Callable[[list[Sample]], str]) -> list[str]:
        lines = [f"| {heading} | " + " | ".join(work.name for work in works) + " |", "| --- " * (len(works) + 1) + "|"]
        for server, label in zip(servers, versions):
            lines.append(f"| {label} | " + " | ".join(cell(server, work, show) for work in works) + " |")
        return lines

    def median(values: Iterator[float]) -> float:
        return statistics.median(values)

    def middle(samples: list[Sample], key: Callable[[Sample], str]) -> str:
        # wrk prints times with their units; the middle one is that of the sample of middle cost.
        return key(sorted(samples, key=lambda sample: sample.micros)[len(samples) // 2])

    lines = [
        "# What a request costs",
        "",
        f"Measured {time.strftime('%Y-%m-%d')} by `bench/hits.py`, which tells how: {options.rounds} rounds of {options.seconds} s, medians.",
        f"{machine()}.",
        "",
        *table("µs of processor time a request", lambda samples: f"{median(s.micros for s in samples):.1f}"),
        "",
    ]
    larder = next((server for server in servers if server.name == "larder"), None)
    if larder and len(servers) > 1:
        lines += [
            "Larder's cost over each one's, round by round; below 1 Larder is the cheaper:",
            "",
            "| Larder's cost over that of | " + " | ".join(work.name for work in works) + " |",
            "| --- " * (len(works) + 1) + "|",
        ]
        for server, label in zip(servers, versions):
            if server is larder:
                continue
            cells = []
            for work in works:
                ours, theirs = larder.samples.get(work.name, []), server.samples.get(work.name, [])
                ratios = [our.micros / their.micros for our, their in zip(ours, theirs)]
                cells.append(f"{median(iter(ratios)):.2f}" if ratios else "")
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += table("requests a second", lambda samples: f"{median(s.per_second for s in samples):,.0f}")
    lines.append("")
    lines += table("latency, p50 and p99", lambda samples: f"{middle(samples, lambda s: s.p50)}, {middle(samples, lambda s: s.p99)}")
    return "\n".join(lines)


def machine() -> str:
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} × {model[1] if model else platform.machine()}, Linux {platform.release()}"


if __name__ == "__main__":
    sys.exit(main())
