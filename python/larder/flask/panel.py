"""A panel for Flask-DebugToolbar: what the page says of caching, its tags, and what it purges.

    app.config["DEBUG_TB_PANELS"] = (*app.config["DEBUG_TB_PANELS"], "larder.flask.panel.LarderPanel")

It shows what the page would say without the toolbar: with it, the page is kept by nobody. What became of a page is
in `Cache-Status`, which Larder adds on the way to the browser. So the browser asks for it, at the press of a button.
"""

from __future__ import annotations

from typing import Any, Iterable

from flask import Response, current_app
from flask_debugtoolbar.panels import DebugPanel
from markupsafe import Markup

from ._extension import connected
from ._finish import Settings, preview
from ._state import state_of

#: The fields that say something of caching.
_FIELDS = ("CDN-Cache-Control", "Larder-Cache-Control", "Cache-Control", "Cache-Tag", "Vary", "ETag", "Expires")

# Asks for the page's head only, of which Larder tells what it has of the page.
_ASK = Markup(
    """<p><button type="button" onclick="fetch(location.href, {method: 'HEAD', cache: 'no-store'}).then(function (r) {
      this.nextElementSibling.textContent = r.headers.get('Cache-Status') || 'no Cache-Status: no Larder on the way';
    }.bind(this))">Ask for Cache-Status</button> <code></code></p>"""
)


class LarderPanel(DebugPanel):
    """The panel."""

    name = "Larder"
    has_content = True

    def __init__(self, jinja_env: Any, context: dict[str, Any] | None = None) -> None:
        super().__init__(jinja_env, context)
        self._rows: list[tuple[str, str]] = []
        self._purges: list[str] = []
        self._told = "the page is not finished"

    def nav_title(self) -> str:
        return "Larder"

    def nav_subtitle(self) -> str:
        return self._told

    def title(self) -> str:
        return "Larder"

    def url(self) -> str:
        return ""

    def process_response(self, request: Any, response: Any) -> None:
        """Looks at the finished page, before the toolbar writes into it."""
        found = connected()
        state = state_of(request)
        if found is None or state is None or not isinstance(response, Response):
            self._told = "Larder(app) was not called"
            return
        app = current_app._get_current_object()  # type: ignore[attr-defined]
        told, trial = preview(app, state, response, Settings(app.config["LARDER_FIELD"]))
        self._rows = [(name, value) for name in _FIELDS for value in told.headers.getlist(name)]
        self._purges = [str(purge) for purge in state.purges]
        self._told = "everybody may have it" if trial.is_shared else trial.verdict or "left alone"

    def content(self) -> str:
        fields = _table("Field", "Value", self._rows)
        purges = _table("Purges that this request asked for", "", [(purge, "") for purge in self._purges])
        return Markup("<h4>{}</h4>{}{}{}").format(self._told, fields, purges if self._purges else "", _ASK)


def _table(first: str, second: str, rows: Iterable[tuple[str, str]]) -> Markup:
    lines = Markup("").join(Markup("<tr><td>{}</td><td>{}</td></tr>").format(*row) for row in rows)
    return Markup("<table><thead><tr><th>{}</th><th>{}</th></tr></thead><tbody>{}</tbody></table>").format(
        first, second, lines
    )
