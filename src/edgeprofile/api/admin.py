"""What operators and their programs ask of a service, on a port of its own: `/metrics`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgeprofile.api.problems import HANDLERS


def build_admin(metrics: Collector) -> Starlette:
    """The admin listener's app."""
    registry = CollectorRegistry()
    registry.register(metrics)

    async def scrape(request: Request) -> Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except TypeError:  # a version that is no number
            encode, content_type = choose_encoder("")
        return Response(encode(registry), headers={"content-type": content_type, "cache-control": "no-store"})

    app = Starlette(routes=[Route("/metrics", scrape)], exception_handlers=HANDLERS)
    app.router.redirect_slashes = False
    return app
