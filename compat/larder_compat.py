"""A pytest plugin for suites of other projects. It changes nothing in them.

It writes the outcome of each test to `COMPAT_RESULTS`. With `COMPAT_CACHE_PORT` it also puts what the fixture `app`
returns (a Flask application) on Flask-Caching's RedisCache, on that port and an empty database.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

_outcomes: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # A test whose set-up or teardown fails has failed, whatever its call did.
    if report.when == "call" or report.outcome != "passed":
        if _outcomes.get(report.nodeid) != "failed":
            _outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish() -> None:
    Path(os.environ["COMPAT_RESULTS"]).write_text(json.dumps(_outcomes))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Generator[None, Any, Any]:
    value = yield
    port = os.environ.get("COMPAT_CACHE_PORT")
    if port and fixturedef.argname == "app":
        import redis

        with redis.Redis(port=int(port)) as client:
            client.flushdb()
        value.config["CACHE_TYPE"] = "RedisCache"
        value.config["CACHE_REDIS_PORT"] = int(port)
    return value
