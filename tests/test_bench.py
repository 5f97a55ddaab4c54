"""What the programs of `make bench` share: figures, verdicts, CPU of process trees, clean ends, and the table.

Nothing here measures how fast anything is.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import harness
import msgspec
import pytest
import run
from harness import BenchError, Row, Spread, Stage, Target

LOADTEST = Path(__file__).parent.parent / "loadtest"
PROGRAMS = sorted([*LOADTEST.glob("bench_*.py"), *(LOADTEST / f"{name}.py" for name in (*run.ON_DEMAND, "run"))])
PAUSE = "import signal; signal.pause()"
SECONDS_MAX = 30


def until(look: Callable[[], bool]) -> None:
    give_up = time.monotonic() + SECONDS_MAX
    while not look():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def is_over(pid: int) -> bool:
    """Whether a process has ended; its parent may not have waited for it yet."""
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Writes a program of this name that can import what those in loadtest/ can."""
    monkeypatch.setenv("PYTHONPATH", str(LOADTEST), prepend=":")

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


# --- figures and rows ----------------------------------------------------------------------------------------------


def test_a_spread_is_the_median_with_the_least_and_the_greatest() -> None:
    assert Spread.of([1.3, 1.1, 1.0, 1.2]) == pytest.approx((1.15, 1.0, 1.3))
    assert str(Spread.of([1.0, 1.25, 1.1])) == "1.100 (1.000 to 1.250)"
    assert str(Spread.of([412_345.6, 400_000, 450_000])) == "412,346 (400,000 to 450,000)"
    assert str(Spread.of([12.34])) == "12.3"
    with pytest.raises(ValueError, match="no figures"):
        Spread.of([])


@pytest.mark.parametrize(
    ("target", "figure", "verdict"),
    [
        (Target("≤", 1.1), 1.1, "reached"),
        (Target("≤", 1.1), 1.1001, "missed"),
        (Target("≥", 8), 8.0, "reached"),
        (Target("≥", 8), 7.999, "missed"),
    ],
)
def test_a_verdict_is_by_the_median(target: Target, figure: float, verdict: str) -> None:
    assert Row.measured("this", Spread(figure, 0, 100), target).verdict == verdict


def test_a_row_says_its_unit_with_the_figure_and_the_target() -> None:
    assert Row.measured("a", 1.05, Target("≤", 1.1)) == Row("a", "", "", "1.050 ×", "≤ 1.10 ×", "reached")
    batch = Row.measured("b", 5e5, Target("≥", 400_000), unit="profiles/s", ours="2 µs")
    assert batch == Row("b", "2 µs", "", "500,000 profiles/s", "≥ 400,000 profiles/s", "reached")


def test_a_row_without_a_target_has_no_verdict() -> None:
    assert Row.measured("a", 2.0) == Row("a", figure="2.000 ×")


def test_what_is_not_installed_is_named() -> None:
    assert harness.absent("sh", modules=["json"]) == ""
    both = harness.absent("sh", "no-such-peer", modules=["no_such_module"])
    assert both == "no-such-peer, no_such_module not installed"
    row = Row.not_run("a", harness.absent("no-such-peer"), Target("≥", 8))
    assert row == Row("a", target="≥ 8 ×", verdict="not run: no-such-peer not installed")


def test_pairs_alternate_in_who_goes_first() -> None:
    order: list[str] = []

    def goes(name: str) -> tuple[str, int]:
        order.append(name)
        return name, len(order)

    pairs = harness.alternate(lambda: goes("ours"), lambda: goes("peer"), 3)
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert pairs == [(("ours", 1), ("peer", 2)), (("ours", 4), ("peer", 3)), (("ours", 5), ("peer", 6))]


# --- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("then", "alive"), [("", 1), (PAUSE, 2)], ids=["ended", "running"])
def test_cpu_is_that_of_grandchildren_too(then: str, alive: int) -> None:
    grandchild = f"import time\nwhile time.process_time() < 0.3: pass\n{then}"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}]); {PAUSE}"
    with Stage() as stage:
        running = stage.start([sys.executable, "-c", child])
        pid = running.process.pid
        running.wait_until(lambda: len(harness.tree([pid])) == alive and harness.cpu_s(pid) >= 0.1)
        # A process that starts next to it is none of its.
        other = stage.start([sys.executable, "-c", PAUSE])
        assert other.process.pid not in {process.pid for process in harness.tree([pid])}


