from collections.abc import Iterable
from os import PathLike
from typing import Self, final

@final
class Tree:
    """The six databases of a snapshot's file, for look-ups that need no LMDB. The file stays mapped as long as this.

    `file_bytes` is what the manifest says, and `names` is reader.DATABASES. Raises SnapshotDamaged or
    FormatUnsupported where the file is not what it should be, and OSError where it cannot be opened or mapped.
    """

    def __new__(cls, path: str | PathLike[str], file_bytes: int, names: tuple[bytes, ...]) -> Self: ...
    def entries(self, name: bytes) -> int:
        """How many keys a database has, as the file says."""

    def get(self, name: bytes, key: bytes) -> bytes | None:
        """A copy of a key's value, or None. Raises SnapshotDamaged."""

    def after(self, name: bytes, key: bytes) -> bytes | None:
        """The first of a database's keys above this one (b"" is below all), or None. Raises SnapshotDamaged."""

    def count(self, name: bytes, entries: Iterable[tuple[bytes, bytes]]) -> int:
        """How many of these entries have a key that is in a database. Raises SnapshotDamaged."""
