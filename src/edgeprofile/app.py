"""The whole server, as one ASGI callable: the compiled front, and behind it a Starlette app for what may wait."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import AsyncIterator, Callable, Iterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeprofile import limiter, logs, openapi, snapshot, vendors
from edgeprofile._exchange import ends_connection
from edgeprofile._front import Front
from edgeprofile._gate import Gate
from edgeprofile._limiter import SharedMap
from edgeprofile._lookup import Lookup
from edgeprofile._metrics import Recorder, clock_ns
from edgeprofile._store import Workspace
from edgeprofile._surface import Surface
from edgeprofile.api import dialect, insider, intilery, mparticle, native, reference
from edgeprofile.api.batch import Batch
from edgeprofile.api.erasure import Erasure
from edgeprofile.api.problems import HANDLERS, problem, request_id
from edgeprofile.api.tokens import PATH as TOKEN_PATH
from edgeprofile.api.tokens import Tokens
from edgeprofile.errors import ApiError, MalformedBody, RateLimited
from edgeprofile.life import Life
from edgeprofile.metrics import Counter, limited_slot, slots
from edgeprofile.metrics import Surface as Counted
from edgeprofile.settings import Settings
from edgeprofile.signing import SigningKeys
from edgeprofile.watch import (
    BodyWatcher,
    KeyWatcher,
    ParentWatcher,
    SigningWatcher,
    SnapshotWatcher,
    Watched,
    Watcher,
)

# Which requests an app is for, and the app.
Part = tuple[Callable[[Scope], bool], ASGIApp]
SHARED_MAP = "shared.map"
# How long a watcher's thread may hold up a lookup that waits for the interpreter.
SWITCH_INTERVAL_S = 0.0005


def build_app(settings: Settings, life: Life | None = None, description: bytes | None = None) -> Front:
    """The server of these settings. Its lifespan runs the watchers; without them nothing is ever opened.

    `description` is what `openapi.encoded` gives, where that has been made before.
    """
    life = life or Life()
    shared = open_shared(settings)
    workspaces = {name: Workspace(name, limited_slot(number)) for number, name in enumerate(settings.workspaces)}
    gate = Gate(shared, verify=lambda token: keys.verify(token), limited=limited)
    keys = KeyWatcher(settings, gate, workspaces, shared)
    watched: list[Watched]
    snapshots = [
        SnapshotWatcher(snapshot.home(settings.data_dir, name), workspace, shared)
        for name, workspace in workspaces.items()
    ]
    app = Starlette(
        routes=[
            *native.routes(list(workspaces.values()), life),
            *reference.routes(description or openapi.encoded(settings), with_page=settings.server.docs),
        ],
        exception_handlers=HANDLERS,
        lifespan=lambda _: _watching(shared, [Watcher(each) for each in watched]),
    )
    app.router.redirect_slashes = False
    lookup = build_lookup(settings, gate)

    def recorder(surface: Counted) -> Recorder:
        return Recorder(shared, *slots(surface), log=logs.request_log(settings.log, surface.name.lower()))

    signing = SigningKeys()
    service = dialect.Service(gate, shared, workspaces, settings.limits.response_bytes_max, signing)
    erasure = Erasure(service, settings.data_dir)
    parts: list[Part] = [(erasure.claims, _recorded(erasure, recorder(Counted.NATIVE)))]
    if batches := settings.tables_of(vendors.Batch):
        batch = Batch(service, batches, settings.data_dir)
        parts.append((batch.claims, _recorded(batch, recorder(Counted.BATCH))))
    many = Surface(lookup, recorder(Counted.NATIVE_BATCH), paths=(native.MANY_PATH,))
    front = Front(
        _parted(parts, _recorded(app, recorder(Counted.OTHER))),
        lookup,
        [many, *_dialects(settings, service, recorder)],
        shared,
        recorder=recorder(Counted.NATIVE),
        damaged_counter=Counter.RECORDS_DAMAGED,
        deferred_counter=Counter.LOOKUPS_DEFERRED,
        request_bytes_max=settings.limits.request_bytes_max,
    )
    watched = [keys, *snapshots, BodyWatcher(front), ParentWatcher(settings.server.drain_seconds)]
    if settings.signs:
        watched.append(SigningWatcher(settings.data_dir, signing))
    watched.append(life)  # the last one, whose first poll says that all is ready
    return front


def build_lookup(settings: Settings, gate: Gate) -> Lookup:
    """The native lookup, for those whom this gate lets in."""
    return Lookup(
        gate,
        translate=problem,
        parse_fields=native.parse_fields,
        choose=native.choose,
        parse_many=native.parse_many,
        parse_events=native.parse_events,
        accepted=native.accepted,
        normalize=dialect.lowered,
        request_bytes_max=settings.limits.request_bytes_max,
        response_bytes_max=settings.limits.response_bytes_max,
        cache_control=settings.server.cache_control.encode(),
    )


def _dialects(
    settings: Settings, service: dialect.Service, recorder: Callable[[Counted], Recorder]
) -> Iterator[Surface]:
    """The vendors' read APIs, each where a workspace has its table."""
    if partners := settings.tables_of(vendors.Insider):
        yield Surface(insider.InsiderApi(service, partners), recorder(Counted.INSIDER), paths=(insider.PATH,))
    if places := settings.tables_of(vendors.MParticle):
        tokens = Tokens(service, {name: table.audience for name, table in places.items()})
        yield Surface(tokens, recorder(Counted.MPARTICLE), paths=(TOKEN_PATH,))
        profiles = mparticle.Dialect(service, places)
        yield Surface(profiles, recorder(Counted.MPARTICLE), prefixes=(mparticle.PREFIX,))
    if brands := settings.tables_of(vendors.Intilery):
        yield Surface(intilery.IntileryApi(service, brands), recorder(Counted.INTILERY), prefixes=(intilery.PREFIX,))


