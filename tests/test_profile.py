"""Templates of a record: what compiled code makes of them is what plain code makes of the record's own JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from histories import store_of_records
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import COLUMNS, NOW_US, SHOP, schema_of, shop_record
from strategies import TEXT as TEXT_TYPE
from templates import SLOTS, Item, Parts, items_of, taken_apart

from edgeprofile import record
from edgeprofile._profile import (
    CONSTANT,
    IF_TRUE,
    OBJECT,
    RUN,
    SLOT,
    TEXT,
    TIME_MS,
    TIME_S,
    VALUE,
    Template,
    find,
    render_record,
)
from edgeprofile.errors import AnswerTooLarge, FormatUnsupported, ProfileNotFound, RecordDamaged
from edgeprofile.record import AUDIENCES_OPEN, PARAMS_OPEN, Kind, Record, Type

# Names that look like what stands between names.
ODD_NAMES = ['a "name"', "\\", "\\\\", '\\"', '"', "", ",", ":", '":1', "é", "😀", "\x00", "\x1f\n", '"_audiences":{']
NAMES = st.sampled_from(ODD_NAMES) | st.text(max_size=20) | st.text('"\\:,é', max_size=12)
HELD = {"id", "_audiences", "_updated_at", "params"}
# JSON in which strings look like what stands between values.
MIXED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('[]{},:"\\né', max_size=8),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text('],"\\', max_size=3), inside, max_size=3),
    max_leaves=8,
)
LISTS = st.builds(lambda value, ascii_only: json.dumps(value, ensure_ascii=ascii_only).encode(), MIXED, st.booleans())
COLUMN = COLUMNS.map(lambda column: (column.type, column.nullable)) | st.sampled_from(
    [(Type(Kind.JSON), st.none() | LISTS), (Type(Kind.BOOLEAN), st.none() | st.booleans())]
)
YEAR_1_US, YEAR_10000_US = -62_135_596_800_000_000, 253_402_300_800_000_000
TIMES = st.integers(YEAR_1_US, YEAR_10000_US - 1) | st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-2000, 2000)


class Made(NamedTuple):
    """A record, of a profile or of an event."""

    record: bytes
    names: list[str]
    first_nested: int
    is_event: bool

    def template(self, items: Sequence[Item]) -> Template:
        return Template(items, self.first_nested, self.is_event)

    def parts(self) -> Parts:
        plain = Record("ann", self.record)
        return taken_apart(plain.body, self.names, self.first_nested, plain.updated_us)


@st.composite
def made_records(draw: st.DrawFn) -> Made:
    """Fields of any type, some absent, behind an id; nested from anywhere on, also from the end."""
    names = ["id", *draw(st.lists(NAMES.filter(lambda name: name not in HELD), unique=True, max_size=9))]
    pool = draw(st.lists(COLUMN, min_size=1, max_size=4))
    columns = [pool[n % len(pool)] for n in range(len(names) - 1)]
    values = [draw(values) for _, values in columns]
    if draw(st.integers(0, 9)) == 0:  # an offset takes four bytes then
        names, columns, values = [*names, "wide"], [*columns, (TEXT_TYPE, st.nothing())], [*values, "x" * 70_000]
    first_nested, is_event = draw(st.integers(1, len(names))), draw(st.booleans())
    found = record.encode_fields(
        names,
        [TEXT_TYPE, *(type_ for type_, _ in columns)],
        "ann",
        ["ann", *values],
        draw(TIMES),
        first_nested,
        PARAMS_OPEN if is_event else AUDIENCES_OPEN,
        b"}}" if is_event else b'},"_updated_at":null}',
    )
    return Made(found, names, first_nested, is_event)


def rendered(made: Made, items: Sequence[Item], **options: Any) -> bytes:
    return render_record(made.record, b"ann", made.template(items), **options)


def shop(items: Sequence[Item], **options: Any) -> str:
    return render_record(shop_record(), b"ann", Template(items, 4), **options).decode()


def outcome(render: Callable[[], bytes]) -> bytes | None:
    """What is rendered; None where the record is refused."""
    try:
        return render()
    except (RecordDamaged, FormatUnsupported):
        return None


# --- compiled and plain agree --------------------------------------------------------------------------------------


@settings(max_examples=250)
@given(st.data(), made_records())
def test_a_template_renders_what_plain_code_makes_of_the_same_json(data: st.DataObject, made: Made) -> None:
    items = data.draw(items_of(len(made.names), made.first_nested))
    expected = made.parts().render(items, SLOTS)
    template = made.template(items)
    assert render_record(made.record, b"ann", template, SLOTS) == expected
    assert render_record(made.record, b"ann", template, SLOTS, len(expected)) == expected
    if expected:
        with pytest.raises(AnswerTooLarge):
            render_record(made.record, b"ann", template, SLOTS, data.draw(st.integers(0, len(expected) - 1)))
        with pytest.raises(AnswerTooLarge):
            render_record(made.record, b"ann", template, SLOTS, len(expected) - 1)


@settings(max_examples=80)
@given(made_records())
def test_each_value_comes_digit_for_digit_and_as_a_text(made: Made) -> None:
    parts = made.parts()
    for number in range(len(made.names)):
        value = parts.values.get(number, "").encode()
        assert rendered(made, [(VALUE, number)]) == value
        assert rendered(made, [(RUN, [(number, number + 1)])]) == parts.members.get(number, "").encode()
        text = rendered(made, [(TEXT, number)])
        assert text == parts.put((TEXT, number), ())
        if text:
            loaded = json.loads(text)
            assert isinstance(loaded, str) or all(isinstance(each, str) for each in loaded)


@given(TIMES)
@example(YEAR_1_US - 1)
@example(YEAR_1_US)
@example(YEAR_10000_US - 1)
@example(YEAR_10000_US)
@example(-(1 << 63))
@example((1 << 63) - 1)
@example(-1)
def test_times_are_cut_off_downwards_and_null_outside_the_years_1_to_9999(time_us: int) -> None:
    made = Made(
        record.encode(schema_of([("id", "identifiers")]), [TEXT_TYPE], "ann", ["ann"], time_us), ["id"], 1, False
    )
    expected = made.parts()
    assert rendered(made, [(TIME_S, b"[", b"]"), (TIME_MS,)]) == b"[%s],%s" % (
        expected.time(False).encode(),
        expected.time(True).encode(),
    )


# --- facts ---------------------------------------------------------------------------------------------------------


def test_items_are_joined_by_commas_and_what_the_profile_lacks_leaves_none() -> None:
    assert shop([]) == ""
    assert shop([(VALUE, 2, b"name: ")]) == ""
    assert (
        shop(
            [(VALUE, 2), (CONSTANT, b"a"), (VALUE, 2), (SLOT, 0), (CONSTANT, b"b"), (RUN, [(2, 3)], b"(")], slots=(b"",)
        )
        == "a,b"
    )
    assert shop([(CONSTANT, b""), (CONSTANT,), (VALUE, 0)]) == '"ann"'
    assert shop([(VALUE, 3, b'"spend":', b" EUR"), (TEXT, 3, b"s")]) == '"spend":12 EUR,s"12"'
    assert shop([(SLOT, 1), (SLOT, 0), (SLOT, 1)], slots=(b"x", b"yy")) == "yy,x,yy"


def test_only_what_is_true_is_said_by_if_true() -> None:
    assert shop([(IF_TRUE, 4, b"vip"), (IF_TRUE, 5, b"new"), (IF_TRUE, 2, b"name"), (IF_TRUE, 3, b"spend")]) == "vip"


def test_audiences_stand_in_an_object_and_are_found_there_from_the_first_to_the_last() -> None:
    assert shop([(VALUE, 4), (VALUE, 5)]) == "true,false"
    assert shop([(RUN, [(4, 6)])]) == '"vip":true,"new":false'
    assert shop([(RUN, [(0, 4)])]) == '"id":"ann","email":"a@b.example","spend":12'
    assert shop([(OBJECT, [(5, 6), (0, 1), (2, 3), (4, 5)], b"{", b"}")]) == '{"new":false,"id":"ann","vip":true}'


def test_a_run_of_nothing_is_left_out_and_an_object_of_nothing_is_empty() -> None:
    for runs in ([], [(2, 3)], [(6, 9)], [(4096, 5000)], [(1, 1), (4, 4)]):
        assert shop([(RUN, runs, b"{", b"}"), (CONSTANT, b"x")]) == "x"
        assert shop([(OBJECT, runs, b"{", b"}"), (CONSTANT, b"x")]) == "{},x"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("null", ""),
        ("true", '"true"'),
        ("-0.10e5", '"-0.10e5"'),
        ("123456789012345678901234567890", '"123456789012345678901234567890"'),
        (r'"a\"b\u00e9"', r'"a\"b\u00e9"'),
        ('"null"', '"null"'),
        ("[]", "[]"),
        ("[null]", "[]"),
        ("[null,1,null]", '["1"]'),
        (r'["],[","\"","\\",null,"n"]', r'["],[","\"","\\","n"]'),
        (r'[1.50,true,"x",[1,"]"],{"a":[null,"}"]}]', r'["1.50","true","x","[1,\"]\"]","{\"a\":[null,\"}\"]}"]'),
        (r'{"a":"\\","b":[1]}', r'"{\"a\":\"\\\\\",\"b\":[1]}"'),
        ("{}", '"{}"'),
    ],
)
def test_a_value_as_text(value: str, text: str) -> None:
    found = record.encode(
        schema_of([("id", "identifiers"), ("f", "attributes")]),
        [TEXT_TYPE, Type(Kind.JSON)],
        "ann",
        ["ann", value.encode()],
        NOW_US,
    )
    made = Made(found, ["id", "f"], 2, False)
    assert rendered(made, [(TEXT, 1)]).decode() == text
    assert rendered(made, [(VALUE, 1)]).decode() == value


@pytest.mark.parametrize(
    "items",
    [
        [(RUN, [(3, 5)])],
        [(OBJECT, [(2, 1)])],
        [(RUN, [(-1, 1)])],
        [(RUN, [(-5, -1)])],
        [(9, 1)],
        [(-1,)],
        [()],
        [(VALUE,)],
    ],
)
def test_what_no_template_can_be_is_refused_by_its_maker(items: list[Item]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Template(items, 4)


def test_texts_that_are_no_bytes_are_refused() -> None:
    for item in (
        (CONSTANT, None),
        (CONSTANT, "text"),
        (VALUE, 0, None),
        (VALUE, 0, b"", None),
        (IF_TRUE, 0, bytearray()),
    ):
        with pytest.raises(TypeError):
            Template([item], 4)
    for slots in ((None,), ("text",)):
        with pytest.raises(TypeError):
            shop([(SLOT, 0)], slots=slots)
    with pytest.raises(IndexError):
        shop([(SLOT, 1)], slots=(b"",))


def test_the_largest_answer_may_be_as_large_as_a_number_can_say() -> None:
    assert shop([(VALUE, 0)], bytes_max=(1 << 64) - 1) == '"ann"'


# --- profiles of a snapshot ----------------------------------------------------------------------------------------

SHOP_SCHEMA = schema_of(SHOP)


def test_a_profile_is_found_by_its_id_with_its_time_and_its_values(tmp_path: Path) -> None:
    with store_of_records(tmp_path, SHOP_SCHEMA, {"ann": shop_record()}) as store:
        profile = find(store, b"ann")
        assert (profile.primary, profile.updated_us) == (b"ann", NOW_US)
        values = [profile.value(n) for n in range(-1, 7)]
        assert values == [None, b'"ann"', b'"a@b.example"', None, b"12", b"true", b"false", None]
        assert [profile.value(n) for n in (-(1 << 31), 4095, 4096, (1 << 31) - 1)] == [None] * 4
        assert profile.render(Template([(TEXT, 3), (RUN, [(4, 6)])], 4)) == b'"12","vip":true,"new":false'
        for unknown in (b"", b"an", b"anna", b"bob", b"x" * 600):
            with pytest.raises(ProfileNotFound):
                find(store, unknown)
        del profile


def test_a_damaged_profile_is_refused_by_the_name_of_its_snapshot_alone(tmp_path: Path) -> None:
    found = shop_record()
    with store_of_records(tmp_path, SHOP_SCHEMA, {"ann": found[:-1] + b"!", "bob": found}) as store:
        for primary in (b"ann", b"bob"):
            with pytest.raises(RecordDamaged, match=tmp_path.name) as refused:
                find(store, primary)
            assert primary.decode() not in str(refused.value).replace(tmp_path.name, "")


# --- damage --------------------------------------------------------------------------------------------------------

EVERYTHING: list[Item] = [
    *((how, n, b"", b"") for how in (VALUE, TEXT, IF_TRUE) for n in range(7)),
    *((RUN, [run]) for run in ((0, 1), (0, 4), (1, 3), (2, 4), (4, 5), (4, 6), (5, 6), (4, 99))),
    (OBJECT, [(0, 4), (4, 6)], b"{", b"}"),
    (TIME_MS,),
]


def rechecked(changed: bytes) -> bytes:
    """The record with its check made right again."""
    return changed[:8] + record.record_check(b"ann", changed).to_bytes(8, "little") + changed[16:]


def assert_is_its_own(found: bytes) -> int:
    """Every item gives bytes of the record's own, or the record is refused; returns how many were."""
    refused = 0
    for item in EVERYTHING:
        text = outcome(lambda: render_record(found, b"ann", Template([item], 4)))  # noqa: B023
        refused += text is None
        if text is not None and item[0] in (VALUE, RUN):
            assert text in found
    return refused


