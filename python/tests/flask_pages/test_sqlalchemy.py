"""Purges go after the commit, and not at all after a rollback."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import larder
import larder.aio
import larder.sqlalchemy
import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from larder.flask import Larder, cache_for, tag_for
from sqlalchemy import create_engine, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Line(Base):
    __tablename__ = "line"
    order: Mapped[int] = mapped_column("order_id", primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Manager(Person):
    __mapper_args__ = {"polymorphic_identity": "manager"}


@pytest.fixture
def session(admin: Any) -> Any:
    larder.configure(admin.address)
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Item(id=7, name="old"))
        session.commit()
        yield session


def sent(admin: Any) -> list[str]:
    assert larder.flush()
    return [asked["tag"] for asked in admin.asked]


def test_a_purge_goes_after_the_commit(admin: Any, session: Session) -> None:
    session.get_one(Item, 7).name = "new"
    larder.purge(tag=tag_for(Item, 7), session=session)
    session.flush()
    assert sent(admin) == []
    session.commit()
    assert sent(admin) == ["item:7"]


@pytest.mark.parametrize("how", ["rollback", "close", "exception", "flushed", "core", "core and close"])
def test_a_rollback_purges_nothing(admin: Any, session: Session, how: str) -> None:
    if how.startswith("core"):
        session.execute(update(Item).values(name="new"))
    else:
        session.get_one(Item, 7).name = "new"
    if how == "flushed":
        session.flush()
    larder.purge(tag="dropped", session=session)
    if how.endswith("close"):
        session.close()
    elif how == "exception":
        with pytest.raises(Exception, match="no such table"):
            session.execute(text("UPDATE missing SET a = 1"))
        session.rollback()
    else:
        session.rollback()
    assert sent(admin) == []
    # Later transactions have nothing to do with it.
    session.get_one(Item, 7).name = "later"
    larder.purge(tag="later", session=session)
    session.commit()
    assert sent(admin) == ["later"]


def test_a_rollback_also_drops_what_was_asked_for_before_the_change(admin: Any, session: Session) -> None:
    item = session.get_one(Item, 7)
    larder.purge(tag="dropped", session=session)
    item.name = "new"
    session.rollback()
    assert sent(admin) == []


def test_savepoints_keep_and_drop_their_own(admin: Any, session: Session) -> None:
    with session.begin_nested():
        session.get_one(Item, 7).name = "one"
        larder.purge(tag="kept", session=session)
    savepoint = session.begin_nested()
    session.get_one(Item, 7).name = "two"
    larder.purge(tag="dropped", session=session)
    with session.begin_nested():
        session.get_one(Item, 7).name = "three"
        larder.purge(tag="dropped too", session=session)
    savepoint.rollback()
    session.get_one(Item, 7).name = "four"
    larder.purge(tag="outer", session=session)
    assert sent(admin) == []
    session.commit()
    assert sent(admin) == ["kept", "outer"]


def test_a_savepoint_that_is_kept_falls_with_the_transaction_around_it(admin: Any, session: Session) -> None:
    with session.begin_nested():
        session.get_one(Item, 7).name = "one"
        larder.purge(tag="dropped", session=session)
    session.rollback()
    assert sent(admin) == []


def test_outside_of_a_transaction_it_goes_at_once(admin: Any, session: Session) -> None:
    assert not session.in_transaction()
    larder.purge(tag="now", session=session)
    assert sent(admin) == ["now"]


def test_a_purge_before_the_first_use_of_the_session_goes_again_after_the_commit(admin: Any, session: Session) -> None:
    larder.purge(tag="early", session=session)
    larder.purge(tag="early-too", session=session)
    assert sent(admin) == ["early", "early-too"]
    # A page may be stored again here, as it was before the change.
    session.get_one(Item, 7).name = "new"
    larder.purge(tag="inside", session=session)
    session.rollback()
    assert len(sent(admin)) == 2
    session.get_one(Item, 7).name = "new"
    session.commit()
    assert sent(admin)[2:] == ["early", "early-too"]
    session.get_one(Item, 7).name = "newer"
    session.commit()
    assert len(sent(admin)) == 4, "once"


def test_what_goes_again_is_bounded(admin: Any, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(larder.sqlalchemy, "_MOST_AGAIN", 2)
    for name in ("a", "b", "c"):
        larder.purge(tag=name, session=session)
    assert sent(admin) == ["a", "b", "c"]
    session.get_one(Item, 7).name = "new"
    session.commit()
    assert sent(admin)[3:] == ["b", "c"]


def test_a_purge_after_the_commit_is_not_lost_in_a_transaction_that_only_reads(admin: Any, session: Session) -> None:
    item = session.get_one(Item, 7)
    item.name = "new"
    session.commit()
    assert item.name == "new"  # reads it anew, and so begins a transaction
    assert session.in_transaction()
    larder.purge(tag=tag_for(item), session=session)
    session.close()
    assert sent(admin) == ["item:7"]


def test_purge_now_does_not_wait_for_the_commit(admin: Any, session: Session) -> None:
    session.get_one(Item, 7).name = "new"
    larder.purge_now(tag="now")
    assert sent(admin) == ["now"]


def test_scoped_and_async_sessions_are_taken(admin: Any, session: Session) -> None:
    scoped = scoped_session(sessionmaker(session.get_bind()))
    scoped.add(Item(id=8, name="scoped"))
    larder.purge(tag="scoped", session=scoped)
    assert sent(admin) == []
    scoped.commit()
    assert sent(admin) == ["scoped"]
    scoped.remove()

    class Async:  # what AsyncSession has: it needs a driver of its own to be real
        sync_session = session

    async def work() -> None:
        session.add(Item(id=9, name="async"))
        await larder.aio.purge(tag="async", session=Async())

    asyncio.run(work())
    assert sent(admin) == ["scoped"]
    session.commit()
    assert sent(admin) == ["scoped", "async"]
    with pytest.raises(TypeError, match="no SQLAlchemy session"):
        larder.purge(tag="x", session=object())


def test_tags_of_mapped_models(session: Session) -> None:
    item = session.get_one(Item, 7)
    session.commit()
    assert tag_for(item) == tag_for(Item, 7) == "item:7"
    assert not session.in_transaction(), "a tag of a row that is known needs no query"
    assert tag_for(Line(order=1, number=2)) == tag_for(Line, 1, 2) == "line:1:2"
    assert tag_for(Manager(id=3)) == tag_for(Person, 3) == tag_for(Manager, 3) == "person:3"
    with pytest.raises(ValueError, match="no primary key yet"):
        tag_for(Item(name="new"))


# ---- Flask-SQLAlchemy ----


@pytest.fixture
def shop(admin: Any) -> Any:
    app = Flask(__name__)
    app.config.update(LARDER_ADMIN=admin.address, SQLALCHEMY_DATABASE_URI="sqlite://")
    db: Any = SQLAlchemy(app)
    Larder(app)

    class Product(db.Model):  # type: ignore[misc]
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String)

    with app.app_context():
        db.create_all()
        db.session.add(Product(id=1, name="old"))
        db.session.commit()

    @app.post("/<how>")
    def change(how: str) -> str:
        if how.startswith("first"):
            larder.purge(tag="product:1")
            admin.wait_for(1)
        product = db.session.get(Product, 1)
        product.name = how
        if how == "first":
            db.session.commit()
        elif how == "early":
            larder.purge(tag=tag_for(product))
            assert not admin.asked
            db.session.commit()
        elif how == "late":
            db.session.commit()
            larder.purge(tag=tag_for(product))
        elif how == "refreshed":
            db.session.commit()
            assert product.name == "refreshed"
            larder.purge(tag=tag_for(product))
        elif how == "forgotten":
            larder.purge(tag=tag_for(product))
        elif how == "failing":
            larder.purge(tag=tag_for(product))
            raise RuntimeError("a bug before the commit")
        return how

    @app.get("/")
    @cache_for(minutes=5, tags=lambda: db.session.query(Product).all())
    def page() -> str:
        return "products"

    return app


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("early", 1),
        ("late", 1),
        ("refreshed", 1),
        ("first", 2),
        ("first, never committed", 1),
        ("forgotten", 0),
        ("failing", 0),
    ],
)
def test_flask_sqlalchemy_needs_no_word(admin: Any, shop: Flask, how: str, expected: int) -> None:
    shop.test_client().post(f"/{how}")
    # The answer came after the purge.
    assert admin.asked == [{"tag": "product:1"}] * expected


@pytest.mark.parametrize(("is_debug", "level"), [(True, logging.WARNING), (False, logging.DEBUG)])
def test_a_forgotten_commit_is_told(
    admin: Any, shop: Flask, caplog: pytest.LogCaptureFixture, is_debug: bool, level: int
) -> None:
    shop.debug = is_debug
    with caplog.at_level(logging.DEBUG, "larder"):
        shop.test_client().post("/forgotten")
    told = [(record.levelno, record.message) for record in caplog.records if "dropped" in record.message]
    assert told == [(level, "a purge of what is tagged product:1 was dropped: its session was not committed")]


def test_an_async_purge_in_a_request_is_made_before_it_returns(admin: Any, shop: Flask) -> None:
    @shop.get("/async")
    def asynchronous() -> str:
        asyncio.run(larder.aio.purge(tag="a"))
        assert admin.asked == [{"tag": "a"}]
        return "done"

    shop.testing = True
    assert shop.test_client().get("/async").text == "done"


def test_a_page_that_was_stored_between_purge_and_commit_does_not_stay(start_site: Any, tmp_path: Any) -> None:
    site = start_site(
        """
