"""The wheel in an empty environment, and the source distribution.

`make python-test` builds the wheel and names it in `LARDER_TEST_WHEEL`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel() -> Path:
    named = os.environ.get("LARDER_TEST_WHEEL")
    if not named:
        pytest.skip("LARDER_TEST_WHEEL names no wheel; `make python-test` builds one")
    return Path(named)


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel, and nothing else: no pip, no Flask."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin/python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-index", str(wheel)], check=True)
    return directory


def run(environment: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with nothing on the PATH but the system's own: no cargo."""
    return subprocess.run(
        [str(environment / "bin" / command[0]), *command[1:]],
        env={"PATH": "/usr/bin:/bin", **variables},
        cwd=environment,
        capture_output=True,
        text=True,
    )


def test_the_command_and_the_module_run(environment: Path) -> None:
    version = run(environment, "larder", "--version").stdout
    assert version.startswith("larder "), version
    assert run(environment, "python", "-m", "larder", "--version").stdout == version
    told = run(environment, "python", "-c", "import larder; print('larder', larder.__version__)")
    assert told.stdout == version, told
    told = run(environment, "python", "-m", "larder", "check", "--set", "a.b=1")
    assert (told.returncode, told.stderr.startswith("larder: --set a.b: there is no such key")) == (2, True), told


def test_what_is_missing_is_said_in_a_sentence(environment: Path, tmp_path: Path) -> None:
    told = run(environment, "python", "-m", "larder", "--version", LARDER_BINARY="/nowhere/larder")
    assert (told.returncode, told.stderr) == (
        1,
        "larder: LARDER_BINARY names /nowhere/larder, which is no program that can be run; correct it, or unset it\n",
    )
    program = "import larder._binary as b, pathlib; b._directories = lambda: iter([pathlib.Path('/nowhere')]); b.find_binary()"
    told = run(environment, "python", "-c", program)
    assert "BinaryNotFound: the larder command is neither in /nowhere nor on the PATH; install it with " in told.stderr
    told = run(environment, "python", "-c", program, PATH=str(environment / "bin"))
    assert told.returncode == 0, told.stderr
    told = run(environment, "python", "-c", "import larder.testing as t; t.LiveLarder(lambda *_: []).start()")
    assert "larder.testing serves the application with Werkzeug: pip install werkzeug" in told.stderr


def test_the_wheel_is_typed_and_has_its_licences(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    endings = ["larder/py.typed", "larder/testing.py", "scripts/larder", "LICENSE-MIT", "LICENSE-APACHE", "entry_points.txt"]
    for ending in endings:
        assert any(name.endswith(ending) for name in names), (ending, names)
    assert not any("test_" in name or "__pycache__" in name for name in names), names


def test_the_sources_are_whole(wheel: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "maturin", "sdist", "--out", str(tmp_path)], check=True, cwd=ROOT, capture_output=True
    )
    (archive,) = tmp_path.glob("larder-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    sources = tmp_path / archive.name.removesuffix(".tar.gz")
    for name in ["pyproject.toml", "Cargo.lock", "src/main.rs", "python/larder/__init__.py", "README.md", "PKG-INFO"]:
        assert (sources / name).is_file(), name
    assert not (sources / "target").exists() and not list(sources.glob("larder-cache"))
    # Cargo finds all that the manifest and the lock file name.
    metadata = ["cargo", "metadata", "--locked", "--offline", "--format-version", "1"]
    told = subprocess.run(metadata, cwd=sources, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
