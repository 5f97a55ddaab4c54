"""`make soak`: ten minutes at 80 % of capacity, with swaps, killed workers, updates, a reload, slow and idle clients.

Capacity is what this machine gets through while a load runs and the generator is on it too: who is full without a load
has no room for one. A closed loop over 64 connections says how many requests a second are answered at most with nothing
else going on; then the open loop (openloop.c) is tried at that rate beside one load after the other, and at a tenth
less, and so on, until one is held for 20 seconds: everything is sent, and p99 is within the 30 ms that the
acceptance test allows. Of that, 80 % is asked for, of whole profiles, of a choice of fields, and of events, each
latency counting from its own moment. The generator is kept on the processor that a watcher's loads leave to others:
callers are elsewhere, and do not wait for the loader.

Before and behind the soak the same is asked for with nothing else going on; p99 is compared with either. A request that
fails counts, unless it was sent over a connection of a worker that was then killed. The one that is killed is the one
that was started last, so that the other is old in the end: its memory, and that of all other processes that live as
long, is flat where the median of the last quarter is at most 2 MiB above that of the second.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from bench_memory import growth
from harness import (
    BenchError,
    Load,
    Row,
    Server,
    Shop,
    Spread,
    Stage,
    Target,
    free_port,
    make_shop,
    parser,
    run,
    start_edgeprofile,
    tree,
    walk,
)
from memory import MIB
from openloop import Generator, Latencies, lacking_compiler
from slow import SlowClients, kinds
from troubles import Failure, Killer, Loader, Reloader, Scraper, Trouble, Updater

from edgeprofile import demo, snapshot, wire
from edgeprofile.demo import PROFILE_ID

PROFILES = 20_000
SHARE = 0.8
CLOSED_RATE, CLOSED_SECONDS = 100_000, 1
HELD_SECONDS, HELD_P99_US = 20, 30_000
SAMPLE_INTERVAL_S, SCRAPE_INTERVAL_S = 1.0, 5.0
GRACE_SECONDS = 30.0
# A worker on its way out has its clients for so long.
DRAIN_SECONDS = 2
FAILED, SLOWER = "failed requests, but for those in a killed worker's hands", "p99 against the quiet service"
MEMORY = "growth of memory"
NONE, SLOWER_TARGET, MEMORY_TARGET = Target("≤", 0), Target("≤", 2), Target("≤", 2)


def options() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--minutes", type=float, default=10, help="how long it is soaked (default 10)")
    made.add_argument("--workers", type=int, default=2, help="of the service (default 2)")
    made.add_argument("--rate", type=int, help="requests a second, instead of 80 %% of capacity")
    made.add_argument("--load-every", type=float, default=20, metavar="SECONDS", help="(default 20)")
    made.add_argument("--kill-every", type=float, default=30, metavar="SECONDS", help="(default 30)")
    made.add_argument("--update-every", type=float, default=5, metavar="SECONDS", help="(default 5)")
    made.add_argument("--slow", type=int, default=300, help="clients that take their time (default 300)")
    made.add_argument("--idle", type=int, default=500, help="clients that only stay connected (default 500)")
    return made


def measure(chosen: argparse.Namespace) -> Iterator[Row]:
    """All of it, of one service."""
    if chosen.quick:
        chosen.minutes, chosen.load_every, chosen.kill_every, chosen.slow, chosen.idle = 0.25, 3, 4, 30, 30
    if why := lacking_compiler():
        yield Row.not_run(FAILED, why, NONE, unit="")
        yield Row.not_run(SLOWER, why, SLOWER_TARGET)
        return
    with Stage() as stage:
        generator = Generator(stage, processor=max(os.sched_getaffinity(0)))
        shop = make_shop(stage.folder / "shop", PROFILES)
        model = shop.file.with_name("profiles.sql")
        model.write_text(f"SELECT *, now() AS loaded_at FROM (\n{model.read_text()}\n)")
        started = start(stage, shop, chosen.workers)
        loader = Loader(shop, started.watcher)
        asked = Asked(generator, started.server, requests(stage.folder, shop))
        if chosen.rate is None:
            closed = Spread.of(asked.closed_loop() for _ in range(3))
            with Trouble(0, loader.load):
                capacity = asked.held(closed.median)
            chosen.rate = int(SHARE * capacity)
            ours = f"closed loop {closed}/s"
            yield Row("capacity, with a load and the generator beside it", ours, figure=f"{capacity:,.0f} /s")
        seconds = chosen.minutes * 60
        quiet_s = max(5.0, seconds / 10)
        before = quiet(asked, chosen.rate, quiet_s)
        soaked = soak(stage, shop, asked, started, loader, chosen, seconds)
        left = left_behind(soaked.killer)
        yield from verdicts(chosen, soaked, [before, quiet(asked, chosen.rate, quiet_s)], left)


class Started(NamedTuple):
    """The service, with all that runs beside its workers; its admin listener; the watcher, which takes updates."""

    server: Server
    admin: Server
    watcher: int


def start(stage: Stage, shop: Shop, workers: int) -> Started:
    """Starts all of it."""
    admin_port = free_port()
    environment = {
        "EDGEPROFILE_SERVER__ADMIN_PORT": str(admin_port),
        "EDGEPROFILE_SERVER__DRAIN_SECONDS": str(DRAIN_SECONDS),
        "EDGEPROFILE_SERVER__READY_DELAY_SECONDS": "0",
        # Loads come when it is told.
        "EDGEPROFILE_WORKSPACES__SHOP__REFRESH": "12h",
    }
    server = start_edgeprofile(stage, shop.file, workers=workers, environment=environment)
    watcher = stage.start([*demo.COMMAND, "load", "--watch", "--config", shop.file], environment)
    watcher.wait_until((snapshot.home(shop.loaded.data_dir, demo.WORKSPACE) / wire.UPDATES).exists)
    return Started(server, Server(server.running, admin_port), watcher.process.pid)


def requests(folder: Path, shop: Shop) -> Load:
    """Of ten requests seven are for a whole profile, two for some of its fields and one for its events."""
    ids = range(int(PROFILE_ID), int(PROFILE_ID) + PROFILES)
    targets = [f"/v1/profiles/id/{each}" for each in ids]
    chosen = [f"{target}?fields=attributes.first_name,audiences" for target in targets]
    return walk(folder, [*7 * targets, *2 * chosen, *(f"{target}/events?limit=10" for target in targets)], shop.header)


class Asked(NamedTuple):
    """Who asks whom for what."""

    generator: Generator
    server: Server
    load: Load

    def run(self, rate: float, seconds: float) -> Latencies:
        return self.generator.run(self.server, self.load, rate, seconds)

    def closed_loop(self) -> float:
        """Answers a second where each connection has its next request at once: far more fall due than are answered."""
        began = time.monotonic()
        return self.run(CLOSED_RATE, CLOSED_SECONDS).answered / (time.monotonic() - began)

    def held(self, closed: float) -> float:
        """The highest rate in steps of a tenth of the closed loop's that the open loop is answered at."""
        for tenths in range(10, 0, -1):
            found = self.run(closed * tenths / 10, HELD_SECONDS)
            if found.unsent == 0 and found.p99 < HELD_P99_US:
                return closed * tenths / 10
        raise BenchError("this machine is too busy with other things")


