"""What a caller waits while the loader rebuilds, every minute, all profiles of the workspace that is asked.

Lookups of a million generated profiles come at 1,000 a second, in an open loop, for a minute with nothing else going on
and for a minute beside `edgeprofile load --watch`, in turn. Each rebuild is published, because a column changes, and
taken over by the worker. The generator is kept on the processor that a watcher's loads leave to others, in both cases:
callers are elsewhere, and do not wait for the loader. That the worker may have to share that processor with it is
a part of what is measured.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from bench_latency import RATE, lateness, quantiles
from generated import Generated, lacking_room
from harness import BenchError, Row, Spread, Stage, Target, alternate, end, parser, run, start_edgeprofile
from openloop import Generator, Latencies, lacking_compiler

from edgeprofile import outcomes

REBUILT = "rebuilt"
TARGET = Target("≤", 1.5)


def options() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.set_defaults(pairs=3, seconds=60)
    made.add_argument("--profiles", type=int, default=1_000_000, help="how many there are (default a million)")
    return made


def measure(chosen: argparse.Namespace) -> Iterator[Row]:
    """Legs without and with rebuilds, in turn."""
    if chosen.quick:
        chosen.profiles = 20_000
    title = f"p99 while {chosen.profiles:,} are rebuilt every {chosen.seconds} s, {RATE:,}/s"
    if why := lacking_compiler():
        yield Row.not_run(title, why, TARGET)
        return
    with Stage() as stage:
        # At the most three snapshots, of which one is being built.
        if why := lacking_room(stage.folder, 3 * chosen.profiles):
            yield Row.not_run(title, why, TARGET)
            return
        generator = Generator(stage, processor=max(os.sched_getaffinity(0)))
        made = Generated(stage.folder / "generated", {REBUILT: chosen.profiles})
        made.vary(REBUILT)
        made.load(REBUILT)
        load = made.lookups(REBUILT)
        server = start_edgeprofile(stage, made.file)

        def asked() -> Latencies:
            return generator.run(server, load, RATE, chosen.seconds)

        def asked_meanwhile() -> Latencies:
            """A rebuild begins in each cadence, wherever in it that is."""
            before = published(made)
            watcher = made.watch(stage, REBUILT, chosen.seconds)
            latencies = asked()
            watcher.wait_until(lambda: published(made) > before)
            end(watcher.process)
            return latencies

        pairs = alternate(asked_meanwhile, asked, chosen.pairs)
        took = [each.seconds for each in outcomes.read(made.home(REBUILT)).last[1:] if each.outcome == "published"]
    yield from verdicts(title, pairs)
    yield Row("rebuilds meanwhile", figure=f"{len(took)}, of {Spread.of(took)} s")


def published(made: Generated) -> int:
    """How many rebuilds have been published. Raises BenchError where one was not."""
    counts = outcomes.read(made.home(REBUILT)).counts
    if set(counts) - {"published", "interrupted"}:
        raise BenchError(f"a rebuild failed: {counts}")
    return counts["published"]


def verdicts(title: str, pairs: list[tuple[Latencies, Latencies]]) -> Iterator[Row]:
    busy, quiet = ([pair[at] for pair in pairs] for at in (0, 1))
    texts = {"ours": quantiles(iter(busy)), "peer": quantiles(iter(quiet))}
    yield Row.measured(title, Spread.of(a.p99 / b.p99 for a, b in pairs), TARGET, **texts)
    yield Row.measured("p99.9 of the same", Spread.of(a.p99_9 / b.p99_9 for a, b in pairs))
    yield Row.measured(
        "failed requests of the same", sum(each.failed() for each in quiet + busy), Target("≤", 0), unit=""
    )
    yield lateness("of the same", busy)


if __name__ == "__main__":
    run(__doc__, measure, options())
