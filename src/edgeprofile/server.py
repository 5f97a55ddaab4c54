"""Granian, set up for this service: the one place that imports it."""

from __future__ import annotations

import errno
import logging.config
import os
import signal
import socket
import sys
from functools import partial
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels

from edgeprofile._lookup import Lookup
from edgeprofile.app import build_app, open_shared
from edgeprofile.errors import UsageError
from edgeprofile.settings import Settings

PORTS_TRIED = 20

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


def free_port(host: str, wanted: int) -> int:
    """The first port from `wanted` on that nothing listens on."""
    for port in range(wanted, wanted + PORTS_TRIED):
        if is_free(host, port):
            return port
    raise UsageError(f"ports {wanted} to {wanted + PORTS_TRIED - 1} are all in use", hint="name a free one by --port")


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
            raise UsageError(f"{host}:{port} cannot be listened on: {error.strerror}", hint="set server.host") from None
    return True


def address_of(host: str) -> str:
    """The address that a name such as localhost stands for; Granian takes addresses only."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4][0])
    except OSError:
        raise UsageError(f"{host} is no address of this machine's", hint="set server.host to an address") from None


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then lets requests in flight finish for `drain_seconds` at most.

    Raises SystemExit(1) where workers die as fast as they are started.
    """
    host, port = address_of(settings.server.host), settings.server.port
    if not is_free(host, port):
        raise UsageError(f"{host}:{port} is in use", hint="set server.port to a free port")
    # Opened here once, so that a folder that cannot be used is one line and not a crash of every worker.
    open_shared(settings)
    logging.config.dictConfig(LOGGING)
    workers = settings.server.workers or os.cpu_count() or 1
    logging.getLogger("edgeprofile").info("serving on http://%s:%d with %d workers", host, port, workers)
    server = Granian(
        "edgeprofile",
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        workers=workers,
        # HTTP/1 alone is a shorter way through Granian than telling the versions apart; a proxy that speaks
        # HTTP/2 to callers speaks HTTP/1.1 to us.
        http=HTTPModes.http1,
        websockets=False,
        loop=Loops.uvloop,
        backlog=4096,
        # Each worker's queue of accepted requests; a lookup takes microseconds, so it never fills for long.
        backpressure=4096,
        http1_settings=HTTP1Settings(
            # A header that takes longer than this is a slow client's, or an attack.
            header_read_timeout=10_000,
            # 8 KB of URL and 32 KB of headers: more is answered 431 by Granian, before any of our code.
            max_buffer_size=40 * 1024,
        ),
        # A worker that was killed is replaced at once; one that dies again and again ends the service with status
        # 1, which tells the supervisor.
        respawn_failed_workers=True,
        respawn_interval=0.1,
        workers_kill_timeout=max(1, round(settings.server.drain_seconds)),
        log_dictconfig=LOGGING,
        log_level=LogLevels.warning,
    )
    # Granian starts its workers anew on SIGHUP; a terminal that was closed means that it is over.
    server.on_startup(lambda: signal.signal(signal.SIGHUP, server.signal_handler_interrupt))
    server.serve(target_loader=partial(_load, settings), wrap_loader=False)


def _load(settings: Settings) -> Lookup:
    """Runs in each worker."""
    try:
        return build_app(settings)
    except Exception as error:
        logging.getLogger("edgeprofile").error("the worker cannot start: %s", error)
        sys.exit(1)
