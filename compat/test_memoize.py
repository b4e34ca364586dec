"""A memoized function runs once: for all of gunicorn's workers, and after Larder or its machine is lost.

Needs `COMPAT_LARDER`, the binary, and for the bucket `COMPAT_MOTO`, an S3 server.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import servers

HERE = Path(__file__).resolve().parent
WORKERS = 4


class Application:
    def __init__(self, port: int, runs: Path) -> None:
        self.port = port
        self._runs = runs

    def ask(self, number: int, method: str = "GET") -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{number}", method=method)
        with urllib.request.urlopen(request, timeout=servers.PATIENCE) as answer:
            text: str = answer.read().decode()
            return text

    def ask_all_workers(self, number: int) -> set[str]:
        """Asks until each worker has answered; returns the different values they gave."""
        workers: set[str] = set()
        values: set[str] = set()
        deadline = time.monotonic() + servers.PATIENCE
        with ThreadPoolExecutor(4 * WORKERS) as pool:
            while len(workers) < WORKERS:
                assert time.monotonic() < deadline, f"only {len(workers)} workers answered"
                for answer in pool.map(self.ask, [number] * 4 * WORKERS):
                    worker, value = answer.split()
                    workers.add(worker)
                    values.add(value)
        return values

    def runs(self) -> list[str]:
        return self._runs.read_text().split()


@contextlib.contextmanager
def application(cache_port: int, directory: Path) -> Iterator[Application]:
    port, runs = servers.free_port(), directory / "runs"
    runs.touch()
    environment = os.environ | {"COMPAT_CACHE_PORT": str(cache_port), "COMPAT_RUNS": str(runs)}
    command = [sys.executable, "-m", "gunicorn", "--workers", str(WORKERS), "--bind", f"127.0.0.1:{port}", "memoized:app"]
    with (directory / "gunicorn.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=HERE, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + servers.PATIENCE
        while not servers.accepts(port):
            assert process.poll() is None and time.monotonic() < deadline, (directory / "gunicorn.log").read_text()
            time.sleep(0.02)
        yield Application(port, runs)
    finally:
        process.terminate()
        process.wait(servers.PATIENCE)


@pytest.fixture
def binary() -> Path:
    return Path(os.environ["COMPAT_LARDER"])


@pytest.fixture
def moto() -> Path:
    path = os.environ.get("COMPAT_MOTO")
    if not path:
        pytest.skip("COMPAT_MOTO names no S3 server")
    return Path(path)


def machine(directory: Path, name: str) -> Path:
    """Returns an empty directory, as a new machine has it."""
    path = directory / name
    path.mkdir()
    return path


def wait_until_written(larder: servers.Running) -> None:
    deadline = time.monotonic() + servers.PATIENCE
    while larder.metric("larder_durable_queue_objects") > 0 or larder.metric("larder_packs_written_total") == 0:
        assert time.monotonic() < deadline, "the value does not get to the bucket"
        time.sleep(0.02)


def test_once_for_all_workers(binary: Path, tmp_path: Path) -> None:
    port = servers.free_port()
    with servers.larder(binary, port, {}, tmp_path), application(port, tmp_path) as shop:
        assert shop.ask(7).split()[1] == "49"
        assert shop.ask_all_workers(7) == {"49"}
        assert shop.runs() == ["7"]


def test_deleting_it_counts_for_all_workers(binary: Path, tmp_path: Path) -> None:
    port = servers.free_port()
    with servers.larder(binary, port, {}, tmp_path), application(port, tmp_path) as shop:
        shop.ask(7)
        shop.ask(8)
        assert shop.ask(7, "DELETE") == "forgotten"
        assert shop.ask(7).split()[1] == "49"
        assert shop.ask_all_workers(7) == {"49"}
        assert shop.ask_all_workers(8) == {"64"}
        assert shop.runs() == ["7", "8", "7"]


def test_once_although_larder_is_killed(binary: Path, tmp_path: Path) -> None:
    port = servers.free_port()
    with contextlib.ExitStack() as stack:
        # The application goes on while Larder is killed and started again on the same directory.
        with servers.larder(binary, port, {}, tmp_path) as larder:
            shop = stack.enter_context(application(port, tmp_path))
            shop.ask(7)
            larder.process.kill()
            larder.process.wait()
        with servers.larder(binary, port, {}, tmp_path):
            assert shop.ask_all_workers(7) == {"49"}
            assert shop.runs() == ["7"]


def test_once_although_the_machine_is_lost(binary: Path, moto: Path, tmp_path: Path) -> None:
    port = servers.free_port()
    with contextlib.ExitStack() as stack:
        bucket = stack.enter_context(servers.bucket(moto))
        with servers.larder(binary, port, bucket, machine(tmp_path, "first")) as larder:
            shop = stack.enter_context(application(port, tmp_path))
            shop.ask(7)
            wait_until_written(larder)
            larder.process.kill()
            larder.process.wait()
        with servers.larder(binary, port, bucket, machine(tmp_path, "second")):
            assert shop.ask_all_workers(7) == {"49"}
            assert shop.runs() == ["7"]
