from os import PathLike
from typing import Self, final

SEQUENCE_BYTES: int

@final
class Announcer:
    """The file by which the one writer of a live layer tells its readers how far it is; made where there is none."""

    def __new__(cls, path: str | PathLike[str]) -> Self: ...
    def announce(self, transaction: int) -> None:
        """Lets readers go on to a transaction that is durable. Before the next one begins, this one is announced."""

@final
class Live:
    """A live layer, open for reading beside its writer, without a lock. `names` is reader.LIVE_DATABASES.

    Raises LiveDamaged where the files are not what they should be, and OSError where they cannot be opened or mapped.
    """

    def __new__(
        cls, path: str | PathLike[str], sequence_path: str | PathLike[str], names: tuple[bytes, ...]
    ) -> Self: ...
    @property
    def is_empty(self) -> bool:
        """Whether no profile is live."""

    @property
    def transaction(self) -> int:
        """The last one that was announced."""

    def after(self, name: bytes, key: bytes) -> bytes | None:
        """The first key above this one, the first of all above an empty one; None where there is none."""

    def entries(self, name: bytes) -> int:
        """How many keys a database has."""

    def get(self, name: bytes, key: bytes) -> bytes | None:
        """A copy of a key's value, or None. Raises LiveDamaged."""
