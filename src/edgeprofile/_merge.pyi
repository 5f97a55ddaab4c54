from collections.abc import Sequence
from typing import Self, final

from typing_extensions import Buffer

@final
class Shape:
    """The fields of records of one schema, by name; those from `first_nested` on are audiences or parameters.

    An event has no time of update behind its fields: its time is one of them.
    """

    def __new__(cls, names: Sequence[str], first_nested: int, is_event: bool = False) -> Self: ...
    def split(self, record: Buffer, primary: bytes) -> list[bytes | None]:
        """The JSON of each field of a record that was found under a primary id; None where it lacks one.

        A record of fewer fields has the first ones. Raises RecordDamaged and FormatUnsupported.
        """

    def join(self, primary: bytes, values: Sequence[bytes | None], time_us: int) -> bytes:
        """The record of these fields, each valid and compact JSON. `time_us` is in microseconds since 1970.

        Raises RecordTooLarge past 16 MiB.
        """
