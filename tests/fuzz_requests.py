"""Attacks the compiled front for a while: paths, query strings, headers and bodies that nobody should send.

Every request that is not left to the app must have one whole answer, of a status that is documented and no fault of
ours, whatever comes in whatever pieces; with nothing in it of another workspace. A script of its own:

    python tests/fuzz_requests.py [seconds, default 60] [seed, default 1]

It is run as fuzz_records.py is, in a build with sanitizers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import partners
from service import Service

from edgeprofile import signing
from edgeprofile._exchange import unescaped
from edgeprofile._front import Front
from edgeprofile.app import build_app
from edgeprofile.errors import MalformedPath
from edgeprofile.metrics import STATUSES

Chance = random.Random
Headers = list[tuple[bytes, bytes]]
Message = dict[str, Any]
SECRET = b"of-the-bank-alone"
DIALECTS = """
[workspaces.shop.mparticle]
org = "1"
account = "2"
workspace = "3"
mpid = "id"
user_identities = { email = "email" }
immutable = ["email"]
[workspaces.shop.intilery]
client = "acme"
account = "marketing"
brand = "SHOP"
id_types = { id = "id", email = "email" }
rate = 1_000_000
burst = 1_000_000
"""
NATIVE = [b"/v1/profiles/id/ann", b"/v1/profiles/identifier/email/ann%40example.com", b"/v1/profiles/id/ann/events"]
TRACK = b"/track/acme/marketing/SHOP/v1/profiles"
PATHS = [
    *NATIVE,
    b"/v1/profiles/identifier/loyalty_id/L1/events",
    b"/v1/profiles/lookup",
    b"/api/user/v1/profile",
    b"/oauth/token",
    b"/userprofile/v1/1/2/3/77",
    b"/userprofile/v1/resolve/1/2/3",
    TRACK,
    *(TRACK + b"/id:ann" + end for end in (b"", b"/traits", b"/metadata", b"/audiences", b"/events", b"/event-types")),
]
POSTS = PATHS[4:7] + PATHS[8:9]
QUERIES = [
    b"fields=attributes,audiences",
    b"fields=attributes.name,identifiers.email,metrics",
    b"name=purchase&start=1970-01-01T00:00:00Z&end=2030-01-01T00:00:00Z&limit=3",
    b"limit=1&cursor=AAAA",
    b"fields=user_attributes,audience_memberships,user_identities",
    b"scrollId=x&size=2&sort=asc&include=purchase&exclude=view",
    b"identity=email&value=ann%40example.com",
]
BODIES: list[object] = [
    {"profiles": [{"id": "ann"}, {"namespace": "email", "value": "ann@example.com"}], "fields": ["audiences"]},
    {
        "identifiers": {"email": "ann@example.com", "custom": {"member": "ann"}},
        "attributes": ["name", "c_colour", "*"],
        "events": {
            "start_date": 0,
            "end_date": 9_999_999_999,
            "wanted": [{"event_name": "purchase", "params": ["source"]}],
        },
    },
    {"grant_type": "client_credentials", "client_id": "x", "client_secret": "y", "audience": "z"},
    {"identities": [{"type": "email", "value": "ann@example.com"}]},
]
# What ends, cuts or breaks a segment, an escape, a sequence, a number, a string or a nesting.
PIECES = [
    *b"% %2 %2F %00 %ff %C3 %zz / // .. ? & = + , ; : events id".split(),
    *b'" \\ \\u \\ud83d [ ] { } null 1e999 - 9999999999999999999999999'.split(),
    *(
        b" ",
        b"\t",
        b"\x00",
        b"\x1f",
        b"\xc3",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        "é".encode(),
        "😀".encode(),
    ),
    *(b"x" * size for size in (1, 31, 255, 509, 511, 512, 4096, 8192)),
]
NAMES = [b"accept", b"content-type", b"content-length", b"if-none-match", b"x-request-id", b"x-partner-name", b"cookie"]
VALUES = [
    *(b"*", b"*/*", b"application/json", b"application/msgpack;q=0.5, */*;q=0", b"text/html", b"mybrand", b"the-bank"),
    *(b'"0123456789abcdef"', b'W/"x", "y"', b"0", b"17", b"1048577", b"", b"application/x-www-form-urlencoded"),
]


def mutated(chance: Chance, text: bytes, most: int = 3) -> bytes:
    """Cut, doubled, or with odd pieces in it, or as it was."""
    for _ in range(chance.randrange(most)):
        at, to = sorted((chance.randrange(len(text) + 1), chance.randrange(len(text) + 1)))
        how = chance.randrange(4)
        if how == 0:
            text = text[:at] + chance.choice(PIECES) + text[at:]
        elif how == 1:
            text = text[:at] + text[to:]
        elif how == 2:
            text = text[:to] + text[at:]
        else:
            text = text[:at] + chance.randbytes(1) + text[at + 1 :]
    return text


def twisted(chance: Chance, value: Any) -> Any:
    """The same JSON with some of its values others, more, or gone."""
    if chance.random() < 0.05:
        odd: list[Any] = [None, True, -1, 2**63, 2**70, 1.5, "", "ann", "é\x00", "x" * 600, [], {}, [[]], {"id": {}}]
        return chance.choice(odd)
    if isinstance(value, dict):
        return {key: twisted(chance, each) for key, each in value.items() if chance.random() > 0.03}
    if isinstance(value, list):
        return [twisted(chance, each) for each in value for _ in range(chance.choice([0, 1, 1, 1, 1, 1, 1, 2, 40]))]
    return value


def body_of(chance: Chance) -> bytes:
    text = json.dumps(twisted(chance, chance.choice(BODIES)), ensure_ascii=chance.random() < 0.5)
    return mutated(chance, text.encode("utf-8", "surrogatepass"))


def headers_of(chance: Chance, key: bytes) -> Headers:
    key = key if chance.random() < 0.9 else mutated(chance, key)
    sent: Headers = [(b"authorization", b"Bearer " + key), (b"auth-token", key), (b"x-request-token", key)]
    sent += [(b"x-partner-name", b"mybrand"), (b"content-type", b"application/json")]
    sent = [pair for pair in sent if chance.random() < 0.95]
    for _ in range(chance.randrange(4)):
        name = chance.choice(NAMES)
        value = chance.choice(VALUES) if chance.random() < 0.7 else mutated(chance, chance.choice(VALUES))
        # The server refuses lengths that are none, and what no header may hold.
        if name == b"content-length":
            value = chance.choice([b"0", b"5", b"300", b"1048576", b"1048577", b"%d" % (2**63)])
        sent.append((name, value.translate(None, b"\x00\r\n")))
    if chance.random() < 0.03:
        sent += [(b"x-filler", b"y" * 400)] * chance.choice([70, 101])
    return sent


class Future:
    """A piece of a body, as Granian brings it: there already, or only later."""

    def __init__(self, message: Message, is_there: bool) -> None:
        self.message = message
        self.is_there = is_there
        self.callback: Callable[[Future], None] | None = None

    def done(self) -> bool:
        return self.is_there

    def add_done_callback(self, callback: Callable[[Future], None]) -> None:
        self.callback = callback

    def result(self) -> Message:
        return self.message


class Faults(logging.Handler):
    """What the front logs of faults that are ours."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Target:
    """The server's callable in this process, and what callers of one workspace send to it."""

    def __init__(self, front: Front, reader: str, writer: str) -> None:
        self.front = front
        self.faults = Faults()
        logging.getLogger("edgeprofile").addHandler(self.faults)
        # What it hands out itself comes back altered too.
        client = {"grant_type": "client_credentials", "client_id": reader[8:20], "client_secret": reader}
        self.keys = [reader.encode(), writer.encode()]
        self.token = self.ask_well(b"/oauth/token", body=json.dumps(client).encode())["access_token"].encode()
        cursor = self.ask_well(b"/v1/profiles/id/ann/events", b"limit=2")["cursor"]
        scroll_id = self.ask_well(TRACK, b"size=1")["scrollId"]
        self.queries = [*QUERIES, f"limit=2&cursor={cursor}".encode(), f"size=1&scrollId={scroll_id}".encode()]

    def ask_well(self, path: bytes, query: bytes = b"", body: bytes = b"") -> Any:
        key, sent = self.keys[0], list[Message]()
        headers = [(b"content-type", b"application/json"), (b"auth-token", key)]
        headers += [] if body else [(b"authorization", b"Bearer " + key)]
        scope = {"type": "http", "http_version": "1.1", "method": "POST" if body else "GET", "raw_path": path}
        receive = partial(Future, {"type": "http.request", "body": body, "more_body": False}, True)
        assert self.front.answer_now(scope | {"query_string": query, "headers": headers}, receive, sent.append)
        assert sent[0]["status"] == 200, sent
        return json.loads(sent[1]["body"])

    def attack(self, chance: Chance) -> str:
        path = chance.choice(PATHS)
        method = "POST" if path in POSTS else chance.choice(["GET", "GET", "HEAD"])
        path = mutated(chance, path, chance.choice([1, 1, 3]))
        self.decode(path)
        queries = [mutated(chance, chance.choice(self.queries), 2) for _ in range(chance.choice([0, 0, 1, 1, 2]))]
        query = b"&".join(queries)
        headers = headers_of(chance, self.token if path.startswith(b"/userprofile") else chance.choice(self.keys))
        if chance.random() < 0.03:
            method = chance.choice(["PUT", "DELETE", "BREW", "get", ""])
        scope = {"type": "http", "http_version": "1.1", "method": method, "raw_path": path, "query_string": query}
        sent: list[Message] = []
        if not self.ask(scope | {"headers": headers}, chance, sent):
            assert sent == [], "what is left to the app is not answered"
            return "left to the app"
        return self.check(method, sent)

    def ask(self, scope: Message, chance: Chance, sent: list[Message]) -> bool:
        """Whether the front took it, its body in pieces of any size, or broken off."""
        body = body_of(chance)
        cuts = sorted(chance.randrange(len(body) + 1) for _ in range(chance.randrange(4)))
        bounds = list(zip([0, *cuts], [*cuts, len(body)], strict=True))
        messages: list[Message] = [
            {"type": "http.request", "body": body[low:high], "more_body": high < len(body)} for low, high in bounds
        ]
        messages[-1]["more_body"] = False
        if chance.random() < 0.1:
            messages = [*messages[: chance.randrange(len(messages))], {"type": "http.disconnect"}]
        asked: list[Future] = []

        def receive() -> Future:
            message = messages[len(asked)] if len(asked) < len(messages) else {"type": "http.disconnect"}
            asked.append(Future(message, chance.random() < 0.5))
            return asked[-1]

        taken = self.front.answer_now(scope, receive, sent.append)
        while taken and not sent:
            waiting = asked[-1]
            assert waiting.callback is not None, "who has no answer has been asked for more"
            waiting.callback(waiting)
        return taken

    def check(self, method: str, sent: list[Message]) -> str:
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"], sent
        status, body = sent[0]["status"], sent[1]["body"]
        headers = dict(sent[0]["headers"])
        assert status in STATUSES
        assert status < 500, self.faults.lines
        assert self.faults.lines == []
        assert SECRET not in body
        assert not [value for value in headers.values() if b"\n" in value or b"\r" in value]
        if method != "HEAD" and body:
            kind = headers[b"content-type"]
            if kind == b"application/msgpack":
                msgspec.msgpack.decode(body)
            else:
                json.loads(body)
        return str(status)

    def decode(self, path: bytes) -> None:
        """A segment that is decoded has a byte for each escape, and is text."""
        segment = path.rpartition(b"/")[2]
        try:
            found = unescaped(segment)
        except MalformedPath:
            return
        assert len(found) + 2 * segment.count(b"%") == len(segment)
        assert found.decode()


