"""Larder for Flask: says what Larder may keep, and purges what changed.

    from larder.flask import Larder, cache_for, purge, tag_for

    app = Flask(__name__)
    Larder(app)

    @app.get("/item/<int:id>")
    @cache_for(minutes=5, tags=lambda: [tag_for(Item, request.view_args["id"])])
    def item(id): ...

docs/flask.md has the whole of it.
"""

from .._admin import Answer, Failure, PurgeError
from .._purging import purge, purge_now, purging
from .._tags import tag_for
from ._extension import Larder, purge_failed, purged
from ._finish import NotShared
from ._policy import add_tags, cache_for, no_cache
from ._state import LateRead

__all__ = [
    "Answer",
    "Failure",
    "Larder",
    "LateRead",
    "NotShared",
    "PurgeError",
    "add_tags",
    "cache_for",
    "no_cache",
    "purge",
    "purge_failed",
    "purge_now",
    "purged",
    "purging",
    "tag_for",
]
