"""The pages for everybody: the list, an item, a search, images. Larder keeps them.

None of them reads the session: who is logged in, and what is in the cart, the browser asks `visitor.greeting` for.
"""

from __future__ import annotations

from flask import Blueprint, Response, abort, render_template, request
from flask.typing import ResponseReturnValue
from larder.flask import add_tags, cache_for, no_cache, tag_for
from sqlalchemy import select

from .memo import also_bought
from .models import Item, database

blueprint = Blueprint("pages", __name__)


@blueprint.get("/")
@cache_for(minutes=10, swr=30, sie=3600, tags=lambda: [tag_for(Item)])
def index() -> ResponseReturnValue:
    """The list of all items. The tag of the table purges it with every edit."""
    return render_template("index.html", items=database().scalars(select(Item).order_by(Item.id)).all())


@blueprint.get("/item/<int:number>")
@cache_for(minutes=10, sie=3600, tags=lambda: [tag_for(Item, (request.view_args or {})["number"])], statuses={404: 30})
def item(number: int) -> ResponseReturnValue:
    """One item. That there is none is kept as well, for half a minute."""
    found = database().get(Item, number)
    if found is None:
        abort(404)
    others = database().scalars(select(Item).where(Item.id.in_(also_bought(number))).order_by(Item.id)).all()
    # The page shows their names: a purge of one of them covers it.
    add_tags(*others)
    return render_template("item.html", item=found, others=others)


@blueprint.get("/search")
@cache_for(seconds=30)
def search() -> ResponseReturnValue:
    """Items by a word of their name. An edit of any of them purges it."""
    word = request.args.get("q", "")[:40]
    found = database().scalars(select(Item).where(Item.name.icontains(word, autoescape=True)).order_by(Item.id)).all()
    if not found:
        # Nonsense that somebody makes up is not worth a place.
        no_cache()
    # The table's tag as well: any item may become one of these.
    add_tags(tag_for(Item), *found)
    return render_template("index.html", items=found, word=word)


@blueprint.get("/image/<int:number>-<int:version>.svg")
@cache_for(days=30, browser=30 * 86400)
def image(number: int, version: int) -> ResponseReturnValue:
    """The picture of an item. An edit changes its URL, so even browsers may keep it."""
    found = database().get(Item, number)
    if found is None or found.version != version:
        abort(404)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100" role="img" aria-label="{found.colour}">'
        f'<circle cx="50" cy="50" r="40" fill="{found.colour}"/></svg>\n'
    )
    return Response(svg, mimetype="image/svg+xml")
