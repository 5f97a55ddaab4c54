"""Granian, set up for this service: the one place that imports it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging.config
import os
import signal
import socket
import sys
import time
from functools import partial
from typing import Any

from granian import Granian, loops
from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.common import AbstractServer
from granian.server.embed import Server as EmbeddedServer

from edgeprofile import gateway, signing
from edgeprofile._front import Front
from edgeprofile.api.admin import build_admin
from edgeprofile.app import build_app, open_shared
from edgeprofile.errors import UsageError
from edgeprofile.exposition import Exposition
from edgeprofile.keeper import Keeper
from edgeprofile.loop import Loop, make_loop
from edgeprofile.settings import Settings

PORTS_TRIED = 20
HOSTS = "set server.host and server.admin_host to addresses of this machine"
loops.register(Loops.auto.value)(make_loop)

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s [%(process)d] %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {
        "edgeprofile": {"level": "INFO"},
        # Access logs would cost more than a lookup; Granian's own lines are of its workers' lives.
        "_granian": {"level": "WARNING"},
    },
}
HTTP1 = HTTP1Settings(
    # A header that takes longer than this is a slow client's, or an attack.
    header_read_timeout=10_000,
    # 8 KB of URL and 32 KB of headers: more is answered 431 by Granian, before any of our code.
    max_buffer_size=40 * 1024,
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

    Raises SystemExit(1) where workers die as fast as they are started.
    """
    port, admin_port = settings.server.port, settings.server.admin_port
    host = _free_address(settings.server.host, port, "server.port")
    admin_host = _free_address(settings.server.admin_host, admin_port, "server.admin_port") if admin_port else ""
    # Opened here once, so that a folder that cannot be used is one line and not a crash of every worker.
    open_shared(settings).clear_counters()
    if settings.signs:
        signing.ensure(settings.data_dir)
    logging.config.dictConfig(LOGGING)
    server = granian(settings)
    log.info("serving on http://%s:%d with %d workers", host, port, server.workers)
    # Granian starts its workers anew on SIGHUP; a terminal that was closed means that it is over.
    server.on_startup(lambda: signal.signal(signal.SIGHUP, server.signal_handler_interrupt))
    # Until a worker has handlers of its own, the main process's would swallow what tells it to end.
    os.register_at_fork(after_in_child=partial(signal.signal, signal.SIGTERM, signal.SIG_DFL))
    # All are forked before the first has a thread to look after it.
    keepers = []
    if admin_port:
        log.info("metrics on http://%s:%d/metrics", admin_host, admin_port)
        admin = partial(_serve_admin, settings, admin_host, time.time(), server.workers)
        keepers.append(Keeper("edgeprofile-adm", admin))
    if gateway.served(settings):
        keepers.append(Keeper("edgeprofile-gtw", partial(_serve_gateway, settings)))
    with contextlib.ExitStack() as running:
        for keeper in keepers:
            running.enter_context(keeper)
        server.serve(target_loader=partial(_load, settings), wrap_loader=False)


def _free_address(host: str, port: int, setting: str) -> str:
    address = address_of(host)
    if not is_free(address, port):
        raise UsageError(f"{address}:{port} is in use", hint=f"set {setting} to a free port")
    return address


def granian(settings: Settings) -> AbstractServer[Any]:
    """Granian with the options of these settings; what it serves is said to its `serve`."""
    return Granian(
        "edgeprofile",
        address=address_of(settings.server.host),
        port=settings.server.port,
        interface=Interfaces.ASGI,
        workers=settings.server.workers or os.cpu_count() or 1,
        # HTTP/1 alone is a shorter way through Granian than telling the versions apart; a proxy that speaks
        # HTTP/2 to callers speaks HTTP/1.1 to us.
        http=HTTPModes.http1,
        websockets=False,
        # A worker has one thread for its connections: telling it so costs less than a pool of one.
        runtime_mode=RuntimeModes.st,
        loop=Loops.auto,
        backlog=4096,
        # Each worker's queue of accepted requests; a lookup takes microseconds, so it never fills for long.
        backpressure=4096,
        http1_settings=HTTP1,
        # A worker that was killed is replaced at once; one that dies again and again ends the service with status
        # 1, which tells the supervisor.
        respawn_failed_workers=True,
        respawn_interval=0.1,
        workers_kill_timeout=max(1, round(settings.server.drain_seconds)),
        log_dictconfig=LOGGING,
        log_level=LogLevels.warning,
    )


def _load(settings: Settings) -> Front:
    """Runs in each worker."""
    try:
        loop = asyncio.get_event_loop()
        front = build_app(settings)
        if isinstance(loop, Loop):
            loop.front = front
        return front
    except Exception as error:
        log.error("the worker cannot start: %s", error)
        sys.exit(1)


def _serve_gateway(settings: Settings) -> None:
    """Runs in the gateway's process, until that is told to end or is killed."""
    try:
        gateway.run(settings, open_shared(settings))
    except Exception as error:
        log.error("the gateway cannot serve: %s", error)
        sys.exit(1)


def _serve_admin(settings: Settings, host: str, started_at: float, workers: int) -> None:
    """Runs in the admin listener's process, until that is killed."""
    try:
        app = build_admin(Exposition(settings, open_shared(settings), started_at, workers))
        server = EmbeddedServer(
            app,
            address=host,
            port=settings.server.admin_port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            websockets=False,
            http1_settings=HTTP1,
            log_dictconfig=LOGGING,
            # Its one warning is that to be embedded is experimental: if it fails, it is started again.
            log_level=LogLevels.error,
        )
        asyncio.run(server.serve())
    except Exception as error:
        log.error("the admin listener cannot serve: %s", error)
        sys.exit(1)
