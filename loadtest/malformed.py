"""A million requests that are none: bytes made by a grammar of what goes wrong in HTTP, each over its own connection.

Requests for every surface are spoilt in one to three ways: lengths that contradict each other, chunks that are none,
names, targets and versions that nobody has, NULs, line ends, folded and endless headers, bad escapes, bodies longer and
shorter than they say, TLS and HTTP/2 where none is spoken, bytes flipped, left out and repeated. The client then says
that no more is to come, and the service has to end the connection. Between them a good request is asked over a
connection that is kept. No answer may be a fault of ours, no good one may fail, and the workers stay as they were.
"""

from __future__ import annotations

import argparse
import http.client
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice

from harness import HOST, Row, Stage, Target, make_shop, parser, run, start_edgeprofile
from memory import MIB, kept_by, worker_pids

from edgeprofile.demo import PROFILE_ID

AT_ONCE = 200
HUNG_S = 40.0
WARM_UP_SHARE = 0.2
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
CLOSED, NO_SUCH_VERSION = 0, 505
WORKERS = 2
NONE, GROWTH_TARGET = Target("≤", 0), Target("≤", 2)

# --- the grammar ---------------------------------------------------------------------------------------------------

# Each is a request line's parts, headers, and a body.
SEEDS: list[tuple[str, str, list[str], bytes]] = [
    ("GET", "/v1/profiles/id/12345", [], b""),
    ("GET", "/v1/profiles/id/12345?fields=metrics,audiences", ["Accept: application/msgpack"], b""),
    ("HEAD", "/v1/profiles/identifier/email/jane@example.com", ["If-None-Match: *"], b""),
    ("GET", "/v1/profiles/id/12345/events?limit=5&name=order_placed", [], b""),
    ("POST", "/v1/profiles/lookup", ["Content-Type: application/json"], b'{"profiles":[{"id":"12345"}]}'),
    ("POST", "/api/user/v1/profile", ["X-PARTNER-NAME: demo"], b'{"identifiers":{"email":"jane@example.com"}}'),
    ("GET", "/userprofile/v1/1/2/3/12345?fields=user_attributes", [], b""),
    ("GET", "/track/acme/marketing/SHOP/v1/profiles/userId:12345/events?size=1", [], b""),
    ("POST", "/2.4/profiles/update", ["X-Batch-Project: project_demo"], b'[{"identifiers":{"custom_id":"nobody"}}]'),
    ("DELETE", "/v1/profiles/id/nobody", [], b""),
    ("GET", "/readyz", [], b""),
]  # fmt: skip
METHODS = ("", "get", "GET GET", "G\0T", "CONNECT", "PRI", "TRACE", "OPTIONS", "BREW", "X" * 9_000, "\x80", "GET\t")
TARGETS = ("", "*", "/%", "/%zz", "/%00", "/v1/profiles/id/%ff", "/v1/profiles/id/%C0%AF", "http://[::1", "//", "/..",
           "/v1/profiles/id/\0", "/v1/profiles/id/a b", "/v1/profiles/id/\xff", "host:80", "http://a@b:c/d", "/#f?#",
           "/v1/profiles/id/" + "x" * 9_000, "/v1/profiles/id/" + "%41" * 600, "/v1/profiles/id/1?" + "&=" * 2_000,
           "/v1/profiles/id/1?fields=" + "a," * 3_000, "/v1/profiles/id/1/events?cursor=" + "A" * 500,
           "/v1/profiles/identifier/" + "n" * 2_000 + "/x", "\r\n")  # fmt: skip
VERSIONS = ("", "HTTP/0.9", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "HTTP/9", "http/1.1", "HTTP/1.1 ", "HTTP/1.1\0", "ICY")
FRAMING = ("Content-Length: -1", "Content-Length: +5", "Content-Length: 0x5", "Content-Length: 5, 5",
           "Content-Length: 5, 6", "Content-Length: 99999999999999999999999", "Content-Length: 1048577",
           "Content-Length: 5 5", "Content-Length:", "Content-Length: 3", "Content-Length: 0",
           "Transfer-Encoding: chunked", "Transfer-Encoding: xchunked",
           "Transfer-Encoding: chunked, chunked", "Transfer-Encoding: identity", "Transfer-Encoding: gzip, chunked",
           "Transfer-Encoding:\tchunked", "Transfer-Encoding: chunked, identity", "Transfer-Encoding : chunked",
           "transfer-encoding: CHUNKED", "Content-Encoding: gzip")  # fmt: skip
