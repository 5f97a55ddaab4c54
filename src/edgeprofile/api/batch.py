"""Batch's Profile API: updates of profiles, which a worker only passes on, and exports.

The body of an update goes to the gateway piece by piece as it comes in, and the gateway's answer to the caller.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from edgeprofile import wire
from edgeprofile._exchange import log_fault
from edgeprofile._gate import Grant
from edgeprofile.api.dialect import Service, bearer
from edgeprofile.api.problems import request_id
from edgeprofile.errors import (
    ApiError,
    BodyTooLarge,
    Forbidden,
    InternalError,
    LoaderUnavailable,
    MalformedBody,
    MethodNotAllowed,
    NoSuchRoute,
    Unauthorized,
    UnsupportedMediaType,
)
from edgeprofile.settings import Batch as Table

# With any version of theirs, or none. What begins so is theirs, whatever follows.
OURS = re.compile(rb"/2\.[0-9]+/|/profiles/|/exports/")
VERSION = re.compile(rb"/2\.[0-9]+(?=/)")
BODY_SECONDS_MAX = 60
GATEWAY_SECONDS_MAX = 60
# The dialect's words, by status; of a status that has two, the other is said where it arises.
CODES = {
    400: "MALFORMED_PARAMETER",
    401: "AUTHENTICATION_INVALID",
    404: "ROUTE_NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "BODY_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    429: "TOO_MANY_REQUESTS",
    500: "SERVER_ERROR",
    503: "MAINTENANCE_ERROR",
}
JSON = "application/json"
MALFORMED_JSON = "MALFORMED_JSON_BODY"
STATUSES = {code: status for status, code in CODES.items()} | {MALFORMED_JSON: 400}

Handler = Callable[[Request], Awaitable[Response]]


class Batch:
    """The ASGI callable, for the workspaces that have a table of settings; `gateway` is the socket for updates."""

    def __init__(self, service: Service, tables: dict[str, Table], gateway: Path) -> None:
        self._gate = service.gate
        self._tables = tables
        self._gateway = gateway
        self._routes: dict[bytes, tuple[str, Handler]] = {
            b"/profiles/update": ("POST", self._update),
            b"/profiles/mass-update": ("POST", self._mass_update),
        }

    def claims(self, scope: Scope) -> bool:
        """Whether a request is for this API."""
        return OURS.match(scope["raw_path"]) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        number = request_id(request)
        try:
            response = await self._answer(request)
        except ApiError as error:
            response = _refused(error)
        except Exception as error:
            log_fault(number, error)
            response = _refused(InternalError())
        response.headers.update({"x-request-id": number.decode(), "cache-control": "no-store"})
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path = VERSION.sub(b"", request.scope["raw_path"], count=1)
        route = self._routes.get(path)
        if route is None:
            raise NoSuchRoute()
        method, handler = route
        if request.method != method:
            raise MethodNotAllowed(method)
        return await handler(request)

    def _grant(self, request: Request, *, writes: bool) -> Grant:
        """The grant of the key that was sent, and of which the project is the one that was named."""
        grant = self._gate.grant_of(bearer(request.headers.raw))
        table = self._tables.get(grant.workspace.name)
        project = request.headers.get("x-batch-project", "").encode("latin-1")
        if table is None or not hmac.compare_digest(project, table.project.encode()):
            raise Forbidden("X-Batch-Project does not name the project of this key.")
        if not (grant.writes if writes else grant.reads):
            raise Forbidden(f"This key may not {'write' if writes else 'read'}.")
        return grant

    # --- updates ---------------------------------------------------------------------------------------------------

    async def _update(self, request: Request) -> Response:
        return await self._pass_on(request, "update")

    async def _mass_update(self, request: Request) -> Response:
        return await self._pass_on(request, "mass-update")

    async def _pass_on(self, request: Request, kind: str) -> Response:
        grant = self._grant(request, writes=True)
        head = {
            "v": wire.VERSION,
            "op": kind,
            "workspace": grant.workspace.name,
            "key": grant.public_id.decode(),
            "gzip": _is_gzip(request),
        }
        bytes_max = self._tables[grant.workspace.name].request_bytes_max
        if int(request.headers.get("content-length", 0)) > bytes_max:
            raise BodyTooLarge(bytes_max)
        async with wire.connect(self._gateway) as gateway:
            try:
                await gateway.send(head)
                async for piece in _pieces(request.receive, bytes_max):
                    await gateway.send(piece)
                # Asked again, because a key may be revoked while a body comes in.
                self._grant(request, writes=True)
                await gateway.send(b"")
                async with asyncio.timeout(GATEWAY_SECONDS_MAX):
                    answer = await gateway.receive_answer()
            except (wire.Broken, TimeoutError):
                raise LoaderUnavailable("The updates may have been written, or not.") from None
        if answer["ok"]:
            return Response(answer["body"], 202, media_type=JSON)
        return _refusal(answer["code"], answer["message"], answer.get("retry_after", 0))


def _is_gzip(request: Request) -> bool:
    """Whether the body is packed. Raises UnsupportedMediaType, unless it is JSON, which an absent type is taken for."""
    media_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if media_type != JSON:
        raise UnsupportedMediaType(f"A body is {JSON}.")
    if encoding not in ("identity", "gzip"):
        raise UnsupportedMediaType("A body is sent as it is, or packed by gzip.")
    return encoding == "gzip"


async def _pieces(receive: Receive, bytes_max: int) -> AsyncIterator[bytes]:
    """The body as it comes in. Raises MalformedBody where it breaks off or takes too long, and BodyTooLarge."""
    size = 0
    give_up = asyncio.get_running_loop().time() + BODY_SECONDS_MAX
    is_whole = False
    while not is_whole:
        try:
            async with asyncio.timeout_at(give_up):
                message: Message = await receive()
        except TimeoutError:
            raise MalformedBody(f"The body was not whole after {BODY_SECONDS_MAX} s.") from None
        if message["type"] == "http.disconnect":
            raise MalformedBody("The body ended early, or its encoding is broken.")
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size > bytes_max:
            raise BodyTooLarge(bytes_max)
        if piece:
            yield piece
        is_whole = not message.get("more_body")


def _refused(error: ApiError) -> Response:
    """A problem as the dialect has it. A good key that may not do this is to it what a bad one is."""
    if isinstance(error, Forbidden):
        error = Unauthorized(error.detail)
    response = _refusal(MALFORMED_JSON if isinstance(error, MalformedBody) else CODES[error.status], error.detail)
    response.headers.update({name.decode(): value.decode() for name, value in error.headers})
    return response


def _refusal(code: str, message: str, retry_after_s: int = 0) -> Response:
    body = msgspec.json.encode({"error_code": code, "error_message": message})
    headers = {"retry-after": str(retry_after_s)} if retry_after_s else {}
    return Response(body, STATUSES[code], headers, JSON)
