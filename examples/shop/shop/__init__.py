"""A small shop behind Larder: pages for everybody are kept, a visitor's own pages are not.

    larder dev 'shop:create_app()'

Each module shows one part: `pages` what is kept and for how long, `visitor` what never is, `admin` how an edit is
purged once it is committed, `memo` values that are kept by Flask-Caching, `models` the database.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from flask import Flask
from larder.flask import Larder

from . import admin, memo, models, pages, visitor


def create_app(settings: Mapping[str, object] | None = None) -> Flask:
    """Makes the application. `settings` override its configuration; `SHOP_DATABASE` is a URL of SQLAlchemy."""
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=os.environ.get("SECRET_KEY", "for development only"),
        SESSION_COOKIE_SAMESITE="Lax",
        SHOP_DATABASE=os.environ.get("SHOP_DATABASE", f"sqlite:///{app.instance_path}/shop.db"),
        SHOP_CACHE_URL=os.environ.get("SHOP_CACHE_URL", ""),
        SHOP_ADMIN_PASSWORD=os.environ.get("SHOP_ADMIN_PASSWORD", "for development only"),
    )
    app.config.update(settings or {})
    database = models.Database(app)
    # Purges that a view asks for wait for the commit of this session.
    Larder(app, session=database.session)
    memo.init_app(app)
    for blueprint in (pages.blueprint, visitor.blueprint, admin.blueprint):
        app.register_blueprint(blueprint)
    return app
