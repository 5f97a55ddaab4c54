"""Requests of a surface: what its handler is asked, when, and what becomes of all that goes wrong, with and without an
event loop alike."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from service import Connection, Header, Service, request, until
from test_loop import Piece
from vendor import REQUEST_BYTES_MAX, SECRET, Vendor, counted, front_of

from edgeprofile._front import Front
from edgeprofile._limiter import SharedMap
from edgeprofile.app import SHARED_MAP
from edgeprofile.metrics import STATUSES, Counter
from edgeprofile.metrics import Surface as Counted

Message = dict[str, Any]
Headers = list[tuple[bytes, bytes]]
KEY: Headers = [(b"x-key", b"k")]
LONG = b"x" * 8_200
GONE: Message = {"type": "http.disconnect"}


def piece(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def scope_of(path: bytes, method: str, query: bytes, headers: Headers) -> dict[str, Any]:
    sent = [*headers, (b"x-request-id", b"same")]
    return {"type": "http", "method": method, "raw_path": path, "query_string": query, "headers": sent}


class Answer(NamedTuple):
    """What was sent, and how many pieces of the body were asked for before."""

    status: int
    headers: Headers
    body: bytes
    pieces: int


class Both:
    """A front in this process, which is asked everything in both ways; they must agree in all that can be seen."""

    def __init__(self, folder: Path) -> None:
        self.vendor = Vendor()
        self.shared = SharedMap(folder / "shared.map")
        self.front = front_of(self.shared, self.vendor)

    def ask(
        self,
        path: bytes = b"/vendor",
        *messages: Message,
        method: str = "POST",
        query: bytes = b"",
        headers: Headers = KEY,
    ) -> Answer:
        scope = scope_of(path, method, query, headers)
        seen = []
        for way in (now, later):
            before = self.counts()
            self.vendor.calls.clear()
            answer = way(self.front, scope, list(messages))
            changed = {name: count - before[name] for name, count in self.counts().items() if count != before[name]}
            assert changed.pop("deferred", 0) == (way is later)
            seen.append((answer, list(self.vendor.calls), changed))
        assert seen[0] == seen[1]
        self.changed = seen[0][2]
        return seen[0][0]

    def counts(self) -> dict[object, int]:
        counts: dict[object, int] = {
            (surface, status): counted(self.shared, surface, status) for surface in Counted for status in STATUSES
        }
        counts["deferred"] = self.shared.counter(Counter.LOOKUPS_DEFERRED)
        counts["damaged"] = self.shared.counter(Counter.RECORDS_DAMAGED)
        return counts


def answer_of(sent: list[Message], pieces: int) -> Answer:
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return Answer(sent[0]["status"], sent[0]["headers"], sent[1]["body"], pieces)


def now(front: Front, scope: Message, messages: list[Message]) -> Answer:
    """As Granian's thread brings it: every other piece of the body only comes when it has been asked for."""
    sent: list[Message] = []
    asked: list[Piece] = []

    def receive() -> Piece:
        asked.append(Piece(messages[len(asked)] if len(asked) % 2 == 0 else None))
        return asked[-1]

    assert front.answer_now(scope, receive, sent.append)
    while not sent:
        assert not asked[-1].done()
        asked[-1].message = messages[len(asked) - 1]
        asked[-1].callback(asked[-1])
    return answer_of(sent, len(asked))


def later(front: Front, scope: Message, messages: list[Message]) -> Answer:
    """As any ASGI server brings it."""
    sent: list[Message] = []
    asked: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(0)
        asked.append(messages[len(asked)])
        return asked[-1]

    async def send(message: Message) -> None:
        await asyncio.sleep(0)
        sent.append(message)

    async def run() -> None:
        await front(scope, receive, send)

    asyncio.run(run())
    return answer_of(sent, len(asked))


@pytest.fixture
def both(tmp_path: Path) -> Both:
    return Both(tmp_path)


# --- what goes well ------------------------------------------------------------------------------------------------


def test_a_body_is_answered_once_all_of_its_pieces_are_there(both: Both) -> None:
    for pieces in ([b"whole"], [b"wh", b"", b"ole"], [b"", b"whole", b""], [b""]):
        messages = [piece(each, more=n + 1 < len(pieces)) for n, each in enumerate(pieces)]
        answer = both.ask(b"/vendor/a%2Fb", *messages, query=b"q=%20")
        assert answer == (
            200,
            [(b"content-type", b"text/vendor")],
            b"POST /vendor/a%2Fb q=%20 " + b"".join(pieces),
            len(pieces),
        )
        assert both.vendor.calls == ["check", "answer"]
        assert both.changed == {(Counted.INSIDER, 200): 1}


