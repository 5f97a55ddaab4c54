"""From the model's rows to a file of records: sort, refuse, encode, index.

The model runs once, into a table sorted by primary id in the binary order of its text. Everything after that
reads the table, in bounded batches, so that memory does not grow with the number of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeprofile import record, snapshot
from edgeprofile._identifiers import IndexBatches
from edgeprofile._record import Encoder
from edgeprofile.loader.events import BuiltEvents, build_events
from edgeprofile.loader.evictions import Kept
from edgeprofile.loader.fold import Fold, Laid
from edgeprofile.loader.model import EventsPlan, Plan
from edgeprofile.loader.rows import PROFILES, Hash, Progress, check_refused, encoded
from edgeprofile.loader.source import Source
from edgeprofile.loader.writer import GROUP_BYTES_MAX, Writer
from edgeprofile.reader import KEY_BYTES_MAX, NAMESPACE_KEY

VALUE_BYTES_MAX = KEY_BYTES_MAX - NAMESPACE_KEY.size
AHEAD_US_MAX = 86_400_000_000


class Built(NamedTuple):
    """What a build gave: see snapshot.Manifest, which most of it goes into. Without a model of events, none of them."""

    rows: int
    profiles: int
    identifiers: dict[str, int]
    segments: int
    record_bytes: int
    pages_bytes: int
    content: str
    rejected: dict[str, int]
    events: BuiltEvents | None
    updates: int
    made: int
    watermark_us: int | None


class Models(NamedTuple):
    """What a workspace's refresh runs: the SQL and the plan of its profiles and, where it has them, of its events."""

    sql: str
    plan: Plan
    events_sql: str | None
    events_plan: EventsPlan | None

    @property
    def fingerprint(self) -> str:
        """What tells these models from others."""
        return ".".join(plan.fingerprint for plan in (self.plan, self.events_plan) if plan is not None)


def build(
    source: Source,
    models: Models,
    folder: Path,
    now_us: int,
    rejects_max: float,
    progress: Progress,
    kept: Kept,
    fold: Fold,
) -> Built:
    """Builds profiles.mdb and rejects.ndjson in `folder`, of the models' rows and what `fold` lays over them. `kept` is
    told of every profile.

    Rows without a time of update are given `now_us`. Raises RefreshRefused where more than the share `rejects_max` of
    the rows, or of the events, is refused.
    """
    plan = models.plan
    with source.reporting(partial(progress, "model")):
        rows = materialise(source, models.sql, plan)
    fold.load_erased(source)
    refuse(source, plan, fold.erased("key"))
    check_refused(source, folder, [PROFILES], rows, rejects_max)
    content = hashlib.sha256()
    with Writer(folder / snapshot.PROFILES) as writer:
        profiles, record_bytes = _encode(source, plan, writer, rows, now_us, content, progress, kept, fold)
        rejected = check_refused(source, folder, [PROFILES], rows, rejects_max)
        fold.load_overlaid(source)
        identifiers = _index(source, plan, writer, progress, fold)
        events = build_events(
            source, models.events_sql, models.events_plan, writer, folder, rejects_max, content, progress, fold
        )
        content.update(fold.content.digest())
        return Built(
            rows,
            profiles,
            identifiers,
            writer.segments,
            record_bytes,
            writer.used_bytes(),
            content.hexdigest(),
            rejected,
            events,
            fold.updates,
            fold.made,
            watermark_us(source, now_us),
        )


def materialise(source: Source, sql: str, plan: Plan) -> int:
    """Runs the model; returns how many rows it has. Of those with one primary id, the newest comes first."""
    updated = plan.updated or "CAST(NULL AS TIMESTAMP)"
    columns = [f"{plan.key} AS key", f"{updated} AS updated", f"{plan.deleted} AS deleted"]
    columns += [f"{column} AS f{number}" for number, column in enumerate(plan.columns)]
    source.materialise(
        sql,
        lambda rows: (
            f"CREATE TEMP TABLE rows AS SELECT {', '.join(columns)} FROM {rows} ORDER BY key, updated DESC NULLS LAST"
        ),
    )
    return int(source.ask("SELECT count(*) FROM temp.rows")[0][0])


