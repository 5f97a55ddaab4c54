"""Snapshots changing under load: every answer is whole and of one snapshot, and a bad one is never served."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import MakeService
from service import Answer, Connection, Service, change_manifest, copy_snapshot, mappings, request, until

from edgeprofile import snapshot
from edgeprofile.watch import HASHED_HERE_BYTES_MAX

PROFILES, GENERATIONS, SWAPS = 300, 20, 100
HOLE_BYTES = 2 << 30
# Two clients, each so many requests in flight at a time and so many times a second: 2,000 requests a second.
CLIENTS, AT_ONCE, TICK_SECONDS = 2, 50, 0.05
TICKS_MAX = 2_000
# The contract says 0.2 s from the swap of CURRENT; a machine that is busy with other things may add to it.
SWAP_SECONDS_MAX = 2.0
DECLARED = """
id = "profile_id"
updated_at = "updated_at"
identifiers = ["email", { column = "team", unique = false }]
metrics = ["last"]
audiences = ["even", "odd"]
"""
# Every part of every profile tells its generation: the first and last field, the length, an identifier, the time.
GENERATION = f"""
CREATE OR REPLACE TABLE profiles AS SELECT
    'p' || i AS profile_id, 'p' || i || '@' || {{n}} AS email, 'team' || i % 10 AS team, {{n}} AS first,
    repeat('x', {{n}} * 7 % 100) AS filler, [{{n}}, {{n}}] AS pair, {{n}} AS last,
    {{n}} % 2 = 0 AS even, {{n}} % 2 = 1 AS odd, TIMESTAMP '2025-01-01' + INTERVAL ({{n}}) SECOND AS updated_at
