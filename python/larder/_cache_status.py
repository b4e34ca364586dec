"""Reads the value of Cache-Status (RFC 9211) as Larder writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass

# A parameter: its name, and a token, an integer or a quoted string.
_PARAMETER = re.compile(r'\s*;\s*([a-z*][a-z0-9_.*-]*)(?:=("(?:[^"\\]|\\.)*"|[^;,\s]*))?')


@dataclass(frozen=True)
class CacheStatus:
    """A parsed Cache-Status: tells what the cache did with a request."""

    text: str
    """The value as it was sent; empty where there was none."""
    hit: bool = False
    """Answered from the cache; the application was not asked."""
    fwd: str | None = None
    """The reason why the application was asked: `uri-miss`, `vary-miss`, `miss`, `stale`, `partial`, `request`, `bypass`, `method`."""
    stored: bool = False
    """The application's answer was kept."""
    collapsed: bool = False
    """The request shared the answer to another one."""
    ttl: int | None = None
    """The seconds for which the response is still fresh; negative where it is stale."""
    detail: str | None = None
    """The tier that answered, or what went wrong."""

    @classmethod
    def parse(cls, text: str) -> CacheStatus:
        """Reads Larder's own part of the value."""
        start = text.find("larder")
        if start < 0:
            return cls(text)
        found: dict[str, str] = {}
        at = start + len("larder")
        while parameter := _PARAMETER.match(text, at):
            found[parameter[1]] = (parameter[2] or "").strip('"')
            at = parameter.end()
        ttl = found.get("ttl")
        return cls(
            text,
            hit="hit" in found,
            fwd=found.get("fwd"),
            stored="stored" in found,
            collapsed="collapsed" in found,
            ttl=int(ttl) if ttl is not None else None,
            detail=found.get("detail"),
        )

    def __str__(self) -> str:
        return self.text
