"""Purges after the commit of a SQLAlchemy session, and none after its rollback.

    with Session() as session:
        session.get(Item, 7).price = 5
        larder.purge(tag="item:7", session=session)
        session.commit()                                # now it is purged

Under Flask-SQLAlchemy `db.session` is found by itself. An `AsyncSession` and a `scoped_session` are taken as well.

A purge belongs to the innermost transaction of the session: a savepoint's rollback drops what was asked for since it
began, its release hands it to the transaction around it. A transaction that ends without having written anything
(`session.close()` after reading) has nothing to roll back, so its purges are sent. Where it is not known whether
something was written, a purge too many is sent rather than one too few.

A purge that finds the session in no transaction may come after the commit, or before the first use of the session. So
it is sent at once, and again after the session's next commit.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Sequence

from sqlalchemy import TextClause, event
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction

from ._admin import Purge
from ._purging import Client, current_context, send_collected

logger = logging.getLogger("larder")

# Under these names a session's `info` carries what is known of it.
_KEY = "larder.levels"
_BEGINS_BY_WRITING = "larder.begins_by_writing"
_AGAIN = "larder.again"

# So many purges are kept to be sent again. Of more, the newest.
_MOST_AGAIN = 10_000


@dataclass
class _Level:
    """The purges of one transaction or savepoint of a session."""

    wrote: bool = False
    committed: bool = False
    rolled_back: bool = False
    purges: list[tuple[Client, Purge]] = field(default_factory=list)


def wait_for_commit(session: Any, asked: Sequence[tuple[Client, Purge]]) -> bool:
    """Holds purges for the current transaction of `session`.

    Returns False if it is in none: they have to be sent at once. They are sent again after the next commit.
    """
    found = session_of(session)
    level = _level(found)
    if level is None:
        again: dict[tuple[Client, Purge], None] = found.info.setdefault(_AGAIN, {})
        again.update(dict.fromkeys(asked))
        while len(again) > _MOST_AGAIN:
            del again[next(iter(again))]
        return False
    if found.new or found.deleted or any(found.is_modified(changed) for changed in found.dirty):
        level.wrote = True
    level.purges.extend(asked)
    return True


def session_of(session: Any) -> Session:
    """Returns the `Session` behind a `scoped_session` or an `AsyncSession`."""
    if isinstance(session, Session):
        return session
    behind = getattr(session, "sync_session", None)
    if behind is None and callable(session):
        behind = session()
        behind = getattr(behind, "sync_session", behind)
    if isinstance(behind, Session):
        return behind
    raise TypeError(f"session={session!r} is no SQLAlchemy session")


def _levels(session: Session) -> dict[SessionTransaction, _Level]:
    levels: dict[SessionTransaction, _Level] = session.info.setdefault(_KEY, {})
    return levels


def _transaction(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def _level(session: Session) -> _Level | None:
    """Returns the level of the current transaction; `None` if there is none."""
    transaction = _transaction(session)
    if transaction is None:
        return None
    return _levels(session).setdefault(transaction, _Level())


@event.listens_for(Session, "after_flush")
def _after_flush(session: Session, _flush_context: object) -> None:
    level = _level(session)
    if level is not None:
        level.wrote = True


@event.listens_for(Session, "do_orm_execute")
def _on_execute(state: ORMExecuteState) -> None:
    statement = state.statement
    is_text = isinstance(statement, TextClause) and statement.text.lstrip()[:6].lower() != "select"
    writes = not state.is_select and (is_text or not isinstance(statement, TextClause))
    session = state.session
    # The statement that begins a transaction is told of before the transaction is.
    session.info[_BEGINS_BY_WRITING] = writes
    level = _level(session) if writes else None
    if level is not None:
        level.wrote = True


@event.listens_for(Session, "after_begin")
def _after_begin(session: Session, _transaction: SessionTransaction, _connection: object) -> None:
    if session.info.pop(_BEGINS_BY_WRITING, False):
        level = _level(session)
        if level is not None:
            level.wrote = True


@event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    level = _level(session)
    if level is not None:
        level.committed = True


@event.listens_for(Session, "after_rollback")
def _after_rollback(session: Session) -> None:
    transaction = _transaction(session)
    level = _levels(session).get(transaction) if transaction is not None else None
    if level is not None:
        level.rolled_back = True


@event.listens_for(Session, "after_transaction_end")
def _after_end(session: Session, transaction: SessionTransaction) -> None:
    levels = _levels(session)
    level = levels.pop(transaction, None)
    if level is None:
        return
    if level.rolled_back or (level.wrote and not level.committed):
        _tell_of_dropped(level)
        return
    parent = transaction.parent
    if parent is None:
        again = session.info.pop(_AGAIN, {}) if level.committed else {}
        send_collected([*again, *level.purges])
        return
    outer = levels.setdefault(parent, _Level())
    outer.wrote = outer.wrote or level.wrote
    outer.purges.extend(level.purges)


def _tell_of_dropped(level: _Level) -> None:
    """Logs that purges are not sent: as a warning where a developer may have forgotten `commit()`."""
    if not level.purges:
        return
    is_forgotten = not level.rolled_back and current_context().is_debug
    what = ", ".join(dict.fromkeys(str(purge) for _, purge in level.purges))
    why = "its transaction was rolled back" if level.rolled_back else "its session was not committed"
    logger.log(logging.WARNING if is_forgotten else logging.DEBUG, "a purge of %s was dropped: %s", what, why)
