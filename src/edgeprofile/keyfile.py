"""A small file of keys in the data folder: for its owner only, changed under a lock, replaced whole, and checked."""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from edgeprofile.errors import KeyFileError

FORMAT = 1

Row = TypeVar("Row", bound=msgspec.Struct)
Stamp = tuple[int, int, int]
"""`(st_mtime_ns, st_ino, st_size)` of the file; every replacement changes it."""


class _Content(msgspec.Struct):
    """The file: a CRC-32 of the bytes of `keys` tells a flipped bit that still reads as a key from a whole file.

    Only `format` must be there, so that a format to come is named as such and not taken for damage.
    """

    format: int
    crc32: int | None = None
    keys: msgspec.Raw = msgspec.Raw()


class KeyFile(Generic[Row]):
    """The file `name`.json, which holds `rows`, a list of Structs. `hint` says what to do about a damaged one."""

    def __init__(self, name: str, rows: type[list[Row]], *, hint: str) -> None:
        self.name = f"{name}.json"
        self.lock_name = f"{name}.lock"
        self.temp_name = f"{name}.json.tmp"
        self._decoder = msgspec.json.Decoder(rows)
        self._hint = hint

    def stamp(self, data_dir: Path) -> Stamp | None:
        """The stamp of the file as it is now, None if there is none: a watcher reads it when that has changed."""
        path = data_dir / self.name
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None
        return status.st_mtime_ns, status.st_ino, status.st_size

    def read(self, data_dir: Path) -> list[Row]:
        """The rows; of a missing file, none. Raises KeyFileError if it is damaged or unreadable."""
        path = data_dir / self.name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None
        return self._decode(content, path)

    @contextmanager
    def locked(self, data_dir: Path) -> Iterator[None]:
        """Own the file from reading to replacing, so that of two changes at once neither is lost."""
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The lock is a file of its own: the one with the keys is another after each change.
            descriptor = os.open(data_dir / self.lock_name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)
        except OSError as error:
            raise KeyFileError(f"{data_dir / self.name}: cannot be written: {error.strerror}") from None

    def write(self, data_dir: Path, rows: Iterable[Row]) -> None:
        """Replace the file, under the lock: a crash at any point leaves the old or the new one whole."""
        encoded = msgspec.json.encode(list(rows))
        content = msgspec.json.encode(_Content(FORMAT, zlib.crc32(encoded), msgspec.Raw(encoded)))
        temp = data_dir / self.temp_name
        temp.unlink(missing_ok=True)  # A writer that was killed may have left one.
        with open(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temp.replace(data_dir / self.name)
        folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _decode(self, content: bytes, path: Path) -> list[Row]:
        try:
            file = msgspec.json.decode(content, type=_Content)
            if file.format != FORMAT:
                raise KeyFileError(f"{path}: has format {file.format}, this build reads format {FORMAT}")
            if zlib.crc32(file.keys) == file.crc32:
                return self._decoder.decode(file.keys)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass  # The decoder's own words may quote the file.
        raise KeyFileError(f"{path}: is damaged", hint=self._hint)
