"""`/openapi.json`, which describes all that is served, and `/docs`, the page that shows it.

Both are made once, at the start. The page's files are its own: it needs no other site, and its policy allows it none.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgeprofile.api.problems import request_id
from edgeprofile.errors import NoSuchRoute

DOCUMENT_PATH, PAGE_PATH = "/openapi.json", "/docs"
FILES = {
    "common.css": "text/css; charset=utf-8",
    "docs.css": "text/css; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
}
MEDIA_TYPES = tuple(dict.fromkeys(kind.partition(";")[0] for kind in FILES.values()))
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
PAGE_HEADERS = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
# Another version may stand behind the same address tomorrow, so it is asked for each time, and mostly not sent.
CACHED = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}


class Held:
    """An answer that is the same each time."""

    def __init__(self, content: bytes, media_type: str, headers: dict[str, str] | None = None) -> None:
        self._content = content
        self._etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        self._headers = {**CACHED, **(headers or {}), "etag": self._etag}
        self._type = media_type

    def answer(self, request: Request) -> Response:
        headers = {**self._headers, "x-request-id": request_id(request).decode()}
        known = request.headers.get("if-none-match", "")
        if known == "*" or self._etag in known:
            return Response(status_code=304, headers=headers)
        return Response(self._content, headers={**headers, "content-type": self._type})


def routes(document: bytes, *, with_page: bool) -> list[Route]:
    """The routes of these, of which none needs a key; without those of the page if it is not wanted."""
    description = Held(document, "application/json")

    async def described(request: Request) -> Response:
        return description.answer(request)

    found = [Route(DOCUMENT_PATH, described)]
    if not with_page:
        return found
    pages = files("edgeprofile") / "pages"
    page = Held((pages / "docs.html").read_bytes(), "text/html; charset=utf-8", PAGE_HEADERS)
    parts = {name: Held((pages / name).read_bytes(), kind) for name, kind in FILES.items()}

    async def shown(request: Request) -> Response:
        return page.answer(request)

    async def part(request: Request) -> Response:
        held = parts.get(request.path_params["file"])
        if held is None:
            raise NoSuchRoute()
        return held.answer(request)

    return [*found, Route(PAGE_PATH, shown), Route(f"{PAGE_PATH}/{{file}}", part)]