import threading, larder
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from larder.flask import Larder, cache_for
app = Flask(__name__)
app.config.update(SQLALCHEMY_DATABASE_URI="sqlite:///{database}")
db = SQLAlchemy(app)
Larder(app)
purged, go_on = threading.Event(), threading.Event()
class Item(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    n = db.Column(db.Integer)
with app.app_context():
    db.create_all()
    db.session.add(Item(id=1, n=1))
    db.session.commit()
@app.get("/")
@cache_for(minutes=5, tags=["outer"])
def page():
    return str(db.session.get(Item, 1).n)
@app.post("/change")
def change():
    larder.purge(tag="outer")
    larder.flush()
    purged.set()
    go_on.wait(20)
    db.session.get(Item, 1).n += 1
    db.session.commit()
    return "changed"
@app.get("/purged")
def wait():
    return str(purged.wait(20))
@app.get("/go-on")
def release():
    go_on.set()
    return ""
""".replace("{database}", str(tmp_path / "shop.db")),
        workers=1,
    )
    site.ask("/")
    change = threading.Thread(target=site.ask, args=("/change", "POST", ""))
    change.start()
    assert site.ask("/purged").text == "True"
    assert site.ask("/").text == "1" and site.ask("/").is_hit, "as it was before the commit"
    site.ask("/go-on")
    change.join(20)
    assert site.ask("/").text == "2"


def test_models_are_tags(shop: Flask) -> None:
    assert shop.test_client().get("/").headers["Cache-Tag"] == "product:1"


def test_plain_sqlalchemy_names_its_session_once(admin: Any, session: Session) -> None:
    app = Flask(__name__)
    app.config.update(LARDER_ADMIN=admin.address)
    Larder(app, session=lambda: session)

    @app.post("/")
    def change() -> str:
        session.get_one(Item, 7).name = "new"
        larder.purge(tag="a")
        assert not admin.asked
        session.commit()
        return "done"

    assert app.test_client().post("/").text == "done"
    assert admin.asked == [{"tag": "a"}]
