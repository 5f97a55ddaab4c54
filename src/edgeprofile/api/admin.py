"""What operators and their programs ask of a service, on a port of its own: `/metrics`, and the console."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgeprofile.api.problems import HANDLERS
from edgeprofile.timeline import STEP_S, Timeline


def build_admin(metrics: Collector, console: list[Route], timeline: Timeline) -> Starlette:
    """The admin listener's app. Its lifespan keeps the timeline."""
    registry = CollectorRegistry()
    registry.register(metrics)

    async def scrape(request: Request) -> Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except TypeError:  # a version that is no number
            encode, content_type = choose_encoder("")
        return Response(encode(registry), headers={"content-type": content_type, "cache-control": "no-store"})

    app = Starlette(
        routes=[Route("/metrics", scrape), *console],
        exception_handlers=HANDLERS,
        lifespan=lambda _: _noting(timeline),
    )
    app.router.redirect_slashes = False
    return app


@contextlib.asynccontextmanager
async def _noting(timeline: Timeline) -> AsyncIterator[None]:
    async def note() -> None:
        while True:
            await asyncio.sleep(STEP_S)
            timeline.note()

    noting = asyncio.create_task(note())
    yield
    noting.cancel()