def open_shared(settings: Settings) -> SharedMap:
    """The file that all workers share. Raises StoreError where `data_dir` cannot be used."""
    snapshot.make_folder(settings.data_dir)
    return SharedMap(settings.data_dir / SHARED_MAP)


@contextlib.asynccontextmanager
async def _watching(shared: SharedMap, watchers: list[Watcher]) -> AsyncIterator[None]:
    """The life of a worker: what is there is opened before the first request, the rest as it comes."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with logs.writing(shared):
        for watcher in watchers:
            watcher.poll()
            watcher.start()
        # What start-up left behind stays: without it in the way, a collection is over sooner.
        gc.collect()
        gc.freeze()
        yield
        for watcher in watchers:
            watcher.stop()


def _parted(parts: list[Part], rest: ASGIApp) -> ASGIApp:
    """The first of these apps that claims a request answers it, or else `rest`, which has the lifespan too."""

    async def parted(scope: Scope, receive: Receive, send: Send) -> None:
        is_request = scope["type"] == "http"
        app = next((app for claims, app in parts if is_request and claims(scope)), rest)
        await app(scope, receive, send)

    return parted


def _recorded(app: ASGIApp, recorder: Recorder) -> ASGIApp:
    """The app with its requests counted and logged. Outside of Starlette, because a failure in it is a 500 too."""

    async def recorded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        status, started_ns = 500, clock_ns()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if ends_connection(scope):
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await app(scope, receive, noted)
        finally:
            recorder.record(status, started_ns)
            if recorder.logs(status):
                number = request_id(Request(scope))
                recorder.note(status, started_ns, scope["method"], number, scope.get("workspace"))

    return recorded


def limited(limits: limiter.Policy, bucket: int, wait_ns: int, cost: int) -> ApiError:
    """What who is over a limit is answered."""
    if wait_ns == limiter.NEVER:
        return MalformedBody(f"It asks for {cost} profiles at once, more than this key's limit can ever hold.")
    headers = limiter.rate_limit_headers(limits, bucket, wait_ns, cost)
    return RateLimited(limiter.retry_after_s(wait_ns), headers)
