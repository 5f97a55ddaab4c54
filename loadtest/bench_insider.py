"""What a call of Insider's API costs, against a lookup by id.

Both are asked of one server and one snapshot, in turn. Printed are CPU microseconds of all server processes a request
and requests a second; the figure is the ratio of the CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from harness import (
    Load,
    Row,
    Server,
    Spread,
    Stage,
    Target,
    absent,
    alternate,
    cost,
    make_shop,
    run,
    start_edgeprofile,
    walk,
)

from edgeprofile.demo import PROFILE_ID

PATH = "/api/user/v1/profile"
LOOKUP = f"/v1/profiles/id/{PROFILE_ID}"
TEN = ["email", "phone", "first_name", "last_name", "language", "country", "c_city", "c_tier", "orders"]
TEN += ["lifetime_value"]
WANTED = [
    {"event_name": "order_placed", "params": ["amount", "channel", "timestamp"]},
    {"event_name": "product_viewed", "params": ["product", "timestamp"]},
    {"event_name": "searched", "params": ["details", "timestamp"]},
]
ASKED = {"identifiers": {"email": "jane@example.com"}, "attributes": TEN}
EVENTS = {"start_date": 0, "end_date": 2_000_000_000, "wanted": WANTED}
CALLS = (
    ("Insider's API, ten attributes, against a lookup", ASKED, Target("≤", 2.5)),
    ("the same with three kinds of events", {**ASKED, "events": EVENTS}, None),
)
# As many calls as there is time for.
FREE = {"EDGEPROFILE_WORKSPACES__SHOP__INSIDER__USER_BASE_FACTOR": "0"}


def measure(chosen: argparse.Namespace) -> Iterator[Row]:
    """Pairs of each call with a lookup."""
    if why := absent("wrk"):
        yield from (Row.not_run(title, why, target) for title, _, target in CALLS)
        return
    with Stage() as stage:
        shop = make_shop(stage.folder / "shop")
        server = start_edgeprofile(stage, shop.file, environment=FREE)
        headers = ("X-PARTNER-NAME: demo", f"X-REQUEST-TOKEN: {shop.key}", "Content-Type: application/json")
        for title, asked, target in CALLS:
            body = json.dumps(asked)
            status, _ = server.ask(PATH, *headers, method="POST", body=body.encode())
            if status == 200:
                call = walk(stage.folder, [f"{PATH} {body}"], *headers)
                yield against(title, target, server, call, Load(LOOKUP, (shop.header,)), chosen)
            else:
                yield Row.not_run(title, f"answered {status}", target)


def against(
    title: str, target: Target | None, server: Server, ours: Load, peer: Load, chosen: argparse.Namespace
) -> Row:
    for load in (ours, peer):
        server.wrk(load, 1)
    pairs = alternate(lambda: server.wrk(ours, chosen.seconds), lambda: server.wrk(peer, chosen.seconds), chosen.pairs)
    ratio = Spread.of(a.cpu_us / b.cpu_us for a, b in pairs)
    return Row.measured(title, ratio, target, ours=cost(a for a, _ in pairs), peer=cost(b for _, b in pairs))


if __name__ == "__main__":
    run(__doc__, measure)
