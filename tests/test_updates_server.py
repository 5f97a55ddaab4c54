"""The loader's socket: several clients at once, gone ones, garbage, too many, and another process that publishes."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import stat
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from living import living
from workshop import WAIT_SECONDS_MAX, Workshop

from edgeprofile import locks, snapshot, wire
from edgeprofile.errors import LoaderUnavailable
from edgeprofile.loader.changes import UPDATES_MAX
from edgeprofile.loader.export_queue import ExportQueue
from edgeprofile.loader.updates import WAITING_MAX, UpdateServer

ROWS = "SELECT i AS id, 'of the model' AS word FROM range(10) AS made(i)"


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    shop = Workshop(tmp_path).model(ROWS)
    shop.load()
    return shop


def words(shop: Workshop) -> dict[str, Any]:
    with living(shop.home) as served:
        served.check()
        return {primary: (served.profile(primary) or {}).get("word") for primary in served.ids()}


def update(word: str, *primaries: str) -> dict[str, Any]:
    return {"op": "update", "updates": [[primary, {"word": msgspec.json.encode(word)}] for primary in primaries]}


async def ask(shop: Workshop, request: dict[str, Any]) -> dict[str, Any]:
    return await wire.ask(shop.home / wire.UPDATES, request, WAIT_SECONDS_MAX)


async def told(shop: Workshop, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request, be it that nothing can be written."""
    async with wire.connect(shop.home / wire.UPDATES) as peer:
        await peer.send_frame(wire.frame(request))
        return await peer.receive_answer()


def served(shop: Workshop, test: Callable[[UpdateServer], Awaitable[None]], at: snapshot.AtStep | None = None) -> None:
    """Runs a test beside a server of the workspace."""

    async def run() -> None:
        exports = ExportQueue(shop.home, asyncio.Semaphore(1))
        server = UpdateServer(shop.home, exports=exports, at=at or snapshot.nothing)
        async with asyncio.timeout(WAIT_SECONDS_MAX), server:
            await test(server)

    asyncio.run(run())


