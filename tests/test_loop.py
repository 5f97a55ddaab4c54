"""Lookups are answered before they come to the event loop, whatever comes of them; all else takes the usual way."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeService
from service import UNLIMITED, Service, many, request, until
from test_http_snapshots import DECLARED as GENERATIONS
from test_http_snapshots import generation_of, publish

from edgeprofile import metrics
from edgeprofile._front import Front
from edgeprofile._limiter import SharedMap
from edgeprofile.app import SHARED_MAP, build_app
from edgeprofile.loop import WATCHER, Loop

JANE = "/v1/profiles/id/12345"
Message = dict[str, Any]


def deferred(service: Service) -> int:
    """How many lookups came to the event loop, of all workers."""
    return SharedMap(service.settings.data_dir / SHARED_MAP).counter(metrics.Counter.LOOKUPS_DEFERRED)


# --- a real service ------------------------------------------------------------------------------------------------


def test_no_lookup_comes_to_the_event_loop_whatever_its_outcome(service: Service, key: str) -> None:
    limited = service.key(rate=0.01, burst_rate=1, burst_seconds=0)
    etag = service.get(JANE, key).headers["etag"]
    long = [(f"x-{n}", "y" * 1000) for n in range(33)]
    outcomes = [
        (request(JANE, key), 200),
        (request(JANE, key, ("Accept", "application/msgpack")), 200),
        (request("/v1/profiles/identifier/email/jane@example.com?fields=metrics", key), 200),
        (request(JANE, key, ("If-None-Match", etag)), 304),
        (request("/v1/profiles/id/%", key), 400),
        (request(f"{JANE}?fields=nope", key), 400),
        (request(JANE), 401),
        (request(JANE, service.key(scopes=("write",))), 403),
        (request("/v1/profiles/id/nobody", key), 404),
        (request(JANE, key, method="PUT"), 405),
        (request(JANE, key, ("Accept", "text/html")), 406),
        (request("/v1/profiles/id/large", key), 413),
        (request("/v1/profiles/id/" + "x" * 9_000, key), 414),
        (request("/" + "x" * 9_000, key), 414),
        (request(JANE, limited), 200),
        (request(JANE, limited), 429),
        (request(JANE, key, *long), 431),
    ]
    for connection in service.connect_to_each():
        with connection:
            for _ in range(20):
                connection.send(b"".join(content for content, status in outcomes[:-3]))
                for content, status in outcomes[:-3]:
                    assert connection.read().status == status, content
    with service.connect() as connection:
        assert [connection.ask(content).status for content, _ in outcomes[-3:]] == [200, 429, 431]
        for content, status in (
            (request("/livez"), 200),
            (request("/readyz"), 200),
            (request("/nowhere"), 404),
            (request("/v1/profiles/id"), 404),
            (request(JANE, key, method="DELETE"), 403),
            (many({"profiles": [{"id": "12345"}]}, key), 200),
        ):
            assert connection.ask(content).status == status

    assert deferred(service) == 0


class Asker(threading.Thread):
    """Sends bursts over a connection of its own until told to stop, and checks every answer."""

    def __init__(self, service: Service, burst: bytes, checks: list[Callable[[Any], None]]) -> None:
        super().__init__()
        self.connection, self.burst, self.checks = service.connect(), burst, checks
        self.stopping, self.faults, self.answers = threading.Event(), list[BaseException](), 0

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self.connection.send(self.burst)
                for check in self.checks:
                    check(self.connection.read())
                    self.answers += 1
        except BaseException as fault:
            self.faults.append(fault)


def lookup_of(number: int) -> Callable[[Any], None]:
    def check(answer: Any) -> None:
        assert answer.json()["profile_id"] == f"p{number}"
        generation_of(answer)

    return check


def batch_of(numbers: list[int]) -> Callable[[Any], None]:
    def check(answer: Any) -> None:
        found = answer.json()["profiles"]
        assert [one["profile_id"] for one in found] == [f"p{number}" for number in numbers]
        # Parts that a lookup in another thread asks for too.
        (generation,) = {one["last"] for one in found}
        for one in found:
            assert one["_audiences"] == {"odd": generation % 2 == 1}
            assert list(one) == ["profile_id", "last", "_audiences", "_updated_at"]

    return check


def part_of(number: int) -> Callable[[Any], None]:
    def check(answer: Any) -> None:
        found = answer.json()
        assert found["profile_id"] == f"p{number}"
        assert found["_audiences"] == {"odd": found["last"] % 2 == 1}

    return check


def test_lookups_and_batches_at_once_each_get_their_own(make_service: MakeService) -> None:
    service = make_service({"shop": GENERATIONS})
    publish(service, 0)
    key, short_lived = service.key(), service.key()
    service.start()
    fields = ["identifiers.profile_id", "metrics.last", "audiences.odd"]
    askers = []
    for n in range(3):
        numbers = list(range(n * 20, n * 20 + 20))
        burst = b"".join(request(f"/v1/profiles/id/p{number}", key) for number in numbers)
        askers.append(Asker(service, burst, [lookup_of(number) for number in numbers]))
        burst = b"".join(request(f"/v1/profiles/id/p{number}?fields={','.join(fields)}", key) for number in numbers)
        askers.append(Asker(service, burst, [part_of(number) for number in numbers]))
        asked = {"profiles": [{"id": f"p{number}"} for number in numbers * 5], "fields": fields}
        askers.append(Asker(service, many(asked, key), [batch_of(numbers * 5)]))
    statuses: list[int] = []
    both = request("/v1/profiles/id/p1", short_lived) + many({"profiles": [{"id": "p1"}]}, short_lived)
    askers.append(Asker(service, both, [lambda answer: statuses.append(answer.status)] * 2))

    for asker in askers:
        asker.start()
    for generation in (1, 2):
        publish(service, generation)
    service.revoke(short_lived)
    for generation in (3, 4):
        publish(service, generation)
    until(lambda: asker.faults or statuses[-2:] == [401, 401], "the key is refused")
    for asker in askers:
        asker.stopping.set()
    for asker in askers:
        asker.join()
        asker.connection.close()

    assert not [fault for asker in askers for fault in asker.faults]
    assert all(asker.answers >= 10 for asker in askers)
    assert statuses == [200] * statuses.count(200) + [401] * statuses.count(401), "once refused, always refused"
    assert deferred(service) == 0


# --- the loop itself -----------------------------------------------------------------------------------------------


@pytest.fixture
def app(tmp_path: Path) -> Iterator[tuple[Front, str, Service]]:
    """The server's callable in this process, its snapshot open, a key of it, and the service whose folder it has."""
    service = Service(tmp_path, {"shop": 'id = "profile_id"'}, limits=UNLIMITED)
    service.run_sql("CREATE TABLE profiles AS SELECT '12345' AS profile_id, 'Jane' AS first_name")
    service.load()
    key = service.key()
    lookup = build_app(service.settings)
    switching = sys.getswitchinterval()
    loop = asyncio.new_event_loop()
    told: list[Message] = []
    events: asyncio.Queue[Message] = asyncio.Queue()

    async def tell(message: Message) -> None:
        told.append(message)

    async def live(event: str) -> None:
        await events.put({"type": f"lifespan.{event}"})
        while not told or told[-1]["type"] != f"lifespan.{event}.complete":
            await asyncio.sleep(0)

    async def live_through() -> None:
        await lookup({"type": "lifespan", "asgi": {}, "state": {}}, events.get, tell)

    life = loop.create_task(live_through())
    loop.run_until_complete(live("startup"))
    yield lookup, key, service
    loop.run_until_complete(live("shutdown"))
    loop.run_until_complete(life)
    loop.close()
    sys.setswitchinterval(switching)
    gc.unfreeze()