def watermark_us(source: Source, now_us: int) -> int | None:
    """The latest time of update, by the warehouse's clock; None where no row has one.

    Ours only tells a time that is a fault: one so far ahead would hide from delta refreshes all that is before it.
    """
    sane = f"updated < make_timestamp({now_us + AHEAD_US_MAX}) AND isfinite(updated)"
    ((found,),) = source.ask(f"SELECT epoch_us(max(updated)) FROM temp.rows WHERE {sane}")
    return None if found is None else int(found)


def refuse(source: Source, plan: Plan, erased: str) -> None:
    """Fills the table `refused` with the rows that cannot be served, each with its first reason.

    `erased` is SQL that is true where `key` is an erased profile's.
    """
    if any(namespace.normalize == "lower" for namespace in plan.schema.namespaces):
        _define_lowered(source)
    too_long = [f"strlen({value}) > {VALUE_BYTES_MAX}" for _, _, value in _namespaces(plan)]
    source.run(
        f"""
        CREATE TEMP TABLE refused AS
        SELECT row, reason FROM (
            SELECT rowid AS row, CASE
                WHEN key IS NULL THEN 'null_id'
                WHEN key = '' THEN 'empty_id'
                WHEN strlen(key) > {KEY_BYTES_MAX} THEN 'id_too_long'
                WHEN {erased} THEN '{snapshot.ERASED}'
                WHEN {" OR ".join(too_long) or "false"} THEN 'identifier_too_long'
            END AS reason
            FROM temp.rows
        ) WHERE reason IS NOT NULL
        """
    )
    _refuse_duplicates(source)
    # Only now, as of the rows with one id the newest says whether there is such a profile.
    source.run(
        f"INSERT INTO temp.refused SELECT rowid, '{snapshot.DELETED}' FROM temp.rows "
        "WHERE deleted AND rowid NOT IN (SELECT row FROM temp.refused)"
    )
    for _, namespace, value in _namespaces(plan):
        if namespace.unique:
            _refuse_claimed_twice(source, value)


def _refuse_duplicates(source: Source) -> None:
    """Of the rows with one id, the first of those that are good so far stays: the newest. They stand side by side."""
    among, order = "", ""
    if source.ask("SELECT count(*) FROM temp.refused") != [(0,)]:
        # What filters may disturb the order of the table, which is for nothing where there is no filter.
        among, order = "WHERE rowid NOT IN (SELECT row FROM temp.refused)", "ORDER BY rowid"
    source.run(
        f"""
        INSERT INTO temp.refused
        SELECT row, 'duplicate_id' FROM (
            SELECT rowid AS row, key, lag(key) OVER ({order}) AS key_before FROM temp.rows {among}
        ) WHERE key = key_before
        """
    )


def _define_lowered(source: Source) -> None:
    """Makes `lowered` in SQL of record.lower_table. DuckDB lowers each character by itself, as the table does, but for
    a few; translate(), which is a thousand times slower than lower(), is left to the texts that have one of these."""
    table = record.lower_table()
    upper, lower = "".join(map(chr, table)), "".join(table.values())
    asked = source.ask(
        "SELECT code, lower(chr(code::INTEGER)) FROM range(128, 131072) AS every(code) "
        "WHERE code NOT BETWEEN 55296 AND 57343"  # which are halves of characters
    )
    others = "".join(chr(code) for code, low in asked if low != table.get(code, chr(code)))
    source.run(
        f"CREATE TEMP MACRO lowered(v) AS CASE WHEN regexp_matches(v, '[{others or upper}]') "
        f"THEN translate(v, '{upper}', '{lower}') ELSE lower(v) END"
    )


