"""What people and programs are told of the state of things: progress, outcomes, snapshots, keys."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import msgspec

from edgeprofile import health, snapshot
from edgeprofile.errors import EdgeprofileError
from edgeprofile.keys import Key
from edgeprofile.outcomes import SUCCESSES, Outcome
from edgeprofile.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LOG_INTERVAL_S = 10.0
Report = Callable[[str, float, float], None]


@contextlib.contextmanager
def progress(stream: TextIO) -> Iterator[Report]:
    """A progress bar on a terminal; elsewhere a line a stage, and one every ten seconds within it."""
    if not stream.isatty():
        yield _lines(stream)
        return
    # Only here, as it takes longer to import than many a command takes.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("starting", total=None, counts="")
        began, running = time.monotonic(), ""

        def report(stage: str, done: float, total: float) -> None:
            nonlocal began, running
            if stage != running:
                began, running = time.monotonic(), stage
                bar.reset(task, total=total or None, description=stage, counts="")
            rate = done / max(time.monotonic() - began, 1e-3)
            # A total of 1 is a share: the bar says enough.
            of = f" of {total:,.0f}" if total else ""
            counts = f"{done:,.0f}{of}, {rate:,.0f}/s" if done and total != 1 else ""
            bar.update(task, completed=done, total=total or None, counts=counts)

        yield report


def _lines(stream: TextIO) -> Report:
    said, said_at = "", 0.0

    def report(stage: str, done: float, total: float) -> None:
        nonlocal said, said_at
        now = time.monotonic()
        if stage == said and now - said_at < LOG_INTERVAL_S:
            return
        said, said_at = stage, now
        print(f"stage={stage!r} done={done:.6g} total={total:.6g}", file=stream, flush=True)

    return report


def outcome_line(workspace: str, outcome: Outcome) -> str:
    """One line for a log: what a refresh did."""
    rate = (
        f", {(outcome.profiles + outcome.events) / max(outcome.seconds, 1e-3):,.0f} a second"
        if outcome.outcome == "published"
        else ""
    )
    events = f" and {outcome.events:,} events" if outcome.events else ""
    return (
        f"{workspace}: {outcome.outcome}, {outcome.profiles:,} profiles{events} in {outcome.seconds:.1f} s{rate}"
        f"{_lost(outcome)} (snapshot {outcome.snapshot})"
    )


def _lost(outcome: Outcome) -> str:
    refused = f", {outcome.rejected:,} rows refused" if outcome.rejected else ""
    counts = {"evicted": outcome.evicted, "changed": outcome.changed, "deleted": outcome.deleted}
    return refused + "".join(f", {count:,} {what}" for what, count in counts.items() if count)


def say_refresh(form: Literal["text", "json"], workspace: str, outcome: Outcome, delay_s: float) -> None:
    """One line on standard output for what a watcher did: for people on a terminal, else for programs."""
    if sys.stdout.isatty():
        line = _watch_line(workspace, outcome, delay_s)
    else:
        line = {"text": _key_values, "json": _json}[form](_watch_fields(workspace, outcome, delay_s))
    # A reader that has gone must not keep the profiles from being refreshed.
    with contextlib.suppress(OSError):
        print(line, flush=True)


def _watch_line(workspace: str, outcome: Outcome, delay_s: float) -> str:
    what = f"{workspace}: {outcome.outcome}" + (f": {outcome.message}" if outcome.message else "")
    if outcome.outcome in SUCCESSES:
        what = outcome_line(workspace, outcome)
    return f"{dt.datetime.now():%H:%M:%S} {what}; next in {dt.timedelta(seconds=round(delay_s))}"


def _watch_fields(workspace: str, outcome: Outcome, delay_s: float) -> dict[str, object]:
    """What does not go without saying."""
    fields: dict[str, object] = {
        "time": f"{dt.datetime.fromtimestamp(outcome.finished_at, dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "workspace": workspace,
        "outcome": outcome.outcome,
        "seconds": round(outcome.seconds, 3),
        "next_seconds": round(delay_s),
    }
    if outcome.message:
        fields["message"] = outcome.message
    if outcome.outcome in SUCCESSES:
        for name in ("profiles", "events", "rejected", "evicted", "changed", "deleted", "snapshot"):
            if (value := getattr(outcome, name)) is not None:
                fields[name] = value
    return fields


def _key_values(fields: dict[str, object]) -> str:
    """As key=value; a text that may hold spaces is JSON."""
    texts = {name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in fields.items()}
    if "message" in fields:
        texts["message"] = _json(fields["message"])
    return " ".join(f"{name}={text}" for name, text in texts.items())


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def of_workspace(settings: Settings, name: str) -> dict[str, object]:
    """The state of a workspace, as `status --json` prints it: its health, and how many profiles are erased."""
    found, problems = health.of_workspace(settings, name)
    found["erased"] = _erased(snapshot.home(settings.data_dir, name), problems)
    return found | {"problem": "; ".join(problems) or None}


def _erased(home: Path, problems: list[str]) -> int:
    """How many profiles are erased."""
    # Imported here, like all that loads, because a server has no use for it.
    from edgeprofile.loader.following import erasures

    try:
        return len(erasures(home))
    except EdgeprofileError as error:
        problems.append(str(error))
        return 0


def print_status(found: list[dict[str, object]]) -> None:
    """The same for people."""
    table = _table("workspace", "snapshot", last=("age", "stale for", "profiles", "live", "events", "last refresh"))
    for each in found:
        ended = "never"
        if each["last_refresh"] is not None:
            last = msgspec.convert(each["last_refresh"], Outcome)
            ended = f"{last.outcome} {_moment(last.finished_at)}{_lost(last)}"
            ended += f": {last.message}" if last.message else ""
        served = str(each["snapshot"] or each["problem"] or "none yet: run edgeprofile load")
        served += "".join(f" ({how.replace('_', ' ')})" for how in ("forced", "rolled_back") if each.get(how))
        ages = [f"{each[what]:,.0f} s" if what in each else "" for what in ("age", "staleness")]
        counts = [f"{each[what]:,}" if what in each else "" for what in ("profiles", "live_profiles", "events")]
        table.add_row(str(each["workspace"]), served, *ages, *counts, ended)
    _console().print(table)
    for each in found:
        if each["snapshot"] and each["problem"]:
            _console().print(f"{each['workspace']}: {each['problem']}", soft_wrap=True)


def print_snapshots(home: Path) -> None:
    """The published snapshots, the current one marked. Raises NoSnapshot where there is none."""
    current = snapshot.current(home)
    table = _table("", "snapshot", last=("finished", "profiles", "events", "size", "refused rows", "evicted", "forced"))
    for manifest in snapshot.manifests(home):
        table.add_row(
            "→" if manifest.name == current else "",
            manifest.name,
            _moment(manifest.finished_at),
            f"{manifest.profiles:,}",
            f"{manifest.events:,}",
            f"{manifest.file_bytes / 1e6:,.1f} MB",
            f"{manifest.refused:,}",
            "" if manifest.evicted is None else f"{manifest.evicted:,}",
            "forced" if manifest.forced else "",
        )
    _console().print(table)


def print_erased(found: list[tuple[str, float]]) -> None:
    """What was erased and when, by the keyed hashes of the ids, which themselves are not kept."""
    table = _table("erased", last=("when",))
    for key, time_s in found:
        table.add_row(key, _moment(time_s))
    _console().print(table)


def key_facts(key: Key) -> dict[str, object]:
    """All that may be known of a key."""
    state = "revoked" if key.revoked_at else "usable" if key.usable(time.time()) else "expired"
    return {name: getattr(key, name) for name in key.__struct_fields__ if name != "hash"} | {"state": state}


def print_keys(keys: list[Key]) -> None:
    """The keys as a table."""
    table = _table("public id", last=("workspace", "name", "scopes", "state", "created", "expires", "rate", "burst"))
    for key in keys:
        facts = key_facts(key)
        expires = "never" if key.expires_at is None else _moment(key.expires_at)
        limits = ["default" if limit is None else f"{limit:g}/s" for limit in (key.rate, key.burst_rate)]
        scopes = " ".join(key.scopes)
        table.add_row(
            key.public_id,
            key.workspace,
            key.name,
            scopes,
            str(facts["state"]),
            _moment(key.created_at),
            expires,
            *limits,
        )
    _console().print(table)


def _table(*whole: str, last: tuple[str, ...]) -> Table:
    """A table whose first columns are never cut, because people copy what stands in them."""
    from rich.table import Table

    table = Table()
    for name in whole:
        table.add_column(name, no_wrap=True, overflow="ignore")
    for name in last:
        table.add_column(name, overflow="fold")
    return table


def _moment(seconds: object) -> str:
    return f"{dt.datetime.fromtimestamp(float(str(seconds)), dt.UTC):%Y-%m-%d %H:%M:%S}"


def _console() -> Console:
    from rich.console import Console

    # Off a terminal, as wide as its content: no name may be cut in a log.
    # What stands in brackets is text, never markup: a key's name and a message may hold any.
    return Console(width=None if sys.stdout.isatty() else 250, markup=False, emoji=False, highlight=False)
