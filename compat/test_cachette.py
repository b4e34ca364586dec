"""fastapi-cachette's Redis backend, each method and codec, on the server at `COMPAT_CACHE_PORT`.

Its own tests are not on the package index, only in its repository. These ask for the same, and for what those leave out.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient
from fastapi_cachette import Cachette
from fastapi_cachette.backends.redis import RedisBackend
from fastapi_cachette.codecs import Codec
from fastapi_cachette.codecs.json import JSONCodec
from fastapi_cachette.codecs.msgpack import MsgpackCodec
from fastapi_cachette.codecs.orjson import ORJSONCodec
from fastapi_cachette.codecs.pickle import PickleCodec
from fastapi_cachette.codecs.vanilla import VanillaCodec

PORT = int(os.environ["COMPAT_CACHE_PORT"])
URL = f"redis://127.0.0.1:{PORT}"


@pytest.fixture(autouse=True)
def empty() -> None:
    with redis.Redis(port=PORT) as client:
        client.flushdb()


@asynccontextmanager
async def opened(codec: Codec) -> AsyncIterator[RedisBackend]:
    backend = await RedisBackend.init(codec, URL, 60)
    try:
        yield backend
    finally:
        await backend.redis.aclose()


def on_redis(work: Callable[[RedisBackend], Awaitable[None]], codec: Codec | None = None) -> None:
    async def main() -> None:
        async with opened(codec or VanillaCodec()) as backend:
            await work(backend)

    asyncio.run(main())


async def with_ttl(backend: RedisBackend, key: str) -> list[Any]:
    """Sends what `fetch_with_ttl` sends: that of 0.1.6 can't decode the answer, whichever server gives it."""
    async with backend.redis.pipeline(transaction=True) as pipe:
        answers: list[Any] = await pipe.ttl(key).get(key).execute()
        return answers


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (VanillaCodec(), "text"),
        (JSONCodec(), {"a": [1, 2.5, None, True]}),
        (ORJSONCodec(), {"a": [1, 2.5, None, True]}),
        (MsgpackCodec(), {"a": [1, 2.5, None, b"\x00\xff\r\n"]}),
        (PickleCodec(), {"a": (1, b"\x00\xff\r\n")}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_was_put_is_fetched(codec: Codec, value: Any) -> None:
    async def work(backend: RedisBackend) -> None:
        assert await backend.fetch("key") is None
        await backend.put("key", value)
        assert await backend.fetch("key") == value
        ttl, data = await with_ttl(backend, "key")
        assert (59 <= ttl <= 60, codec.loads(data)) == (True, value)

    on_redis(work, codec)


def test_a_key_that_is_absent_has_no_lifetime() -> None:
    async def work(backend: RedisBackend) -> None:
        assert await with_ttl(backend, "absent") == [-2, None]

    on_redis(work)


def test_a_lifetime_given_with_put_counts() -> None:
    async def work(backend: RedisBackend) -> None:
        await backend.put("key", "value", 600)
        ttl, _ = await with_ttl(backend, "key")
        assert 599 <= ttl <= 600

    on_redis(work)


def test_a_value_ends_with_its_lifetime() -> None:
    async def work(backend: RedisBackend) -> None:
        await backend.put("key", "value", 1)
        put = time.monotonic()
        assert await backend.fetch("key") == "value"
        while await backend.fetch("key") is not None:
            assert time.monotonic() < put + 10
        # The server's second began no earlier than the answer to `put` less a round trip.
        assert time.monotonic() - put > 0.9

    on_redis(work)


def test_a_key_is_cleared() -> None:
    async def work(backend: RedisBackend) -> None:
        assert await backend.clear(key="key") == 0
        await backend.put("key", "value")
        assert await backend.clear(key="key") == 1
        assert await backend.fetch("key") is None

    on_redis(work)


def test_a_namespace_is_cleared_and_no_other() -> None:
    async def work(backend: RedisBackend) -> None:
        for key in ("shop:1", "shop:2", "shops:1", "shop", "other:shop:1"):
            await backend.put(key, key)
        assert await backend.clear(namespace="shop") is None
        left = [key for key in ("shop:1", "shop:2", "shops:1", "shop", "other:shop:1") if await backend.fetch(key)]
        assert left == ["shops:1", "shop", "other:shop:1"]
        assert await backend.clear(namespace="empty") is None

    on_redis(work)


def test_a_namespace_is_a_pattern() -> None:
    async def work(backend: RedisBackend) -> None:
        for key in ("shop:1", "ship:1", "shap:2", "sharp:1"):
            await backend.put(key, key)
        await backend.clear(namespace="sh[oi]p")
        assert [key for key in ("shop:1", "ship:1", "shap:2", "sharp:1") if await backend.fetch(key)] == ["shap:2", "sharp:1"]
        await backend.clear(namespace="sh?p")
        assert [key for key in ("shap:2", "sharp:1") if await backend.fetch(key)] == ["sharp:1"]

    on_redis(work)


def test_an_application_puts_fetches_and_clears() -> None:
    @Cachette.load_config
    def settings() -> list[tuple[str, object]]:
        return [("backend", "redis"), ("redis_url", URL), ("codec", "msgpack"), ("ttl", 60)]

    app = FastAPI()

    @app.put("/{key}/{value}", response_class=PlainTextResponse)
    async def put(key: str, value: str, cachette: Cachette = Depends()) -> str:
        await cachette.put(key, value)
        return "stored"

    @app.get("/{key}", response_class=PlainTextResponse)
    async def get(key: str, cachette: Cachette = Depends()) -> str:
        return await cachette.fetch(key) or ""

    @app.delete("/{key}", response_class=PlainTextResponse)
    async def delete(key: str, cachette: Cachette = Depends()) -> str:
        return str(await cachette.clear(key=key))

    with TestClient(app) as client:
        assert client.get("/a").text == ""
        client.put("/a/first")
        assert client.get("/a").text == "first"
        client.put("/a/second")
        assert client.get("/a").text == "second"
        assert client.delete("/a").text == "1"
        assert client.get("/a").text == ""
        assert client.delete("/a").text == "0"
