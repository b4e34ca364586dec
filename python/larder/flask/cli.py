"""`flask larder purge|explain|check`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any, Callable, Iterator

import click
from flask import Flask, current_app
from flask.cli import AppGroup

from .._admin import Address, AdminError, Answer, Connection, PurgeError
from .._purging import asked_for
from ._extension import DEFAULTS, Connected, connected
from ._policy import MARK, Policy

commands = AppGroup("larder", help="Purge, explain and check pages in the Larder before this application.")


def _connected() -> Connected:
    found = connected()
    if found is None:
        raise click.ClickException("Larder(app) was not called for this application")
    return found


def _connections(found: Connected) -> list[tuple[Address, Connection]]:
    try:
        client = found.new_client()
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if not client.addresses:
        raise click.ClickException('LARDER_ADMIN is "off", so there is no Larder to ask')
    return [(address, Connection(address, client.token, client.options.timeout)) for address in client.addresses]


@commands.command("purge")
@click.argument("url", nargs=-1)
@click.option("--prefix", multiple=True, help="What begins so: http://host/path, or a path of any host.")
@click.option("--tag", multiple=True, help="What has this tag.")
@click.option("--all", "everything", is_flag=True, help="Everything.")
@click.option("--soft", is_flag=True, help="Only make stale: validated before its next use.")
@click.option("--exact-scheme", is_flag=True, help="Do not purge http with https, and the reverse.")
@click.option("--wait", type=float, default=None, help="Return so many seconds after the purge is written.")
def purge_command(
    url: tuple[str, ...],
    prefix: tuple[str, ...],
    tag: tuple[str, ...],
    everything: bool,
    soft: bool,
    exact_scheme: bool,
    wait: float | None,
) -> None:
    """Purge URLs, and say what each Larder answered. A path is below LARDER_SITE."""
    found = _connected()
    _connections(found)
    if everything and (url or prefix or tag):
        raise click.UsageError("--all purges everything: leave out the URLs, --prefix and --tag")
    if not (everything or url or prefix or tag):
        raise click.UsageError("purge what? Give a URL, --prefix, --tag or --all")
    if not all(word.strip() for word in tag):
        # `larder.purge` leaves it out, so as not to fail a request. Here a script has to hear of it.
        raise click.UsageError("--tag is empty: it names nothing to purge")
    scheme: Any = "exact" if exact_scheme else "both"
    try:
        asked = asked_for(found, url or None, prefix or None, tag or None, everything, soft, scheme)
        answers = found.new_client().send_now(asked, wait)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except PurgeError as error:
        for answer in error.answers:
            click.echo(_said(answer))
        raise click.ClickException(str(error)) from None
    for answer in answers:
        click.echo(_said(answer))


def _said(answer: Answer) -> str:
    held = answer.held
    if held is None:
        return f"purged {answer.purge} at {answer.address}"
    tiers = [f"{tier} under {scheme}" for scheme, by in held.items() for tier, has in by.items() if has]
    return f"purged {answer.purge} at {answer.address} (held in {', '.join(tiers)})" if tiers else (
        f"purged {answer.purge} at {answer.address} (nothing was held)"
    )


@commands.command("explain")
@click.argument("url")
@click.option("-H", "--header", multiple=True, help='A field of the request, "Name: value"; repeatable.')
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain_command(url: str, header: tuple[str, ...], as_json: bool) -> None:
    """Say why URL is a hit or a miss. A path is below LARDER_SITE. The application is not asked."""
    found = _connected()
    try:
        absolute = found.absolute(url) if url.startswith("/") else url
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    question = json.dumps({"url": absolute, "fields": list(header)}).encode()
    is_first = True
    for address, connection in _connections(found):
        try:
            status, told = connection.ask("POST", "/explain", question)
        except AdminError as error:
            raise click.ClickException(f"{address} can't be asked: {error}") from None
        if status != 200:
            raise click.ClickException(f"{address} says: {told.get('error', f'status {status}')}")
        if as_json:
            click.echo(json.dumps({"larder": str(address), **told}))
            continue
        click.echo(f"{'' if is_first else chr(10)}{absolute} at {address}")
        is_first = False
        for line in told.get("lines", []):
            click.echo(line)


# ---- check ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """A sentence about the application. A `mistake` makes `check` fail."""

    text: str
    is_mistake: bool = False


@commands.command("check")
def check_command() -> None:
    """Look at the configuration, the routes and the Larders, and say what is wrong and what to do."""
    found = _connected()
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    findings = [*check_configuration(app), *check_larders(found)]
    click.echo("Routes")
    for line, about in routes(app):
        click.echo(f"  {line}")
        findings += about
    if findings:
        click.echo("\nFindings")
    for finding in findings:
        click.echo(f"  {'mistake' if finding.is_mistake else 'note'}: {finding.text}")
    if any(finding.is_mistake for finding in findings):
        raise SystemExit(1)
    click.echo("\nok")


def check_configuration(app: Flask) -> Iterator[Finding]:
    """Looks at the application's settings."""
    config = app.config
    for name in sorted(config):
        if name.startswith("LARDER_") and name not in DEFAULTS:
            yield Finding(f"{name} is no setting: there are {', '.join(DEFAULTS)}", True)
    field = config["LARDER_FIELD"]
    if field not in ("CDN-Cache-Control", "Larder-Cache-Control"):
        yield Finding(f'LARDER_FIELD is "{field}": Larder obeys CDN-Cache-Control or Larder-Cache-Control', True)
    site = str(config["LARDER_SITE"])
    if site and not site.startswith(("http://", "https://")):
        yield Finding(f'LARDER_SITE is "{site}": write it with its scheme, https://shop.example', True)
    if config.get("SEND_FILE_MAX_AGE_DEFAULT") is None and app.has_static_folder:
        yield Finding(
            "static files say no-cache, so each request for one reaches Flask: set SEND_FILE_MAX_AGE_DEFAULT, or give "
            f'Larder a [[rule]] with path = "{app.static_url_path}/*" and override_timeout'
        )
    if app.debug:
        yield Finding("the application is in debug: pages with Flask-DebugToolbar are not shared")


