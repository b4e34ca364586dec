"""Larder for Python: purges, from any program. `larder.flask` has the rest for Flask, `larder.aio` purges for asyncio.

    import larder

    larder.purge(tag="item:7")

Outside of Flask it asks the Larder at `LARDER_ADMIN` (an environment variable; `http://127.0.0.1:9090` without one),
with the token in `LARDER_TOKEN`. `configure` sets both.
"""

from importlib.metadata import PackageNotFoundError, version

from ._admin import Answer, Failure, Purge, PurgeError
from ._purging import Client, Options, configure, flush, purge, purge_now, purging
from ._tags import tag_for

try:
    __version__ = version("larder")
except PackageNotFoundError:  # the sources, not installed
    __version__ = "0.0.0"

__all__ = [
    "Answer",
    "Client",
    "Failure",
    "Options",
    "Purge",
    "PurgeError",
    "__version__",
    "configure",
    "flush",
    "purge",
    "purge_now",
    "purging",
    "tag_for",
]