def listing_record() -> bytes:
    """A record of a list, with a table of two numbers to an offset."""
    types = [TEXT_TYPE, TEXT_TYPE, Type(Kind.JSON), Type(Kind.INTEGER), Type(Kind.BOOLEAN), Type(Kind.BOOLEAN)]
    return record.encode(SHOP_SCHEMA, types, "ann", ["ann", None, b'["\xc3\xa9",null,1,[2]]', 12, True, None], NOW_US)


@pytest.mark.parametrize("good", [shop_record(), listing_record()], ids=["shop", "listing"])
def test_every_byte_of_a_record_may_lie_behind_a_right_check(good: bytes) -> None:
    assert assert_is_its_own(good) == 0
    start = len(good) - Record("ann", good).body_bytes
    ends = range(record.HEADER.size + 1, start)
    last = (len(good) - 1 - start).to_bytes(2, "little")  # the brace that closes the body, not the audiences
    for at in [*range(1, 8), *range(16, len(good))]:
        for octet in range(256) if at in ends else (0, 1, 0x22, 0x5C, 0x7F, 0xFF):
            found = rechecked(good[:at] + bytes([octet]) + good[at + 1 :])
            refused = assert_is_its_own(found)
            assert refused or at not in ends or octet == good[at] or found[start - 2 : start] == last