def check_larders(found: Connected) -> Iterator[Finding]:
    """Asks every admin listener, as a purge would."""
    try:
        client = found.new_client()
    except ValueError as error:
        yield Finding(str(error), True)
        return
    if not client.addresses:
        yield Finding('LARDER_ADMIN is "off": nothing is purged')
    for address in client.addresses:
        if client.token and not address.is_local:
            yield Finding(f"the token for {address} passes unencrypted: use a unix socket, or a private network")
        connection = Connection(address, client.token, client.options.timeout)
        try:
            # A question that changes nothing, and that needs the token as a purge does.
            status, told = connection.ask("POST", "/explain", b'{"url": "http://localhost/"}')
        except AdminError as error:
            yield Finding(
                f"no Larder at {address}: {error}. Start it, or set LARDER_ADMIN to its admin.listen; "
                "until then purges fail",
                True,
            )
            continue
        finally:
            connection.close()
        if status == 401:
            yield Finding(f"{address} wants a token: set LARDER_TOKEN to its admin.token", True)
        elif status != 200 or "verdict" not in told:
            yield Finding(f"{address} does not answer as a Larder: {told.get('error', f'status {status}')}", True)


def routes(app: Flask) -> Iterator[tuple[str, list[Finding]]]:
    """Returns a line for each route, and what there is to say of it."""
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: (rule.rule, rule.endpoint)):
        view = app.view_functions.get(rule.endpoint)
        if view is None or rule.endpoint == "static":
            continue
        methods = sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
        marks = list(_marks(view))
        about: list[Finding] = []
        if not marks:
            state = "not marked"
        elif None in marks:
            state = "no_cache"
        else:
            state, about = "cache_for", list(_doubts(view, rule.rule, methods))
        yield f"{rule.rule:<30} {' '.join(methods):<12} {state:<11} {rule.endpoint}", about


def _functions(view: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Returns a view and all that its decorators wrap, and the methods of a view class."""
    seen: set[int] = set()
    waiting: list[Any] = [view]
    while waiting:
        function = waiting.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        yield function
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is not None:
            waiting.append(wrapped)
        cls = getattr(function, "view_class", None)
        if cls is not None:
            waiting += [method for name in ("get", "dispatch_request") if (method := getattr(cls, name, None))]


def _marks(view: Callable[..., Any]) -> Iterator[object]:
    for function in _functions(view):
        yield from getattr(function, MARK, [])


#: Names that a view uses to look at its visitor. With `vary=["Cookie"]`, those of the first table keep nobody's page
#: from being kept for that visitor.
_BY_COOKIE = {
    "session": "the session",
    "current_user": "Flask-Login's current_user",
}
_VISITOR = {
    "flash": "flash messages",
    "get_flashed_messages": "flash messages",
    "set_cookie": "a cookie that it sets",
    "remote_addr": "the visitor's address",
    "access_route": "the visitor's address",
    "remote_user": "the visitor's name",
}


def _doubts(view: Callable[..., Any], path: str, methods: list[str]) -> Iterator[Finding]:
    """Looks for what keeps a marked page from being shared, as far as the code shows it."""
    if "GET" not in methods:
        yield Finding(f"{path} is marked with cache_for, but only GET and HEAD are kept: take the mark away")
    told: set[str] = set()
    varies_by_cookie = any(isinstance(mark, Policy) and mark.varies_by_cookie for mark in _marks(view))
    names = _VISITOR if varies_by_cookie else {**_BY_COOKIE, **_VISITOR}
    for function in _functions(view):
        code = getattr(function, "__code__", None)
        if code is None:
            continue
        if f"{os.sep}flask_login{os.sep}" in code.co_filename and "login" not in told:
            told.add("login")
            why = "is for users who are logged in: it is never shared. Use @no_cache"
            yield Finding(f"{path} is marked with cache_for, and {why}")
        for name, what in names.items():
            if name in code.co_names and what not in told and f"{os.sep}site-packages{os.sep}" not in code.co_filename:
                told.add(what)
                yield Finding(
                    f"{path} is marked with cache_for, and uses {what} ({code.co_filename}:{code.co_firstlineno}): "
                    "where it does, the page is not shared"
                )
