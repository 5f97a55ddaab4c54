"""What a profile is: the model's row, and what updates have said of it laid over that.

An attribute of an update replaces the field of its name, or is a field of its own behind the model's attributes. What
the model alone decides (the primary id, audiences) an update does not replace.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from msgspec.structs import replace

from edgeprofile._merge import Shape
from edgeprofile.errors import RecordTooLarge
from edgeprofile.loader.overlay import Profile
from edgeprofile.reader import KEY_BYTES_MAX, NAMESPACE_KEY
from edgeprofile.record import FIELDS_MAX, Field, Schema, normalize

RESERVED = ("_audiences", "_updated_at")
IDENTIFIER_BYTES_MAX: Final = KEY_BYTES_MAX - NAMESPACE_KEY.size
_TIME = struct.Struct("<16xq")
_INTEGER = re.compile(rb"-?(0|[1-9][0-9]*)")
_INTEGER_TYPES = frozenset(
    prefix + name for prefix in ("", "U") for name in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
) | {"BIGNUM"}

Values = list[bytes | None]


class Row(NamedTuple):
    """What the model has of a profile: the JSON of each field, and its own time of update, None where it has none."""

    values: Values
    updated_us: int | None


class Fields:
    """The fields of one schema, as updates and the live layer see them. `number_of` has those that updates replace."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.shape = Shape([field.name for field in schema.fields], schema.first_audience)
        self.attributes_end = schema.run_of("attributes")[1]
        self.namespaces = schema.namespaces
        self.number_of = {
            field.name: number for number, field in enumerate(schema.fields) if number and field.section != "audiences"
        }
        self._taken = {*RESERVED, *(field.name for field in schema.fields)} - self.number_of.keys()

    def extended(self, names: Iterable[str]) -> Fields:
        """With these names, those of them that are free and as many as there may be, behind the attributes."""
        fields, end = self.schema.fields, self.attributes_end
        free = sorted({*names} - self.number_of.keys() - self._taken)
        more = tuple(Field(name, "attributes", "JSON") for name in free[: FIELDS_MAX - len(fields)])
        return Fields(replace(self.schema, fields=fields[:end] + more + fields[end:])) if more else self

    def widened(self, values: Values, before: Fields) -> Values:
        """The values of fields that were extended to these."""
        more: Values = [None] * (len(self.schema.fields) - len(values))
        return values[: before.attributes_end] + more + values[before.attributes_end :] if more else values

    def is_taken(self, name: str) -> bool:
        """Whether the model alone decides on the field of this name, or the answer itself has it."""
        return name in self._taken

    def is_identifier(self, name: str) -> bool:
        """Whether profiles are found by the field of this name."""
        return self.number_of.get(name, len(self.namespaces)) < len(self.namespaces)

    def laid_over(self, values: Values, said: Profile) -> Values:
        """The values of a row with what updates have said. What cannot be served, by now, is left out."""
        values = values.copy()
        number_of, identifiers = self.number_of, len(self.namespaces)
        for name, (_, value) in said.attributes.items():
            number = number_of.get(name)
            if number is not None and (number >= identifiers or identifier_text(value) is not None):
                values[number] = value
        return values

    def made(self, primary: bytes) -> Values:
        """The values of a profile that the model does not have."""
        return [primary_json(primary, self.schema.fields[0].type), *[None] * (len(self.schema.fields) - 1)]

    def index_key(self, number: int, value: bytes | None) -> bytes | None:
        """What stands in the index for the value of a namespace; None where nothing does."""
        if value is None:
            return None
        how = self.namespaces[number].normalize
        if how is None and value[:1] == b'"' and b"\\" not in value:
            normalized = value[1:-1]
        else:
            normalized = normalize(identifier_text(value) or "", how).encode()
        return NAMESPACE_KEY.pack(number) + normalized if 0 < len(normalized) <= IDENTIFIER_BYTES_MAX else None


def time_of(record: bytes | memoryview, refreshed_us: int) -> int | None:
    """A profile's own time of update; None for one whose record has the time of the refresh for want of another."""
    time_us = record_us(record, 0)
    return None if time_us == refreshed_us else time_us


def record_us(content: bytes | memoryview, offset: int) -> int:
    """The time in the header of the record that begins there."""
    (time_us,) = _TIME.unpack_from(content, offset)
    return int(time_us)


class Merged(NamedTuple):
    """A profile as it is served."""

    values: Values
    record: bytes


def merge(fields: Fields, primary: bytes, row: Row | None, said: Profile | None, refreshed_us: int) -> Merged:
    """What updates have said laid over a row of these fields, of which there is one at least.

    It was updated when the later of them was; a row without a time has that of the refresh, but not against an update.
    """
    if row is None:
        row = Row(fields.made(primary), None)
    if said is None:
        time_us = refreshed_us if row.updated_us is None else row.updated_us
        return Merged(row.values, fields.shape.join(primary, row.values, time_us))
    values = fields.laid_over(row.values, said)
    time_us = said.updated_us if row.updated_us is None else max(row.updated_us, said.updated_us)
    try:
        return Merged(values, fields.shape.join(primary, values, time_us))
    except RecordTooLarge:
        # Only a row that is almost too large itself comes to this; it is served as the model has it.
        return Merged(row.values, fields.shape.join(primary, row.values, time_us))


def identifier_text(value: bytes) -> str | None:
    """The text of an identifier, by which profiles are found; None for JSON that is neither text nor an integer."""
    if value[:1] == b'"':
        return str(json.loads(value)) if b"\\" in value else value[1:-1].decode()
    return value.decode() if _INTEGER.fullmatch(value) else None


def primary_json(primary: bytes, type: str) -> bytes:
    """A primary id as the model would serve it, whose column has this type."""
    if type in _INTEGER_TYPES and _INTEGER.fullmatch(primary) and primary != b"-0":
        return primary
    return json.dumps(primary.decode(), ensure_ascii=False).encode()
