"""From the model's rows to a file of records: sort, refuse, encode, index.

The model runs once, into a table sorted by primary id in the binary order of its text. Everything after that
reads the table, in bounded batches, so that memory does not grow with the number of rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeprofile import record, snapshot
from edgeprofile._identifiers import IndexBatches
from edgeprofile._record import Encoder
from edgeprofile.errors import RefreshRefused
from edgeprofile.loader.model import Plan
from edgeprofile.loader.source import Source
from edgeprofile.loader.writer import Writer
from edgeprofile.reader import KEY_BYTES_MAX, NAMESPACE_KEY

BATCH_ROWS_FIRST, BATCH_ROWS_MAX = 2_048, 16_384
SEGMENT_BYTES_AIM = 16 * 1024 * 1024
VALUE_BYTES_MAX = KEY_BYTES_MAX - NAMESPACE_KEY.size
# A million bytes of primary ids are some 50,000 profiles that share one identifier; no caller reads more.
GROUP_BYTES_MAX = 1_000_000
REJECTS_LISTED = 100

# Stage, how far (rows, or a share of 1), and of how many (0: not known).
Progress = Callable[[str, float, float], None]


class Built(NamedTuple):
    """What a build gave: see snapshot.Manifest, which most of it goes into."""

    rows: int
    profiles: int
    identifiers: dict[str, int]
    segments: int
    record_bytes: int
    pages_bytes: int
    content: str
    rejected: dict[str, int]


def build(
    source: Source, sql: str, plan: Plan, folder: Path, now_us: int, rejects_max: float, progress: Progress
) -> Built:
    """Builds profiles.mdb and rejects.ndjson in `folder`. Rows without a time of update are given `now_us`.

    Raises RefreshRefused where more than the share `rejects_max` of the rows is refused.
    """
    with source.reporting(lambda share: progress("model", share, 1)):
        rows = _materialise(source, sql, plan)
    _refuse(source, plan)
    _check_refused(source, folder, rows, rejects_max)
    with Writer(folder / snapshot.PROFILES) as writer:
        profiles, record_bytes, content = _encode(source, plan, writer, rows, now_us, progress)
        rejected = _check_refused(source, folder, rows, rejects_max)
        identifiers = _index(source, plan, writer, progress)
        return Built(rows, profiles, identifiers, writer.segments, record_bytes, writer.used_bytes(), content, rejected)


def _check_refused(source: Source, folder: Path, rows: int, rejects_max: float) -> dict[str, int]:
    """Lists the refused rows and counts them by reason. Raises RefreshRefused where they are too many."""
    rejected = _list_rejects(source, folder / snapshot.REJECTS)
    if sum(rejected.values()) > rejects_max * rows:
        raise RefreshRefused(
            f"{sum(rejected.values())} of {rows} rows were refused ({_counts(rejected)}), "
            f"more than rejects_max allows ({rejects_max:.2%})",
            outcome="too_many_rejects",
            hint=f"mend the model, or raise rejects_max; row by row: {folder.parent.parent / snapshot.REJECTS}",
        )
    return rejected


def _counts(rejected: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in rejected.items())


def _materialise(source: Source, sql: str, plan: Plan) -> int:
    """Runs the model. Of rows with one primary id, the newest comes first."""
    updated = plan.updated or "CAST(NULL AS TIMESTAMP)"
    fields = "".join(f", {column} AS f{number}" for number, column in enumerate(plan.columns))
    source.run(
        f"CREATE TEMP TABLE rows AS SELECT {plan.key} AS key, {updated} AS updated{fields} FROM (\n{sql}\n) "
        "ORDER BY key, updated DESC NULLS LAST"
    )
    return int(source.ask("SELECT count(*) FROM temp.rows")[0][0])


def _refuse(source: Source, plan: Plan) -> None:
    """Fills the table `refused` with the rows that cannot be served, each with its first reason."""
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
                WHEN {" OR ".join(too_long) or "false"} THEN 'identifier_too_long'
            END AS reason
            FROM temp.rows
        ) WHERE reason IS NOT NULL
        """
    )
    _refuse_duplicates(source)
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
    """Of the rows that claim one value of a unique identifier, the newest stays; of equals, the first by id."""
    source.run(
        f"""
        INSERT INTO temp.refused
        WITH claims AS (
            SELECT rowid AS row, key, updated, {value} AS value FROM temp.rows
            WHERE rowid NOT IN (SELECT row FROM temp.refused) AND {value} <> ''
        ), contested AS (SELECT value FROM claims GROUP BY value HAVING count(*) > 1)
        SELECT row, 'duplicate_identifier' FROM (
            SELECT row, row_number() OVER (PARTITION BY value ORDER BY updated DESC NULLS LAST, key) AS place
            FROM claims WHERE value IN (FROM contested)
        ) WHERE place > 1
        """
    )


