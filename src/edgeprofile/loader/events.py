"""From the rows of the events' model to histories: join to the kept profiles, sort, refuse, encode, cut into blocks.

As with the profiles, the model runs once, into a sorted table that is then read in bounded batches. The events of
updates are put between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeprofile._history import HistoryBuilder
from edgeprofile._record import Batch, Encoder
from edgeprofile.history import WITHOUT_MODEL, EventsSchema
from edgeprofile.loader.fold import Fold
from edgeprofile.loader.folded_events import FoldedEvents
from edgeprofile.loader.model import EventsPlan
from edgeprofile.loader.rows import PROFILES, Hash, Progress, Rows, check_refused, encoded
from edgeprofile.loader.source import Source
from edgeprofile.loader.writer import Writer
from edgeprofile.record import Kind, Type
from edgeprofile.snapshot import ERASED, faults


class BuiltEvents(NamedTuple):
    """What the events' model and updates gave: see snapshot.Manifest."""

    schema: EventsSchema | None
    rows: int
    events: int
    histories: int
    segments: int
    events_bytes: int
    rejected: dict[str, int]

    @property
    def refused(self) -> int:
        """How many rows cannot be served whoever's they are."""
        return faults(self.rejected)


def build_events(
    source: Source,
    sql: str | None,
    plan: EventsPlan | None,
    writer: Writer,
    folder: Path,
    rejects_max: float,
    content: Hash,
    progress: Progress,
    fold: Fold,
) -> BuiltEvents | None:
    """Adds the events of the profiles that were kept; None where there is no model of them, and no update has any.

    Raises RefreshRefused where too many are refused.
    """
    if sql is None or plan is None:
        if not fold.has_events:
            return None
        folded = FoldedEvents(fold, WITHOUT_MODEL)
        return BuiltEvents(folded.schema, 0, *_write(folded.alone(), writer), {})
    with source.running("the events' model"):
        made = Rows("events", "temp.events", "temp.refused_events", _listed(plan))
        progress("events: model", 0, 0)
        with source.reporting(partial(progress, "events: model")):
            rows = _materialise(source, sql, plan)
        _refuse(source, plan, fold)
        check_refused(source, folder, [PROFILES, made], rows, rejects_max)
        folded = FoldedEvents(fold, plan.schema)
        content.update(msgspec.json.encode(plan.schema))
        batches = folded.among(_encode(source, plan, made, rows, content, progress))
        written = _write(batches, writer)
        rejected = check_refused(source, folder, [PROFILES, made], rows, rejects_max)
        return BuiltEvents(folded.schema, rows, *written, rejected)


def _listed(plan: EventsPlan) -> str:
    return f"{{'id': key, 'event': {'CAST(f0 AS VARCHAR)' if plan.schema.has_id else 'CAST(NULL AS VARCHAR)'}}}"


def _materialise(source: Source, sql: str, plan: EventsPlan) -> int:
    """Runs the model, in the order of history.py."""
    fields = "".join(f", {column} AS f{number}" for number, column in enumerate(plan.columns))
    place, last = ", row_number() OVER () AS place", "place"
    if plan.schema.has_id:
        # To number the rows takes one thread, which is too dear where ids leave next to nothing to be ordered. They
        # have the binary order, whatever the collation of their column.
        place, last = ", NULL AS place", "CAST(f0 AS VARCHAR) COLLATE C NULLS FIRST, f1"
    source.materialise(
        sql,
        lambda rows: (
            "CREATE TEMP TABLE events AS SELECT * EXCLUDE (place) FROM ("
            f"SELECT {plan.key} AS key, {plan.time} AS moment{fields}{place} FROM {rows}"
            f") ORDER BY key, moment DESC, {last}"
        ),
    )
    return int(source.ask("SELECT count(*) FROM temp.events")[0][0])


def _refuse(source: Source, plan: EventsPlan, fold: Fold) -> None:
    """Fills the table `refused_events` with the rows that cannot be served, each with its first reason."""
    name = f"f{int(plan.schema.has_id)}"
    made = "UNION ALL SELECT key, true FROM temp.overlaid" if fold.is_laid else ""
    source.run(
        f"""
        CREATE TEMP TABLE refused_events AS
        WITH profiles AS (
            SELECT key, bool_or(kept) AS kept FROM (
                SELECT key, rowid NOT IN (SELECT row FROM temp.refused) AS kept FROM temp.rows {made}
            ) GROUP BY key
        )
        SELECT row, reason FROM (
            SELECT events.rowid AS row, CASE
                WHEN events.key IS NULL THEN 'null_profile'
                WHEN {fold.erased("events.key")} THEN '{ERASED}'
                WHEN {name} IS NULL THEN 'null_name'
                WHEN {name} = '' THEN 'empty_name'
                WHEN moment IS NULL THEN 'null_time'
                WHEN moment < TIMESTAMP '0001-01-01' OR moment >= TIMESTAMP '10000-01-01' THEN 'time_out_of_range'
                WHEN kept IS NULL THEN 'unknown_profile'
                WHEN NOT kept THEN 'refused_profile'
            END AS reason
            FROM temp.events LEFT JOIN profiles ON profiles.key = events.key
        ) WHERE reason IS NOT NULL
        """
    )


def _encode(
    source: Source, plan: EventsPlan, made: Rows, rows: int, content: Hash, progress: Progress
) -> Iterator[Batch]:
    """The events of the model."""
    schema = plan.schema
    types = [*plan.types, Type(Kind.TEXT), Type(Kind.TIMESTAMP)]
    encoder = Encoder(schema.names, types, schema.first_param, True, 0, "params", False, int(schema.has_id))
    columns = ", ".join([*(f"f{n}" for n in range(len(schema.names))), "coalesce(key, '')", "moment"])
    for batch, done in encoded(source, made, columns, rows, encoder, lambda: 0):
        content.update(batch.contents)
        yield batch
        progress("events", done, rows)


def _write(batches: Iterator[Batch], writer: Writer) -> tuple[int, int, int, int]:
    """Writes the events; returns how many they are, of how many profiles, in how many segments, and their bytes."""
    builder = HistoryBuilder()
    events = histories = events_bytes = 0

    def write(segment: bytes, directories: list[tuple[bytes, bytes]]) -> None:
        nonlocal histories, events_bytes
        writer.add_events(segment, directories)
        histories += len(directories)
        events_bytes += len(segment)

    for batch in batches:
        write(*builder.add(batch, writer.event_segments))
        events += len(batch.entries)
    write(*builder.finish(writer.event_segments))
    return events, histories, writer.event_segments, events_bytes