def scope_of(path: str, key: str, method: str = "GET") -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {key}".encode()), (b"x-request-id", b"same")],
    }


async def nothing_more() -> Message:
    return {"type": "http.request", "body": b'{"profiles":[{"id":"12345"}]}', "more_body": False}


class Piece:
    """A future of a piece of a body, as Granian's: it is done when the test says so."""

    def __init__(self, message: Message | None = None) -> None:
        self.message = message
        self.callback: Any = None

    def done(self) -> bool:
        return self.message is not None

    def result(self) -> Message:
        assert self.message is not None
        return self.message

    def add_done_callback(self, callback: Any) -> None:
        self.callback = callback

    def arrive(self, body: bytes, *, more: bool) -> None:
        self.message = {"type": "http.request", "body": body, "more_body": more}
        self.callback(self)


def arrived() -> Piece:
    return Piece({"type": "http.request", "body": b'{"profiles":[{"id":"12345"}]}', "more_body": False})


CASES = [
    (JANE, "GET", 200),
    (JANE, "HEAD", 200),
    ("/v1/profiles/id/nobody", "GET", 404),
    (JANE, "PUT", 405),
    ("/v1/profiles/lookup", "POST", 200),
    ("/v1/profiles/lookup", "GET", 405),
    ("/livez", "GET", 200),
    ("/nowhere", "GET", 404),
]


