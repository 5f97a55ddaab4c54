"""What a lookup costs, against the floor: Granian's ASGI answering a constant of the same size.

Both servers have one worker and get the same requests, key included. Printed are CPU microseconds of all server
processes a request and requests a second; the figure is the ratio of the CPU, ours against the constant's. A batch
has no peer: its figure is profiles a second of our CPU, and its costs are those of a whole batch.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Iterator
from typing import NamedTuple

from harness import (
    PROFILES,
    Load,
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
    start_constant,
    start_edgeprofile,
    walk,
)

from edgeprofile.api import mparticle
from edgeprofile.demo import PROFILE_ID

WHOLE = f"/v1/profiles/id/{PROFILE_ID}"
MPARTICLE = f"/userprofile/v1/1/2/3/{PROFILE_ID}?fields={','.join(mparticle.FIELDS)}"
BATCH = "/v1/profiles/lookup"
BATCH_PROFILES = 100
BATCH_BODIES = 50
BATCH_UNIT = "profiles/s a core"
BATCHES = (
    ("batch of 100, whole profiles", None, Target("≥", 400_000)),
    ("batch of 100, audiences", ["audiences"], None),
)
RANDOM = "by id, whole profile, ids at random"
# No two are neighbours in the record, so that each is a slice of its own.
EIGHT_FIELDS = (
    "identifiers.email,attributes.first_name,attributes.language,attributes.city,attributes.tier,"
    "attributes.lifetime_value,audiences.high_spenders,audiences.newsletter"
)


class Shape(NamedTuple):
    """A kind of lookup: what is asked, and what its CPU may be of the constant's."""

    what: str
    path: str
    target: Target | None
    headers: tuple[str, ...] = ()


SHAPES = (
    Shape("by id, whole profile", WHOLE, Target("≤", 1.10)),
    Shape("by id, fields= two sections", f"{WHOLE}?fields=attributes,audiences", Target("≤", 1.15)),
    Shape("by id, fields= eight single fields", f"{WHOLE}?fields={EIGHT_FIELDS}", Target("≤", 1.25)),
    Shape("by email", "/v1/profiles/identifier/email/jane@example.com", Target("≤", 1.15)),
    Shape("by id, whole profile, as MessagePack", WHOLE, None, ("Accept: application/msgpack",)),
    Shape("mParticle's API, all fields", MPARTICLE, None),
)


def measure(chosen: argparse.Namespace) -> Iterator[Row]:
    """The lookups one at a time, a whole profile at random, and the batch."""
    if why := absent("wrk"):
        yield from (Row.not_run(shape.what, why, shape.target) for shape in SHAPES)
        yield Row.not_run(RANDOM, why, SHAPES[0].target)
        yield from (Row.not_run(what, why, target, unit=BATCH_UNIT) for what, _, target in BATCHES)
        return
    with Stage() as stage:
        shop = make_shop(stage.folder / "shop")
        ours = start_edgeprofile(stage, shop.file)
        for shape in SHAPES:
            headers = (shop.header, *shape.headers)
            status, body = ours.ask(shape.path, *headers)
            if status == 200:
                load = Load(shape.path, headers)
                yield against_constant(shape.what, shape.target, ours, shop, load, len(body), chosen)
            else:
                yield Row.not_run(shape.what, f"answered {status}", shape.target)
        yield at_random(ours, shop, stage, chosen)
        yield from batches(ours, shop, stage, chosen)


def against_constant(
    what: str, target: Target | None, ours: Server, shop: Shop, load: Load, body_bytes: int, chosen: argparse.Namespace
) -> Row:
    """Pairs with a constant server of this load's own, whose answers are as long."""
    with Stage() as stage:
        constant = start_constant(stage, shop.file, body_bytes)
        pairs = compare(ours, constant, load, chosen.pairs, chosen.seconds)
    ratio = Spread.of(a.cpu_us / b.cpu_us for a, b in pairs)
    return Row.measured(what, ratio, target, ours=cost(a for a, _ in pairs), peer=cost(b for _, b in pairs))


def at_random(ours: Server, shop: Shop, stage: Stage, chosen: argparse.Namespace) -> Row:
    """Every profile of the shop in shuffled order, against a constant as long as they are on average."""
    paths = [f"/v1/profiles/id/{profile_id}" for profile_id in shuffled_ids()]
    body_bytes = round(statistics.mean(len(ours.ask(path, shop.header)[1]) for path in paths[:200]))
    load = walk(stage.folder, paths, shop.header)
    return against_constant(RANDOM, SHAPES[0].target, ours, shop, load, body_bytes, chosen)


def batches(ours: Server, shop: Shop, stage: Stage, chosen: argparse.Namespace) -> Iterator[Row]:
    """Profiles a CPU second of the server's, asked for a hundred at a time."""
    for what, fields, target in BATCHES:
        requests = [f"{BATCH} {body}" for body in batch_bodies(fields)]
        body = requests[0].removeprefix(f"{BATCH} ").encode()
        status, answer = ours.ask(BATCH, shop.header, "Content-Type: application/json", method="POST", body=body)
        if status != 200:
            yield Row.not_run(what, f"answered {status}", target, unit=BATCH_UNIT)
            continue
        if None in json.loads(answer)["profiles"]:
            raise ValueError("the batch lacks profiles that the shop has")
        load = walk(stage.folder, requests, shop.header, "Content-Type: application/json")
        ours.wrk(load, 1)
        runs = [ours.wrk(load, chosen.seconds) for _ in range(chosen.pairs)]
        figure = Spread.of(BATCH_PROFILES * each.requests / each.cpu_s for each in runs)
        yield Row.measured(what, figure, target, unit=BATCH_UNIT, ours=cost(runs))


def batch_bodies(fields: list[str] | None) -> list[str]:
    """Bodies of batch requests, no two of which ask for the same profile."""
    ids = shuffled_ids()
    choice = {} if fields is None else {"fields": fields}
    return [
        json.dumps({"profiles": [{"id": each} for each in ids[at :: PROFILES // BATCH_PROFILES]], **choice})
        for at in range(BATCH_BODIES)
    ]


def shuffled_ids() -> list[str]:
    ids = [str(int(PROFILE_ID) + number) for number in range(PROFILES)]
    random.Random(3).shuffle(ids)
    return ids


if __name__ == "__main__":
    run(__doc__, measure)
