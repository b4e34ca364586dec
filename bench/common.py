"""What the measurements have in common."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Callable

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# Debian has most daemons where the path of an ordinary user does not lead.
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


class Failure(Exception):
    """The benchmark can't go on; the text says why."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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


def pinned_to(cpu: int) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, {cpu})


def cpu_nanoseconds(pid: int) -> int:
    """The time on a processor of every thread of a process and of those that it started."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int((task / "schedstat").read_text().split()[0])
    return total + sum(cpu_nanoseconds(child) for child in children_of(pid))


def children_of(pid: int) -> list[int]:
    children = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += [int(child) for child in (task / "children").read_text().split()]
    return children


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def compiled(name: str, directory: Path) -> Path:
    compiler = os.environ.get("CC") or shutil.which("cc")
    if not compiler:
        raise Failure(f"cc is not installed, and bench/{name}.c is written in C: apt-get install gcc")
    binary = directory / f"{name}-binary"
    done = subprocess.run([compiler, "-O2", "-o", binary, HERE / f"{name}.c"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"{name}.c does not compile:\n{done.stderr}")
    return binary


def with_settings(binary: Path, settings: dict[str, object]) -> list[str]:
    """The command that runs Larder with these settings over its defaults."""
    return [str(binary.resolve()), *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]


def build_floor() -> Path:
    return built_floor("bare hyper") / "larder-bench-floor"


def build_tls_floor() -> tuple[Path, Path]:
    """Bare hyper with rustls, and what shakes hands with a server."""
    directory = built_floor("bare hyper with rustls", "--features", "tls")
    return directory / "larder-bench-floor-tls", directory / "larder-bench-handshakes"


def built_floor(name: str, *arguments: str) -> Path:
    if not shutil.which("cargo"):
        raise Failure(f"cargo is not installed, and {name} is built by it")
    say(f"building {name}")
    done = subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", *arguments], cwd=HERE / "floor", check=False)
    if done.returncode != 0:
        raise Failure("bench/floor does not build")
    target = Path(os.environ.get("CARGO_TARGET_DIR", HERE / "floor" / "target"))
    return target / "release"
