"""Bytes that are no HTTP, by the ten thousand, and all that is too large: nobody else feels it."""

from __future__ import annotations

import re
import socket
from itertools import islice
from pathlib import Path

import pytest
from malformed import AT_ONCE, Thrown, malformed
from service import HOST, Service, chunked, many, request, until

JANE = "/v1/profiles/id/12345"
BATCHES = 100
GROWTH_BYTES_MAX = 8 * 1024 * 1024
LOG_BYTES_MAX, ANSWER_BYTES_MAX = 10_000, 20_000
ASKED = b'{"profiles":[{"id":"12345"}]}'
SMUGGLED = request("/smuggled")


def own_memory(pid: int) -> int:
    found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_what_is_no_http_is_refused_and_leaves_nothing_behind(service: Service, key: str) -> None:
    workers, logged = service.workers(), len(service.log())
    opened = {pid: descriptors(pid) for pid in workers}
    contents, before = malformed(1, f"Authorization: Bearer {key}"), dict[int, int]()
    with Thrown(service.port, JANE, f"Authorization: Bearer {key}") as thrown:
        for batch in range(BATCHES):
            thrown.throw(list(islice(contents, AT_ONCE)))
            if batch == BATCHES // 5:
                before = {pid: own_memory(pid) for pid in workers}
        assert (thrown.faults, thrown.hung, thrown.bad, thrown.good) == (0, 0, 0, BATCHES), thrown.answered
    # All the ways of refusing, and some that turned out to be good.
    assert {200, 400, 401, 404, 405, 413, 414, 431} <= set(thrown.answered)
    assert service.workers() == workers
    until(lambda: all(descriptors(pid) <= opened[pid] for pid in workers), "no connection is left")
    assert all(own_memory(pid) - before[pid] < GROWTH_BYTES_MAX for pid in workers)
    assert len(service.log()) - logged < LOG_BYTES_MAX


def answers(port: int, content: bytes) -> list[int]:
    """The statuses of all answers that come until the server closes the connection."""
    with socket.create_connection((HOST, port), 30) as connection:
        connection.sendall(content)
        received = b""
        while piece := connection.recv(65_536):
            received += piece
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)]


def with_header(content: bytes, header: bytes, behind: bytes = b"Host: test\r\n") -> bytes:
    return content.replace(behind, behind + header + b"\r\n", 1)


@pytest.mark.parametrize("behind", [b"Host: test\r\n", b"Transfer-Encoding: chunked\r\n"], ids=["before", "behind"])
def test_a_body_with_two_lengths_is_its_chunks_and_the_connection_ends_with_it(
    service: Service, key: str, behind: bytes
) -> None:
    asked = with_header(chunked(ASKED, key), b"Content-Length: 4", behind)
    assert answers(service.port, asked + SMUGGLED) == [200]


@pytest.mark.parametrize(
    "header",
    [b"Transfer-Encoding: identity", b"Transfer-Encoding: xchunked", b"Transfer-Encoding : chunked",
     b"Transfer-Encoding: chunked, identity", b"X: y\r\n Transfer-Encoding: chunked", b"Content-Length: 5, 30"],
)  # fmt: skip
def test_a_length_that_others_may_read_differently_ends_the_connection(
    service: Service, key: str, header: bytes
) -> None:
    assert answers(service.port, with_header(many(ASKED, key), header) + SMUGGLED) == [400]


def test_chunks_in_http_1_0_and_with_bare_line_ends_end_the_connection(service: Service, key: str) -> None:
    asked = chunked(ASKED, key)
    head, _, body = asked.partition(b"\r\n\r\n")
    assert answers(service.port, asked.replace(b"HTTP/1.1", b"HTTP/1.0") + SMUGGLED) == [400]
    assert answers(service.port, head + b"\r\n\r\n" + body.replace(b"\r\n", b"\n") + SMUGGLED) == [400]


# --- oversized -----------------------------------------------------------------------------------------------------

EVENTS = f"{JANE}/events"
LONG = "x" * 7_900
OVERSIZED: dict[str, tuple[str, int]] = {
    "id": (f"/v1/profiles/id/{LONG}", 404),
    "id in escapes": ("/v1/profiles/id/" + "%41" * 2_600, 404),
    "namespace": (f"/v1/profiles/identifier/{LONG}/x", 400),
    "value": (f"/v1/profiles/identifier/email/{LONG}", 404),
    "fields that there are": (f"{JANE}?fields=" + "metrics," * 900 + "metrics", 200),
    "fields that there are not": (f"{JANE}?fields=" + "x," * 3_900 + "x", 400),
    "a field": (f"{JANE}?fields={LONG}", 400),
    "parameters": (f"{JANE}?" + "a=b&" * 1_900, 200),
    "names of events": (f"{EVENTS}?" + "name=a&" * 1_000, 200),
    "cursor": (f"{EVENTS}?cursor={LONG}", 400),
    "limit": (f"{EVENTS}?limit={'9' * 7_900}", 400),
    "time": (f"{EVENTS}?start={'9' * 7_900}", 400),
    "path": ("/" + "a/" * 4_000, 404),
    "URL": (f"{JANE}?{LONG * 2}", 414),
}
HEADERS = ("Accept", "Authorization", "If-None-Match", "X-Request-Id", "Cookie", "Content-Type", "X-PARTNER-NAME")


@pytest.mark.parametrize("what", OVERSIZED)
def test_what_is_oversized_in_a_url_has_a_short_answer(service: Service, key: str, what: str) -> None:
    target, status = OVERSIZED[what]
    answer = service.get(target, key)
    assert answer.status == status, answer
    assert len(answer.body) < ANSWER_BYTES_MAX


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize(("size", "statuses"), [(30_000, {200, 401, 406}), (36_000, {431}), (500_000, {0, 431})])
def test_an_oversized_header_is_heeded_or_refused(
    service: Service, key: str, name: str, size: int, statuses: set[int]
) -> None:
    try:
        status = service.get(JANE, key, (name, "x" * size)).status
    except ConnectionError:
        status = 0
    assert status in statuses


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"profiles":[{"id":"%s"}]}' % (b"x" * 1_000_000), 200),
        (b'{"profiles":[{"namespace":"%s","value":"x"}]}' % (b"x" * 1_000_000), 400),
        (b'{"profiles":[{"id":"1"}],"fields":[%s"metrics"]}' % (b'"metrics",' * 90_000), 200),
        (b'{"profiles":[{"id":"1"}],"fields":[%s"x"]}' % (b'"x",' * 200_000), 400),
        (b'{"profiles":%s' % (b"[" * 1_000_000), 400),
        (b'{"profiles":[%s{"id":"1"}]}' % (b'{"id":"1"},' * 90_000), 400),
        (b'{"%s":1}' % (b"x" * 1_000_000), 400),
        (b"%s{}" % (b" " * 1_040_000), 400),
        (b"1" * 1_048_577, 413),
    ],
    ids=["id", "namespace", "fields", "unknown fields", "depth", "profiles", "name", "spaces", "body"],
)
def test_what_is_oversized_in_a_body_has_a_short_answer(service: Service, key: str, body: bytes, status: int) -> None:
    answer = service.ask(many(body, key))
    assert answer.status == status, answer.body[:300]
    assert len(answer.body) < ANSWER_BYTES_MAX
