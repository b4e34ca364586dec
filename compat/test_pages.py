"""The pages in docs/coming-from: their commands print what they say, and they leave no option out.

Needs `COMPAT_LARDER`, the binary, and for the page with a bucket `COMPAT_MOTO`, an S3 server.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cachelib
import fastapi_cachette
import flask_caching
import flask_caching.signals
import pytest
from fastapi_cachette import Cachette
from fastapi_cachette.load_config import LoadConfig

import servers

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "coming-from"
# The directory into which run.py unpacks the source archives.
WORK = ROOT / "target" / "compat"
# The ports that the pages use.
WRITTEN_PORTS = ("5000", "8080", "9090", "6379")
# Commands that are not run, and why.
NOT_RUN = {"larder lifecycle --config larder.toml --longest 365d": "needs a bucket of one's own"}


def text_of(page: str) -> str:
    return (PAGES / f"{page}.md").read_text()


# --- the commands ---


class Shell:
    """A reader's shell: a directory, jobs, and free ports in place of those in the text."""

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        self.directory = directory
        self.ports = {written: servers.free_port() for written in WRITTEN_PORTS}
        self.jobs: dict[int, subprocess.Popen[bytes]] = {}
        bin_directory = directory / "bin"
        bin_directory.mkdir()
        (bin_directory / "larder").symlink_to(Path(os.environ["COMPAT_LARDER"]).resolve())
        # The commands of the virtual environment that this test runs in.
        commands = Path(sys.executable).parent
        self.environment = servers.environment() | {
            "PATH": f"{bin_directory}:{commands}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT / 'python'}:{os.environ.get('PYTHONPATH', '')}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LARDER_ADMIN": f"http://127.0.0.1:{self.ports['9090']}",
            "LARDER_SERVER__LISTEN": f"127.0.0.1:{self.ports['8080']}",
            "LARDER_ADMIN__LISTEN": f"127.0.0.1:{self.ports['9090']}",
            "LARDER_UPSTREAM__URL": f"http://127.0.0.1:{self.ports['5000']}",
        }
        for key, value in settings.items():
            self.environment[f"LARDER_{key.upper().replace('.', '__')}"] = value

    def with_ports(self, text: str) -> str:
        for written, port in self.ports.items():
            text = re.sub(rf"(127\.0\.0\.1:|--port |-p ){written}\b", rf"\g<1>{port}", text)
        return text

    def run(self, command: str) -> list[str]:
        """Runs a command of the text; returns the lines that it printed."""
        if stopped := re.fullmatch(r"kill %(\d+); wait %\1", command):
            self._stop(int(stopped[1]))
            return []
        if command.endswith(" &"):
            self._start(self.with_ports(command.removesuffix(" &")))
            return []
        done = subprocess.run(
            ["sh", "-c", self.with_ports(command)], cwd=self.directory, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"`{command}` ended with {done.returncode}:\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout.splitlines()

    def _start(self, command: str) -> None:
        number = len(self.jobs) + 1
        with (self.directory / f"job-{number}.log").open("wb") as log:
            job = subprocess.Popen(["sh", "-c", f"exec {command}"], cwd=self.directory, env=self.environment, stdout=log, stderr=log)
        self.jobs[number] = job
        written = "9090" if command.startswith("larder") else "5000"
        deadline = time.monotonic() + servers.PATIENCE
        while not servers.accepts(self.ports[written]):
            assert job.poll() is None and time.monotonic() < deadline, f"`{command}` does not serve:\n{self.logs()}"
            time.sleep(0.02)

    def _stop(self, number: int) -> None:
        self.jobs[number].terminate()
        self.jobs[number].wait(servers.PATIENCE)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.directory.glob("job-*.log")))

    def close(self) -> None:
        for job in self.jobs.values():
            if job.poll() is None:
                job.terminate()
        for job in self.jobs.values():
            job.wait(servers.PATIENCE)


def blocks(page: str) -> Iterator[tuple[str, list[str]]]:
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL):
        yield language, body.splitlines()


def plain(line: str) -> str:
    """Returns the line without the seconds that differ from run to run."""
    return re.sub(r"ttl=\d+", "ttl=N", line.strip())


@contextlib.contextmanager
def settings_of(page: str) -> Iterator[dict[str, str]]:
    if page != "flask-caching-s3":
        yield {}
        return
    moto = os.environ.get("COMPAT_MOTO")
    if not moto:
        pytest.skip("COMPAT_MOTO names no S3 server")
    with servers.bucket(Path(moto), "your-unique-bucket-name") as settings:
        del settings["durable.url"]
        yield settings


@pytest.mark.parametrize("page", ["flask-caching", "flask-caching-s3", "flask-webcache", "fastapi-cachette"])
def test_the_commands_print_what_the_page_says(page: str, tmp_path: Path) -> None:
    with settings_of(page) as settings:
        shell = Shell(tmp_path, settings)
        try:
            follow(page, shell)
        finally:
            shell.close()