class Gate:
    """A step of the writer's at which it waits until it is let through."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.reached, self.through = threading.Event(), threading.Event()

    def __call__(self, step: str) -> None:
        if step == self.step:
            self.reached.set()
            assert self.through.wait(WAIT_SECONDS_MAX)

    async def is_reached(self) -> None:
        await asyncio.to_thread(self.reached.wait, WAIT_SECONDS_MAX)


# --- what is answered ----------------------------------------------------------------------------------------------


def test_what_is_acknowledged_is_served_and_what_is_refused_is_named(shop: Workshop) -> None:
    async def test(server: UpdateServer) -> None:
        assert await ask(shop, {"op": "ping"}) == {"v": 1, "ok": True}
        request = update("new", "1", "made", "")
        request["updates"][0][1]["id"] = b"7"
        answer = await ask(shop, request)
        assert answer["ok"] is True
        assert answer["refused"] == [
            [0, "the model alone decides on what has this name", "id"],
            [2, "an id is text of 1 to 511 bytes", None],
        ]
        assert words(shop) == {**dict.fromkeys("0123456789", "of the model"), "1": "new", "made": "new"}
        assert await ask(shop, {"op": "erase", "ids": ["1", "nobody"]}) == {"v": 1, "ok": True}
        assert "1" not in words(shop)
        assert (await ask(shop, update("again", "1")))["refused"] == [[0, "the profile was erased", None]]

    served(shop, test)


def test_many_clients_at_once_have_each_their_own_answer(shop: Workshop) -> None:
    async def client(number: int) -> None:
        async with wire.connect(shop.home / wire.UPDATES) as peer:
            for turn in range(5):
                await peer.send_frame(wire.frame(update(f"{number}.{turn}", f"of {number}", *[""] * number)))
                answer = await peer.receive_answer()
                assert [index for index, *_ in answer["refused"]] == list(range(1, number + 1))

    async def test(server: UpdateServer) -> None:
        await asyncio.gather(*(client(number) for number in range(12)))
        found = words(shop)
        assert [found[f"of {number}"] for number in range(12)] == [f"{number}.4" for number in range(12)]

    served(shop, test)


def test_a_batch_is_written_though_its_sender_is_gone(shop: Workshop) -> None:
    gate = Gate("overlay_written")

    async def test(server: UpdateServer) -> None:
        async with wire.connect(shop.home / wire.UPDATES) as peer:
            await peer.send_frame(wire.frame(update("left behind", "1", "2")))
            await gate.is_reached()
        gate.through.set()
        await ask(shop, {"op": "ping"})
        found = words(shop)
        assert (found["1"], found["2"]) == ("left behind", "left behind")

    served(shop, test, gate)


def test_the_loop_goes_on_while_a_batch_is_written(shop: Workshop) -> None:
    gate = Gate("live_written")

    async def test(server: UpdateServer) -> None:
        writing = asyncio.create_task(ask(shop, update("slow", "1")))
        await gate.is_reached()
        async with wire.connect(shop.home / wire.UPDATES) as peer:
            await peer.send_frame(wire.frame({"op": "nothing"}))
            assert (await peer.receive_answer())["code"] == "invalid"
        assert not writing.done()
        gate.through.set()
        assert (await writing)["ok"]

    served(shop, test, gate)


def test_too_many_that_wait_are_told_to_come_again_and_the_others_are_served(shop: Workshop) -> None:
    gate = Gate("overlay_written")

    async def test(server: UpdateServer) -> None:
        first = asyncio.create_task(told(shop, update("first", "1")))
        await gate.is_reached()
        others = [asyncio.create_task(told(shop, update("other", "2"))) for _ in range(WAITING_MAX + 4)]
        refused, waiting = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        while len(refused) < 5:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            refused |= done
        assert {task.result()["code"] for task in refused} == {"unavailable"}
        gate.through.set()
        answers = await asyncio.gather(first, *waiting)
        assert [answer["ok"] for answer in answers] == [True] * WAITING_MAX

    served(shop, test, gate)


# --- bad input -----------------------------------------------------------------------------------------------------


def frame_of(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


NOISE = random.Random(3)
GARBAGE = {
    "noise": frame_of(NOISE.randbytes(400)),
    "no message": frame_of(b"\xc1"),
    "a list": frame_of(msgspec.msgpack.encode([1])),
    "text that is none": frame_of(b"\x81\xa2\xff\xff\x01"),
    "another version": frame_of(msgspec.msgpack.encode({"v": 2, "op": "ping"})),
    "no version": frame_of(msgspec.msgpack.encode({"op": "ping"})),
    "too long": struct.pack("<I", wire.FRAME_BYTES_MAX + 1) + b"x" * 100,
    "nothing at all": b"",
    "an empty frame": frame_of(b""),
    "cut short": frame_of(msgspec.msgpack.encode({"v": 1, "op": "ping"}))[:-2],
    "half a length": b"\x01\x00",
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_garbage_ends_its_own_connection_and_no_other(shop: Workshop, content: bytes) -> None:
    async def test(server: UpdateServer) -> None:
        async with wire.connect(shop.home / wire.UPDATES) as bystander:
            with socket.socket(socket.AF_UNIX) as client:
                with wire.address_of(shop.home / wire.UPDATES) as address:
                    client.connect(address)
                client.sendall(content)
                client.shutdown(socket.SHUT_WR)
                assert await asyncio.to_thread(client.recv, 1000) == b""
            await bystander.send_frame(wire.frame(update("good", "1")))
            assert (await bystander.receive_answer())["ok"]
        assert words(shop)["1"] == "good"

    served(shop, test)


INVALID: dict[str, dict[str, Any]] = {
    "no such operation": {"op": "drop"},
    "an operation of another kind": {"op": 7},
    "no updates": {"op": "update"},
    "too many updates": update("x", *map(str, range(UPDATES_MAX + 1))),
    "an update of another kind": {"op": "update", "updates": [{"id": "1"}]},
    "no JSON": {"op": "update", "updates": [["2", {"word": b'"good"'}], ["1", {"word": b'"cut'}]]},
    "JSON in two": {"op": "update", "updates": [["1", {"word": b"1 2"}]]},
    "JSON that is no text": {"op": "update", "updates": [["1", {"word": b'"\xff"'}]]},
    "brackets without an end": {"op": "update", "updates": [["1", {"word": b"[" * 1000 + b"]" * 1000}]]},
    "a value that is too long": {"op": "update", "updates": [["1", {"word": b'"' + b"x" * 40_000 + b'"'}]]},
    "a name that is too long": {"op": "update", "updates": [["1", {"x" * 300: b"1"}]]},
    "no name": {"op": "update", "updates": [["1", {"": b"1"}]]},
    "a time out of range": {"op": "update", "updates": [["1", {}, {}, {}, [[None, "page", 1 << 62, {}]]]]},
    "no such namespace": {**update("x", "1"), "namespace": "shoe_size"},
    "ids of another kind": {"op": "erase", "ids": [1]},
}


@pytest.mark.parametrize("request_", INVALID.values(), ids=INVALID)
def test_what_is_not_as_it_should_be_is_told_so_and_none_of_it_is_written(
    shop: Workshop, request_: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def test(server: UpdateServer) -> None:
        async with wire.connect(shop.home / wire.UPDATES) as peer:
            await peer.send_frame(wire.frame(request_))
            answer = await peer.receive_answer()
            assert (answer["ok"], answer["code"]) == (False, "invalid")
            assert "good" not in answer["message"]
            assert "cut" not in answer["message"]
            await peer.send_frame(wire.frame(update("next", "9")))
            assert (await peer.receive_answer())["ok"]
        assert words(shop) == {**dict.fromkeys("012345678", "of the model"), "9": "next"}

    served(shop, test)


def test_a_fault_is_logged_without_what_was_sent(shop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    def at(step: str) -> None:
        raise ValueError("secret of 1")

    async def test(server: UpdateServer) -> None:
        answer = await told(shop, update("secret", "1"))
        assert (answer["code"], answer["message"]) == ("unavailable", "a fault in the loader")

    served(shop, test, at)
    assert "ValueError at" in caplog.text
    assert "secret" not in caplog.text.replace('ValueError("secret of 1")', "")


# --- its life ------------------------------------------------------------------------------------------------------


def test_without_a_snapshot_nothing_is_taken_until_there_is_one(tmp_path: Path) -> None:
    shop = Workshop(tmp_path).model(ROWS)

    async def test(server: UpdateServer) -> None:
        answer = await told(shop, update("early", "1"))
        assert (answer["code"], answer["message"]) == ("unavailable", "nothing is published yet")
        with pytest.raises(LoaderUnavailable):
            await ask(shop, {"op": "ping"})
        assert (await asyncio.to_thread(shop.run, "load")).status == 0
        assert (await ask(shop, update("now", "1")))["ok"]
        assert words(shop)["1"] == "now"

    served(shop, test)


def test_the_socket_is_the_owners_alone_and_replaces_one_that_was_left_behind(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    shop = Workshop(deep).model(ROWS)
    shop.load()
    path = shop.home / wire.UPDATES
    with socket.socket(socket.AF_UNIX) as killed, wire.address_of(path) as address:
        killed.bind(address)

    async def test(server: UpdateServer) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await ask(shop, update("deep", "1")))["ok"]

    served(shop, test)
    assert not path.exists()
    assert words(shop)["1"] == "deep"


def test_a_server_that_ends_finishes_its_batch_and_turns_the_others_away(shop: Workshop) -> None:
    gate = Gate("overlay_written")
    answers: list[dict[str, Any]] = []

    async def run() -> None:
        exports = ExportQueue(shop.home, asyncio.Semaphore(1))
        async with wire_server(shop, exports, gate) as waiting:
            waiting.append(asyncio.create_task(told(shop, update("first", "1"))))
            await gate.is_reached()
            waiting.append(asyncio.create_task(told(shop, update("second", "1"))))
            idle = asyncio.create_task(hold(shop))
            waiting.append(asyncio.create_task(told(shop, {"op": "nothing"})))
            await waiting[-1]  # so that those before it have been read
            gate.through.set()
        answers.extend([await task for task in waiting])
        await idle

    asyncio.run(run())
    assert answers[0]["ok"]
    assert answers[1]["ok"] or answers[1]["code"] == "unavailable"
    assert words(shop)["1"] == ("second" if answers[1]["ok"] else "first")


@asynccontextmanager
async def wire_server(
    shop: Workshop, exports: ExportQueue, at: snapshot.AtStep
) -> AsyncIterator[list[asyncio.Task[dict[str, Any]]]]:
    async with asyncio.timeout(WAIT_SECONDS_MAX), UpdateServer(shop.home, exports=exports, at=at):
        yield []


async def hold(shop: Workshop) -> None:
    """A connection of somebody who has nothing to say."""
    async with wire.connect(shop.home / wire.UPDATES) as peer:
        with pytest.raises(wire.Broken):
            await peer.receive_answer()


def test_of_two_watchers_the_second_is_told_who_the_first_is(shop: Workshop) -> None:
    with locks.watching(shop.home):
        second = shop.run("load", "--watch")
    assert second.status == 1
    assert second.complaints == [f"edgeprofile: workspace shop is being watched by process {os.getpid()}"]


def test_snapshots_that_another_process_publishes_are_followed_without_an_update_lost(shop: Workshop) -> None:
    async def test(server: UpdateServer) -> None:
        ended = asyncio.Event()

        async def load() -> None:
            for number in range(3):
                shop.model(ROWS.replace("of the model", f"of model {number}"))
                assert (await asyncio.to_thread(shop.run, "load")).status == 0
                await server.refreshed()
            ended.set()

        loading = asyncio.create_task(load())
        number = 0
        async with wire.connect(shop.home / wire.UPDATES) as peer:
            while not ended.is_set():
                number += 1
                await peer.send_frame(wire.frame(update(str(number), str(number % 5))))
                assert (await peer.receive_answer())["ok"]
        await loading
        expected = {str(n): "of model 2" for n in range(5, 10)}
        expected |= {str(n % 5): str(n) for n in range(number - 4, number + 1)}
        assert words(shop) == expected

    served(shop, test)


def test_what_was_erased_is_due_before_the_time_for_it_is_over(shop: Workshop) -> None:
    async def test(server: UpdateServer) -> None:
        assert await server.erasure_due_at(3600) is None
        began = time.time()
        await ask(shop, {"op": "erase", "ids": ["1"]})
        due_at = await server.erasure_due_at(3600)
        assert due_at is not None
        assert began + 3000 < due_at < time.time() + 3600
        assert (await asyncio.to_thread(shop.run, "load")).status == 0
        assert await server.erasure_due_at(3600) == due_at, "the snapshot before has it still"
        shop.model(ROWS, keep=1)
        assert (await asyncio.to_thread(shop.run, "load", "--force")).status == 0
        assert await server.erasure_due_at(3600) is None

    served(shop, test)
