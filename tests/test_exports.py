"""Exports on disk: what the process that writes one takes of a snapshot, and how a watcher keeps them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from workshop import Workshop, values

from edgeprofile import exports, snapshot
from edgeprofile._profile import find
from edgeprofile.exports import KEPT_MAX, KEPT_SECONDS, Export
from edgeprofile.loader import export_queue
from edgeprofile.loader.apply import LiveWriter
from edgeprofile.loader.changes import Erasures, Update, Updates
from edgeprofile.loader.export import frozen
from edgeprofile.loader.export_queue import ExportQueue

MODEL = values(
    "7, 'a@b.c', 'en', 'Ann \"A\"', 1.50, [1, 2], true",
    "12, NULL, NULL, NULL, NULL, NULL, false",
    "9, 'x@y.z', 'fr', '', 0.00, [], NULL",
    columns='id, email, language, name, "total, all", tags, vip',
)
ASKED = {"attributes": ["$language", "name", "total, all", "tags", "vip", "nobody"], "identifiers": ["custom_id"]}
LATER = """
import pathlib, sys
from edgeprofile.loader.apply import LiveWriter
from edgeprofile.loader.changes import Erasures, Update, Updates
with LiveWriter(pathlib.Path(sys.argv[1])) as writer:
    writer.update(Updates([Update("7", {"name": b'"behind"'}), Update("made", {})]))
    writer.erase(Erasures(["9"]))
