"""The pages of one visitor: the greeting, the cart, log-in, orders. Larder keeps none of them."""

from __future__ import annotations

from flask import Blueprint, abort, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue
from larder.flask import no_cache, purge, tag_for
from sqlalchemy import select, update

from .memo import forget
from .models import Item, Order, database

blueprint = Blueprint("visitor", __name__)

MAX_NOTE = 80
MAX_LINES = 20


def cart() -> dict[str, list[object]]:
    """The cart of the visitor, from the session: a count and a note by the number of the item."""
    found = session.get("cart")
    return dict(found) if isinstance(found, dict) else {}


@blueprint.get("/greeting")
@no_cache
def greeting() -> ResponseReturnValue:
    """Tells who is logged in, and how much is in the cart. Every page asks for it."""
    return {"user": session.get("user"), "cart": len(cart())}


@blueprint.get("/login")
@no_cache
def login_form() -> ResponseReturnValue:
    return render_template("login.html")


@blueprint.post("/login")
@no_cache
def login() -> ResponseReturnValue:
    user = request.form.get("user", "").strip()
    if not user or len(user) > 40:
        abort(400, "A name has 1 to 40 characters.")
    session["user"] = user
    return redirect(url_for("pages.index"), 303)


@blueprint.post("/logout")
@no_cache
def logout() -> ResponseReturnValue:
    session.clear()
    return redirect(url_for("pages.index"), 303)


@blueprint.get("/cart")
@no_cache
def show_cart() -> ResponseReturnValue:
    lines = cart()
    items = database().scalars(select(Item).where(Item.id.in_(map(int, lines))).order_by(Item.id)).all()
    return render_template("cart.html", user=session.get("user"), lines=[(item, *lines[str(item.id)]) for item in items])


@blueprint.post("/cart/<int:number>")
@no_cache
def add(number: int) -> ResponseReturnValue:
    if database().get(Item, number) is None:
        abort(404)
    lines = cart()
    count = int(str(lines.get(str(number), [0])[0])) + 1
    if len(lines) >= MAX_LINES and count == 1:
        abort(400, f"A cart has at most {MAX_LINES} lines.")
    lines[str(number)] = [count, request.form.get("note", "")[:MAX_NOTE]]
    session["cart"] = lines
    return redirect(url_for(".show_cart"), 303)


@blueprint.post("/cart/<int:number>/remove")
@no_cache
def remove(number: int) -> ResponseReturnValue:
    lines = cart()
    lines.pop(str(number), None)
    session["cart"] = lines
    return redirect(url_for(".show_cart"), 303)


@blueprint.post("/order")
@no_cache
def order() -> ResponseReturnValue:
    """Buys what is in the cart. The pages of these items show another stock once this is committed."""
    user = session.get("user")
    if not user:
        abort(403, "Log in to order.")
    db = database()
    for number, (count, _note) in cart().items():
        sold = db.execute(
            update(Item).where(Item.id == int(number), Item.stock >= count).values(stock=Item.stock - count)
        )
        if sold.rowcount != 1:  # type: ignore[attr-defined]
            db.rollback()
            abort(409, "An item is sold out.")
        db.add(Order(user=user, item_id=int(number), count=count))
    db.commit()
    # First the value, then the pages that it is in: a page that is made in between has the old one, and is purged.
    for number in cart():
        forget(int(number))
        purge(tag=tag_for(Item, number))
    session["cart"] = {}
    return redirect(url_for(".show_cart"), 303)
