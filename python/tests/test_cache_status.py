"""Reads Cache-Status."""

import pytest
from larder._cache_status import CacheStatus


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("larder; hit; ttl=59; detail=memory", {"hit": True, "ttl": 59, "detail": "memory"}),
        ("larder; fwd=uri-miss; stored; ttl=59", {"fwd": "uri-miss", "stored": True, "ttl": 59}),
        ("larder; fwd=stale; fwd-status=304; stored; collapsed; ttl=-3", {"fwd": "stale", "stored": True, "collapsed": True, "ttl": -3}),
        ('larder; fwd=bypass; key="a; hit, b"; detail=no-store', {"fwd": "bypass", "detail": "no-store"}),
        ("nginx; hit, larder; fwd=miss", {"fwd": "miss"}),
        ("", {}),
    ],
)
def test_each_part_is_read(text: str, expected: dict[str, object]) -> None:
    assert CacheStatus.parse(text) == CacheStatus(text, **expected)  # type: ignore[arg-type]
