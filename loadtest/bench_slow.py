"""What others wait while a thousand clients only stay connected, and while three hundred take their time.

Lookups of the sample shop come at 1,000 a second, in an open loop, without such clients and with them, in turn. Who
only stays connected has asked once; the service ends a connection on which nothing happens for ten seconds, and the
client makes another. Who takes his time sends headers or a body byte by byte, or asks much and hardly reads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

from harness import Row, Spread, Stage, Target, alternate, make_shop, parser, run, start_edgeprofile, walk
from openloop import Generator, Latencies, lacking_compiler
from slow import Kind, SlowClients, kinds

from edgeprofile.demo import PROFILE_ID

RATE, IDLE, SLOW, PROFILES = 1_000, 1_000, 300, 5_000
TITLES = {"idle": f"p99 with {IDLE:,} idle connections, 1,000/s", "slow": f"p99 with {SLOW} slow clients, 1,000/s"}
TARGET, NONE = Target("≤", 2), Target("≤", 0)
SETTLING_S = 2.0


def measure(chosen: argparse.Namespace) -> Iterator[Row]:
    """Both kinds, against none."""
    if why := lacking_compiler():
        yield from (Row.not_run(title, why, TARGET) for title in TITLES.values())
        return
    with Stage() as stage:
        generator = Generator(stage)
        shop = make_shop(stage.folder / "shop", PROFILES)
        server = start_edgeprofile(stage, shop.file)
        ids = range(int(PROFILE_ID), int(PROFILE_ID) + PROFILES)
        load = walk(stage.folder, (f"/v1/profiles/id/{each}" for each in ids), shop.header)
        slow = kinds(f"/v1/profiles/id/{PROFILE_ID}", shop.header)
        crowds = {
            "idle": {slow["idle"]: IDLE},
            "slow": {slow[name]: SLOW // 3 for name in ("headers", "body", "read")},
        }

        def quiet() -> Latencies:
            return generator.run(server, load, RATE, chosen.seconds)

        def crowded(crowd: dict[Kind, int]) -> tuple[Latencies, int]:
            with SlowClients(server.port, crowd) as clients:
                time.sleep(SETTLING_S)
                return quiet(), clients.connected

        for name, title in TITLES.items():
            pairs = alternate(lambda name=name: crowded(crowds[name]), quiet, chosen.pairs)  # type: ignore[misc]
            ratio = Spread.of(ours.p99 / peer.p99 for (ours, _), peer in pairs)
            connected = Spread.of(connected for (_, connected), _ in pairs)
            yield Row.measured(title, ratio, TARGET, ours=f"{connected} connected at the end")
            failed = sum(each.failed() for (ours, _), peer in pairs for each in (ours, peer))
            yield Row.measured("failed requests of the same", failed, NONE, unit="")


if __name__ == "__main__":
    options = parser(__doc__)
    options.set_defaults(pairs=4, seconds=5)
    run(__doc__, measure, options)
