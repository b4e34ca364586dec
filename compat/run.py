#!/usr/bin/env python3
"""Runs other projects' tests for Redis, unchanged, against a real redis-server and against Larder.

    make compat                                      # all of it, some fifteen minutes
    compat/run.py --larder target/quick/larder --suite django --server redis --server larder

Prints a table: how many tests of each suite pass on each server. Ends with 1 if a test that passes on redis-server
fails on Larder, and prints the names of such tests. `--suite ours` runs only what has no counterpart on redis-server:
memoized functions under gunicorn, and the pages in docs/coming-from.

Installs, below target/compat and nowhere else: a virtual environment with compat/requirements.txt, and the source
archives of compat/sources.txt, both checked by their hashes. Needs Linux, Python 3.11, redis-server.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import servers
from servers import PROMPT, SMALL, Failure, Running

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = ROOT / "target" / "compat"
PYTHON = WORK / "venv" / "bin" / "python"


@dataclass(frozen=True)
class Suite:
    """Tests of a project, and the port that they are written for."""

    name: str
    # The folder of its source archive, or a checkout; empty for tests of ours.
    source: str
    port: int
    command: tuple[str, ...]
    # On which port the plugin or the settings put the cache; empty: the tests say it themselves.
    is_pointed: bool = False
    # True if it reads what it has set at once, while it is queued for the bucket.
    is_prompt: bool = False


PYTEST = (
    "-m", "pytest", "-q", "-p", "larder_compat", "--tb=short", "-o", "asyncio_default_fixture_loop_scope=function",
    "-o", f"cache_dir={WORK / 'pytest'}",
)
REDIS_TESTS = "Redis or redis or unlink or init_app_multi"
SUITES = (
    Suite("flask-caching, its Redis tests", "flask_caching-2.5.1", 6360, (*PYTEST, "tests", "-k", REDIS_TESTS)),
    Suite("flask-caching, all on RedisCache", "flask_caching-2.5.1", 6360, (*PYTEST, "tests"), is_pointed=True),
    Suite("cachelib, redis", "cachelib-0.17.0", 6360, (*PYTEST, "tests/test_redis_cache.py")),
    Suite("cachelib, valkey", "cachelib-0.17.0", 6370, (*PYTEST, "tests/test_valkey_cache.py")),
    Suite(
        "django, its Redis backend", "django-5.2.8", 6361,
        ("tests/runtests.py", "--settings=compat_django", "--parallel=1", "cache.tests.RedisCacheTests"), is_pointed=True,
    ),
    Suite("fastapi-cachette, its Redis backend", "", 6362, (*PYTEST, str(HERE / "test_cachette.py")), is_pointed=True),
    Suite("redis-cli and redis-benchmark", "", 6363, (*PYTEST, str(HERE / "test_tools.py")), is_pointed=True),
)



def cachette(checkout: Path) -> Suite:
    """Returns fastapi-cachette's own tests. They are in its repository alone, not in its archives."""
    command = (*PYTEST, "tests", "-k", "redis")
    return Suite("fastapi-cachette, its own Redis tests", str(checkout.resolve()), 6379, command, is_prompt=True)


# Tests that start Larder themselves: nothing is compared.
OURS = "ours: memoize, pages"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--larder", type=Path, required=True, help="the binary")
    parser.add_argument("--moto", type=Path, help="moto_server, an S3 server; without it the bucket is not tried")
    parser.add_argument("--cachette", type=Path, help="a checkout of aekasitt/cachette at 0.1.6: its Redis tests run as well")
    parser.add_argument("--suite", action="append", default=[], help="a part of a suite's name; repeatable")
    parser.add_argument("--server", action="append", default=[], choices=["redis", "larder", "directory", "bucket"])
    parser.add_argument("--table", type=Path, help="writes the table here as well")
    parser.add_argument("--only", default="", help="pytest's -k, or django's")
    options = parser.parse_args()
    try:
        install()
        suites = [*SUITES, *([cachette(options.cachette)] if options.cachette else [])]
        chosen = [suite for suite in suites if not options.suite or any(part in suite.name for part in options.suite)]
        results = run(options, chosen)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    is_worse = report(chosen, results, options.table)
    is_ours_bad = not run_ours(options)
    return 1 if is_worse or is_ours_bad else 0


# --- what is installed ---


def install() -> None:
    """Makes target/compat, unless it is there and from these very files."""
    if sys.version_info < (3, 11):
        raise Failure("Flask-Caching 2.5.1 needs Python 3.11")
    wanted = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in ("requirements.txt", "sources.txt"))).hexdigest()
    stamp = WORK / "stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing compat/requirements.txt and compat/sources.txt below {WORK}", file=sys.stderr)
    WORK.mkdir(parents=True, exist_ok=True)
    _run(sys.executable, "-m", "venv", "--clear", str(WORK / "venv"))
    pip = (str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check")
    _run(*pip, "install", "--require-hashes", "--requirement", str(HERE / "requirements.txt"))
    archives = WORK / "archives"
    _run(
        *pip, "download", "--require-hashes", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
        "--dest", str(archives), "--requirement", str(HERE / "sources.txt"),
    )
    for path in archives.glob("*.tar.gz"):
        with tarfile.open(path) as archive:
            archive.extractall(WORK, filter="data")
    stamp.write_text(wanted)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)} ended with {done.returncode}")


# --- running ---

Start = Callable[[int], contextlib.AbstractContextManager[Running]]
Outcomes = dict[str, str]


