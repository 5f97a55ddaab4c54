"""The console: a page on the admin listener that shows how the service fares, and looks up a profile by a typed key.

A browser stands between it and every page of the internet, so it answers to those names alone that nobody else can
have a browser take for ours, and to no other page's requests. Its own page runs nothing but the script beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote, urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from edgeprofile.api.problems import refuse
from edgeprofile.errors import BodyTooLarge, Forbidden, MalformedBody, UnsupportedMediaType
from edgeprofile.inquiry import Inquiry
from edgeprofile.overview import Overview

Endpoint = Callable[[Request], Awaitable[Response]]
PATH = "/console"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES = (
    "common.css",
    "console.css",
    "console.svg",
    "console.js",
    "charts.js",
    "elements.js",
    "lookup.js",
    "workspaces.js",
)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
BODY_BYTES_MAX = 32 * 1024
EVENTS_SHOWN = 20
HOSTS = "The console answers to addresses, localhost, this machine's name and server.admin_host. Reach it by ssh -L."


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a lookup: by the primary id, or in a `namespace`. `fields` is as in the native API."""

    value: str
    namespace: str | None = None
    fields: str | None = None
    events: bool = False


_wanted = msgspec.json.Decoder(Wanted)


def routes(overview: Overview, inquiry: Inquiry, admin_host: str) -> list[Route]:
    """The console's routes. `admin_host` is the name or address that the admin listener was given."""
    names = {"localhost", socket.gethostname().lower(), admin_host.lower()}

    async def home(request: Request) -> Response:
        # Relative, as all addresses in the page are, so that a proxy may serve it under a path of its own.
        return RedirectResponse(PATH.lstrip("/"))

    async def state(request: Request) -> Response:
        given = request.query_params
        content = overview.state(given.get("workspace"), _number(given.get("after")))
        return Response(content, media_type="application/json")

    async def lookup(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise UnsupportedMediaType("A lookup is application/json.")
        wanted = _wanted_of(await _body(request))
        answered = await asyncio.to_thread(inquiry.ask, *_native(wanted), request.headers.getlist("authorization"))
        headers = {name.decode(): value.decode() for name, value in answered.headers}
        headers["server-timing"] = f"lookup;dur={answered.seconds * 1e3:.4f}"
        return Response(answered.body, answered.status, headers)

    def file(name: str) -> Endpoint:
        content, media_type = (files("edgeprofile") / "pages" / name).read_bytes(), TYPES[Path(name).suffix]

        async def read(request: Request) -> Response:
            return Response(content, media_type=media_type)

        return read

    guarded = partial(_guarded, names)
    return [
        Route("/", home),
        Route(PATH, guarded(file("console.html"))),
        *(Route(f"{PATH}/{name}", guarded(file(name))) for name in FILES),
        Route(f"{PATH}/state", guarded(state)),
        Route(f"{PATH}/lookup", guarded(lookup), methods=["POST"]),
    ]


def _guarded(names: set[str], endpoint: Endpoint) -> Endpoint:
    async def answered(request: Request) -> Response:
        try:
            _check(request, names)
            response = await endpoint(request)
        except Exception as error:
            response = await refuse(request, error)
        response.headers.update(HEADERS)
        return response

    return answered


def _check(request: Request, names: set[str]) -> None:
    """Raises Forbidden where another page than ours may be behind a request.

    A page can give a name of its own this machine's address (DNS rebinding), and is then of our origin; it cannot
    change what it is called. A page of an address has been fetched from there.
    """
    hosts = request.headers.getlist("host")
    if len(hosts) != 1 or not _is_ours(hosts[0], names):
        raise Forbidden(HOSTS)
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if request.scope["path"] == PATH and request.headers.get("sec-fetch-mode") == "navigate":
        return  # somebody followed a link
    # Browsers say the first to addresses that they trust, by https or on their own machine; the second is older.
    own = origin in (None, f"http://{hosts[0]}") if site is None else site in ("same-origin", "none")
    if not own:
        raise Forbidden("The console is for its own page alone.")


def _is_ours(host: str, names: set[str]) -> bool:
    """Whether a Host is an address or one of these names, with a port or without."""
    name = host.lower().rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host.lower()
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name in names
    return True


def _number(text: str | None) -> float:
    with contextlib.suppress(ValueError):
        return float(text or 0)
    return 0.0


async def _body(request: Request) -> bytes:
    """Raises BodyTooLarge, without reading on."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            raise BodyTooLarge(BODY_BYTES_MAX)
    return bytes(body)


def _wanted_of(body: bytes) -> Wanted:
    try:
        return _wanted.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Without what they say, which may quote it.
        raise MalformedBody("A lookup has a value, and may have a namespace, fields and events.") from None


def _native(wanted: Wanted) -> tuple[bytes, bytes]:
    """Path and query string by which the native API is asked for this."""
    kind = "id" if wanted.namespace is None else f"identifier/{quote(wanted.namespace, safe='')}"
    path = f"/v1/profiles/{kind}/{quote(wanted.value, safe='')}" + ("/events" if wanted.events else "")
    query = {"limit": EVENTS_SHOWN} if wanted.events else {"fields": wanted.fields} if wanted.fields else {}
    return path.encode(), urlencode(query).encode()
