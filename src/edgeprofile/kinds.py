"""The kinds of values that settings have: what each may be, and what a fault calls it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

DURATION_UNITS_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}

# Every number is bounded on both sides: TOML's nan and inf must not reach anybody's arithmetic.
Port = Annotated[int, Meta(ge=1, le=65_535)]
PortOrNone = Annotated[int, Meta(ge=0, le=65_535)]
Count = Annotated[int, Meta(ge=0, le=1_024)]
Kept = Annotated[int, Meta(ge=1, le=1_024)]
Parallel = Annotated[int, Meta(ge=1, le=64)]
Bytes = Annotated[int, Meta(ge=1, le=2**31 - 1)]
# What is left of a larger one when it has been read would not fit a frame between processes.
UpdatesBytes = Annotated[int, Meta(ge=1, le=48 * 1024 * 1024)]
Rate = Annotated[float, Meta(ge=0.001, le=1_000_000)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Cost = Annotated[float, Meta(ge=0, le=1_000_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
# Every other type says itself what it expects.
Switch = Annotated[bool, Meta(extra={"expected": "true or false"})]
FilePath = Annotated[Path, Meta(extra={"expected": "a path"})]
LogFormat = Annotated[Literal["text", "json"], Meta(extra={"expected": '"text" or "json"'})]
Logged = Annotated[Literal["none", "failed", "all"], Meta(extra={"expected": '"none", "failed" or "all"'})]
Lower = Annotated[Literal["lower"], Meta(extra={"expected": '"lower"'})]
Text = Annotated[str, Meta(min_length=1, extra={"expected": "text"})]
Column = Annotated[str, Meta(min_length=1, extra={"expected": "a column"})]
_COLUMNS = "a column or a list of columns"
Columns = Annotated[Column | Annotated[tuple[Column, ...], Meta(min_length=1)], Meta(extra={"expected": _COLUMNS})]
Sql = Annotated[str, Meta(min_length=1, extra={"expected": "SQL, or a path that ends in .sql"})]
Url = Annotated[str, Meta(min_length=1, extra={"expected": "a URL such as duckdb:///FILE"})]
Partner = Annotated[str, Meta(pattern=r"\A[a-z0-9._-]{1,64}\Z", extra={"expected": "a name in lower case"})]
Segment = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._~-]{1,64}\Z", extra={"expected": "a name without /, for paths"})]
Audience = Annotated[str, Meta(pattern=r"\A[!-~]{1,255}\Z", extra={"expected": "a URL, or a name without spaces"})]
Project = Annotated[
    str, Meta(pattern=r"\Aproject_[A-Za-z0-9]{1,64}\Z", extra={"expected": "a project's key, project_…"})
]
Header = Annotated[str, Meta(pattern=r"\A[\x20-\x7e]*\Z", extra={"expected": "text in printable ASCII"})]
# So few digits that every duration fits the timers of the system.
_DURATION = r"\A(?=.*[1-9])([0-9]{1,4}d)?([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?\Z"
Duration = Annotated[str, Meta(pattern=_DURATION, extra={"expected": 'a duration such as "30s", "5m" or "1h30m"'})]
_SIZE = r"(?i)\A(?=.*[1-9])[0-9]{1,15} ?([KMGT]I?)?B\Z"
Size = Annotated[str, Meta(pattern=_SIZE, extra={"expected": 'a size such as "512MB" or "2GiB"'})]
_NAME = "a name of up to 63 of a-z, 0-9, _ and -, which starts with a letter or digit"  # it names a folder too
Name = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9_-]{0,62}\Z", extra={"expected": _NAME})]


def seconds(duration: str) -> float:
    """Of a Duration."""
    parts = re.findall(r"([0-9]+)([dhms])", duration)
    return float(sum(int(digits) * DURATION_UNITS_S[unit] for digits, unit in parts))
