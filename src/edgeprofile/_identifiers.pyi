from typing import Self, final

from typing_extensions import Buffer

@final
class IndexBatches:
    """Iterates over lists of (prefix + value, entry), made of a stream of (value, primary id) sorted by value.

    An entry is as `record.index_entry` has it; ids past `group_bytes_max` are left out. Raises SourceError.
    """

    def __new__(cls, stream: object, prefix: bytes, group_bytes_max: int) -> Self: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> list[tuple[bytes, bytes]]: ...

def ids_of(key: bytes, entry: Buffer) -> list[bytes]:
    """The primary ids in an entry of the index that was found under `key`. Raises RecordDamaged."""