def test_a_stage_ends_what_it_started_and_removes_its_folder() -> None:
    # A child that its parent does not end, as a server's worker whose main process was killed.
    leaves_a_child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {PAUSE!r}]); {PAUSE}"
    with Stage() as stage:
        running = stage.start([sys.executable, "-c", leaves_a_child])
        pid = running.process.pid
        running.wait_until(lambda: len(harness.tree([pid])) == 2)
        pids = {process.pid for process in harness.tree([pid])}
    assert running.process.returncode == -signal.SIGTERM
    until(lambda: all(is_over(pid) for pid in pids))
    assert not stage.folder.exists()


def test_a_server_that_does_not_come_up_is_quoted() -> None:
    with Stage() as stage:
        running = stage.start([sys.executable, "-c", "raise SystemExit('the port is taken')"])
        with pytest.raises(BenchError, match="the port is taken"):
            running.wait_until(lambda: False)


def test_the_constant_server_answers_anything_with_so_many_bytes() -> None:
    with Stage() as stage:
        shop = harness.make_shop(stage.folder / "shop", 10)
        ours = harness.start_edgeprofile(stage, shop.file)
        assert ours.ask("/v1/profiles/id/12345", shop.header)[0] == 200
        constant = harness.start_constant(stage, shop.file, 321)
        assert constant.ask("/v1/profiles/id/12345", shop.header) == (200, b"x" * 321)


# --- programs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_every_program_says_how_it_is_used(program: Path) -> None:
    done = subprocess.run([sys.executable, program, "--help"], capture_output=True, text=True, check=True)
    assert "--quick" in done.stdout
    assert done.stderr == ""


def test_an_interrupted_program_keeps_its_rows_and_ends_its_servers(
    script: Callable[[str, str], Path], tmp_path: Path
) -> None:
    program = script(
        "bench_slow.py",
        "import sys\nfrom harness import Row, Stage, run\n"
        "def measure(chosen):\n"
        "    with Stage() as stage:\n"
        f"        server = stage.start([sys.executable, '-c', {PAUSE!r}]).process\n"
        "        yield Row('the first', ours=str(server.pid))\n"
        "        server.wait()\n"
        "run('', measure)\n",
    )
    kept = tmp_path / "rows.json"
    with subprocess.Popen([sys.executable, program, "--json", kept], stdout=subprocess.DEVNULL) as process:
        until(lambda: kept.exists() and kept.stat().st_size > 0)
        (row,) = msgspec.json.decode(kept.read_bytes(), type=list[Row])
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS_MAX) == 130
    assert is_over(int(row.ours))
    assert msgspec.json.decode(kept.read_bytes(), type=list[Row]) == [row]


def test_a_crash_is_a_row_after_those_that_came_before_it(script: Callable[[str, str], Path]) -> None:
    start = "from harness import BenchError, Row, run\ndef measure(chosen):\n"
    good = script("bench_good.py", f"{start}    yield Row('a', figure=str(chosen.pairs))\nrun('', measure)\n")
    bad = script("bench_bad.py", f"{start}    yield Row('b')\n    raise BenchError('gone')\nrun('', measure)\n")
    rows, statuses = run.run_all([bad, good], ["--pairs", "3"])
    assert rows == [Row("b"), Row("bench_bad", verdict="crashed with status 1"), Row("a", figure="3")]
    assert statuses == [1, 0]


# --- the table -----------------------------------------------------------------------------------------------------


def test_the_table_has_a_line_a_row_and_a_cell_a_column() -> None:
    lines = run.table([Row("a | b", verdict="reached"), Row("c", "1 µs", "2 µs", "0.500 ×")]).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(harness.COLUMNS) + 1}


def test_the_tally_counts_what_has_a_verdict() -> None:
    rows = [Row("a", verdict="reached"), Row("b", verdict="not run: x"), Row("c"), Row("d", verdict="not run: y")]
    assert run.tally(rows) == "1 reached, 2 not run."
    assert run.tally([]) == "No verdicts."


def test_writing_a_table_twice_changes_only_what_is_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{run.BEGIN}\nold\n{run.END}\nafter\n", encoding="utf-8")
    run.write(page, "a ≤ b")
    once = page.read_text(encoding="utf-8")
    assert once == f"before\n{run.BEGIN}\na ≤ b\n{run.END}\nafter\n"
    run.write(page, "a ≤ b")
    assert page.read_text(encoding="utf-8") == once


@pytest.mark.parametrize("text", ["", run.BEGIN, f"{run.END}\n{run.BEGIN}"])
def test_a_page_without_both_markers_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(SystemExit, match="lacks the markers"):
        run.write(page, "a table")
    assert page.read_text() == text


def test_the_page_of_benchmarks_has_the_markers() -> None:
    page = (LOADTEST.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert page.count(run.BEGIN) == page.count(run.END) == 1