FROM range({PROFILES}) r(i)
"""


def publish(service: Service, generation: int, at: snapshot.AtStep = snapshot.nothing) -> None:
    service.run_sql(GENERATION.format(n=generation))
    assert service.load(at=at).outcome == "published"


def generation_of(answer: Answer) -> int:
    """The one generation that every part of a whole answer agrees in."""
    assert answer.status == 200, answer
    found = answer.json()
    n = int(found["first"])
    expected = {
        "profile_id": found["profile_id"],
        "email": f"{found['profile_id']}@{n}",
        "team": f"team{int(found['profile_id'][1:]) % 10}",
        "first": n,
        "filler": "x" * (n * 7 % 100),
        "pair": [n, n],
        "last": n,
        "_audiences": {"even": n % 2 == 0, "odd": n % 2 == 1},
        "_updated_at": f"2025-01-01T00:00:{n:02}Z",
    }
    assert answer.body == json.dumps(expected, separators=(",", ":")).encode()
    return n


class Client(threading.Thread):
    """Sends its share of the load over one connection, and notes when it first saw which generation."""

    def __init__(self, connection: Connection, key: str) -> None:
        super().__init__()
        self.connection, self.key = connection, key
        self.seen: dict[int, float] = {}
        self.asked = 0
        self.faults: list[BaseException] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        try:
            for tick in range(TICKS_MAX):
                if self.stopping.is_set():
                    return
                started = time.monotonic()
                self._burst(tick)
                self.stopping.wait(max(0.0, started + TICK_SECONDS - time.monotonic()))
        except BaseException as fault:
            self.faults.append(fault)

    def _burst(self, tick: int) -> None:
        targets = [f"/v1/profiles/id/p{(tick * AT_ONCE + n) % PROFILES}" for n in range(AT_ONCE - 1)]
        targets.append(f"/v1/profiles/identifier/team/team{tick % 10}")
        self.connection.send(b"".join(request(target, self.key) for target in targets))
        for _ in targets:
            generation = generation_of(self.connection.read())
            assert generation >= max(self.seen, default=0), "a worker went back to an older snapshot"
            self.seen.setdefault(generation, time.monotonic())
            self.asked += 1


def test_twenty_refreshes_under_load_fail_no_request_and_mix_no_answer(make_service: MakeService) -> None:
    service = make_service({"shop": DECLARED}, workers=CLIENTS)
    publish(service, 0)
    key = service.key()
    service.start()
    clients = [Client(connection, key) for connection in service.connect_to_each()]
    swapped: dict[int, float] = {}
    started = time.monotonic()
    for client in clients:
        client.start()
    try:
        for generation in range(1, GENERATIONS + 1):

            def note(step: str, generation: int = generation) -> None:
                if step == "current_swapped":
                    swapped[generation] = time.monotonic()

            publish(service, generation, note)
        until(lambda: all(c.faults or GENERATIONS in c.seen for c in clients), "the last generation is served")
    finally:
        for client in clients:
            client.stopping.set()
            client.join()
            client.connection.close()
    asked, elapsed = sum(client.asked for client in clients), time.monotonic() - started

    assert not [fault for client in clients for fault in client.faults]
    # A generation that the next one overtook was not too late: what counts is when that or a newer one was seen.
    took = [
        min(at for seen, at in client.seen.items() if seen >= generation) - swapped[generation]
        for client in clients
        for generation in swapped
    ]
    median_ms, longest_ms = statistics.median(took) * 1e3, max(took) * 1e3
    print(f"\n{asked} requests in {elapsed:.1f} s; CURRENT to served: median {median_ms:.0f}, max {longest_ms:.0f} ms")
    assert max(took) < SWAP_SECONDS_MAX
    assert all(len(client.seen) > GENERATIONS / 2 for client in clients)
    assert asked > 1_000


def mapped(service: Service) -> list[set[str]]:
    """The snapshots that each worker has mapped."""
    return [set(re.findall(r"snapshots/(\S+)/profiles\.mdb", mappings(pid))) for pid in service.workers()]


def opened(service: Service) -> list[int]:
    """How many snapshot files each worker holds a descriptor of."""
    counts = []
    for pid in service.workers():
        links = []
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                links.append(str(entry.readlink()))
            except FileNotFoundError:  # closed meanwhile
                continue
        counts.append(sum("profiles.mdb" in link for link in links))
    return counts


def test_workers_let_go_of_old_snapshots(make_service: MakeService) -> None:
    service = make_service({"shop": DECLARED}, workers=2)
    publish(service, 0)
    key = service.key()
    service.start()
    connections = service.connect_to_each()
    for generation in range(1, 5):
        publish(service, generation)
        for connection in connections:
            until(
                lambda: generation_of(connection.ask(request("/v1/profiles/id/p1", key))) == generation,  # noqa: B023
                "the new generation is served",
            )
    for connection in connections:
        connection.close()

    name = snapshot.current(service.home())
    until(lambda: mapped(service) == [{name}, {name}], "only the current snapshot is mapped", 5)
    until(lambda: opened(service) == [1, 1], "only the current snapshot is open", 5)


# --- damage --------------------------------------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    file = folder / snapshot.PROFILES
    with file.open("r+b") as opened_file:
        opened_file.truncate(file.stat().st_size // 2)


def flip_the_head(folder: Path) -> None:
    """Both of LMDB's meta pages lose their magic number."""
    file = folder / snapshot.PROFILES
    content = bytearray(file.read_bytes())
    for page in (0, 4096):
        for at in range(page, page + 64):
            content[at] ^= 0xFF
    file.write_bytes(content)


def flip_the_records(folder: Path) -> None:
    file = folder / snapshot.PROFILES
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"_audiences"', b'"_Audiences"'))