def follow(page: str, shell: Shell) -> None:
    for language, lines in blocks(page):
        if language in ("python", "toml"):
            name = lines[0].removeprefix("# ")
            (shell.directory / name).write_text(shell.with_ports("\n".join(lines) + "\n"))
        elif language == "console":
            steps: list[tuple[str, list[str]]] = []
            for line in lines:
                if line.startswith("$ "):
                    steps.append((line.removeprefix("$ "), []))
                else:
                    steps[-1][1].append(line)
            for command, expected in steps:
                printed = [plain(line) for line in shell.run(command)]
                assert printed == [plain(line) for line in expected], f"`{command}`\n{shell.logs()}"
        else:
            assert language == "sh" and all(line in NOT_RUN for line in lines), f"nobody runs {lines}"


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]*)[^)]*\)", page.read_text()) if link and "://" not in link]
    assert links and [link for link in links if not (PAGES / link).exists()] == []


# --- the options ---


def is_named(page: str, word: str) -> bool:
    """Says whether the page has `word` in code, whole."""
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", code) for code in re.findall(r"`([^`\n]+)`", text_of(page)))


def sources(module_file: str | None) -> str:
    assert module_file
    return sources_in(Path(module_file).parent)


def sources_in(directory: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(directory.rglob("*.py")))


def parameters(function: Callable[..., object]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "args", "kwargs")]


def assert_all_named(page: str, words: list[str]) -> None:
    assert words, "nothing was found to look for"
    assert [word for word in words if not is_named(page, word)] == []


def test_every_setting_of_flask_caching_is_there() -> None:
    # JINJA_CACHE_ATTR_NAME is no setting.
    keys = set(re.findall(r"""["'`](CACHE_[A-Z_]+[A-Z])["'`]""", sources(flask_caching.__file__)))
    assert {"CACHE_TYPE", "CACHE_REDIS_URL", "CACHE_UWSGI_NAME"} <= keys
    assert_all_named("flask-caching", sorted(keys))


def test_every_method_and_argument_of_flask_caching_is_there() -> None:
    methods = [name for name in dir(flask_caching.Cache) if not name.startswith("_")]
    arguments = [*parameters(flask_caching.Cache.cached), *parameters(flask_caching.Cache.memoize), *parameters(flask_caching.Cache.__init__)]
    assert_all_named("flask-caching", [*methods, *arguments])


def test_every_backend_and_signal_of_flask_caching_is_there() -> None:
    backends = re.findall(r"^class (\w+Cache)\b", sources(flask_caching.__file__), re.MULTILINE)
    signals = [name for name in dir(flask_caching.signals) if name.startswith("cache_")]
    of_cachelib = [name for name in dir(cachelib) if name.endswith("Cache")]
    assert_all_named("flask-caching", [name for name in (*backends, *of_cachelib, *signals) if name != "BaseCache"])


def test_every_setting_and_method_of_fastapi_cachette_is_there() -> None:
    methods = [name for name in ("fetch", "fetch_with_ttl", "put", "clear") if hasattr(Cachette, name)]
    assert_all_named("fastapi-cachette", [*LoadConfig.__fields__, *methods])
    backends = set(re.findall(r'_backend == "(\w+)"', sources(fastapi_cachette.__file__)))
    codecs = set(re.findall(r'_codec == "(\w+)"', sources(fastapi_cachette.__file__)))
    assert_all_named("fastapi-cachette", sorted(backends | codecs))


def test_every_setting_and_method_of_flask_caching_s3_is_there() -> None:
    source = sources_in(WORK / "flask_caching_s3-0.1.5" / "flask_caching_s3")
    keys = set(re.findall(r"\bCACHE_\w+", source))
    methods = re.findall(r"^    def ([a-z]\w*)", source, re.MULTILINE)
    assert "CACHE_S3_BUCKET" in keys and "has" in methods
    # Flask-Caching calls `factory` itself.
    assert_all_named("flask-caching-s3", [*sorted(keys), "purge_expired_on_read", *(name for name in methods if name != "factory")])


def test_every_name_of_flask_webcache_is_there() -> None:
    source = sources_in(WORK / "Flask-WebCache-0.9.1" / "flask_webcache")
    config = re.search(r"class Config.*?def __init__\(self, (.*?)\):", source, re.DOTALL)
    assert config
    arguments = re.findall(r"(\w+)=", config[1])
    constants = re.findall(r"^    ([A-Z][A-Z_]+) =", source, re.MULTILINE)
    functions = re.findall(r"^def (\w+)", (WORK / "Flask-WebCache-0.9.1" / "flask_webcache" / "recache.py").read_text(), re.MULTILINE)
    classes = re.findall(r"^class (\w+)", source, re.MULTILINE)
    of_validation = re.findall(r"^    def (\w+)", (WORK / "Flask-WebCache-0.9.1" / "flask_webcache" / "validation.py").read_text(), re.MULTILINE)
    # Its own parts, which an application does not name.
    inner = {"Base", "Config", "Metadata", "Retrieval", "Store", "Validation", "get_dispatch_args"}
    assert {"master_salt", "resource_exemptions", "preemptive_recache_seconds"} <= set(arguments)
    assert_all_named("flask-webcache", [name for name in (*arguments, *constants, *functions, *classes, *of_validation) if name not in inner])
