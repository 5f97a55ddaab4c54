"""The whole server, as one ASGI callable: the compiled lookup, and behind it a Starlette app for all the rest."""

from __future__ import annotations

import contextlib
import gc
import secrets
import sys
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from edgeprofile import limiter, snapshot
from edgeprofile._limiter import SharedMap
from edgeprofile._lookup import Lookup, log_fault, request_id_of
from edgeprofile._store import Workspace
from edgeprofile.api import native
from edgeprofile.api.problems import problem
from edgeprofile.errors import ApiError, InternalError, MethodNotAllowed, NoSuchRoute, RateLimited
from edgeprofile.metrics import Counter
from edgeprofile.settings import Settings
from edgeprofile.watch import KeyWatcher, ParentWatcher, SnapshotWatcher, Watcher

SHARED_MAP = "shared.map"
# How long a watcher's thread may hold up a lookup that waits for the interpreter.
SWITCH_INTERVAL_S = 0.0005


def build_app(settings: Settings) -> Lookup:
    """The server of these settings. Its lifespan runs the watchers; without them nothing is ever opened."""
    shared = open_shared(settings)
    workspaces = {name: Workspace(name) for name in settings.workspaces}
    # Assigned below: the watchers need the lookup, which needs them, though neither before the first request.
    keys: KeyWatcher
    watchers: list[Watcher]
    app = Starlette(
        routes=native.routes(list(workspaces.values())),
        exception_handlers={ApiError: _refuse, HTTPException: _refuse, Exception: _refuse},
        lifespan=lambda _: _watching(watchers),
    )
    app.router.redirect_slashes = False
    lookup = Lookup(
        app,
        shared,
        translate=problem,
        parse_fields=native.parse_fields,
        verify=lambda token: keys.verify(token),
        accepts_json=native.accepts_json,
        normalize=native.lowered,
        limited=_limited,
        damaged_counter=Counter.RECORDS_DAMAGED,
        request_bytes_max=settings.limits.request_bytes_max,
        response_bytes_max=settings.limits.response_bytes_max,
        cache_control=settings.server.cache_control.encode(),
    )
    keys = KeyWatcher(settings.data_dir, settings.limits, lookup, workspaces, shared)
    snapshots = [
        SnapshotWatcher(snapshot.home(settings.data_dir, name), workspace, shared)
        for name, workspace in workspaces.items()
    ]
    watchers = [Watcher(keys), *map(Watcher, snapshots), Watcher(ParentWatcher())]
    return lookup


def open_shared(settings: Settings) -> SharedMap:
    """The file that all workers share. Raises StoreError where `data_dir` cannot be used."""
    snapshot.make_folder(settings.data_dir)
    return SharedMap(settings.data_dir / SHARED_MAP)


@contextlib.asynccontextmanager
async def _watching(watchers: list[Watcher]) -> AsyncIterator[None]:
    """The life of a worker: what is there is opened before the first request, the rest as it comes."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    for watcher in watchers:
        watcher.poll()
        watcher.start()
    # What start-up left behind stays: without it in the way, a collection is over sooner.
    gc.collect()
    gc.freeze()
    yield
    for watcher in watchers:
        watcher.stop()


def _limited(policy: limiter.Policy, bucket: int, wait_ns: int) -> RateLimited:
    return RateLimited(limiter.retry_after_s(wait_ns), limiter.rate_limit_headers(policy, bucket, wait_ns))


async def _refuse(request: Request, error: Exception) -> Response:
    """Every error of the Starlette app, as the same problems as the lookup's."""
    if isinstance(error, HTTPException):
        # Starlette keeps the methods in a set, whose order differs from process to process.
        allow = (error.headers or {}).get("Allow", "GET, HEAD")
        known: ApiError = MethodNotAllowed(", ".join(sorted(allow.split(", "))))
        error = known if error.status_code == 405 else NoSuchRoute()
    sent = request.headers.get("x-request-id")
    request_id = request_id_of(sent.encode("latin-1") if sent else None) or secrets.token_hex(8).encode()
    if not isinstance(error, ApiError):
        log_fault(request_id, error)
        error = InternalError()
    status, headers, body = problem(error, request_id)
    return Response(body, status, {name.decode(): value.decode() for name, value in headers})
