"""What a caller waits at 1,000 requests a second: against a constant answer, and while snapshots are swapped.

The load is an open loop (openloop.c): requests go out at random moments whatever the answers do, and each latency
counts from its moment. The second part serves two workspaces of a million generated profiles. One is asked, while its
CURRENT is swapped to and fro between two published snapshots, each time after the worker serves the one before; the
other is loaded and published again and again meanwhile, by `edgeprofile load --watch`. The generator is kept on the
processor that a watcher's loads leave to others: callers are elsewhere. How much of what is seen is the loader's tells
the leg in which it runs, and nothing is swapped in the workspace that is asked.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from generated import Generated, lacking_room
from harness import (
    PROFILES,
    Load,
    Row,
    Server,
    Spread,
    Stage,
    Target,
    alternate,
    end,
    make_shop,
    parser,
    run,
    start_constant,
    start_edgeprofile,
    walk,
)
from openloop import Generator, Latencies, lacking_compiler
from swaps import Swapper

from edgeprofile.demo import PROFILE_ID

RATE = 1_000
RUN_SECONDS_MAX = 3_600
ASKED, LOADED = "asked", "loaded"
RATIO, ABSOLUTE = "p99 against the constant answer, 1,000/s", "p99, 1,000/s"
RATIO_TARGET, ABSOLUTE_TARGET = Target("≤", 1.3), Target("≤", 2)
SWAPS_TARGET = Target("≤", 1.5)


def options() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.set_defaults(pairs=5, seconds=10)
    made.add_argument("--profiles", type=int, default=1_000_000, help="of each workspace (default a million)")
    made.add_argument("--swaps", type=int, default=100, help="in all (default 100)")
    return made


def measure(chosen: argparse.Namespace) -> Iterator[Row]:
    """Both parts."""
    if chosen.quick:
        chosen.profiles, chosen.swaps = 20_000, 4
    if why := lacking_compiler():
        yield Row.not_run(RATIO, why, RATIO_TARGET)
        yield Row.not_run(ABSOLUTE, why, ABSOLUTE_TARGET, unit="ms")
        yield Row.not_run(swaps_title(chosen), why, SWAPS_TARGET)
        return
    yield from against_constant(chosen)
    yield from during_swaps(chosen)


# --- against the constant answer -----------------------------------------------------------------------------------


def against_constant(chosen: argparse.Namespace) -> Iterator[Row]:
    """Whole profiles of the sample shop, at random."""
    with Stage() as stage:
        generator = Generator(stage)
        shop = make_shop(stage.folder / "shop")
        ours = start_edgeprofile(stage, shop.file)
        ids = range(int(PROFILE_ID), int(PROFILE_ID) + PROFILES)
        load = walk(
            stage.folder, [f"/v1/profiles/id/{each}" for each in random.Random(3).sample(ids, PROFILES)], shop.header
        )
        body_bytes = round(
            statistics.mean(len(ours.ask(f"/v1/profiles/id/{each}", shop.header)[1]) for each in ids[:200])
        )
        constant = start_constant(stage, shop.file, body_bytes)

        def asked(server: Server) -> Latencies:
            return generator.run(server, load, RATE, chosen.seconds)

        pairs = alternate(lambda: asked(ours), lambda: asked(constant), chosen.pairs)
    ratio, p99_ms = Spread.of(a.p99 / b.p99 for a, b in pairs), Spread.of(a.p99 / 1e3 for a, _ in pairs)
    ours_text, peer_text = quantiles(a for a, _ in pairs), quantiles(b for _, b in pairs)
    yield Row.measured(RATIO, ratio, RATIO_TARGET, ours=ours_text, peer=peer_text)
    yield Row.measured(ABSOLUTE, p99_ms, ABSOLUTE_TARGET, unit="ms")
    yield lateness("against the constant", [each for pair in pairs for each in pair])


def quantiles(runs: Iterator[Latencies]) -> str:
    """Medians over the runs of p50 and p99, as text."""
    known = list(runs)
    p50, p99 = statistics.median(each.p50 for each in known), statistics.median(each.p99 for each in known)
    return f"p50 {p50:.0f}, p99 {p99:,.0f} µs"


def lateness(when: str, runs: Sequence[Latencies]) -> Row:
    """How far the generator itself is to be believed: it sent that much after it should have."""
    spread = Spread.of(each.late_p99 for each in runs)
    return Row.measured(f"the generator's own lateness {when}, p99", spread, unit="µs")


# --- while snapshots are swapped -----------------------------------------------------------------------------------


class Legs(NamedTuple):
    """A round: with nothing else going on, with the loader, and with the loader and swaps."""

    quiet: Latencies
    loading: Latencies
    swapping: Latencies


def swaps_title(chosen: argparse.Namespace) -> str:
    return f"p99.9 during {chosen.swaps} swaps of {chosen.profiles:,}, loader running"


def during_swaps(chosen: argparse.Namespace) -> Iterator[Row]:
    """The legs of each round follow each other in turn."""
    title = swaps_title(chosen)
    with Stage() as stage:
        # At the most two snapshots of the one, and three of the other.
        if why := lacking_room(stage.folder, 5 * chosen.profiles):
            yield Row.not_run(title, why, SWAPS_TARGET)
            return
        generator = Generator(stage, processor=max(os.sched_getaffinity(0)))
        made = Generated(stage.folder / "generated", {ASKED: chosen.profiles, LOADED: chosen.profiles})
        for workspace in (LOADED, ASKED, ASKED):
            made.load(workspace)
        made.vary(LOADED)
        load = made.lookups(ASKED)
        server = start_edgeprofile(stage, made.file)
        swapper = Swapper(made.home(ASKED), server)
        swapper.swap()
        each_round = math.ceil(chosen.swaps / chosen.pairs)
        rounds = []
        for _ in range(chosen.pairs):
            quiet = generator.run(server, load, RATE, chosen.seconds)
            watcher = made.watch(stage, LOADED, every_s=1)
            loading = generator.run(server, load, RATE, chosen.seconds)
            swapping = while_swapping(generator, server, load, swapper, each_round, chosen.seconds)
            rounds.append(Legs(quiet, loading, swapping))
            end(watcher.process)
    yield from verdicts(title, rounds)


def while_swapping(
    generator: Generator, server: Server, load: Load, swapper: Swapper, swaps: int, seconds: int
) -> Latencies:
    """A run that lasts as long as the swaps."""
    running = generator.start(server, load, RATE, RUN_SECONDS_MAX, ("-w", "0"))
    began = time.monotonic()
    for done in range(swaps):
        # Small snapshots are served so soon that the run would be over before it has measured anything.
        time.sleep(max(0, began + (done + 1) * seconds / swaps - time.monotonic()))
        swapper.swap()
    return generator.finish(running)


def verdicts(title: str, rounds: Sequence[Legs]) -> Iterator[Row]:
    def p99_9(of: Callable[[Legs], Latencies]) -> str:
        return f"p99.9 {statistics.median(of(each).p99_9 for each in rounds):,.0f} µs"

    ratio = Spread.of(each.swapping.p99_9 / each.quiet.p99_9 for each in rounds)
    peer = p99_9(lambda each: each.quiet)
    yield Row.measured(title, ratio, SWAPS_TARGET, ours=p99_9(lambda each: each.swapping), peer=peer)
    loader = Spread.of(each.loading.p99_9 / each.quiet.p99_9 for each in rounds)
    yield Row.measured("the same, loader alone", loader, ours=p99_9(lambda each: each.loading), peer=peer)
    failed, sent = (sum(count(leg) for each in rounds for leg in each) for count in (Latencies.failed, sent_by))
    yield Row(
        "failed requests meanwhile",
        figure=f"{failed} of {sent:,}",
        target="0",
        verdict="missed" if failed else "reached",
    )
    yield lateness("during swaps", [each.swapping for each in rounds])


def sent_by(leg: Latencies) -> int:
    return leg.sent + leg.unsent


if __name__ == "__main__":
    run(__doc__, measure, options())
