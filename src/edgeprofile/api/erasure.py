"""`DELETE /v1/profiles/id/{id}`: a profile is erased by its workspace's loader, which a worker asks to."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgeprofile import snapshot, wire
from edgeprofile._exchange import unescaped
from edgeprofile.api.dialect import Service, bearer
from edgeprofile.api.problems import refuse, request_id
from edgeprofile.errors import Forbidden, LoaderUnavailable

PREFIX = b"/v1/profiles/id/"
LOADER_SECONDS_MAX = 30


class Erasure:
    """The ASGI callable."""

    def __init__(self, service: Service, data_dir: Path) -> None:
        self._gate = service.gate
        self._data_dir = data_dir

    def claims(self, scope: Scope) -> bool:
        """Whether a request is one to erase a profile."""
        path: bytes = scope["raw_path"]
        return scope["method"] == "DELETE" and path.startswith(PREFIX) and b"/" not in path[len(PREFIX) :]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._erase(request)
        except Exception as error:
            response = await refuse(request, error)
        await response(scope, receive, send)

    async def _erase(self, request: Request) -> Response:
        grant = self._gate.grant_of(bearer(request.headers.raw))
        request.scope["workspace"] = grant.workspace.name
        if not grant.writes:
            raise Forbidden("This key may not erase profiles.")
        self._gate.admit(grant, grant.meter, 1)
        primary = unescaped(request.scope["raw_path"][len(PREFIX) :]).decode()
        loader = snapshot.home(self._data_dir, grant.workspace.name) / wire.UPDATES
        answer = await wire.ask(loader, {"op": "erase", "ids": [primary]}, LOADER_SECONDS_MAX)
        if not answer["ok"]:
            raise LoaderUnavailable()
        headers = {"cache-control": "no-store", "x-request-id": request_id(request).decode()}
        return Response(status_code=204, headers=headers)
