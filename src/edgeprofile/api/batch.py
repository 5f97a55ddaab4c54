"""Batch's Profile API: updates of profiles, which a worker only passes on, and exports.

The body of an update goes to the gateway piece by piece as it comes in, and the gateway's answer to the caller.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send

from edgeprofile import exports, snapshot, wire
from edgeprofile._exchange import log_fault
from edgeprofile._gate import Grant
from edgeprofile.api.dialect import Service, bearer
from edgeprofile.api.problems import request_id
from edgeprofile.attributes import NATIVE
from edgeprofile.errors import (
    ApiError,
    BodyTooLarge,
    Forbidden,
    InternalError,
    LoaderUnavailable,
    MalformedBody,
    MalformedQuery,
    MethodNotAllowed,
    NoSuchRoute,
    Unauthorized,
    UnsupportedMediaType,
)
from edgeprofile.exports import ATTRIBUTES_MAX, NAME_CHARS_MAX, Export
from edgeprofile.record import timestamp_text
from edgeprofile.vendors import Batch as Table

# With any version of theirs, or none. What begins so is theirs, whatever follows.
OURS = re.compile(rb"/2\.[0-9]+/|/profiles/|/exports/")
VERSION = re.compile(rb"\A/2\.[0-9]+(?=/)")
BODY_SECONDS_MAX = 60
GATEWAY_SECONDS_MAX = 60
LOADER_SECONDS_MAX = 30
EXPORT_BYTES_MAX = 256 * 1024
EXPORTS_RETRY_S = 600
EXPORT_TYPE = "ATTRIBUTES"
# An error quotes what it is about, which may be long.
ERROR_CHARS_MAX = 300
LIST = Meta(max_length=ATTRIBUTES_MAX)
GZIP = "application/gzip"
# The dialect's words, by status; of a status that has two, CODES_OF has the other.
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
NO_EXPORT = "EXPORT_NOT_FOUND"
STATUSES = {code: status for status, code in CODES.items()} | {MALFORMED_JSON: 400, NO_EXPORT: 404}


class NoExport(ApiError):
    """There is no such export, no more, or no file of it."""

    status = 404


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an export."""

    export_type: Literal["ATTRIBUTES"]
    attributes: Annotated[list[Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]], LIST] = []
    identifiers: Annotated[list[Literal["custom_id"]], LIST] = []

    def __post_init__(self) -> None:
        if not self.attributes and not self.identifiers:
            raise ValueError("An export has attributes, identifiers, or both")
        for name in self.attributes:
            if name.startswith("$") and name not in NATIVE:
                raise ValueError(f"There is no native attribute of that name; there are {', '.join(NATIVE)}")


_wanted = msgspec.json.Decoder(Wanted)
CODES_OF: dict[type[ApiError], str] = {MalformedBody: MALFORMED_JSON, NoExport: NO_EXPORT}


class Batch:
    """The ASGI callable, for the workspaces that have a table of settings."""

    def __init__(self, service: Service, tables: dict[str, Table], data_dir: Path) -> None:
        self._gate = service.gate
        self._tables = tables
        self._data_dir = data_dir
        self._gateway = data_dir / wire.GATEWAY

    def claims(self, scope: Scope) -> bool:
        """Whether a request is for this API."""
        return OURS.match(scope["raw_path"]) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        number = request_id(request)
        try:
            response = await self._answer(request)
        except ApiError as error:
            response = refused(error)
        except Exception as error:
            log_fault(number, error)
            response = refused(InternalError())
        response.headers.update({"x-request-id": number.decode(), "cache-control": "no-store"})
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path = VERSION.sub(b"", request.scope["raw_path"], count=1)
        route = self.ROUTES.get(path)
        if route is None:
            raise NoSuchRoute()
        method, handler = route
        if request.method != method:
            raise MethodNotAllowed(method)
        return await handler(self, request)

    def _grant(self, request: Request, *, writes: bool) -> Grant:
        """The grant of the key that was sent, and of which the project is the one that was named."""
        grant = self._gate.grant_of(bearer(request.headers.raw))
        request.scope["workspace"] = grant.workspace.name
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
            "id": request.scope["request_id"],
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
            except wire.Broken:
                raise LoaderUnavailable() from None
            try:
                async with asyncio.timeout(GATEWAY_SECONDS_MAX):
                    answer = await gateway.receive_answer()
            except (wire.Broken, TimeoutError):
                raise LoaderUnavailable("The updates may have been written, or not.") from None
        if answer["ok"]:
            return Response(answer["body"], 202, media_type=JSON)
        return _refusal(answer["code"], answer["message"], answer.get("retry_after", 0))

    # --- exports ---------------------------------------------------------------------------------------------------

    async def _export(self, request: Request) -> Response:
        grant = self._reader(request)
        if _is_gzip(request):
            raise UnsupportedMediaType("The body of an export is sent as it is.")
        body = b"".join([piece async for piece in _pieces(request.receive, EXPORT_BYTES_MAX)])
        try:
            wanted = _wanted.decode(body)
        except msgspec.ValidationError as error:
            return _refusal("MALFORMED_PARAMETER", f"{str(error)[:ERROR_CHARS_MAX]}.")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedBody(f"The body is no JSON that can be read: {str(error)[:ERROR_CHARS_MAX]}.") from None
        asked = {
            "op": "export",
            "attributes": wanted.attributes,
            "identifiers": wanted.identifiers,
            "namespace": self._tables[grant.workspace.name].custom_id,
        }
        answer = await wire.ask(self._home(grant) / wire.UPDATES, asked, LOADER_SECONDS_MAX)
        if not answer["ok"]:
            if answer["code"] != "refused":
                raise InternalError()
            return _refusal("TOO_MANY_REQUESTS", answer["message"], EXPORTS_RETRY_S)
        return Response(msgspec.json.encode({"id": answer["id"]}), 202, media_type=JSON)

    async def _view(self, request: Request) -> Response:
        _, export = self._asked_export(request)
        if export is None:
            raise NoExport("There is no such export, or no more.")
        version = VERSION.match(request.scope["raw_path"])
        return Response(msgspec.json.encode(_shown(export, version[0].decode() if version else "")), media_type=JSON)

    async def _download(self, request: Request) -> Response:
        home, export = self._asked_export(request)
        if export is None or export.status != "SUCCESS":
            why = f": its status is {export.status}" if export else ", or no more"
            raise NoExport(f"There is no file of such an export{why}.")
        return FileResponse(exports.file_of(home, export.id), media_type=GZIP, filename=f"{export.id}.ndjson.gz")

    def _reader(self, request: Request) -> Grant:
        grant = self._grant(request, writes=False)
        self._gate.admit(grant, grant.meter, 1)
        return grant

    def _home(self, grant: Grant) -> Path:
        return snapshot.home(self._data_dir, grant.workspace.name)

    def _asked_export(self, request: Request) -> tuple[Path, Export | None]:
        """The export that `id` names, itself or its file. Raises MalformedQuery where there is no one id."""
        home = self._home(self._reader(request))
        ids = request.query_params.getlist("id")
        if len(ids) != 1:
            raise MalformedQuery("id is given once.")
        return home, exports.find(home, ids[0].replace("file_", "export_", 1), time.time())

    ROUTES: ClassVar[dict[bytes, tuple[str, Callable[[Batch, Request], Awaitable[Response]]]]] = {
        b"/profiles/update": ("POST", _update),
        b"/profiles/mass-update": ("POST", _mass_update),
        b"/profiles/export": ("POST", _export),
        b"/exports/view": ("GET", _view),
        b"/exports/download": ("GET", _download),
    }


def _shown(export: Export, base: str) -> dict[str, object]:
    """An export as the dialect shows it. Of its one file, the URL is relative to the server's."""
    shown: dict[str, object] = {
        "id": export.id,
        "request_date": _moment(export.requested_at),
        "scope": "PROFILE_ATTRIBUTES",
        "status": export.status,
        "request": {"export_type": EXPORT_TYPE, "attributes": export.attributes, "identifiers": export.identifiers},
        "files": [],
    }
    if export.started_at is not None:
        shown["start_date"] = _moment(export.started_at)
    if export.finished_at is not None:
        shown["completion_date"] = _moment(export.finished_at)
    if export.status == "SUCCESS":
        file = export.id.replace("export_", "file_", 1)
        url = f"{base}/exports/download?id={file}"
        shown["files"] = [{"id": file, "part": 1, "size": export.file_bytes, "url": url}]
    return shown


def _moment(at_s: float) -> str | None:
    return timestamp_text(int(at_s), 1)


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


def refused(error: ApiError) -> Response:
    """A problem as the dialect has it. A good key that may not do this is to it what a bad one is."""
    if isinstance(error, Forbidden):
        error = Unauthorized(error.detail)
    own = next((code for kind, code in CODES_OF.items() if isinstance(error, kind)), None)
    response = _refusal(own or CODES[error.status], error.detail)
    response.headers.update({name.decode(): value.decode() for name, value in error.headers})
    return response


def _refusal(code: str, message: str, retry_after_s: int = 0) -> Response:
    body = msgspec.json.encode({"error_code": code, "error_message": message})
    headers = {"retry-after": str(retry_after_s)} if retry_after_s else {}
    return Response(body, STATUSES[code], headers, JSON)
