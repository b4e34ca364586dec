"""The database: items, and orders of them. SQLAlchemy without an extension of Flask."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, cast

from flask import Flask, current_app
from sqlalchemy import ForeignKey, create_engine, event, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker


class Base(DeclarativeBase):
    pass


class Item(Base):
    """Something to buy. `version` counts its edits, and is in the URL of its image."""

    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    colour: Mapped[str]
    cents: Mapped[int]
    stock: Mapped[int]
    version: Mapped[int] = mapped_column(default=1)

    @property
    def price(self) -> str:
        return f"{self.cents // 100}.{self.cents % 100:02} €"


class Order(Base):
    """A sale."""

    __tablename__ = "order"

    id: Mapped[int] = mapped_column(primary_key=True)
    user: Mapped[str]
    item_id: Mapped[int] = mapped_column(ForeignKey("item.id"))
    count: Mapped[int]


COLOURS = ("teal", "crimson", "goldenrod", "slateblue", "seagreen", "sienna")
NAMES = ("Lamp", "Chair", "Kettle", "Blanket", "Clock", "Basket", "Mirror", "Teapot", "Vase", "Stool", "Rug", "Shelf")


class Database:
    """The engine and the sessions of one application. Makes and fills the tables where they are not there yet."""

    def __init__(self, app: Flask) -> None:
        url = make_url(str(app.config["SHOP_DATABASE"]))
        if url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        self.engine = create_engine(url, connect_args={"timeout": 30})
        event.listen(self.engine, "connect", _prepare)
        # One session a thread; it is closed when the request ends.
        self.session: scoped_session[Session] = scoped_session(sessionmaker(self.engine))
        app.extensions["shop"] = self
        app.teardown_appcontext(self._close)
        Base.metadata.create_all(self.engine)
        with self.session() as session, session.begin():
            if not session.scalar(select(func.count()).select_from(Item)):
                session.add_all(_first_items())

    def _close(self, _error: BaseException | None) -> None:
        self.session.remove()


def _prepare(connection: Any, _record: object) -> None:
    """Lets readers go on while one writes."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")


def _first_items() -> list[Item]:
    return [
        Item(name=f"{COLOURS[n % len(COLOURS)].title()} {name.lower()}", colour=COLOURS[n % len(COLOURS)], cents=900 + 250 * n, stock=1000)
        for n, name in enumerate(NAMES)
    ]


def database() -> Session:
    """Returns the session of the current request."""
    found = cast(Database, current_app.extensions["shop"])
    return found.session()
