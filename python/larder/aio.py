"""Purges for event loops: Quart, FastAPI, Starlette, aiohttp. Plain asyncio sockets, no further package.

    await larder.aio.purge(tag="item:7")            # never raises for what Larder or the network did
    answers = await larder.aio.purge_now(all=True)  # raises larder.PurgeError

The Larder is that of `larder.configure`, or of `LARDER_ADMIN` and `LARDER_TOKEN`.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Sequence

from . import _purging
from ._admin import (
    MAX_ANSWER,
    Address,
    AdminError,
    Answer,
    Failure,
    Purge,
    PurgeError,
    Scheme,
    Words,
    _reason,
    judged,
    purge_path,
    read_answer,
)


async def purge(
    *,
    url: Words = None,
    prefix: Words = None,
    tag: Words = None,
    all: bool = False,
    soft: bool = False,
    scheme: Scheme = "both",
    session: Any = None,
) -> None:
    """Purges, and returns once every Larder was asked. The options are those of `larder.purge`.

    Inside `larder.purging()`, or while `session` (an `AsyncSession`, say) is in a transaction, it waits for their end.
    What fails is tried again in the background, like every purge of `larder.purge`.
    """
    context = _purging.current_context()
    asked = _purging.asked_for(context, url, prefix, tag, all, soft, scheme)
    if _purging.held(context, asked, session):
        return
    client = context.client
    answers, failures = await _ask_all(client, asked, None)
    for answer in answers:
        client.report(answer)
    for failure in failures:
        if failure.may_pass:
            client.send_again(failure)
        else:
            client.report(failure)


async def purge_now(
    *,
    url: Words = None,
    prefix: Words = None,
    tag: Words = None,
    all: bool = False,
    soft: bool = False,
    scheme: Scheme = "both",
    wait: float | None = None,
) -> list[Answer]:
    """Purges before it returns, like `larder.purge_now`. Raises `PurgeError`."""
    context = _purging.current_context()
    asked = _purging.asked_for(context, url, prefix, tag, all, soft, scheme)
    answers, failures = await _ask_all(context.client, asked, wait)
    if failures:
        raise PurgeError(failures, answers)
    return answers


async def _ask_all(
    client: _purging.Client, asked: Sequence[Purge], wait: float | None
) -> tuple[list[Answer], list[Failure]]:
    """Asks every Larder at the same time."""
    rounds = await asyncio.gather(*(_ask(client, address, asked, wait) for address in client.addresses))
    outcomes = [outcome for told in rounds for outcome in told]
    return (
        [outcome for outcome in outcomes if isinstance(outcome, Answer)],
        [outcome for outcome in outcomes if isinstance(outcome, Failure)],
    )


async def _ask(
    client: _purging.Client, address: Address, asked: Sequence[Purge], wait: float | None
) -> list[Answer | Failure]:
    """Sends purges to one Larder, one after the other on one connection."""
    outcomes: list[Answer | Failure] = []
    timeout = client.options.timeout
    connection: _Connection | None = None
    try:
        for purge in asked:
            try:
                if connection is None:
                    connection = await asyncio.wait_for(_Connection.open(address, client.token), timeout)
                status, told = await asyncio.wait_for(connection.purge(purge, wait), timeout + (wait or 0.0))
            except (OSError, EOFError, ValueError, asyncio.TimeoutError, AdminError) as error:
                # Fails the rest for the same reason: the Larder is not there.
                outcomes += [Failure(str(address), other, _why(error)) for other in asked[len(outcomes) :]]
                return outcomes
            outcomes.append(judged(address, purge, status, told))
            if connection.is_over:
                await connection.close()
                connection = None
        return outcomes
    finally:
        if connection is not None:
            await connection.close()


def _why(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "it did not answer in time"
    if isinstance(error, EOFError):
        return "it closed the connection without a whole answer"
    return str(error) if isinstance(error, AdminError) else _reason(error)


class _Connection:
    """One connection to an admin listener: HTTP/1.1, as little of it as is needed."""

    def __init__(
        self, address: Address, token: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._address = address
        self._token = token
        self._reader = reader
        self._writer = writer
        self.is_over = False

    @classmethod
    async def open(cls, address: Address, token: str) -> _Connection:
        if address.scheme == "unix":
            reader, writer = await asyncio.open_unix_connection(address.path)
        else:
            context = ssl.create_default_context() if address.scheme == "https" else None
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
        return cls(address, token, reader, writer)

    async def purge(self, purge: Purge, wait: float | None) -> tuple[int, dict[str, Any]]:
        body = purge.body()
        lines = [
            f"POST {purge_path(wait)} HTTP/1.1",
            f"Host: {self._address.authority}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        if self._token:
            if not self._token.isprintable():
                raise AdminError("LARDER_TOKEN has signs that a field can't carry")
            lines.append(f"Authorization: Bearer {self._token}")
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self._writer.drain()
        return await self._answer()

    async def _answer(self) -> tuple[int, dict[str, Any]]:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, _, rest = head[0].partition(" ")
        status = rest[:3]
        if not version.startswith("HTTP/1.") or not status.isdigit():
            raise AdminError("what answers there does not speak HTTP")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        length = fields.get("content-length", "")
        self.is_over = fields.get("connection", "").lower() == "close" or version == "HTTP/1.0"
        if "transfer-encoding" in fields or not length.isdigit() or int(length) > MAX_ANSWER:
            raise AdminError("what answers there is no admin listener of Larder")
        return int(status), read_answer(int(status), await self._reader.readexactly(int(length)))

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass
