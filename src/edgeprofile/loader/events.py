"""From the rows of the events' model to histories: join to the kept profiles, sort, refuse, encode, cut into blocks.

As with the profiles, the model runs once, into a sorted table that is then read in bounded batches.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeprofile._history import HistoryBuilder
from edgeprofile._record import Encoder
from edgeprofile.loader.model import EventsPlan
from edgeprofile.loader.rows import PROFILES, Hash, Progress, Rows, check_refused, encoded
from edgeprofile.loader.source import Source
from edgeprofile.loader.writer import Writer
from edgeprofile.record import Kind, Type
from edgeprofile.snapshot import WITHOUT_PROFILE


class BuiltEvents(NamedTuple):
    """What the events' model gave: see snapshot.Manifest."""

    rows: int
    events: int
    histories: int
    segments: int
    events_bytes: int
    rejected: dict[str, int]

    @property
    def refused(self) -> int:
        """How many rows cannot be served whoever's they are."""
        return sum(count for reason, count in self.rejected.items() if reason not in WITHOUT_PROFILE)


NO_EVENTS = BuiltEvents(0, 0, 0, 0, 0, {})


def build_events(
    source: Source,
    sql: str,
    plan: EventsPlan,
    writer: Writer,
    folder: Path,
    rejects_max: float,
    content: Hash,
    progress: Progress,
) -> BuiltEvents:
    """Adds the events of the profiles that were kept. Raises RefreshRefused where too many are refused."""
    made = Rows("events", "temp.events", "temp.refused_events", _listed(plan), WITHOUT_PROFILE)
    progress("events: model", 0, 0)
    with source.reporting(partial(progress, "events: model")):
        rows = _materialise(source, sql, plan)
    _refuse(source, plan)
    check_refused(source, folder, [PROFILES, made], rows, rejects_max)
    content.update(msgspec.json.encode(plan.schema))
    events, histories, events_bytes = _encode(source, plan, made, writer, rows, content, progress)
    rejected = check_refused(source, folder, [PROFILES, made], rows, rejects_max)
    return BuiltEvents(rows, events, histories, writer.event_segments, events_bytes, rejected)


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


def _refuse(source: Source, plan: EventsPlan) -> None:
    """Fills the table `refused_events` with the rows that cannot be served, each with its first reason."""
    name = f"f{int(plan.schema.has_id)}"
    source.run(
        f"""
        CREATE TEMP TABLE refused_events AS
        WITH profiles AS (
            SELECT key, bool_or(rowid NOT IN (SELECT row FROM temp.refused)) AS kept FROM temp.rows GROUP BY key
        )
        SELECT row, reason FROM (
            SELECT events.rowid AS row, CASE
                WHEN events.key IS NULL THEN 'null_profile'
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
    source: Source, plan: EventsPlan, made: Rows, writer: Writer, rows: int, content: Hash, progress: Progress
) -> tuple[int, int, int]:
    """Writes the events; returns how many they are, of how many profiles, and their bytes."""
    schema = plan.schema
    types = [*plan.types, Type(Kind.TEXT), Type(Kind.TIMESTAMP)]
    encoder = Encoder(schema.names, types, schema.first_param, True, 0, "params", False, int(schema.has_id))
    columns = ", ".join([*(f"f{n}" for n in range(len(schema.names))), "coalesce(key, '')", "moment"])
    builder = HistoryBuilder()
    events = histories = events_bytes = 0

    def write(segment: bytes, directories: list[tuple[bytes, bytes]]) -> None:
        nonlocal histories, events_bytes
        writer.add_events(segment, directories)
        histories += len(directories)
        events_bytes += len(segment)

    for batch, done in encoded(source, made, columns, rows, encoder, lambda: 0):
        write(*builder.add(batch, writer.event_segments))
        content.update(batch.contents)
        events += len(batch.entries)
        progress("events", done, rows)
    write(*builder.finish(writer.event_segments))
    return events, histories, events_bytes
