"""What 10 million profiles cost that 10 thousand do not: latency, the start, memory, and room on disk.

The profiles are generated, some 600 bytes of JSON each, and loaded by `edgeprofile load`. Two services, one a size, run
side by side and are asked in turn, by an open loop, for ids drawn from the whole range. The page cache is warm: each
worker has hashed its snapshot's file by then. At the end all is removed; 10 million take some 7 GB, and while they are
loaded up to 18 GB.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

from generated import Generated, json_bytes, lacking_room
from harness import (
    HOST,
    Load,
    Row,
    Server,
    Spread,
    Stage,
    Target,
    alternate,
    cpu_s,
    free_port,
    parser,
    run,
    start_edgeprofile,
)
from loads import Load as Loaded
from memory import MIB, kept_by, worker_pids
from openloop import Generator, Latencies, lacking_compiler

from edgeprofile import demo, snapshot

RATE = 1_000
FEW = 10_000
WORKSPACE = "shop"
START_TARGET, P99_TARGET = Target("≤", 1), Target("≤", 1.2)
MEMORY_TARGET, STORE_TARGET, LOAD_TARGET = Target("≤", 80), Target("≤", 1.25), Target("≤", 1024)
SETTLE_SECONDS_MAX = 120.0
# Of a core: what a worker uses that has nothing to do but to poll.
RESTING_SHARE = 0.05


class Size(NamedTuple):
    """A number of profiles, loaded, and how to ask for them."""

    profiles: int
    made: Generated
    loaded: Loaded
    load: Load


class Asked(NamedTuple):
    """A run of the generator, and what the server's CPU a request was meanwhile."""

    found: Latencies
    cpu_us: float


def options() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.set_defaults(pairs=5, seconds=10)
    made.add_argument("--profiles", type=int, default=10_000_000, help="of the large service (default 10 million)")
    return made


def measure(chosen: argparse.Namespace) -> Iterator[Row]:
    """Everything, over the same two snapshots."""
    if chosen.quick:
        chosen.profiles = 100_000
    with Stage() as stage:
        if why := lacking_room(stage.folder, chosen.profiles):
            yield Row.not_run(f"p99 with {chosen.profiles:,} profiles against {FEW:,}", why, P99_TARGET)
            return
        many, few = (prepare(stage, profiles) for profiles in (chosen.profiles, FEW))
        yield load_row(many)
        yield start_row(many, few, chosen.pairs)
        yield from latency_and_memory(stage, many, few, chosen)
        yield store_row(many)


def prepare(stage: Stage, profiles: int) -> Size:
    made = Generated(stage.folder / f"generated-{profiles}", {WORKSPACE: profiles})
    return Size(profiles, made, made.load(WORKSPACE), made.lookups(WORKSPACE))


def load_row(many: Size) -> Row:
    """Memory of the load, which must not grow with its size."""
    took = many.loaded
    return Row.measured(
        f"load of {many.profiles:,} generated profiles, own memory at most",
        took.anonymous_bytes / MIB,
        LOAD_TARGET,
        unit="MiB",
        ours=f"{took.seconds:.1f} s, {many.profiles / took.seconds:,.0f} a second",
    )


# --- the start -----------------------------------------------------------------------------------------------------


def start_row(many: Size, few: Size, pairs: int) -> Row:
    """From the start of the command to the first 200."""
    measured = alternate(lambda: first_answer_s(many), lambda: first_answer_s(few), pairs)
    return Row.measured(
        f"start to first answer, {many.profiles:,} profiles",
        Spread.of(a for a, _ in measured),
        START_TARGET,
        unit="s",
        peer=f"{FEW:,}: {statistics.median(b for _, b in measured):.3f} s",
    )


def first_answer_s(size: Size) -> float:
    """Starts a service of its own, asks until it has answered, and ends it."""
    port = free_port()
    path = next(size.made.paths(WORKSPACE))
    with Stage() as stage:
        began = time.monotonic()
        command = [*demo.COMMAND, "serve", "--config", str(size.made.file)]
        names = {"HOST": HOST, "PORT": str(port), "ADMIN_PORT": "0"}
        running = stage.start(command, {f"EDGEPROFILE_SERVER__{name}": value for name, value in names.items()})
        server = Server((running,), port)
        running.wait_until(lambda: server.ask(path, *size.load.headers)[0] == 200)
        return time.monotonic() - began


# --- latency, CPU and memory ---------------------------------------------------------------------------------------


def latency_and_memory(stage: Stage, many: Size, few: Size, chosen: argparse.Namespace) -> Iterator[Row]:
    """Pairs at 1,000 requests a second; the large one's memory after them, and the CPU of both."""
    title = f"p99 with {many.profiles:,} profiles against {FEW:,}, {RATE:,}/s"
    servers = {size.profiles: start_edgeprofile(stage, size.made.file) for size in (many, few)}
    for server in servers.values():
        settle(server)
    if why := lacking_compiler():
        yield Row.not_run(title, why, P99_TARGET)
    else:
        generator = Generator(stage)

        def ask(size: Size) -> Asked:
            server = servers[size.profiles]
            before = cpu_s(*server.pids)
            found = generator.run(server, size.load, RATE, chosen.seconds)
            return Asked(found, (cpu_s(*server.pids) - before) / max(1, found.sent) * 1e6)

        pairs = alternate(lambda: ask(many), lambda: ask(few), chosen.pairs)
        p99, cpu = (
            Spread.of(a.found.p99 / b.found.p99 for a, b in pairs),
            Spread.of(a.cpu_us / b.cpu_us for a, b in pairs),
        )
        yield Row.measured(title, p99, P99_TARGET, ours=text(a for a, _ in pairs), peer=text(b for _, b in pairs))
        yield Row.measured("CPU a request of the same", cpu)
        failed = sum(each.found.failed() for pair in pairs for each in pair)
        yield Row("failed requests of the same", figure=str(failed), target="0", verdict=verdict(failed == 0))
    kept = kept_by(worker_pids(servers[many.profiles])[0])
    what = f"worker's memory beyond the mapped file, {many.profiles:,} profiles"
    yield Row.measured(what, kept.bytes / MIB, MEMORY_TARGET, unit="MiB", ours="all but the snapshot, libraries too")


def text(runs: Iterator[Asked]) -> str:
    known = list(runs)
    p99, cpu_us = statistics.median(each.found.p99 for each in known), statistics.median(each.cpu_us for each in known)
    return f"p99 {p99:,.0f} µs, CPU {cpu_us:.0f}"


def verdict(is_reached: bool) -> str:
    return "reached" if is_reached else "missed"


def settle(server: Server) -> None:
    """Waits until a server rests: a worker hashes the snapshot that it started with when it serves it already."""
    give_up = time.monotonic() + SETTLE_SECONDS_MAX
    before = cpu_s(*server.pids)
    while time.monotonic() < give_up:
        time.sleep(1)
        now = cpu_s(*server.pids)
        if now - before < RESTING_SHARE:
            return
        before = now


# --- room on disk --------------------------------------------------------------------------------------------------


def store_row(many: Size) -> Row:
    """The file against the sum of all answers as JSON."""
    folder = many.made.snapshot(WORKSPACE)
    stored, text_bytes = snapshot.read_manifest(folder).file_bytes, json_bytes(folder)
    return Row.measured(
        "store size against the JSON itself",
        stored / text_bytes,
        STORE_TARGET,
        ours=f"{stored / many.profiles:.0f} bytes a profile",
        peer=f"{text_bytes / many.profiles:.0f} bytes",
    )


if __name__ == "__main__":
    run(__doc__, measure, options())
