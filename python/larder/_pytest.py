"""The pytest plugin of Larder: the fixture `live_larder`.

pytest loads this for every run, so it imports nothing until a test asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from larder.testing import LiveLarder


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "larder(config=None, **settings): how `live_larder` is started; a setting `cache.status_key` is written cache__status_key",
    )


@pytest.fixture
def live_larder(request: pytest.FixtureRequest) -> Iterator[LiveLarder]:
    """A real Larder in front of the application that the fixture `app` returns."""
    from larder.testing import LiveLarder

    options: dict[str, object] = {}
    for marker in reversed(list(request.node.iter_markers("larder"))):
        options.update(marker.kwargs)
    config = options.pop("config", None)
    if config is not None and not isinstance(config, str):
        config = str(config)
    settings = {name.replace("__", "."): value for name, value in options.items()}
    with LiveLarder(request.getfixturevalue("app"), config=config, settings=settings) as larder:
        yield larder
