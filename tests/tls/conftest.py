"""Certificates, an origin and the binary for each test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from served import ROOT, Larder, Origin


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what scripts/certificates.sh makes."""
    directory = tmp_path_factory.mktemp("certificates")
    subprocess.run([ROOT / "scripts" / "certificates.sh", directory, "100"], check=True)
    return directory


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


@pytest.fixture
def larder(origin: Origin, certificates: Path, tmp_path: Path) -> Iterator[Larder]:
    larder = Larder(origin.port, certificates, tmp_path)
    yield larder
    larder.stop()
