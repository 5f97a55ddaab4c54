"""Whether workers stay as they are: an hour's traffic of every shape, as fast as they take it, with snapshots swapped.

An hour at 500 requests a second is 1.8 million. `wrk` sends them in slices of some seconds; behind each, when its
connections are closed and only one snapshot is mapped, every worker's memory beyond that snapshot and its open
descriptors are counted. Memory is flat where its median over the last quarter of the slices is at most 2 MiB above
that over the second: the first is left out, because caches fill in it. The worker that grew most counts.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from generated import Generated
from harness import (
    FOLDER,
    HOST,
    BenchError,
    Row,
    Server,
    Stage,
    Target,
    absent,
    parser,
    run,
    start_edgeprofile,
)
from memory import MIB, SNAPSHOT, Kept, kept_by, mapped, worker_pids
from swaps import Swapper

WORKSPACE = "shop"
PROFILES = 100_000
WORKERS = 2
CONNECTIONS = 32
HOUR_REQUESTS = 500 * 3_600
SLICES = 40
SLICE_SECONDS_MIN = 2
SWAP_INTERVAL_S = 1.0
QUIET_SECONDS_MAX = 10.0
SHUFFLED_LINES = 2_000
GROWTH, DESCRIPTORS, REQUESTS = "growth of a worker's memory", "descriptors gained by a worker", "requests meanwhile"
GROWTH_TARGET, REQUESTS_TARGET = Target("≤", 2), Target("≥", HOUR_REQUESTS)

ID = "/v1/profiles/id/"
FIELDS = ("first_name", "last_name", "city", "country", "birthday", "signed_up_at", "picture", "orders")


class Shape(NamedTuple):
    """A kind of request: its share of all, in percent, and a line for mix.lua.

    In it NUMBER is a profile's, FIELDS a choice at random; {n}, which no other request has, is put in by mix.lua.
    """

    share: int
    path: str
    headers: tuple[str, ...] = ()
    method: str = "GET"
    body: str = ""
    with_key: bool = True


# No HEAD: wrk would wait for the body of its answer.
SHAPES = (
    Shape(33, f"{ID}NUMBER"),
    Shape(15, "/v1/profiles/identifier/email/CustomerNUMBER@example.com"),
    Shape(12, f"{ID}NUMBER?fields=FIELDS"),
    Shape(10, f"{ID}NUMBER?fields=FIELDS&unknown={{n}}"),
    Shape(2, f"{ID}NUMBER", ("Accept: application/msgpack",)),
    Shape(2, "/v1/profiles/lookup", ("Content-Type: application/json",), "POST", '{"profiles":[{"id":"NUMBER"}]}'),
    Shape(8, f"{ID}NUMBER", ("If-None-Match: *",)),
    Shape(5, f"{ID}nobody-{{n}}"),
    Shape(2, "/v1/profiles/identifier/email/nobody-{n}@example.com"),
    Shape(1, "/nowhere/{n}"),
    Shape(2, f"{ID}NUMBER?fields=nothing-{{n}}"),
    Shape(1, f"{ID}%zz{{n}}"),
    Shape(3, f"{ID}NUMBER", (f"Authorization: Bearer sk_live_{{n}}_{'0' * 49}",), with_key=False),
    Shape(1, f"{ID}NUMBER", with_key=False),
    Shape(2, f"{ID}NUMBER", ("X-Request-Id: {n}",)),
    Shape(1, f"{ID}NUMBER", ("Connection: close",)),
)


def options() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--minutes", type=float, default=5, help="how long, pauses apart (default 5)")
    return made


def measure(chosen: argparse.Namespace) -> Iterator[Row]:
    """Flatness of memory and of descriptors, and whether it was an hour's traffic."""
    slices, seconds = SLICES, max(SLICE_SECONDS_MIN, round(chosen.minutes * 60 / SLICES))
    if chosen.quick:
        slices, seconds = 8, 1
    if why := absent("wrk"):
        yield Row.not_run(GROWTH, why, GROWTH_TARGET, unit="MiB")
        return
    with Stage() as stage:
        made = Generated(stage.folder / "generated", {WORKSPACE: PROFILES})
        for _ in range(2):
            made.load(WORKSPACE)
        requests = stage.folder / "requests.txt"
        requests.write_text("".join(f"{line}\n" for line in lines(made.header(WORKSPACE))))
        server = start_edgeprofile(stage, made.file, workers=WORKERS)
        statuses = first_statuses(server, requests)
        swapper = Swapper(made.home(WORKSPACE), server, workers=WORKERS)
        soaked = soak(server, requests, swapper, slices, seconds)
    yield from rows(soaked, slices * seconds, statuses)


# --- the requests --------------------------------------------------------------------------------------------------