# --- the soak ------------------------------------------------------------------------------------------------------


class Kept(NamedTuple):
    """What a process has at a moment: memory of its own, descriptors but for sockets, threads."""

    bytes: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Kept:
        """Raises OSError where it is gone."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        links = []
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                links.append(os.readlink(entry))
        descriptors = sum(not link.startswith("socket:") for link in links)
        # A process that has ended and was not waited for has none of these lines.
        return cls(int(status.get("RssAnon", "0").split()[0]) * 1024, descriptors, int(status["Threads"]))


class Processors:
    """What the machine's processors do from now on."""

    def __init__(self) -> None:
        self._before = self._ticks()

    def so_far(self) -> str:
        """How much of the time they worked, and were taken away by whoever runs this machine."""
        spent = [after - before for before, after in zip(self._before, self._ticks(), strict=True)]
        idle, taken = spent[3] + spent[4], spent[7]
        return f"{1 - (idle + taken) / sum(spent):.0%} busy, {taken / sum(spent):.1%} taken by the machine's host"

    @staticmethod
    def _ticks() -> list[int]:
        """Of user, nice, system, idle, iowait, irq, softirq and steal. See proc_stat(5)."""
        return [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]


class Quiet(NamedTuple):
    """What was found while nothing else went on."""

    p99: float
    processors: str


def quiet(asked: Asked, rate: float, seconds: float) -> Quiet:
    processors = Processors()
    p99 = asked.run(rate, seconds).p99
    return Quiet(p99, processors.so_far())


class Soaked(NamedTuple):
    """What was found: samples by process, the requests that failed, and what befell the service and the machine."""

    latencies: Latencies
    samples: list[tuple[str, list[Kept]]]
    failures: list[Failure]
    killer: Killer
    befell: str
    processors: str


