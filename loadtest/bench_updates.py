"""How many updates a second are taken in calls of 10,000, and what lookups feel of them.

Lookups of the sample shop come at 1,000 a second, in an open loop, with nothing else going on and with updates. These
are a call a second, each of 10,000 other profiles with six attributes; one that takes longer is followed by the next at
once. Where the worker, the gateway, the loader and the generator have no core each, that is part of what is measured.
"""

from __future__ import annotations

import argparse
import http.client
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from harness import (
    HOST,
    BenchError,
    Row,
    Server,
    Shop,
    Spread,
    Stage,
    Target,
    make_shop,
    parser,
    run,
    start_edgeprofile,
    walk,
)
from openloop import Generator, Latencies, lacking_compiler

from edgeprofile import demo, keys, snapshot, wire
from edgeprofile.demo import PROFILE_ID

UPDATES, PROFILES, RATE = 10_000, 50_000, 1_000
TAKEN, FELT = "updates taken, 10,000 a call", "p99 of lookups, 1,000/s, while they are taken"
TAKEN_TARGET, FELT_TARGET = Target("≥", 10_000), Target("≤", 2)
SLACK = 0.99  # of the rate: the last call may end a little late


def measure(chosen: argparse.Namespace) -> Iterator[Row]:
    """Legs without and with updates, in turn."""
    if why := lacking_compiler():
        yield Row.not_run(TAKEN, why, TAKEN_TARGET, unit="/s")
        yield Row.not_run(FELT, why, FELT_TARGET)
        return
    with Stage() as stage:
        generator = Generator(stage)
        shop = make_shop(stage.folder / "shop", PROFILES)
        server = start_edgeprofile(stage, shop.file)
        loader = stage.start([*demo.COMMAND, "load", "--watch", "--config", shop.file])
        loader.wait_until((snapshot.home(shop.loaded.data_dir, demo.WORKSPACE) / wire.UPDATES).exists)
        ids = [f"/v1/profiles/id/{int(PROFILE_ID) + n}" for n in random.Random(3).sample(range(PROFILES), PROFILES)]
        load = walk(stage.folder, ids, shop.header)
        caller = Caller(server, shop)
        pairs: list[tuple[Latencies, Latencies]] = []
        rates: list[float] = []
        for _ in range(chosen.pairs):
            quiet = generator.run(server, load, RATE, chosen.seconds)
            with caller:
                pairs.append((quiet, generator.run(server, load, RATE, chosen.seconds)))
            rates.append(caller.rate)
    yield Row.measured(TAKEN, Spread.of(rates), Target("≥", TAKEN_TARGET.limit * SLACK), unit="/s")
    yield Row.measured(FELT, Spread.of(busy.p99 / quiet.p99 for quiet, busy in pairs), FELT_TARGET)
    failed = sum(each.failed() for pair in pairs for each in pair)
    yield Row.measured("failed lookups meanwhile", failed, Target("≤", 0), unit="")


class Caller:
    """Sends updates while the context lasts; `rate` is then how many a second were acknowledged."""

    def __init__(self, server: Server, shop: Shop) -> None:
        self._port = server.port
        batch = shop.loaded.workspaces[demo.WORKSPACE].batch
        assert batch is not None
        # Two keys in turn, because a key may send exactly what is to be shown.
        made = [keys.create(shop.loaded.data_dir, demo.WORKSPACE, scopes=["write"])[0] for _ in range(2)]
        self._headers = [
            {"Authorization": f"Bearer {key}", "X-Batch-Project": batch.project, "Content-Type": "application/json"}
            for key in made
        ]
        self._bodies = [msgspec.json.encode([update(n, call) for n in range(UPDATES)]) for call in range(5)]
        self.rate = 0.0

    def __enter__(self) -> None:
        self._stopping = threading.Event()
        self._fault: Exception | None = None
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        if self._fault is not None:
            raise BenchError(f"updates failed: {self._fault}")

    def _send(self) -> None:
        began, calls = time.monotonic(), 0
        connection = http.client.HTTPConnection(HOST, self._port, timeout=60)
        try:
            while not self._stopping.wait(max(0.0, began + calls - time.monotonic())):
                body, headers = self._bodies[calls % 5], self._headers[calls % 2]
                connection.request("POST", "/2.4/profiles/mass-update", body, headers)
                answer = connection.getresponse()
                content = answer.read()
                if content != b'{"code":"SUCCESS"}':
                    raise BenchError(f"status {answer.status}: {content[:200].decode()}")
                calls += 1
            # A call counts for the second that it begins, or for as long as it takes.
            self.rate = calls * UPDATES / max(time.monotonic() - began, calls)
        except (OSError, http.client.HTTPException, BenchError) as error:
            self._fault = error
        finally:
            connection.close()


def update(number: int, call: int) -> dict[str, Any]:
    attributes = {
        "$email_address": f"customer{number}@example.com",
        "$email_marketing": "subscribed",
        "$language": "en",
        "first_name": "Jane",
        "date(birthday)": "1989-07-20T00:00:00Z",
        "score": number + call,
    }
    return {"identifiers": {"custom_id": str(int(PROFILE_ID) + number + call * UPDATES)}, "attributes": attributes}


if __name__ == "__main__":
    options = parser(__doc__)
    options.set_defaults(pairs=3, seconds=10)
    run(__doc__, measure, options)
