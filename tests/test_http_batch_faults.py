"""Updates and erasures while the gateway or the loader is not there, breaks off, is slow, or says nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batches import BATCHED, MASS_UPDATE, PROJECT, UPDATE, Said, StandIn, call, takes_all, updates
from conftest import MakeService
from service import Answer, Service, free_port, is_served, until
from workshop import COMMAND

from edgeprofile import gateway, settings, wire
from edgeprofile._limiter import SharedMap
from edgeprofile.api import batch
from edgeprofile.errors import LoaderUnavailable, MalformedBody

ONE = "CREATE TABLE profiles AS SELECT '12345' AS profile_id, 'jane@example.com' AS email, 'd1' AS device_id, "
ONE += "1.5 AS lifetime_value, true AS high_spenders, false AS churn_risk, TIMESTAMP '2025-06-10' AS updated_at"
JANE = "/v1/profiles/id/12345"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("faults"), {"shop": BATCHED}, workers=1)
    made.run_sql(ONE)
    made.load()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def key(service: Service) -> str:
    """A rested key of its own for each test."""
    return service.key(scopes=("read", "write"))


def assert_maintenance(answer: Answer, why: str = "Nothing can be written right now.") -> None:
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error_code"] == "MAINTENANCE_ERROR"
    assert answer.json()["error_message"].startswith(why)


def assert_unavailable(answer: Answer) -> None:
    assert (answer.status, answer.code()) == (503, "loader_unavailable")
    assert int(answer.headers["retry-after"]) == answer.json()["retry_after"] >= 1


# --- the loader ----------------------------------------------------------------------------------------------------


def test_without_a_loader_nothing_is_written_no_token_is_taken_and_reads_go_on(service: Service, key: str) -> None:
    full = call(MASS_UPDATE, key, updates(10_000))
    assert_maintenance(service.ask(full))
    assert_unavailable(service.get(JANE, key, method="DELETE"))
    assert service.get(JANE, key).status == 200
    with StandIn(service.home(), takes_all) as loader:
        # All ten thousand tokens are there still.
        assert service.ask(full).status == 202
        assert service.get(JANE, key, method="DELETE").status == 204
        assert [asked["op"] for asked in loader.asked] == ["update", "erase"]


@pytest.mark.parametrize(
    "said",
    [
        None,
        b"\x05\0\0\0",
        b"\x01\0\0\0\xc1",
        b"\xff\xff\xff\xff",
        wire.LENGTH.pack(2) + b"\x91\x01",
        {"ok": False, "code": "unavailable", "message": "it is full"},
    ],
)
def test_a_loader_that_breaks_off_is_asked_again_by_the_caller(said: Said, service: Service, key: str) -> None:
    with StandIn(service.home(), lambda _: said):
        answer = service.ask(call(UPDATE, key, updates(1)))
        assert_maintenance(
            answer, "Nothing" if isinstance(said, dict) else "The updates may have been written, or not."
        )
        assert_unavailable(service.get(JANE, key, method="DELETE"))


def test_a_loader_of_another_version_is_told_in_the_log(service: Service, key: str) -> None:
    content = b"\x82\xa1v\x02\xa2ok\xc3"
    with StandIn(service.home(), lambda _: wire.LENGTH.pack(len(content)) + content):
        assert_maintenance(service.ask(call(UPDATE, key, updates(1))), "The updates may have been written")
    assert "speaks otherwise than version 1: start all of them anew" in service.log()


def test_a_loader_that_refuses_what_the_rules_let_pass_is_our_fault(service: Service, key: str) -> None:
    with StandIn(service.home(), lambda _: {"ok": False, "code": "invalid", "message": "no"}):
        answer = service.ask(call(UPDATE, key, updates(1)))
        assert (answer.status, answer.json()["error_code"]) == (500, "SERVER_ERROR")


def test_what_the_loader_leaves_out_has_its_place_in_the_call(service: Service, key: str) -> None:
    said = {"ok": True, "refused": [[1, "it was erased", None], [2, "too many items", "number"]]}
    with StandIn(service.home(), lambda _: said) as loader:
        answer = service.ask(call(UPDATE, key, [{}, *updates(4)]))
        assert [update[0] for update in loader.asked[0]["updates"]] == ["made-0", "made-1", "made-2", "made-3"]
    assert answer.status == 202
    errors = answer.json()["errors"]
    assert [error.pop("reason") for error in errors][1:] == ["it was erased", "too many items"]
    assert errors == [
        {"category": "identifier", "bulk_index": 0},
        {"category": "update", "bulk_index": 2},
        {"category": "attribute", "bulk_index": 3, "attribute": "number"},
    ]


class Slow:
    """An answer of a loader that waits to be let go on."""

    def __init__(self) -> None:
        self.is_asked, self._go_on = threading.Event(), threading.Event()

    def __call__(self, request: dict[str, Any]) -> Said:
        self.is_asked.set()
        assert self._go_on.wait(60)
        return takes_all(request)

    def go_on(self) -> None:
        self._go_on.set()


def test_lookups_and_other_updates_are_answered_while_the_loader_takes_its_time(service: Service, key: str) -> None:
    slow = Slow()
    with StandIn(service.home(), slow), service.connect() as waiting:
        waiting.send(call(UPDATE, key, updates(1)))
        assert slow.is_asked.wait(30)
        assert service.get(JANE, key).status == 200
        assert service.ask(call(UPDATE, key, b"[")).json()["error_code"] == "MALFORMED_JSON_BODY"
        slow.go_on()
        assert waiting.read().status == 202


# --- the gateway ---------------------------------------------------------------------------------------------------


def test_a_gateway_that_is_killed_answers_nothing_twice_and_another_takes_its_place(service: Service, key: str) -> None:
    slow = Slow()
    killed = service.gateway()
    assert killed is not None
    with StandIn(service.home(), slow), service.connect() as waiting:
        waiting.send(call(UPDATE, key, updates(1)))
        assert slow.is_asked.wait(30)
        os.kill(killed, signal.SIGKILL)
        assert_maintenance(waiting.read(), "The updates may have been written, or not.")
        slow.go_on()
        until(lambda: service.gateway() not in (None, killed), "there is another gateway")
        until(lambda: is_taken(service, key), "it takes updates")
    assert "edgeprofile-gtw ended with status -9 and is started again" in service.log()


def is_taken(service: Service, key: str) -> bool:
    answer = service.ask(call(UPDATE, key, updates(1)))
    if answer.status != 202:
        assert_maintenance(answer)
    return answer.status == 202


def test_a_gateway_that_is_told_to_end_finishes_what_is_under_way(make_service: MakeService) -> None:
    service, slow = make_service({"shop": BATCHED}), Slow()
    key = service.mint(scopes=("write",))
    service.start(ready=503)
    told = service.gateway()
    assert told is not None
    with StandIn(service.home(), slow), service.connect() as waiting:
        waiting.send(call(UPDATE, key, updates(1)))
        assert slow.is_asked.wait(30)
        os.kill(told, signal.SIGTERM)
        until(lambda: not is_served(service.settings.data_dir / wire.GATEWAY), "it takes no more")
        assert_maintenance(service.ask(call(UPDATE, key, updates(1))))
        slow.go_on()
        assert waiting.read().status == 202
    until(lambda: service.gateway() is None, "it has ended")


def test_a_server_whose_socket_another_took_and_left_behind_takes_updates_again(service: Service, key: str) -> None:
    path = service.settings.data_dir / wire.GATEWAY
    own = path.stat().st_ino
    command = [*COMMAND, "serve", "--config", str(service.file)]
    ports = {"EDGEPROFILE_SERVER__PORT": str(free_port()), "EDGEPROFILE_SERVER__ADMIN_PORT": "0"}
    with StandIn(service.home(), takes_all):
        with subprocess.Popen(command, env={**os.environ, **ports}, stderr=subprocess.DEVNULL) as another:
            until(lambda: path.stat().st_ino != own and is_served(path), "another has taken its place")
            assert is_taken(service, key)
            another.terminate()
        until(lambda: is_taken(service, key), "it takes updates")


def test_without_the_dialect_there_is_no_gateway(make_service: MakeService) -> None:
    service = make_service()
    service.start(ready=503)
    assert service.gateway() is None
    answer = service.ask(call(UPDATE, service.key(scopes=("write",)), updates(1)))
    assert (answer.status, answer.code()) == (404, "no_such_route")


# --- bodies --------------------------------------------------------------------------------------------------------


def test_a_body_that_breaks_off_is_nobodys_update(service: Service, key: str) -> None:
    with StandIn(service.home(), takes_all) as loader:
        for content in (
            call(UPDATE, key, b"[{}", length=100),
            call(UPDATE, key, b"3\r\n[{", ("Transfer-Encoding", "chunked")),
        ):
            with service.connect() as connection:
                connection.send(content)
                connection.end()
                with contextlib.suppress(ConnectionError):
                    assert connection.read().status == 400
        assert service.ask(call(UPDATE, key, updates(1))).status == 202
        assert len(loader.asked) == 1


def test_a_body_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "BODY_SECONDS_MAX", 0.01)
    messages = [{"type": "http.request", "body": b"[", "more_body": True}]

    async def receive() -> Any:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    async def read() -> None:
        async for piece in batch._pieces(receive, 100):
            assert piece == b"["

    with pytest.raises(MalformedBody, match="not whole after"):
        asyncio.run(read())


# --- many at once --------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> dict[str, gateway.Served]:
    text = 'data_dir = "state"\n[workspaces.shop]\nsource = { url = "duckdb://" }\n'
    text += f'profiles = {{ sql = "SELECT 1", id = "id" }}\nbatch = {{ project = "{PROJECT}" }}\n'
    (tmp_path / "edgeprofile.toml").write_text(text)
    (tmp_path / "state").mkdir()
    return gateway.served(settings.load(tmp_path / "edgeprofile.toml", {}))


def head(**changes: Any) -> dict[str, Any]:
    return {"v": 1, "op": "update", "id": b"1", "workspace": "shop", "key": "k", "gzip": False} | changes


def test_more_at_once_than_the_gateway_takes_are_told_to_come_again(
    tmp_path: Path, served: dict[str, gateway.Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "REQUESTS_MAX", 3)
    monkeypatch.setattr(gateway, "HELD_BYTES_MAX", 1_000)

    async def run() -> None:
        made = gateway.Gateway(served, SharedMap(tmp_path / "shared.map"))
        path = tmp_path / "g.sock"
        connect = functools.partial(wire.connect, path)
        async with await wire.serve(path, made.talk), connect() as one, connect() as two, connect() as three:
            for peer in (one, two, three):
                await peer.send(head())
                await peer.send(b"x" * 300)
            async with connect() as fourth:
                answer = await fourth.receive_answer()
                assert (answer["code"], answer["retry_after"]) == ("MAINTENANCE_ERROR", 1)
            # What all hold together has a bound too, and is let go of with them.
            await two.send(b"x" * 101)
            assert (await two.receive_answer())["code"] == "MAINTENANCE_ERROR"
            for peer, size in ((three, 300), (one, 600)):
                await peer.send(b"x" * size)
                await peer.send(b"")
                assert (await peer.receive_answer())["code"] == "MALFORMED_JSON_BODY"

    asyncio.run(run())


@pytest.mark.parametrize(
    "sent",
    [
        [1],
        [{"v": 1}],
        [{"op": "update"}],
        [head(), "no bytes"],
    ],
)
def test_what_is_no_request_is_left_without_an_answer(
    sent: list[Any], tmp_path: Path, served: dict[str, gateway.Served]
) -> None:
    async def run() -> None:
        made = gateway.Gateway(served, SharedMap(tmp_path / "shared.map"))
        path = tmp_path / "g.sock"
        async with await wire.serve(path, made.talk):
            async with wire.connect(path) as peer:
                for message in sent:
                    await peer.send(message)
                with pytest.raises(wire.Broken):
                    await peer.receive_answer()
            assert made.requests == 0

    asyncio.run(run())


def test_a_socket_is_served_for_its_user_alone_and_replaces_what_was_left(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 30)  # too long for an address of a socket
    folder.mkdir()
    path = folder / "s.sock"

    async def echo(peer: wire.Peer) -> None:
        request = await peer.receive_request()
        await peer.send_frame(wire.frame({"ok": True, "said": request["op"]}))

    async def run() -> None:
        with pytest.raises(LoaderUnavailable):
            await wire.ask(path, {"op": "hello"}, 10)
        for _ in range(2):
            server = await wire.serve(path, echo)
            assert path.stat().st_mode & 0o777 == 0o600
            assert (await wire.ask(path, {"op": "hello"}, 10))["said"] == "hello"
            server.close()
            await server.wait_closed()
        with pytest.raises(LoaderUnavailable):
            await wire.ask(path, {"op": "hello"}, 10)

    asyncio.run(run())


def test_a_message_that_no_frame_holds_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAME_BYTES_MAX", 100)
    with pytest.raises(ValueError, match="at most 100 bytes"):
        wire.frame({"op": "x" * 100})
