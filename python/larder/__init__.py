"""Larder for Python: purges, from any program. `larder.flask` has the rest for Flask, `larder.aio` purges for asyncio.

    import larder

    larder.purge(tag="item:7")

Outside of Flask it asks the Larder at `LARDER_ADMIN` (an environment variable; `http://127.0.0.1:9090` without one),
with the token in `LARDER_TOKEN`. `configure` sets both.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import aio
    from ._admin import Answer, Failure, Purge, PurgeError
    from ._purging import Client, Options, configure, flush, purge, purge_now, purging
    from ._tags import tag_for

    __version__: str

__all__ = [
    "Answer",
    "Client",
    "Failure",
    "Options",
    "Purge",
    "PurgeError",
    "__version__",
    "aio",
    "configure",
    "flush",
    "purge",
    "purge_now",
    "purging",
    "tag_for",
]

# Imported when they are first used: pytest imports this package in every run, for the plugin.
_HOMES = {
    "_admin": ("Answer", "Failure", "Purge", "PurgeError"),
    "_purging": ("Client", "Options", "configure", "flush", "purge", "purge_now", "purging"),
    "_tags": ("tag_for",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: Any = version("larder")
        except PackageNotFoundError:  # the sources, not installed
            value = "0.0.0"
    elif name == "aio":
        value = import_module(".aio", __name__)
    else:
        home = next((home for home, names in _HOMES.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module 'larder' has no attribute {name!r}")
        value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value
