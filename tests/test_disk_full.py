"""A disk that fills up under each thing that writes: what was there stays and is served, and all goes on with room."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from batches import BATCHED, MASS_UPDATE, call
from conftest import PROFILES, MakeService
from service import Answer, Service, until
from small_disks import SmallDisk
from workshop import Workshop

from edgeprofile import reader
from edgeprofile.errors import DiskFull

MB = 1024 * 1024
JANE = "/v1/profiles/id/12345"
FIRST = "SELECT i AS id, 'first' AS word FROM range(200) AS made(i)"
SECOND = "SELECT i AS id, 'second' AS word, md5(i::VARCHAR) AS noise FROM range(6000) AS made(i)"
# From nothing at all to what is enough, in steps that meet each file that a load writes.
FREE_BYTES = (0, 4_096, 8_192, 16_384, 65_536, 262_144, *range(524_288, 2 * MB, 131_072))
Mount = Callable[[Path, int], SmallDisk]


@pytest.fixture
def mount() -> Iterator[Mount]:
    mounted: list[SmallDisk] = []

    def mounting(folder: Path, size_bytes: int) -> SmallDisk:
        mounted.append(SmallDisk(folder, size_bytes))
        return mounted[-1]

    yield mounting
    for disk in mounted:
        disk.unmount()


# --- loads ---------------------------------------------------------------------------------------------------------


def served(shop: Workshop) -> str:
    """The one word of all profiles of the current snapshot, all of which is read."""
    reader.verify(shop.current_folder())
    (word,) = {profile["word"] for profile in shop.profiles().values()}
    return str(word)


def test_a_load_meets_a_full_disk_wherever_it_is_and_the_old_snapshot_stays(tmp_path: Path, mount: Mount) -> None:
    disk = mount(tmp_path / "var", 8 * MB)
    shop = Workshop(tmp_path).model(FIRST)
    shop.load()
    shop.model(SECOND)
    outcomes = []
    for free_bytes in FREE_BYTES:
        disk.fill(but_for_bytes=free_bytes)
        try:
            outcomes.append(shop.load())
        except DiskFull:
            outcomes.append("full")
            assert served(shop) == "first"
            assert shop.leftovers() == []
        else:
            break
    assert outcomes[-1] == "published"
    assert outcomes.count("full") == len(outcomes) - 1 > 6
    assert served(shop) == "second"
    disk.free()
    assert shop.load() == "unchanged"


# --- what serves ---------------------------------------------------------------------------------------------------


def prepared(service: Service, mount: Mount) -> SmallDisk:
    disk = mount(service.settings.data_dir, 8 * MB)
    service.run_sql(PROFILES.replace("{ids}", "['a']"))
    service.load()
    return disk


def test_a_service_that_cannot_start_says_so_and_one_that_runs_goes_on(make_service: MakeService, mount: Mount) -> None:
    service = make_service()
    disk = prepared(service, mount)
    key = service.key()
    disk.fill()
    shop = Workshop(service.folder)
    ended = shop.run("serve")
    assert ended.status == 1
    assert len(ended.complaints) == 1
    assert "No space left on device" in ended.complaints[0]
    refused = shop.run("keys", "create", "--workspace", "shop")
    assert (refused.status, refused.out) == (1, "")
    assert len(refused.complaints) == 1

    disk.free()
    service.start()
    disk.fill()
    (worker,) = service.workers()
    os.kill(worker, signal.SIGKILL)
    until(lambda: service.workers() not in ([], [worker]), "another worker takes its place")
    assert service.get(JANE, key).status == 200
    assert service.get(JANE, key).json()["first_name"] == "Jane"


def test_updates_and_exports_are_refused_until_there_is_room_and_none_is_lost(
    make_service: MakeService, mount: Mount
) -> None:
    service = make_service({"shop": BATCHED})
    disk = prepared(service, mount)
    key = service.key(scopes=("read", "write"))
    service.watch()
    service.start()

    def update(number: int) -> Answer:
        attributes = {"first_name": f"Jane {number}"} | {f"note_{n}": "x" * 300 for n in range(10)}
        ids = [f"made-{number}-{n}" for n in range(20)]
        return service.ask(
            call(MASS_UPDATE, key, [{"identifiers": {"custom_id": id}, "attributes": attributes} for id in ids])
        )

    def export() -> Answer:
        asked = {"export_type": "ATTRIBUTES", "attributes": ["first_name"]}
        return service.ask(call("/2.4/profiles/export", key, asked))

    def export_of(answer: Answer) -> str:
        """What becomes of an export that was asked for."""
        assert answer.status == 202, answer
        asked = call(f"/2.4/exports/view?id={answer.json()['id']}", key, method="GET")
        return until(lambda: next((s for s in ("SUCCESS", "FAILURE") if s in str(service.ask(asked).body)), ""), "over")

    disk.fill(but_for_bytes=MB)
    answers = [update(number) for number in range(30)]
    assert {(answer.status, answer.body) for answer in answers if answer.status != 503} == {
        (202, b'{"code":"SUCCESS"}')
    }
    assert answers[-1].status == 503
    disk.fill()
    assert export().status == 503
    disk.fill(but_for_bytes=8_192)  # enough to take note of one, but not to write it
    cramped = export()
    assert service.get(JANE, key).json()["first_name"] == "Jane"

    disk.free()
    answers.append(update(len(answers)))
    assert answers[-1].status == 202
    for number, answer in enumerate(answers):
        found = [service.get(f"/v1/profiles/id/made-{number}-{n}", key) for n in range(20)]
        names = {each.json()["first_name"] for each in found if each.status == 200}
        assert len({each.status for each in found}) == 1, "a call is done whole or not at all"
        assert names == {f"Jane {number}"} or (answer.status, names) == (503, set())
    assert export_of(export()) == "SUCCESS"
    assert export_of(cramped) in ("SUCCESS", "FAILURE")
    assert service.load().outcome == "published"
    assert service.get("/v1/profiles/id/made-0-0", key).json()["first_name"] == "Jane 0"
