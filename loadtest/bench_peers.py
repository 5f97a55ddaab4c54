"""What lookups cost against what a user would pick instead: nginx + Lua + Redis, and FastAPI + uvicorn + redis-py.

All have one worker (nginx, uvicorn and we; Redis, which answers both peers, is a process more), hold the same profiles,
get the same requests for ids at random, and check the key. The first figure is how many times the peer's requests a
second ours are, at capacity, with wrk on the same machine; the second how many times our CPU a request theirs is, that
of Redis included.
"""

from __future__ import annotations

import argparse
import http.client
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

from harness import (
    HOST,
    PROFILES,
    Measured,
    Row,
    Server,
    Shop,
    Spread,
    Stage,
    Target,
    absent,
    compare,
    cost,
    make_shop,
    run,
    start_edgeprofile,
    walk,
)
from peers import FASTAPI, FASTAPI_MODULES, NGINX, nginx_modules, start_fastapi, start_nginx, start_redis

from edgeprofile.demo import PROFILE_ID

PREFIX = "/v1/profiles/id/"
MANY_CONNECTIONS = 64


class Peer(NamedTuple):
    """A peer's name, how it is started, how many times its requests a second ours should be, and why it cannot be."""

    name: str
    start: Callable[..., Server]
    target: Target
    why_not: str


def peers() -> list[Peer]:
    lacking = absent("wrk", *NGINX)
    if not lacking and nginx_modules() is None:
        lacking = "nginx's Lua module (libnginx-mod-http-lua) not installed"
    return [
        Peer("nginx + Lua + Redis", start_nginx, Target("≥", 1.1), lacking),
        Peer("FastAPI + Redis", start_fastapi, Target("≥", 8), absent("wrk", *FASTAPI, modules=FASTAPI_MODULES)),
    ]


def measure(chosen: argparse.Namespace) -> Iterator[Row]:
    """Requests a second and CPU a request against each peer that is installed."""
    for peer in peers():
        rate, cpu = f"requests a second against {peer.name}", f"CPU a request of {peer.name} against ours"
        if peer.why_not:
            yield Row.not_run(rate, peer.why_not, peer.target)
            yield Row.not_run(cpu, peer.why_not)
            continue
        with Stage() as stage:
            shop = make_shop(stage.folder / "shop")
            ours = start_edgeprofile(stage, shop.file)
            ids = [str(int(PROFILE_ID) + number) for number in range(PROFILES)]
            redis = start_redis(stage)
            redis.fill(answers(ours, ids, shop))
            theirs = peer.start(stage, redis, shop.header, PREFIX + PROFILE_ID)
            if theirs.ask(PREFIX + PROFILE_ID, shop.header) != ours.ask(PREFIX + PROFILE_ID, shop.header):
                raise ValueError(f"{peer.name} answers something else")
            random.Random(3).shuffle(ids)
            load = walk(stage.folder, [PREFIX + each for each in ids], shop.header)
            pairs = compare(ours, theirs, load, chosen.pairs, chosen.seconds)
            crowd = compare(ours, theirs, load, chosen.pairs, chosen.seconds, MANY_CONNECTIONS)
        yield against(rate, pairs, peer.target)
        yield against(f"the same over {MANY_CONNECTIONS} connections", crowd)
        cheaper = Spread.of(b.cpu_us / a.cpu_us for a, b in pairs)
        yield Row.measured(cpu, cheaper, ours=cost(a for a, _ in pairs), peer=cost(b for _, b in pairs))


def against(what: str, pairs: list[tuple[Measured, Measured]], target: Target | None = None) -> Row:
    """How many times the peer's requests a second ours are."""
    faster = Spread.of(a.rate / b.rate for a, b in pairs)
    return Row.measured(what, faster, target, ours=cost(a for a, _ in pairs), peer=cost(b for _, b in pairs))


def answers(ours: Server, ids: list[str], shop: Shop) -> dict[str, bytes]:
    """What we answer for these ids, asked over one connection."""
    name, _, value = shop.header.partition(": ")
    with closing(http.client.HTTPConnection(HOST, ours.port, timeout=30)) as connection:
        found = {}
        for each in ids:
            connection.request("GET", PREFIX + each, headers={name: value})
            found[each] = connection.getresponse().read()
        return found


if __name__ == "__main__":
    run(__doc__, measure)