def _namespaces(plan: Plan) -> list[tuple[int, record.Namespace, str]]:
    """Number, namespace and the SQL of its value, for all but the primary one, which is the key itself."""
    found = []
    for number, namespace in enumerate(plan.schema.namespaces):
        value = f"(CAST(f{number} AS VARCHAR) COLLATE C)"
        found.append((number, namespace, f"lowered({value})" if namespace.normalize == "lower" else value))
    return found[1:]


def _refuse_claimed_twice(source: Source, value: str) -> None:
    """Of the rows that claim one value of a unique identifier, the newest stays; of equals, the first by id.

    Found by hashes of the values, which take far less memory; two values that share one are told apart in the end.
    """
    source.run(
        f"""
        INSERT INTO temp.refused
        WITH claims AS (
            SELECT rowid AS row, key, updated, {value} AS value FROM temp.rows
            WHERE rowid NOT IN (SELECT row FROM temp.refused) AND {value} <> ''
        ), contested AS (SELECT hash(value) FROM claims GROUP BY hash(value) HAVING count(*) > 1)
        SELECT row, 'duplicate_identifier' FROM (
            SELECT row, row_number() OVER (PARTITION BY value ORDER BY updated DESC NULLS LAST, key) AS place
            FROM claims WHERE hash(value) IN (FROM contested)
        ) WHERE place > 1
        """
    )


def encoder_of(plan: Plan, now_us: int) -> tuple[Encoder, str]:
    """What makes records of a plan's rows, and the columns that it is given of them."""
    has_updated = plan.updated is not None
    types = [*plan.types, record.Type(record.Kind.TEXT)]
    types += [record.Type(record.Kind.TIMESTAMP)] if has_updated else []
    names = [field.name for field in plan.schema.fields]
    columns = ", ".join([*(f"f{n}" for n in range(len(names))), "coalesce(key, '')", *["updated"] * has_updated])
    return Encoder(names, types, plan.schema.first_audience, has_updated, now_us), columns


def _encode(
    source: Source,
    plan: Plan,
    writer: Writer,
    rows: int,
    now_us: int,
    content: Hash,
    progress: Progress,
    kept: Kept,
    fold: Fold,
) -> tuple[int, int]:
    """Writes the records; returns the number of profiles and the bytes of their records."""
    encoder, columns = encoder_of(plan, now_us)
    content.update(msgspec.json.encode(plan.schema))
    profiles = record_bytes = 0

    def number() -> int:
        return writer.segments

    def write(pieces: Iterator[Laid]) -> None:
        nonlocal profiles, record_bytes
        for laid in pieces:
            writer.add_segment(*laid)
            kept.add(laid.entries)
            profiles += len(laid.entries)
            record_bytes += len(laid.segment)

    fold.begin(now_us)
    for batch, done in encoded(source, PROFILES, columns, rows, encoder, number):
        content.update(batch.contents)
        write(fold.lay(batch, number))
        progress("records", done, rows)
    write(fold.rest(number))
    return profiles, record_bytes


def _index(source: Source, plan: Plan, writer: Writer, progress: Progress, fold: Fold) -> dict[str, int]:
    """Writes the identifiers; returns how many values each namespace has."""
    kept = "SELECT * FROM temp.rows WHERE rowid NOT IN (SELECT row FROM temp.refused)"
    counts: dict[str, int] = {}
    for number, namespace, value in _namespaces(plan):
        progress(f"identifiers: {namespace.name}", 0, 0)
        held = f"SELECT {value} AS value, key, updated FROM ({kept})"
        if fold.is_laid:
            # What an update said counts for the value, and when it did for the order.
            held = (
                f"SELECT coalesce(v{number}, value) AS value, key, greatest(updated, said_at) AS updated "
                f"FROM ({held}) FULL JOIN temp.overlaid USING (key)"
            )
        stream = source.stream(
            f"SELECT value, key FROM ({held}) WHERE value <> '' ORDER BY value, updated DESC NULLS LAST, key"
        )
        counts[namespace.name] = 0
        for entries in IndexBatches(stream, NAMESPACE_KEY.pack(number), GROUP_BYTES_MAX):
            writer.add_identifiers(entries)
            counts[namespace.name] += len(entries)
    return counts