def test_an_announced_length_ends_a_body_without_asking_for_more(both: Both) -> None:
    headers = [*KEY, (b"content-length", b"5")]
    assert both.ask(b"/vendor", piece(b"wh", more=True), piece(b"ole", more=True), headers=headers).pieces == 2


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_has_no_body_waits_for_none(both: Both, method: str) -> None:
    answer = both.ask(method=method)
    text = f"{method} /vendor  ".encode()
    length = [(b"content-length", b"%d" % len(text))] if method == "HEAD" else []
    assert answer == (200, [(b"content-type", b"text/vendor"), *length], b"" if length else text, 0)
    assert both.vendor.calls == ["check", "answer"]


def test_an_answer_to_head_leaves_the_headers_of_the_next_as_they_are(both: Both) -> None:
    both.ask(method="HEAD")
    assert both.ask(method="GET").headers == [(b"content-type", b"text/vendor")]


def test_a_handler_chooses_status_and_headers(both: Both) -> None:
    answer = both.ask(b"/vendor/created", piece(b""))
    assert answer[:3] == (202, [(b"content-type", b"text/vendor"), (b"x-request-id", b"same")], b"")
    assert both.changed == {(Counted.INSIDER, 202): 1}


def test_a_header_on_several_lines_is_none(both: Both) -> None:
    assert both.ask(headers=[(b"x-key", b"k"), (b"x-key", b"k")]).status == 401


# --- whose it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "is_its_own"),
    [
        (b"/vendor", True),
        (b"/vendor/", True),
        (b"/vendor/x", True),
        (b"/more/x/y", True),
        (b"/more/", True),
        (b"/more", False),
        (b"/vendors", False),
        (b"/vendo", False),
        (b"/", False),
        (b"", False),
        (b"/Vendor", False),
        (b"/x/vendor", False),
    ],
)
def test_a_surface_has_its_paths_and_what_begins_with_its_prefixes(both: Both, path: bytes, is_its_own: bool) -> None:
    if is_its_own:
        assert both.ask(path, method="GET").status == 200
        return
    scope = scope_of(path, "GET", b"", KEY)
    sent: list[Message] = []
    assert both.front.answer_now(scope, lambda: None, sent.append) is False
    assert sent == []
    assert later(both.front, scope, []).body == b"beyond"
    assert both.shared.counter(Counter.LOOKUPS_DEFERRED) == 0
    assert both.vendor.calls == []


# --- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_check_refuses_is_answered_before_the_body_is_asked_for(both: Both, method: str) -> None:
    answer = both.ask(method=method, headers=[])
    assert answer[:3] == (
        401,
        [(b"content-type", b"text/vendor"), (b"www-authenticate", b"Bearer")],
        b"vendor unauthorized",
    )
    assert (answer.pieces, both.vendor.calls) == (0, ["check", "refuse"])
    assert both.changed == {(Counted.INSIDER, 401): 1}


