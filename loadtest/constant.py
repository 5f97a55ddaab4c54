"""The floor: Granian on uvloop, with the options of `edgeprofile serve`, and an ASGI app that answers a constant.

Run as `python constant.py SETTINGS_FILE BODY_BYTES`; the environment overrides settings as it does for the service.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from granian.constants import Loops

from edgeprofile import settings
from edgeprofile.server import granian


def make_app(body_bytes: int) -> Any:
    """The least that an ASGI app can do: the two messages, made beforehand, whatever was asked."""
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
    body = {"type": "http.response.body", "body": b"x" * body_bytes}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send(start)
            await send(body)
            return
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    return app


if __name__ == "__main__":
    file, body_bytes = sys.argv[1:]
    server = granian(settings.load(Path(file)))
    # What a service's own loop gains is part of what is measured, not of the floor.
    server.loop = Loops.uvloop
    server.serve(target_loader=partial(make_app, int(body_bytes)), wrap_loader=False)
