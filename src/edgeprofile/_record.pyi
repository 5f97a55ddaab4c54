from collections.abc import Collection, Sequence
from typing import Final, Self, final

from typing_extensions import Buffer

from edgeprofile.record import Type

REASONS: Final[dict[int, str]]

@final
class Batch:
    """What one stream became, or a part of that with more rows in it.

    `segment` is the records, one behind the other; `entries` has (id, `reader.PLACE`) for each, in the order of
    rows; `contents` has 8 bytes for each that change with all but the time of the refresh; `hashes` has 4 bytes for
    each, of the field that is hashed, if one is; `refused` has (number of the row, reason).
    """

    def __new__(
        cls,
        segment: bytes,
        contents: bytes,
        hashes: bytes,
        entries: list[tuple[bytes, bytes]],
        refused: list[tuple[int, str]],
    ) -> Self: ...
    @property
    def segment(self) -> bytes: ...
    @property
    def contents(self) -> bytes: ...
    @property
    def hashes(self) -> bytes: ...
    @property
    def entries(self) -> list[tuple[bytes, bytes]]: ...
    @property
    def refused(self) -> list[tuple[int, str]]: ...

@final
class Encoder:
    """Turns rows into records. `types` has one for each field, for the id, and for the time of update if there is one.

    The fields from `first_nested` on stand in an object called `nested`, and `_updated_at` behind it if `has_tail`.
    `hashed` is the number of the field of text whose hash (`history.name_hash`) is wanted, or -1.
    Raises ValueError for types that it cannot encode.
    """

    def __new__(
        cls,
        names: list[str],
        types: list[Type],
        first_nested: int,
        has_updated: bool,
        updated_us: int,
        nested: str = "_audiences",
        has_tail: bool = True,
        hashed: int = -1,
    ) -> Self: ...
    def encode(self, stream: object, skipped: Collection[int] | None, first_row: int, number: int) -> Batch:
        """Encodes a whole Arrow stream (a PyCapsule), whose rows are numbered from `first_row`, as segment `number`.

        Rows whose number is in `skipped` are left out. Raises SourceError where the stream breaks off or does not
        have the columns that were declared.
        """

def check_of(seed: int, content: Buffer) -> int:
    """`record.checksum`, compiled."""

def check(record: Buffer, primary: bytes) -> None:
    """Checks the record that was found under a primary id. Raises RecordDamaged or FormatUnsupported."""

def project(
    record: Buffer, primary: bytes, runs: Sequence[tuple[int, int]], first_audience: int, with_audiences: bool
) -> bytes:
    """`record.Record(...).project(...)`, compiled. ValueError for runs that do not ascend or that overlap."""
