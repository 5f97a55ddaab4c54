"""What updates may say, what becomes of it, and that damage to a file is a clear error behind which nothing is lost."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from living import Living, living
from workshop import Workshop, roll_back, values

from edgeprofile import history, reader, snapshot
from edgeprofile._record import check_of
from edgeprofile.errors import StoreError
from edgeprofile.history import BLOCK_BYTES_MAX, BLOCK_EVENTS_MAX, LIVE, MARK, Block, Event
from edgeprofile.loader import apply, fold
from edgeprofile.loader.apply import LiveWriter
from edgeprofile.loader.changes import Refused, Updates, read
from edgeprofile.loader.weave import number_of, weave

NOW_US = 1_700_000_000_000_000
PEOPLE = values("1, 'a@x', 'Ann', ['m'], true", "2, 'b@x', 'Bob', NULL, NULL", columns="id, email, name, tags, vip")


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    shop = Workshop(tmp_path).model(PEOPLE, identifiers=[{"column": "email"}], audiences=["vip"])
    shop.load()
    return shop


def write(shop: Workshop, *updates: list[Any], namespace: str | None = None) -> list[Refused]:
    """Each update a list as it comes over the socket, but with plain values in the place of JSON."""
    asked: list[object] = []
    for primary, attributes, *rest in updates:
        nothing: list[Any] = [{}, {}, []]
        adds, removes, events = rest + nothing[len(rest) :]
        said = {name: None if value is None else msgspec.json.encode(value) for name, value in attributes.items()}
        changes = [
            {name: [msgspec.json.encode(item) for item in items] for name, items in change.items()}
            for change in (adds, removes)
        ]
        asked.append([primary, said, *changes, events])
    with LiveWriter(shop.home) as writer:
        return writer.update(read({"updates": asked, "namespace": namespace}, Updates))


def event(name: str, params: dict[str, Any] | None = None, time_us: int = NOW_US) -> list[Any]:
    return [None, name, time_us, {each: msgspec.json.encode(value) for each, value in (params or {}).items()}]


@contextmanager
def served(shop: Workshop) -> Iterator[Living]:
    with living(shop.home) as found:
        found.check()
        yield found


def profile(shop: Workshop, primary: str) -> dict[str, Any] | None:
    with served(shop) as found:
        return found.profile(primary)


def body(shop: Workshop, primary: str) -> str:
    """A profile as it is answered, but for its time."""
    with served(shop) as found:
        return (found.body(primary) or b"").decode().partition(',"_updated_at"')[0]


# --- attributes ----------------------------------------------------------------------------------------------------


def test_an_update_lays_itself_over_the_row_in_the_order_of_an_answer(shop: Workshop) -> None:
    expected = '{"id":1,"email":"a@x","name":"Anna","tags":["m"],"a":1.50,"zip":{"code":[1]},"_audiences":{"vip":true}'
    with LiveWriter(shop.home) as writer:
        said = {"zip": b'{"code": [1]}', "name": b'"Anna"', "a": b"1.50"}
        assert writer.update(read({"updates": [["1", said]]}, Updates)) == []
    assert body(shop, "1") == expected
    shop.load()
    assert body(shop, "1") == expected
    assert [each.name for each in shop.reader().__enter__().schema.fields] == [
        "id", "email", "name", "tags", "a", "zip", "vip",
    ]  # fmt: skip


def test_what_the_model_alone_decides_is_refused_and_the_rest_is_written(shop: Workshop) -> None:
    said = {"id": 7, "vip": False, "_audiences": {}, "_updated_at": "now", "name": "Anna"}
    refused = write(shop, ["2", {"name": "Bert"}], ["1", said])
    assert refused == [Refused(1, "the model alone decides on what has this name", name) for name in list(said)[:4]]
    assert body(shop, "1") == '{"id":1,"email":"a@x","name":"Anna","tags":["m"],"_audiences":{"vip":true}'
    assert (profile(shop, "2") or {})["name"] == "Bert"


@pytest.mark.parametrize("value", [1.5, True, ["a@x"], {"at": "x"}, "x" * 510])
def test_an_identifier_is_text_or_an_integer(shop: Workshop, value: object) -> None:
    refused = write(shop, ["1", {"email": value}])
    assert refused == [Refused(0, "an identifier is text of at most 509 bytes, or an integer", "email")]
    assert (profile(shop, "1") or {})["email"] == "a@x"


def test_arrays_are_added_to_and_removed_from_whoever_said_them(shop: Workshop) -> None:
    write(
        shop,
        ["1", {}, {"tags": ["n", "m"]}, {"tags": ["x"]}],
        ["2", {}, {"tags": ["o"]}],
        ["2", {}, {}, {"more": ["y"]}],
    )
    assert (profile(shop, "1") or {})["tags"] == ["m", "n"]
    assert profile(shop, "2") is not None
    assert "more" not in (profile(shop, "2") or {})
    write(shop, ["1", {}, {}, {"tags": ["m", "n"]}])
    assert (profile(shop, "1") or {})["tags"] == []
    assert write(shop, ["1", {}, {"name": ["n"]}]) == [
        Refused(0, "only arrays of texts are added to and removed from", "name")
    ]
    assert write(shop, ["1", {}, {"tags": [str(n) for n in range(26)]}]) == [
        Refused(0, "an array has at most 25 items", "tags")
    ]
    write(shop, ["1", {"tags": None}])
    assert (profile(shop, "1") or {})["tags"] == ["m"], "the model's value shows again"


def test_a_profile_has_a_bounded_number_of_attributes(shop: Workshop) -> None:
    names = [f"n{number}" for number in range(apply.ATTRIBUTES_MAX + 1)]
    for first in range(0, len(names), 200):
        refused = write(shop, ["1", dict.fromkeys(names[first : first + 200], 1)])
    assert refused == [Refused(0, "a profile has at most 512 attributes that updates have set", names[-1])]
    assert write(shop, ["1", {names[0]: 2}]) == []
    shop.load()
    assert (profile(shop, "1") or {})[names[0]] == 2


def test_all_profiles_together_have_a_bounded_number_of_attributes(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "FIELDS_MAX", 7)
    refused = write(shop, ["1", {"one": 1, "two": 2}], ["2", {"three": 3, "one": 1}])
    assert refused == [Refused(1, "profiles have at most 7 different attributes", "three")]
    assert (profile(shop, "2") or {})["one"] == 1


def test_a_profile_that_only_updates_made_is_served_as_a_row_would_be(shop: Workshop) -> None:
    write(shop, ["3", {"name": "Cy"}], ["x/é\0", {}], ["007", {"email": 7}])
    for _ in range(2):
        assert body(shop, "3") == '{"id":3,"name":"Cy","_audiences":{}'
        assert json.loads(body(shop, "x/é\0") + "}") == {"id": "x/é\0", "_audiences": {}}
        assert body(shop, "007") == '{"id":"007","email":7,"_audiences":{}'
        with served(shop) as found:
            assert found.found("email", "7") == ["007"]
        assert shop.load() in ("published", "unchanged")
    assert shop.manifest().made == 3
    shop.model(PEOPLE.replace("(2,", "(3,"), identifiers=[{"column": "email"}], audiences=["vip"]).load()
    assert (shop.manifest().made, shop.manifest().profiles) == (2, 4)
    assert body(shop, "3") == '{"id":3,"email":"b@x","name":"Cy","_audiences":{}'


@pytest.mark.parametrize("primary", ["", "x" * 512])
def test_an_id_that_can_be_no_key_is_refused(shop: Workshop, primary: str) -> None:
    assert write(shop, [primary, {"name": "N"}], ["1", {"name": "M"}]) == [
        Refused(0, "an id is text of 1 to 511 bytes")
    ]
    assert (profile(shop, "1") or {})["name"] == "M"


# --- identifiers ---------------------------------------------------------------------------------------------------


def test_the_last_to_be_updated_is_first_to_be_found(shop: Workshop) -> None:
    write(shop, ["1", {"email": "b@x"}])
    for primaries in (["1", "2"], ["2", "1"], ["1"]):
        with served(shop) as found:
            assert found.found("email", "b@x") == primaries
            assert found.found("email", "a@x") == []
        shop.load()
        with served(shop) as found:
            assert found.found("email", "b@x") == primaries
        write(shop, ["2", {"name": "Bert"}] if len(primaries) == 2 and primaries[0] == "1" else ["2", {"email": "c@x"}])
    write(shop, ["1", {"email": None}])
    with served(shop) as found:
        assert (found.found("email", "a@x"), found.found("email", "b@x")) == (["1"], [])


def test_updates_may_name_profiles_by_another_identifier(shop: Workshop) -> None:
    refused = write(
        shop,
        ["a@x", {"name": "Anna"}],
        ["new@x", {"name": "Nina"}],
        ["new@x", {"size": 38}],
        ["b@x", {"email": "moved@x"}],
        ["moved@x", {"name": "Moved"}],
        ["b@x", {"name": "another"}],
        ["", {"name": "nobody"}],
        namespace="email",
    )
    assert refused == [Refused(6, "an id is text of 1 to 511 bytes")]
    assert body(shop, "1").startswith('{"id":1,"email":"a@x","name":"Anna"')
    assert body(shop, "2").startswith('{"id":2,"email":"moved@x","name":"Moved"')
    assert body(shop, "new@x") == '{"id":"new@x","email":"new@x","name":"Nina","size":38,"_audiences":{}'
    assert body(shop, "b@x") == '{"id":"b@x","email":"b@x","name":"another","_audiences":{}'
    write(shop, ["new@x", {"size": 39}], namespace="email")
    with served(shop) as found:
        assert found.ids() == ["1", "2", "b@x", "new@x"]


# --- events --------------------------------------------------------------------------------------------------------


def test_a_history_is_whole_after_every_batch_and_does_not_fall_into_pieces(shop: Workshop) -> None:
    chance = random.Random(5)
    expected: list[tuple[int, int]] = []
    for batch in range(60):
        times = [NOW_US + chance.randrange(10) * 1_000_000 + batch * chance.randrange(2) * 1_000_000 for _ in range(9)]
        write(
            shop, ["1", {}, {}, {}, [event("page", {"n": 9 * batch + n}, time_us) for n, time_us in enumerate(times)]]
        )
        expected += [(time_us, 9 * batch + n) for n, time_us in enumerate(times)]
        if batch == 30:
            shop.load()
    expected.sort(key=lambda each: -each[0])
    for _ in range(2):
        with served(shop) as found:
            assert [each["params"]["n"] for each in found.events_of("1")] == [n for _, n in expected]
            assert len(found.events) <= 2 * len(expected) // BLOCK_EVENTS_MAX + 2
        shop.load()
    assert shop.manifest().events == len(expected)
    reader.verify(shop.current_folder())


def test_parameters_that_only_updates_know_stand_behind_the_models(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    shop.model(
        "SELECT 1 AS id",
        events={
            "sql": "SELECT 1 AS id, 'page' AS name, TIMESTAMP '2020-01-01' AS at, 3 AS z, 'e' AS eid",
            "profile": "id",
            "name": "name",
            "time": "at",
            "id": "eid",
        },
    )
    shop.load()
    said = event("sms", {"a": 1, "z": "text", "name": "x"})
    write(shop, ["1", {}, {}, {}, [said]], ["2", {}, {}, {}, [event("sms", {"b": []})]])
    for _ in range(2):
        with served(shop) as found:
            assert found.events_of("1") == [
                {"name": "sms", "time": "2023-11-14T22:13:20Z", "params": {"z": "text", "a": 1, "name": "x"}},
                {"id": "e", "name": "page", "time": "2020-01-01T00:00:00Z", "params": {"z": 3}},
            ]
            assert list(found.events_of("1")[0]["params"]) == ["z", "a", "name"]
            assert found.events_of("2")[0]["params"] == {"b": []}
        shop.load()


EVENTS = st.lists(st.tuples(st.integers(0, 9), st.sampled_from([10, 900, 40_000])), min_size=1, max_size=12)


@given(st.lists(EVENTS, min_size=1, max_size=8), st.booleans())
def test_events_that_are_woven_in_are_a_history_that_was_made_at_once(
    batches: list[list[tuple[int, int]]], is_live: bool
) -> None:
    content: dict[int, bytes] = {}
    blocks: list[Block] = []
    events: list[Event] = []
    for batch in batches:
        new = [Event(time, n, b"%03d" % n * (size // 3)) for n, (time, size) in enumerate(batch, len(events))]
        woven = weave("ann", blocks, lambda block: content[number_of(block)], new, 1 + max(content, default=1 << 33))
        for block in woven.replaced:
            del content[number_of(block)]
        content.update(woven.written)
        blocks, events = woven.blocks, events + new
    found = [each for block in blocks for each in history.read_block("ann", block, content[number_of(block)], check_of)]
    assert [(each.time_us, each.name_hash) for each in found] == [
        (each.time_us, each.name_hash) for each in sorted(events, key=lambda each: -each.time_us)
    ]
    assert {number_of(block) for block in blocks} == set(content)
    for block in blocks:
        assert block.reserved == LIVE
        assert block.count <= BLOCK_EVENTS_MAX
        assert block.count == 1 or block.length <= BLOCK_BYTES_MAX + MARK.size
    assert history.read_directory("ann", history.write_directory("ann", blocks)) == blocks


# --- folding -------------------------------------------------------------------------------------------------------


def test_more_made_profiles_than_a_piece_holds_are_folded_between_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold, "CHUNK_PROFILES", 7)
    shop = Workshop(tmp_path).model("SELECT 10 * i AS id, 'row' AS word FROM range(1, 50) AS made(i)")
    shop.load()
    said = {str(n): f"said {n}" for n in [*range(1, 500, 3), *range(20, 400, 50), 2, 9999]}
    write(shop, *([primary, {"word": word}] for primary, word in said.items()))
    shop.load()
    reader.verify(shop.current_folder())
    found = {primary: each["word"] for primary, each in shop.profiles().items()}
    assert found == {str(10 * n): "row" for n in range(1, 50)} | said
    assert list(found) == sorted(found)
    write(shop, ["20", {"word": None}], ["1", {"word": None}])
    assert ((profile(shop, "20") or {})["word"], (profile(shop, "1") or {}).get("word")) == ("row", None)


def test_a_change_of_the_overlay_alone_is_published_and_none_is_not(shop: Workshop) -> None:
    assert shop.load() == "unchanged"
    write(shop, ["1", {"name": "Anna"}])
    assert shop.load() == "published"
    assert shop.load() == "unchanged"
    assert (profile(shop, "1") or {})["name"] == "Anna"


def test_what_was_evicted_is_gone_with_all_that_was_said_of_it(shop: Workshop) -> None:
    write(shop, ["2", {"name": "Bert", "size": 1}, {}, {}, [event("page")]], ["made", {"size": 2}])
    one = PEOPLE.replace(", (2, 'b@x', 'Bob', NULL, NULL)", "")
    shop.model(one, identifiers=[{"column": "email"}], audiences=["vip"]).load()
    assert (profile(shop, "2"), (profile(shop, "made") or {})["size"]) == (None, 2)
    write(shop, ["2", {"size": 3}])
    assert body(shop, "2") == '{"id":2,"size":3,"_audiences":{}'
    shop.load()
    shop.model(PEOPLE, identifiers=[{"column": "email"}], audiences=["vip"]).load()
    assert body(shop, "2") == '{"id":2,"email":"b@x","name":"Bob","size":3,"_audiences":{}'
    with served(shop) as found:
        assert found.events_of("2") == []


# --- damage --------------------------------------------------------------------------------------------------------


def flip(path: Path, content: bytes) -> None:
    """Changes a byte in the middle of something that a file holds."""
    whole = bytearray(path.read_bytes())
    at = whole.index(content) + len(content) // 2
    whole[at] ^= 1
    with path.open("r+b") as file:
        file.write(whole)


def test_updates_of_a_damaged_profile_wait_for_the_next_snapshot(
    shop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    flip(shop.current_folder() / snapshot.PROFILES, b'"name":"Ann"')
    assert write(shop, ["1", {"name": "Anna", "size": 1}], ["2", {"name": "Bert"}]) == []
    assert (profile_of_two(shop) or {})["name"] == "Bert"
    assert "updates of 1 profiles wait for the next one, as their records are damaged" in caplog.text
    assert "Anna" not in caplog.text
    shop.load()
    assert body(shop, "1") == '{"id":1,"email":"a@x","name":"Anna","tags":["m"],"size":1,"_audiences":{"vip":true}'


def profile_of_two(shop: Workshop) -> dict[str, Any] | None:
    with living(shop.home) as found:
        return found.profile("2")


@pytest.mark.parametrize("damage", ["cut", "noise", "another file"])
def test_a_damaged_live_layer_takes_no_updates_until_a_load_makes_another(shop: Workshop, damage: str) -> None:
    write(shop, ["1", {"name": "Anna"}])
    path = shop.current_folder() / snapshot.LIVE
    if damage == "cut":
        os.truncate(path, 5000)
    elif damage == "noise":
        path.write_bytes(random.Random(1).randbytes(20_000))
    else:
        shutil.copy(shop.current_folder() / snapshot.PROFILES, path)
    with pytest.raises(StoreError, match=r"live layer of snapshot \S+ is (cut short|damaged)"):
        write(shop, ["1", {"name": "Annie"}])
    shop.load()
    assert (profile(shop, "1") or {})["name"] in ("Anna", "Annie")
    assert write(shop, ["1", {"name": "Andy"}]) == []
    assert (profile(shop, "1") or {})["name"] == "Andy"


def test_a_live_layer_that_was_removed_is_made_anew_of_the_overlay(shop: Workshop) -> None:
    write(shop, ["1", {"name": "Anna"}])
    shop.load()
    write(shop, ["1", {"name": "Annie"}], ["made", {"size": 1}, {}, {}, [event("page")]])
    shop.load(force=True)
    before = {primary: body(shop, primary) for primary in ("1", "2", "made")}
    write(shop, ["2", {"name": "Bert"}])
    (shop.current_folder() / snapshot.LIVE).unlink()
    with LiveWriter(shop.home) as writer:
        writer.catch_up()
    assert body(shop, "2").startswith('{"id":2,"email":"b@x","name":"Bert"')
    kept = snapshot.names(shop.home)[-2]
    (snapshot.folder(shop.home, kept) / snapshot.LIVE).unlink()
    assert roll_back(shop.home).name == kept
    assert {primary: body(shop, primary) for primary in ("1", "made")} == {each: before[each] for each in ("1", "made")}
    assert body(shop, "2").startswith('{"id":2,"email":"b@x","name":"Bert"')
    with served(shop) as found:
        assert len(found.events_of("made")) == 1


@pytest.mark.parametrize("damage", ["noise", "another file", "cut"])
def test_a_damaged_overlay_fails_a_load_rather_than_to_take_updates_back(shop: Workshop, damage: str) -> None:
    write(shop, ["1", {"name": "Anna"}])
    path = shop.home / snapshot.UPDATES
    kept = path.read_bytes()
    if damage == "noise":
        path.write_bytes(random.Random(1).randbytes(20_000))
    elif damage == "cut":
        os.truncate(path, 9000)
    else:
        shutil.copy(shop.current_folder() / snapshot.PROFILES, path)
    before = shop.current()
    ended = shop.run("load")
    assert ended.status == 1
    what = "no overlay" if damage == "another file" else "cut short"
    assert ended.complaints == [f"edgeprofile: shop: updates.mdb is {what}"]
    assert shop.run("status").status == 1
    with pytest.raises(StoreError, match=r"updates\.mdb is"):
        write(shop, ["1", {"name": "Annie"}])
    assert shop.current() == before
    assert (profile(shop, "1") or {})["name"] == "Anna"
    path.write_bytes(kept)
    assert shop.load() == "published"
    assert (profile(shop, "1") or {})["name"] == "Anna"


def test_an_overlay_that_was_removed_begins_anew_behind_the_one_before(shop: Workshop) -> None:
    write(shop, ["1", {"name": "Anna"}], ["2", {"size": 1}])
    shop.load()
    write(shop, ["2", {"size": 2}])
    for name in (snapshot.UPDATES, f"{snapshot.UPDATES}-lock"):
        (shop.home / name).unlink()
    write(shop, ["1", {"size": 3}])
    assert body(shop, "1").startswith('{"id":1,"email":"a@x","name":"Ann","tags":["m"],"size":3')
    shop.load()
    assert (profile(shop, "1") or {})["size"] == 3
    assert body(shop, "2") == '{"id":2,"email":"b@x","name":"Bob","_audiences":{}'
