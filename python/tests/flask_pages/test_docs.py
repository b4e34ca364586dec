"""docs/flask.md does what it says: its application is run, and its commands print what it shows."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import larder
import pytest
from larder.flask import _extension, cache_for
from larder.flask._policy import NAMEABLE

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "flask.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def commands() -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for block in blocks("console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def matches(shown: list[str], printed: list[str]) -> bool:
    """Compares; a line of … stands for any number of lines, a … in a line for any text."""
    pattern = ""
    for line in shown:
        pattern += "(?:.*\n)*?" if line == "…" else ".*?".join(map(re.escape, line.split("…"))) + "\n"
    text = "".join(line.rstrip() + "\n" for line in printed)
    return re.fullmatch(pattern, text) is not None


def test_the_commands_print_what_the_page_shows(start_site: Callable[..., Any], tmp_path: Path) -> None:
    source = next(block for block in blocks("python") if block.startswith("# shop.py"))
    site = start_site(source, workers=1)
    (tmp_path / "shop.py").write_text(source)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "python"), "LARDER_ADMIN": site.admin}
    seen = 0
    for command, shown in commands():
        if command.endswith("&"):
            assert command.startswith(("flask --app shop run", "larder ")), command
            continue
        command = command.replace("127.0.0.1:8080", f"127.0.0.1:{site.port}").replace("curl ", "curl -s ")
        command = command.replace("flask --app", f"{sys.executable} -m flask --app")
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30)
        printed = done.stdout.replace(site.admin, "http://127.0.0.1:9090").replace(f":{site.port}", ":8080")
        assert matches(shown, printed.splitlines()), f"{command}\n{printed}{done.stderr}"
        seen += 1
    assert seen == 8


def test_the_tables_name_every_option_setting_and_status() -> None:
    parameters = inspect.signature(cache_for).parameters.values()
    options = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    assert "swr" in options
    assert options <= set(re.findall(r"`(\w+)`", PAGE))
    for name, value in _extension.DEFAULTS.items():
        row = re.search(rf"^\| `{name}` \| [^|]* \| ([^|]*) \|", PAGE, re.M)
        assert row, name
        shown = row.group(1).strip().strip("`").replace(",", "")
        if isinstance(value, (int, float)):
            assert float(shown) == value, name
    told = re.search(r"further statuses: (.*?)\. \|", PAGE)
    assert told and {status for status in NAMEABLE if status >= 204} == {
        204, *range(300, 304), 307, 308, 404, 405, 410, 414, 451
    }
    assert told.group(1) == "204, 300–303, 307, 308, 404, 405, 410, 414, 451"


def test_every_name_of_the_page_exists() -> None:
    import larder.aio
    import larder.flask

    for module, name in re.findall(r"\b(larder(?:\.aio|\.flask)?)\.(\w+)\(", PAGE):
        assert hasattr(sys.modules[module], name) or hasattr(larder, name), f"{module}.{name}"
    for name in ("purged", "purge_failed"):
        assert hasattr(larder.flask, name)
    with pytest.raises(AttributeError):
        getattr(larder, "no_such_name")
