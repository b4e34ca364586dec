"""An origin and the binary for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from wire import Larder, Origin


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


@pytest.fixture
def settings() -> list[str]:
    return []


@pytest.fixture
def larder(origin: Origin, tmp_path: Path, settings: list[str]) -> Iterator[Larder]:
    larder = Larder(origin.port, tmp_path, *settings)
    yield larder
    larder.stop()
