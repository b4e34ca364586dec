"""Makes tags: the words that pages are purged by.

A tag travels in the field `Cache-Tag`, where commas and white space separate tags. What a field can't carry is
escaped, in the same way where pages are tagged and where they are purged, so that the two always meet.
"""

from __future__ import annotations

import hashlib
from typing import Any, Iterable, cast
from urllib.parse import quote

#: The most tags that Larder keeps of a page. It does not store a page with more.
MAX_TAGS = 1000

#: The longest tag in bytes that Larder keeps.
MAX_TAG_LENGTH = 1024

#: The most bytes of all of a page's tags: well below what Larder takes as a response's head (`upstream.max_header_size`).
MAX_TAGS_LENGTH = 64 * 1024

# Characters that are left as they are: every visible character of ASCII but the comma. "%" stays, so that an escaped tag is itself.
_SAFE = "!\"#$%&'()*+-./:;<=>?@[\\]^_`{|}~"


def tag(text: str) -> str:
    """Returns `text` as `Cache-Tag` carries it: escapes separators and what is not ASCII, and shortens by a hash."""
    escaped = quote(text.strip(), safe=_SAFE, errors="surrogatepass")
    if not escaped:
        raise ValueError("a tag has at least one character")
    if len(escaped) > MAX_TAG_LENGTH:
        digest = hashlib.sha256(escaped.encode()).hexdigest()
        return f"{escaped[: MAX_TAG_LENGTH - 65]}-{digest}"
    return escaped


def tag_for(model: Any, *key: object) -> str:
    """Returns a stable tag for a row, or for a whole table.

    >>> tag_for(Item)         # 'item'       every page that lists items
    >>> tag_for(Item, 7)      # 'item:7'     the item with this primary key
    >>> tag_for(item)         # 'item:7'     the same, of an instance
    >>> tag_for(Line, 7, 2)   # 'line:7:2'   a primary key of two columns

    `model` is a class or instance that SQLAlchemy maps. Any other class or object will do if it has `__tablename__`,
    and instances `id` or what `__primary_key__` names. A subclass has the tags of the table that its primary key is
    in. Raises `ValueError` for an instance without a primary key: flush or commit it first.
    """
    is_class = isinstance(model, type)
    cls: type[Any] = model if is_class else type(model)
    name, columns = _table_of(cls)
    if is_class:
        values: Iterable[object] = key
    elif key:
        raise ValueError("tag_for takes a primary key beside a class, not beside an instance")
    else:
        values = _key_of(model, columns)
    values = list(values)
    if any(value is None for value in values):
        raise ValueError(f"this {cls.__name__} has no primary key yet, so it has no tag: flush or commit it first")
    return tag(":".join([_part(name), *(_part(str(value)) for value in values)]))


def _part(text: str) -> str:
    """Escapes the separator of a tag's parts, so that two keys never make one tag."""
    return text.replace("%", "%25").replace(":", "%3A")


def _table_of(cls: type[Any]) -> tuple[str, tuple[str, ...]]:
    """Returns the table's name, and the attributes that are its primary key."""
    mapper = getattr(cls, "__mapper__", None)
    if mapper is not None:
        base = mapper.base_mapper
        attributes = tuple(base.get_property_by_column(column).key for column in base.primary_key)
        return cast(str, getattr(base.local_table, "fullname", str(base.local_table))), attributes
    name = getattr(cls, "__tablename__", None)
    if not isinstance(name, str):
        raise TypeError(f"{cls.__name__} has no __tablename__, so tag_for can't name it: write the tag as text")
    return name, tuple(getattr(cls, "__primary_key__", ("id",)))


def _key_of(instance: object, attributes: tuple[str, ...]) -> list[object]:
    """Returns an instance's primary key, without a query where SQLAlchemy knows it already."""
    state = getattr(instance, "_sa_instance_state", None)
    identity = getattr(state, "identity", None)
    if identity is not None:
        return list(identity)
    return [getattr(instance, attribute, None) for attribute in attributes]