HEADERS = ("no colon", ": no name", "X Y: z", "X: \0", "X: a\rb", " folded: over", "\tfolded", "X: \xff\xfe", "\x80: y",
           "Expect: 100-continue", "Expect: 200-ok", "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk", "Upgrade: websocket",
           "Connection: close", "Connection: keep-alive, close, x", "Connection: Content-Length", "Host:",
           "Host: a\r\nHost: b",
           "Authorization: Bearer", "Authorization: Bearer sk_live_x", "Authorization: Basic %%%", "Range: bytes=5-1",
           "X-Request-Id: " + "r" * 5_000, "X-Request-Id: \x7f", "If-None-Match: " + '"x",' * 900,
           "Cookie: " + "c" * 33_000,
           "\r\n".join(f"X-{n}: y" for n in range(150)), "X: " + "y" * 60_000)  # fmt: skip
CHUNKS = (b"zz\r\n", b"-1\r\nx\r\n", b"ffffffffffffffffff\r\nx", b"5\r\nab",
          b"1;" + b"e" * 20_000 + b"\r\nx\r\n0\r\n\r\n",
          b"1\nx\n0\n\n", b"0\r\nTrailer: \0\r\n\r\n", b"0\r\n" + b"T: y\r\n" * 300 + b"\r\n", b"2\r\nabc\r\n0\r\n\r\n",
          b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n", b"3\r\nabc\r\n", b"100000\r\n" + b"x" * 5_000)  # fmt: skip
OTHERS = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0" + b"\0\0\x10\1\5\0\0\0\1" + b"\x82" * 16,
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"EHLO there\r\n",
    b"\0" * 70_000,
    b"\r\n" * 2_000,
    b"\x1f\x8b\x08\0" + b"\xff" * 500,
    b"*1\r\n$4\r\nPING\r\n",
    b"GET",
    b"",
)


class Draft:
    """A request while it is being spoilt."""

    def __init__(self, drawn: random.Random, headers: list[str]) -> None:
        self.drawn = drawn
        self.method, self.target, own, self.body = drawn.choice(SEEDS)
        self.version = "HTTP/1.1"
        self.headers = ["Host: test", *headers, *own]
        if self.body:
            self.headers.append(f"Content-Length: {len(self.body)}")
        self.line_end = "\r\n"

    def bytes(self) -> bytes:
        lines = [f"{self.method} {self.target} {self.version}", *self.headers, "", ""]
        return self.line_end.join(lines).encode("latin-1") + self.body


def _method(draft: Draft) -> None:
    draft.method = draft.drawn.choice(METHODS)


def _target(draft: Draft) -> None:
    draft.target = draft.drawn.choice(TARGETS)


def _version(draft: Draft) -> None:
    draft.version = draft.drawn.choice(VERSIONS)


def _line_end(draft: Draft) -> None:
    draft.line_end = draft.drawn.choice(("\n", "\r", "\r\r\n", "\r\n\r\n", "\0"))


def _framing(draft: Draft) -> None:
    draft.headers.insert(draft.drawn.randrange(len(draft.headers) + 1), draft.drawn.choice(FRAMING))


def _header(draft: Draft) -> None:
    draft.headers.insert(draft.drawn.randrange(len(draft.headers) + 1), draft.drawn.choice(HEADERS))


def _no_header(draft: Draft) -> None:
    del draft.headers[draft.drawn.randrange(len(draft.headers) + 1) :]


def _chunks(draft: Draft) -> None:
    draft.headers = [each for each in draft.headers if draft.drawn.random() < 0.5 or "Length" not in each]
    draft.headers.append("Transfer-Encoding: chunked")
    draft.body = draft.drawn.choice(CHUNKS)


def _body(draft: Draft) -> None:
    junk = (
        b"",
        b"{",
        b'{"profiles":' + b"[" * 3_000,
        b'{"profiles":[{"id":"\\ud800"}]}',
        b"\xff" * 50,
        draft.body * 40,
    )
    draft.body = draft.drawn.choice(junk)


DRAFTED: tuple[Callable[[Draft], None], ...] = (
    _method, _target, _target, _version, _line_end, _framing, _framing, _header, _header, _no_header, _chunks, _chunks,
    _body,
)  # fmt: skip


def _damaged(drawn: random.Random, content: bytes) -> bytes:
    """Bytes flipped, put in, left out, repeated, or cut off."""
    changed = bytearray(content or b"\0")
    at, length = drawn.randrange(len(changed)), drawn.randint(1, 8)
    match drawn.randrange(5):
        case 0:
            changed[at] ^= 1 << drawn.randrange(8)
        case 1:
            changed[at:at] = drawn.choice((b"\0", b"\r\n", b"\n", b":", b" ", b"%", b"\xff")) * length
        case 2:
            del changed[at : at + length]
        case 3:
            changed[at:at] = changed[at : at + 40] * length
        case _:
            del changed[at:]
    return bytes(changed)


