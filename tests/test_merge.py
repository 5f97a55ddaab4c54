"""Records taken apart and made again: the same bytes that the plain writer gives, and nothing of a damaged one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprofile import history, record
from edgeprofile._merge import Shape
from edgeprofile.errors import FormatUnsupported, RecordDamaged, RecordTooLarge
from edgeprofile.record import Field, Kind, Schema, Type

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, max_size=12)
JSON = Type(Kind.JSON)
VALUES = st.none() | st.sampled_from([b"1", b'"a"', b'"\xc3\xa9\\""', b"[1,2]", b'{"a":{}}', b"true", b"1.50", b"null"])
TIMES = st.integers(-(10**17), 2 * 10**17) | st.sampled_from([(1 << 63) - 1, 0])


@st.composite
def profiles(draw: st.DrawFn) -> tuple[Schema, list[bytes | None]]:
    """A schema, and a profile of it; the primary identifier is always there."""
    names = draw(NAMES.map(lambda names: list(dict.fromkeys(names))))
    first_audience = draw(st.integers(1, len(names)))
    fields = tuple(
        Field(name, "attributes" if number < first_audience else "audiences", "JSON")
        for number, name in enumerate(names)
    )
    return Schema(fields, ()), [b'"p"', *(draw(VALUES) for _ in names[1:])]


def shape_of(schema: Schema) -> Shape:
    return Shape([field.name for field in schema.fields], schema.first_audience)


@given(profiles(), TIMES, st.text(min_size=1, max_size=9))
def test_a_record_that_is_made_of_values_is_the_plain_writers(
    profile: tuple[Schema, list[bytes | None]], time_us: int, primary: str
) -> None:
    schema, values = profile
    expected = record.encode(schema, [JSON] * len(values), primary, values, time_us)
    shape = shape_of(schema)

    assert shape.join(primary.encode(), values, time_us) == expected
    assert shape.split(expected, primary.encode()) == values


@given(st.lists(VALUES, max_size=6), TIMES)
def test_an_event_that_is_made_of_values_is_the_plain_writers(params: list[bytes | None], time_us: int) -> None:
    schema = history.EventsSchema(True, tuple(Field(f"p{n}", "params", "JSON") for n in range(len(params))))
    values = [b'"e1"', b'"page"', b'"2025-06-10T12:00:00Z"', *params]
    shape = Shape(schema.names, schema.first_param, True)
    expected = history.encode(schema, [JSON] * len(values), "ann", values, time_us)

    assert shape.join(b"ann", values, time_us) == expected
    assert shape.split(expected, b"ann") == values


def test_a_record_of_a_smaller_schema_has_the_first_fields() -> None:
    before, now = Shape(["id", "a"], 2), Shape(["id", "a", "b"], 3)
    assert now.split(before.join(b"1", [b'"1"', b"2"], 0), b"1") == [b'"1"', b"2", None]


@given(st.integers(0, 200), st.integers(1, 255))
def test_no_flipped_byte_of_a_record_is_taken_for_a_value(at: int, bits: int) -> None:
    shape = Shape(["id", "name", "high"], 2)
    made = bytearray(shape.join(b"1", [b'"1"', b'"' + b"x" * 100 + b'"', b"true"], 0))
    made[at % len(made)] ^= bits
    with pytest.raises((RecordDamaged, FormatUnsupported)):
        shape.split(bytes(made), b"1")


@pytest.mark.parametrize("names", [["id", "name"], ["id", "other", "high"], ["id", "name", "other"]])
def test_a_record_of_another_schema_is_told(names: list[str]) -> None:
    made = Shape(["id", "name", "high"], 2).join(b"1", [b'"1"', b"2", b"true"], 0)
    with pytest.raises(RecordDamaged):
        Shape(names, 2).split(made, b"1")


def test_a_record_cut_short_or_anothers_is_damage() -> None:
    shape = Shape(["id"], 1)
    made = shape.join(b"1", [b'"1"'], 0)
    for content, primary in ((b"", b"1"), (made[:-1], b"1"), (made, b"2")):
        with pytest.raises(RecordDamaged):
            shape.split(content, primary)


def test_a_record_over_16_mib_is_refused_whatever_makes_it_so() -> None:
    shape = Shape(["id", "a", "b"], 3)
    half = b'"' + b"x" * (8 * 1024 * 1024) + b'"'
    with pytest.raises(RecordTooLarge):
        shape.join(b"1", [b'"1"', half, half], 0)
    with pytest.raises(RecordTooLarge):
        shape.join(b"1", [b'"1"', half, half[: 8 * 1024 * 1024 - 60]], 0)


def test_values_of_another_number_or_type_are_refused() -> None:
    shape = Shape(["id", "a"], 2)
    with pytest.raises(ValueError, match="one value for each field"):
        shape.join(b"1", [b'"1"'], 0)
    with pytest.raises(TypeError):
        shape.join(b"1", [b'"1"', "2"], 0)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="flat field"):
        Shape(["a"], 0)