@settings(max_examples=150)
@given(st.data(), made_records())
def test_lies_in_any_record_are_its_own_bytes_or_refused(data: st.DataObject, made: Made) -> None:
    changed = bytearray(made.record)
    start = record.HEADER.size + (len(made.names) + 7) // 8
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(1, start + 24) | st.integers(1, len(changed) - 1))
        changed[min(at, len(changed) - 1)] = data.draw(st.sampled_from([0, 1, 2, 4, 0x22, 0xFF]) | st.integers(0, 255))
    found = rechecked(bytes(changed))
    for item in data.draw(items_of(len(made.names), made.first_nested)):
        text = outcome(lambda: render_record(found, b"ann", made.template([item]), SLOTS))  # noqa: B023
        if text and (item[0] == VALUE or (item[0] == RUN and len(item[1]) == 1)):
            before, after, *_ = [*item[2:], b"", b""]
            assert text.startswith(before)
            assert text.removeprefix(before).removesuffix(after) in found


@pytest.mark.parametrize("field", [b'"f":', b'"f', b'"f"1', b'"f\\":1', b'"\\', b'x":1', b'"f":[\xff]', b'"f":\xff'])
def test_a_field_that_is_no_name_and_value_is_refused(field: bytes) -> None:
    body = b'{"id":"ann",' + field + b',"_audiences":{},"_updated_at":null}'
    ends = [len(b'{"id":"ann"'), len(b'{"id":"ann",' + field)]
    table = b"\x03" + b"".join(end.to_bytes(2, "little") for end in ends)
    found = rechecked(record.HEADER.pack(1, 2, 2, len(body), 0, 0) + table + body)
    with pytest.raises(RecordDamaged):
        render_record(found, b"ann", Template([(TEXT, 1)], 2))