def malformed(seed: int, header: str) -> Iterator[bytes]:
    """Without end; the same at every run. Some have the header with the key, some turn out to be good requests."""
    drawn = random.Random(seed)
    while True:
        if drawn.random() < 0.05:
            content = drawn.choice(OTHERS)
        else:
            draft = Draft(drawn, [header] * (drawn.random() < 0.8))
            for spoil in drawn.choices(DRAFTED, k=drawn.randint(1, 2)):
                spoil(draft)
            content = draft.bytes()
        yield _damaged(drawn, content) if drawn.random() < 0.3 else content


# --- throwing them -------------------------------------------------------------------------------------------------


class Thrown:
    """What became of all that was thrown so far, by status; requests that were closed upon without an answer too."""

    def __init__(self, port: int, path: str, header: str) -> None:
        """The good request is for this path, with this header."""
        self.answered: Counter[int] = Counter()
        self.sent = self.hung = self.good = self.bad = 0
        self._port, self._path, self._headers = port, path, dict([header.split(": ", 1)])
        self._kept = http.client.HTTPConnection(HOST, port, timeout=HUNG_S)

    @property
    def faults(self) -> int:
        """Answers that say that the fault is ours."""
        return sum(count for status, count in self.answered.items() if status >= 500 and status != NO_SUCH_VERSION)

    def __enter__(self) -> Thrown:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.close()

    def throw(self, contents: list[bytes]) -> None:
        """Sends each over a connection of its own, all at once, and ends it; then asks the good one."""
        opened = [socket.create_connection((HOST, self._port), HUNG_S) for _ in contents]
        for connection, content in zip(opened, contents, strict=True):
            with suppress(OSError):  # the server may have heard enough already
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
        self._ask()
        for connection in opened:
            with connection:
                self._hear(connection)
        self.sent += len(contents)

    def _hear(self, connection: socket.socket) -> None:
        received = b""
        try:
            with suppress(ConnectionError):
                while piece := connection.recv(65_536):
                    received += piece
        except TimeoutError:
            self.hung += 1
        self.answered.update(map(int, STATUS.findall(received)) if received else [CLOSED])

    def _ask(self) -> None:
        try:
            self._kept.request("GET", self._path, headers=self._headers)
            answer = self._kept.getresponse()
            if answer.status == 200 and answer.read():
                self.good += 1
                return
        except (OSError, http.client.HTTPException):
            pass
        self._kept.close()
        self.bad += 1


# --- the program ---------------------------------------------------------------------------------------------------


def measure(chosen: argparse.Namespace) -> Iterator[Row]:
    """All of them, at one service."""
    count = 5_000 if chosen.quick else chosen.requests
    with Stage() as stage:
        shop = make_shop(stage.folder / "shop")
        server = start_edgeprofile(stage, shop.file, workers=WORKERS)
        path = f"/v1/profiles/id/{PROFILE_ID}"
        thrown = stage.enter_context(Thrown(server.port, path, shop.header))
        contents = malformed(chosen.seed, shop.header)
        workers = worker_pids(server)
        began = time.monotonic()
        while thrown.sent < count * WARM_UP_SHARE:
            thrown.throw(list(islice(contents, AT_ONCE)))
        before = [kept_by(pid) for pid in workers]
        while thrown.sent < count:
            thrown.throw(list(islice(contents, AT_ONCE)))
        seconds = time.monotonic() - began
        after = [kept_by(pid) for pid in workers]
        replaced = len(set(worker_pids(server)) ^ set(workers))
        log_bytes = server.running[0].log.stat().st_size
    statuses = ", ".join(f"{status}: {times:,}" for status, times in sorted(thrown.answered.items()) if status)
    yield Row(f"{thrown.sent:,} malformed requests, {seconds:.0f} s", figure=f"{thrown.sent / seconds:,.0f} /s")
    yield Row.measured("answers that are a fault of ours", thrown.faults, NONE, unit="", ours=statuses)
    yield Row.measured("connections that were not ended", thrown.hung, NONE, unit="")
    yield Row.measured("good requests that failed", thrown.bad, NONE, unit="", ours=f"{thrown.good:,} answered")
    yield Row.measured("workers replaced", replaced, NONE, unit="")
    grown = max((b.bytes - a.bytes) / MIB for a, b in zip(before, after, strict=True))
    yield Row.measured("growth of a worker's memory", grown, GROWTH_TARGET, unit="MiB")
    gained = max(b.descriptors - a.descriptors for a, b in zip(before, after, strict=True))
    yield Row.measured("descriptors gained by a worker", gained, NONE, unit="")
    yield Row.measured("written to the log", log_bytes / 1024, unit="KiB")


def options() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--requests", type=int, default=1_000_000, help="how many (default a million)")
    made.add_argument("--seed", type=int, default=1, help="of what is drawn (default 1)")
    return made


if __name__ == "__main__":
    run(__doc__, measure, options())