def lines(header: str) -> list[str]:
    """Every shape by its share, in a shuffled order; the same at every run."""
    drawn = random.Random(5)
    made = []
    for shape in SHAPES:
        headers = "".join(f"\t{each}" for each in ((header,) if shape.with_key else ()) + shape.headers)
        for _ in range(shape.share * SHUFFLED_LINES // 100):
            fields = ",".join(f"attributes.{name}" for name in drawn.sample(FIELDS, drawn.randint(1, len(FIELDS))))
            line = f"{shape.method}\t{shape.path}\t{shape.body}{headers}"
            made.append(line.replace("NUMBER", str(drawn.randrange(PROFILES))).replace("FIELDS", fields))
    drawn.shuffle(made)
    return made


def first_statuses(server: Server, requests: Path) -> str:
    """How the first some hundred of them are answered, as text: that every shape is what it should be."""
    counted: Counter[int] = Counter()
    for line in requests.read_text().splitlines()[:300]:
        method, path, body, *headers = line.split("\t")
        status, _ = server.ask(path, *headers, method=method, body=body.encode() or None)
        counted[status] += 1
    return ", ".join(map(str, sorted(counted)))


# --- the soak ------------------------------------------------------------------------------------------------------


class Soaked(NamedTuple):
    """Samples by worker's pid, and how many requests and swaps there were."""

    samples: dict[int, list[Kept]]
    requests: int
    swaps: int


def soak(server: Server, requests: Path, swapper: Swapper, slices: int, seconds: int) -> Soaked:
    """Slice by slice; a sample precedes the first one, for the descriptors."""
    pids = worker_pids(server)
    samples = {pid: [quiet(pid, None)] for pid in pids}
    sent = swaps = 0
    for _ in range(slices):
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(FOLDER / "mix.lua")]
        command += [f"http://{HOST}:{server.port}", "--", str(requests), str(sent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as wrk:
            while wrk.poll() is None:
                began = time.monotonic()
                swapper.swap()
                swaps += 1
                time.sleep(max(0, began + SWAP_INTERVAL_S - time.monotonic()))
            printed, _ = wrk.communicate()
        sent += counted(printed)
        for pid in pids:
            samples[pid].append(quiet(pid, samples[pid][0].descriptors))
    if worker_pids(server) != pids:
        raise BenchError("a worker died meanwhile")
    return Soaked(samples, sent, swaps)


def counted(printed: str) -> int:
    """The requests of a slice. Raises BenchError where some were not answered."""
    found = re.search(r"(\d+) requests in", printed)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", printed)
    if found is None or (errors and any(map(int, errors.groups()))):
        raise BenchError(f"wrk: {printed.strip()}")
    return int(found[1])


def quiet(pid: int, descriptors: int | None) -> Kept:
    """What a worker keeps when it has let go of connections and of old snapshots, or else after ten seconds."""
    give_up = time.monotonic() + QUIET_SECONDS_MAX
    while True:
        kept = kept_by(pid)
        is_quiet = mapped(pid, SNAPSHOT) == 1 and descriptors in (None, kept.descriptors)
        if is_quiet or time.monotonic() > give_up:
            return kept
        time.sleep(0.1)


# --- the verdicts --------------------------------------------------------------------------------------------------


def rows(soaked: Soaked, seconds: int, statuses: str) -> Iterator[Row]:
    """The worker that grew most, and the one that gained most descriptors."""
    # The first sample is of before the first request.
    by_worker = [[kept.bytes / MIB for kept in samples[1:]] for samples in soaked.samples.values()]
    grown, worst = max((growth(each), each) for each in by_worker)
    title = f"{GROWTH}, {seconds / 60:.1f} minutes at capacity, {soaked.swaps} swaps"
    first_to_last = f"{worst[0]:.1f} to {worst[-1]:.1f} MiB"
    yield Row.measured(title, grown, GROWTH_TARGET, unit="MiB", ours=first_to_last)
    gained = max(samples[-1].descriptors - samples[0].descriptors for samples in soaked.samples.values())
    open_now = ", ".join(str(samples[-1].descriptors) for samples in soaked.samples.values())
    verdict = "missed" if gained > 0 else "reached"
    yield Row(DESCRIPTORS, f"{open_now} open", figure=str(gained), target="0", verdict=verdict)
    ours = f"statuses {statuses}"
    yield Row.measured(REQUESTS, soaked.requests, REQUESTS_TARGET, unit="in all", ours=ours)


def growth(kept: Sequence[float]) -> float:
    """The median of the last quarter less that of the second."""
    quarter = len(kept) // 4
    return statistics.median(kept[-quarter:]) - statistics.median(kept[quarter : 2 * quarter])


if __name__ == "__main__":
    run(__doc__, measure, options())