@pytest.mark.parametrize(("path", "method", "status"), CASES)
def test_through_plain_asgi_the_messages_are_the_same(
    app: tuple[Front, str, Service], path: str, method: str, status: int
) -> None:
    lookup, key, service = app
    now: list[Message] = []
    later: list[Message] = []

    async def send(message: Message) -> None:
        await asyncio.sleep(0)
        later.append(message)

    is_lookup = lookup.answer_now(scope_of(path, key, method), arrived, now.append)

    async def run() -> None:
        await lookup(scope_of(path, key, method), nothing_more, send)

    asyncio.run(run())

    assert is_lookup == path.startswith("/v1/profiles/")
    assert now == (later if is_lookup else [])
    assert [message["type"] for message in later] == ["http.response.start", "http.response.body"]
    assert later[0]["status"] == status
    assert all(type(name) is type(value) is bytes for name, value in later[0]["headers"])
    assert deferred(service) == is_lookup, "this one was answered by the loop"


@pytest.mark.parametrize("missing", ["headers", "method", "query_string", "raw_path"])
def test_no_exception_leaves_answer_now(
    app: tuple[Front, str, Service], missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    lookup, key, _ = app
    scope = scope_of("/v1/profiles/id/secret-id", key)
    del scope[missing]
    sent: list[Message] = []

    assert lookup.answer_now(scope, arrived, sent.append) is False

    assert sent == []
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "KeyError" in caplog.text
    assert not [secret for secret in (key, "secret-id") if secret in caplog.text]


def test_a_send_that_fails_leaves_answer_now_too_as_false(
    app: tuple[Front, str, Service], caplog: pytest.LogCaptureFixture
) -> None:
    lookup, key, _ = app

    def fail(message: Message) -> None:
        raise OSError

    assert lookup.answer_now(scope_of(JANE, key), arrived, fail) is False
    assert caplog.records
    assert key not in caplog.text


def test_a_body_in_pieces_is_answered_when_the_last_one_is_there(app: tuple[Front, str, Service]) -> None:
    lookup, key, _ = app
    sent: list[Message] = []
    pieces: list[Piece] = []

    def receive() -> Piece:
        pieces.append(Piece())
        return pieces[-1]

    assert lookup.answer_now(scope_of("/v1/profiles/lookup", key, "POST"), receive, sent.append)
    for number, piece in enumerate((b'{"profiles":[{"id":', b'"12345"}]', b"}", b"")):
        assert sent == []
        pieces[number].arrive(piece, more=piece != b"")

    assert [message.get("status") for message in sent] == [200, None]
    assert len(pieces) == 4


def test_a_body_that_takes_too_long_is_answered_once(app: tuple[Front, str, Service]) -> None:
    lookup, key, _ = app
    sent: list[Message] = []
    piece = Piece()

    assert lookup.answer_now(scope_of("/v1/profiles/lookup", key, "POST"), lambda: piece, sent.append)
    lookup.expire_bodies()
    assert sent == [], "its time has only begun"
    piece.callback.expire()
    piece.arrive(b'{"profiles":[]}', more=False)

    assert [message.get("status") for message in sent] == [400, None]
    assert b"not whole after 30 s" in sent[1]["body"]


def test_a_body_that_cannot_be_read_is_answered_once(app: tuple[Front, str, Service]) -> None:
    lookup, key, _ = app
    sent: list[Message] = []

    def receive() -> Piece:
        raise OSError

    assert lookup.answer_now(scope_of("/v1/profiles/lookup", key, "POST"), receive, sent.append)
    lookup.expire_bodies()

    assert [message.get("status") for message in sent] == [500, None]


def test_a_caller_that_has_gone_before_its_body_is_read_is_one_bad_request(app: tuple[Front, str, Service]) -> None:
    lookup, key, _ = app
    sent: list[Message] = []

    assert lookup.answer_now(scope_of("/v1/profiles/lookup", key, "POST"), lambda: object(), sent.append)

    assert [message.get("status") for message in sent] == [400, None]


class Protocol:
    """As Granian's: `send` acts when it is called."""

    def __init__(self, sent: list[Message]) -> None:
        self.send = sent.append
        self.receive = arrived


# Granian's own cannot be made from here, and is known by its name.
def watcher_of(scope: dict[str, Any], sent: list[Message], name: str = WATCHER) -> Any:
    return type(name, (), {"scope": scope, "proto": Protocol(sent)})()


def in_a_loop(lookup: Front | None, act: Callable[[Loop], None], ran: list[Any], wanted: int) -> None:
    """Runs a loop, and `act` in a thread beside it, until `ran` has as many entries as wanted."""
    loop = Loop()
    loop.front = lookup

    async def run() -> None:
        thread = threading.Thread(target=act, args=(loop,))
        thread.start()
        give_up = time.monotonic() + 10
        while (len(ran) < wanted or thread.is_alive()) and time.monotonic() < give_up:
            await asyncio.sleep(0.001)
        thread.join()

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


@pytest.mark.parametrize(
    ("path", "name", "is_answered"),
    [(JANE, WATCHER, True), ("/livez", WATCHER, False), (JANE, "CallbackWatcherOther", False)],
)
def test_what_is_no_lookup_or_of_another_server_takes_the_usual_way(
    app: tuple[Front, str, Service], path: str, name: str, is_answered: bool
) -> None:
    lookup, key, _ = app
    sent: list[Message] = []
    ran: list[Any] = []

    async def usual() -> None:
        ran.append("usual")

    def act(loop: Loop) -> None:
        def start(coroutine: Any, watcher: Any) -> None:
            ran.append(watcher)
            loop.create_task(coroutine)

        watcher = watcher_of(scope_of(path, key), sent, name)
        loop.call_soon_threadsafe(start, usual(), watcher, context=contextvars.copy_context())

    in_a_loop(lookup, act, ran, 0 if is_answered else 2)
    assert (len(sent), len(ran)) == ((2, 0) if is_answered else (0, 2))


@pytest.mark.parametrize("args", [(), (1,), (1, 2), (1, 2, 3), (None, None)])
@pytest.mark.parametrize("with_lookup", [False, True])
def test_other_callbacks_run_as_in_any_loop(
    app: tuple[Front, str, Service], args: tuple[Any, ...], with_lookup: bool
) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    context = contextvars.copy_context()
    context.run(variable.set, "given")
    ran: list[Any] = []

    def note(*given: Any) -> None:
        ran.append((given, variable.get(), threading.current_thread() is threading.main_thread()))

    def act(loop: Loop) -> None:
        loop.call_soon_threadsafe(note, *args)
        loop.call_soon_threadsafe(note, *args, context=context)

    in_a_loop(app[0] if with_lookup else None, act, ran, 2)
    assert ran == [(args, "none", True), (args, "given", True)]


def test_what_was_scheduled_can_be_called_off() -> None:
    ran: list[Any] = []
    loop = Loop()
    handles = [loop.call_soon_threadsafe(ran.append, n) for n in range(3)]
    handles[1].cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert ran == [0, 2]


def test_a_closed_loop_takes_no_callbacks() -> None:
    loop = Loop()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon_threadsafe(print)