@contextmanager
def target_in(folder: Path) -> Iterator[Target]:
    spaces = {"shop": partners.DECLARED + DIALECTS, "bank": partners.BANK_DECLARED}
    service = Service(folder, spaces)
    service.run_sql(partners.PROFILES + partners.EVENTS)
    service.run_sql("INSERT INTO profiles BY NAME SELECT '77' AS id, '77@example.com' AS email, true AS vip")
    service.run_sql(
        f"CREATE TABLE profiles AS SELECT unnest(['ann', 'olga']) AS id, '{SECRET.decode()}' AS note", "bank"
    )
    for name in spaces:
        service.load(name)
    keys = service.mint(), service.mint(scopes=("read", "write"))
    signing.ensure(service.settings.data_dir)
    front = build_app(service.settings)
    loop = asyncio.new_event_loop()
    events: asyncio.Queue[Message] = asyncio.Queue()
    told: asyncio.Queue[Message] = asyncio.Queue()
    life = loop.create_task(awaited(front, events, told))
    for event in ("startup", "shutdown"):
        events.put_nowait({"type": f"lifespan.{event}"})
        assert loop.run_until_complete(told.get())["type"] == f"lifespan.{event}.complete"
        if event == "startup":
            yield Target(front, *keys)
    loop.run_until_complete(life)
    loop.close()


async def awaited(front: Front, events: asyncio.Queue[Message], told: asyncio.Queue[Message]) -> None:
    await front({"type": "lifespan", "asgi": {}, "state": {}}, events.get, told.put)


def main(seconds: float, seed: int) -> None:
    seen: dict[str, int] = {}
    rounds = 0
    with tempfile.TemporaryDirectory() as folder, target_in(Path(folder)) as target:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                kind = target.attack(Chance(f"{seed}/{rounds}"))
            except Exception:
                print(f"found with seed {seed} in round {rounds}", file=sys.stderr)
                raise
            seen[kind] = seen.get(kind, 0) + 1
            rounds += 1
    print(f"{rounds} rounds with seed {seed}:", ", ".join(f"{count} {kind}" for kind, count in sorted(seen.items())))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
