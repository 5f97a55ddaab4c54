"""The programs of `make fuzz`, each for a moment and without sanitizers, so that none is broken when it is wanted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# The one of trees goes through every byte of a file first, which test_tree.py does too.
PROGRAMS = sorted(set(Path(__file__).parent.glob("fuzz_*.py")) - {Path(__file__).parent / "fuzz_tree.py"})


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_that_attacks_finds_nothing_in_a_moment(program: Path) -> None:
    done = subprocess.run([sys.executable, program, "0.5"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert " rounds " in done.stdout
