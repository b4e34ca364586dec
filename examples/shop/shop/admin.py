"""The admin's page: edits an item, and purges what shows it."""

from __future__ import annotations

import hmac
from functools import wraps
from typing import Callable, ParamSpec, TypeVar

from flask import Blueprint, abort, current_app, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue
from larder.flask import no_cache, purge, tag_for
from sqlalchemy import select

from .models import COLOURS, Item, database

blueprint = Blueprint("admin", __name__, url_prefix="/admin")

P = ParamSpec("P")
R = TypeVar("R")


def for_admins(view: Callable[P, R]) -> Callable[P, R]:
    """Refuses everybody else."""

    @wraps(view)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not session.get("is_admin"):
            abort(403)
        return view(*args, **kwargs)

    return checked


@blueprint.post("/login")
@no_cache
def login() -> ResponseReturnValue:
    given, password = request.form.get("password", ""), str(current_app.config["SHOP_ADMIN_PASSWORD"])
    if not hmac.compare_digest(given.encode(), password.encode()):
        abort(403)
    session["is_admin"] = True
    return redirect(url_for(".items"), 303)


@blueprint.get("/")
@no_cache
@for_admins
def items() -> ResponseReturnValue:
    found = database().scalars(select(Item).order_by(Item.id)).all()
    return render_template("admin.html", items=found, colours=COLOURS)


@blueprint.post("/item/<int:number>")
@no_cache
@for_admins
def edit(number: int) -> ResponseReturnValue:
    """Changes an item. The purge is sent when the change is committed, and before this is answered."""
    db = database()
    found = db.get(Item, number, with_for_update=True)
    if found is None:
        abort(404)
    try:
        cents = int(request.form["cents"])
    except ValueError:
        abort(400, "The price is a number of cents.")
    found.cents = max(0, cents)
    found.colour = request.form.get("colour", found.colour)[:40]
    if found.colour not in COLOURS:
        abort(400, "There is no such colour.")
    found.version = Item.version + 1
    # Its own page, and every list.
    purge(tag=[tag_for(found), tag_for(Item)])
    db.commit()
    return redirect(url_for(".items"), 303)
