"""What is live, as callers see it at once: changed, new and gone profiles, by every way that leads to them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import EVENTS, EVENTS_DECLARED
from service import Service, many
from test_live import Writer

from edgeprofile import history, record, snapshot
from edgeprofile._merge import Shape
from edgeprofile._record import check_of
from edgeprofile.history import MARK, Block, Event, EventsSchema
from edgeprofile.reader import LIVE_DATABASES, NAMESPACE_KEY, Reader
from edgeprofile.record import Field, Schema

PROFILES, IDENTIFIERS, HISTORIES, BLOCKS, META = LIVE_DATABASES
ANN, BOB = "/v1/profiles/id/ann", "/v1/profiles/id/bob"
NOW_US = 1_780_000_000_000_000


class Living:
    """A service with a live layer that the test writes as the loader does: what is live in part is live whole."""

    def __init__(self, service: Service) -> None:
        self.service = service
        folder = snapshot.folder(service.home(), snapshot.current(service.home()))
        reader = Reader(folder)
        self.schema, self.events_schema = reader.schema, reader.events_schema
        assert self.events_schema is not None
        self.before = {primary: bytes(reader.record(primary) or b"") for primary in reader.ids()}
        self.directories = {primary: bytes(reader.directory(primary) or b"") for primary in reader.ids()}
        reader.close()
        self.writer = Writer(folder)
        self.blocks = 0

    def values(self, primary: str) -> dict[str, bytes | None]:
        names = [field.name for field in self.schema.fields]
        found = Shape(names, self.schema.first_audience).split(self.before[primary], primary.encode())
        return dict(zip(names, found, strict=True))

    def record(self, primary: str, values: dict[str, bytes | None], schema: Schema | None = None) -> bytes:
        schema = schema or self.schema
        names = [field.name for field in schema.fields]
        shape = Shape(names, schema.first_audience)
        return shape.join(primary.encode(), [values.get(name) for name in names], NOW_US)

    def put(
        self, primary: str, values: dict[str, bytes | None], generation: int = 0, schema: Schema | None = None
    ) -> None:
        content = generation.to_bytes(4, "little") + self.record(primary, values, schema)
        self.writer.write({PROFILES: {primary.encode(): content}})

    def touch(self, primary: str = "bob") -> None:
        self.put(primary, self.values(primary))

    def remove(self, primary: str) -> None:
        self.writer.write({PROFILES: {primary.encode(): b""}})

    def point(self, namespace: str, value: str, primaries: list[str]) -> None:
        number = [space.name for space in self.schema.namespaces].index(namespace)
        key = NAMESPACE_KEY.pack(number) + value.encode()
        self.writer.write({IDENTIFIERS: {key: record.index_entry(key, primaries) if primaries else b""}})

    def happen(self, primary: str, events: list[dict[str, bytes]], schema: EventsSchema | None = None) -> None:
        """New events of a profile, the newest first, all newer than what it had."""
        self.touch(primary)
        schema = schema or self.events_schema
        assert schema is not None
        shape = Shape(schema.names, schema.first_param, True)
        made = []
        for number, event in enumerate(events):
            time_us = NOW_US - number * 1_000_000
            values = event | {"time": json.dumps(record.timestamp_text(time_us, 1_000_000)).encode()}
            content = shape.join(primary.encode(), [values.get(name) for name in schema.names], time_us)
            made.append(Event(time_us, history.name_hash(json.loads(event["name"])), content))
        self.blocks += 1
        block, content = history.write_block(primary, made, 0, self.blocks)
        directory = self.directories[primary][history.CHECK.size :]
        behind = [Block(*fields) for fields in history.BLOCK.iter_unpack(directory)]
        self.writer.write(
            {
                BLOCKS: {self.blocks.to_bytes(8, "big"): content},
                HISTORIES: {primary.encode(): history.write_directory(primary, [block._replace(reserved=1), *behind])},
            }
        )


@pytest.fixture
def living(tmp_path: Path) -> Iterator[Living]:
    service = Service(tmp_path, {"shop": EVENTS_DECLARED}, workers=2)
    service.run_sql(EVENTS)
    service.load()
    made = Living(service)
    service.start()
    yield made
    service.stop()
    made.writer.env.close()


@pytest.fixture
def token(living: Living) -> str:
    return living.service.key()


def test_a_changed_profile_is_answered_by_every_worker_as_soon_as_it_is_announced(living: Living, token: str) -> None:
    service = living.service
    connections = service.connect_to_each()
    for number in range(20):
        living.put("ann", living.values("ann") | {"email": b'"ann-%d@example.com"' % number})
        for connection in connections:
            answer = connection.ask(
                b"GET %s HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer %s\r\n\r\n" % (ANN.encode(), token.encode())
            )
            assert answer.json()["email"] == f"ann-{number}@example.com"
    for connection in connections:
        connection.close()


def test_its_etag_changes_and_comes_back_with_what_it_stands_for(living: Living, token: str) -> None:
    before = living.service.get(ANN, token)
    values = living.values("ann")
    living.put("ann", values | {"email": b'"new@example.com"'})
    changed = living.service.get(ANN, token)
    assert changed.headers["etag"] != before.headers["etag"]
    assert living.service.get(ANN, token, ("If-None-Match", changed.headers["etag"])).status == 304
    assert living.service.get(ANN, token, ("If-None-Match", before.headers["etag"])).status == 200


def test_a_profile_that_is_gone_is_not_found_by_any_way(living: Living, token: str) -> None:
    service = living.service
    assert service.get("/v1/profiles/identifier/email/ann@example.com", token).status == 200
    living.remove("ann")
    for target in (ANN, f"{ANN}/events", "/v1/profiles/identifier/email/ann@example.com"):
        assert service.get(target, token).code() == "profile_not_found", target
    answer = service.ask(many({"profiles": [{"id": "ann"}, {"namespace": "email", "value": "ann@example.com"}]}, token))
    assert answer.json() == {"profiles": [None, None]}


def test_a_new_profile_is_found_by_its_id_and_identifier(living: Living, token: str) -> None:
    service = living.service
    assert service.get("/v1/profiles/id/zoe", token).status == 404
    living.put("zoe", {"profile_id": b'"zoe"', "email": b'"zoe@example.com"'})
    living.point("email", "zoe@example.com", ["zoe"])
    assert service.get("/v1/profiles/id/zoe", token).json()["email"] == "zoe@example.com"
    assert service.get("/v1/profiles/identifier/email/ZOE@example.com", token).json()["profile_id"] == "zoe"
    assert service.get("/v1/profiles/id/zoe/events", token).json() == {"events": [], "cursor": None}


def test_an_identifier_that_moved_leads_where_it_is_now_and_one_that_is_gone_nowhere(
    living: Living, token: str
) -> None:
    service = living.service
    living.touch("ann")
    living.point("email", "ann@example.com", [])
    assert service.get("/v1/profiles/identifier/email/ann@example.com", token).status == 404
    assert service.get(ANN, token).status == 200
    living.point("email", "ann@example.com", ["a/b", "ann"])
    assert service.get("/v1/profiles/identifier/email/ann@example.com", token).json()["profile_id"] == "a/b"


def test_an_attribute_that_only_updates_brought_is_a_field_like_any_other(living: Living, token: str) -> None:
    service = living.service
    assert service.get(f"{ANN}?fields=attributes.mood", token).code() == "unknown_field"
    fields = list(living.schema.fields)
    at = living.schema.run_of("attributes")[1]
    fields.insert(at, Field("mood", "attributes", "JSON"))
    schema = msgspec.structs.replace(living.schema, fields=tuple(fields))
    living.writer.write({META: {b"generation:\0\0\0\1": msgspec.json.encode(schema)}})
    living.put("ann", living.values("ann") | {"mood": b'"good"'}, 1, schema)

    answer = service.get(f"{ANN}?fields=attributes.mood", token)
    assert list(answer.json()) == ["mood", "_updated_at"]
    assert service.get(ANN, token).json()["mood"] == "good"
    whole = service.get(f"{ANN}?fields=identifiers,audiences", token).json()
    assert "mood" not in whole
    assert whole["profile_id"] == "ann"
    # Those of the snapshot lack the field, and do not mind being asked for it.
    assert list(service.get("/v1/profiles/id/a%2Fb?fields=attributes.mood", token).json()) == ["_updated_at"]
    both = service.ask(
        many({"profiles": [{"id": "ann"}, {"id": "a/b"}, {"id": "ann"}], "fields": ["attributes.mood"]}, token)
    )
    assert [each.get("mood") for each in both.json()["profiles"]] == ["good", None, "good"]
    valid = service.get(f"{ANN}?fields=attributes.nope", token).json()["valid"]
    assert "attributes.mood" in valid


def test_new_events_come_before_those_of_the_snapshot_page_by_page(living: Living, token: str) -> None:
    service = living.service
    before = [event["id"] for event in service.get(f"{ANN}/events", token).json()["events"]]
    living.happen("ann", [{"id": b'"n1"', "name": b'"page"'}, {"id": b'"n2"', "name": b'"order"', "amount": b"2.50"}])

    assert [event["id"] for event in service.get(f"{ANN}/events", token).json()["events"]] == ["n1", "n2", *before]
    found: list[str] = []
    cursor = ""
    while True:
        page = service.get(f"{ANN}/events?limit=1{cursor}", token).json()
        found += [event["id"] for event in page["events"]]
        if page["cursor"] is None:
            break
        cursor = f"&cursor={page['cursor']}"
    assert found == ["n1", "n2", *before]
    assert [event["id"] for event in service.get(f"{ANN}/events?name=order", token).json()["events"]] == ["n2", "e2"]


def test_a_history_that_is_empty_now_hides_the_snapshots(living: Living, token: str) -> None:
    living.touch("ann")
    living.writer.write({HISTORIES: {b"ann": b""}})
    assert living.service.get(f"{ANN}/events", token).json() == {"events": [], "cursor": None}


def damaged(answer: Any) -> bool:
    return bool(answer.status == 500 and answer.code() == "internal_error")


def test_what_is_damaged_is_an_error_of_that_profile_alone(living: Living, token: str) -> None:
    service, good = living.service, living.record("ann", living.values("ann"))
    key = NAMESPACE_KEY.pack(1) + b"ann@example.com"
    living.writer.write(
        {
            PROFILES: {b"ann": bytes(4) + good[:-1], b"walk": b"\1", b"wide": b"\7\0\0\0" + good},
            IDENTIFIERS: {key: b"\0" * 9},
            HISTORIES: {b"large": b"\1" * 68},
        }
    )
    assert damaged(service.get(ANN, token))
    assert damaged(service.get("/v1/profiles/id/walk", token))
    assert damaged(service.get("/v1/profiles/id/wide", token)), "of a schema that nobody knows"
    assert damaged(service.get("/v1/profiles/identifier/email/ann@example.com", token))
    assert damaged(service.get("/v1/profiles/id/large/events", token))
    assert service.get("/v1/profiles/id/a%2Fb", token).status == 200


def test_a_block_that_is_missing_or_of_another_length_is_damage(living: Living, token: str) -> None:
    living.happen("ann", [{"id": b'"n1"', "name": b'"page"'}])
    assert living.service.get(f"{ANN}/events", token).status == 200
    for content in (None, b"", b"x" * (MARK.size + 80)):
        living.writer.write({BLOCKS: {(1).to_bytes(8, "big"): content}})
        assert damaged(living.service.get(f"{ANN}/events", token))


def test_the_plain_checksum_is_the_compiled_one() -> None:
    assert check_of(7, b"abc") == record.checksum(7, b"abc")
