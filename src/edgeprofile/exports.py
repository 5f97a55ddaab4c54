"""Exports of profiles on disk: where the file of each lies, and what is known of it.

    <home>/exports/<id>.json        what was asked for, and how far it is
    <home>/exports/<id>.ndjson.gz   the profiles, once all are there
    <home>/exports/<id>.*           what is needed while they are written

The loader writes, workers read. An export is one workspace's, whose folder it lies in, and nobody guesses its id.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from edgeprofile import snapshot

FOLDER: Final = "exports"
KEPT_SECONDS: Final = 24 * 3_600
KEPT_MAX: Final = 20
"""Of each workspace's, whatever became of them."""
ATTRIBUTES_MAX: Final = 500
NAME_CHARS_MAX: Final = 255
DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
ID = re.compile(r"export_[0-9a-z]{32}")

Status = Literal["PENDING", "RUNNING", "SUCCESS", "FAILURE"]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """An export. Times are seconds since 1970.

    `attributes` are names as they are asked for; of `identifiers`, `custom_id` is what a profile has in `namespace`.
    """

    id: str
    status: Status
    attributes: tuple[str, ...]
    identifiers: tuple[str, ...]
    namespace: str | None
    requested_at: float
    started_at: float | None = None
    finished_at: float | None = None
    profiles: int = 0
    file_bytes: int = 0

    @property
    def is_over(self) -> bool:
        return self.status in ("SUCCESS", "FAILURE")


def new_id() -> str:
    """An id that nobody guesses."""
    return "export_" + "".join(secrets.choice(DIGITS) for _ in range(32))


def path_of(home: Path, id: str, suffix: str) -> Path:
    """One of an export's files."""
    return home / FOLDER / f"{id}.{suffix}"


def file_of(home: Path, id: str) -> Path:
    """Where an export's profiles are."""
    return path_of(home, id, "ndjson.gz")


def find(home: Path, id: str, now_s: float) -> Export | None:
    """An export by its id, unless it is past its time."""
    export = _read(path_of(home, id, "json")) if ID.fullmatch(id) else None
    return None if export is None or is_past(export, now_s) else export


def is_past(export: Export, now_s: float) -> bool:
    """Whether it is to go: a day after it ended, or, if nobody has got to it, after it was asked for."""
    return now_s > (export.finished_at or export.requested_at) + KEPT_SECONDS


def listing(home: Path) -> list[Export]:
    """All of a workspace's, the first asked for first."""
    found = [_read(path) for path in _files(home) if path.suffix == ".json"]
    return sorted((export for export in found if export), key=lambda export: export.requested_at)


def write(home: Path, export: Export) -> None:
    """Keeps what is known of an export."""
    snapshot.make_folder(home / FOLDER)
    path = path_of(home, export.id, "json")
    temporary = path.with_suffix(".new")
    temporary.write_bytes(msgspec.json.encode(export))
    temporary.chmod(0o600)
    temporary.rename(path)


def clear(home: Path, id: str) -> None:
    """Removes what was needed while an export was written."""
    for path in _files(home):
        if path.name.startswith(f"{id}.") and path not in (file_of(home, id), path_of(home, id, "json")):
            path.unlink(missing_ok=True)


def prune(home: Path, now_s: float) -> None:
    """Removes the exports whose time is past, and what no export knows of."""
    kept = {export.id for export in listing(home) if not is_past(export, now_s)}
    for path in _files(home):
        if path.name.partition(".")[0] not in kept:
            path.unlink(missing_ok=True)


def _files(home: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(home / FOLDER):
            yield home / FOLDER / name


def _read(path: Path) -> Export | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Export)
    except (OSError, msgspec.MsgspecError):
        return None
