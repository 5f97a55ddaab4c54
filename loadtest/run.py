"""`make bench`: every loadtest/bench_*.py in turn, then one table of all their rows, with a verdict each.

A figure that is missed is a verdict and no failure; the exit status is 1 where a program crashed. Ctrl-C ends the
program that runs and prints what was measured so far. `--only` has the long ones too: soak, malformed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
from harness import COLUMNS, FOLDER, Row, find_program, interrupt

BEGIN, END = "<!-- make bench: the table begins -->", "<!-- make bench: the table ends -->"
PACKAGES = ("granian", "uvloop", "lmdb", "msgspec", "duckdb", "starlette", "fastapi", "uvicorn", "redis")
ON_DEMAND = ("malformed", "soak")
PROGRAMS = {"nginx": "-v", "redis-server": "--version", "wrk": "--version"}


def parser(names: Sequence[str]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", metavar="NAME,…", help=f"these programs only, of {', '.join(names)}")
    made.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers of this page")
    made.add_argument("--quick", action="store_true", help="show that all of it runs; the figures mean little")
    made.add_argument("--pairs", type=int, help="how often both of a pair are measured")
    made.add_argument("--seconds", type=int, help="how long each run lasts")
    return made


def main() -> None:
    programs = {path.stem.removeprefix("bench_"): path for path in sorted(FOLDER.glob("bench_*.py"))}
    long = {name: FOLDER / f"{name}.py" for name in ON_DEMAND}
    options = parser([*programs, *long])
    chosen = options.parse_args()
    names = chosen.only.split(",") if chosen.only else list(programs)
    programs |= long
    if unknown := set(names) - set(programs):
        options.error(f"no such program: {', '.join(sorted(unknown))}")
    if chosen.write and (chosen.only or chosen.quick):
        options.error("a page gets the whole table: --write goes with neither --only nor --quick")
    passed = ["--quick"] if chosen.quick else []
    for name in ("pairs", "seconds"):
        passed += [f"--{name}", str(getattr(chosen, name))] if getattr(chosen, name) is not None else []
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, interrupt)

    rows, statuses = run_all([programs[name] for name in names], passed)
    if rows:
        print("", table(rows), "", tally(rows), "", machine(), sep="\n", flush=True)
    if 130 in statuses:
        sys.exit(130)
    if chosen.write:
        write(chosen.write, f"{table(rows)}\n\n{tally(rows)}\n\n{machine()}")
    sys.exit(1 if any(statuses) else 0)


def run_all(programs: Sequence[Path], options: Sequence[str]) -> tuple[list[Row], list[int]]:
    """Their rows, and how each ended; the last ended with 130 if that was an interrupt."""
    rows: list[Row] = []
    statuses: list[int] = []
    with tempfile.TemporaryDirectory(prefix="edgeprofile-bench-") as folder:
        for program in programs:
            print(f"\n== {program.stem}", flush=True)
            kept = Path(folder) / f"{program.stem}.json"
            statuses.append(run_one([sys.executable, str(program), "--json", str(kept), *options]))
            rows += msgspec.json.decode(kept.read_bytes(), type=list[Row]) if kept.exists() else []
            if statuses[-1] == 130:
                break
            if statuses[-1]:
                rows.append(Row(program.stem, verdict=f"crashed with status {statuses[-1]}"))
    return rows, statuses


def run_one(command: Sequence[str]) -> int:
    """Runs a program to its end, or until we are interrupted; it then ends its servers, for which we wait."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # From a terminal it has this signal already, and heeds only the first.
            process.send_signal(signal.SIGINT)
            process.wait()
            return 130


# --- the table -----------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, with columns as wide as their widest cell, so that it reads well in a terminal too."""
    lines: list[tuple[str, ...]] = [COLUMNS, *(msgspec.structs.astuple(row) for row in rows)]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in cells)


def tally(rows: Sequence[Row]) -> str:
    """How many rows have which verdict; those without a target have none."""
    verdicts = Counter(row.verdict.partition(":")[0].partition(" with")[0] for row in rows if row.verdict)
    return f"{', '.join(f'{count} {verdict}' for verdict, count in verdicts.items()) or 'No verdicts'}."


def machine() -> str:
    """What this ran on, as a sentence or two."""
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    cores = len(os.sched_getaffinity(0))
    processor = " ".join((model[1] if model else platform.machine()).split())
    versions = [f"{name} {found}" for name in PACKAGES if (found := package_version(name))]
    versions += [f"{name} {found}" for name, option in PROGRAMS.items() if (found := program_version(name, option))]
    kernel = re.match(r"[\d.]*\d", platform.release())
    system = f"Linux {kernel[0] if kernel else '?'}, Python {platform.python_version()}"
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return f"Measured on {day} on {cores} cores of {processor}, {system}; {', '.join(versions)}."


def package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def program_version(name: str, option: str) -> str | None:
    """The first version number that a program prints; some print it to the one stream and some to the other."""
    path = find_program(name)
    if path is None:
        return None
    done = subprocess.run([path, option], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+", done.stdout)
    return found[0] if found else None


def write(page: Path, text: str) -> None:
    """Puts the text between the page's markers, in place of what was there. Raises SystemExit where it has none."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} lacks the markers {BEGIN!r} and {END!r}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