def soak(
    stage: Stage,
    shop: Shop,
    asked: Asked,
    started: Started,
    loader: Loader,
    chosen: argparse.Namespace,
    seconds: float,
) -> Soaked:
    """Asks while all befalls the service: the reload first, then the rest of it at once."""
    server, kept = started.server, stage.folder / "failures.txt"
    killer, updater, reloader = Killer(server, chosen.workers), Updater(server, shop), Reloader(server, shop)
    slow = kinds(f"/v1/profiles/id/{PROFILE_ID}", shop.header)
    wanted = {slow[name]: chosen.slow // 3 for name in ("headers", "body", "read")} | {slow["idle"]: chosen.idle}
    processors, loading_before_s = Processors(), loader.seconds
    with ExitStack() as going:
        running = asked.generator.start(server, asked.load, chosen.rate, seconds, ("-e", str(kept)))
        finish_at = time.monotonic() + seconds
        clients = going.enter_context(SlowClients(server.port, wanted))
        reloader.reload()
        loads = going.enter_context(Trouble(chosen.load_every, loader.load))
        kills = going.enter_context(Trouble(chosen.kill_every, killer.kill))
        updates = going.enter_context(Trouble(chosen.update_every, updater.send))
        going.enter_context(Trouble(SCRAPE_INTERVAL_S, Scraper(started.admin).scrape))
        samples = sampled((*server.pids, started.watcher), finish_at)
        share = (loader.seconds - loading_before_s) / seconds
        befell = f"{loads.times} loads for {share:.0%} of it, {kills.times} kills, {updates.times} updates"
        befell += f", {clients.opened:,} slow clients"
        latencies = asked.generator.read(running, GRACE_SECONDS)
        found = processors.so_far()
    failures = [Failure(*map(int, line.split())) for line in kept.read_text().splitlines()]
    return Soaked(latencies, samples, failures, killer, befell, found)


def sampled(pids: tuple[int, ...], finish_at: float) -> list[tuple[str, list[Kept]]]:
    """What each of these processes and their children has, again and again; of those alone that live all the time."""
    samples: dict[int, list[Kept]] = {}
    rounds = 0
    while time.monotonic() < finish_at or not rounds:
        for process in tree(pids):
            with suppress(OSError):
                samples.setdefault(process.pid, []).append(Kept.of(process.pid))
        rounds += 1
        time.sleep(SAMPLE_INTERVAL_S)
    return [(role(pid, pids), found) for pid, found in samples.items() if len(found) == rounds]


def role(pid: int, pids: tuple[int, ...]) -> str:
    """What a process is: the main one, the watcher, what has a name of its own, or else a worker."""
    if pid in pids:
        return ("main process", "watcher")[pids.index(pid)]
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    return {"edgeprofile-adm": "admin listener", "edgeprofile-gtw": "gateway"}.get(name, "worker")


def left_behind(killer: Killer) -> int:
    """How many connections workers have when all clients are gone, or else after half a minute."""
    give_up = time.monotonic() + GRACE_SECONDS
    while (left := killer.connections()) and time.monotonic() < give_up:
        time.sleep(0.1)
    return left


# --- the verdicts --------------------------------------------------------------------------------------------------


def verdicts(chosen: argparse.Namespace, soaked: Soaked, quiets: list[Quiet], left: int) -> Iterator[Row]:
    """Failures, latencies, memory, descriptors."""
    found, killer = soaked.latencies, soaked.killer
    lost = [failure for failure in soaked.failures if not killer.excuses(failure)]
    in_hand = len(soaked.failures) - len(lost)
    failed = len(lost) + found.unanswered + found.unsent
    title = f"{chosen.minutes:g} minutes at {chosen.rate:,}/s, {soaked.befell}"
    yield Row(title, f"{found.sent:,} requests", figure=f"{in_hand} in the hands of killed workers")
    yield Row.measured(FAILED, failed, NONE, unit="", ours=f"statuses {', '.join(found.statuses)}")
    ratio = Spread.of(found.p99 / each.p99 for each in quiets)
    peer = f"p99 {' and '.join(f'{each.p99:,.0f}' for each in quiets)} µs"
    ours = f"p50 {found.p50:,.0f}, p99 {found.p99:,.0f} µs"
    yield Row.measured(SLOWER, ratio, SLOWER_TARGET, ours=ours, peer=peer)
    yield Row.measured("the generator's own lateness, p99", found.late_p99, unit="µs")
    idle = " and ".join(each.processors for each in quiets)
    yield Row("the processors meanwhile, and while it was quiet", ours=soaked.processors, peer=idle)
    for who, samples in soaked.samples:
        own = [each.bytes / MIB for each in samples]
        ours = f"{min(own):.1f} to {max(own):.1f} MiB"
        yield Row.measured(f"{MEMORY}: {who}", growth(own), MEMORY_TARGET, unit="MiB", ours=ours)
    for what in ("descriptors", "threads"):
        counts = [[float(getattr(each, what)) for each in samples] for _, samples in soaked.samples]
        ours = f"{', '.join(f'{max(each):.0f}' for each in counts)} at most"
        yield Row.measured(f"{what} gained", max(map(growth, counts)), NONE, unit="", ours=ours)
    yield Row.measured("connections left behind", left, NONE, unit="")


if __name__ == "__main__":
    run(__doc__, measure, options())
