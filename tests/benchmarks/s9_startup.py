"""S9: commands in processes of their own, against Python that imports what they cannot do without."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.benchmarks.harness import Measurement, at_most, folder, interleaved, seconds

NAME = "S9"
GOAL = "--version ≤ 1.25, --help ≤ 2.5 of `import typer`; credits show ≤ 1.3 of `import typer, sqlmodel`"

TYPER = ["-c", "import typer"]
SQLMODEL = ["-c", "import typer, sqlmodel"]
OURS = ["-c", "from polarcredits.cli import main; main()"]
"""What the installed script does."""

COMPARED = (
    ("--version", ["--version"], TYPER, 1.25),
    ("--help", ["--help"], TYPER, 2.5),
    ("credits show", ["credits", "show", "alice"], SQLMODEL, 1.3),
)


def run(quick: bool) -> list[Measurement]:
    """Measure wall-clock time, with byte code written beforehand, as after an installation."""
    with folder() as place:
        known = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment = {
            **known,
            "POLARCREDITS_DATABASE_URL": f"sqlite:///{place / 'credits.db'}",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        _start([*OURS, "users", "add", "alice"], environment)
        found = []
        for what, arguments, baseline, goal in COMPARED:
            programs = {
                "baseline": partial(seconds, partial(_start, baseline, environment)),
                "ours": partial(seconds, partial(_start, [*OURS, *arguments], environment)),
            }
            figures = interleaved(programs, 3 if quick else 21)
            label = f"{what} against `{baseline[1]}`"
            found.append(at_most(NAME, label, figures["ours"], figures["baseline"], goal))
    return found


def _start(arguments: list[str], environment: dict[str, str]) -> None:
    subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True)