def flip_a_byte(folder: Path) -> None:
    """Where neither a count nor a sample would show it."""
    file = folder / snapshot.PROFILES
    content = bytearray(file.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    file.write_bytes(content)


def files_open(pid: int) -> list[str]:
    """The files that a process has open."""
    return [os.path.realpath(link) for link in Path(f"/proc/{pid}/fd").iterdir()]


def grow_by_a_hole(folder: Path, size: int) -> None:
    """To many bytes that take no room on the disk, but time to hash."""
    os.truncate(folder / snapshot.PROFILES, size)
    change_manifest(folder, file_bytes=size)


def copy_large(service: Service, size: int) -> Path:
    """The current snapshot's folder under another name, grown by a hole; its hash is no longer right."""
    whole = snapshot.folder(service.home(), snapshot.current(service.home()))
    large = whole.with_name(f"{whole.name[:-8]}00000000")
    copy_snapshot(whole, large)
    grow_by_a_hole(large, size)
    return large


def is_hashed(folder: Path, worker: int) -> bool:
    """Whether a process that a worker has started for that reads the snapshot's file."""
    children = [pid for file in Path(f"/proc/{worker}/task").glob("*/children") for pid in file.read_text().split()]
    with contextlib.suppress(FileNotFoundError):  # one that has just ended
        return any(str(folder / snapshot.PROFILES) in files_open(int(pid)) for pid in children)
    return False


def flip_the_manifest(folder: Path) -> None:
    file = folder / snapshot.MANIFEST
    file.write_bytes(bytes(byte ^ 0x10 for byte in file.read_bytes()))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "emptied": lambda folder: (folder / snapshot.PROFILES).write_bytes(b""),
    "head-flipped": flip_the_head,
    "records-flipped": flip_the_records,
    "file-missing": lambda folder: (folder / snapshot.PROFILES).unlink(),
    "one-byte-flipped": flip_a_byte,
    "manifest-flipped": flip_the_manifest,
    "manifest-empty": lambda folder: (folder / snapshot.MANIFEST).write_bytes(b""),
    "manifest-missing": lambda folder: (folder / snapshot.MANIFEST).unlink(),
    "format-unknown": lambda folder: change_manifest(folder, format=snapshot.MANIFEST_FORMAT + 1),
    "schema-wrong": lambda folder: change_manifest(folder, schema={"fields": 1}),
    "count-wrong": lambda folder: change_manifest(folder, profiles=1),
    "size-wrong": lambda folder: change_manifest(folder, file_bytes=0),
    "segment-missing": lambda folder: change_manifest(folder, segments=10_000),
    "segments-none": lambda folder: change_manifest(folder, segments=0),
    "events-schema-wrong": lambda folder: change_manifest(folder, events_schema={"fields": 1}),
    "event-segment-missing": lambda folder: change_manifest(folder, event_segments=1),
    "histories-wrong": lambda folder: change_manifest(folder, histories=1),
    "folder-missing": shutil.rmtree,
}
CURRENTS = {
    "garbage": b"\x00\xff garbage",
    "outside": b"../../elsewhere\n",
    "empty": b"",
    "half": b"20250101T000000.0000",
    "nothing-there": b"20250101T000000.000000Z-00000000\n",
    "long": b"x" * 100_000,
}