@pytest.mark.parametrize(("path", "status"), [(b"/vendor/forbidden", 403), (b"/vendor/not-ready", 503)])
def test_what_answer_refuses_is_shaped_by_the_handler(
    both: Both, path: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    answer = both.ask(path, piece(b"x"))
    assert (answer.status, answer.body) == (status, b"vendor " + path[8:].replace(b"-", b"_"))
    assert both.vendor.calls == ["check", "answer", "refuse"]
    assert both.changed == {(Counted.INSIDER, status): 1}
    assert caplog.records == []


FAILING = [
    "check-fails",
    "check-times-out",
    "fails",
    "none",
    "short",
    "no-headers",
    "no-body",
    "text",
    "pairs",
    "status",
]


@pytest.mark.parametrize("what", FAILING)
def test_what_a_handler_did_not_mean_is_an_internal_error_and_logged_without_its_message(
    both: Both, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = both.ask(f"/vendor/{what}".encode(), piece(b"x"))
    assert (answer.status, answer.body) == (500, b"vendor internal_error")
    assert both.changed == {(Counted.INSIDER, 500): 1}
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert caplog.text.count("request same failed: ") == 2
    assert SECRET not in caplog.text


def test_a_handler_that_cannot_even_refuse_is_answered_for(both: Both, caplog: pytest.LogCaptureFixture) -> None:
    for method, messages in (("GET", []), ("POST", [piece(b"x")])):
        assert both.ask(b"/vendor/all-fails", *messages, method=method)[:3] == (500, [], b"")
        assert both.changed == {(Counted.INSIDER, 500): 1}
    assert caplog.text.count("request same failed: ValueError") == 8
    assert SECRET not in caplog.text


def test_damage_is_counted_and_logged_and_looks_like_any_fault_of_ours(
    both: Both, caplog: pytest.LogCaptureFixture
) -> None:
    assert both.ask(b"/vendor/damaged", piece(b""))[::2] == (500, b"vendor internal_error")
    assert both.changed == {(Counted.INSIDER, 500): 1, "damaged": 1}
    assert [record.getMessage() for record in caplog.records] == ["request same: a record of snapshot s is damaged"] * 2


def test_an_announced_body_that_is_too_large_is_refused_unread_but_not_before_the_key(both: Both) -> None:
    large: Headers = [(b"content-length", b"%d" % (REQUEST_BYTES_MAX + 1))]
    for method in ("POST", "GET"):
        answer = both.ask(method=method, headers=[*KEY, *large])
        assert (answer.status, answer.body, answer.pieces) == (413, b"vendor body_too_large", 0)
    assert both.ask(headers=large).status == 401


def test_a_body_that_grows_too_large_is_refused_at_that_piece(both: Both) -> None:
    most = piece(b"x" * REQUEST_BYTES_MAX, more=True)
    assert both.ask(b"/vendor", most, piece(b"")).status == 200
    answer = both.ask(b"/vendor", most, piece(b"x", more=True))
    assert (answer.status, answer.body, answer.pieces) == (413, b"vendor body_too_large", 2)
    assert both.vendor.calls == ["check", "refuse"]


def test_a_body_that_is_cut_off_is_malformed(both: Both) -> None:
    for messages in ([GONE], [piece(b"x", more=True), GONE]):
        answer = both.ask(b"/vendor", *messages)
        assert (answer.status, answer.body) == (400, b"vendor malformed_body")
        assert both.vendor.calls == ["check", "refuse"]


def test_headers_and_urls_over_their_limits_are_refused_by_the_handler_before_it_checks(both: Both) -> None:
    many: Headers = [(b"x-%d" % n, b"y" * 1_000) for n in range(33)]
    answer = both.ask(headers=[*KEY, *many])
    assert (answer.status, answer.body, answer.pieces) == (431, b"vendor headers_too_large", 0)
    assert both.vendor.calls == ["refuse"]
    for path, query in ((b"/vendor/" + LONG, b""), (b"/vendor", LONG), (b"/vendor/" + LONG[:4_200], LONG[:4_200])):
        for method in ("GET", "POST"):
            answer = both.ask(path, method=method, query=query)
            assert (answer.status, answer.body, answer.pieces) == (414, b"vendor url_too_long", 0)
            assert both.vendor.calls == ["refuse"]
            assert both.changed == {(Counted.INSIDER, 414): 1}
    assert both.ask(b"/vendor", method="GET", query=LONG[: 8_192 - 7]).status == 200


def test_a_long_url_that_is_no_surfaces_is_refused_as_a_lookup(both: Both) -> None:
    answer = both.ask(b"/" + LONG, method="GET")
    assert (answer.status, both.vendor.calls) == (414, [])
    assert b'"code":"url_too_long"' in answer.body
    assert both.changed == {(Counted.NATIVE, 414): 1}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_answer_that_the_server_does_not_take_is_logged(
    both: Both, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(message: Message) -> None:
        raise OSError(SECRET)

    waiting = Piece()
    both.front.answer_now(scope_of(b"/vendor", method, b"", KEY), lambda: waiting, fail)
    if method == "POST":
        waiting.arrive(b"x", more=False)
    assert caplog.text.count("failed: OSError") == 1
    assert SECRET not in caplog.text


# --- a body that takes too long ------------------------------------------------------------------------------------


def test_a_slow_body_is_refused_by_the_handler_without_a_loop(both: Both) -> None:
    sent: list[Message] = []
    waiting = Piece()
    assert both.front.answer_now(scope_of(b"/vendor", "POST", b"", KEY), lambda: waiting, sent.append)
    both.front.expire_bodies()
    assert sent == [], "its time has only begun"
    waiting.callback.expire()
    waiting.callback.expire()
    waiting.arrive(b"x", more=False)
    assert answer_of(sent, 0)[::2] == (400, b"vendor malformed_body")
    assert both.vendor.calls == ["check", "refuse"]


class LeapingLoop(asyncio.SelectorEventLoop):
    """A loop whose clock can be put forward."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


def test_a_slow_body_is_refused_by_the_handler_in_a_loop(both: Both) -> None:
    sent: list[Message] = []
    loop = LeapingLoop()

    async def receive() -> Message:
        if loop.ahead_s:
            await asyncio.Event().wait()
        loop.ahead_s = 31.0
        return piece(b"x", more=True)

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> None:
        await both.front(scope_of(b"/vendor", "POST", b"", KEY), receive, send)

    loop.run_until_complete(run())
    loop.close()
    assert answer_of(sent, 0)[::2] == (400, b"vendor malformed_body")
    assert both.vendor.calls == ["check", "refuse"]


# --- a real server -------------------------------------------------------------------------------------------------


class Served(NamedTuple):
    """The vendor's surface, served by Granian."""

    port: int
    shared: SharedMap
    log: Callable[[], str]

    def ask(self, *parts: bytes) -> tuple[int, bytes]:
        with Connection(self.port) as connection:
            answer = connection.ask(b"".join(parts))
        return answer.status, answer.body


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("vendor")
    made = Service(folder)
    log = folder / "vendor.log"
    with log.open("wb") as output:
        command = [sys.executable, str(Path(__file__).parent / "vendor.py"), str(made.file)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with Connection(made.port) as connection:
                return connection.ask(request("/")).status == 404
        except OSError:
            return False

    try:
        until(is_up, "the vendor's surface is served")
        yield Served(made.port, SharedMap(made.settings.data_dir / SHARED_MAP), log.read_text)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


X_KEY: Header = ("X-Key", "k")


def post(target: str, body: bytes, *headers: Header, length: int | None = None) -> bytes:
    announced = ("Content-Length", str(len(body) if length is None else length))
    return request(target, None, X_KEY, announced, *headers, method="POST", body=body)


def chunked(target: str, *chunks: bytes) -> bytes:
    content = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])
    return request(target, None, X_KEY, ("Transfer-Encoding", "chunked"), method="POST", body=content)


CASES = [
    (request("/vendor?a=b", None, X_KEY), 200, b"GET /vendor a=b "),
    (post("/vendor/x%20y", b"body"), 200, b"POST /vendor/x%20y  body"),
    (post("/vendor", b""), 200, b"POST /vendor  "),
    (chunked("/vendor", b"bo", b"d", b"y"), 200, b"POST /vendor  body"),
    (chunked("/vendor"), 200, b"POST /vendor  "),
    (request("/vendor", method="DELETE"), 401, b"vendor unauthorized"),
    (request("/vendor", None, X_KEY, method="DELETE"), 200, b"DELETE /vendor  "),
    (post("/vendor/forbidden", b"x"), 403, b"vendor forbidden"),
    (post("/vendor/fails", b"x"), 500, b"vendor internal_error"),
    (request("/vendor/none", None, X_KEY), 500, b"vendor internal_error"),
    (post("/vendor/all-fails", b"x"), 500, b""),
    (request("/vendor/all-fails", None, X_KEY), 500, b""),
    (post("/vendor/damaged", b"x"), 500, b"vendor internal_error"),
    (request(f"/vendor/{LONG.decode()}", None, X_KEY), 414, b"vendor url_too_long"),
]


def test_over_granian_every_request_is_answered_and_none_by_the_event_loop(served: Served) -> None:
    with Connection(served.port) as connection:
        for _ in range(5):
            connection.send(b"".join(content for content, _, _ in CASES))
            for content, status, body in CASES:
                answer = connection.read()
                assert (answer.status, answer.body) == (status, body), content
    assert served.shared.counter(Counter.LOOKUPS_DEFERRED) == 0
    assert counted(served.shared, Counted.INSIDER, 403) == 5
    assert SECRET not in served.log()


def test_over_granian_a_head_request_has_the_length_and_no_body(served: Served) -> None:
    with Connection(served.port) as connection:
        for method, length in (("HEAD", "14"), ("GET", "13"), ("HEAD", "14")):
            answer = connection.ask(request("/vendor", None, X_KEY, method=method))
            assert (answer.status, answer.headers["content-length"]) == (200, length)
            assert len(answer.body) == (0 if method == "HEAD" else 13)


def test_over_granian_bodies_that_are_too_large_are_refused_announced_or_not(served: Served) -> None:
    large = b"x" * (REQUEST_BYTES_MAX + 1)
    refused = (413, b"vendor body_too_large")
    assert served.ask(post("/vendor", large)) == refused
    assert served.ask(post("/vendor", b"x", length=1 << 40)) == refused
    assert served.ask(chunked("/vendor", large[:500], large[500:])) == refused
    assert served.ask(chunked("/vendor", large[1:])) == (200, b"POST /vendor  " + large[1:])


def test_over_granian_a_body_that_is_cut_off_is_malformed_and_counted(served: Served) -> None:
    before = counted(served.shared, Counted.INSIDER, 400)
    with Connection(served.port) as connection:
        connection.send(post("/vendor", b"half", length=8))
        connection.end()
        until(lambda: counted(served.shared, Counted.INSIDER, 400) > before, "it is refused")
    broken = chunked("/vendor", b"body").replace(b"4\r\n", b"z\r\n")
    assert served.ask(broken) == (400, b"vendor malformed_body")


def test_over_granian_an_answer_follows_the_body_however_slowly_its_pieces_come(served: Served) -> None:
    content = post("/vendor", b"a body in pieces")
    with Connection(served.port) as connection:
        for at in range(len(content)):
            connection.send(content[at : at + 1])
        assert connection.read().body == b"POST /vendor  a body in pieces"
