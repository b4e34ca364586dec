"""Keeps what costs more than a page: values that Flask-Caching keeps on Larder's `[resp]` listener, for all workers.

Flask-Caching takes the listener for a Redis: `SHOP_CACHE_URL` is `redis://127.0.0.1:6379` or `unix:///run/larder-resp.sock`.
Without one nothing is memoized.
"""

from __future__ import annotations

from typing import Any, cast

from flask import Flask
from flask_caching import Cache
from sqlalchemy import func, select
from sqlalchemy.orm import aliased

from .models import Order, database

cache = Cache()

LIMIT = 3


def init_app(app: Flask) -> None:
    url = app.config["SHOP_CACHE_URL"]
    kind = {"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": url} if url else {"CACHE_TYPE": "NullCache", "CACHE_NO_NULL_WARNING": True}
    cache.init_app(app, config={**kind, "CACHE_KEY_PREFIX": "shop:"})


def _also_bought(number: int) -> list[int]:
    """The items that those who bought this one bought most often."""
    this, other = aliased(Order), aliased(Order)
    found = (
        select(other.item_id)
        .join(this, this.user == other.user)
        .where(this.item_id == number, other.item_id != number)
        .group_by(other.item_id)
        .order_by(func.sum(other.count).desc(), other.item_id)
        .limit(LIMIT)
    )
    return list(database().scalars(found))


#: The same, computed once in ten minutes for all workers.
also_bought: Any = cast(Any, cache).memoize(timeout=600)(_also_bought)


def forget(number: int) -> None:
    """Has `also_bought` of an item computed anew."""
    cast(Any, cache).delete_memoized(also_bought, number)
