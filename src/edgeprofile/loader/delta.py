"""A delta refresh: the rows that changed since the last one, brought into the live layer in one transaction.

Which these are is told by the warehouse's clock alone: all that were updated since the latest time seen so far, the
watermark, less the setting `overlap`, within which rows may come late. Those that were seen before change nothing. The
watermark is written with the rows, so that whatever ends the process, the next one looks on from where rows were
brought. Wherever there is a doubt, there is a full refresh instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeprofile import outcomes, snapshot
from edgeprofile.errors import StoreError
from edgeprofile.loader.apply import LiveWriter
from edgeprofile.loader.build import Models, encoder_of, materialise, refuse, watermark_us
from edgeprofile.loader.changes import Delta
from edgeprofile.loader.fold import widened
from edgeprofile.loader.following import erased_upto, is_live_whole, live_watermark_us
from edgeprofile.loader.model import Plan
from edgeprofile.loader.rows import PROFILES, encoded
from edgeprofile.loader.source import Source
from edgeprofile.reader import PLACE
from edgeprofile.record import Schema
from edgeprofile.settings import Workspace

# Of one delta refresh, which holds all of it in memory; and of all those between two full ones.
ROWS_MAX = 100_000
BYTES_MAX = 64 * 1024 * 1024
LIVE_ROWS_MAX = 1_000_000
# So few refused rows are never too many.
FAULTS_MAX = 100


class Done(NamedTuple):
    """How many profiles have another row than before, how many none any more, and how many rows were refused."""

    changed: int
    deleted: int
    rejected: int


def is_due(home: Path, workspace: Workspace, current: snapshot.Manifest) -> bool:
    """Whether the next refresh may be one: it is neither the turn of a full one, nor is there any other need of it."""
    known = outcomes.read(home)
    if known.rolled_back or known.deltas + 1 >= workspace.full_every or current.watermark_us is None:
        return False
    # A full refresh is what rids the disk of a profile that was erased, and what has another live layer.
    return erased_upto(home, workspace.erase_within_s) <= current.updates and is_live_whole(home, current)


def run(
    source: Source,
    models: Models,
    workspace: Workspace,
    home: Path,
    current: snapshot.Manifest,
    now_us: int,
    at: snapshot.AtStep,
) -> Done | None:
    """Brings what changed into the live layer of the current snapshot, which these models made.

    None where that calls for a full refresh: it is too much, or too much of it is refused or deleted, or the snapshot
    or its live layer is damaged.
    """
    plan = _over(models.plan, current)
    if plan is None or plan.moment is None or current.watermark_us is None:
        return None
    live_us = live_watermark_us(home, current)
    seen_us = current.watermark_us if live_us is None else live_us
    since_us = max(seen_us - int(workspace.overlap_s * 1e6), _FIRST_US)
    rows = materialise(source, source.since(models.sql, plan.moment, since_us, ROWS_MAX + 1), plan)
    if rows > ROWS_MAX:
        return None
    refuse(source, plan, "false")
    records = _records(source, plan, rows, now_us)
    rejected = dict(source.ask(f"SELECT reason, count(*) FROM {PROFILES.refused} GROUP BY reason"))
    faults, gone = snapshot.faults(rejected), rejected.get(snapshot.DELETED, 0)
    if records is None or faults > max(FAULTS_MAX, workspace.rejects_max * rows):
        return None
    if gone > workspace.shrink_max * current.profiles:
        return None
    if not records and not gone:
        return Done(0, 0, faults)
    brought = Delta(sorted(records + _deleted(source)), max(seen_us, watermark_us(source, now_us) or seen_us))
    try:
        with LiveWriter(home, at) as writer:
            found = writer.bring(current.name, brought, LIVE_ROWS_MAX)
    except StoreError:
        return None
    return None if found is None else Done(*found, faults)


# The first moment that SQL and Python both have.
_FIRST_US = -62_135_596_800_000_000


def _over(plan: Plan, current: snapshot.Manifest) -> Plan | None:
    """The plan with the snapshot's schema; None where that is another."""
    try:
        schema = msgspec.convert(current.schema, Schema)
    except (msgspec.ValidationError, ValueError):
        return None
    wide = widened(plan, {field.name for field in schema.fields if field.section == "attributes"})
    return wide if wide.schema == schema else None


def _records(source: Source, plan: Plan, rows: int, now_us: int) -> list[tuple[bytes, bytes]] | None:
    """The records of all good rows by their ids; None where they are too large."""
    encoder, columns = encoder_of(plan, now_us)
    records: list[tuple[bytes, bytes]] = []
    size = 0
    for batch, _ in encoded(source, PROFILES, columns, rows, encoder, lambda: 0):
        size += len(batch.segment)
        if size > BYTES_MAX:
            return None
        for primary, place in batch.entries:
            _, offset, length = PLACE.unpack(place)
            records.append((primary, batch.segment[offset : offset + length]))
    return records


def _deleted(source: Source) -> list[tuple[bytes, bytes]]:
    """The ids of the rows that are marked as deleted, each with no record."""
    found = source.ask(
        f"SELECT hex(key) FROM {PROFILES.table} AS made JOIN {PROFILES.refused} ON made.rowid = row "
        f"WHERE reason = '{snapshot.DELETED}'"
    )
    return [(bytes.fromhex(key), b"") for (key,) in found]