def run(options: argparse.Namespace, suites: list[Suite]) -> dict[tuple[str, str], Outcomes]:
    results: dict[tuple[str, str], Outcomes] = {}
    for name, start in all_servers(options).items():
        if options.server and name not in options.server:
            continue
        for suite in suites:
            with start(suite.port) as server:
                results[suite.name, name] = outcomes = run_suite(suite, name, options.only)
                if not is_alive(server):
                    raise Failure(f"{name} ended during {suite.name}:\n{server.log.read_text(errors='replace')[-2000:]}")
                check_tier(name, suite, server)
            print(f"{name}: {suite.name}: {in_numbers(outcomes)}", file=sys.stderr, flush=True)
    return results


def all_servers(options: argparse.Namespace) -> dict[str, Start]:
    @contextlib.contextmanager
    def larder(port: int, settings: dict[str, str]) -> Iterator[Running]:
        with tempfile.TemporaryDirectory(prefix="larder-compat-") as name:
            with servers.larder(options.larder, port, settings, Path(name)) as running:
                yield running

    @contextlib.contextmanager
    def with_bucket(port: int) -> Iterator[Running]:
        with servers.bucket(options.moto) as settings, larder(port, settings | {"memory.capacity": SMALL} | PROMPT) as running:
            yield running

    every: dict[str, Start] = {
        "redis": servers.redis,
        "larder": lambda port: larder(port, {}),
        "directory": lambda port: larder(port, {"memory.capacity": SMALL}),
    }
    if options.moto:
        every["bucket"] = with_bucket
    return every


def run_suite(suite: Suite, server: str, only: str) -> Outcomes:
    with tempfile.TemporaryDirectory(prefix="larder-compat-") as name:
        results = Path(name) / "results.json"
        environment = os.environ | {
            # The suites take it as: the server is there already.
            "CI": "true",
            "COMPAT_RESULTS": str(results),
            "PYTHONPATH": str(HERE),
        }
        if suite.is_pointed:
            environment["COMPAT_CACHE_PORT"] = str(suite.port)
        command = [str(PYTHON), *suite.command, *(["-k", only] if only else [])]
        done = subprocess.run(
            command, cwd=WORK / suite.source, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        log = WORK / f"{server}-{re.sub(r'[^a-z0-9]+', '-', suite.name.lower())}.log"
        log.write_text(done.stdout)
        if not results.exists():
            raise Failure(f"{suite.name} did not run:\n{done.stdout[-4000:]}")
        outcomes: Outcomes = json.loads(results.read_text())
        # A suite that can't be collected has neither failures nor passes.
        if not only and "passed" not in outcomes.values():
            raise Failure(f"no test of {suite.name} passes on {server}:\n{done.stdout[-4000:]}")
        return outcomes


def run_ours(options: argparse.Namespace) -> bool:
    """Runs the tests of ours that start Larder themselves; returns whether they pass."""
    if options.suite and not any(part in OURS for part in options.suite):
        return True
    environment = os.environ | {
        "COMPAT_LARDER": str(options.larder.resolve()),
        "COMPAT_RESULTS": os.devnull,
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if options.moto:
        environment["COMPAT_MOTO"] = str(options.moto.resolve())
    command = [str(PYTHON), *PYTEST, str(HERE / "test_memoize.py"), str(HERE / "test_pages.py"), *(["-k", options.only] if options.only else [])]
    return subprocess.run(command, cwd=WORK, env=environment, check=False).returncode == 0


def is_alive(server: Running) -> bool:
    return server.process.poll() is None


def check_tier(name: str, suite: Suite, server: Running) -> None:
    """Fails where every value was to come from the durable tier, and one did not."""
    if name in ("directory", "bucket"):
        durable, memory = (server.metric(rf'larder_resp_reads_total\{{tier="{tier}"\}}') for tier in ("durable", "memory"))
        if not durable or memory:
            raise Failure(f"{suite.name} on {name} read {durable:.0f} values from the durable tier and {memory:.0f} from memory")
    # One read is the probe at the start.
    if name == "bucket" and not suite.is_prompt and server.metric(r'larder_durable_requests_total\{class="read"\}') < 2:
        raise Failure(f"{suite.name} read nothing from the bucket: all came from the queue")


# --- what came out ---


def in_numbers(outcomes: Outcomes) -> str:
    counts = [(what, sum(outcome == what for outcome in outcomes.values())) for what in ("passed", "failed", "skipped")]
    return ", ".join(f"{count} {what}" for what, count in counts if count or what == "passed")


def report(suites: list[Suite], results: dict[tuple[str, str], Outcomes], path: Path | None) -> bool:
    """Prints the table; returns whether Larder fails what redis-server passes."""
    names = list(dict.fromkeys(name for _, name in results))
    lines = [f"| suite | {' | '.join(names)} |", f"| --- {'| --- ' * len(names)}|"]
    for suite in suites:
        lines.append(f"| {suite.name} | {' | '.join(in_numbers(results[suite.name, name]) for name in names)} |")
    table = "\n".join(lines) + "\n"
    print(table)
    if path:
        path.write_text(table)
    is_worse = False
    for (suite_name, name), outcomes in results.items():
        for test, outcome in results.get((suite_name, "redis"), {}).items():
            if outcome == "passed" and outcomes.get(test) != "passed":
                is_worse = True
                print(f"passes on redis, {outcomes.get(test, 'not run')} on {name}: {suite_name}: {test}")
    return is_worse


if __name__ == "__main__":
    sys.exit(main())
