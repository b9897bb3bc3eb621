"""A few rounds of kill -9; `python -m tests.ledger.killing 500` runs many."""

from __future__ import annotations

import re
import subprocess
import sys


def test_a_killed_process_loses_nothing_acknowledged() -> None:
    """§6.4: wherever it is cut off, what was told of is there, once, and the laws hold."""
    program = [sys.executable, "-m", "tests.ledger.killing", "2"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    told = re.findall(
        r"^(\w+) on (SQLite|PostgreSQL): 2 kills, (\d+) acknowledged", done.stdout, re.MULTILINE
    )
    kinds = ("Deducting", "Ingesting", "Refilling", "Migrating")
    assert [each[:2] for each in told] == [(kind, on) for kind in kinds for on in ("SQLite", "PostgreSQL")]
    assert all(int(acknowledged) > 0 for kind, _, acknowledged in told if kind in kinds[:2])