def _encode(
    source: Source, plan: Plan, writer: Writer, rows: int, now_us: int, progress: Progress
) -> tuple[int, int, str]:
    """Writes the records; returns the number of profiles, the bytes of their records and the hash of the content."""
    has_updated = plan.updated is not None
    types = [*plan.types, record.Type(record.Kind.TEXT)]
    types += [record.Type(record.Kind.TIMESTAMP)] if has_updated else []
    names = [field.name for field in plan.schema.fields]
    encoder = Encoder(names, types, plan.schema.first_audience, has_updated, now_us)
    columns = ", ".join([*(f"f{n}" for n in range(len(names))), "coalesce(key, '')", *["updated"] * has_updated])
    content = hashlib.sha256(msgspec.json.encode(plan.schema))
    first, batch_rows, profiles, record_bytes = 0, BATCH_ROWS_FIRST, 0, 0
    while first < rows:
        last = min(first + batch_rows, rows) - 1
        within = f"BETWEEN {first} AND {last}"
        skipped = {row for (row,) in source.ask(f"SELECT row FROM temp.refused WHERE row {within}")}
        stream = source.stream(f"SELECT {columns} FROM temp.rows WHERE rowid {within} ORDER BY rowid")
        batch = encoder.encode(stream, skipped, first, writer.segments)
        writer.add_segment(batch.segment, batch.entries)
        content.update(batch.contents)
        if batch.refused:
            listed = ", ".join(f"({row}, '{reason}')" for row, reason in batch.refused)
            source.run(f"INSERT INTO temp.refused VALUES {listed}")
        profiles += len(batch.entries)
        record_bytes += len(batch.segment)
        first = last + 1
        progress("records", first, rows)
        # A segment near its aim: few rows where they are wide, so that memory stays bounded by bytes.
        fitting = batch_rows * SEGMENT_BYTES_AIM // max(len(batch.segment), 1)
        batch_rows = max(1, min(2 * batch_rows, fitting, BATCH_ROWS_MAX))
    return profiles, record_bytes, content.hexdigest()


def _list_rejects(source: Source, path: Path) -> dict[str, int]:
    """Writes the first hundred of each reason, with the row's id; returns how many there are of each."""
    listed = source.ask(
        f"""
        SELECT key, reason FROM (
            SELECT row, reason, row_number() OVER (PARTITION BY reason ORDER BY row) AS place FROM temp.refused
        ) JOIN temp.rows ON rows.rowid = row WHERE place <= {REJECTS_LISTED} ORDER BY reason, row
        """
    )
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for key, reason in listed:
            file.write(json.dumps({"id": key, "reason": reason}, ensure_ascii=False) + "\n")
    return dict(source.ask("SELECT reason, count(*) FROM temp.refused GROUP BY reason ORDER BY reason"))


def _index(source: Source, plan: Plan, writer: Writer, progress: Progress) -> dict[str, int]:
    """Writes the identifiers; returns how many values each namespace has."""
    counts: dict[str, int] = {}
    for number, namespace, value in _namespaces(plan):
        progress(f"identifiers: {namespace.name}", 0, 0)
        stream = source.stream(
            f"SELECT {value} AS value, key FROM temp.rows "
            f"WHERE {value} <> '' AND rowid NOT IN (SELECT row FROM temp.refused) "
            "ORDER BY value, updated DESC NULLS LAST, key"
        )
        counts[namespace.name] = 0
        for entries in IndexBatches(stream, NAMESPACE_KEY.pack(number), GROUP_BYTES_MAX):
            writer.add_identifiers(entries)
            counts[namespace.name] += len(entries)
    return counts
