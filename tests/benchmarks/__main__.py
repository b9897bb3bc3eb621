"""`python -m tests.benchmarks [--quick] [--json FILE] [ROW…]`: the speed table, row by row.

Each row is a module `s<number>_<name>.py` here with NAME, GOAL and `run(quick)`. ROW is such as `s5` or
`s5_growth`; without one all are run. Figures are ratios taken side by side; nothing is asserted.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

from tests.benchmarks.harness import Measurement, as_json, machine

WIDTH = 80
WHAT = 31


def rows() -> dict[str, ModuleType]:
    """Return the modules of the rows by name, in the order of their numbers."""
    names = [file.stem for file in Path(__file__).parent.glob("s[0-9]*_*.py")]
    names.sort(key=lambda name: (int(re.findall(r"\d+", name)[0]), name))
    return {name: importlib.import_module(f"tests.benchmarks.{name}") for name in names}


def lines(measurement: Measurement) -> list[str]:
    """Return one measurement as text of at most 80 columns."""
    verdict = {True: "met", False: "MISSED", None: ""}[measurement.met]
    cells = (_number(measurement.ours), _number(measurement.baseline), measurement.unit)
    ratio = _number(measurement.ratio)
    tail = f"{cells[0]:>8} {cells[1]:>8} {cells[2]:<3} {ratio:>6} {measurement.goal:>7} {verdict}".rstrip()
    what = textwrap.wrap(measurement.what, WHAT)
    first = f"{measurement.row:<4} {what[0]:<{WHAT}} {tail}"
    return [first, *(f"     {rest}" for rest in what[1:])]


def _number(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1_000_000:.1f}M"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(arguments: list[str] | None = None) -> int:
    """Run the rows that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="The speed table.")
    parser.add_argument("--quick", action="store_true", help="small and rough: seconds a row")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine's facts here")
    parser.add_argument("row", nargs="*", help="such as s5; default: all")
    given = parser.parse_args(arguments)
    known = rows()
    chosen = [name for name in known if not given.row or {name, name.split("_")[0]} & set(given.row)]
    if not chosen:
        parser.error(f"no such row; there are {', '.join(known)}")
    facts = machine()
    print(textwrap.fill(", ".join(f"{name} {value}" for name, value in facts.items()), WIDTH))
    print(f"\n{'':<{WHAT + 5}} {'ours':>8} {'baseline':>8} {'':<3} {'ratio':>6} {'goal':>7}")
    found: list[Measurement] = []
    for name in chosen:
        for measurement in known[name].run(given.quick):
            found.append(measurement)
            print("\n".join(lines(measurement)), flush=True)
    if given.json:
        Path(given.json).write_text(as_json(found, facts) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
