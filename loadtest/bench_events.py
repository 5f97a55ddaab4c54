"""What a page of events costs: the newest hundred of a long history, against those of a short one and a lookup.

All are asked of one server and one snapshot, in turn. Printed are CPU microseconds of all server processes a request
and requests a second; the figure is the ratio of the CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

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
    run,
    start_edgeprofile,
    unlimited_key,
)

from edgeprofile import settings
from edgeprofile.loader.refresh import refresh

WORKSPACE = "shop"
FEW, MANY = 100, 100_000
PAGE = 100
SETTINGS = """
data_dir = "var"
[workspaces.shop]
source = {{ url = "duckdb://" }}
[workspaces.shop.profiles]
sql = "SELECT unnest(['few', 'many']) AS id, 'Jane' AS first_name, 'jane@example.com' AS email"
id = "id"
[workspaces.shop.events]
sql = "{sql}"
profile = "profile"
name = "name"
time = "time"
id = "id"
[workspaces.shop.intilery]
client = "acme"
account = "marketing"
brand = "MARKETING"
"""
# Of the same newest events, but for their profile: only what is behind them differs.
EVENTS = """SELECT profile, 'e' || i AS id, 'name ' || i % 5 AS name,
TIMESTAMP '2025-06-10' - INTERVAL (i) MINUTE AS time, '/products/' || i AS page, i * 0.25 AS amount
FROM range({many}) r(i), (VALUES ('few', {few}), ('many', {many}))
AS made(profile, count) WHERE i < count""".replace("\n", " ")
TITLE = "newest 100 events"
NATIVE, INTILERY = "/v1/profiles/id/", "/track/acme/marketing/MARKETING/v1/profiles/id:"
TARGETS = (
    (f"{TITLE} of {MANY:,}, against those of {FEW}", f"{NATIVE}many/events", f"{NATIVE}few/events", Target("≤", 1.5)),
    (f"{TITLE} of {FEW}, against a lookup", f"{NATIVE}few/events", f"{NATIVE}few", Target("≤", 2.5)),
    (f"{TITLE} of one name of {MANY:,}, against those of {FEW}", f"{NATIVE}many/events?name=name+1&limit=20",
     f"{NATIVE}few/events?name=name+1&limit=20", None),
    (f"{TITLE} as Intilery has them, against a lookup", f"{INTILERY}few/events", f"{NATIVE}few", Target("≤", 2.5)),
)  # fmt: skip


def measure(chosen: argparse.Namespace) -> Iterator[Row]:
    """Pairs of each kind of page with what it is held against."""
    if why := absent("wrk"):
        yield from (Row.not_run(title, why, target) for title, _, _, target in TARGETS)
        return
    with Stage() as stage:
        file, headers = make(stage.folder)
        server = start_edgeprofile(stage, file)
        for title, ours, peer, target in TARGETS:
            load, other = (Load(path, headers) for path in (ours, peer))
            yield against(title, target, server, load, other, chosen)


def make(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Loads two profiles and their events; the settings' file, and the headers of a key."""
    file = folder / settings.FILE
    file.write_text(SETTINGS.format(sql=EVENTS.format(few=FEW, many=MANY)), encoding="utf-8")
    loaded = settings.load(file, {})
    refresh(loaded, WORKSPACE, force=True, progress=lambda *_: None)
    key = unlimited_key(loaded.data_dir, WORKSPACE)
    return file, (f"Authorization: Bearer {key}", f"auth-token: {key}")


def against(
    title: str, target: Target | None, server: Server, ours: Load, peer: Load, chosen: argparse.Namespace
) -> Row:
    for load in (ours, peer):
        status, body = server.ask(load.path, *load.headers)
        if status != 200:
            return Row.not_run(title, f"answered {status}", target)
        if load.path.endswith("/events") and PAGE not in (len(part or ()) for part in json.loads(body).values()):
            raise ValueError(f"a page has not the {PAGE} events that it should")
        server.wrk(load, 1)
    pairs = alternate(lambda: server.wrk(ours, chosen.seconds), lambda: server.wrk(peer, chosen.seconds), chosen.pairs)
    ratio = Spread.of(a.cpu_us / b.cpu_us for a, b in pairs)
    return Row.measured(title, ratio, target, ours=cost(a for a, _ in pairs), peer=cost(b for _, b in pairs))


if __name__ == "__main__":
    run(__doc__, measure)
