"""Rows of a model in a sorted table: the refused ones listed and counted, the others read in bounded batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from edgeprofile import snapshot
from edgeprofile._record import Batch, Encoder
from edgeprofile.errors import RefreshRefused
from edgeprofile.loader.source import Source

BATCH_ROWS_FIRST, BATCH_ROWS_MAX = 2_048, 16_384
SEGMENT_BYTES_AIM = 16 * 1024 * 1024
REJECTS_LISTED = 100

# Stage, how far (rows, or a share of 1), and of how many (0: not known).
Progress = Callable[[str, float, float], None]


class Hash(Protocol):
    """What takes in all that is served."""

    def update(self, content: bytes, /) -> None: ...


class Rows(NamedTuple):
    """Where a model's rows are: `table`, whose `rowid` numbers them, and `refused`, of (row, reason).

    `listed` is SQL over the table, a struct of what is said of a refused row beside its reason, but where that is one
    of snapshot.UNLISTED. Refusals for a reason in snapshot.WITHOUT_PROFILE are counted, but are no fault of the
    model's.
    """

    called: str
    table: str
    refused: str
    listed: str


PROFILES = Rows("rows", "temp.rows", "temp.refused", "{'id': key}")


def check_refused(
    source: Source, folder: Path, all_rows: Sequence[Rows], count: int, rejects_max: float
) -> dict[str, int]:
    """Lists the refused rows of these models in `folder`; counts those of the last, which has `count`, by reason.

    Raises RefreshRefused where they are too many.
    """
    rows = all_rows[-1]
    with (folder / snapshot.REJECTS).open("w", encoding="utf-8", errors="backslashreplace") as file:
        for each in all_rows:
            for line in _first_of_each_reason(source, each):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    rejected: dict[str, int] = dict(
        source.ask(f"SELECT reason, count(*) FROM {rows.refused} GROUP BY reason ORDER BY reason")
    )
    faults = snapshot.faults(rejected)
    if faults > rejects_max * count:
        counts = ", ".join(
            f"{reason}: {number}" for reason, number in rejected.items() if reason not in snapshot.WITHOUT_PROFILE
        )
        raise RefreshRefused(
            f"{faults} of {count} {rows.called} were refused ({counts}), "
            f"more than rejects_max allows ({rejects_max:.2%})",
            outcome="too_many_rejects",
            hint=f"mend the model, or raise rejects_max; row by row: {folder.parent.parent / snapshot.REJECTS}",
        )
    return rejected


def _first_of_each_reason(source: Source, rows: Rows) -> Iterator[dict[str, str | None]]:
    listed = source.ask(
        f"""
        SELECT {rows.listed}, reason FROM (
            SELECT row, reason, row_number() OVER (PARTITION BY reason ORDER BY row) AS place FROM {rows.refused}
        ) JOIN {rows.table} AS made ON made.rowid = row
        WHERE place <= {REJECTS_LISTED} AND reason NOT IN {snapshot.UNLISTED} ORDER BY reason, row
        """
    )
    for members, reason in listed:
        yield members | {"reason": reason}


def encoded(
    source: Source, rows: Rows, columns: str, count: int, encoder: Encoder, segment: Callable[[], int]
) -> Iterator[tuple[Batch, int]]:
    """The rows as batches of records, with the number of rows that are behind; `segment` numbers the next segment.

    What the encoder refuses is added to the refused rows.
    """
    first, batch_rows = 0, BATCH_ROWS_FIRST
    while first < count:
        last = min(first + batch_rows, count) - 1
        within = f"BETWEEN {first} AND {last}"
        skipped = {row for (row,) in source.ask(f"SELECT row FROM {rows.refused} WHERE row {within}")}
        # In the order of the table, which DuckDB keeps where a query does not ask for another.
        stream = source.stream(f"SELECT {columns} FROM {rows.table} WHERE rowid {within}")
        batch = encoder.encode(stream, skipped, first, segment())
        if batch.refused:
            listed = ", ".join(f"({row}, '{reason}')" for row, reason in batch.refused)
            source.run(f"INSERT INTO {rows.refused} VALUES {listed}")
        first = last + 1
        yield batch, first
        # A segment near its aim: few rows where they are wide, so that memory stays bounded by bytes.
        fitting = batch_rows * SEGMENT_BYTES_AIM // max(len(batch.segment), 1)
        batch_rows = max(1, min(2 * batch_rows, fitting, BATCH_ROWS_MAX))
