"""Granian, set up for this service: the one place that imports it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import errno
import gc
import logging
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

from granian import Granian, loops
from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings
from granian.log import LogLevels
from granian.server.embed import Server as EmbeddedServer

from edgeprofile import gateway, logs, openapi, signing, tls
from edgeprofile._front import Front
from edgeprofile.api import console
from edgeprofile.api.admin import build_admin
from edgeprofile.app import build_app, open_shared
from edgeprofile.errors import EdgeprofileError, UsageError
from edgeprofile.exposition import Exposition
from edgeprofile.inquiry import Inquiry
from edgeprofile.keeper import Keeper, name_process
from edgeprofile.life import Life
from edgeprofile.loop import Loop, make_loop
from edgeprofile.metrics import Counter
from edgeprofile.overview import Overview
from edgeprofile.reload import reread
from edgeprofile.settings import Settings
from edgeprofile.supervisor import Setup, Supervisor
from edgeprofile.timeline import Timeline

PORTS_TRIED = 20
BACKLOG = 4096
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 30, 10, 3
ADMIN, GATEWAY = "edgeprofile-adm", "edgeprofile-gtw"
HOSTS = "set server.host and server.admin_host to addresses of this machine"
loops.register(Loops.auto.value)(make_loop)

HEAD_BYTES_MAX = 40 * 1024
HTTP1 = HTTP1Settings(
    # A header that takes longer than this is a slow client's, or an attack.
    header_read_timeout=10_000,
    # 8 KB of URL and 32 KB of headers: more is answered 431 by Granian, before any of our code.
    max_buffer_size=HEAD_BYTES_MAX,
)
HTTP2 = HTTP2Settings(
    # A client that no longer answers to these is gone.
    keep_alive_interval=20_000,
    keep_alive_timeout=20,
    max_concurrent_streams=100,
    max_headers_size=HEAD_BYTES_MAX,
)

log = logging.getLogger("edgeprofile")


def free_port(host: str, wanted: int, besides: int = 0) -> int:
    """The first port from `wanted` on that nothing listens on, and that is not the one `besides`."""
    for port in range(wanted, min(wanted + PORTS_TRIED, 65_536)):
        if port != besides and is_free(host, port):
            return port
    raise UsageError(f"port {wanted} and those behind it are all in use", hint="name a free one by --port")


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there. Without SO_REUSEPORT, by which two would share the port unnoticed.

    Raises UsageError for an address that is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise UsageError(f"{host}:{port} cannot be listened on: {error.strerror}", hint=HOSTS) from None
    return True


def address_of(host: str) -> str:
    """The address that a name such as localhost stands for; Granian takes addresses only."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4][0])
    except OSError:
        raise UsageError(f"{host} is no address of this machine's", hint=HOSTS) from None


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then lets requests in flight finish for `drain_seconds` at most.

    Raises SettingsError where TLS cannot be served, and SystemExit(1) where workers end as fast as they are started.
    """
    port, admin_port = settings.server.port, settings.server.admin_port
    host = _free_address(settings.server.host, port, "server.port")
    admin_host = _free_address(settings.server.admin_host, admin_port, "server.admin_port") if admin_port else ""
    # Workers get their sockets by being forked, which Python 3.14 does not do by default.
    multiprocessing.set_start_method("fork", force=True)
    renewals = tls.Renewals(settings)
    setup = Setup(settings, tls.read(settings), openapi.encoded(settings))
    # Opened here once, so that a folder that cannot be used is one line and not a crash of every worker.
    shared = open_shared(settings)
    shared.clear_counters()
    if settings.signs:
        signing.ensure(settings.data_dir)
    logs.configure(settings.log)
    workers = settings.server.workers or os.cpu_count() or 1
    listeners = [listen(host, port) for _ in range(workers)]
    scheme = "http" if setup.identity is None else "https"
    log.info("serving on %s://%s:%d with %d workers", scheme, host, port, workers)
    _say_expiry(setup.identity)
    started_at = time.time()
    if admin_port:
        log.info("metrics on http://%s:%d/metrics and the console on /console there", admin_host, admin_port)

    # A collection in a process that is forked neither looks at what is there by now nor makes a copy of it.
    gc.collect()
    gc.freeze()
    works = partial(_works, admin_host=admin_host, started_at=started_at, listeners=listeners)
    # All are forked before the first has a thread to look after it.
    keepers = {name: Keeper(name, work) for name, work in works(setup).items()}

    def reload(old: Setup) -> Setup:
        new = _reread(old)
        logs.configure(new.settings.log)
        for name, work in works(new).items() if new is not old else ():
            if name in keepers:
                keepers[name].renew(work)
            else:
                keepers[name] = running.enter_context(Keeper(name, work))
        return new

    def renew(old: Setup) -> Setup:
        new = _reidentified(old) if renewals.poll(old.settings) else old
        if new is not old and ADMIN in keepers:  # which tells when the certificate is over
            keepers[ADMIN].renew(works(new)[ADMIN])
        return new

    with logs.writing(shared), contextlib.ExitStack() as running:
        for keeper in keepers.values():
            running.enter_context(keeper)
        died = partial(shared.add, Counter.WORKERS_DIED, 1)
        launch = partial(_launch, listeners)
        status = Supervisor(setup, listeners, launch, reload=reload, renew=renew, died=died).run()
    if status:
        sys.exit(status)


def _works(
    setup: Setup, admin_host: str, started_at: float, listeners: list[socket.socket]
) -> dict[str, Callable[[], None]]:
    """What is done beside the workers, each in a process of its own that has this name."""
    works: dict[str, Callable[[], None]] = {}
    if setup.settings.server.admin_port:
        works[ADMIN] = partial(_serve_admin, setup, admin_host, started_at, listeners)
    if gateway.served(setup.settings):
        works[GATEWAY] = partial(_serve_gateway, setup.settings, listeners)
    return works


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, one of several that share the port: the kernel deals connections out among them."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # Connections have these of it. A client that went without a word is found out: over years, they would add up.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    listener.bind((host, port))
    listener.listen(BACKLOG)
    return listener


def _reread(old: Setup) -> Setup:
    """The settings as they are now; the old ones where they have not changed, or cannot be served."""
    try:
        settings = reread(old.settings)
        identity = tls.read(settings)
        if settings.signs:
            signing.ensure(settings.data_dir)
    except (EdgeprofileError, OSError) as error:
        log.error("the settings stay as they were: %s", error)
        return old
    if settings == old.settings and _is_same(identity, old.identity):
        log.info("the settings have not changed")
        return old
    log.info("the settings have changed: workers are replaced one by one")
    return Setup(settings, identity, openapi.encoded(settings))


def _reidentified(old: Setup) -> Setup:
    """The same, with the certificate that is there now."""
    try:
        identity = tls.read(old.settings)
    except EdgeprofileError as error:
        log.error("the certificate stays as it was: %s", error)
        return old
    if _is_same(identity, old.identity):
        return old
    log.info("the certificate was renewed: workers are replaced one by one")
    _say_expiry(identity)
    return old._replace(identity=identity)


def _is_same(one: tls.Identity | None, other: tls.Identity | None) -> bool:
    return (one and one.content) == (other and other.content)


def _say_expiry(identity: tls.Identity | None) -> None:
    if identity is not None:
        is_over = identity.expires_at <= dt.datetime.now(dt.UTC)
        level, verb = (logging.WARNING, "was") if is_over else (logging.INFO, "is")
        log.log(level, "the certificate %s good until %s", verb, f"{identity.expires_at:%Y-%m-%d %H:%M:%S} UTC")


def _free_address(host: str, port: int, setting: str) -> str:
    address = address_of(host)
    if not is_free(address, port):
        raise UsageError(f"{address}:{port} is in use", hint=f"set {setting} to a free port")
    return address


def granian(settings: Settings, identity: tls.Identity | None = None) -> Any:
    """Granian with the options of these settings; what it serves is said to its `serve`."""
    server: Any = Granian(
        "edgeprofile",
        address=settings.server.host,
        port=settings.server.port,
        interface=Interfaces.ASGI,
        workers=settings.server.workers or os.cpu_count() or 1,
        # HTTP/1 alone is a shorter way through Granian than telling the versions apart. Without TLS nobody speaks
        # HTTP/2: a proxy that does so to callers speaks HTTP/1.1 to us.
        http=HTTPModes.http1 if identity is None else HTTPModes.auto,
        websockets=False,
        # A worker has one thread for its connections: telling it so costs less than a pool of one.
        runtime_mode=RuntimeModes.st,
        loop=Loops.auto,
        backlog=BACKLOG,
        # Each worker's queue of accepted requests; a lookup takes microseconds, so it never fills for long.
        backpressure=4096,
        http1_settings=HTTP1,
        http2_settings=HTTP2,
        log_dictconfig=logs.config(settings.log),
        log_level=LogLevels.warning,
    )
    if identity is not None:
        # Not by its parameters, which follow links: these lead to files that have no names.
        files = identity.certificate_file, identity.key_file
        client_ca = identity.client_ca_file
        server.ssl_ctx = (True, *files, None, str(SSLProtocols.tls12), client_ca, [], client_ca is not None)
    return server


def _launch(listeners: list[socket.socket], setup: Setup, number: int, pulse: int) -> BaseProcess:
    """Starts a worker. Granian's own main process would have each listen by itself, and replace them all at once."""
    server = granian(setup.settings, setup.identity)
    server._ssp = server._sso = None
    holder: Any = SocketHolder  # which takes more than Granian's stub has
    server._shd = holder(listeners[number].fileno(), False, BACKLOG)
    load = partial(_load, setup, listeners, number, pulse)
    process: BaseProcess = server._spawn_worker(number, server._spawn_asgi_lifespan_worker, load).inner
    process.start()
    return process


