"""The pytest plugin, and what it costs a run that does not use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import larder

pytest_plugins = ["pytester"]

import pytest  # noqa: E402


def test_the_package_and_the_plugin_import_next_to_nothing() -> None:
    program = "import sys, pytest; before = set(sys.modules); import larder._pytest; print(*sorted(set(sys.modules) - before))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(told.stdout.split()) <= {"larder", "larder._pytest"}, told.stdout


def test_each_name_of_the_package_is_there() -> None:
    for name in larder.__all__:
        assert getattr(larder, name) is not None, name
    with pytest.raises(AttributeError, match="module 'larder' has no attribute 'nonsense'"):
        larder.nonsense


def test_the_fixture_runs_larder_before_the_application(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from flask import Flask

        @pytest.fixture
        def app():
            app = Flask("app")
            app.add_url_rule("/", view_func=lambda: "hello")
            return app

        @pytest.mark.larder(cache__default_timeout="1h")
        def test_a_page_is_kept(live_larder):
            live_larder.stored(live_larder.client().get("/"))

        def test_a_page_is_not_kept(live_larder):
            live_larder.not_stored(live_larder.client().get("/"))
        """
    )
    result = pytester.runpytest_subprocess("--strict-markers")
    result.assert_outcomes(passed=2)


def test_the_page_about_tests_does_what_it_says(pytester: pytest.Pytester) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "testing.md").read_text()
    _, program, *rest = page.split("```python\n")
    assert not rest
    pytester.makepyfile(program.split("```")[0])
    result = pytester.runpytest_subprocess("--strict-markers", "-W", "error")
    result.assert_outcomes(passed=4)
