"""Finds the `larder` command that this distribution installs.

Looks at `LARDER_BINARY`, then in the environment's directory of scripts, then in the user's, then on the PATH.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "LARDER_BINARY"


class BinaryNotFound(RuntimeError):
    """No `larder` command was found. The message says where it was looked for."""


def find_binary() -> Path:
    """Returns the path of the `larder` command, or raises `BinaryNotFound`."""
    named = os.environ.get(VARIABLE)
    if named:
        if _runs(Path(named)):
            return Path(named)
        raise BinaryNotFound(f"{VARIABLE} names {named}, which is no program that can be run; correct it, or unset it")
    looked_at = list(_directories())
    for directory in looked_at:
        if _runs(directory / "larder"):
            return directory / "larder"
    on_path = shutil.which("larder")
    if on_path and not _is_python_script(Path(on_path)):
        return Path(on_path)
    places = ", ".join(str(directory) for directory in looked_at)
    raise BinaryNotFound(
        f"the larder command is neither in {places} nor on the PATH; "
        f"install it with `{sys.executable} -m pip install larder`, or name it in {VARIABLE}"
    )


def _directories() -> Iterator[Path]:
    """The directories of scripts: of this environment, and of `pip install --user`."""
    seen: set[str] = set()
    for scheme in (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")):
        directory = sysconfig.get_path("scripts", scheme)
        if directory and directory not in seen:
            seen.add(directory)
            yield Path(directory)
    # `pip install --target DIR` puts the command into DIR/bin, beside the package.
    yield Path(__file__).resolve().parent.parent / "bin"


def _runs(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _is_python_script(path: Path) -> bool:
    """Tells a script that would only come back here from the binary."""
    with path.open("rb") as file:
        return file.read(2) == b"#!"