class Served:
    """A service with two workers, and two of the loader's snapshots to point it to, again and again, as new ones."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.key = service.key()
        self.wholes = []
        for generation in (0, 1):
            publish(service, generation)
            self.wholes.append(snapshot.folder(service.home(), snapshot.current(service.home())))
        self.generation = 1
        self.copies = 0
        service.start()
        # One that is ready only now, while another is, would find a damaged snapshot and no old one to stay with.
        assert self.ask_each() == [self.generation] * 2

    def copy_other(self) -> Path:
        """A copy, under a name of its own, of the snapshot that is not served."""
        whole = self.wholes[1 - self.generation]
        self.copies += 1
        copied = whole.with_name(f"{whole.name[:-8]}{self.copies:08x}")
        copy_snapshot(whole, copied)
        return copied

    def point_to(self, folder: Path) -> None:
        snapshot.point_current(self.service.home(), folder.name)

    def ask_each(self) -> list[int]:
        """The generation that each worker serves."""
        found = []
        for connection in self.service.connect_to_each():
            with connection:
                found.append(generation_of(connection.ask(request("/v1/profiles/id/p7", self.key))))
        return found

    def refusals(self) -> int:
        return self.service.log().count("snapshot refused")

    def assert_old_one_is_served(self) -> None:
        assert self.ask_each() == [self.generation] * 2
        assert self.service.get("/readyz").status == 200

    def assert_next_is_taken(self) -> None:
        self.point_to(self.copy_other())
        self.generation = 1 - self.generation
        until(lambda: self.ask_each() == [self.generation] * 2, "the next good one is served", 5)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    service = Service(tmp_path_factory.mktemp("served"), {"shop": DECLARED}, workers=2)
    yield Served(service)
    service.stop()


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_snapshot_is_refused_and_the_old_one_stays(served: Served, what: str) -> None:
    refusals = served.refusals()
    copied = served.copy_other()
    DAMAGE[what](copied)

    served.point_to(copied)

    # Each worker says it once, however often it tries.
    until(lambda: served.refusals() == refusals + 2, "both workers refuse it", 5)
    served.assert_old_one_is_served()
    served.assert_next_is_taken()
    assert served.refusals() == refusals + 2


@pytest.mark.parametrize("what", CURRENTS)
def test_a_current_that_makes_no_sense_is_refused_and_the_old_snapshot_stays(served: Served, what: str) -> None:
    refusals = served.refusals()

    (served.service.home() / snapshot.CURRENT).write_bytes(CURRENTS[what])

    until(lambda: served.refusals() >= refusals + 2, "both workers refuse it", 5)
    served.assert_old_one_is_served()
    served.assert_next_is_taken()


def test_a_key_is_refused_while_a_large_snapshot_is_still_being_hashed(make_service: MakeService) -> None:
    service = make_service({"shop": DECLARED})
    publish(service, 0)
    large = copy_large(service, HOLE_BYTES)
    key = service.key()
    service.start()
    assert service.get("/v1/profiles/id/p1", key).status == 200

    snapshot.point_current(service.home(), large.name)
    (worker,) = service.workers()
    until(lambda: is_hashed(large, worker), "the worker has it read")
    service.revoke(key)
    until(lambda: service.get("/v1/profiles/id/p1", key).status == 401, "the key is refused")

    assert "snapshot refused" not in service.log()
    until(lambda: "does not match its SHA-256" in service.log(), "the hash is done", 60)


def test_a_large_snapshot_is_taken_if_its_hash_is_right(make_service: MakeService) -> None:
    service = make_service({"shop": DECLARED})
    publish(service, 0)
    large = copy_large(service, HASHED_HERE_BYTES_MAX + 4096)
    change_manifest(large, sha256=snapshot.hash_file(large / snapshot.PROFILES))
    service.start()

    snapshot.point_current(service.home(), large.name)

    until(lambda: f"serving snapshot {large.name}" in service.log(), "it is served", 20)
    assert "refused" not in service.log()


def test_a_hundred_swaps_to_and_fro_fail_no_request_and_leave_nothing_behind(served: Served) -> None:
    connections = served.service.connect_to_each()
    asked = 0
    for swap in range(SWAPS):
        served.generation = swap % 2
        served.point_to(served.wholes[served.generation])
        for connection in connections:
            target = f"/v1/profiles/id/p{swap}"
            while generation_of(connection.ask(request(target, served.key))) != served.generation:
                asked += 1
    for connection in connections:
        connection.close()
    assert asked > SWAPS
    assert served.service.log().count("serving snapshot") >= 2 * SWAPS
    until(lambda: [len(held) for held in mapped(served.service)] == [1, 1], "only what is served is mapped", 5)
    until(lambda: opened(served.service) == [1, 1], "only what is served is open", 5)


def test_a_current_that_is_gone_leaves_the_old_snapshot(served: Served) -> None:
    (served.service.home() / snapshot.CURRENT).unlink()
    # Nothing tells when a worker has looked; some polls of its watcher's are over for certain.
    watched_until = time.monotonic() + 0.5
    while time.monotonic() < watched_until:
        served.assert_old_one_is_served()
    served.assert_next_is_taken()


def test_refused_snapshots_leave_nothing_open(served: Served) -> None:
    for what in ("count-wrong", "records-flipped", "segment-missing"):
        copied = served.copy_other()
        DAMAGE[what](copied)
        refusals = served.refusals()
        served.point_to(copied)
        until(lambda: served.refusals() == refusals + 2, "both workers refuse it", 5)  # noqa: B023
    name = snapshot.current(served.service.home())
    assert all(name not in held for held in mapped(served.service))
    until(lambda: [len(held) for held in mapped(served.service)] == [1, 1], "only what is served is mapped", 5)
    until(lambda: opened(served.service) == [1, 1], "only what is served is open", 5)