def _load(setup: Setup, listeners: list[socket.socket], number: int, pulse: int) -> Front:
    """Runs in each worker."""
    try:
        name_process("edgeprofile-wrk")
        loop = asyncio.get_event_loop()
        _close(listeners[:number] + listeners[number + 1 :])
        life = Life(listeners[number].fileno(), pulse)
        life.heed(loop)
        front = build_app(setup.settings, life, setup.description)
        if isinstance(loop, Loop):
            loop.front = front
        return front
    except Exception as error:
        log.error("the worker cannot start: %s", error)
        sys.exit(1)


def _serve_gateway(settings: Settings, listeners: list[socket.socket]) -> None:
    """Runs in the gateway's process, until that is told to end or is killed."""
    try:
        _close(listeners)
        shared = open_shared(settings)
        with logs.writing(shared):
            gateway.run(settings, shared)
    except Exception as error:
        log.error("the gateway cannot serve: %s", error)
        sys.exit(1)


def _close(listeners: list[socket.socket]) -> None:
    """In a process that was forked: what it does not listen to must not seem to be listened to when others end."""
    for listener in listeners:
        listener.close()


def _serve_admin(setup: Setup, host: str, started_at: float, listeners: list[socket.socket]) -> None:
    """Runs in the admin listener's process, until that is killed."""
    try:
        _close(listeners)
        settings, identity = setup.settings, setup.identity
        shared = open_shared(settings)
        expires_at = None if identity is None else identity.expires_at.timestamp()
        metrics = Exposition(settings, shared, started_at, workers=len(listeners), expires_at=expires_at)
        timeline = Timeline(shared)
        told = {"started_at": started_at, "workers": len(listeners), "certificate_expires_at": expires_at}
        overview = Overview(settings, shared, timeline, **told)
        pages = console.routes(overview, Inquiry(settings, shared), settings.server.admin_host)
        app = build_admin(metrics, pages, timeline)
        server = EmbeddedServer(
            app,
            address=host,
            port=settings.server.admin_port,
            interface=Interfaces.ASGI,
            http=HTTPModes.http1,
            websockets=False,
            http1_settings=HTTP1,
            log_dictconfig=logs.config(settings.log),
            # Its one warning is that to be embedded is experimental: if it fails, it is started again.
            log_level=LogLevels.error,
        )
        with logs.writing(shared):
            asyncio.run(server.serve())
    except Exception as error:
        log.error("the admin listener cannot serve: %s", error)
        sys.exit(1)
