"""The settings that Django's own tests run with here: its Redis backend on `COMPAT_CACHE_PORT`."""

from __future__ import annotations

import json
import os
import unittest
from pathlib import Path
from typing import Any

from django.test.runner import DiscoverRunner

DATABASES = {name: {"ENGINE": "django.db.backends.sqlite3"} for name in ("default", "other")}
SECRET_KEY = "for tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": f"redis://127.0.0.1:{os.environ['COMPAT_CACHE_PORT']}",
    }
}
TEST_RUNNER = "compat_django.Runner"


class Result(unittest.TextTestResult):
    """Keeps the outcome of each test."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outcomes: dict[str, str] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self.outcomes.setdefault(test.id(), "passed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self.outcomes[test.id()] = "skipped"

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self.outcomes[test.id()] = "failed"

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self.outcomes[test.id()] = "failed"

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.outcomes[test.id()] = "failed"


class Runner(DiscoverRunner):
    """Django's runner, which also writes the outcomes to `COMPAT_RESULTS`."""

    def get_resultclass(self) -> type[unittest.TextTestResult]:
        return Result

    def suite_result(self, suite: Any, result: Any, **kwargs: Any) -> int:
        Path(os.environ["COMPAT_RESULTS"]).write_text(json.dumps(result.outcomes))
        failed: int = super().suite_result(suite, result, **kwargs)
        return failed