"""
# Instead of what writes an export: it takes any arguments, and does not end.
SLEEPING = ("sh", "-c", "exec sleep 1000")
LINES = [
    {"identifiers": {"custom_id": "12"}, "attributes": {}},
    {
        "identifiers": {"custom_id": "7"},
        "attributes": {"$language": "en", "name": 'Ann "A"', "total, all": 1.5, "tags": [1, 2]},
    },
    {"identifiers": {"custom_id": "9"}, "attributes": {"$language": "fr", "name": "", "total, all": 0.0, "tags": []}},
]


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path).model(MODEL, identifiers=["email"], metrics=["total, all"], audiences=["vip"])
    made.load()
    return made


def lines(home: Path, id: str) -> list[Any]:
    with gzip.open(exports.file_of(home, id)) as file:
        return [json.loads(line) for line in file]


def made(home: Path, **changes: Any) -> Export:
    """An export that was asked for."""
    asked = Export(
        id=exports.new_id(),
        status="PENDING",
        attributes=("name",),
        identifiers=(),
        namespace=None,
        requested_at=time.time(),
    )
    export = structs.replace(asked, **changes)
    exports.write(home, export)
    return export


@contextlib.asynccontextmanager
async def running(home: Path) -> AsyncIterator[ExportQueue]:
    queue = ExportQueue(home, asyncio.Semaphore(1))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(queue.run())
        yield queue
        task.cancel()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def state(home: Path, id: str) -> str:
    export = exports.find(home, id, time.time())
    return "" if export is None else export.status


def written(home: Path, **asked: Any) -> Export:
    """An export that is over."""

    async def run() -> str:
        async with running(home) as queue:
            answer = queue.take(asked)
            assert answer["ok"] is True
            await until(lambda: state(home, answer["id"]) in ("SUCCESS", "FAILURE"))
            return str(answer["id"])

    found = exports.find(home, asyncio.run(run()), time.time())
    assert found is not None
    return found


# --- what is in one ------------------------------------------------------------------------------------------------


def test_an_export_has_every_profile_with_what_was_asked_for(shop: Workshop) -> None:
    export = written(shop.home, **ASKED)
    assert lines(shop.home, export.id) == LINES
    assert (export.status, export.profiles) == ("SUCCESS", 3)
    assert export.file_bytes == exports.file_of(shop.home, export.id).stat().st_size
    assert export.started_at is not None
    assert export.finished_at is not None
    assert export.requested_at <= export.started_at <= export.finished_at
    # Beside it lies what is known of it, and nothing else; nobody else on the machine reads either.
    files = sorted((shop.home / exports.FOLDER).iterdir())
    assert [file.name for file in files] == [f"{export.id}.json", f"{export.id}.ndjson.gz"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_numbers_keep_their_digits(shop: Workshop) -> None:
    export = written(shop.home, attributes=["total, all"], identifiers=[])
    with gzip.open(exports.file_of(shop.home, export.id)) as file:
        assert (
            file.read()
            == b'{"attributes":{}}\n{"attributes":{"total, all":1.50}}\n{"attributes":{"total, all":0.00}}\n'
        )


def test_a_custom_id_may_be_that_of_a_namespace(shop: Workshop) -> None:
    export = written(shop.home, attributes=[], identifiers=["custom_id"], namespace="email")
    found = [line["identifiers"] for line in lines(shop.home, export.id)]
    assert found == [{}, {"custom_id": "a@b.c"}, {"custom_id": "x@y.z"}]


def test_more_profiles_than_are_read_at_once_are_all_there(tmp_path: Path) -> None:
    shop = Workshop(tmp_path).model("SELECT lpad(i::VARCHAR, 5, '0') AS id, i AS n FROM range(2500) made(i)")
    shop.load()
    export = written(shop.home, attributes=["n"], identifiers=["custom_id"])
    assert [line["attributes"]["n"] for line in lines(shop.home, export.id)] == list(range(2500))


def test_what_updates_said_is_in_it_and_who_was_erased_is_not(shop: Workshop) -> None:
    with LiveWriter(shop.home) as writer:
        changes = [
            Update("7", {"name": b'"Eve"', "language": None, "nobody": b'"new"'}),
            Update("8", {"tags": b'["made"]'}),
        ]
        assert writer.update(Updates(changes)) == []
        writer.erase(Erasures(["9"]))
    export = written(shop.home, **ASKED)
    assert lines(shop.home, export.id) == [
        LINES[0],
        {
            "identifiers": {"custom_id": "7"},
            "attributes": {"$language": "en", "name": "Eve", "total, all": 1.5, "tags": [1, 2], "nobody": "new"},
        },
        {"identifiers": {"custom_id": "8"}, "attributes": {"tags": ["made"]}},
    ]
    assert len(list((shop.home / exports.FOLDER).iterdir())) == 2


def test_an_export_is_as_of_the_moment_at_which_it_began(shop: Workshop) -> None:
    with LiveWriter(shop.home) as writer:
        writer.update(Updates([Update("7", {"name": b'"before"'})]))
    with frozen(shop.home, made(shop.home).id) as store:
        # In another process, as it is elsewhere: one process opens a file of LMDB's once.
        subprocess.run([sys.executable, "-c", LATER, shop.home], check=True)
        found = {primary: find(store, primary) for primary in store.ids_after(None, 10)}
        assert list(found) == [b"12", b"7", b"9"]
        number = [field.name for field in found[b"7"].schema.fields].index("name")
        assert found[b"7"].value(number) == b'"before"'
        del found, store


# --- how they are kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"attributes": "name", "identifiers": []},
        {"attributes": ["x" * 256], "identifiers": []},
        {"attributes": ["x"] * 501, "identifiers": []},
        {"attributes": [], "identifiers": ["installation_ids"]},
        {"attributes": [], "identifiers": ["custom_id"], "namespace": 1},
    ],
)
def test_what_is_no_export_is_not_taken_on(request_: dict[str, Any], tmp_path: Path) -> None:
    answer = ExportQueue(tmp_path, asyncio.Semaphore(1)).take(request_)
    assert (answer["ok"], answer["code"]) == (False, "invalid")
    assert exports.listing(tmp_path) == []


def test_so_many_are_kept_and_another_is_refused_until_one_has_gone(shop: Workshop) -> None:
    queue, now_s = ExportQueue(shop.home, asyncio.Semaphore(1)), time.time()
    kept = [made(shop.home, requested_at=now_s - n) for n in range(KEPT_MAX)]
    answer = queue.take(ASKED)
    assert (answer["ok"], answer["code"]) == (False, "refused")
    exports.write(shop.home, structs.replace(kept[-1], requested_at=now_s - KEPT_SECONDS - 1))
    assert queue.take(ASKED)["ok"]
    assert len(exports.listing(shop.home)) == KEPT_MAX


def test_a_day_after_it_ended_an_export_is_gone_and_what_nobody_knows_at_once(shop: Workshop) -> None:
    export = written(shop.home, **ASKED)
    assert export.finished_at is not None
    stray = exports.path_of(shop.home, exports.new_id(), "ndjson.gz")
    stray.touch()
    exports.prune(shop.home, export.finished_at + KEPT_SECONDS - 1)
    assert not stray.exists()
    assert exports.find(shop.home, export.id, export.finished_at + KEPT_SECONDS - 1) == export
    # Also where nobody has removed it yet.
    assert exports.find(shop.home, export.id, export.finished_at + KEPT_SECONDS + 1) is None
    exports.prune(shop.home, export.finished_at + KEPT_SECONDS + 1)
    assert list((shop.home / exports.FOLDER).iterdir()) == []


@pytest.mark.parametrize(
    "id", ["", "export_", "../export_" + "0" * 32, "export_" + "0" * 32 + "\n", "export_" + "A" * 32]
)
def test_what_is_no_id_finds_nothing(id: str, tmp_path: Path) -> None:
    made(tmp_path)
    assert exports.find(tmp_path, id, time.time()) is None


def test_what_a_watcher_left_undone_the_next_one_writes(shop: Workshop) -> None:
    export = made(shop.home, status="RUNNING", started_at=time.time())
    exports.path_of(shop.home, export.id, "part").write_bytes(b"half")

    async def run() -> None:
        async with running(shop.home):
            await until(lambda: state(shop.home, export.id) == "SUCCESS")

    asyncio.run(run())
    assert len(lines(shop.home, export.id)) == 3


def test_an_export_of_what_is_damaged_fails_and_leaves_no_file(
    shop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    profiles = shop.current_folder() / snapshot.PROFILES
    profiles.chmod(0o600)
    content = bytearray(profiles.read_bytes())
    at = content.index(b"Ann ")
    content[at : at + 3] = b"Eve"
    profiles.write_bytes(content)
    export = written(shop.home, **ASKED)
    assert export.status == "FAILURE"
    assert [path.suffix for path in (shop.home / exports.FOLDER).iterdir()] == [".json"]
    (message,) = caplog.messages
    assert message.startswith("workspace shop: an export failed: a record of snapshot ")


def test_an_export_without_a_snapshot_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o700)
    assert written(tmp_path, **ASKED).status == "FAILURE"
    assert "nothing is published yet" in caplog.text


def test_an_export_whose_process_is_killed_fails_and_the_next_is_written(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    command = export_queue.CHILD
    monkeypatch.setattr(export_queue, "CHILD", SLEEPING)

    async def run() -> None:
        async with running(shop.home) as queue:
            killed = queue.take(ASKED)["id"]
            pid = await child()
            monkeypatch.setattr(export_queue, "CHILD", command)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: state(shop.home, killed) == "FAILURE")
            following = queue.take(ASKED)["id"]
            await until(lambda: state(shop.home, following) == "SUCCESS")

    asyncio.run(run())
    assert caplog.messages == ["workspace shop: an export failed: its process ended with status -9"]


def test_a_watcher_that_ends_takes_the_writing_process_with_it(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_queue, "CHILD", SLEEPING)
    found: list[int] = []

    async def run() -> None:
        async with running(shop.home) as queue:
            queue.take(ASKED)
            found.append(await child())

    asyncio.run(run())
    assert not Path(f"/proc/{found[0]}").exists()
    # It is for the next watcher.
    assert [export.is_over for export in exports.listing(shop.home)] == [False]


def test_an_export_that_takes_too_long_fails(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_queue, "CHILD", SLEEPING)
    monkeypatch.setattr(export_queue, "EXPORT_SECONDS_MAX", 0.05)
    assert written(shop.home, **ASKED).status == "FAILURE"


async def child() -> int:
    """The pid of the process that sleeps; other tests' servers are children of this one too."""
    listing = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")

    def sleeping() -> list[int]:
        names = {int(pid): Path(f"/proc/{pid}/comm") for pid in listing.read_text().split()}
        return [pid for pid, name in names.items() if name.read_text() == "sleep\n"]

    await until(lambda: sleeping() != [])
    return sleeping()[0]
